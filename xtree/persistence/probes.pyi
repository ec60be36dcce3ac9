from typing import final

import numpy as np
from numpy.typing import NDArray

from xtree.persistence.mmap_windows import Windows
from xtree.persistence.segment_allocator import SegmentAllocator
from xtree.persistence.store import Store

Words = NDArray[np.uint64]

@final
class PlainTable:
    def __new__(cls, store: Store, nodes: Words) -> PlainTable: ...

def pages_at(windows: Windows, addresses: Words, pages: Words) -> None: ...
def resolve_all(store: Store, nodes: Words) -> int: ...
def resolve_all_plainly(table: PlainTable, nodes: Words) -> int: ...
def look_up_all(pages: Words, order: Words) -> int: ...
def replace_slots(allocator: SegmentAllocator, size_class: int, places: Words) -> int: ...
