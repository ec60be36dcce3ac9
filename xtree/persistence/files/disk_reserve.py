"""The last bytes of a disk: what may use them, so that an index on a full disk can still be put right.

`Config.reserve_bytes` stay free when data files grow for new records. The log may use the first half of them, and so
may write sets that spend the reserve: those of deletions, which need room for the pages that they copy before they give
any back. The other half is for a checkpoint.
"""

from __future__ import annotations

import errno
import os

from xtree.persistence.files.platform_fs import FileSystem, Path


def require_space(fs: FileSystem, directory: Path, n: int, keep_free: int) -> None:
    """Raises OSError (ENOSPC) when writing `n` more bytes would leave less than `keep_free` on the disk."""
    if keep_free and fs.free_space(directory) < n + keep_free:
        reason = f"{os.strerror(errno.ENOSPC)}: the last {keep_free} bytes stay in reserve"
        raise OSError(errno.ENOSPC, reason, os.fspath(directory))
