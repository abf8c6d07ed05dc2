"""Products of matrices as fast as BLAS can: cut into small ones, where it has kernels for them.

OpenBLAS copies the operands of a product to where its kernels want them, except, on processors with
AVX-512, those of up to a million multiplications whose second operand has contiguous rows. These
are read where they lie: cut like that, the products of attention take 6 to 18 % less time on an AMD
EPYC, and 18 to 30 % on an Intel Xeon if the rows of the second operand start at cache lines, as in
equivalence.memory.scratch (tests/benchmarks/test_products.py).
"""

from __future__ import annotations

from functools import cache

import numpy as np

from equivalence._arrays import Array

# OpenBLAS's limit for its small kernels: so many multiplications.
_SMALL = 10**6
# Rows for a kernel to work on, and for a call to be worth its time.
_FEWEST_ROWS, _MOST_ROWS = 4, 64
# What is transposed at a time: a typical L1 cache.
_CACHE_BYTES = 1 << 15


@cache
def has_small_kernels() -> bool:
    """Whether the processor has AVX-512, by which OpenBLAS decides, as far as NumPy tells."""
    introspect = getattr(np.lib, "introspect", None)  # NumPy 2.1
    if introspect is None:
        return False
    loops = introspect.opt_func_info(func_name="^exp$", signature="float32")["exp"]
    # The target was AVX512_SKX, and is X86_V4 from NumPy 2.4.
    return any("AVX512" in x["current"] or "X86_V4" in x["current"] for x in loops.values())


def product(A: Array, B: Array, out: Array) -> Array:
    """A @ B for A (..., n, k) and B (..., k, c), into `out`, of the same dtype, which is returned.

    >>> product(np.eye(2), np.array([[1.0], [2.0]]), np.empty((2, 1)))
    array([[1.],
           [2.]])
    """
    n, rows = A.shape[-2], _rows_at_a_time(*B.shape[-2:], B.strides[-1] == B.itemsize)
    if n <= rows or rows < _FEWEST_ROWS:
        return np.matmul(A, B, out=out)
    rest = n % rows
    if rest:
        np.matmul(A[..., n - rest :, :], B, out=out[..., n - rest :, :])
        A, part = A[..., : n - rest, :], out[..., : n - rest, :]
    else:
        part = out
    np.matmul(_in_groups(A, rows), B[..., None, :, :], out=_in_groups(part, rows))
    return out


@cache
def _rows_at_a_time(k: int, c: int, contiguous: bool) -> int:
    """A power of two, so that it divides the sizes that most people have; 0 to cut nothing."""
    if not has_small_kernels() or not contiguous:
        return 0
    return min(_MOST_ROWS, 1 << (_SMALL // max(1, k * c)).bit_length() >> 1)


def _in_groups(X: Array, rows: int) -> Array:
    """(..., n, k) as (..., n / rows, rows, k): a view, however X lies in memory."""
    *batch, n, k = X.shape
    return X.reshape(*batch, n // rows, rows, k)


def columns(X: Array, width: int, memory: Array) -> list[Array]:
    """The columns of X^T for X (..., n, d), `width` at a time, with contiguous rows.

    Into memory of the shape (ceil(n / width), ..., d, width), and its dtype.

    >>> columns(np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), 2, np.empty((2, 2, 2)))[0]
    array([[1., 3.],
           [2., 4.]])
    """
    blocks = views_of_columns(X, width)
    step = max(1, _CACHE_BYTES // max(1, X.shape[-1] * memory.itemsize))
    for i, block in enumerate(blocks):
        n = block.shape[-1]
        for start in range(0, n, step):
            part = np.s_[..., start : min(start + step, n)]
            np.copyto(memory[i][part], block[part], casting="same_kind")
        blocks[i] = memory[i][..., :n]
    return blocks


def views_of_columns(X: Array, width: int) -> list[Array]:
    """The same where X lies, for fewer products than would pay for the copies."""
    return [
        np.swapaxes(X[..., start : start + width, :], -1, -2)
        for start in range(0, X.shape[-2], width)
    ]
