"""The gradient of a scalar function of attention's output: reverse mode, a panel of rows at a time.

With g_i the gradient by the output o_i, s the scale and p_ij the weights, let
e_ij = p_ij (g_i.v_j - g_i.o_i). The gradients are

    by q_i: s sum_j e_ij k_j,   by k_j: s sum_i e_ij q_i,   by v_j: sum_i p_ij g_i,

the Jacobians of proofs/attention_gradients.py, each times g_i. As g_i.o_i = sum_j p_ij g_i.v_j,
no output is needed. A panel keeps kappa_ij and g_i.v_j of some queries and all keys, so that each
is computed once: five matrix products a score, where the attention itself has two.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from equivalence._arrays import (
    Array,
    as_shaped,
    broadcast_axes,
    common_dtype,
    compute_dtype,
)
from equivalence.blocked import fast_exponential, for_products
from equivalence.scores import Problem, as_values
from equivalence.tiling import Tiles, scratch, tasks

# A panel has 1 million pairs if it can: with fewer rows than 128, products with the transposed
# weights are slow, and blocks of more than 256 by 256 do not fit a cache together.
_PANEL = 1 << 20
_FEWEST_ROWS, _MOST_ROWS = 128, 256
_KEYS = 256


class AttentionGradients(NamedTuple):
    """The gradients by query, key and value, each of its argument's shape."""

    query: Array
    key: Array
    value: Array


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
    Memory: two panels of 128 rows of scores beyond the result, and the gradients of all heads
    where an argument is broadcast.
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


