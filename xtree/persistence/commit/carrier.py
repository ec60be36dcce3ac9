"""Carrier: who takes groups of commits to disk, step after step, as the commit queue drives it."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from xtree.persistence.base.lock_ranks import RankedLock
from xtree.persistence.store.store import Store

__all__ = ["Carrier"]

Group = TypeVar("Group")


class Carrier(Protocol[Group]):
    """The coordinator, as `commit_queue.carry` drives it for a commit that its own thread takes to disk.

    turn_lock: held by whoever writes to the log. waits_for_turn: whether a thread may wait for it, since no turn
    includes a sync. sync_at: when the frames that wait for a sync must get it, None: there are none.
    """

    store: Store
    turn_lock: RankedLock
    waits_for_turn: bool
    sync_at: float | None

    def plan(self, request: Any) -> Group | None:
        """Makes everything ready for a group of one request; None when it is for the leader. May fail cleanly."""

    def write_group(self, group: Group) -> None:
        """Write, sync, publish; past its first byte there is no way back. May be begun again after an interrupt."""

    def has_published(self, group: Group) -> bool:
        """Whether a group is visible: whatever is raised after that, it is committed."""

    def finish_group(self, group: Group) -> None:
        """After the publication: the callers go on, and what the commit has left is tidied up."""

    def fail(self, group: Group, error: BaseException) -> None:
        """After the point of no return: what is on the disk isn't known, and nothing more is written."""
