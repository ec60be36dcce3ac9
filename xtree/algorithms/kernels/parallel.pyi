from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from xtree.persistence.base.breath import Team
from xtree.persistence.store.store import Store

LEAST_ROWS: int

def together(team: Team, works: Sequence[Callable[[], Any]]) -> list[Any]: ...
def in_threads(
    store: Store,
    state: Any,
    threads: int,
    function: Callable[..., Any],
    rows: npt.NDArray[np.float64],
    *more: Any,
) -> Any: ...
