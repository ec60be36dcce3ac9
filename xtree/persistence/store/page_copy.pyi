import numpy as np
from numpy.typing import NDArray

from xtree.persistence.store.store import Store

def copy_pages(store: Store, nodes: NDArray[np.uint64], size_class: int, out: bytearray) -> None: ...
