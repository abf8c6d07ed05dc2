"""The proof's own expressions against the code, the tilt's optimum, log scales, and bad input."""

import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equivalence.features import GeneralizedFeatures, PositiveFeatures
from equivalence.features.generalized import optimal_tilt
from equivalence.verify.budgets import Budget, gamma, sum_budget
from equivalence.verify.compare import compare
from proofs import load

U = 2.0**-53
PROOF = load("generalized_exponential_features")
PAIRS = [([0.5], [-1.5]), ([0.5, -0.25], [1.0, 0.75]), ([1.0, -0.5, 0.25], [0.5, 1.5, -1.0])]
W = np.random.default_rng(0).standard_normal((6, 3))


def relative(value: float, roundings: int) -> Budget:
    return sum_budget(np.array([[value]]), roundings, U)


@pytest.mark.parametrize(("x", "y"), PAIRS)
@pytest.mark.parametrize("A", [-0.5, -0.0625, 0.0625])
def test_the_variance_of_the_code_is_that_of_the_proof(
    x: list[float], y: list[float], A: float
) -> None:
    rho = 1 / (1 - 8 * A)
    given = {"x": x, "y": y, "rho": rho}
    mean = PROOF.evaluate("mean", {"x": x, "y": y})
    square, mirrored = (
        PROOF.evaluate(name, given) / mean**2 for name in ("second_moment", "mirrored_moment")
    )
    for n, antithetic, second in ((1, False, square), (2, True, (square + mirrored) / 2)):
        got = GeneralizedFeatures.log_relative_variance([x], [y], n, A=A, antithetic=antithetic)
        # Exponents below 16 in size, and second - 1 beside 1.
        budget = relative(second + 1, 256)
        compare("E T^2 - 1", [math.exp(got.item())], [second - 1], budget).require()


@pytest.mark.parametrize("d", [1, 4, 64])
@pytest.mark.parametrize("s", [1e-3, 0.5, 4.0, 30.0, 1e4])
def test_the_best_tilt_is_the_one_of_the_proof(d: int, s: float) -> None:
    rho = 1 / (1 - 8 * optimal_tilt(s, d))
    back = PROOF.evaluate("stationary_s", {"rho": rho, "d": d})
    # s(rho) falls as (1 - rho) / rho: an error u of rho is one of u / (1 - rho).
    compare("s", [back], [s], relative(s, 64).times(1 / (1 - rho))).require()
    root = PROOF.evaluate("discriminant_root", {"rho": rho, "d": d})
    square = PROOF.evaluate("discriminant", {"s": s, "d": d})
    compare("root^2", [root**2], [square], relative(square, 128).times(1 / (1 - rho))).require()


@given(st.floats(0.01, 1e3), st.integers(1, 128), st.booleans())
def test_no_other_tilt_has_a_smaller_second_moment(s: float, d: int, antithetic: bool) -> None:
    A = optimal_tilt(s, d, antithetic=antithetic)
    x, y = np.zeros((1, d)), np.zeros((1, d))
    x[0, 0] = math.sqrt(s)
    best, *others = (
        GeneralizedFeatures.log_relative_variance(x, y, 2, A=a, antithetic=antithetic).item()
        for a in (A, 1.25 * A, 0.8 * A)
    )
    rounding = gamma(64, U) * (abs(best) + s + 1) / min(1.0, math.exp(best))
    assert all(best <= other + rounding for other in others)
    assert A <= optimal_tilt(s, d, antithetic=True) <= 0


def test_without_a_tilt_they_are_the_positive_features() -> None:
    x = np.random.default_rng(1).standard_normal((4, 3))
    got, want = GeneralizedFeatures(W)(x), PositiveFeatures(W)(x)
    for a, b in zip(got, want, strict=True):
        budget = Budget(gamma(8, U) * (abs(b) + 1), "the order of sums", U)
        compare("A = 0", a, b, budget).require()


