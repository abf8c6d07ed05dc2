"""Linear attention from any feature map: time in proportion to the tokens, and memory to none.

With phi in place of the exponential kernel, attention is

    o = S phi(q) / (n.phi(q)),   S = sum_j v_j phi(k_j)^T,   n = sum_j phi(k_j),

for one S and n of all tokens, or causal, of those up to the query's own. Both are the states of
equivalence.streaming, that here take in and answer a block of tokens at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import reduce
from itertools import accumulate, pairwise
from operator import add
from types import EllipsisType

import numpy as np
import numpy.typing as npt

from equivalence._arrays import (
    Array,
    as_points,
    as_positive_scale,
    as_tokens,
    broadcast_axes,
    common_dtype,
    compute_dtype,
)
from equivalence.features.base import FeatureMap, Features
from equivalence.streaming import AttentionState

# Features of so many tokens exist at a time: few for a cache, many for a product of matrices.
_BLOCK_TOKENS = 2048


def linear_attention(
    query: npt.ArrayLike,
    key: npt.ArrayLike,
    value: npt.ArrayLike,
    feature_map: FeatureMap,
    *,
    scale: float | None = None,
    causal: bool = False,
) -> Array:
    """Attention with the kernel phi(k).phi(q) of a feature map in place of exp(scale k.q).

    Parameters
    ----------
    query, key, value : arrays (..., n_q, d), (..., n_k, d), (..., n_k, c)
        As in `attention`; leading batch axes broadcast.
    feature_map : feature map
        Fitted, if it is one to fit; it sees queries and keys times the square root of the scale.
    scale : float, optional
        Positive, 1/sqrt(d) by default.
    causal : bool
        Query i attends to keys 0..i only; there must be one query for each key.

    Returns
    -------
    array (..., n_q, c) of the common dtype of query, key and value.
        It is softmax attention in the limit of many random features, and exactly with GramFeatures
        whose landmarks contain the keys. NaN without keys. A NaN or inf of a key or a value gives
        NaN or inf at every query that attends to it, of a query at its own row.

    Raises
    ------
    ValueError
        A shape, or a scale, that does not fit, by name; keys whose norms differ so much that one
        scale cannot carry their features.
    TypeError
        A dtype that is not a real number, a `causal` that is not a boolean, or a feature map that
        is none, or does not return Features.

    Notes
    -----
    Memory beyond the output is the features of about 2000 tokens, or one of each batch entry.
    Source: Katharopoulos et al. 2020, sec. 3.2; proofs/causal_streaming.py.

    Examples
    --------
    >>> from equivalence import attention
    >>> from equivalence.features import PositiveFeatures
    >>> rng = np.random.default_rng(0)
    >>> Q, K, V = rng.normal(size=(3, 6, 4)) / 2
    >>> phi = PositiveFeatures.sample(4, 4096, rng=rng, coupling="orthogonal", antithetic=True)
    >>> o = linear_attention(Q, K, V, phi, causal=True)
    >>> bool(abs(o - attention(Q, K, V, causal=True)).max() < 0.05)
    True
    """
    Q = as_points("query", query)
    K = as_tokens("key", key, dim=Q.shape[-1])
    V = as_tokens("value", value)
    n_q, n_k = Q.shape[-2], K.shape[-2]
    if V.shape[-2] != n_k:
        raise ValueError(
            f"value has shape {V.shape}; expected (..., {n_k}, c), one row for each key"
        )
    batch = broadcast_axes("key", Q.shape[:-2], K.shape[:-2])
    batch = broadcast_axes("value", batch, V.shape[:-2])
    if not isinstance(causal, bool | np.bool_):
        raise TypeError(f"causal is {causal!r}; expected True or False")
    if causal and n_q != n_k:
        raise ValueError(
            f"query has shape {Q.shape}; expected (..., {n_k}, {Q.shape[-1]}) for causal attention,"
            " one query for each key"
        )
    if isinstance(feature_map, type) or not callable(feature_map):
        raise TypeError(f"feature_map is {feature_map!r}; expected a feature map")
    dtype = common_dtype(Q, K, V)
    root_scale = math.sqrt(as_positive_scale(scale, Q.shape[-1]))
    Q, K, V = (x.astype(compute_dtype(dtype), copy=False) for x in (Q, K, V))

    def phi(*tokens: Array) -> Features:
        """The features of tokens (..., n, d), one after another."""
        ends = list(accumulate((X.shape[-2] for X in tokens), initial=0))
        points = np.empty((*tokens[0].shape[:-2], ends[-1], Q.shape[-1]), Q.dtype)
        with np.errstate(all="ignore"):
            for X, (start, end) in zip(tokens, pairwise(ends), strict=True):
                np.multiply(X, Q.dtype.type(root_scale), out=points[..., start:end, :])
            features = feature_map(points)
        if not isinstance(features, Features):
            was = type(features).__name__
            raise TypeError(f"feature_map returned {was}; expected Features of the points")
        return features

    step = max(1, _BLOCK_TOKENS // max(1, math.prod(batch)))
    if not causal and n_q + n_k <= step:
        # Of few tokens, a second call of the map is a good part of the time.
        of_queries, of_keys = _of_both(phi, Q, K)
        return AttentionState.of(of_keys, V).read(of_queries).astype(dtype, copy=False)
    output = np.empty((*batch, n_q, V.shape[-1]), dtype)
    if causal:
        before: AttentionState | None = None
        # Queries and keys at once: half as many of each.
        for rows in _blocks(n_k, max(1, step // 2)):
            output[rows], before = _extended(before, *_of_both(phi, Q[rows], K[rows]), V[rows])
    else:
        blocks = _blocks(n_k, step)
        state = reduce(add, (AttentionState.of(phi(K[rows]), V[rows]) for rows in blocks))
        for rows in _blocks(n_q, step):
            output[rows] = state.read(phi(Q[rows]))
    return output


def _of_both(phi: Callable[..., Features], Q: Array, K: Array) -> tuple[Features, Features]:
    """The features of queries and keys, of one call of phi where they have the same axes."""
    if Q.shape[:-2] != K.shape[:-2]:
        return phi(Q), phi(K)
    features, log_scale = phi(Q, K)
    n = Q.shape[-2]
    of_queries = Features(features[..., :n, :], log_scale[..., :n])
    return of_queries, Features(features[..., n:, :], log_scale[..., n:])


def _extended(
    before: AttentionState | None, of_queries: Features, of_keys: Features, V: Array
) -> tuple[Array, AttentionState]:
    """The causal outputs of some tokens, and the state after them; nothing may come before."""
    if before is None:
        n_features = of_keys.features.shape[-1]
        dtype = of_keys.features.dtype
        before = AttentionState.empty(V.shape[-1], n_features, dtype=dtype)
    return before.extend(of_queries, of_keys, V)


def _blocks(n: int, step: int) -> Iterator[tuple[EllipsisType, slice, slice]]:
    """The rows of every batch entry, `step` at a time; of no rows, one empty block."""
    for start in range(0, max(n, 1), step):
        yield np.s_[..., start : start + step, :]
