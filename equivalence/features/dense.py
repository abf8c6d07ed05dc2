"""Dense exponential random features of exp(x.y): positive ones with a tilt of its own per axis."""

from __future__ import annotations

import math
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from equivalence._arrays import (
    Array,
    as_points,
    as_shaped,
    as_tokens,
    broadcast_axes,
    common_dtype,
    compute_dtype,
)
from equivalence.features.base import Features, as_projections, as_sample
from equivalence.features.couplings import check_draw, is_antithetic, sample_projections
from equivalence.features.exponentials import exponentials
from equivalence.features.generalized import best_rho, log_excess
from equivalence.features.moments import Moments

# Halvings of the interval (1/2, 1) until it is below its own unit roundoff.
_HALVINGS = 53
# Computed eigenvectors are orthonormal to a few d u.
_ORTHONORMAL_ULPS = 32


def optimal_tilts(moments: npt.ArrayLike, *, antithetic: bool = False) -> Array:
    """The tilts A_l = (1 - 1/rho_l) / 8, one an axis, of least second moment at z_l^2 = moments_l.

    Of independent features rho_l = 2 / (2m + 1 + sqrt((2m+1)^2 + 8m)) at m = moments_l: each axis
    for itself. Antithetic ones share sigma, the part of the second moment that grows with rho,
    1/(1 + exp(-sum_l (1+rho_l) m_l)); each rho_l is that at sigma m_l, and sigma is found by
    bisection.

    Takes (d,) numbers, at least 0, and returns (d,) in float64. Raises ValueError otherwise.

    Examples
    --------
    >>> optimal_tilts([0.0, 1 / 3]).round(12)
    array([ 0.   , -0.125])
    """
    m = as_shaped("moments", moments, "dim").astype(np.float64)
    if m.ndim != 1 or not np.isfinite(m).all() or (m < 0).any():
        raise ValueError(f"moments is {m}; expected one finite number an axis, at least 0")
    low, high = (0.5, 1.0) if antithetic else (1.0, 1.0)
    for _ in range(_HALVINGS if antithetic else 0):
        sigma = (low + high) / 2
        rho = best_rho(sigma * m, 1)
        part = 1 / (1 + math.exp(-float(((1 + rho) * m).sum())))
        low, high = (sigma, high) if part > sigma else (low, sigma)
    tilts: Array = (1 - 1 / best_rho(high * m, 1)) / 8
    return np.minimum(tilts, 0.0)


