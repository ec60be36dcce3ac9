import numpy as np
from numpy.typing import ArrayLike, NDArray

def real_numbers(given: ArrayLike) -> NDArray[np.float64]: ...
