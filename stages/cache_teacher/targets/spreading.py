"""Scatter values of the scored positions to all positions of their rows."""

from typing import TypeVar

import numpy as np
import numpy.typing as npt

_Number = TypeVar("_Number", bound=np.generic)


def spread(
    values_PX: npt.NDArray[_Number], scored_BT: npt.NDArray[np.bool_]
) -> npt.NDArray[_Number]:
    """Values of the P positions that are scored as [B, T, …]; 0 at the others."""
    spread_BTX = np.zeros((*scored_BT.shape, *values_PX.shape[1:]), values_PX.dtype)
    spread_BTX[scored_BT] = values_PX
    return spread_BTX
