from typing import Any

import numpy as np
import numpy.typing as npt

from xtree.algorithms.tree_state import TreeState
from xtree.persistence.store.store import Store

def of_windows(store: Store, state: TreeState, boxes: npt.NDArray[np.float64], predicate: int) -> dict[str, Any]: ...
def of_nearest(
    store: Store, state: TreeState, points: npt.NDArray[np.float64], k: int, max_distance: float
) -> dict[str, Any]: ...
