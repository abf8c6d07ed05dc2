"""Multi-head attention, and its dual with block-diagonal features.

    MHA(q) = W_O [o^1; ...; o^h] = sum_h W_O^h o^h,   W_O = [W_O^1, ..., W_O^h].

The heads are jointly one linear model. A token is one training pair a head, with the label W_O^h v
at features phi_joint(k) = [0; ...; phi_h(k); ...; 0], in the head's own block; the read-out is at
phi_joint(q) = [phi_1(q)/D_1(q); ...; phi_h(q)/D_h(q)], with one normaliser a head. One step then
gives W_1 = [W_O^1 W_1^1, ..., W_O^h W_1^h], and W_1 phi_joint(q) = MHA(q):
proofs/multi_head_attention.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from equivalence._arrays import (
    Array,
    as_real,
    as_shaped,
    as_tokens,
    broadcast_axes,
    common_dtype,
    compute_dtype,
)
from equivalence.attention import attention


def multi_head_attention(
    query: npt.ArrayLike,
    key: npt.ArrayLike,
    value: npt.ArrayLike,
    W_O: npt.ArrayLike | None = None,
    *,
    scale: float | None = None,
    mask: npt.ArrayLike | None = None,
    causal: bool = False,
) -> Array:
    """Attention of each head, the heads' outputs side by side, times W_O.

    Parameters
    ----------
    query, key, value : arrays (..., h, n_q, d), (..., h, n_k, d), (..., h, n_k, c)
        One head each along the third axis from the end; a key or a value of one head is shared by
        all. float64, float32, float16 (computed in float32) or integers (computed in float64).
    W_O : array (..., c_out, h c), optional
        The output matrix; its columns are the first head's, then the second head's, ... Without it
        the heads' outputs are concatenated and no more.
    scale, mask, causal
        As in `attention`; the mask broadcasts to (..., h, n_q, n_k).

    Returns
    -------
    array (..., n_q, c_out), or (..., n_q, h c) without W_O, of the common dtype of all arrays.

    Raises
    ------
    ValueError, TypeError
        As in `attention`, and for fewer than three axes or a W_O that does not fit.

    Notes
    -----
    Source: Vaswani et al. 2017, sec. 3.2.2; proofs/multi_head_attention.py.

    Examples
    --------
    >>> query, key = np.zeros((2, 1, 1)), np.zeros((2, 3, 1))
    >>> value = np.array([[[1.0], [2.0], [3.0]], [[4.0], [5.0], [6.0]]])
    >>> multi_head_attention(query, key, value)
    array([[2., 5.]])
    >>> multi_head_attention(query, key, value, [[1.0, 10.0]])
    array([[52.]])
    """
    given = {"query": query, "key": key, "value": value}
    Q, K, V = (as_shaped(name, x, "n_heads", "n_tokens", "dim") for name, x in given.items())
    dtype = common_dtype(Q, K, V) if W_O is None else common_dtype(Q, K, V, as_real("W_O", W_O))
    Q, K, V = (x.astype(compute_dtype(dtype), copy=False) for x in (Q, K, V))
    o = np.swapaxes(attention(Q, K, V, scale=scale, mask=mask, causal=causal), -3, -2)
    y = o.reshape(*o.shape[:-2], o.shape[-2] * o.shape[-1])
    if W_O is not None:
        y = _times(W_O, y)
    return y.astype(dtype, copy=False)


def joint_labels(value: npt.ArrayLike, W_O: npt.ArrayLike) -> Array:
    """The labels W_O^h v_j of the joint dual: head after head, and token after token in each.

    Values (..., h, n, c) and W_O (..., c_out, h c) give (..., h n, c_out), in their common dtype.
    ValueError for shapes that do not fit, TypeError for what is not real.

    >>> joint_labels([[[1.0], [2.0]], [[3.0], [4.0]]], [[1.0, 10.0]])
    array([[ 1.],
           [ 2.],
           [30.],
           [40.]])
    """
    V = as_shaped("value", value, "n_heads", "n_tokens", "n_outputs")
    h, n, c = V.shape[-3:]
    out = as_shaped("W_O", W_O, "n_outputs", h * c)
    broadcast_axes("W_O", V.shape[:-3], out.shape[:-2])
    dtype = common_dtype(V, out)
    V, out = (x.astype(compute_dtype(dtype), copy=False) for x in (V, out))
    blocks = out.reshape(*out.shape[:-1], h, c)
    with np.errstate(all="ignore"):
        labels = V @ np.moveaxis(blocks, -3, -1)
    return labels.reshape(*labels.shape[:-3], h * n, out.shape[-2]).astype(dtype, copy=False)


def joint_key_features(features: Sequence[npt.ArrayLike]) -> Array:
    """The heads' key features on the diagonal: a token in a head sees that head's features only.

    Arrays (..., n_h, m_h), one a head, give (..., sum n_h, sum m_h) in their common dtype.
    ValueError for shapes that do not fit or no head at all, TypeError for what is not real.

    >>> joint_key_features([[[1.0], [2.0]], [[3.0, 4.0]]])
    array([[1., 0., 0.],
           [2., 0., 0.],
           [0., 3., 4.]])
    """
    blocks = _of_heads(features)
    axes: tuple[int, ...] = ()
    for h, block in enumerate(blocks):
        axes = broadcast_axes(f"features[{h}]", axes, block.shape[:-2])
    n, m = (sum(block.shape[axis] for block in blocks) for axis in (-2, -1))
    joint = np.zeros((*axes, n, m), common_dtype(*blocks))
    row = column = 0
    for block in blocks:
        below, right = row + block.shape[-2], column + block.shape[-1]
        joint[..., row:below, column:right] = block
        row, column = below, right
    return joint


def joint_query_features(features: Sequence[npt.ArrayLike], D: Sequence[npt.ArrayLike]) -> Array:
    """The heads' query features side by side, each divided by its own head's D(q).

    Arrays (..., n_q, m_h) and D (..., n_q), one a head, give (..., n_q, sum m_h), in their common
    dtype. D = 0 gives NaN or inf. ValueError for shapes that do not fit, or no head at all,
    TypeError for what is not real.

    >>> joint_query_features([[[1.0]], [[3.0, 4.0]]], [[2.0], [10.0]])
    array([[0.5, 0.3, 0.4]])
    """
    blocks = _of_heads(features)
    divisors = [as_real(f"D[{h}]", divisor) for h, divisor in enumerate(D)]
    if len(divisors) != len(blocks):
        raise ValueError(f"D has {len(divisors)} heads; expected {len(blocks)}, as features has")
    axes = blocks[0].shape[:-1]
    for h, (block, divisor) in enumerate(zip(blocks, divisors, strict=True)):
        axes = broadcast_axes(f"features[{h}]", axes, block.shape[:-1])
        axes = broadcast_axes(f"D[{h}]", axes, divisor.shape)
    with np.errstate(all="ignore"):
        quotients = [
            np.broadcast_to(block, (*axes, block.shape[-1])) / divisor[..., None]
            for block, divisor in zip(blocks, divisors, strict=True)
        ]
    return np.concatenate(quotients, axis=-1)


def _of_heads(features: Sequence[npt.ArrayLike]) -> list[Array]:
    blocks = [as_tokens(f"features[{h}]", block) for h, block in enumerate(features)]
    if not blocks:
        raise ValueError("features has no heads; expected one array a head")
    return blocks


def _times(W_O: npt.ArrayLike, heads: Array) -> Array:
    """W_O [o^1; ...; o^h] of each token."""
    matrix = as_shaped("W_O", W_O, "n_outputs", heads.shape[-1])
    broadcast_axes("W_O", heads.shape[:-2], matrix.shape[:-2])
    with np.errstate(all="ignore"):
        y: Array = heads @ np.swapaxes(matrix, -1, -2)
    return y
