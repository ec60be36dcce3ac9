import numpy as np
import numpy.typing as npt

from xtree.algorithms.tree_state import TreeState
from xtree.persistence.base.breath import Team
from xtree.persistence.store.store import Store

def require_room(state: TreeState, m: int, k: int, max_distance: float) -> None: ...
def nearest(
    store: Store,
    state: TreeState,
    points: npt.NDArray[np.float64],
    k: int,
    max_distance: float = ...,
    team: Team | None = None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]: ...
