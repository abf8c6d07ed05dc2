"""Exact finite features of exp(x.y) at a set of landmarks, from a factor of their Gram matrix."""

from __future__ import annotations

from typing import Self

import numpy as np
import numpy.typing as npt

from equivalence._arrays import Array, as_points, as_tokens, common_dtype, compute_dtype
from equivalence.features.base import Features


class GramFeatures:
    """Features with phi(z).phi(q) = exp(z.q) for every landmark z and *every* q, exactly.

    With G = L L^T the Gram matrix of the landmarks under the Gaussian kernel
    g(x, y) = exp(-|x-y|^2/2) = exp(x.y - |x|^2/2 - |y|^2/2), the features are
    L^{-1} g(Z, x) with log scale |x|^2/2, and a landmark's own features are its row of L. Then
    phi(z_i).phi(q) = e_i^T L L^{-1} g(Z, q), rescaled, is the kernel, whatever invertible L is.
    So softmax attention over the landmarks has an exact dual with as many features as there are
    distinct keys: no randomness, no limit.

    Attributes
    ----------
    landmarks_ : array (m, d)
        The distinct landmarks, in the order of the pivots.
    factor_ : array (m, m)
        L, lower triangular.
    rank_ : int
        The numerical rank of G: pivoted Cholesky (LAPACK pstrf) stops there. The trailing block of
        the factor is a multiple of the identity at rounding level, which keeps L invertible, so
        that nearly equal landmarks are reproduced to rounding like all others.

    Notes
    -----
    Why not eigenvectors: their error is absolute, u * |G|, and drowns small kernel values;
    Cholesky's is relative to each row. Why the Gaussian normalisation: exp(|z|^2) overflows.
    Source: proofs/gram_features.py; pivoted Cholesky, Higham 2002, sec. 10.3.

    Examples
    --------
    >>> import numpy as np
    >>> phi = GramFeatures().fit([[0.0], [1.0]])
    >>> z, q = phi([[1.0]]).phi(), phi([[3.0]]).phi()
    >>> bool(np.isclose((z @ q.T).item(), np.exp(3.0)))
    True
    """

    landmarks_: Array
    factor_: Array
    rank_: int

    def fit(self, keys: npt.ArrayLike, queries: npt.ArrayLike | None = None) -> Self:
        """Take the distinct rows of `keys` (n, d) as landmarks and factor their Gram matrix.

        `queries` belongs to the feature maps' common signature; the features are exact at every
        query, so it is not needed here.

        Raises ValueError unless keys is (n, d), with n and d at least 1, and its entries and the
        rows' squared norms are finite.
        """
        K = as_points("keys", keys)
        if K.ndim != 2 or len(K) == 0:
            raise ValueError(f"keys has shape {K.shape}; expected (n_tokens, dim), both at least 1")
        if not np.isfinite(K).all():
            raise ValueError("keys has entries that are NaN or infinite; expected finite landmarks")
        Z = np.unique(K.astype(compute_dtype(K.dtype)), axis=0)
        if not np.isfinite(_half_norms(Z)).all():
            raise ValueError(
                f"keys has rows whose squared norm overflows {Z.dtype}; expected finite norms"
            )
        G = np.exp(_gaussian_exponent(Z, Z))
        # Each entry of G carries rounding errors of its exponent, of size u * |z|^2.
        noise = len(Z) * float(np.finfo(Z.dtype).eps) * (1 + 2 * float(_half_norms(Z).max()))
        L, pivots, self.rank_ = pivoted_cholesky(G, noise)
        self.factor_ = L
        self.landmarks_ = Z[pivots]
        self._row_of = {point: row for row, point in enumerate(as_bytes(self.landmarks_))}
        return self

    def __call__(self, x: npt.ArrayLike) -> Features:
        """phi(x) for points (..., n, d): features (..., n, m), log_scale (..., n).

        A point with NaN or inf, or so large that x.z overflows, has real features that are NaN. The
        dtype is that of x and the landmarks together.

        Raises ValueError if d is not the landmarks' dimension, or before `fit`.
        """
        X = self._points(x)
        points = X.reshape(-1, X.shape[-1])
        features, log_scale = self._solve(points)
        self._recall(points, features, log_scale)
        m = len(self.factor_)
        return Features(features.reshape(*X.shape[:-1], m), log_scale.reshape(X.shape[:-1]))

    def jacobian(self, x: npt.ArrayLike) -> Array:
        """dphi(x)/dx for points (..., n, d): (..., n, m, d), to be multiplied like self(x).features
        by the exponential of self(x).log_scale.

        As kappa(Z, x) has the derivative kappa(z, x) z^T by x, it is L^{-1} kappa(Z, x) Z.
        A point whose features are NaN has a NaN derivative.

        Raises ValueError as a call does.
        """
        X = self._points(x)
        points = X.reshape(-1, X.shape[-1])
        Z = self.landmarks_.astype(points.dtype, copy=False)
        with np.errstate(all="ignore"):
            g, _ = self._kernel(points)
            moved = g[:, :, None] * Z
            slopes = self._divide(np.moveaxis(moved, 1, 0).reshape(len(Z), -1))
        jacobian = np.moveaxis(slopes.reshape(len(Z), len(points), -1), 0, 1)
        return jacobian.reshape(*X.shape[:-1], *Z.shape)

    def _points(self, x: npt.ArrayLike) -> Array:
        if not hasattr(self, "factor_"):
            raise ValueError("GramFeatures has no landmarks yet; expected fit(keys) to come first")
        X = as_tokens("x", x, dim=self.landmarks_.shape[1])
        return X.astype(common_dtype(X, self.landmarks_), copy=False)

    def _solve(self, x: Array) -> tuple[Array, Array]:
        """L^{-1} g(Z, x) of each row, and its log scale."""
        with np.errstate(all="ignore"):
            g, largest = self._kernel(x)
            return self._divide(g.T).T, largest

    def _kernel(self, x: Array) -> tuple[Array, Array]:
        """The rows g(Z, x), divided by their largest entries so that none underflows.

        The half norm of x is left out of the exponent and of the log scale, where it would cancel:
        it would drown x.z for a long x.
        """
        exponent = x @ self.landmarks_.T - _half_norms(self.landmarks_)
        largest = exponent.max(axis=-1)
        return np.exp(exponent - largest[:, None]), largest

    def _divide(self, columns: Array) -> Array:
        """L^{-1} times the columns."""
        from scipy.linalg import solve_triangular

        L = self.factor_.astype(columns.dtype, copy=False)
        divided: Array = solve_triangular(L, columns, lower=True, check_finite=False)
        return divided

    def _recall(self, x: Array, features: Array, log_scale: Array) -> None:
        """Give each landmark its own row of the factor: solving would amplify errors."""
        found = [(i, self._row_of[p]) for i, p in enumerate(as_bytes(x)) if p in self._row_of]
        if found:
            here, rows = map(list, zip(*found, strict=True))
            features[here] = self.factor_[rows]
            log_scale[here] = _half_norms(self.landmarks_)[rows]


def _half_norms(x: Array) -> Array:
    half: Array = np.einsum("nd,nd->n", x, x) / 2
    return half


def _gaussian_exponent(x: Array, z: Array) -> Array:
    """-|x-y|^2/2 as x.y - |x|^2/2 - |y|^2/2: the half norms cancel with the log scales."""
    exponent: Array = x @ z.T - _half_norms(x)[:, None] - _half_norms(z)
    return exponent


def pivoted_cholesky(G: Array, noise: float) -> tuple[Array, npt.NDArray[np.intp], int]:
    """L with L L^T = G[pivots][:, pivots] up to `noise`, the pivots, and the numerical rank."""
    from scipy.linalg import lapack

    pstrf = lapack.dpstrf if G.dtype == np.float64 else lapack.spstrf
    factor, pivots, rank, _ = pstrf(G, tol=noise, lower=1)
    L = np.tril(factor)
    L[rank:, rank:] = np.sqrt(noise) * np.eye(len(L) - rank)
    return L, pivots - 1, int(rank)


def as_bytes(x: Array) -> list[bytes]:
    """One key a point, equal for equal points; adding zero makes -0.0 the 0.0 that it equals."""
    return [row.tobytes() for row in x.astype(np.float64) + 0.0]
