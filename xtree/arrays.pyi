import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]

class Arena: ...

def as_pairs(offsets: Ids, values: Ids) -> Ids: ...
