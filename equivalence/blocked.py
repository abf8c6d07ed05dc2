"""Attention block by block: for each score two matrix products and one exponential, in place.

The weights of query q are kappa_j = exp(scale q.k_j - c), whose constant c cancels in
o = sum_j kappa_j v_j / sum_j kappa_j. There are two ways to choose it:

- c = 0, where bounds of |scale q.k_j| and of the values say that no number can leave the range of
  the normal floats: `_Range`. No maximum is sought and nothing is subtracted.
- c the largest score so far, everywhere else: what was summed before it grew is multiplied by exp
  of the difference (Milakov & Gimelshein 2018, arXiv 1805.02867).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from equivalence._arrays import Array
from equivalence.scores import Problem
from equivalence.tiling import Index, Tiles, in_threads, scratch, tasks

# Heads with no more queries and keys than this are not worth the choice.
_SMALL = 128


def evaluate(
    problem: Problem, V: Array, output: Array, *, n_threads: int = 1, tiles: Tiles | None = None
) -> None:
    """Write attention over the values V into `output`, of the dtype to compute in."""
    (n_q, d), (n_k, c) = problem.query.shape[-2:], V.shape[-2:]
    if n_k == 0 or output.size == 0:
        output.fill(np.nan)
        return
    small = tiles is None and max(n_q, n_k) <= _SMALL
    tiles = tiles or Tiles.of(n_q, n_k, max(d, c))

    def work(task: tuple[Index, Sequence[int]]) -> None:
        index, starts = task
        heads = problem.of_heads(index)
        values = np.broadcast_to(V, (*problem.batch, n_k, c))[index] if index else V
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


@cache
def fast_exponential(dtype: np.dtype[Any]) -> tuple[np.ufunc, float]:
    """exp or exp2, and the factor of its argument that makes it exp.

    Where NumPy has a vector loop for exp2 it takes half the time of exp in float32, and 7/8 of it
    in float64; where it has none, exp may have one.
    """
    introspect = getattr(np.lib, "introspect", None)  # NumPy 2.1
    if introspect is None:
        return np.exp, 1.0
    loops = introspect.opt_func_info(func_name="^exp2$", signature=dtype.name)["exp2"]
    vector = any(not loop["current"].startswith("baseline") for loop in loops.values())
    return (np.exp2, 1 / math.log(2)) if vector else (np.exp, 1.0)


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


class _Memory(NamedTuple):
    """For one block: scaled queries, scores, part of the numerators, D and part of it, and ones."""

    Q: Array
    scores: Array
    part: Array
    D: Array
    part_of_D: Array
    ones: Array


def _by_tiles(
    problem: Problem, V: Array, output: Array, tiles: Tiles, starts: Sequence[int]
) -> None:
    dtype, (n_q, d), c = output.dtype, problem.query.shape[-2:], V.shape[-1]
    problem = problem._replace(key=for_products(problem.key, dtype))
    V = for_products(V, dtype)
    shapes = [(tiles.queries, width) for width in (d, max(tiles.keys, c), c, 1, 1)]
    with scratch(dtype, *((*problem.batch, *shape) for shape in shapes), (tiles.keys, 1)) as arrays:
        memory = _Memory(*arrays)
        memory.ones.fill(1)
        safe, general = _SafeRange.of(problem, V, memory.scores.reshape(-1)), None
        for start in starts:
            rows = slice(start, min(start + tiles.queries, n_q))
            if safe.holds(problem.query[..., rows, :]):
                _without_shift(_Rows(problem, V, rows, output[..., rows, :], memory))
            else:
                general = general or _AnyValues.of(V)
                block = _Rows(problem, general.V, rows, output[..., rows, :], memory)
                _with_running_maximum(block, general)


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

    def tiles(self, scale: float) -> Iterator[tuple[slice, slice, slice, Array]]:
        """Which of these rows, which queries these are, which keys, and scale q.k of them."""
        Q = self.memory.Q[..., : self.rows.stop - self.rows.start, :]
        queries, dtype = self.problem.query[..., self.rows, :], Q.dtype
        np.multiply(queries, dtype.type(scale), out=Q, dtype=dtype, casting="same_kind")
        for seen, keys in self.problem.tiles(self.rows, len(self.memory.ones)):
            part = slice(seen.start - self.rows.start, None)
            K_T = np.swapaxes(self.problem.key[..., keys, :], -1, -2)
            shape = seen.stop - seen.start, keys.stop - keys.start
            scores = self.memory.scores[..., : shape[0], : shape[1]]
            yield part, seen, keys, np.matmul(Q[..., part, :], K_T, out=scores)

    def add(self, kappa: Array, part: slice, keys: slice) -> None:
        """Add the terms of these keys to the sums; the first keys concern all rows."""
        V, ones = self.V[..., keys, :], self.memory.ones[: keys.stop - keys.start]
        if keys.start == 0:
            np.matmul(kappa, V, out=self.total)
            np.matmul(kappa, ones, out=self.D)
            return
        for factor, memory, total in (
            (V, self.memory.part, self.total),
            (ones, self.memory.part_of_D, self.D),
        ):
            total = total[..., part, :]
            total += np.matmul(kappa, factor, out=memory[..., : total.shape[-2], :])


def _without_shift(block: _Rows) -> None:
    problem, total = block.problem, block.total
    exponential, factor = fast_exponential(total.dtype)
    for part, seen, keys, kappa in block.tiles(problem.scale * factor):
        exponential(kappa, out=kappa)
        problem.exclude(kappa, seen, keys, to=0.0)
        block.add(kappa, part, keys)
    total /= block.D


def _with_running_maximum(block: _Rows, values: _AnyValues) -> None:
    problem, total, D = block.problem, block.total, block.D
    largest = np.full_like(D, -np.inf)
    bad, poisoned = values.bad, np.zeros_like(total if values.bad is not None else D)
    for part, seen, keys, scores in block.tiles(problem.scale):
        problem.exclude(scores, seen, keys)
        if bad is not None:
            attended = (scores > -np.inf).astype(total.dtype)
            poisoned[..., part, :] += attended @ bad[..., keys, :]
        before = largest[..., part, :]
        now = np.maximum(before, scores.max(axis=-1, keepdims=True))
        # While no key is attended there is nothing to shift, and -inf - -inf would be NaN.
        shift = np.where(np.isneginf(now), 0, now)
        if keys.start > 0:
            shrink = np.exp(before - shift)
            total[..., part, :] *= shrink
            D[..., part, :] *= shrink
        scores -= shift
        np.exp(scores, out=scores)
        block.add(scores, part, keys)
        largest[..., part, :] = now
    total /= D
    total /= values.factor
    if bad is not None:
        np.copyto(total, np.nan, where=poisoned > 0)


class _AnyValues(NamedTuple):
    """Values that need care: V without what is not finite, times a power of two in each column."""

    V: Array
    factor: Array
    bad: Array | None
    """1 where a value is not finite, if there is one."""

    @classmethod
    def of(cls, V: Array) -> _AnyValues:
        finite = np.isfinite(V)
        bad = None if finite.all() else np.logical_not(finite).astype(V.dtype)
        V = V if bad is None else np.where(finite, V, V.dtype.type(0))
        # As kappa_j <= 1, sums of n_k values stay in the range if 2 n_k times the largest does.
        shrunk = 2.0 ** -(V.shape[-2].bit_length() + 1)
        size = np.maximum(V.max(axis=-2, keepdims=True), -V.min(axis=-2, keepdims=True))
        factor = np.where(size > shrunk * np.finfo(V.dtype).max, V.dtype.type(shrunk), 1)
        return cls(V * factor if (factor < 1).any() else V, factor, bad)


class _SafeRange(NamedTuple):
    """How large |scale q.k| may be so that all that is computed without a shift is a normal float.

    If |scale q.k_j| <= B for every key, then e^-B <= kappa_j <= e^B. So D, the numerators and all
    that is summed on the way are at most n_k e^B max(1, max |v|), and what is multiplied, kappa_j
    and kappa_j v_j != 0, is at least e^-B min(1, min |v|), v != 0. By Cauchy-Schwarz
    B = |scale| |q| max_j |k_j| will do.
    """

    reach: float
    slope: float
    """|scale| max_j |k_j|: B for |q| = 1."""

    @classmethod
    def of(cls, problem: Problem, V: Array, memory: Array) -> _SafeRange:
        """The range for the keys and values of the problem."""
        (n_k, d), info = problem.key.shape[-2:], np.finfo(V.dtype)
        # What norms, scores, exponentials and sums may err by, relatively: a few times
        # gamma_(d+n_k) (Higham 2002, sec. 3.1), itself less than (d + n_k) eps.
        rounding = 4 * (d + n_k + 16) * float(info.eps)
        if problem.is_biased or rounding > 0.25:
            return cls(-math.inf, math.nan)
        largest, smallest = _extremes(V, memory)
        above = math.log(info.max) - np.log(n_k * np.maximum(1.0, largest))
        below = np.log(min(1.0, smallest)) - math.log(info.tiny)
        slope = abs(problem.scale) * _largest_norm(problem.key)
        return cls(float(np.minimum(above, below)) - rounding, slope * (1 + rounding))

    def holds(self, Q: Array) -> bool:
        """Whether the scores of these queries are in the range; False if anything is NaN."""
        return _largest_norm(Q) * self.slope <= self.reach


def _largest_norm(X: Array) -> float:
    """max |x|, or more where squares are below the normal floats."""
    dtype = np.result_type(X, np.float32)
    squares = np.einsum("...i,...i->...", X, X, dtype=dtype)
    return math.sqrt(float(squares.max()) + X.shape[-1] * float(np.finfo(dtype).tiny))


def _extremes(V: Array, memory: Array) -> tuple[float, float]:
    """The largest and the smallest |v|, of those that are not 0; the largest may be NaN."""
    n_k, integer = V.shape[-2], np.dtype(f"u{V.itemsize}")
    largest, least = V.dtype.type(0), np.array(np.iinfo(integer).max, integer)
    step = max(1, memory.size // (V.size // n_k))
    for start in range(0, n_k, step):
        part = V[..., start : start + step, :]
        size = np.abs(part, out=memory[: part.size].reshape(part.shape))
        largest = np.maximum(largest, size.max())
        # Positive floats are ordered like the integers of the same bits, and 0 - 1 is the largest.
        bits = size.view(integer)
        bits -= 1
        least = np.minimum(least, bits.min())
    smallest = (least + integer.type(1)).view(V.dtype)
    return float(largest), float(smallest)
