import numpy as np
import numpy.typing as npt

from xtree.algorithms.tree_state import TreeState
from xtree.persistence.base.breath import Team
from xtree.persistence.store.store import Store

def query(
    store: Store, state: TreeState, boxes: npt.NDArray[np.float64], predicate: int, team: Team | None = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]: ...
def query_one(
    store: Store, state: TreeState, box: npt.NDArray[np.float64], predicate: int
) -> npt.NDArray[np.int64]: ...
def count(
    store: Store, state: TreeState, boxes: npt.NDArray[np.float64], predicate: int, team: Team | None = None
) -> npt.NDArray[np.int64]: ...
def holds(store: Store, state: TreeState, id: int, box: npt.NDArray[np.float64]) -> bool: ...
def items(store: Store, state: TreeState) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]: ...
