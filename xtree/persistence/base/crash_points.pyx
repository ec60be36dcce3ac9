"""Named points on the commit, checkpoint and recovery paths where a test can fail or kill the process.

`reach` costs one comparison while no hook is set.
"""

# In the order in which the steps of each path come.
CRASH_POINTS = (
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

cdef object hook = None             # set by tests, while one thread runs


def reach(str name not None):
    """Says that the point `name` is reached: calls the hook, if one is set, with the name. It may raise or kill."""
    if hook is not None:
        hook(name)


def set_hook(function):
    """Sets the function that is called at every point; None removes it."""
    global hook
    hook = function
