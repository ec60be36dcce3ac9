
import numpy as np
import numpy.typing as npt

from xtree.algorithms.tree_state import TreeState
from xtree.persistence.base.progress import Progress
from xtree.persistence.store.write_set import WriteSet

class PackedBuild: ...

class Share:
    def write_here(self) -> None: ...
    def write(self) -> None: ...

def load(
    ws: WriteSet,
    state: TreeState,
    ids: npt.NDArray[np.int64],
    boxes: npt.NDArray[np.float64],
    progress: Progress | None = None,
    threads: int = 1,
) -> None: ...
def clear(ws: WriteSet, state: TreeState) -> None: ...
