"""Products of a tile of attention, cut into small ones and whole, and where operands lie."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from equivalence.memory import leading_dimension
from equivalence.products import product

Benchmark = Callable[..., Any]
OF_DTYPES = pytest.mark.parametrize("dtype", ["float64", "float32"])
PRODUCTS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], Any]] = {
    "whole": lambda A, B, out: np.matmul(A, B, out=out),
    "cut": product,
}
OF_PRODUCTS = pytest.mark.parametrize("of", PRODUCTS.values(), ids=PRODUCTS)
# Where NumPy's large arrays lie, and where `scratch` puts what products read.
OF_STARTS = pytest.mark.parametrize("start", [16, 0], ids=["16 bytes after a line", "at a line"])


@OF_DTYPES
@OF_PRODUCTS
@OF_STARTS
@pytest.mark.benchmark(group="scores: 512 x 64 x 512")
def test_scores(benchmark: Benchmark, of: Callable[..., Any], dtype: str, start: int) -> None:
    """The whole product has the keys as they are, the other their columns, as in `attention`."""
    Q, K = np.random.default_rng(0).standard_normal((2, 512, 64)).astype(dtype)
    K_T = placed(K, start).T if of is not product else placed(K.T, start)
    benchmark(of, Q, K_T, np.empty((512, 512), dtype))


@OF_DTYPES
@OF_PRODUCTS
@OF_STARTS
@pytest.mark.benchmark(group="sums over values: 512 x 512 x 64")
def test_sums(benchmark: Benchmark, of: Callable[..., Any], dtype: str, start: int) -> None:
    rng = np.random.default_rng(0)
    kappa, V = rng.random((512, 512), dtype), rng.standard_normal((512, 64)).astype(dtype)
    benchmark(of, kappa, placed(V, start), np.empty((512, 64), dtype))


def placed(X: np.ndarray, start: int) -> np.ndarray:
    """A copy of X whose rows start so many bytes after a cache line."""
    width = leading_dimension(X.shape[1], X.dtype)
    memory = np.empty(len(X) * width * X.itemsize + 128, np.uint8)
    start += -memory.ctypes.data % 64
    copy = np.ndarray((len(X), width), X.dtype, memory.data, start)[:, : X.shape[1]]
    copy[...] = X
    return copy
