"""What random features will cost before one is drawn: bias, error, tails, and how many are needed.

Attention from m independent positive features is a ratio of two sums, N/D, and never unbiased. With
p_i the exact weights, o the exact output, z_i = k_i + q and M_ij = exp(z_i.z_j), which is
E T_i T_j of the relative features T_i = phi_w(k_i) phi_w(q) / kappa(k_i, q),

    E o^ - o       = -(1/m) sum_ij p_i p_j (v_i - o) M_ij               + O(1/m^2),
    E |o^ - o|^2   =  (1/m) sum_ij p_i p_j (v_i - o).(v_j - o) M_ij     + O(1/m^2).

Source: proofs/random_feature_attention.py.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from equivalence._arrays import (
    Array,
    as_integer,
    as_points,
    as_positive,
    as_scale,
    as_tokens,
    broadcast_axes,
    common_dtype,
)
from equivalence.attention import attention_weights
from equivalence.features.positive import PositiveFeatures


def attention_bias(
    query: npt.ArrayLike,
    key: npt.ArrayLike,
    value: npt.ArrayLike,
    n_features: int,
    *,
    scale: float | None = None,
) -> Array:
    """The predicted E o^ - o of attention from independent positive features, to order 1/m.

    query (..., n_q, d), key (..., n, d) and value (..., n, c) give (..., n_q, c) in their dtype,
    computed in float64; inf or NaN where the prediction overflows. It holds when the result is
    small beside the values. Memory grows as n_q n^2.

    Raises ValueError for shapes that do not fit or no features, TypeError for what is no number.

    Examples
    --------
    Two keys at 0 and 1, a query at 0: the second key's features spread more.

    >>> attention_bias([[0.0]], [[0.0], [1.0]], [[0.0], [1.0]], 100).round(6)
    array([[-0.002148]])
    """
    p, M, rest, dtype = _relative_moments(query, key, value, scale)
    m = _as_count(n_features)
    with np.errstate(all="ignore"):
        bias: Array = -np.einsum("...i,...ij,...j,...ic->...c", p, M, p, rest, optimize=True) / m
    return bias.astype(dtype, copy=False)


def attention_mean_square_error(
    query: npt.ArrayLike,
    key: npt.ArrayLike,
    value: npt.ArrayLike,
    n_features: int,
    *,
    scale: float | None = None,
) -> Array:
    """The predicted E |o^ - o|^2 of attention from independent positive features, to order 1/m.

    query (..., n_q, d), key (..., n, d) and value (..., n, c) give (..., n_q) in their dtype,
    computed in float64; inf or NaN where the prediction overflows.

    Raises ValueError for shapes that do not fit or no features, TypeError for what is no number.

    Examples
    --------
    >>> error = attention_mean_square_error([[0.0]], [[0.0], [1.0]], [[0.0], [1.0]], 100)
    >>> error.round(6)
    array([0.001074])
    """
    p, M, rest, dtype = _relative_moments(query, key, value, scale)
    m = _as_count(n_features)
    with np.errstate(all="ignore"):
        weighted = p[..., None] * rest
        error: Array = (weighted * np.matmul(M, weighted)).sum(axis=(-2, -1)) / m
    return error.astype(dtype, copy=False)


def required_features(x: npt.ArrayLike, y: npt.ArrayLike, rtol: float) -> Array:
    """How many independent positive features estimate exp(x.y) to a relative deviation rtol.

    (exp(|x+y|^2) - 1) / rtol^2, rounded up, for each pair of rows of x (..., n, d) and y
    (..., k, d): float64 (..., n, k), since it is often beyond any integer, and inf beyond float64.

    Raises ValueError for shapes that do not fit or an rtol that is not positive and finite.

    Examples
    --------
    Standard normal queries and keys of 64 coordinates, scaled as in attention, have |x+y|^2 near
    16, and 10 % needs a billion features:

    >>> x = np.full((1, 64), 0.25)
    >>> required_features(x, x, rtol=0.1)
    array([[8.88610953e+08]])
    """
    rtol = as_positive("rtol", rtol)
    X, Y = (as_tokens(name, points).astype(np.float64) for name, points in (("x", x), ("y", y)))
    log_variance = PositiveFeatures.log_relative_variance(X, Y, 1)
    with np.errstate(over="ignore"):
        count: Array = np.ceil(np.exp(log_variance - 2 * math.log(rtol)))
    return np.maximum(count, 1.0)


def log_lower_tail(second_moment: float, shortfall: float, n_features: int) -> float:
    """log of a bound of P(mean of m features <= (1 - t) kernel): -m t^2 / (2 E T^2).

    For features that are independent, nonnegative and unbiased, E T^2 relative to the kernel's
    square, so at least 1; t between 0 and 1. No bound of this kind holds for the upper tail.

    Raises ValueError for numbers outside these ranges.

    Examples
    --------
    >>> log_lower_tail(2.0, 0.5, 160)
    -10.0
    """
    if as_positive("second_moment", second_moment) < 1:
        raise ValueError(f"second_moment is {second_moment!r}; expected at least 1, the mean's")
    if as_positive("shortfall", shortfall) > 1:
        raise ValueError(f"shortfall is {shortfall!r}; expected at most 1: features are positive")
    return -_as_count(n_features) * shortfall**2 / (2 * second_moment)


def _as_count(n_features: int) -> int:
    if as_integer("n_features", n_features) < 1:
        raise ValueError(f"n_features is {n_features!r}; expected at least 1")
    return n_features


def _relative_moments(
    query: npt.ArrayLike, key: npt.ArrayLike, value: npt.ArrayLike, scale: float | None
) -> tuple[Array, Array, Array, np.dtype[np.floating]]:
    """p (..., n_q, n), M (..., n_q, n, n), v_i - o (..., n_q, n, c), and the dtype."""
    Q = as_points("query", query)
    K, V = as_tokens("key", key, dim=Q.shape[-1]), as_tokens("value", value)
    n = K.shape[-2]
    if V.shape[-2] != n:
        raise ValueError(f"value has shape {V.shape}; expected (..., {n}, dim), one row a key")
    broadcast_axes("value", broadcast_axes("key", Q.shape[:-2], K.shape[:-2]), V.shape[:-2])
    dtype = common_dtype(Q, K, V)
    Q, K, V = (array.astype(np.float64) for array in (Q, K, V))
    s = as_scale(scale, Q.shape[-1])
    p = attention_weights(Q, K, scale=s)
    z = K[..., None, :, :] + Q[..., :, None, :]
    with np.errstate(all="ignore"):
        M = np.exp(s * np.matmul(z, np.swapaxes(z, -1, -2)))
        rest = V[..., None, :, :] - np.matmul(p, V)[..., :, None, :]
    return p, M, rest, dtype
