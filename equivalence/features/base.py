"""What a feature map returns: features, and the logarithm of each row's scale."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from equivalence._arrays import Array, as_points


class Features(NamedTuple):
    """Features (..., n, m) with a log scale (..., n) a row: phi(x) = features * exp(log_scale).

    The scale is apart because phi(x) itself overflows where the attention output does not:
    exp(|x|^2/2) exceeds float64 at |x|^2 = 1419, float32 at 177.

    Examples
    --------
    >>> import numpy as np
    >>> Features(np.ones((1, 2)), np.log([3.0])).phi()
    array([[3., 3.]])
    """

    features: Array
    log_scale: Array

    def phi(self) -> Array:
        """The real features (..., n, m).

        Where exp(log_scale) overflows they are inf, and NaN for a feature of 0.
        """
        with np.errstate(all="ignore"):
            phi: Array = self.features * np.exp(self.log_scale)[..., None]
        return phi


class FeatureMap(Protocol):
    """Anything that maps points (..., n, d) to Features (..., n, m)."""

    def __call__(self, x: npt.ArrayLike) -> Features:
        """phi(x) of each row of x."""
        ...


def as_projections(projections: npt.ArrayLike) -> Array:
    """Return projections as a finite (m, d) array, m and d at least 1.

    Raises ValueError or TypeError otherwise.

    >>> as_projections([[1.0, 2.0]]).shape
    (1, 2)
    """
    W = as_points("projections", projections)
    if W.ndim != 2 or W.shape[0] == 0:
        raise ValueError(
            f"projections has shape {W.shape}; expected (n_features, dim), both at least 1"
        )
    if not np.isfinite(W).all():
        raise ValueError("projections has entries that are NaN or infinite; expected finite ones")
    return W
