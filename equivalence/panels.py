"""A panel of the backward pass: some queries, all their keys, and what they add to the gradients.

See equivalence/backward.py for the formulae.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from equivalence._arrays import Array
from equivalence.exponential import (
    exponential_of,
    exponential_of_shifted,
    kernel_of,
    log_of_largest,
    sample_of,
)
from equivalence.memory import contiguous
from equivalence.products import product
from equivalence.scores import Problem


class AttentionGradients(NamedTuple):
    """The gradients by query, key and value, each of its argument's shape."""

    query: Array
    key: Array
    value: Array


def cleared(X: Array) -> tuple[Array, npt.NDArray[np.bool_]]:
    """X with 0 for what is not finite, and (..., n, 1) which rows had such entries."""
    finite = np.isfinite(X)
    if finite.all():
        return X, np.zeros((*X.shape[:-1], 1), bool)
    return np.where(finite, X, X.dtype.type(0)), ~np.all(finite, axis=-1, keepdims=True)


class Memory(NamedTuple):
    """For a panel: its Q and g, and all keys; for each block of keys, K^T and V^T.

    Then D and parts of the sums of a panel, and what is kept of each block.
    """

    Q: Array
    G: Array
    K: Array
    K_T: Array
    V_T: Array
    D: Array
    of_q: Array
    of_k: Array
    of_v: Array
    kappa: Array
    moved: Array
    ones: Array


class Block(NamedTuple):
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


class Panel(NamedTuple):
    """Some queries times what their scores have to have as a factor, their g, and their blocks."""

    problem: Problem
    rows: slice
    Q: Array
    G: Array
    D: Array
    blocks: list[Block]
    memory: Memory

    @classmethod
    def of(cls, problem: Problem, rows: slice, memory: Memory) -> Panel:
        """The panel of these queries, to be filled: its arrays are parts of the memory."""
        n, blocks, width = rows.stop - rows.start, [], memory.K_T.shape[-1]
        for i, (queries, keys) in enumerate(problem.tiles(rows, width)):
            part, size = slice(queries.start - rows.start, n), keys.stop - keys.start
            transposed = (x[i][..., :size] for x in (memory.K_T, memory.V_T))
            shape = *problem.batch, n - part.start, size
            pairs = (contiguous(x[i], shape) for x in (memory.kappa, memory.moved))
            blocks.append(Block(part, queries, keys, *transposed, *pairs))
        Q, G, D = (x[..., :n, :] for x in (memory.Q, memory.G, memory.D))
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
            clean, own = cleared(X)
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
        D = self.D
        rest = self.without_shift()
        if rest is not None:
            self.with_shift(rest)
            spoilt = spoilt | ~np.isfinite(D)
        if spoilt.any():
            np.copyto(D, 1, where=spoilt & (D != 0))
            self.spoil(spoilt)
        return np.divide(1, D, out=np.zeros_like(D), where=D != 0)

    def scored(self) -> Iterator[tuple[Block, Array]]:
        """Each block, and its scores times what `exponential_of` says, in the memory of kappa."""
        for block in self.blocks:
            yield block, product(self.Q[..., block.part, :], block.K_T, block.kappa)

    def without_shift(self) -> Iterator[tuple[Block, Array]] | None:
        """Fill kappa and D from the scores as they are: None if D is between u and 1/u then.

        If not, what is to be shifted.
        """
        dtype = self.D.dtype
        u, (_, base) = float(np.finfo(dtype).eps) / 2, exponential_of(self.problem, dtype)
        scored = self.scored()
        first = next(scored)
        scored, sample = chain([first], scored), sample_of(first[1]) / base
        largest, least = sample.max(initial=0), sample.min(initial=0)
        if not (largest <= -math.log(u) and 2 * least >= -log_of_largest(dtype)):
            return scored
        self.D.fill(0)
        for block, scores in scored:
            kernel_of(self.problem, scores, block.queries, block.keys)
            self.D[..., block.part, :] += self.sums(block.kappa)
        in_range = self.D.min(initial=1) >= u and self.D.max(initial=1) <= 1 / u
        return None if in_range else self.scored()

    def with_shift(self, scored: Iterator[tuple[Block, Array]]) -> None:
        """Shift each block by the largest score so far, then all of them by the largest of all."""
        last, shifts = np.full_like(self.D, -np.inf), []
        for block, scores in scored:
            exponential = exponential_of_shifted(self.problem, scores)
            self.problem.exclude(scores, block.queries, block.keys)
            now = last[..., block.part, :]
            np.maximum(now, scores.max(axis=-1, keepdims=True), out=now)
            # While no key is attended there is nothing to shift, and -inf - -inf would be NaN.
            shifts.append(np.where(np.isneginf(now), 0, now))
            scores -= shifts[-1]
            exponential(scores, out=scores)
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
            e = block.moved
            np.multiply(block.kappa, mean[..., block.part, :], out=block.kappa)
            np.subtract(e, block.kappa, out=e)
            K, Q = self.memory.K[..., block.keys, :], self.Q[..., block.part, :]
            of_q, of_k = self.memory.of_q[..., :n, :], self.memory.of_k[..., :width, :]
            by_query[..., block.part, :] += product(e, K, of_q)
            to.key[..., block.keys, :] += product(np.swapaxes(e, -1, -2), Q, of_k)
        np.copyto(by_query, np.nan, where=inverse == 0)
