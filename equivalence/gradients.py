"""The derivatives of attention, and those of its dual, which must differentiate D(q) too.

With s the scale, p_j the weights, o = sum_j p_j v_j and kbar = sum_j p_j k_j,

    do/dq = s sum_j p_j v_j (k_j - kbar)^T,   do/dk_j = s p_j (v_j - o) q^T,   do/dv_j = p_j I.

The first one is the covariance of values and keys under the weights. The proof is in
proofs/attention_gradients.py.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from equivalence._arrays import (
    Array,
    as_points,
    as_positive_scale,
    as_scale,
    as_tokens,
    broadcast_axes,
    common_dtype,
    compute_dtype,
)
from equivalence.attention import attention_weights
from equivalence.dual import OneStepRegressor


class AttentionJacobians(NamedTuple):
    """The derivatives of the output of each query, as compact as they are exact.

    A row of the output depends on one query, on every key and on every value. The derivatives by a
    key are of rank one, those by a value a multiple of the identity, so only a factor is kept.

    Attributes
    ----------
    query : array (..., n_q, c, d)
        do/dq.
    key : array (..., n_q, n_k, c)
        s p_j (v_j - o): do/dk_j is its outer product with the query, `key[..., j, :] q^T`.
    value : array (..., n_q, n_k)
        p_j: do/dv_j is `value[..., j]` times the identity (c, c).
    """

    query: Array
    key: Array
    value: Array


def attention_jacobians(
    query: npt.ArrayLike, key: npt.ArrayLike, value: npt.ArrayLike, *, scale: float | None = None
) -> AttentionJacobians:
    """The derivatives of `attention(query, key, value)` by query, key and value.

    Parameters
    ----------
    query, key, value : arrays (..., n_q, d), (..., n_k, d), (..., n_k, c)
        float64, float32, float16 (computed in float32) or integers (computed in float64).
        Leading batch axes broadcast.
    scale : float, optional
        Factor of the scores, 1/sqrt(d) by default.

    Returns
    -------
    AttentionJacobians of the common dtype of query, key and value.
        Where the output is NaN (no keys, a NaN or inf, overflow), its derivative by the query is.

    Raises
    ------
    ValueError
        A shape, or a scale, that does not fit; the message names the argument.
    TypeError
        A dtype that is not a real number.

    Notes
    -----
    Memory: one array (..., n_q, n_k, c) beyond the result.
    Source: proofs/attention_gradients.py.

    Examples
    --------
    Two keys that the query cannot tell apart: moving it by t prefers the larger one.

    >>> by = attention_jacobians([[0.0]], [[1.0], [3.0]], [[2.0], [4.0]])
    >>> by.query, by.value
    (array([[[1.]]]), array([[0.5, 0.5]]))
    """
    Q = as_points("query", query)
    K, V = as_tokens("key", key, dim=Q.shape[-1]), as_tokens("value", value)
    n_k = K.shape[-2]
    if V.shape[-2] != n_k:
        raise ValueError(
            f"value has shape {V.shape}; expected (..., {n_k}, c), one row for each key of shape "
            f"{K.shape}"
        )
    batch = broadcast_axes("key", Q.shape[:-2], K.shape[:-2])
    broadcast_axes("value", batch, V.shape[:-2])
    s = as_scale(scale, Q.shape[-1])
    dtype = common_dtype(Q, K, V)
    Q, K, V = (x.astype(compute_dtype(dtype), copy=False) for x in (Q, K, V))
    with np.errstate(all="ignore"):
        p = attention_weights(Q, K, scale=s)
        o = p @ V
        # The derivative by the score of token j: its value's distance from the output counts.
        by_score = p[..., None] * (V[..., None, :, :] - o[..., None, :])
        by_query = np.swapaxes(by_score, -1, -2) @ K[..., None, :, :]
        if n_k == 0:
            by_query.fill(np.nan)
        jacobians = (V.dtype.type(s) * by_query, V.dtype.type(s) * by_score, p)
        return AttentionJacobians(*(x.astype(dtype, copy=False) for x in jacobians))


def dual_jacobian(
    model: OneStepRegressor, queries: npt.ArrayLike, *, freeze_normalizer: bool = False
) -> Array:
    """The derivative of the dual's prediction W_1(q) phi(q) by the query.

    Parameters
    ----------
    model : OneStepRegressor
        A fitted one, whose feature map has a `jacobian`, as GramFeatures have.
    queries : array (..., n_q, d)
    freeze_normalizer : bool
        Take D, and W_1 with it, as constants: then the result is s o kbar^T too large, and not the
        derivative of attention.

    Returns
    -------
    array (..., n_q, c, d) of the dtype that the model predicts in.

    Raises
    ------
    ValueError
        Queries of another dimension, or a model before `fit`.
    TypeError
        A model whose feature map has no `jacobian`.

    Notes
    -----
    W_1(q) = coef_ / D(q), so with A = coef_ and n = normalizer_ the derivative is
    (A phi'(q) - o (n.phi'(q))^T) / D(q); the second term is what a frozen D leaves out.
    Source: proofs/attention_gradients.py.

    Examples
    --------
    >>> model = OneStepRegressor().fit([[1.0], [3.0]], [[2.0], [4.0]])
    >>> dual_jacobian(model, [[0.0]]).round(12)
    array([[[1.]]])
    >>> dual_jacobian(model, [[0.0]], freeze_normalizer=True).round(12)
    array([[[7.]]])
    """
    o = model.predict(queries)
    phi = model.feature_map_
    if not hasattr(phi, "jacobian"):
        raise TypeError(
            f"model has the feature map {phi!r}; expected one with a jacobian, such as "
            "GramFeatures()"
        )
    Q = as_tokens("queries", queries)
    Q = Q.astype(compute_dtype(Q.dtype), copy=False)
    root = Q.dtype.type(math.sqrt(as_positive_scale(model.scale, model.n_features_in_)))
    with np.errstate(all="ignore"):
        f, slope = phi(Q * root).features, phi.jacobian(Q * root)
        D = np.einsum("...m,...qm->...q", model.normalizer_, f)[..., None, None]
        by_query = model.coef_[..., None, :, :] @ slope
        if not freeze_normalizer:
            by_D = np.einsum("...m,...qml->...ql", model.normalizer_, slope)
            by_query = by_query - o[..., None] * by_D[..., None, :]
        jacobian: Array = root * by_query / D
        return jacobian.astype(o.dtype, copy=False)
