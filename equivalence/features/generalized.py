"""Generalised exponential random features of exp(x.y): positive ones with a tilt exp(A |w|^2)."""

from __future__ import annotations

import math
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from equivalence._arrays import (
    Array,
    as_integer,
    as_number,
    as_points,
    as_tokens,
    common_dtype,
    compute_dtype,
)
from equivalence.features.base import Features, as_projections, as_sample
from equivalence.features.couplings import check_draw, is_antithetic, sample_projections
from equivalence.features.exponentials import exponentials
from equivalence.features.moments import Moments
from equivalence.features.variance import correlation, partners, squared_distances

# Halvings of an interval inside (0, 1) until it is below its own unit roundoff.
_HALVINGS = 64


def optimal_tilt(s: float, dim: int, *, antithetic: bool = False) -> float:
    """The A of least second moment at |x+y|^2 = s: A = (1 - 1/rho) / 8, never above 0.

    Of independent features rho = 2d / (2s + d + sqrt((2s+d)^2 + 8ds)); of antithetic ones rho is
    larger, the root of d (1 - rho) = 2 s rho (1 + rho) / (1 + exp(-(1+rho) s)), found by bisection.

    Raises ValueError for an s that is negative or not finite and a dim below 1, TypeError for what
    is no number.

    Examples
    --------
    >>> optimal_tilt(0.0, 3)
    0.0
    >>> optimal_tilt(4.0, 1) < optimal_tilt(4.0, 1, antithetic=True) < 0
    True
    """
    if as_number("s", s) < 0:
        raise ValueError(f"s is {s!r}; expected at least 0")
    if as_integer("dim", dim) < 1:
        raise ValueError(f"dim is {dim!r}; expected at least 1")
    d, low = float(dim), float(best_rho(np.float64(s), dim))
    if antithetic:
        high = 1.0
        for _ in range(_HALVINGS):
            rho = (low + high) / 2
            pull = 2 * s * rho * (1 + rho) / (1 + math.exp(-(1 + rho) * s))
            low, high = (rho, high) if d * (1 - rho) > pull else (low, rho)
    return min((1 - 1 / low) / 8, 0.0)


def best_rho(s: Array | np.float64, dim: int) -> Array:
    """2d / (2s + d + sqrt((2s+d)^2 + 8ds)), elementwise in s.

    >>> best_rho(np.array([0.0]), 3)
    array([1.])
    """
    b = 2 * s + dim
    rho: Array = 2 * dim / (b + np.hypot(b, math.sqrt(8 * dim) * np.sqrt(s)))
    return rho


