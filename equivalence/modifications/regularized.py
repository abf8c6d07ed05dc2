"""Attention whose dual has a penalty on its weights: the query-side tokens count less.

One step on L(W) + (alpha/(2 eta)) |W|_F^2 is W_1 = (1 - alpha) W_0 + (1/D) sum_i v_i phi(k_i)^T, so
the values of the query-side tokens t are multiplied by 1 - alpha, and the denominators stay:
proofs/regularized_attention.py.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from equivalence import dual
from equivalence._arrays import (
    Array,
    as_demonstrations,
    as_number,
    as_positive,
    as_real,
    broadcast_axes,
)
from equivalence.attention import attention
from equivalence.modifications.base import modifiable


def regularized_attention(
    query: npt.ArrayLike,
    key: npt.ArrayLike,
    value: npt.ArrayLike,
    *,
    alpha: float,
    n_demonstrations: int | None = None,
    scale: float | None = None,
    mask: npt.ArrayLike | None = None,
    causal: bool = False,
) -> Array:
    """Attention with the values of the query-side tokens times 1 - alpha, weights as they are.

    o = sum_i p_i v_i + (1 - alpha) sum_t p_t v_t, demonstrations i and query-side tokens t.

    Parameters
    ----------
    query, key, value : arrays (..., n_q, d), (..., n, d), (..., n, c)
        As in `attention`, and so are `scale`, `mask` and `causal`.
    alpha : float
        Strength of the penalty. 0 gives attention, 1 forgets the query-side tokens' values.
    n_demonstrations : int, optional
        The first tokens are demonstrations i, the rest are query-side tokens t. All are
        demonstrations by default: then W_0 = 0, nothing can shrink, and the layer is attention.

    Returns
    -------
    array (..., n_q, c) of the common dtype of query, key and value.
        The weights of the values sum to 1 - alpha p_T, with p_T = sum_t p_t. NaN as in `attention`.

    Raises
    ------
    ValueError
        As in `attention`; an `alpha` that is not finite, an `n_demonstrations` outside 0..n.
    TypeError
        As in `attention`; an `alpha` that is no number, an `n_demonstrations` that is no integer.

    Notes
    -----
    Source: Ren & Liu (arXiv 2310.13220); proofs/regularized_attention.py.

    Examples
    --------
    >>> regularized_attention(
    ...     [[0.0]], [[1.0], [1.0]], [[2.0], [4.0]], alpha=0.5, n_demonstrations=1
    ... )
    array([[2.]])
    """
    V, dtype = modifiable(query, key, value)
    n = V.shape[-2]
    N = as_demonstrations(n_demonstrations, n, "values")
    kept = np.where(np.arange(n) < N, 1.0, 1.0 - as_number("alpha", alpha))
    with np.errstate(all="ignore"):
        V = V * kept.astype(V.dtype)[:, None]
    output = attention(query, key, V, scale=scale, mask=mask, causal=causal)
    return output.astype(dtype, copy=False)


def regularized_loss(
    W: npt.ArrayLike,
    values: npt.ArrayLike,
    features: npt.ArrayLike,
    D: npt.ArrayLike,
    learning_rate: float = 1.0,
    *,
    alpha: float,
) -> Array:
    """L(W) + (alpha/(2 eta)) |W|_F^2, with L as in `dual.loss`: one number for each D.

    Arguments, dtypes and errors as in `equivalence.dual`.

    >>> W, v, phi = np.array([[1.0]]), np.array([[2.0]]), np.array([[3.0]])
    >>> float(regularized_loss(W, v, phi, 2.0, alpha=0.5))
    -2.75
    """
    L = dual.loss(W, values, features, D, learning_rate)
    W = as_real("W", W).astype(L.dtype, copy=False)
    half = as_number("alpha", alpha) / (2 * as_positive("learning_rate", learning_rate))
    with np.errstate(all="ignore"):
        penalty = L.dtype.type(half) * np.einsum("...cm,...cm->...", W, W)
        regularized: Array = L + penalty
    return regularized


def regularized_gradient(
    W: npt.ArrayLike,
    values: npt.ArrayLike,
    features: npt.ArrayLike,
    D: npt.ArrayLike,
    learning_rate: float = 1.0,
    *,
    alpha: float,
) -> Array:
    """grad L(W) + (alpha/eta) W: (..., c, m), the gradient of `regularized_loss` at W.

    Arguments, dtypes and errors as in `equivalence.dual`. It depends on W: two steps of half the
    rate are not one step of the whole rate.

    >>> W, v, phi = np.array([[1.0]]), np.array([[2.0]]), np.array([[3.0]])
    >>> regularized_gradient(W, v, phi, 2.0, alpha=0.5)
    array([[-2.5]])
    """
    slope = dual.gradient(values, features, D, learning_rate)
    W = as_real("W", W)
    if W.ndim < 2 or W.shape[-2:] != slope.shape[-2:]:
        c, m = slope.shape[-2:]
        raise ValueError(f"W has shape {W.shape}; expected (..., {c}, {m})")
    broadcast_axes("W", slope.shape[:-2], W.shape[:-2])
    decay = as_number("alpha", alpha) / as_positive("learning_rate", learning_rate)
    with np.errstate(all="ignore"):
        return slope + slope.dtype.type(decay) * W
