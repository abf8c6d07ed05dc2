"""What the modified layers share: in which dtype values are modified, and what is returned."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from equivalence._arrays import Array, as_real, as_tokens, common_dtype, compute_dtype


def modifiable(
    query: npt.ArrayLike, key: npt.ArrayLike, value: npt.ArrayLike
) -> tuple[Array, np.dtype[Any]]:
    """The values in the dtype that attention computes in, and the dtype that it returns."""
    V = as_tokens("value", value)
    dtype = common_dtype(as_real("query", query), as_real("key", key), V)
    return V.astype(compute_dtype(dtype), copy=False), dtype
