"""Attention and its backward pass, small enough to run in seconds: `tox -e bench`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from equivalence import attention, attention_backward

Benchmark = Callable[..., Any]
SHAPES = {"64 heads of 64": (64, 64, 64), "n = 512": (512, 64), "n = 2048": (2048, 64)}
OF_SHAPES = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
OF_DTYPES = pytest.mark.parametrize("dtype", ["float64", "float32"])


def arrays(shape: tuple[int, ...], dtype: str) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(dtype) for _ in "gqkv"]


@OF_SHAPES
@OF_DTYPES
@pytest.mark.benchmark(group="attention, d = 64")
def test_attention(benchmark: Benchmark, shape: tuple[int, ...], dtype: str) -> None:
    benchmark(attention, *arrays(shape, dtype)[1:])


@OF_SHAPES
@OF_DTYPES
@pytest.mark.benchmark(group="attention, d = 64, causal")
def test_causal(benchmark: Benchmark, shape: tuple[int, ...], dtype: str) -> None:
    benchmark(attention, *arrays(shape, dtype)[1:], causal=True)


@OF_SHAPES
@OF_DTYPES
@pytest.mark.benchmark(group="attention, d = 64, with a running maximum")
def test_large_scores(benchmark: Benchmark, shape: tuple[int, ...], dtype: str) -> None:
    benchmark(attention, *arrays(shape, dtype)[1:], scale=20.0)


@OF_SHAPES
@OF_DTYPES
@pytest.mark.benchmark(group="backward, d = 64")
def test_backward(benchmark: Benchmark, shape: tuple[int, ...], dtype: str) -> None:
    benchmark(attention_backward, *arrays(shape, dtype))
