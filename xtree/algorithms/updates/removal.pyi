import numpy as np
import numpy.typing as npt

from xtree.algorithms.tree_state import TreeState
from xtree.persistence.store.write_set import WriteSet

class Remover:
    def __init__(self, ws: WriteSet, state: TreeState) -> None: ...

def delete(
    ws: WriteSet, state: TreeState, ids: npt.NDArray[np.int64], boxes: npt.NDArray[np.float64]
) -> int: ...
def visits(
    ws: WriteSet, state: TreeState, ids: npt.NDArray[np.int64], boxes: npt.NDArray[np.float64]
) -> int: ...