def _add_all(problem: Problem, V: Array, G: Array, to: AttentionGradients) -> None:
    """Add what each panel contributes."""
    dtype, (n_q, d), (n_k, c) = to.key.dtype, problem.query.shape[-2:], V.shape[-2:]
    if n_k == 0:
        to.query.fill(np.nan)
    if n_k == 0 or n_q == 0:
        return
    rows = min(n_q, max(_FEWEST_ROWS, min(_MOST_ROWS, _PANEL // n_k)))
    width, n_blocks = min(n_k, _KEYS), -(-n_k // _KEYS)
    tiles = Tiles(max(1, _KEYS * _MOST_ROWS // (rows * max(width, c, d))), rows, width)
    for index, starts in tasks(problem.batch, n_q, tiles, 1):
        heads = problem.of_heads(index)
        heads = heads._replace(key=for_products(heads.key, dtype))
        v, g = (np.broadcast_to(x, (*problem.batch, *x.shape[-2:]))[index] for x in (V, G))
        v, part_of = for_products(v, dtype), AttentionGradients(*(x[index] for x in to))
        K = _without_bad(heads.key)
        each = [(rows, d), (rows, c), (rows, d), (rows, c), (width, d), (width, c)]
        kept = [(n_blocks, *heads.batch, rows, size) for size in (width, width, 1, 1, 1)]
        with scratch(dtype, *((*heads.batch, *shape) for shape in each), *kept) as memory:
            for start in starts:
                part = slice(start, min(start + rows, n_q))
                panel = _Panel.of(heads, v, g[..., part, :], part, memory)
                panel.fill()
                panel.add(K, part_of, memory[2:6])


class _Block(NamedTuple):
    """Some keys, the rows of the panel that attend to them, and what is kept of these pairs.

    kappa is exp(score - shift), `products` is g.v; D and `moved` are the sums over these keys of
    kappa, and of kappa g.v.
    """

    part: slice
    queries: slice
    keys: slice
    kappa: Array
    products: Array
    shift: Array
    D: Array
    moved: Array

    def add_up(self) -> None:
        """Fill D and `moved`."""
        ones = np.ones((self.kappa.shape[-1], 1), self.kappa.dtype)
        np.matmul(self.kappa, ones, out=self.D)
        np.einsum("...j,...j->...", self.kappa, self.products, out=self.moved[..., 0])


class _Panel(NamedTuple):
    """Some queries, times the scale and `base`, their g, and a block for each of their keys.

    kappa is `exponential` of the scores times `base`.
    """

    problem: Problem
    V: Array
    rows: slice
    Q: Array
    G: Array
    blocks: list[_Block]
    exponential: np.ufunc
    base: float

    @classmethod
    def of(
        cls, problem: Problem, V: Array, gradient: Array, rows: slice, memory: list[Array]
    ) -> _Panel:
        n, dtype = rows.stop - rows.start, V.dtype
        exponential, base = (np.exp, 1.0) if problem.is_biased else fast_exponential(dtype)
        Q, G = (array[..., :n, :] for array in memory[:2])
        G[...] = gradient
        factor = dtype.type(problem.scale * base)
        np.multiply(problem.query[..., rows, :], factor, out=Q, dtype=dtype, casting="same_kind")
        blocks = []
        for i, (queries, keys) in enumerate(problem.tiles(rows, memory[4].shape[-2])):
            part, size = slice(queries.start - rows.start, n), keys.stop - keys.start
            kept = (array[i][..., part, :size] for array in memory[6:])
            blocks.append(_Block(part, queries, keys, *kept))
        return cls(problem, V, rows, Q, G, blocks, exponential, base)

    def fill(self) -> None:
        """Compute what the blocks keep, each shifted by the largest score so far."""
        largest = np.full((*self.Q.shape[:-1], 1), -np.inf, self.Q.dtype)
        for block in self.blocks:
            scores, now = block.kappa, largest[..., block.part, :]
            K, V = (x[..., block.keys, :] for x in (self.problem.key, self.V))
            np.matmul(self.Q[..., block.part, :], np.swapaxes(K, -1, -2), out=scores)
            self.problem.exclude(scores, block.queries, block.keys)
            np.maximum(now, scores.max(axis=-1, keepdims=True), out=now)
            # While no key is attended there is nothing to shift, and -inf - -inf would be NaN.
            block.shift[...] = np.where(np.isneginf(now), 0, now)
            scores -= block.shift
            self.exponential(scores, out=block.kappa)
            np.matmul(self.G[..., block.part, :], np.swapaxes(V, -1, -2), out=block.products)
            block.add_up()

    def sums(self) -> tuple[Array, Array, list[Array]]:
        """D, D g.o (..., rows, 1), and what makes kappa of each block exp(score - last shift)."""
        last = np.zeros((*self.Q.shape[:-1], 1), self.Q.dtype)
        for block in self.blocks:
            last[..., block.part, :] = block.shift
        D, moved, factors = np.zeros_like(last), np.zeros_like(last), []
        for block in self.blocks:
            factor = self.exponential(block.shift - last[..., block.part, :])
            D[..., block.part, :] += factor * block.D
            moved[..., block.part, :] += factor * block.moved
            factors.append(factor)
        return D, moved, factors

    def spoil(self) -> npt.NDArray[np.bool_]:
        """Make kappa NaN where something attended is not finite; return which rows are good.

        What is not attended has kappa 0, and whatever multiplies kappa is finite.
        """
        for block in self.blocks:
            for array in (block.kappa, block.products):
                self.problem.exclude(array, block.queries, block.keys, to=0.0)
            block.add_up()
        D, moved, _ = self.sums()
        good = np.isfinite(D) & np.isfinite(moved)
        for block in self.blocks:
            bad = ~good[..., block.part, :]
            for array in (block.products, block.shift):
                np.copyto(array, 0, where=bad)
            np.copyto(block.kappa, np.nan, where=bad)
            self.problem.exclude(block.kappa, block.queries, block.keys, to=0.0)
        return good

    def add(self, K: Array, to: AttentionGradients, memory: list[Array]) -> None:
        """Add what the panel contributes; K are its keys, without what is not finite."""
        D, moved, factors = self.sums()
        if not np.isfinite(moved).all():
            good = self.spoil()
            D, moved, factors = self.sums()
            D, moved = np.where(good, D, 1), np.where(good, moved, 0)
        for array in (self.Q, self.G):  # it counts by its kappa, and 0 times it is 0
            np.copyto(array, 0, where=~np.isfinite(array))
        attends = D != 0
        mean = np.divide(moved, D, out=np.zeros_like(D), where=attends)
        by_query, scale = to.query[..., self.rows, :], self.problem.scale
        for (part, _, keys, kappa, e, *_), factor in zip(self.blocks, factors, strict=True):
            to_p = np.divide(factor, D[..., part, :], out=factor, where=attends[..., part, :])
            e -= mean[..., part, :]
            e *= kappa
            of_q, of_g = (array[..., : factor.shape[-2], :] for array in memory[:2])
            of_k, of_v = (array[..., : keys.stop - keys.start, :] for array in memory[2:])
            np.matmul(e, K[..., keys, :], out=of_q)
            by_query[..., part, :] += np.multiply(of_q, to_p * e.dtype.type(scale), out=of_q)
            np.multiply(self.Q[..., part, :], to_p / e.dtype.type(self.base), out=of_q)
            np.multiply(self.G[..., part, :], to_p, out=of_g)
            to.key[..., keys, :] += np.matmul(np.swapaxes(e, -1, -2), of_q, out=of_k)
            to.value[..., keys, :] += np.matmul(np.swapaxes(kappa, -1, -2), of_g, out=of_v)
        np.copyto(by_query, np.nan, where=~attends)


def _without_bad(x: Array) -> Array:
    finite = np.isfinite(x)
    return x if finite.all() else np.where(finite, x, x.dtype.type(0))
