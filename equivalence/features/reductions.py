"""Exact changes of keys and queries that leave exp(x.y) as it is and reduce |x+y|^2.

The variance of random features grows with |x+y|^2, the kernel does not: for every invertible S,

    x.y = (S (x-a)).(S^{-T} (y-b)) + (x-a).b + a.y.

The shift takes the mean of z = x + y out of E |z|^2, by a + b; with a and b the means of x and y
it does so whatever S. The balance S then gives keys and queries one second moment, and E z z^T the
least eigenvalues that it can have. The factor exp((x-a).b) belongs to the key; exp(a.y) is the
query's and cancels in attention. All this is exact, and serves every feature map.
Source: proofs/dense_exponential_features.py.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from equivalence._arrays import (
    Array,
    as_number,
    as_points,
    as_shaped,
    as_tokens,
    common_dtype,
    compute_dtype,
)
from equivalence.features.base import FeatureMap, Features, as_sample


def second_moment(points: npt.ArrayLike, *, shrinkage: float | None = None) -> Array:
    """The second moment (1-r) M + r (tr M / d) I of points (n, d), M = E x x^T: float64 (d, d).

    Of n < d points M is singular, and of not many more it is far from that of the points to come.
    The shrinkage r, between 0 and 1, is by default the one of least mean square error, estimated
    from the points (Ledoit and Wolf 2004): the variance of M over its squared distance to its mean
    multiple of I, at most 1.

    Raises ValueError for points that are not finite or none, or a shrinkage outside 0..1.

    Examples
    --------
    >>> second_moment([[2.0, 0.0]], shrinkage=0.5)
    array([[3., 0.],
           [0., 1.]])
    """
    P = as_points("points", points)
    P = as_sample("points", P, P.shape[-1])
    n, d = P.shape
    M = P.T @ P / n
    ball = np.trace(M) / d * np.eye(d)
    if shrinkage is None:
        distance = float(((M - ball) ** 2).sum())
        variance = float(((P**2).sum(axis=1) ** 2).mean() - (M**2).sum()) / n
        r = min(max(variance, 0.0) / distance, 1.0) if distance else 1.0
    else:
        r = as_number("shrinkage", shrinkage)
        if not 0 <= r <= 1:
            raise ValueError(f"shrinkage is {shrinkage!r}; expected 0 to 1")
    shrunk: Array = (1 - r) * M + r * ball
    return shrunk


def balancing(key_moment: npt.ArrayLike, query_moment: npt.ArrayLike) -> tuple[Array, Array]:
    """S and S^{-T} with S M_x S^T = S^{-T} M_y S^{-1}: float64 (d, d) each.

    S^T S is the geometric mean of M_x^{-1} and M_y. Of all S it gives the least tr(S M_x S^T) +
    tr(S^{-T} M_y S^{-1}), and indeed the least of every eigenvalue of the sum. S is determined up
    to a rotation; this one makes both moments diagonal, with the square roots of the eigenvalues of
    M_x M_y, the largest first.

    With M_x = L_x L_x^T, M_y = L_y L_y^T and the singular values L_y^T L_x = U diag(s) V^T,
    S = s^{-1/2} U^T L_y^T and S^{-T} = s^{-1/2} V^T L_x^T: nothing is inverted.

    Raises ValueError for moments that are not (d, d), symmetric, and positive definite beyond
    rounding.

    Notes
    -----
    Source: Likhosherstov et al. 2023 (ADERF); the eigenvalues, Bhatia and Kittaneh 1990.

    Examples
    --------
    >>> S, inverse = balancing([[4.0]], [[9.0]])
    >>> bool(np.isclose(4 * S**2, 6.0).all() and np.isclose(9 * inverse**2, 6.0).all())
    True
    """
    L_x = _factor("key_moment", key_moment)
    L_y = _factor("query_moment", query_moment)
    if L_x.shape != L_y.shape:
        raise ValueError(f"query_moment has shape {L_y.shape}; expected {L_x.shape}")
    U, s, Vt = np.linalg.svd(L_y.T @ L_x)
    root = np.sqrt(s)[:, None]
    return U.T @ L_y.T / root, Vt @ L_x.T / root


def _factor(name: str, moment: npt.ArrayLike) -> Array:
    """L with L L^T = moment."""
    M = as_points(name, moment).astype(np.float64)
    if M.ndim != 2 or M.shape[0] != M.shape[1]:
        raise ValueError(f"{name} has shape {M.shape}; expected (dim, dim)")
    if not np.array_equal(M, M.T) or not np.isfinite(M).all():
        raise ValueError(f"{name} is not symmetric, or not finite; expected a second moment")
    eigenvalues, V = np.linalg.eigh(M)
    smallest, largest = float(eigenvalues[0]), float(eigenvalues[-1])
    if not smallest > len(M) * np.finfo(np.float64).eps * largest:
        raise ValueError(
            f"{name} has eigenvalues from {smallest:.1e} to {largest:.1e}; expected positive ones: "
            "points that span all dimensions, or more shrinkage"
        )
    L: Array = V * np.sqrt(eigenvalues)
    return L


@dataclass(frozen=True, eq=False)
class Reduction:
    """x' = S (x-a) of keys and y' = S^{-T} (y-b) of queries: x.y = x'.y' + (x-a).b + a.y.

    Parameters
    ----------
    a, b : arrays (d,)
        The shifts of keys and of queries.
    S, inverse : arrays (d, d)
        The balance, and S^{-T}.

    Raises
    ------
    ValueError
        Shapes that do not fit, or entries that are not finite.
    TypeError
        What is not a real number.

    Examples
    --------
    >>> reduction = Reduction([1.0], [2.0], [[2.0]], [[0.5]])
    >>> (x, f), (y, g) = reduction.keys([[3.0]]), reduction.queries([[5.0]])
    >>> (x @ y.T + f + g).item()
    15.0
    """

    a: Array
    b: Array
    S: Array
    inverse: Array

    def __post_init__(self) -> None:
        """Check the shapes, and keep float64 arrays."""
        d = np.shape(self.a)[-1] if np.ndim(self.a) else 0
        for name, shape in (("a", (d,)), ("b", (d,)), ("S", (d, d)), ("inverse", (d, d))):
            array = as_shaped(name, getattr(self, name), *shape).astype(np.float64)
            if array.ndim != len(shape):
                raise ValueError(f"{name} has shape {array.shape}; expected {shape}")
            if not np.isfinite(array).all():
                raise ValueError(
                    f"{name} has entries that are NaN or infinite; expected finite ones"
                )
            object.__setattr__(self, name, array)

    @classmethod
    def fit(
        cls,
        keys: npt.ArrayLike,
        queries: npt.ArrayLike | None = None,
        *,
        shift: bool = True,
        balance: bool = True,
        shrinkage: float | None = None,
    ) -> Self:
        """The reduction of a sample of keys (n_k, d) and queries (n_q, d); of the keys twice.

        The shift takes a and b as their means, 0 without it; the balance is `balancing` of the
        `second_moment` of what is left, with that shrinkage, the identity without it.

        Raises ValueError for shapes that do not fit, no rows, entries that are not finite, and a
        balance of points without extent in some direction, such as a single token about its mean.

        Examples
        --------
        >>> Reduction.fit([[1.0], [3.0]], [[10.0], [30.0]]).S.round(6)
        array([[3.162278]])
        """
        X = as_points("keys", keys)
        d = X.shape[-1]
        X = as_sample("keys", X, d)
        Y = X if queries is None else as_sample("queries", queries, d)
        a, b = (P.mean(axis=0) if shift else np.zeros(d) for P in (X, Y))
        if not balance:
            return cls(a, b, np.eye(d), np.eye(d))
        moments = (second_moment(P, shrinkage=shrinkage) for P in (X - a, Y - b))
        return cls(a, b, *balancing(*moments))

    def keys(self, x: npt.ArrayLike) -> tuple[Array, Array]:
        """x' = S (x-a) of keys (..., n, d), and the logarithm (x-a).b of their factor (..., n).

        float64, computed so that what is rounded later is rounded once.
        """
        X = as_tokens("x", x, dim=len(self.a)).astype(np.float64)
        with np.errstate(all="ignore"):
            return (X - self.a) @ self.S.T, (X - self.a) @ self.b

    def queries(self, y: npt.ArrayLike) -> tuple[Array, Array]:
        """y' = S^{-T} (y-b) of queries (..., n, d), and the logarithm a.y of their factor (..., n).

        float64, as for keys.
        """
        Y = as_tokens("y", y, dim=len(self.a)).astype(np.float64)
        with np.errstate(all="ignore"):
            return (Y - self.b) @ self.inverse.T, Y @ self.a


class ReducedFeatures:
    """Any feature map after a reduction: one map of keys and one of queries, of the same kernel.

    `phi.keys(x)` and `phi.queries(y)` are Features with phi.keys(x).phi.queries(y) = exp(x.y) in
    the sense in which the map itself has it. Where one feature map is expected twice, give these:
    `AttentionState.of(phi.keys(K), V).read(phi.queries(Q))`,
    `OneStepRegressor(phi.keys, query_map=phi.queries)`.

    Parameters
    ----------
    feature_map : feature map
        Of the reduced points. One with a `fit` method is copied and fitted to them.
    shift, balance, shrinkage
        As in `Reduction.fit`.

    Attributes
    ----------
    reduction_ : Reduction
        After `fit`, as is the next.
    feature_map_ : feature map
        The fitted feature map.

    Raises
    ------
    TypeError
        A feature map that is none.

    Notes
    -----
    DenseFeatures so reduced are those of ADERF. Source: Likhosherstov et al. 2023.

    Examples
    --------
    >>> from equivalence.features import GramFeatures
    >>> K, Q = np.array([[1.0], [2.0]]), np.array([[3.0], [5.0]])
    >>> phi = ReducedFeatures(GramFeatures()).fit(K, Q)
    >>> bool(np.allclose(phi.keys(K).phi() @ phi.queries(Q).phi().T, np.exp(K @ Q.T), rtol=1e-13))
    True
    """

    reduction_: Reduction
    feature_map_: FeatureMap

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        shift: bool = True,
        balance: bool = True,
        shrinkage: float | None = None,
    ) -> None:
        if isinstance(feature_map, type) or not callable(feature_map):
            raise TypeError(
                f"feature_map is {feature_map!r}; expected a feature map, such as GramFeatures()"
            )
        self.feature_map = feature_map
        self.shift, self.balance, self.shrinkage = shift, balance, shrinkage

    def fit(self, keys: npt.ArrayLike, queries: npt.ArrayLike | None = None) -> Self:
        """Reduce a sample of keys (n_k, d) and queries (n_q, d), and fit the map to the result.

        Raises ValueError as `Reduction.fit` does, and what the map's own `fit` raises.
        """
        queries = keys if queries is None else queries
        reduction = Reduction.fit(
            keys, queries, shift=self.shift, balance=self.balance, shrinkage=self.shrinkage
        )
        phi = self.feature_map
        if hasattr(phi, "fit"):
            phi = copy.copy(phi).fit(reduction.keys(keys)[0], reduction.queries(queries)[0])
        self.reduction_, self.feature_map_ = reduction, phi
        return self

    def keys(self, x: npt.ArrayLike) -> Features:
        """The features (..., n, m) of keys (..., n, d), in x's dtype."""
        X = as_tokens("x", x)
        return self._features(X, *self._fitted.keys(X))

    def queries(self, y: npt.ArrayLike) -> Features:
        """The features (..., n, m) of queries (..., n, d), in y's dtype."""
        Y = as_tokens("y", y)
        return self._features(Y, *self._fitted.queries(Y))

    @property
    def _fitted(self) -> Reduction:
        if not hasattr(self, "reduction_"):
            raise ValueError("ReducedFeatures has no reduction yet; expected fit to come first")
        return self.reduction_

    def _features(self, given: Array, points: Array, log_factor: Array) -> Features:
        dtype = common_dtype(given)
        features, log_scale = self.feature_map_(points.astype(compute_dtype(dtype)))
        with np.errstate(all="ignore"):
            return Features(
                features.astype(dtype, copy=False), (log_scale + log_factor).astype(dtype)
            )
