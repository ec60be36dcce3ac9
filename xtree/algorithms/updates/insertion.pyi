
import numpy as np
import numpy.typing as npt

from xtree.algorithms.tree_state import TreeState
from xtree.persistence.base.progress import Progress
from xtree.persistence.store.write_set import WriteSet

class Inserter:
    def __init__(self, ws: WriteSet, state: TreeState) -> None: ...

def insert(
    ws: WriteSet,
    state: TreeState,
    ids: npt.NDArray[np.int64],
    boxes: npt.NDArray[np.float64],
    progress: Progress | None = None,
) -> None: ...
