import numpy as np
import numpy.typing as npt

def hilbert_order(
    boxes: npt.NDArray[np.float64], dims: int, bounds: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]: ...
