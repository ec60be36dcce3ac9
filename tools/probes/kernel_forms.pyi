import numpy as np
from numpy.typing import NDArray

_Columns = NDArray[np.float64]
_Refs = NDArray[np.uint64]

def select(
    form: str, first: _Columns, second: _Columns, most: _Columns, least: _Columns, lead: int, count: int, refs: _Refs
) -> tuple[_Refs, _Refs]: ...
def divide(
    form: str, first: _Columns, second: _Columns, most: _Columns, least: _Columns, lead: int, count: int, refs: _Refs
) -> tuple[_Refs, _Refs]: ...
def span(
    form: str, first: _Columns, second: _Columns, most: _Columns, least: _Columns, lead: int, count: int
) -> tuple[int, int]: ...
def distances(form: str, lower: _Columns, upper: _Columns, point: _Columns, count: int) -> _Columns: ...
