from typing import Any

import numpy as np
import numpy.typing as npt

from xtree.algorithms.tree_state import TreeState
from xtree.persistence.store.reached_pages import ReachedPages
from xtree.persistence.store.store import Store

def check(store: Store, state: TreeState, reached: ReachedPages | None = None) -> None: ...
def check_page(
    store: Store,
    state: TreeState,
    node: int,
    level: int,
    box: npt.NDArray[np.float64],
    siblings: bool,
    ids: tuple[int, int] | None = None,
) -> int: ...
def stats(store: Store, state: TreeState) -> dict[str, Any]: ...
