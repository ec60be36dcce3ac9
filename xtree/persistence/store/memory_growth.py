"""Room for stores that live in memory: anonymous windows that get larger as a size class needs more of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xtree.persistence.pages.mmap_windows import Windows

LARGEST_WINDOW_BYTES = 256 * 1024 * 1024
SMALLEST_PAGE_BYTES = 4096
LEAST_SLOTS = 4  # of a window


class MemoryGrowth:
    """The growth of a SegmentAllocator over anonymous memory.

    The first window of a class has room for a few pages, and each further one is as large as all before it, so that a
    small tree is small. A window is smaller where that much address space isn't to be had. All of a window may be used
    at once, since memory is taken only as pages are touched; so no window is ever asked to extend.
    """

    def __init__(self, windows: Windows):
        self._windows = windows
        self._bytes: dict[int, int] = {}  # of all windows of a class

    def new_window(self, size_class: int, spends_reserve: bool = False) -> tuple[int, int, int, int]:
        """(window, offset of its first slot, usable bytes, bytes at most) of a new window for a size class.

        Memory has no reserve.
        """
        least = LEAST_SLOTS * (SMALLEST_PAGE_BYTES << size_class)
        before = self._bytes.get(size_class, 0)
        size = min(max(before, least), LARGEST_WINDOW_BYTES)
        while True:
            try:
                window = self._windows.add_anonymous(size)
                break
            except OSError:
                if size <= least:
                    raise
                size = max(size // 2, least)
        self._bytes[size_class] = before + size
        return window, 0, size, size
