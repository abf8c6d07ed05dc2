"""The proof's own expressions against the code, and what the variance means."""

import math

import numpy as np
import pytest

from equivalence.features import PositiveFeatures
from equivalence.verify.budgets import sum_budget
from equivalence.verify.compare import compare
from equivalence.verify.quadrature import discretisation_error, gaussian_nodes
from proofs import load

U = 2.0**-53
PROOF = load("positive_features")
PAIRS = [([0.3], [0.9]), ([0.5, -0.25], [0.1, 0.75]), ([1.0, -0.5, 0.25], [0.5, 1.5, -1.0])]


def relative(value: float, roundings: int) -> object:
    """A relative budget of some roundings; the proof's numbers are rounded once."""
    return sum_budget(np.array([[value]]), roundings, U)


@pytest.mark.parametrize(("x", "y"), PAIRS)
def test_the_code_computes_the_expressions_of_the_proof(x: list[float], y: list[float]) -> None:
    w = [0.5, -1.25, 2.0][: len(x)]
    phi = PositiveFeatures([w])
    f, g = phi([x]).phi(), phi([y]).phi()
    # exponents below 8 in size: their roundings and exp's 4 ulp are below 64 unit roundoffs
    for name, got, given in (
        ("feature", f.item(), {"w": w, "x": x}),
        ("feature_product", (f * g).item(), {"w": w, "x": x, "y": y}),
    ):
        want = PROOF.evaluate(name, given)
        compare(name, [got], [want], relative(want, 64)).require()


@pytest.mark.parametrize(("x", "y"), PAIRS)
def test_the_moments_of_the_proof_are_those_of_the_quadrature(
    x: list[float], y: list[float]
) -> None:
    z = np.add(x, y)
    length = float(np.linalg.norm(z))
    for name, power in (("mean", 1), ("second_moment", 2)):
        nodes, weights = gaussian_nodes(power * length)
        phi = PositiveFeatures(nodes[:, None] * (z / length))
        (f, a), (g, b) = phi([x]), phi([y])
        T = f * g * np.exp(a + b)[:, None] * len(nodes)
        got = float((weights * T[0] ** power).sum())
        want = PROOF.evaluate(name, {"x": x, "y": y})
        budget = relative(want, 64 * power + len(nodes)) + relative(want, 1).times(
            2 * discretisation_error() / U
        )
        compare(name, [got], [want], budget).require()


@pytest.mark.parametrize(("x", "y"), PAIRS)
def test_the_variance_of_the_proof_is_exp_2xy_times_expm1_s(x: list[float], y: list[float]) -> None:
    s = math.fsum((a + b) ** 2 for a, b in zip(x, y, strict=True))
    want = math.exp(2 * math.fsum(a * b for a, b in zip(x, y, strict=True))) * math.expm1(s)
    got = PROOF.evaluate("variance", {"x": x, "y": y})
    compare("exp(2 x.y) (exp(s) - 1)", [got], [want], relative(want, 64)).require()
    log_variance = PROOF.evaluate("log_variance", {"x": x, "y": y})
    compare("log T has variance s", [log_variance], [s], relative(s, 16)).require()


def test_the_trapezoidal_rule_of_the_proof_is_the_one_used() -> None:
    for a in (0.0, 1.5, 4.0):
        nodes, weights = gaussian_nodes(a)
        got = float((weights * np.exp(a * nodes)).sum())
        want = PROOF.evaluate("trapezoid_exact", {"a": a, "h": 0.5})
        budget = relative(want, len(nodes) + 64) + relative(want, 1).times(
            2 * discretisation_error() / U
        )
        compare(f"a = {a}", [got], [want], budget).require()
    assert PROOF.evaluate("trapezoid_error", {"h": 0.5}) < discretisation_error()


def test_projections_are_the_callers_and_sampling_is_apart() -> None:
    W = np.array([[1.0, 2.0]])
    assert PositiveFeatures(W).projections is W
    draws = [PositiveFeatures.sample(2, 3, rng=np.random.default_rng(7)).projections for _ in "ab"]
    assert np.array_equal(*draws)
