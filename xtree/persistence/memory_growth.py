"""Room for stores that live in memory: anonymous windows that get larger as a size class needs more of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xtree.persistence.mmap_windows import Windows

FIRST_WINDOW_BYTES = 256 * 1024
LARGEST_WINDOW_BYTES = 256 * 1024 * 1024
SMALLEST_PAGE_BYTES = 4096
LEAST_SLOTS = 4  # of a window


class MemoryGrowth:
    """The growth of a SegmentAllocator over anonymous memory.

    Each window of a class is twice as large as the one before it. All of it may be used at once, since memory
    is taken only as pages are touched; so no window is ever asked to extend.
    """

    def __init__(self, windows: Windows):
        self._windows = windows
        self._next_bytes: dict[int, int] = {}

    def new_window(self, size_class: int) -> tuple[int, int, int, int]:
        """(window, offset of its first slot, usable bytes, bytes at most) of a new window for a size class."""
        least = max(FIRST_WINDOW_BYTES, LEAST_SLOTS * (SMALLEST_PAGE_BYTES << size_class))
        size = self._next_bytes.get(size_class, least)
        window = self._windows.add_anonymous(size)
        self._next_bytes[size_class] = min(2 * size, LARGEST_WINDOW_BYTES)
        return window, 0, size, size
