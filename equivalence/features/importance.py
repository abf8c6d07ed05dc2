"""Positive random features of exp(x.y) with projections drawn where the attention lies."""

from __future__ import annotations

import math
from typing import Self

import numpy as np
import numpy.typing as npt

from equivalence._arrays import (
    Array,
    as_integer,
    as_points,
    as_shaped,
    as_tokens,
    common_dtype,
    compute_dtype,
)
from equivalence.features.base import Features, as_projections, as_sample
from equivalence.features.exponentials import exponentials


def log_importance_weights(
    projections: npt.ArrayLike, keys: npt.ArrayLike, queries: npt.ArrayLike
) -> Array:
    """log of N(w; 0, I) / p(w) at each projection, p the density of q_i + k_j + N(0, I).

    i is uniform and j is drawn by the attention A_ij of query i. As N(w; q+k, I) exp(q.k) =
    N(w; 0, I) phi_w(q) phi_w(k) with phi_w(x) = exp(w.x - |x|^2/2), the mixture of all n_q * n
    pairs is a product, p(w) / N(w; 0, I) = mean_i phi_w(q_i) / D_i * sum_j phi_w(k_j).

    projections (m, d), keys (n, d), queries (n_q, d): (m,) in float64. Raises ValueError for shapes
    that do not fit, no rows, and entries that are not finite.
    Source: proofs/importance_features.py.

    Examples
    --------
    One pair: w ~ N(q + k, I), and the weight times phi_w(q) phi_w(k) is exp(q.k) at every w.

    >>> log_importance_weights([[5.0]], [[2.0]], [[3.0]])
    array([-12.5])
    """
    W = as_projections(projections).astype(np.float64)
    K, Q = (as_sample(n, x, W.shape[1]) for n, x in (("keys", keys), ("queries", queries)))
    with np.errstate(all="ignore"):
        log_D = _log_sum(Q @ K.T)
        by_query = _log_sum(_exponent(W, Q) - log_D) - math.log(len(Q))
        weights: Array = -by_query - _log_sum(_exponent(W, K))
    return weights


class ImportanceFeatures:
    """Positive features at given projections with given weights, exact in expectation if they fit.

    phi(x)_r = sqrt(weight_r / m) exp(w_r.x - |x|^2/2). With w_r ~ p and weight = N(w; 0, I) / p(w),
    E phi(x).phi(y) = exp(x.y). `sample` draws w ~ q_i + k_j + N(0, I) for a query i and a key j by
    its attention A_ij. At these n_q queries a feature's contribution to A_ij, relative to A_ij,
    then lies between 0 and n_q / A_ij: the relative variance of the m features is at most
    n_q / (m A_ij), where that of N(0, I) grows as exp(|q+k|^2). And for all projections alike, the
    mean over the queries of sum_j of the estimates of A_ij is 1.

    Parameters
    ----------
    projections : array (m, d)
        One projection a row.
    log_weights : array (m,)
        The logarithms of the weights; 0 gives PositiveFeatures.

    Raises
    ------
    ValueError
        Shapes that do not fit, or entries that are not finite.
    TypeError
        What is not a real number.

    Notes
    -----
    At other queries it is unbiased too, with a variance that has no such bound: draw for a sample
    that covers them. Scaling queries by t and keys by 1/t before, which leaves exp(x.y), draws
    nearer to queries for a large t and nearer to keys for a small one. The variance has no closed
    form: the weight is a ratio of sums. Source: proofs/importance_features.py.

    Examples
    --------
    >>> phi = ImportanceFeatures([[5.0]], log_importance_weights([[5.0]], [[2.0]], [[3.0]]))
    >>> bool(np.isclose(phi([[2.0]]).phi() @ phi([[3.0]]).phi().T, np.exp(6.0)).all())
    True
    """

    def __init__(self, projections: npt.ArrayLike, log_weights: npt.ArrayLike) -> None:
        self.projections = as_projections(projections)
        w = as_shaped("log_weights", log_weights, len(self.projections))
        if w.ndim != 1 or not np.isfinite(w).all():
            raise ValueError(
                f"log_weights has shape {w.shape} or entries that are not finite; expected one "
                f"finite number for each of {len(self.projections)} projections"
            )
        self.log_weights = w

    @classmethod
    def sample(
        cls,
        keys: npt.ArrayLike,
        queries: npt.ArrayLike,
        n_features: int,
        *,
        rng: np.random.Generator,
    ) -> Self:
        """Draw n_features independent projections for keys (n, d) and queries (n_q, d).

        Raises ValueError for shapes that do not fit, no rows, entries that are not finite or an
        n_features below 1, TypeError for one that is no integer or an `rng` that is not a numpy
        Generator.

        Examples
        --------
        >>> rng = np.random.default_rng(0)
        >>> K, Q = rng.normal(size=(5, 3)), rng.normal(size=(4, 3))
        >>> ImportanceFeatures.sample(K, Q, 6, rng=rng).projections.shape
        (6, 3)
        """
        X = as_points("keys", keys)
        K = as_sample("keys", X, X.shape[-1])
        Q = as_sample("queries", queries, K.shape[1])
        m = as_integer("n_features", n_features)
        if m < 1:
            raise ValueError(f"n_features is {n_features!r}; expected at least 1")
        if not isinstance(rng, np.random.Generator):
            raise TypeError(f"rng is {rng!r}; expected a numpy.random.Generator")
        scores = Q @ K.T
        chances = np.cumsum(np.exp(scores - _log_sum(scores)[:, None]), axis=1)
        i = rng.integers(len(Q), size=m)
        thrown = rng.random(m) * chances[i, -1]
        # A product that is rounded up to the last chance stays with the last key.
        j = (chances[i, :-1] <= thrown[:, None]).sum(axis=1)
        W = Q[i] + K[j] + rng.standard_normal((m, K.shape[1]))
        return cls(W, log_importance_weights(W, K, Q))

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
        with np.errstate(all="ignore"):
            W = self.projections.astype(X.dtype, copy=False)
            features, shift = exponentials(X, W, (self.log_weights / 2).astype(X.dtype))
            half_norm = np.einsum("...d,...d->...", X, X) / 2
            log_scale = shift - half_norm - math.log(m) / 2
            return Features(features.astype(dtype, copy=False), log_scale.astype(dtype, copy=False))


def _exponent(W: Array, x: Array) -> Array:
    """log phi_w(x) = w.x - |x|^2/2."""
    exponent: Array = W @ x.T - np.einsum("nd,nd->n", x, x) / 2
    return exponent


def _log_sum(exponent: Array) -> Array:
    """log of the sum of the exponentials of each row."""
    largest = exponent.max(axis=1)
    total: Array = largest + np.log(np.exp(exponent - largest[:, None]).sum(axis=1))
    return total
