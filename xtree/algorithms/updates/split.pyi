from typing import Any

import numpy as np
import numpy.typing as npt

class Splitter: ...

def plan_split(
    boxes: npt.NDArray[np.float64],
    histories: npt.ArrayLike | None = None,
    *,
    may_stay: bool = False,
    max_overlap: float = 0.2,
    min_fanout: float = 0.35,
    min_fill: float = 0.4,
) -> dict[str, Any] | None: ...
