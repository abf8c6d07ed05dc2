"""The gradient of a scalar function of attention's output: reverse mode, a panel of rows at a time.

With g_i the gradient by the output o_i, s the scale and p_ij the weights, let
e_ij = p_ij (g_i.v_j - g_i.o_i). The gradients are

    by q_i: s sum_j e_ij k_j,   by k_j: s sum_i e_ij q_i,   by v_j: sum_i p_ij g_i,

the Jacobians of proofs/attention_gradients.py, each times g_i. As g_i.o_i = sum_j p_ij g_i.v_j,
no output is needed. A panel keeps kappa_ij and kappa_ij g_i.v_j / D_i of some queries and all keys,
so that each is computed once: five matrix products a score, where the attention itself has two.
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
from equivalence.blocked import exponential_of, for_products, kernel_of
from equivalence.products import columns, product
from equivalence.scores import Problem, as_values
from equivalence.tiling import Tiles, scratch, tasks

# A panel has 2 million pairs if it can: with fewer rows, sums over them are added up more often;
# with more, it is further from the cache.
_PANEL = 1 << 21
_FEWEST_ROWS, _MOST_ROWS = 128, 256
# So many keys at a time; the fewer, the less is computed above a causal mask's diagonal.
_KEYS, _CAUSAL_KEYS = 1024, 256


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
    Memory beyond the result: two panels of 128 to 256 queries and all keys, transposed copies of
    keys and values, and the gradients of all heads where an argument is broadcast.
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


def _tiles(problem: Problem, width: int) -> Tiles:
    n_q, n_k = problem.query.shape[-2], problem.key.shape[-2]
    most = _CAUSAL_KEYS if problem.causal else _KEYS
    queries = min(n_q, max(_FEWEST_ROWS, min(_MOST_ROWS, _PANEL // n_k)))
    keys = min(n_k, most)
    return Tiles(max(1, most * _MOST_ROWS // (queries * max(keys, width))), queries, keys)


def _add_all(problem: Problem, V: Array, G: Array, to: AttentionGradients) -> None:
    """Add what each panel contributes."""
    dtype, (n_q, d), (n_k, c) = to.key.dtype, problem.query.shape[-2:], V.shape[-2:]
    if n_k == 0:
        to.query.fill(np.nan)
    if n_k == 0 or n_q == 0:
        return
    _, base = exponential_of(problem, dtype)
    tiles = _tiles(problem, max(d, c))
    rows, width, n_blocks = tiles.queries, tiles.keys, -(-n_k // tiles.keys)
    for index, starts in tasks(problem.batch, n_q, tiles, 1):
        heads = problem.of_heads(index)
        v, g = (np.broadcast_to(x, (*problem.batch, *x.shape[-2:]))[index] for x in (V, G))
        (K, bad_key), (v, bad_value) = _finite(for_products(heads.key, dtype)), _finite(v)
        bad = (bad_key | bad_value).astype(dtype)
        heads = heads._replace(key=K)
        each = [(rows, d), (rows, c), (rows, 1), (rows, width), (rows, d), (width, d), (width, c)]
        blocks = [(d, width), (c, width), (rows, width), (rows, width)]
        shapes = [(*heads.batch, *shape) for shape in each]
        shapes += [(n_blocks, *heads.batch, *shape) for shape in blocks]
        with scratch(dtype, *shapes, (width, 1)) as arrays:
            memory = _Memory(*arrays)
            memory.ones.fill(1)
            columns(K, width, memory.K_T)
            columns(v, width, memory.V_T)
            part_of = AttentionGradients(*(x[index] for x in to))
            for start in starts:
                queries = slice(start, min(start + rows, n_q))
                panel = _Panel.of(heads, queries, memory)
                spoilt = panel.take_in(g[..., queries, :], base, bad if bad.any() else None)
                panel.add(panel.weigh(spoilt), part_of)
    np.multiply(to.query, dtype.type(problem.scale), out=to.query)
    np.divide(to.key, dtype.type(base), out=to.key)


def _finite(X: Array) -> tuple[Array, npt.NDArray[np.bool_]]:
    """X with 0 for what is not finite, and (..., n, 1) which rows had such entries."""
    finite = np.isfinite(X)
    if finite.all():
        return X, np.zeros((*X.shape[:-1], 1), bool)
    return np.where(finite, X, X.dtype.type(0)), ~np.all(finite, axis=-1, keepdims=True)


class _Memory(NamedTuple):
    """For a panel: its Q, g, D and parts of the sums; for each block of keys, what it keeps."""

    Q: Array
    G: Array
    D: Array
    e: Array
    of_q: Array
    of_k: Array
    of_v: Array
    K_T: Array
    V_T: Array
    kappa: Array
    moved: Array
    ones: Array


class _Block(NamedTuple):
    """Some keys, the rows of the panel that attend to them, and what is kept of these pairs.

    kappa is a multiple of the weights, and `moved` is kappa g.v / D.
    """

    part: slice
    queries: slice
    keys: slice
    K_T: Array
    V_T: Array
    kappa: Array
    moved: Array


class _Panel(NamedTuple):
    """Some queries times what their scores have to have as a factor, their g, and their blocks."""

    problem: Problem
    rows: slice
    Q: Array
    G: Array
    D: Array
    blocks: list[_Block]
    memory: _Memory

    @classmethod
    def of(cls, problem: Problem, rows: slice, memory: _Memory) -> _Panel:
        n, blocks = rows.stop - rows.start, []
        for i, (queries, keys) in enumerate(problem.tiles(rows, memory.kappa.shape[-1])):
            part, size = slice(queries.start - rows.start, n), keys.stop - keys.start
            transposed = (x[i][..., :size] for x in (memory.K_T, memory.V_T))
            pairs = (x[i][..., part, :size] for x in (memory.kappa, memory.moved))
            blocks.append(_Block(part, queries, keys, *transposed, *pairs))
        Q, G, D = (x[..., :n, :] for x in memory[:3])
        return cls(problem, rows, Q, G, D, blocks, memory)

    def take_in(self, gradient: Array, base: float, bad: Array | None) -> npt.NDArray[np.bool_]:
        """Fill Q and G; return (..., n, 1) which rows something that is not finite spoils.

        That is of the row itself, or one of the tokens it attends to; `bad` says which these are.
        """
        (Q, G), dtype = (self.Q, self.G), self.Q.dtype
        factor = dtype.type(self.problem.scale * base)
        queries = self.problem.query[..., self.rows, :]
        np.multiply(queries, factor, out=Q, dtype=dtype, casting="same_kind")
        G[...] = gradient
        spoilt = np.zeros(self.D.shape, bool)
        for X in (Q, G):
            clean, own = _finite(X)
            if clean is not X:
                X[...] = clean
            spoilt |= own
        if bad is not None:
            for block in self.blocks:
                attended = block.kappa
                attended.fill(1)
                self.problem.exclude(attended, block.queries, block.keys, to=0.0)
                spoilt[..., block.part, :] |= attended @ bad[..., block.keys, :] > 0
        return spoilt

    def weigh(self, spoilt: npt.NDArray[np.bool_]) -> Array:
        """Fill kappa, NaN where spoilt, and D; return 1/D, 0 where no key is attended."""
        self.without_shift()
        u, D = float(np.finfo(self.D.dtype).eps) / 2, self.D
        if not (D.min(initial=1) >= u and D.max(initial=1) <= 1 / u):
            self.with_shift()
            spoilt = spoilt | ~np.isfinite(D)
        if spoilt.any():
            np.copyto(D, 1, where=spoilt & (D != 0))
            self.spoil(spoilt)
        return np.divide(1, D, out=np.zeros_like(D), where=D != 0)

    def without_shift(self) -> None:
        """Fill kappa and D from the scores as they are."""
        self.D.fill(0)
        for block in self.blocks:
            scores = product(self.Q[..., block.part, :], block.K_T, block.kappa)
            kernel_of(self.problem, scores, block.queries, block.keys)
            self.D[..., block.part, :] += self.sums(block.kappa)

    def with_shift(self) -> None:
        """Shift each block by the largest score so far, then all of them by the largest of all."""
        exponential, _ = exponential_of(self.problem, self.D.dtype)
        last, shifts = np.full_like(self.D, -np.inf), []
        for block in self.blocks:
            scores = product(self.Q[..., block.part, :], block.K_T, block.kappa)
            self.problem.exclude(scores, block.queries, block.keys)
            now = last[..., block.part, :]
            np.maximum(now, scores.max(axis=-1, keepdims=True), out=now)
            # While no key is attended there is nothing to shift, and -inf - -inf would be NaN.
            shifts.append(np.where(np.isneginf(now), 0, now))
            scores -= shifts[-1]
            exponential(scores, out=block.kappa)
        self.D.fill(0)
        for block, shift in zip(self.blocks, shifts, strict=True):
            # A row without a key so far has kappa 0, and a shift that would make inf of it.
            factor = exponential(np.minimum(shift - last[..., block.part, :], 0))
            np.multiply(block.kappa, factor, out=block.kappa)
            self.D[..., block.part, :] += self.sums(block.kappa)

    def spoil(self, rows: npt.NDArray[np.bool_]) -> None:
        """Make kappa of these rows (..., n, 1) NaN, and 0 where nothing is attended."""
        for block in self.blocks:
            np.copyto(block.kappa, np.nan, where=rows[..., block.part, :])
            self.problem.exclude(block.kappa, block.queries, block.keys, to=0.0)

    def sums(self, X: Array) -> Array:
        """Of each row of a block, as a product with ones: several times faster than a sum."""
        return X @ self.memory.ones[: X.shape[-1]]

    def add(self, inverse: Array, to: AttentionGradients) -> None:
        """Add what the panel contributes, up to the factors that are the same for all panels."""
        np.multiply(self.G, inverse, out=self.G)
        mean = np.zeros_like(self.D)
        for block in self.blocks:
            g = self.G[..., block.part, :]
            product(g, block.V_T, block.moved)
            np.multiply(block.moved, block.kappa, out=block.moved)
            mean[..., block.part, :] += self.sums(block.moved)
            of_v = self.memory.of_v[..., : block.moved.shape[-1], :]
            to.value[..., block.keys, :] += product(np.swapaxes(block.kappa, -1, -2), g, of_v)
        if not np.isfinite(mean).all():
            mean.fill(0)
            for block in self.blocks:  # kappa 0 times what overflowed
                self.problem.exclude(block.moved, block.queries, block.keys, to=0.0)
                mean[..., block.part, :] += self.sums(block.moved)
            bad = ~np.isfinite(mean)
            np.copyto(mean, 0, where=bad)
            self.spoil(bad)
        mean *= inverse
        by_query = to.query[..., self.rows, :]
        for block in self.blocks:
            n, width = block.moved.shape[-2:]
            e = self.memory.e[..., :n, :width]
            np.multiply(block.kappa, mean[..., block.part, :], out=e)
            np.subtract(block.moved, e, out=e)
            K, Q = self.problem.key[..., block.keys, :], self.Q[..., block.part, :]
            of_q, of_k = self.memory.of_q[..., :n, :], self.memory.of_k[..., :width, :]
            by_query[..., block.part, :] += product(e, K, of_q)
            to.key[..., block.keys, :] += product(np.swapaxes(e, -1, -2), Q, of_k)
        np.copyto(by_query, np.nan, where=inverse == 0)
