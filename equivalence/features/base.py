"""What a feature map returns: features, and the logarithm of each row's scale."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from equivalence._arrays import Array, as_points, as_real, as_tokens, broadcast_axes


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


def biased(features: Features, bias: npt.ArrayLike) -> Features:
    """The features times e^bias, as a bias of the scores multiplies a token's kernel by it.

    Features (..., n, m) and a bias (..., n) of one query; leading axes broadcast, so that a bias
    (n_q, n) gives the features of n_q queries. -inf takes a token out. In the dtype of the
    features, that is, the bias is a shift of the log scale.

    Raises ValueError for a bias that does not fit, TypeError for one that is not real.

    Examples
    --------
    >>> ones = Features(np.ones((2, 1)), np.zeros(2))
    >>> biased(ones, np.log([3.0, 5.0])).phi()
    array([[3.],
           [5.]])
    """
    b = as_real("bias", bias)
    n, m = features.features.shape[-2:]
    if b.shape[-1:] != (n,):
        raise ValueError(f"bias has shape {b.shape}; expected (..., {n}), one for each token")
    batch = broadcast_axes("bias", features.features.shape[:-2], b.shape[:-1])
    with np.errstate(all="ignore"):
        log_scale = features.log_scale + b.astype(features.log_scale.dtype)
    return Features(np.broadcast_to(features.features, (*batch, n, m)), log_scale)


def range_of(log_scale: Array) -> tuple[Array, Array]:
    """The least and the largest finite log scale (...) of rows (..., n).

    A row whose scale is not finite is not counted: a scale of -inf is a feature of zero, and NaN
    or inf shall spoil their own row only. Without rows they are inf and -inf.

    Raises ValueError if they differ by more than one scale for all rows can carry.
    """
    counted = np.isfinite(log_scale)
    least: Array = log_scale.min(axis=-1, initial=np.inf, where=counted)
    largest: Array = log_scale.max(axis=-1, initial=-np.inf, where=counted)
    require_one_scale(least, largest)
    return least, largest


def require_one_scale(least: Array, largest: Array) -> None:
    """Raise ValueError if features of these log scales lose the least beside the largest."""
    carried = -math.log(np.finfo(largest.dtype).tiny)
    spread = largest - least
    if (spread > carried).any():
        raise ValueError(
            f"keys have log scales that differ by {spread.max():.0f}; expected at most "
            f"{carried:.0f}, what {largest.dtype} carries"
        )


class FeatureMap(Protocol):
    """Anything that maps points (..., n, d) to Features (..., n, m)."""

    def __call__(self, x: npt.ArrayLike) -> Features:
        """phi(x) of each row of x."""
        ...


def as_projections(projections: npt.ArrayLike) -> Array:
    """Return projections as a finite (m, d) array, m and d at least 1.

    Its columns are contiguous, as the products of points with W^T want to have them. Raises
    ValueError or TypeError otherwise.

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
    return np.asfortranarray(W)


def as_sample(name: str, value: npt.ArrayLike, dim: int) -> Array:
    """Return the points that a map is fitted to as a finite float64 (n, dim) array, n >= 1.

    Raises ValueError or TypeError otherwise, naming the argument.

    >>> as_sample("keys", [[1, 2]], 2)
    array([[1., 2.]])
    """
    X = as_tokens(name, value, dim=dim)
    if X.ndim != 2 or len(X) == 0:
        raise ValueError(
            f"{name} has shape {X.shape}; expected (n_tokens, {dim}), at least one row"
        )
    if not np.isfinite(X).all():
        raise ValueError(f"{name} has entries that are NaN or infinite; expected finite points")
    return X.astype(np.float64)
