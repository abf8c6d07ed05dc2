"""The proof's own expressions against the code, and the range of the closed form."""

import math

import numpy as np
import pytest

from equivalence.features import PositiveFeatures, sample_projections
from equivalence.verify import oracle
from equivalence.verify.budgets import Budget, gamma, sum_budget
from equivalence.verify.compare import compare
from proofs import load

U = 2.0**-53
PROOF = load("antithetic_features")
RANGE = [2.0**-40, 1e-6, 0.5, 4.0, 30.0, 690.0, 710.0, 1e4]


def relative(value: float, roundings: int) -> Budget:
    """A relative budget of some roundings; the proof's numbers are rounded once."""
    return sum_budget(np.array([[value]]), roundings, U)


@pytest.mark.parametrize("d", [1, 3])
def test_a_pair_of_features_is_the_term_of_the_proof(d: int) -> None:
    rng = np.random.default_rng(d)
    x, y = rng.standard_normal((2, 1, d)) / 2
    W = sample_projections(2, d, rng=rng, antithetic=True)
    phi = PositiveFeatures(W)
    f, g = phi(x).phi(), phi(y).phi()
    kernel = np.exp(x @ y.T).item()
    given = {"w": W[0].tolist(), "z": (x + y)[0].tolist()}
    for name, got in (
        ("pair_term", (f @ g.T).item() / kernel),
        ("opposite", 4 * float((f * g).prod()) / kernel**2),
    ):
        if name == "opposite":
            given = {"z": given["z"]}
        want = PROOF.evaluate(name, given)
        # exponents below 8 in size: their roundings and exp's 4 ulp are below 64 unit roundoffs
        compare(name, [got], [want], relative(want, 256)).require()


@pytest.mark.parametrize("root", [0.5, 1.0, 2.0])
def test_the_variances_of_the_code_are_those_of_the_proof(root: float) -> None:
    x, y, s = [[root, 0.0]], [[0.0, 0.0]], root**2
    pair, two = (
        math.exp(PositiveFeatures.log_relative_variance(x, y, 2, antithetic=kind).item())
        for kind in (True, False)
    )
    for name, got in (("variance", pair), ("independent", two), ("saved", pair / two)):
        want = PROOF.evaluate(name, {"s": s})
        compare(name, [got], [want], relative(want, 64)).require()
    second = PROOF.evaluate("second_moment", {"s": s})
    compare("E T^2 - 1", [pair + 1], [second], relative(second, 64)).require()


def test_the_logarithm_is_right_from_tiny_norms_to_ten_thousand() -> None:
    balls = oracle.balls()
    for root in np.sqrt(RANGE):
        x, s = np.array([[root]]), balls.number(float(root))
        # cosh s - 1 = 2 sinh(s/2)^2, without cancellation
        want = ((s * s / 2).sinh() ** 2 * 2).log() - balls.number(3.0).log()
        got = PositiveFeatures.log_relative_variance(x, 0 * x, 6, antithetic=True)
        budget = Budget(gamma(8, U) * (abs(got) + float(root) ** 2) + gamma(16, U), "its size", U)
        oracle.against(balls, f"log variance at s={root**2:g}", got, [[want]], budget).require()


def test_pairs_mirror_whatever_coupling_draws_them() -> None:
    for coupling in ("iid", "orthogonal", "simplex", "sobol"):
        rng, again = np.random.default_rng(5), np.random.default_rng(5)
        W = sample_projections(8, 3, rng=rng, coupling=coupling, antithetic=True)
        half = sample_projections(4, 3, rng=again, coupling=coupling)
        assert np.array_equal(W, np.concatenate([half, -half]))


def test_antithetic_pairs_never_have_more_variance_than_independent_ones() -> None:
    x = np.linspace(0.01, 3, 20)[:, None]
    pair, plain = (
        PositiveFeatures.log_relative_variance(x, x, 8, antithetic=kind) for kind in (True, False)
    )
    assert (pair < plain)[:-10].all()
    assert (pair <= plain).all()
