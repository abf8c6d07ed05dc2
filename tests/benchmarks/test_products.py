"""Products cut into small ones beside whole ones, of a tile of attention: `tox -e bench`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from equivalence.products import product

Benchmark = Callable[..., Any]
OF_DTYPES = pytest.mark.parametrize("dtype", ["float64", "float32"])
PRODUCTS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], Any]] = {
    "whole": lambda A, B, out: np.matmul(A, B, out=out),
    "cut": product,
}
OF_PRODUCTS = pytest.mark.parametrize("of", PRODUCTS.values(), ids=PRODUCTS)


@OF_DTYPES
@OF_PRODUCTS
@pytest.mark.benchmark(group="scores: 512 x 64 x 512")
def test_scores(benchmark: Benchmark, of: Callable[..., Any], dtype: str) -> None:
    """The whole product has the keys as they are, the other their columns, as in `attention`."""
    Q, K = np.random.default_rng(0).standard_normal((2, 512, 64)).astype(dtype)
    K_T = K.T if of is not product else np.ascontiguousarray(K.T)
    benchmark(of, Q, K_T, np.empty((512, 512), dtype))


@OF_DTYPES
@OF_PRODUCTS
@pytest.mark.benchmark(group="sums over values: 512 x 512 x 64")
def test_sums(benchmark: Benchmark, of: Callable[..., Any], dtype: str) -> None:
    rng = np.random.default_rng(0)
    kappa, V = rng.random((512, 512), dtype), rng.standard_normal((512, 64)).astype(dtype)
    benchmark(of, kappa, V, np.empty((512, 64), dtype))
