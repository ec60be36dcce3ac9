from typing import final

from xtree.persistence.pages.mmap_windows import Windows
from xtree.persistence.pages.mvcc import Epochs

SETTLE_S: float
LONGEST_PAUSE_S: float
LINGER_S: float
SPARE_SHARE: int

@final
class Recycler:
    passes: int
    is_running: bool
    def __init__(self, windows: Windows, flights: Epochs) -> None: ...
    def wake(self) -> None: ...
    def stop(self) -> None: ...
    def forget_thread(self) -> None: ...
