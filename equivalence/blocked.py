"""Attention block by block: for each score two matrix products and one exponential, in place.

The weights of query q are kappa_j = exp(scale q.k_j - c), whose constant c cancels in
o = sum_j kappa_j v_j / sum_j kappa_j. There are two ways to choose it:

- c = 0: no maximum is sought and nothing is subtracted. That it went well is seen afterwards, from
  D = sum_j kappa_j and the output: `_without_shift` says when. Some of the scores tell if it is
  worth a try.
- c the largest score so far, where it did not or is not: what was summed before it grew is
  multiplied by exp of the difference (Milakov & Gimelshein 2018, arXiv 1805.02867).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

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
from equivalence.memory import contiguous, scratch
from equivalence.products import columns, product, views_of_columns
from equivalence.scores import Problem, of_heads
from equivalence.tiling import Index, Tiles, in_threads, tasks

# So few scores are not worth the choice.
_SMALL = 10_000
# A thread with fewer scores than these costs more than it gains.
_WORTH_A_THREAD = 1 << 18
# With fewer queries than this, copies of keys and values cost more than they gain.
_MANY = 64
# So many values mostly tell how large all of them are together.
_SAMPLED_VALUES = 64


def evaluate(
    problem: Problem, V: Array, output: Array, *, n_threads: int = 1, tiles: Tiles | None = None
) -> None:
    """Write attention over the values V into `output`, of the dtype to compute in."""
    (n_q, d), (n_k, c) = problem.query.shape[-2:], V.shape[-2:]
    if n_k == 0 or output.size == 0:
        output.fill(np.nan)
        return
    n_scores = math.prod(problem.batch) * n_q * n_k
    small = tiles is None and n_scores <= _SMALL
    n_threads = min(n_threads, max(1, n_scores // _WORTH_A_THREAD))
    tiles = tiles or Tiles.of(n_q, n_k, max(d, c), output.dtype, causal=problem.causal)

    def work(task: tuple[Index, Sequence[int]]) -> None:
        index, starts = task
        heads = problem.of_heads(index)
        values = of_heads(V, problem.batch, index) if index else V
        with np.errstate(all="ignore"):
            if small:
                _whole(heads, values, output[index])
            else:
                _by_tiles(heads, values, output[index], tiles, starts)

    in_threads(work, tasks(problem.batch, n_q, tiles, n_threads), n_threads)


def for_products(x: Array, dtype: np.dtype[Any]) -> Array:
    """The matrices in this dtype, where they lie if BLAS can read them there."""
    x = x.astype(dtype, copy=False)
    return x if x.itemsize in x.strides[-2:] else np.ascontiguousarray(x)


def _whole(problem: Problem, V: Array, output: Array) -> None:
    V = V.astype(output.dtype, copy=False)
    finite = bool(np.isfinite(V).all())
    for rows, scores in problem.blocks(V.dtype):
        attended = None if finite else scores > -np.inf
        D = exponentials(scores)
        # Dividing first keeps the sum in the range of the values, however large they are.
        weights = np.divide(scores, D, out=scores)
        output[..., rows, :] = mean_of_attended(weights, V, attended)


def exponentials(scores: Array) -> Array:
    """Turn scores into kappa up to one factor a query, in place; return D (..., n_q, 1)."""
    scores -= scores.max(axis=-1, keepdims=True, initial=-np.inf)
    np.exp(scores, out=scores)
    D: Array = scores.sum(axis=-1, keepdims=True)
    return D


def mean_of_attended(p: Array, V: Array, attended: npt.NDArray[np.bool_] | None) -> Array:
    """sum_j p_j v_j, where a non-finite value counts (as NaN) only if it is attended."""
    mean: Array
    if attended is None:
        mean = np.matmul(p, V)
        return mean
    finite = np.isfinite(V)
    poisoned = np.matmul(attended, np.logical_not(finite))
    mean = np.where(poisoned, np.nan, np.matmul(p, np.where(finite, V, 0)))
    return mean


_Tile = tuple[slice, slice, slice, Array]
"""Which rows of a block, which queries these are, which keys, and their scores."""


class _Memory(NamedTuple):
    """The keys' columns, and for one block: scaled queries, scores, parts of sums, D, and ones."""

    K_T: Sequence[Array]
    Q: Array
    scores: Array
    part: Array
    D: Array
    part_of_D: Array
    ones: Array


