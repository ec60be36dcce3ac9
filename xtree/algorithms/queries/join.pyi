from typing import final

import numpy as np
import numpy.typing as npt

from xtree.algorithms.tree_state import TreeState
from xtree.persistence.store.store import Store

@final
class Joiner:
    def __init__(
        self, left_store: Store, left: TreeState, right_store: Store, right: TreeState, predicate: int
    ) -> None: ...

def join(
    left_store: Store, left: TreeState, right_store: Store, right: TreeState, predicate: int
) -> npt.NDArray[np.int64]: ...
