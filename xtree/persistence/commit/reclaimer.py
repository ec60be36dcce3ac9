"""The reclaimer: gives back the slots and handles of pages that nobody can see any more.

Each step has three phases, which `Store.reclaim` runs under the store's lock: look at all pins, publish the horizon,
look again; collect retired rows up to the horizon and the durable epoch; give their slots and handles back. A step
frees a bounded number of pages, so that writers wait for the lock no longer than that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xtree.persistence.store.store import Store

STEP_PAGES = 1024
LEAST_PAGES = 4096  # a call may free at least so many
FRESH_PAGES = 64  # so many must change before it is worth looking whether a pin has ended meanwhile


class Reclaimer:
    """Frees the retired pages of one store. Any thread may call it; the store's lock orders them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.reclaimed = 0
        self.steps = 0
        # These two are written by the holder of the turn.
        self._fresh = 0  # pages changed since the last look
        self._looked_at = 0  # the durable epoch at the last look

    @property
    def backlog(self) -> int:
        """Retired pages that are still there."""
        return self._store.table.retired

    def committed(self, pages: int, durable_epoch: int) -> None:
        """Frees pages after a group of commits that changed so many, if there are likely to be some."""
        self._fresh += pages
        if durable_epoch > self._looked_at or self._fresh >= FRESH_PAGES:
            self.run(durable_epoch, self._fresh)
            self._looked_at = durable_epoch
            self._fresh = 0

    def run(self, durable_epoch: int, new_garbage: int = 0) -> int:
        """Frees what may be freed, up to some more pages than have just become garbage; returns how many it freed."""
        limit = LEAST_PAGES + 2 * new_garbage
        freed = 0
        while freed < limit:
            done = self._store.reclaim(durable_epoch, min(STEP_PAGES, limit - freed))
            self.steps += 1
            freed += done
            if done < STEP_PAGES:
                break
        self.reclaimed += freed
        return freed

    def stats(self) -> dict[str, int]:
        """Pages freed so far, in how many steps; retired pages left; epochs by which the oldest pin holds them back."""
        return {
            "reclaimed": self.reclaimed,
            "reclaim_steps": self.steps,
            "reclaim_backlog": self.backlog,
            "reclaim_lag": int(self._store.epochs.stats()["lag"]),
        }