def _by_tiles(
    problem: Problem, V: Array, output: Array, tiles: Tiles, starts: Sequence[int]
) -> None:
    dtype, (n_q, d), (n_k, c) = output.dtype, problem.query.shape[-2:], V.shape[-2:]
    n_copied = n_k if n_q >= _MANY else 0
    for_K_T = -(-n_copied // tiles.keys), *problem.batch, d, tiles.keys
    for_V = *problem.batch, n_copied, c
    widths = d, tiles.keys, c, 1, 1
    shapes = *((*problem.batch, tiles.queries, width) for width in widths), (tiles.keys, 1)
    with scratch(dtype, *shapes, operands=(for_K_T, for_V)) as (K_copy, V_copy, *arrays):
        if n_copied:
            K_T = columns(problem.key, tiles.keys, K_copy)
            np.copyto(V_copy, V, casting="same_kind")
            V = V_copy
        else:
            K_T = views_of_columns(for_products(problem.key, dtype), tiles.keys)
            V = for_products(V, dtype)
        memory = _Memory(K_T, *arrays)
        memory.ones.fill(1)
        values = _Values(V)
        for start in starts:
            rows = slice(start, min(start + tiles.queries, n_q))
            block = _Rows(problem, V, rows, output[..., rows, :], memory)
            rest = _without_shift(block, values)
            if rest is not None:
                _with_running_maximum(block._replace(V=values.in_range.V), values.in_range, rest)


class _Rows(NamedTuple):
    """A block of queries, with sum_j kappa_j v_j of the keys so far in `total`."""

    problem: Problem
    V: Array
    rows: slice
    total: Array
    memory: _Memory

    @property
    def D(self) -> Array:
        """sum_j kappa_j of the keys so far (..., rows, 1)."""
        return self.memory.D[..., : self.rows.stop - self.rows.start, :]

    def tiles(self) -> Iterator[_Tile]:
        """Tiles of these rows, with scores scale q.k times what `exponential_of` says."""
        Q = self.memory.Q[..., : self.rows.stop - self.rows.start, :]
        queries, dtype = self.problem.query[..., self.rows, :], Q.dtype
        scale = self.problem.scale * exponential_of(self.problem, dtype)[1]
        np.multiply(queries, dtype.type(scale), out=Q, dtype=dtype, casting="same_kind")
        for seen, keys in self.problem.tiles(self.rows, len(self.memory.ones)):
            part, width = slice(seen.start - self.rows.start, None), keys.stop - keys.start
            shape = *Q.shape[:-2], seen.stop - seen.start, width
            scores = contiguous(self.memory.scores, shape)
            K_T = self.memory.K_T[keys.start // len(self.memory.ones)][..., :width]
            yield part, seen, keys, product(Q[..., part, :], K_T, scores)

    def add(self, kappa: Array, part: slice, keys: slice) -> None:
        """Add the terms of these keys to the sums; the first keys concern all rows."""
        V, ones = self.V[..., keys, :], self.memory.ones[: keys.stop - keys.start]
        if keys.start == 0:
            product(kappa, V, self.total)
            np.matmul(kappa, ones, out=self.D)
            return
        total, D = self.total[..., part, :], self.D[..., part, :]
        n = total.shape[-2]
        total += product(kappa, V, self.memory.part[..., :n, :])
        D += np.matmul(kappa, ones, out=self.memory.part_of_D[..., :n, :])


def _without_shift(block: _Rows, values: _Values) -> Iterator[_Tile] | None:
    """None if all went well; if not, what the output is to be computed from in the other way.

    Nothing has overflowed if D and the output are finite, as inf stays inf, or becomes NaN, in sums
    and quotients. And nothing has been lost to underflow that the budget does not have if D is at
    least `values.least_D`.
    """
    problem, total, D = block.problem, block.total, block.D
    tiles = block.tiles()
    first = next(tiles)
    tiles = chain([first], tiles)
    _, base = exponential_of(problem, total.dtype)
    # Exponentials that overflow take ten times as long.
    if not 2 * abs(sample_of(first[-1])).max(initial=0) < base * log_of_largest(total.dtype):
        return tiles
    for part, seen, keys, scores in tiles:
        block.add(kernel_of(problem, scores, seen, keys), part, keys)
        if keys.start == 0 and keys.stop < block.V.shape[-2] and not D.max() < np.inf:
            return block.tiles()
    total /= D
    least, largest = D.min(), D.max()
    in_range = largest < np.inf and (least >= 1 or least >= values.least_D)
    return None if in_range and np.isfinite(total).all() else block.tiles()


def _with_running_maximum(block: _Rows, values: _InRange, tiles: Iterator[_Tile]) -> None:
    problem, total, D = block.problem, block.total, block.D
    largest = np.full_like(D, -np.inf)
    bad, poisoned = values.bad, np.zeros_like(total if values.bad is not None else D)
    for part, seen, keys, scores in tiles:
        exponential = exponential_of_shifted(problem, scores)
        problem.exclude(scores, seen, keys)
        if bad is not None:
            attended = (scores > -np.inf).astype(total.dtype)
            poisoned[..., part, :] += attended @ bad[..., keys, :]
        before = largest[..., part, :]
        now = np.maximum(before, scores.max(axis=-1, keepdims=True))
        # While no key is attended there is nothing to shift, and -inf - -inf would be NaN.
        shift = np.where(np.isneginf(now), 0, now)
        if keys.start > 0:
            shrink = exponential(before - shift)
            total[..., part, :] *= shrink
            D[..., part, :] *= shrink
        scores -= shift
        exponential(scores, out=scores)
        block.add(scores, part, keys)
        largest[..., part, :] = now
    total /= D
    total /= values.factor
    if bad is not None:
        np.copyto(total, np.nan, where=poisoned > 0)


class _Values:
    """What is to be known of values V (..., n_k, c), if it is to be known."""

    def __init__(self, V: Array) -> None:
        self.V = V

    @cached_property
    def least_D(self) -> float:
        """How small D may be without a shift.

        A kappa below the normal numbers loses at most the smallest of them, `tiny`, and so does
        kappa v where D is at least u, the unit roundoff, in the quotient by D: half the spacing
        of the subnormal numbers is u tiny. The first costs the output tiny/u sum_j |v_j|,
        which the budget has; the second n tiny, which is no more if sum_j |v_j| is n u or more.
        With a shift D is at least 1.
        """
        u = float(np.finfo(self.V.dtype).eps) / 2
        n = self.V.shape[-2]
        some = abs(self.V[..., :: -(-n // _SAMPLED_VALUES), :]).sum(axis=-2)
        if (some >= n * u).all():
            return u
        size = np.ones((1, n), self.V.dtype) @ abs(self.V)
        return u if ((size >= n * u) | (size == 0)).all() else 1.0

    @cached_property
    def in_range(self) -> _InRange:
        return _InRange.of(self.V)


class _InRange(NamedTuple):
    """V without what is not finite, times a power of two in each column."""

    V: Array
    factor: Array
    bad: Array | None
    """1 where a value is not finite, if there is one."""

    @classmethod
    def of(cls, V: Array) -> _InRange:
        finite = np.isfinite(V)
        bad = None if finite.all() else np.logical_not(finite).astype(V.dtype)
        V = V if bad is None else np.where(finite, V, V.dtype.type(0))
        # As kappa_j <= 1, sums of n_k values stay in the range if 2 n_k times the largest does.
        shrunk = 2.0 ** -(V.shape[-2].bit_length() + 1)
        size = np.maximum(V.max(axis=-2, keepdims=True), -V.min(axis=-2, keepdims=True))
        factor = np.where(size > shrunk * np.finfo(V.dtype).max, V.dtype.type(shrunk), 1)
        return cls(V * factor if (factor < 1).any() else V, factor, bad)
