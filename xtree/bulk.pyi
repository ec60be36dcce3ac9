from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from xtree.persistence.write_set import WriteSet
from xtree.tree_state import TreeState

class PackedBuild: ...

def load(
    ws: WriteSet,
    state: TreeState,
    ids: npt.NDArray[np.int64],
    boxes: npt.NDArray[np.float64],
    progress: Callable[[int, int], object] | None = None,
) -> None: ...
def clear(ws: WriteSet, state: TreeState) -> None: ...
