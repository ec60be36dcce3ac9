"""Carrier: what takes groups of commits to disk, step after step, as the commit queue drives it."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from xtree.persistence.base.lock_ranks import RankedLock
from xtree.persistence.store.store import Store

__all__ = ["Carrier"]

Group = TypeVar("Group")


class Carrier(Protocol[Group]):
    """The coordinator, as `commit_queue.carry` drives it for a commit that its own thread takes to disk.

    turn_lock: held while the log is written to. sync_at: when the frames that wait for a sync must get it; None when
    there are none.
    """

    store: Store
    turn_lock: RankedLock
    sync_at: float | None

    def plan(self, requests: list[Any]) -> Group | None:
        """Makes a group of requests ready; returns None when it is for the leader. May fail cleanly."""

    def write_group(self, group: Group) -> None:
        """Writes, syncs, publishes; past its first byte there is no way back. May be begun again after an interrupt."""

    def has_published(self, group: Group) -> bool:
        """Whether a group is visible: whatever is raised after that, it is committed."""

    def finish_group(self, group: Group) -> None:
        """After the publication, lets the callers go on and tidies up what the commit has left."""

    def fail(self, group: Group, error: BaseException) -> None:
        """Gives up after the point of no return: what is on the disk isn't known, and nothing more is written."""
