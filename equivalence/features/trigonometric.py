"""Trigonometric random features of exp(x.y): e^{|x|^2/2} [cos w.x, sin w.x]."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from equivalence._arrays import Array, as_integer, as_tokens, common_dtype, compute_dtype
from equivalence.features import variance
from equivalence.features.base import Features, as_projections
from equivalence.features.couplings import sample_projections
from equivalence.features.moments import Moments


class TrigonometricFeatures(Moments):
    """Two features a projection w_1..w_m, exact in expectation over w ~ N(0, I).

    phi(x) = e^{|x|^2/2} [cos w_1.x, .., cos w_m.x, sin w_1.x, .., sin w_m.x] / sqrt(m), so that
    phi(x).phi(y) = e^{(|x|^2+|y|^2)/2} (1/m) sum_r cos(w_r.(x-y)), with mean exp(x.y) and relative
    variance (cosh(|x-y|^2) - 1) / m. Its sign is not that of a kernel: a sum of such estimates,
    such as D(q), can be zero or negative.

    Parameters
    ----------
    projections : array (m, d)
        One projection a row; float64, float32, float16 or integers.

    Raises
    ------
    ValueError
        Projections that are not (m, d) with m and d at least 1, or not finite.
    TypeError
        Projections that are not real numbers.

    Notes
    -----
    Source: Rahimi and Recht 2007, for the Gaussian kernel; proofs/trigonometric_features.py.

    Examples
    --------
    >>> phi = TrigonometricFeatures([[0.0]])
    >>> phi([[0.0]]).phi()
    array([[1., 0.]])
    """

    def __init__(self, projections: npt.ArrayLike) -> None:
        self.projections = as_projections(projections)

    @classmethod
    def sample(
        cls,
        dim: int,
        n_features: int,
        *,
        rng: np.random.Generator,
        coupling: str = "iid",
        antithetic: bool = False,
    ) -> TrigonometricFeatures:
        """Draw n_features/2 projections of N(0, I_dim), float64: `couplings.sample_projections`.

        Antithetic projections are of no use here: w and -w have the same product of features.

        Raises ValueError for sizes below 1, an odd n_features, an unknown coupling or an odd number
        of antithetic projections, and TypeError for sizes that are not integers or an `rng` that is
        not a numpy Generator.

        Examples
        --------
        >>> phi = TrigonometricFeatures.sample(3, 8, rng=np.random.default_rng(0))
        >>> phi.projections.shape, phi([[1.0, 2.0, 3.0]]).features.shape
        ((4, 3), (1, 8))
        """
        m = _frequencies(n_features)
        W = sample_projections(m, dim, rng=rng, coupling=coupling, antithetic=antithetic)
        return cls(W)._drawn(coupling, antithetic)

    @staticmethod
    def log_relative_variance(
        x: npt.ArrayLike,
        y: npt.ArrayLike,
        n_features: int,
        *,
        coupling: str = "iid",
        antithetic: bool = False,
    ) -> Array:
        """log(Var / exp(2 x.y)) of phi(x).phi(y) over such a `sample`, for each pair of rows.

        x (..., n, d) and y (..., k, d) give (..., n, k) in their dtype, computed in float64; -inf
        where there is no variance, as at x = y.

        Raises ValueError for what `sample` refuses and for 'sobol', which has no closed form.

        Examples
        --------
        One frequency at |x-y| = 1 has the relative variance cosh(1) - 1:

        >>> log_variance = TrigonometricFeatures.log_relative_variance([[1.0]], [[0.0]], 2)
        >>> bool(np.isclose(np.exp(log_variance), np.cosh(1.0) - 1).all())
        True
        """
        return variance.log_relative_variance(
            x,
            y,
            _frequencies(n_features),
            coupling=coupling,
            antithetic=antithetic,
            trigonometric=True,
        )

    def _log_relative_variance(self, x: Array, y: Array, **how: Any) -> Array:
        return self.log_relative_variance(x, y, 2 * len(self.projections), **how)

    def __call__(self, x: npt.ArrayLike) -> Features:
        """phi(x) for points (..., n, d): features (..., n, 2m), log_scale (..., n), in x's dtype.

        All cosines come before all sines. A point with NaN or inf, or so large that w.x or |x|^2
        overflows, has real features that are NaN.

        Raises ValueError if d is not the projections' dimension.
        """
        m, d = self.projections.shape
        X = as_tokens("x", x, dim=d)
        dtype = common_dtype(X)
        X = X.astype(compute_dtype(dtype), copy=False)
        with np.errstate(all="ignore"):
            features = np.empty((*X.shape[:-1], 2 * m), X.dtype)
            cosines, phase = features[..., :m], features[..., m:]
            np.matmul(X, self.projections.astype(X.dtype, copy=False).T, out=phase)
            np.cos(phase, out=cosines)
            np.sin(phase, out=phase)
            half_norm = np.einsum("...d,...d->...", X, X) / 2
            half_norm = np.where(np.isfinite(half_norm), half_norm, X.dtype.type(np.nan))
            log_scale = half_norm - math.log(m) / 2
            return Features(features.astype(dtype, copy=False), log_scale.astype(dtype, copy=False))


def _frequencies(n_features: int) -> int:
    if as_integer("n_features", n_features) < 1 or n_features % 2:
        raise ValueError(
            f"n_features is {n_features!r}; expected a cosine and a sine a projection, an even "
            "number, at least 2"
        )
    return n_features // 2
