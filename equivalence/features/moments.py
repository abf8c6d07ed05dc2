"""Mean and variance of phi(x).phi(y) over the draws of a map of random features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from equivalence._arrays import Array, as_points, as_tokens, broadcast_axes, common_dtype


class Moments(ABC):
    """`expected` and `variance` in closed form, for draws like the one that `sample` made.

    Projections that were given count as independent draws of N(0, I).

    Attributes
    ----------
    coupling : str
    antithetic : bool
        How `sample` drew.
    """

    coupling: str = "iid"
    antithetic: bool = False

    def expected(self, x: npt.ArrayLike, y: npt.ArrayLike) -> Array:
        """E phi(x).phi(y) = exp(x.y), whatever the number of features and their coupling.

        x (..., n, d) and y (..., k, d) give (..., n, k) in their dtype, computed in float64; inf
        where the kernel overflows. Raises ValueError for shapes that do not fit.

        Examples
        --------
        >>> from equivalence.features import PositiveFeatures
        >>> PositiveFeatures([[1.0]]).expected([[0.0]], [[3.0]])
        array([[1.]])
        """
        dot, dtype = _products(x, y)
        with np.errstate(over="ignore", under="ignore"):
            return np.exp(dot).astype(dtype)

    def variance(self, x: npt.ArrayLike, y: npt.ArrayLike) -> Array:
        """Var phi(x).phi(y), for each pair of rows; inf where it overflows, as it soon does.

        Shapes and dtypes as `expected`. `log_relative_variance` is the logarithm that does not
        overflow, relative to exp(2 x.y).

        Raises ValueError for shapes that do not fit, and where no closed form is known: of 'sobol',
        and of dense features with another coupling than 'iid'.

        Examples
        --------
        Two features at |x+y| = 1 and x.y = 0 have the variance (e - 1) / 2:

        >>> from equivalence.features import PositiveFeatures
        >>> variance = PositiveFeatures([[1.0], [2.0]]).variance([[0.0]], [[1.0]])
        >>> bool(np.isclose(variance, (np.e - 1) / 2).all())
        True
        """
        dot, dtype = _products(x, y)
        x, y = (np.asarray(points, np.float64) for points in (x, y))
        how = {"coupling": self.coupling, "antithetic": self.antithetic}
        with np.errstate(over="ignore", under="ignore"):
            return np.exp(2 * dot + self._log_relative_variance(x, y, **how)).astype(dtype)

    @abstractmethod
    def _log_relative_variance(self, x: Array, y: Array, **how: Any) -> Array:
        """`log_relative_variance` with this map's own number of features and tilts."""

    def _drawn(self, coupling: str, antithetic: bool) -> Self:
        self.coupling, self.antithetic = coupling, antithetic
        return self


def _products(x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[Array, np.dtype[Any]]:
    """x.y for each pair of rows, in float64, and the dtype of both."""
    X = as_points("x", x)
    Y = as_tokens("y", y, dim=X.shape[-1])
    broadcast_axes("y", X.shape[:-2], Y.shape[:-2])
    dot: Array = X.astype(np.float64) @ np.swapaxes(Y.astype(np.float64), -1, -2)
    return dot, common_dtype(X, Y)