def test_nothing_overflows_at_s_of_ten_thousand() -> None:
    x = [[100.0, 0.0]]
    A = optimal_tilt(1e4, 2)
    for antithetic in (False, True):
        for coupling in ("iid", "orthogonal"):
            log_variance = GeneralizedFeatures.log_relative_variance(
                x, [[0.0, 0.0]], 4, A=A, coupling=coupling, antithetic=antithetic
            )
            assert np.isfinite(log_variance).all()
            assert log_variance < 1e4  # the log of the positive features' own
    features, log_scale = GeneralizedFeatures(100 * W[:, :2], A)(x)
    assert np.isfinite(log_scale).all()
    assert features.max() == 1


def test_fit_takes_the_mean_of_the_squared_sums_and_knows_antithetic_projections() -> None:
    rng = np.random.default_rng(2)
    K, Q = rng.standard_normal((5, 3)), rng.standard_normal((7, 3)) + 1
    s = float(((K[:, None] + Q) ** 2).sum(axis=-1).mean())
    sigma = 2 * 64 * U * (1 + s) ** 2
    for antithetic in (False, True):
        phi = GeneralizedFeatures.sample(3, 4, rng=rng, antithetic=antithetic)
        assert phi.fit(K, Q) is phi
        assert abs(phi.A - optimal_tilt(s, 3, antithetic=antithetic)) <= sigma
    own = GeneralizedFeatures(W).fit(K).A
    assert own == GeneralizedFeatures(W).fit(K, K).A


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_dtypes_and_leading_axes_are_kept(dtype: str) -> None:
    x = np.random.default_rng(3).standard_normal((2, 4, 3)).astype(dtype)
    phi = GeneralizedFeatures(W, A=-0.25)(x)
    assert {phi.features.dtype, phi.log_scale.dtype} == {np.dtype(dtype)}
    assert (phi.features.shape, phi.log_scale.shape) == ((2, 4, 6), (2, 4))
    variance = GeneralizedFeatures.log_relative_variance(x, x[:, :1], 2, A=-0.25)
    assert (variance.shape, variance.dtype) == ((2, 4, 1), np.dtype(dtype))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_point_is_nan_and_spoils_no_other(bad: float) -> None:
    x = np.array([[1.0, 2.0, 3.0], [bad, 1.0, 1.0]])
    phi = GeneralizedFeatures(W, A=-0.25)(x).phi()
    assert np.isnan(phi[1]).all()
    assert np.isfinite(phi[0]).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: GeneralizedFeatures(W, A=0.125), ValueError, "A is 0.125; expected below 1/8"),
        (lambda: GeneralizedFeatures(W, A="x"), TypeError, "A is 'x'; expected a finite number"),
        (lambda: GeneralizedFeatures(W, A=math.nan), ValueError, "A is nan; expected a finite"),
        (lambda: GeneralizedFeatures([1.0]), ValueError, "projections has shape (1,); expected"),
        (lambda: GeneralizedFeatures(W)([[1.0]]), ValueError, "x has shape (1, 1); expected"),
        (lambda: GeneralizedFeatures(W).fit([[1.0]]), ValueError, "keys has shape (1, 1); exp"),
        (lambda: GeneralizedFeatures(W).fit(W, W[:0]), ValueError, "queries has shape (0, 3)"),
        (lambda: GeneralizedFeatures(W).fit(W * math.inf), ValueError, "keys has entries that are"),
        (lambda: optimal_tilt(-1.0, 3), ValueError, "s is -1.0; expected at least 0"),
        (lambda: optimal_tilt(1.0, 0), ValueError, "dim is 0; expected at least 1"),
        (
            lambda: GeneralizedFeatures.log_relative_variance(W, W, 2, A=1.0),
            ValueError,
            "A is 1.0; expected below 1/8",
        ),
        (
            lambda: GeneralizedFeatures.log_relative_variance(W, W, 2, coupling="sobol"),
            ValueError,
            "coupling is 'sobol'",
        ),
    ],
)
def test_bad_input_is_refused_by_name(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()
