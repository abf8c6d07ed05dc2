"""Mean and variance over draws, against Gauss-Hermite sums over the map's own features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from equivalence.features import (
    DenseFeatures,
    GeneralizedFeatures,
    PositiveFeatures,
    TrigonometricFeatures,
)
from equivalence.verify.budgets import Budget, gamma
from equivalence.verify.compare import compare

Array = np.ndarray[Any, Any]
U = 2.0**-53
X, Y = np.array([[0.3], [-0.5]]), np.array([[0.4], [0.2], [-0.1]])
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(48)
LAW = WEIGHTS / WEIGHTS.sum()
MAPS: dict[str, Callable[[Array], Any]] = {
    "positive": PositiveFeatures,
    "trigonometric": TrigonometricFeatures,
    "generalized": lambda W: GeneralizedFeatures(W, -0.1),
    "dense": lambda W: DenseFeatures(W, [-0.1]),
}


def terms(phi: Any, W: Array) -> Array:
    """phi_w(x) phi_w(y) for each pair of rows and each of the projections, (2, 3, nodes)."""
    f, g = phi(X).phi(), phi(Y).phi()
    product = f[:, None, :] * g[None, :, :]
    return len(W) * product.reshape(2, 3, -1, len(W)).sum(axis=2)


def budget(size: Array) -> Budget:
    return Budget(gamma(2048, U) * size, "sums over 48 nodes, exponents below 64 in size", U)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("antithetic", [False, True])
def test_the_moments_are_those_of_the_features(name: str, antithetic: bool) -> None:
    T = terms(MAPS[name](NODES[:, None]), NODES)
    if antithetic:
        T = (T + T[..., ::-1]) / 2
    m = 6
    phi = MAPS[name](np.ones((m, 1)))
    phi.antithetic = antithetic
    mean, square = T @ LAW, T**2 @ LAW
    compare("mean", phi.expected(X, Y), mean, budget(mean)).require()
    variance = (square - mean**2) / (m // 2 if antithetic else m)
    compare("variance", phi.variance(X, Y), variance, budget(square)).require()


def test_a_draw_knows_its_coupling() -> None:
    how = {"coupling": "orthogonal", "antithetic": True}
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 4, 3)) / 2
    for cls in (PositiveFeatures, TrigonometricFeatures, GeneralizedFeatures):
        phi = cls.sample(3, 12, rng=rng, **how)
        relative = cls.log_relative_variance(x, y, 12, **how)
        want = np.exp(relative + 2 * x @ y.T)
        compare("variance", phi.variance(x, y), want, budget(want)).require()
        # Given projections count as independent.
        assert (phi.variance(x, y) != cls(phi.projections).variance(x, y)).all()


def test_the_moments_overflow_to_infinity_and_keep_the_dtype() -> None:
    x = np.full((1, 1), 20.0, np.float32)
    phi = PositiveFeatures([[1.0]])
    assert phi.expected(x, x).dtype == phi.variance(x, x).dtype == np.float32
    assert phi.expected(x, x).item() == phi.variance(x, x).item() == np.inf
    assert phi.expected(x, -x).item() == phi.variance(x, -x).item() == 0


@pytest.mark.parametrize("of", ["expected", "variance"])
def test_bad_input_is_refused_by_name(of: str) -> None:
    moment = getattr(PositiveFeatures([[1.0]]), of)
    with pytest.raises(ValueError, match="y has shape"):
        moment([[1.0]], [[1.0, 2.0]])
    with pytest.raises(TypeError, match="x has dtype"):
        moment([["a"]], [[1.0]])
    sobol = PositiveFeatures.sample(1, 2, rng=np.random.default_rng(0), coupling="sobol")
    with pytest.raises(ValueError, match="sobol"):
        sobol.variance([[1.0]], [[1.0]])
