from typing import Any

import numpy as np
import numpy.typing as npt

from xtree.persistence.reached_pages import ReachedPages
from xtree.persistence.store import Store
from xtree.tree_state import TreeState

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
