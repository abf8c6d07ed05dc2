"""Positions: rotary ones turn keys and queries, additive ones weigh the loss of the dual.

Rotary: the pair l of coordinates of a token at position p turns by the angle p base^(-2l/d). The
feature map sees the turned keys and queries, so the dual of rotary attention is the one-step model
on the turned keys, read at the turned queries. A bias b_ij of the scores multiplies the weight of
the pair by e^{b_ij}: the loss of query i weighs token j by it, `OneStepRegressor.fit(bias=...)`.
The proof is in proofs/positions.py.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from equivalence._arrays import (
    Array,
    as_points,
    as_positive,
    as_real,
    as_tokens,
    broadcast_axes,
    common_dtype,
    compute_dtype,
)
from equivalence.attention import attention


def rotary(
    x: npt.ArrayLike,
    positions: npt.ArrayLike | None = None,
    *,
    base: float = 10000.0,
    interleaved: bool = True,
) -> Array:
    """Turn pair l of the coordinates of each token by its position times base^(-2l/d).

    The scores of turned queries and keys depend on positions through their difference alone.

    Parameters
    ----------
    x : array (..., n, d), d even
    positions : array (..., n), optional
        0, 1, ..., n - 1 by default; any real numbers. Leading axes broadcast with those of x.
    base : float
    interleaved : bool
        A pair is (x_{2l}, x_{2l+1}), as in RoFormer; or (x_l, x_{l+d/2}), "rotate half", as in
        GPT-NeoX. The two differ by a permutation of the coordinates, and a model trained with one
        does not work with the other.

    Returns
    -------
    array (..., n, d) of the dtype of x; the angles are computed in float64.

    Raises
    ------
    ValueError
        An odd d, positions that are not one for each token, or a base that is not positive.
    TypeError
        Dtypes that are no real numbers.

    Notes
    -----
    Source: Su et al. 2021 (RoFormer), eq. 34; proofs/positions.py.

    Examples
    --------
    >>> rotary([[1.0, 0.0], [1.0, 0.0]], [0, np.pi / 2]).round(15) + 0.0
    array([[1., 0.],
           [0., 1.]])
    """
    X = as_points("x", x)
    return _turned("x", X, "positions", positions, base, interleaved).astype(X.dtype, copy=False)


def rotary_attention(
    query: npt.ArrayLike,
    key: npt.ArrayLike,
    value: npt.ArrayLike,
    *,
    query_positions: npt.ArrayLike | None = None,
    key_positions: npt.ArrayLike | None = None,
    base: float = 10000.0,
    interleaved: bool = True,
    scale: float | None = None,
    mask: npt.ArrayLike | None = None,
    causal: bool = False,
) -> Array:
    """Attention with rotary positions: queries and keys are turned, values are not.

    Parameters
    ----------
    query, key, value, scale, mask, causal
        As in `attention`.
    query_positions, key_positions : arrays (..., n_q), (..., n_k), optional
        As in `rotary`; a query that goes on after 10 cached keys is at position 10.
    base, interleaved
        As in `rotary`.

    Returns
    -------
    array (..., n_q, c) of the common dtype of query, key and value.

    Raises
    ------
    ValueError, TypeError
        As in `rotary` and `attention`.

    Notes
    -----
    Source: Su et al. 2021 (RoFormer), eq. 16; proofs/positions.py.

    Examples
    --------
    >>> Q, K, V = np.array([[1.0, 0.0]]), np.array([[2.0, 1.0], [0.0, 1.0]]), np.eye(2)
    >>> first = rotary_attention(Q, K, V, query_positions=[1])
    >>> later = rotary_attention(Q, K, V, query_positions=[8], key_positions=[7, 8])
    >>> bool(np.allclose(first, later, rtol=1e-14, atol=0))
    True
    """
    Q, K, V = as_points("query", query), as_points("key", key), as_tokens("value", value)
    output = attention(
        _turned("query", Q, "query_positions", query_positions, base, interleaved),
        _turned("key", K, "key_positions", key_positions, base, interleaved),
        V,
        scale=scale,
        mask=mask,
        causal=causal,
    )
    return output.astype(common_dtype(Q, K, V), copy=False)


def _turned(
    name: str,
    x: Array,
    name_of_positions: str,
    positions: npt.ArrayLike | None,
    base: float,
    interleaved: bool,
) -> Array:
    """The turned tokens, in the dtype that is computed in."""
    n, d = x.shape[-2:]
    if d % 2:
        raise ValueError(f"{name} has shape {x.shape}; expected an even last axis, of pairs")
    if not isinstance(interleaved, bool | np.bool_):
        raise TypeError(f"interleaved is {interleaved!r}; expected True or False")
    p = as_real(name_of_positions, np.arange(n) if positions is None else positions)
    if p.shape[-1:] != (n,):
        raise ValueError(
            f"{name_of_positions} has shape {p.shape}; expected (..., {n}), one for each token"
        )
    batch = broadcast_axes(name_of_positions, x.shape[:-2], p.shape[:-1])
    dtype = compute_dtype(x.dtype)
    shape, axis = ((d // 2, 2), -1) if interleaved else ((2, d // 2), -2)
    pairs = x.astype(dtype, copy=False).reshape(*x.shape[:-1], *shape)
    first, second = np.moveaxis(pairs, axis, 0)
    frequency = as_positive("base", base) ** (-np.arange(0, d, 2) / d)
    with np.errstate(all="ignore"):
        angle = p.astype(np.float64)[..., None] * frequency
        cos, sin = np.cos(angle).astype(dtype), np.sin(angle).astype(dtype)
        turned = np.stack([first * cos - second * sin, first * sin + second * cos], axis=axis)
    return turned.reshape(*batch, n, d)