class DenseFeatures(Moments):
    """Positive features with a tilt A_l < 1/8 along each of d axes, exact in expectation.

    With u = axes^T x, the coordinates along the axes, and w_r ~ N(0, I),

        phi(x)_r = e^{-|x|^2/2} prod_l (1-4A_l)^{1/4} exp(A_l w_rl^2 + sqrt(1-4A_l) w_rl u_l),

    all divided by sqrt(m). Then E phi(x).phi(y) = exp(x.y), and a feature has the second moment
    E T^2 = prod_l G(rho_l) exp(rho_l z_l^2) relative to exp(2 x.y), with rho_l = 1/(1-8A_l),
    G(rho) = (1+rho)/(2 sqrt(rho)) and z = axes^T (x + y). Equal tilts give GeneralizedFeatures.

    `fit` finds the best axes and tilts of a sample (SDERF). Features of keys and queries that have
    been balanced before, `ReducedFeatures(DenseFeatures(...))`, are those of ADERF.

    Parameters
    ----------
    projections : array (m, d)
        One projection a row, its coordinates along the axes.
    tilts : array (d,), optional
        A_l, below 1/8; 0 by default.
    axes : array (d, d), optional
        The axes as columns, orthonormal; those of the coordinates by default.

    Attributes
    ----------
    projections, tilts, axes
        As given, the last two in float64; after `fit` the ones chosen.

    Raises
    ------
    ValueError
        Shapes that do not fit, entries that are not finite, tilts not below 1/8, axes that are not
        orthonormal.
    TypeError
        What is not a real number.

    Notes
    -----
    As the law of w does not depend on the axes, A = axes diag(tilts) axes^T is any symmetric matrix
    with eigenvalues below 1/8. Source: Likhosherstov et al. 2023 (SDERF);
    proofs/dense_exponential_features.py.

    Examples
    --------
    >>> phi = DenseFeatures([[0.0, 0.0]], tilts=[-2.0, 0.0])
    >>> phi([[0.0, 0.0]]).phi()
    array([[1.73205081]])
    """

    def __init__(
        self,
        projections: npt.ArrayLike,
        tilts: npt.ArrayLike | None = None,
        axes: npt.ArrayLike | None = None,
    ) -> None:
        self.projections = as_projections(projections)
        self.tilts, self.axes = _as_tilts_and_axes(tilts, axes, self.projections.shape[1])

    @classmethod
    def sample(
        cls,
        dim: int,
        n_features: int,
        *,
        rng: np.random.Generator,
        coupling: str = "iid",
        antithetic: bool = False,
        tilts: npt.ArrayLike | None = None,
        axes: npt.ArrayLike | None = None,
    ) -> Self:
        """Draw n_features projections of N(0, I_dim) in float64: `couplings.sample_projections`.

        Raises what that raises, and ValueError as the constructor does.

        Examples
        --------
        >>> rng = np.random.default_rng(0)
        >>> DenseFeatures.sample(3, 4, rng=rng, coupling="orthogonal").projections.shape
        (4, 3)
        """
        W = sample_projections(n_features, dim, rng=rng, coupling=coupling, antithetic=antithetic)
        return cls(W, tilts, axes)._drawn(coupling, antithetic)

    def fit(self, keys: npt.ArrayLike, queries: npt.ArrayLike | None = None) -> Self:
        """Choose axes and tilts for M = E z z^T, z = x + y over all pairs of a key and a query.

        The axes are the eigenvectors of M, the tilts `optimal_tilts` of its eigenvalues: no other
        axes and tilts of independent features have a smaller mean of log E T^2. Projections whose
        second half is the negative of the first get the antithetic tilts. keys (n_k, d) and queries
        (n_q, d); without queries, the keys twice. M may be singular: along an axis without points
        the tilt is 0.

        Raises ValueError for shapes that do not fit, no rows, and entries that are not finite.

        Examples
        --------
        >>> phi = DenseFeatures([[1.0, 2.0]]).fit([[3.0, 4.0]], [[0.0, 0.0]])
        >>> abs(phi.axes[:, 1]).round(12), bool(phi.tilts[1] < phi.tilts[0])
        (array([0.6, 0.8]), True)
        """
        d = self.projections.shape[1]
        X, Y = (
            as_sample(name, value, d)
            for name, value in (("keys", keys), ("queries", keys if queries is None else queries))
        )
        cross = np.outer(X.mean(axis=0), Y.mean(axis=0))
        M = X.T @ X / len(X) + Y.T @ Y / len(Y) + cross + cross.T
        moments, self.axes = np.linalg.eigh(M)
        # In exact arithmetic they are means of squares.
        self.tilts = optimal_tilts(
            np.maximum(moments, 0.0), antithetic=is_antithetic(self.projections)
        )
        return self

    @staticmethod
    def log_relative_variance(
        x: npt.ArrayLike,
        y: npt.ArrayLike,
        n_features: int,
        *,
        tilts: npt.ArrayLike | None = None,
        axes: npt.ArrayLike | None = None,
        coupling: str = "iid",
        antithetic: bool = False,
    ) -> Array:
        """log(Var / exp(2 x.y)) of phi(x).phi(y) over such a `sample`, for each pair of rows.

        x (..., n, d) and y (..., k, d) give (..., n, k) in their dtype, computed in float64; -inf
        where there is no variance. It is finite where the variance itself overflows.

        Raises ValueError for what the constructor and `sample` refuse and for every coupling but
        'iid', antithetic or not: no closed form is known where tilts differ between the axes.

        Examples
        --------
        >>> plain, tilted = (
        ...     DenseFeatures.log_relative_variance([[2.0, 0.0]], [[1.0, 0.0]], 1, tilts=A).item()
        ...     for A in ([0.0, 0.0], [-0.5, 0.0])
        ... )
        >>> plain > tilted
        True
        """
        X, Y = as_points("x", x), as_tokens("y", y)
        d = X.shape[-1]
        as_tokens("y", Y, dim=d)
        broadcast_axes("y", X.shape[:-2], Y.shape[:-2])
        A, Q = _as_tilts_and_axes(tilts, axes, d)
        check_draw(n_features, d, coupling, antithetic)
        if coupling != "iid":
            raise ValueError(
                f"coupling is {coupling!r}; expected 'iid': no closed form is known for tilts that "
                "differ between the axes"
            )
        rho = 1 / (1 - 8 * A)
        with np.errstate(all="ignore"):
            u, v = X.astype(np.float64) @ Q, Y.astype(np.float64) @ Q
            squares = [(u[..., :, None, k] + v[..., None, :, k]) ** 2 for k in range(d)]
            t, gain = (
                sum((a * square for a, square in zip(weights, squares, strict=True)), np.zeros(()))
                for weights in (rho, rho - 1)
            )
            log_G = float(np.log1p(16 * A**2 * rho).sum()) / 2
            excess = log_excess(log_G, t, gain, antithetic)
            log_variance: Array = excess - math.log(n_features // 2 if antithetic else n_features)
        return log_variance.astype(common_dtype(X, Y), copy=False)

    def _log_relative_variance(self, x: Array, y: Array, **how: Any) -> Array:
        return self.log_relative_variance(
            x, y, len(self.projections), tilts=self.tilts, axes=self.axes, **how
        )

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
        stretched = (self.axes * np.sqrt(1 - 4 * self.tilts)).astype(X.dtype, copy=False)
        with np.errstate(all="ignore"):
            tilt = W**2 @ self.tilts.astype(X.dtype)
            features, shift = exponentials(X @ stretched, W, tilt)
            half_norm = np.einsum("...d,...d->...", X, X) / 2
            constant = float(np.log1p(-4 * self.tilts).sum()) / 4 - math.log(m) / 2
            log_scale = shift - half_norm + constant
            return Features(features.astype(dtype, copy=False), log_scale.astype(dtype, copy=False))


def _as_tilts_and_axes(
    tilts: npt.ArrayLike | None, axes: npt.ArrayLike | None, d: int
) -> tuple[Array, Array]:
    A = np.zeros(d) if tilts is None else as_shaped("tilts", tilts, d)
    if A.shape != (d,) or not (A < 1 / 8).all() or not np.isfinite(A).all():
        raise ValueError(
            f"tilts is {A}; expected {d} finite numbers below 1/8: the variance is infinite from "
            "there on"
        )
    Q = np.eye(d) if axes is None else as_shaped("axes", axes, d, d)
    eps = np.finfo(Q.dtype).eps
    A, Q = A.astype(np.float64), Q.astype(np.float64)
    defect = abs(Q.T @ Q - np.eye(d)).max() if Q.ndim == 2 else math.inf
    if not defect <= _ORTHONORMAL_ULPS * d * eps:
        raise ValueError(f"axes has columns that are not orthonormal, by {defect:.1e}")
    return A, Q
