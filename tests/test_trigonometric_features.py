"""The proof's own expressions against the code, and what a signed estimate does."""

import math
import re
from typing import Any

import numpy as np
import pytest

from equivalence.features import PositiveFeatures, TrigonometricFeatures
from equivalence.verify import oracle
from equivalence.verify.budgets import Budget, gamma, sum_budget
from equivalence.verify.compare import compare
from proofs import load

U = 2.0**-53
PROOF = load("trigonometric_features")
PAIRS = [([0.3], [0.9]), ([0.5, -0.25], [0.1, 0.75]), ([1.0, -0.5, 0.25], [0.5, 1.5, -1.0])]
RANGE = [2.0**-40, 1e-6, 0.5, 4.0, 30.0, 690.0, 710.0, 1e4]


def relative(value: float, roundings: int) -> Budget:
    """A relative budget of some roundings; the proof's numbers are rounded once."""
    return sum_budget(np.array([[value]]), roundings, U)


@pytest.mark.parametrize(("x", "y"), PAIRS)
def test_the_code_computes_the_expressions_of_the_proof(x: list[float], y: list[float]) -> None:
    w = [0.5, -1.25, 2.0][: len(x)]
    phi = TrigonometricFeatures([w])
    got = (phi([x]).phi() @ phi([y]).phi().T).item()
    for name in ("feature_product", "wave"):
        want = PROOF.evaluate(name, {"w": w, "x": x, "y": y})
        # phases and exponents below 8: the terms are at most e^{(|x|^2+|y|^2)/2}
        size = math.exp((np.dot(x, x) + np.dot(y, y)) / 2)
        compare(name, [got], [want], relative(size, 128)).require()
    mean = PROOF.evaluate("mean", {"x": x, "y": y})
    compare("exp(x.y)", [math.exp(np.dot(x, y))], [mean], relative(mean, 32)).require()


@pytest.mark.parametrize("root", [0.5, 1.0, 2.0])
def test_the_variance_of_the_code_is_that_of_the_proof(root: float) -> None:
    log_variance = TrigonometricFeatures.log_relative_variance([[root, 0.0]], [[0.0, 0.0]], 2)
    got = math.exp(log_variance.item())
    for name, value in (("variance", got), ("second_moment", got + 1)):
        want = PROOF.evaluate(name, {"delta": root**2})
        compare(name, [value], [want], relative(want, 64)).require()


def test_the_logarithm_is_right_from_tiny_distances_to_ten_thousand() -> None:
    balls = oracle.balls()
    for root in np.sqrt(RANGE):
        r = balls.number(float(root))
        # cosh delta - 1 = 2 sinh(delta/2)^2, without cancellation
        want = ((r * r / 2).sinh() ** 2 * 2).log() - balls.number(3.0).log()
        got = TrigonometricFeatures.log_relative_variance([[float(root)]], [[0.0]], 6)
        budget = Budget(gamma(8, U) * (abs(got) + float(root) ** 2) + gamma(16, U), "its size", U)
        oracle.against(balls, f"log variance at {root**2:g}", got, [[want]], budget).require()


def test_the_estimate_of_a_positive_kernel_can_be_negative() -> None:
    phi = TrigonometricFeatures([[math.pi]])
    estimate = (phi([[1.0]]).phi() @ phi([[0.0]]).phi().T).item()
    want = -math.exp(0.5)
    compare("e^{1/2} cos(pi)", [estimate], [want], relative(want, 32)).require()


def test_equal_points_are_estimated_without_any_variance() -> None:
    x = np.array([[0.5, -1.5]])
    phi = TrigonometricFeatures.sample(2, 64, rng=np.random.default_rng(0))
    f = phi(x).phi()
    want = math.exp(2.5)
    compare("exp(|x|^2)", f @ f.T, [[want]], relative(want, 256)[..., None]).require()
    assert TrigonometricFeatures.log_relative_variance(x, x, 64).item() == -math.inf


def test_antithetic_frequencies_are_repetitions() -> None:
    x, y = [[1.0, 0.5]], [[0.0, -0.5]]
    for coupling in ("iid", "orthogonal", "simplex"):
        twice, once = (
            TrigonometricFeatures.log_relative_variance(x, y, n, coupling=coupling, antithetic=a)
            for n, a in ((12, True), (6, False))
        )
        assert np.array_equal(twice, once)


def test_norms_where_the_scale_overflows_keep_their_features() -> None:
    x = np.full((1, 4), 30.0)
    features, log_scale = TrigonometricFeatures(np.eye(4))(x)
    assert (abs(features) <= 1).all()
    want = 1800 - math.log(4) / 2
    compare("|x|^2/2 - log(m)/2", log_scale, [want], relative(want, 8)).require()


def test_cosines_come_before_sines_in_the_dtype_of_the_points() -> None:
    for dtype in (np.float16, np.float32, np.float64):
        phi = TrigonometricFeatures(np.array([[0.0], [math.pi / 2]], np.float64))
        features, log_scale = phi(np.ones((2, 3, 1), dtype))
        assert features.shape == (2, 3, 4)
        assert features.dtype == log_scale.dtype == dtype
        assert features[0, 0].round().tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e200])
def test_what_is_not_finite_has_no_finite_features(bad: float) -> None:
    phi = TrigonometricFeatures([[1.0]])([[bad], [1.0]]).phi()
    assert np.isnan(phi[0]).all()
    assert np.isfinite(phi[1]).all()


BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "odd": (5, ValueError, "n_features is 5; expected a cosine and a sine a projection"),
    "none": (0, ValueError, "n_features is 0; expected a cosine and a sine a projection"),
    "a float": (4.0, TypeError, "n_features is 4.0; expected an integer"),
}


@pytest.mark.parametrize(("n", "error", "message"), BAD.values(), ids=BAD)
def test_numbers_of_features_that_do_not_fit_are_refused(
    n: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        TrigonometricFeatures.sample(3, n, rng=np.random.default_rng(0))
    with pytest.raises(error, match=re.escape(message)):
        TrigonometricFeatures.log_relative_variance([[1.0]], [[1.0]], n)


def test_which_map_is_better_depends_on_the_angle() -> None:
    """Positive features are exact at y = -x, trigonometric ones at y = x."""
    x = np.array([[1.0, 1.0]])
    for y, exact, other in (
        (-x, PositiveFeatures, TrigonometricFeatures),
        (x, TrigonometricFeatures, PositiveFeatures),
    ):
        assert exact.log_relative_variance(x, y, 2) == -math.inf
        assert other.log_relative_variance(x, y, 2) > 0
