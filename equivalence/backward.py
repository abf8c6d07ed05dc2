"""The gradient of a scalar function of attention's output: reverse mode, a panel of rows at a time.

With g_i the gradient by the output o_i, s the scale and p_ij the weights, let
e_ij = p_ij (g_i.v_j - g_i.o_i). The gradients are

    by q_i: s sum_j e_ij k_j,   by k_j: s sum_i e_ij q_i,   by v_j: sum_i p_ij g_i,

the Jacobians of proofs/attention_gradients.py, each times g_i. As g_i.o_i = sum_j p_ij g_i.v_j,
no output is needed. A panel keeps kappa_ij and kappa_ij g_i.v_j / D_i of some queries and all keys,
so that each is computed once: five matrix products a score, where the attention itself has two.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from equivalence._arrays import (
    Array,
    as_shaped,
    broadcast_axes,
    common_dtype,
    compute_dtype,
)
from equivalence.exponential import exponential_of
from equivalence.memory import scratch
from equivalence.panels import AttentionGradients, Memory, Panel, cleared
from equivalence.products import columns
from equivalence.scores import Problem, as_values, of_heads
from equivalence.tiling import Tiles, even_parts, tasks

__all__ = ["AttentionGradients", "attention_backward"]

# A panel has 2 million pairs if it can: with fewer rows, sums over them are added up more often;
# with more, it is further from the cache.
_PANEL = 1 << 21
_FEWEST_ROWS, _MOST_ROWS = 128, 256
# So many bytes of a row's scores at a time: 256 keys in float64, 512 in float32. With more, what is
# read by columns takes its own place in the L1 cache. With a causal mask there are fewer: the
# fewer, the less is computed above its diagonal.
_KEY_BYTES, _CAUSAL_KEY_BYTES = 1 << 11, 1 << 10


def attention_backward(
    gradient: npt.ArrayLike,
    query: npt.ArrayLike,
    key: npt.ArrayLike,
    value: npt.ArrayLike,
    *,
    scale: float | None = None,
    mask: npt.ArrayLike | None = None,
    causal: bool = False,
) -> AttentionGradients:
    """The gradients of a function of attention(query, key, value), from that by the output.

    Parameters
    ----------
    gradient : array (..., n_q, c)
        The derivative by the output of attention.
    query, key, value : arrays (..., n_q, d), (..., n_k, d), (..., n_k, c)
        As in `attention`, and so are `scale`, `mask` and `causal`.

    Returns
    -------
    AttentionGradients of the common dtype of the four arrays.
        Where leading axes of an argument were broadcast, its gradient is summed over them. The
        gradient by a query that attends to no key is NaN, as its output is; to keys and values it
        adds nothing. A NaN or inf spoils the gradients by all that is attended with it.

    Raises
    ------
    ValueError, TypeError
        As in `attention`.

    Notes
    -----
    Memory beyond the result: two panels of 128 to 256 queries and all keys, copies of keys and
    values, and the gradients of all heads where an argument is broadcast.
    Source: proofs/attention_gradients.py.

    Examples
    --------
    >>> by = attention_backward([[1.0]], [[0.0]], [[1.0], [3.0]], [[2.0], [4.0]])
    >>> by.query, by.value
    (array([[1.]]), array([[0.5],
           [0.5]]))
    """
    problem = Problem.of(query, key, scale, mask, causal)
    V, n_q = as_values(value, problem), problem.query.shape[-2]
    G = as_shaped("gradient", gradient, n_q, V.shape[-1])
    batch = broadcast_axes("value", problem.batch, V.shape[:-2])
    batch = broadcast_axes("gradient", batch, G.shape[:-2])
    arguments = problem.query, problem.key, V
    dtype = common_dtype(G, *arguments)
    exact = np.dtype(compute_dtype(dtype))
    totals = [np.zeros((*batch, *x.shape[-2:]), exact) for x in arguments]
    with np.errstate(all="ignore"):
        _add_all(problem._replace(batch=batch), V, G, AttentionGradients(*totals))
        sums = (_summed(x, like.shape) for x, like in zip(totals, arguments, strict=True))
        return AttentionGradients(*(x.astype(dtype, copy=False) for x in sums))


def _summed(x: Array, shape: tuple[int, ...]) -> Array:
    """The sum over the leading axes along which an array of that shape was broadcast."""
    new = x.ndim - len(shape)
    old = [new + axis for axis, size in enumerate(shape[:-2]) if size != x.shape[new + axis]]
    total: Array = x.sum(axis=(*range(new), *old), keepdims=True) if new or old else x
    return total.reshape(shape)


def _tiles(problem: Problem, width: int, dtype: np.dtype[Any]) -> Tiles:
    n_q, n_k = problem.query.shape[-2], problem.key.shape[-2]
    most = (_CAUSAL_KEY_BYTES if problem.causal else _KEY_BYTES) // dtype.itemsize
    queries = min(n_q, max(_FEWEST_ROWS, min(_MOST_ROWS, _PANEL // n_k)))
    keys = even_parts(n_k, most)
    return Tiles(max(1, most * _MOST_ROWS // (queries * max(keys, width))), queries, keys)


def _add_all(problem: Problem, V: Array, G: Array, to: AttentionGradients) -> None:
    """Add what each panel contributes."""
    dtype, (n_q, d), (n_k, c) = to.key.dtype, problem.query.shape[-2:], V.shape[-2:]
    if n_k == 0:
        to.query.fill(np.nan)
    if n_k == 0 or n_q == 0:
        return
    _, base = exponential_of(problem, dtype)
    tiles = _tiles(problem, max(d, c), dtype)
    rows, width, n_blocks = tiles.queries, tiles.keys, -(-n_k // tiles.keys)
    for index, starts in tasks(problem.batch, n_q, tiles, 1):
        heads = problem.of_heads(index)
        v, g = (of_heads(x, problem.batch, index) for x in (V, G))
        (k, bad_key), (v, bad_value) = cleared(heads.key), cleared(v)
        bad = (bad_key | bad_value).astype(dtype)
        B = heads.batch
        tokens = (*B, rows, d), (*B, rows, c), (*B, n_k, d)
        transposed = (n_blocks, *B, d, width), (n_blocks, *B, c, width)
        each = (rows, 1), (rows, d), (width, d), (width, c)
        shapes = [*((*B, *shape) for shape in each), *2 * [(n_blocks, *B, rows, width)], (width, 1)]
        with scratch(dtype, *shapes, operands=(*tokens, *transposed)) as arrays:
            memory = Memory(*arrays)
            memory.ones.fill(1)
            np.copyto(memory.K, k, casting="same_kind")
            columns(k, width, memory.K_T)
            columns(v, width, memory.V_T)
            part_of = AttentionGradients(*(x[index] for x in to))
            for start in starts:
                queries = slice(start, min(start + rows, n_q))
                panel = Panel.of(heads, queries, memory)
                spoilt = panel.take_in(g[..., queries, :], base, bad if bad.any() else None)
                panel.add(panel.weigh(spoilt), part_of)
    np.multiply(to.query, dtype.type(problem.scale), out=to.query)
    np.divide(to.key, dtype.type(base), out=to.key)
