"""Where in memory lies what products read, and memory that is kept."""

import numpy as np
import pytest

from equivalence.memory import as_operand, contiguous, leading_dimension, operand, scratch


def test_memory_that_is_in_use_is_not_given_away() -> None:
    with scratch(np.dtype(float), (3,), (2,)) as first, scratch(np.dtype(float), (4,)) as second:
        assert not any(np.shares_memory(x, second[0]) for x in first)
        assert all(x.ctypes.data % 64 == 0 for x in (*first, *second))
    with scratch(np.dtype("f"), (8,)) as again:
        assert np.shares_memory(again[0], first[0])
    with scratch(np.dtype("f"), (8,)) as same:
        assert same[0] is again[0]
    with scratch(np.dtype("i"), (8,)) as other:
        assert other[0].dtype == np.dtype("i")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("width", [1, 5, 64, 128, 512, 1000])
def test_rows_of_operands_start_at_cache_lines(width: int, dtype: str) -> None:
    """And no two of eight neighbours share their place in a cache of 4 KiB a way."""
    X = np.random.default_rng(0).standard_normal((2, 8, width)).astype(dtype)
    copy = as_operand(np.swapaxes(X.swapaxes(-1, -2).copy(), -1, -2))
    assert copy.dtype == dtype
    np.testing.assert_array_equal(copy, X)
    starts = [[row.ctypes.data for row in matrix] for matrix in copy]
    assert not np.any(np.remainder(starts, 64))
    assert all(len({start % 4096 for start in of_matrix}) == 8 for of_matrix in starts)
    assert operand(X.shape, X.dtype).strides == copy.strides
    assert leading_dimension(width, X.dtype) * X.itemsize == copy.strides[1]


def test_operands_come_before_other_memory() -> None:
    with scratch(np.dtype("f"), (4,), operands=[(2, 3, 65), (0, 256)]) as (X, none, other):
        assert X.shape == (2, 3, 65)
        assert none.shape == (0, 256)
        assert other.shape == (4,)
        assert all(row.ctypes.data % 64 == 0 for matrix in X for row in matrix)
        assert not np.shares_memory(X, other)


def test_a_part_of_the_memory_has_no_gaps() -> None:
    memory = np.zeros((2, 3, 4))
    part = contiguous(memory, (2, 2, 3))
    part[...] = 1
    assert part.flags.c_contiguous
    assert memory.sum() == memory.reshape(-1)[:12].sum() == 12
