from typing import Any

import numpy as np
import numpy.typing as npt

from xtree.persistence.breath import Team

class Arena: ...

def copy_array(target: npt.NDArray[Any], source: npt.NDArray[Any], team: Team | None = None) -> None: ...
def as_pairs(offsets: npt.NDArray[np.int64], values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]: ...
