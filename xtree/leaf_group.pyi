import numpy as np
import numpy.typing as npt

from xtree.persistence.store import Store
from xtree.tree_state import TreeState

def limits() -> dict[str, int]: ...
def plan_groups(
    store: Store, state: TreeState, boxes: npt.NDArray[np.float64]
) -> list[tuple[list[int], list[int] | None]]: ...
