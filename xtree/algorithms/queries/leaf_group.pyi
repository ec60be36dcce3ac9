import numpy as np
import numpy.typing as npt

from xtree.algorithms.tree_state import TreeState
from xtree.persistence.store.store import Store

def limits() -> dict[str, int]: ...
def plan_groups(
    store: Store, state: TreeState, boxes: npt.NDArray[np.float64]
) -> list[tuple[list[int], list[int] | None]]: ...
