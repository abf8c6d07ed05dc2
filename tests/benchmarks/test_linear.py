"""What linear attention costs beside exact attention, and a feature, in one run: `tox -e bench`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from equivalence import attention
from equivalence.features import PositiveFeatures, TrigonometricFeatures
from equivalence.linear import linear_attention
from equivalence.streaming import AttentionState

Benchmark = Callable[..., Any]
GROUP = "one head, n = 2048, d = 64, m = 256"
RNG = np.random.default_rng(0)
Q, K, V = RNG.standard_normal((3, 2048, 64))
X = Q / 64**0.25
POSITIVE = PositiveFeatures.sample(64, 256, rng=RNG)
TRIGONOMETRIC = TrigonometricFeatures.sample(64, 256, rng=RNG)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.benchmark(group=GROUP)
def test_attention(benchmark: Benchmark, causal: bool) -> None:
    benchmark(attention, Q, K, V, causal=causal)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.benchmark(group=GROUP)
def test_linear_attention(benchmark: Benchmark, causal: bool) -> None:
    benchmark(linear_attention, Q, K, V, POSITIVE, causal=causal)


@pytest.mark.parametrize("phi", [POSITIVE, TRIGONOMETRIC], ids=lambda phi: type(phi).__name__)
@pytest.mark.benchmark(group=GROUP)
def test_features(benchmark: Benchmark, phi: PositiveFeatures) -> None:
    benchmark(phi, X)


@pytest.mark.benchmark(group="one token of a stream, d = 64, m = 256")
def test_streaming(benchmark: Benchmark) -> None:
    state = AttentionState.of(POSITIVE(X), V)
    benchmark(lambda: state.update(POSITIVE(X[:1]), V[:1]).read(POSITIVE(X[:1])))