class GeneralizedFeatures(Moments):
    """Positive features with a tilt A < 1/8, exact in expectation over w ~ N(0, I).

    phi(x)_r = (1-4A)^{d/4} exp(A |w_r|^2 + sqrt(1-4A) w_r.x - |x|^2/2) / sqrt(m). A feature has the
    second moment E T^2 = G^d exp(rho s) relative to exp(2 x.y), with rho = 1/(1-8A),
    G = (1+rho)/(2 sqrt(rho)) and s = |x+y|^2. A = 0 gives the positive features; the best A is
    negative: it holds down the long projections whose features are too rare to be sampled.

    Parameters
    ----------
    projections : array (m, d)
        One projection a row; float64, float32, float16 or integers.
    A : float
        The tilt, below 1/8; `fit` chooses it.

    Attributes
    ----------
    projections, A
        As given, A after `fit` the one chosen.

    Raises
    ------
    ValueError
        Projections that are not (m, d) with m and d at least 1, or not finite; an A not below 1/8.
    TypeError
        What is not a real number.

    Notes
    -----
    Source: Likhosherstov et al. 2022 (OPRF, FAVOR++); proofs/generalized_exponential_features.py.

    Examples
    --------
    >>> phi = GeneralizedFeatures([[0.0]], A=-2.0)
    >>> phi([[0.0]]).phi()
    array([[1.73205081]])
    """

    def __init__(self, projections: npt.ArrayLike, A: float = 0.0) -> None:
        self.projections = as_projections(projections)
        self.A = _as_tilt(A)

    @classmethod
    def sample(
        cls,
        dim: int,
        n_features: int,
        *,
        rng: np.random.Generator,
        coupling: str = "iid",
        antithetic: bool = False,
        A: float = 0.0,
    ) -> Self:
        """Draw n_features projections of N(0, I_dim) in float64: `couplings.sample_projections`.

        Raises what that raises, and ValueError for an A not below 1/8.

        Examples
        --------
        >>> rng = np.random.default_rng(0)
        >>> GeneralizedFeatures.sample(3, 4, rng=rng, antithetic=True, A=-0.1).projections.shape
        (4, 3)
        """
        W = sample_projections(n_features, dim, rng=rng, coupling=coupling, antithetic=antithetic)
        return cls(W, A)._drawn(coupling, antithetic)

    def fit(self, keys: npt.ArrayLike, queries: npt.ArrayLike | None = None) -> Self:
        """Choose A for s = mean |x|^2 + mean |y|^2 + 2 mean(x).mean(y), the mean of |x+y|^2.

        keys (n_k, d) and queries (n_q, d); without queries, the keys twice. Projections whose
        second half is the negative of the first get the antithetic optimum.

        Raises ValueError for shapes that do not fit, no rows, and entries that are not finite.

        Examples
        --------
        >>> phi = GeneralizedFeatures([[1.0], [2.0]]).fit([[1.0]], [[-1.0]])
        >>> phi.A
        0.0
        """
        d = self.projections.shape[1]
        X, Y = (
            as_sample(name, value, d)
            for name, value in (("keys", keys), ("queries", keys if queries is None else queries))
        )
        s = (X**2).sum(axis=1).mean() + (Y**2).sum(axis=1).mean() + 2 * X.mean(0) @ Y.mean(0)
        # In exact arithmetic s is a mean of squares.
        self.A = optimal_tilt(max(float(s), 0.0), d, antithetic=self._is_antithetic)
        return self

    @property
    def _is_antithetic(self) -> bool:
        return is_antithetic(self.projections)

    @staticmethod
    def log_relative_variance(
        x: npt.ArrayLike,
        y: npt.ArrayLike,
        n_features: int,
        *,
        A: float = 0.0,
        coupling: str = "iid",
        antithetic: bool = False,
    ) -> Array:
        """log(Var / exp(2 x.y)) of phi(x).phi(y) over such a `sample`, for each pair of rows.

        x (..., n, d) and y (..., k, d) give (..., n, k) in their dtype, computed in float64; -inf
        where there is no variance. It is finite where the variance itself overflows.

        Raises ValueError for what `sample` refuses and for 'sobol', which has no closed form.

        Examples
        --------
        >>> plain, tilted = (
        ...     GeneralizedFeatures.log_relative_variance([[2.0]], [[1.0]], 1, A=A).item()
        ...     for A in (0.0, -0.5)
        ... )
        >>> plain > tilted
        True
        """
        s = squared_distances(x, y, 1)
        d = np.shape(x)[-1]
        check_draw(n_features, d, coupling, antithetic)
        n = n_features // 2 if antithetic else n_features
        p = partners(n, d, coupling)
        with np.errstate(all="ignore"):
            rho = 1 / (1 - 8 * _as_tilt(A))
            d_log_G = d / 2 * math.log1p(16 * A**2 * rho)
            own = log_excess(d_log_G, rho * s, (rho - 1) * s, antithetic)
            # The tilt changes norms, not directions: c is that of positive features, e^-s c here.
            c = correlation(s, d, coupling, antithetic) * np.exp(np.minimum(s, 700)) if p else 0.0
            log_variance: Array = own - math.log(n) + np.log1p(p * c * np.exp(-own))
            log_variance = np.where(np.isneginf(own), own, log_variance)
        dtype = common_dtype(as_points("x", x), as_points("y", y))
        return log_variance.astype(dtype, copy=False)

    def _log_relative_variance(self, x: Array, y: Array, **how: Any) -> Array:
        return self.log_relative_variance(x, y, len(self.projections), A=self.A, **how)

    def __call__(self, x: npt.ArrayLike) -> Features:
        """phi(x) for points (..., n, d): features (..., n, m), log_scale (..., n), in x's dtype.

        A point with NaN or inf, or so large that its largest exponent overflows, has real features
        that are NaN.

        Raises ValueError if d is not the projections' dimension.
        """
        m, d = self.projections.shape
        X = as_tokens("x", x, dim=d)
        dtype = common_dtype(X)
        X = X.astype(compute_dtype(dtype), copy=False)
        W = self.projections.astype(X.dtype, copy=False)
        root = X.dtype.type(math.sqrt(1 - 4 * self.A))
        with np.errstate(all="ignore"):
            tilt = X.dtype.type(self.A) * np.einsum("md,md->m", W, W)
            features, shift = exponentials(X, root * W, tilt)
            half_norm = np.einsum("...d,...d->...", X, X) / 2
            constant = d / 4 * math.log1p(-4 * self.A) - math.log(m) / 2
            log_scale = shift - half_norm + constant
            return Features(features.astype(dtype, copy=False), log_scale.astype(dtype, copy=False))


def log_excess(log_G: float, t: Array, gain: Array, antithetic: bool) -> Array:
    """log(E T^2 - 1) of one feature with E T^2 = e^a, or of a pair, of which T is the mean.

    a = log_G + t, and of w and -w b = log_G - s, s = t - gain: e^a - 1, or (e^a + e^b)/2 - 1,
    which is 2 e^c sinh^2((a-b)/4) + e^c - 1 with c = (a+b)/2.

    >>> bool(log_excess(0.0, np.array(2.0), np.array(0.0), False) == np.log(np.expm1(2.0)))
    True
    """
    if not antithetic:
        a = log_G + t
        excess: Array = a + np.log(-np.expm1(-a))
        return excess
    c = log_G + gain / 2
    spread = (2 * t - gain) / 4
    log_main = c + 2 * (spread + np.log(-np.expm1(-2 * spread))) - math.log(2)
    pair: Array = np.where(
        t == 0, np.log(np.expm1(c)), log_main + np.log1p(np.expm1(c) * np.exp(-log_main))
    )
    return pair


def _as_tilt(A: float) -> float:
    if as_number("A", A) >= 1 / 8:
        raise ValueError(f"A is {A!r}; expected below 1/8: the variance is infinite from there on")
    return float(A)
