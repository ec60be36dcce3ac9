"""The last bytes of a disk: what may use them, so that an index on a full disk can still be put right.

`Config.reserve_bytes` stay free when data files grow for new records. Deleting, which needs room for the pages it
copies before it gives any back, and the log may use the first half of them; the other half is for a checkpoint.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator

from xtree.persistence.files.platform_fs import FileSystem, Path

_thread = threading.local()


@contextlib.contextmanager
def spending_reserve() -> Iterator[None]:
    """A block in which this thread's transaction gives space back in the end, and may use the reserve until then."""
    before = getattr(_thread, "spending", False)
    _thread.spending = True
    try:
        yield
    finally:
        _thread.spending = before


def kept_free(reserve_bytes: int) -> int:
    """How much of a reserve this thread must leave alone."""
    return reserve_bytes // 2 if getattr(_thread, "spending", False) else reserve_bytes


def require_space(fs: FileSystem, directory: Path, n: int, keep_free: int) -> None:
    """Raise OSError (ENOSPC) when writing `n` more bytes would leave less than `keep_free` on the disk."""
    if keep_free and fs.free_space(directory) < n + keep_free:
        reason = f"{os.strerror(errno.ENOSPC)}: the last {keep_free} bytes stay in reserve"
        raise OSError(errno.ENOSPC, reason, os.fspath(directory))
