"""Where in memory lies what products read, and memory that a thread keeps for its next call."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from equivalence._arrays import Array

# What a thread keeps for its next call. Fresh pages cost more than attention does at n = 512.
_KEPT_BYTES = 1 << 23
_LINE, _LINES_APART = 64, 16

_spare = threading.local()


@cache
def leading_dimension(width: int, dtype: np.dtype[Any]) -> int:
    """So many numbers from a row to the next in memory, for rows of `width`.

    Every row then starts at a cache line, as the first does: BLAS reads 64 bytes at a time, which
    takes twice as long if they are in two lines. And rows that a power of two of lines lies between
    would share a few places of the L1 cache, where a column of them is read.

    >>> [leading_dimension(width, np.dtype("d")) for width in (5, 64, 512)]
    [8, 64, 520]
    """
    lines = -(-width * dtype.itemsize // _LINE)
    return (lines + (lines % _LINES_APART == 0)) * _LINE // dtype.itemsize


def _padded(shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[int, ...]:
    return *shape[:-1], leading_dimension(shape[-1], dtype)


def operand(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """An empty array of that shape for the second operand of a product: see leading_dimension."""
    padded = _padded(shape, dtype)
    memory = np.empty(math.prod(padded) * dtype.itemsize + _LINE, np.uint8)
    array: Array = np.ndarray(padded, dtype, memory.data, -memory.ctypes.data % _LINE)
    return array[..., : shape[-1]]


def as_operand(X: Array) -> Array:
    """A copy of X for the second operand of a product."""
    copy = operand(X.shape, X.dtype)
    np.copyto(copy, X)
    return copy


def contiguous(memory: Array, shape: tuple[int, ...]) -> Array:
    """The first numbers of a contiguous array, as an array of that shape, with no gaps.

    NumPy's loops work on it at once, on a part of a wider array row by row.
    """
    return memory.reshape(-1)[: math.prod(shape)].reshape(shape)


@contextmanager
def scratch(
    dtype: np.dtype[Any], *shapes: tuple[int, ...], operands: Sequence[tuple[int, ...]] = ()
) -> Iterator[Sequence[Array]]:
    """Arrays of these shapes, each from a cache line's start, that the thread keeps.

    Before them those for the second operands of products, whose rows all start at cache lines.
    """
    padded = (_padded(shape, dtype) for shape in operands)
    asked: _Kept = _spare.__dict__.pop("kept", _Kept())
    kept = asked.arranged(dtype, (*padded, *shapes))
    of_rows = (x[..., : shape[-1]] for x, shape in zip(kept.arrays, operands, strict=False))
    try:
        yield [*of_rows, *kept.arrays[len(operands) :]]
    finally:
        if kept.memory.size <= _KEPT_BYTES:
            _spare.kept = kept


class _Kept(NamedTuple):
    """Arrays, and the memory they are in."""

    dtype: np.dtype[Any] = np.dtype(np.uint8)
    shapes: tuple[tuple[int, ...], ...] = ()
    memory: npt.NDArray[np.uint8] = np.empty(0, np.uint8)
    arrays: Sequence[Array] = ()

    def arranged(self, dtype: np.dtype[Any], shapes: tuple[tuple[int, ...], ...]) -> _Kept:
        """The same if it has these shapes; or in its memory, if that suffices."""
        if dtype == self.dtype and shapes == self.shapes:
            return self
        sizes = [-(-math.prod(shape) * dtype.itemsize // _LINE) * _LINE for shape in shapes]
        memory, needed = self.memory, sum(sizes) + _LINE
        if memory.size < needed:
            memory = np.empty(needed, np.uint8)
        starts = accumulate(sizes, initial=-memory.ctypes.data % _LINE)
        arrays = [
            np.ndarray(shape, dtype, memory.data, at)
            for shape, at in zip(shapes, starts, strict=False)
        ]
        return _Kept(dtype, shapes, memory, arrays)
