"""What the dual costs beside attention itself, in one run: `tox -e bench`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from equivalence import OneStepRegressor, attention
from equivalence.features import GramFeatures

Benchmark = Callable[..., Any]
SIZES = [128, 512]


def head(n: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((n, 32)) for _ in "qkv"]


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.benchmark(group="one head, d = 32")
def test_attention(benchmark: Benchmark, n: int) -> None:
    benchmark(attention, *head(n))


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.benchmark(group="one head, d = 32")
def test_fit_gram_features(benchmark: Benchmark, n: int) -> None:
    K = head(n)[1]
    benchmark(lambda: GramFeatures().fit(K))


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.benchmark(group="one head, d = 32")
def test_dual_fit_and_predict(benchmark: Benchmark, n: int) -> None:
    Q, K, V = head(n)
    benchmark(lambda: OneStepRegressor().fit(K, V).predict(Q))


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.benchmark(group="one head, d = 32")
def test_dual_predict(benchmark: Benchmark, n: int) -> None:
    Q, K, V = head(n)
    model = OneStepRegressor().fit(K, V)
    benchmark(model.predict, Q)
