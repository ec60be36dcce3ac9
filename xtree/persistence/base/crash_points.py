"""Named points on the commit, checkpoint and recovery paths where a test can fail or kill the process.

`reach` costs one comparison while no hook is set.
"""

from __future__ import annotations

from collections.abc import Callable

# In the order in which the steps of each path come.
CRASH_POINTS: tuple[str, ...] = (
    # a file that is replaced whole: manifest, checkpoint
    "atomic.before_write",
    "atomic.written",
    "atomic.synced",
    "atomic.replaced",
    "atomic.directory_synced",
    # superblock
    "superblock.before_write",
    "superblock.written",
    "superblock.synced",
    # log
    "wal.created",
    "wal.filled",
    "wal.linked",
    "wal.before_append",
    "wal.appended",
    "wal.synced",
    # data files
    "data.created",
    "data.header_synced",
    "data.extended",
    "data.synced",
    "data.truncated",
    # a new directory
    "create.before_manifest",
    "create.manifest_saved",
    "create.superblock_synced",
    # the next log: made in the background, and taken into use between two commits
    "log.spare_filled",
    "log.spare_listed",
    "log.closed",
    # a commit
    "log.opened",
    "commit.prepared",
    "commit.before_append",
    "commit.appended",
    "commit.synced",
    "commit.superblock_synced",
    "commit.published",
    # the sync that follows eventual commits
    "sync.before_sync",
    "sync.synced",
    "sync.superblock_written",
    # a checkpoint, and the end of a clean close
    "checkpoint.copied",
    "checkpoint.data_synced",
    "checkpoint.written",
    "checkpoint.manifest_saved",
    "checkpoint.superblock_synced",
    "checkpoint.garbage_removed",
    "close.trimmed",
    "close.manifest_saved",
    # recovery
    "recovery.frame_applied",
    "recovery.images_checked",
    "recovery.image_written",
    "recovery.log_synced",
    # a backup
    "backup.data_synced",
    "backup.checkpoints_written",
    "backup.manifest_saved",
    "backup.superblock_synced",
)

_hook: Callable[[str], None] | None = None


def reach(name: str) -> None:
    """Says that the point `name` is reached: calls the hook, if one is set, with the name. It may raise or kill."""
    if _hook is not None:
        _hook(name)


def set_hook(hook: Callable[[str], None] | None) -> None:
    """Sets the function that is called at every point; None removes it."""
    global _hook
    _hook = hook
