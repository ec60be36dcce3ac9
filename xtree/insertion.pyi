from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from xtree.persistence.write_set import WriteSet
from xtree.tree_state import TreeState

class Inserter:
    def __init__(self, ws: WriteSet, state: TreeState) -> None: ...

def insert(
    ws: WriteSet,
    state: TreeState,
    ids: npt.NDArray[np.int64],
    boxes: npt.NDArray[np.float64],
    progress: Callable[[int, int], object] | None = None,
) -> None: ...
