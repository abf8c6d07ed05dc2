"""The proof's own expressions against the code, quadrature over both norms, and the ranking."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import special

from equivalence.features import PositiveFeatures, sample_projections
from equivalence.features.variance import correlation, log_relative_variance
from equivalence.verify import coupled, oracle
from equivalence.verify.budgets import Budget, gamma, sum_budget
from equivalence.verify.compare import compare
from proofs import load

Array = np.ndarray[Any, Any]

U = 2.0**-53
PROOF = load("simplex_features")
KINDS: list[dict[str, bool]] = [{}, {"antithetic": True}, {"trigonometric": True}]


@pytest.mark.parametrize("d", [2, 3, 5, 9])
def test_the_corners_are_those_of_the_proof(d: int) -> None:
    W = sample_projections(d, d, rng=np.random.default_rng(d), coupling="simplex")
    directions = W / np.linalg.norm(W, axis=1, keepdims=True)
    want = [
        [PROOF.evaluate("corner_product", {"n": d - 1, "i": i, "j": j}) for j in range(1, d + 1)]
        for i in range(1, d + 1)
    ]
    budget = coupled.cosine_budget(d).times(4)
    compare("cosines", directions @ directions.T, want, budget).require()
    total = directions.sum(axis=0)
    compare("the corners lie around 0", total, 0 * total, budget.times(d)).require()
    R_1, R_2 = np.linalg.norm(W[:2], axis=1)
    norm = PROOF.evaluate("norm_of_sum", {"n": d - 1, "R_1": float(R_1), "R_2": float(R_2)})
    size = float((R_1 + R_2) ** 2)
    got = float(((W[0] + W[1]) ** 2).sum())
    compare("|w_1 + w_2|^2", [got], [norm], budget.times(size)).require()


@pytest.mark.parametrize("d", [2, 3, 8])
def test_the_correlation_is_the_series_of_the_proof(d: int) -> None:
    """The mean over the angle, by Gauss-Legendre, of the series whose quotients the proof gives."""
    s = 1.5
    nodes, weights = np.polynomial.legendre.leggauss(60)
    sines = np.sin((nodes + 1) * (math.pi / 2))
    density = weights * sines ** (d - 1) / (weights @ sines ** (d - 1))
    B = [float(x) for x in sines]
    # In one table: the quotient at B = 0 and its slope, as the proof's ratio is affine in B.
    at = {b: [PROOF.evaluate("ratio", {"n": d - 1, "k": k, "s": s, "B": b}) for k in range(1, 40)]
          for b in (0.5, 1.0)}  # fmt: skip
    slope = (np.array(at[1.0]) - np.array(at[0.5])) * 2
    start = np.array(at[1.0]) - slope
    first = s * (1 - np.array(B) / (d - 1))
    terms = np.cumprod([first, *(start[:, None] + slope[:, None] * np.array(B))], axis=0)
    want = math.exp(-s) * (1 + density @ terms.sum(axis=0)) - 1
    got = math.exp(s) * correlation(np.array([s]), d, "simplex")[0]
    # The integrands are entire: 60 and 96 nodes leave nothing out; sums of 40 terms by 60 nodes.
    budget = Budget(np.array(gamma(4000, U)), "sums of 60 series of 40 terms", U)
    compare("c", [got], [want], budget).require()


def test_the_correlation_begins_as_the_proof_says() -> None:
    for d in (2, 3, 8, 64):
        s = 2.0**-30
        balls = oracle.balls()
        sines = coupled._sine_integrals(balls, d + 1)
        e_B = float(sines[d] / sines[d - 1])
        want = PROOF.evaluate("first_order", {"n": d - 1, "s": s, "e_B": e_B})
        got = correlation(np.array([s]), d, "simplex")[0]
        # The second order has coefficients below 2 and rounding that of 96 angles.
        compare("c", [got], [want], sum_budget(np.array([[want]]), 400, U)
                + Budget(np.array(4 * s**2 * d), "second order", U)).require()  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("d", [2, 3, 8, 64])
def test_the_logarithm_is_right_at_any_norm(kind: dict[str, bool], d: int) -> None:
    balls, sign = oracle.balls(), -1 if kind.get("trigonometric") else 1
    pair = kind.get("antithetic", False)
    for t in (1e-6, 1e-2, 1.0, 1.9, 2.1, 16.0, 50.0):
        x = np.zeros((1, d))
        x[0, 0] = math.sqrt(t)
        exact_t = balls.number(x[0, 0]) * balls.number(x[0, 0])
        n = 2 * d + 1
        got = log_relative_variance(x, 0 * x, n * (1 + pair), coupling="simplex", **kind)
        c = coupled.simplex_c(balls, exact_t, d, sign, pair=bool(kind))
        exact = coupled.exact_variance(balls, exact_t, coupled.partners(n, d), c, pair=bool(kind))
        want = exact.log() + exact_t - balls.number(float(n)).log()
        lost = gamma(800, U) * (d + 2)
        budget = Budget(lost + gamma(4, U) * abs(got), "c beside E T^2 - 1; the sum's size", U)
        oracle.against(balls, f"log variance at t={t:g}", got, [[want]], budget).require()


def test_norms_of_ten_thousand_are_finite_and_those_of_single_terms() -> None:
    """At s = 1e4 correlations are nothing beside E T^2: the variance is that of n single terms."""
    for kind in KINDS:
        x = np.zeros((1, 4))
        x[0, 0] = 100.0
        coupled_, alone = (
            log_relative_variance(x, 0 * x, 8, coupling=coupling, **kind)
            for coupling in ("simplex", "iid")
        )
        compare("log variance", coupled_, alone, sum_budget(alone[..., None], 4, U)).require()
        assert abs(alone - 1e4).max() < 4


def test_the_ranking_at_small_norms() -> None:
    """N = 2d features, s = 1/2: each coupling and mirroring lowers the variance, in this order."""
    d = 16
    x = np.zeros((1, d))
    x[0, 0] = math.sqrt(0.5)
    variances = [
        math.exp(PositiveFeatures.log_relative_variance(x, 0 * x, 2 * d, **options).item())
        for options in (
            {},
            {"coupling": "orthogonal"},
            {"antithetic": True},
            {"coupling": "simplex"},
            {"coupling": "simplex", "antithetic": True},
            {"coupling": "orthogonal", "antithetic": True},
        )
    ]
    assert variances == sorted(variances, reverse=True)


def product_mean(t: float, d: int, wave: Callable[[Array], Array]) -> float:
    """E wave(w_1.z) wave(w_2.z) of an even wave, |z|^2 = t, over norms and a plane's directions.

    u_1 = (a_1, a_2, ..) is uniform, and u_2 has the coordinate rho a_1 + sqrt(1 - rho^2) a_2.
    """
    N, rho = 40, -1 / (d - 1)
    v, w_R = special.roots_genlaguerre(N, d / 2 - 1)
    R, w_R = np.sqrt(2 * v), w_R / w_R.sum()
    square, w_square = np.ones(1), np.ones(1)
    if d > 2:
        x, w_square = special.roots_jacobi(N, (d - 4) / 2, 0)
        square = (1 + x) / 2
    angle = (np.arange(2 * N + 1) + 0.5) * (math.pi / (2 * N + 1))
    a_1, a_2 = (np.multiply.outer(np.sqrt(square), f(angle)) for f in (np.cos, np.sin))
    b = rho * a_1 + math.sqrt(1 - rho**2) * a_2
    F, G = (wave(np.multiply.outer(a, R) * math.sqrt(t)) @ w_R for a in (a_1, b))
    return float((w_square / w_square.sum()) @ (F * G).mean(axis=1))


@pytest.mark.parametrize("t", [0.1, 0.9, 2.5])
@pytest.mark.parametrize("d", [2, 3, 5])
def test_what_is_even_in_w_has_the_correlation_of_quadrature(d: int, t: float) -> None:
    """Through the waves themselves, whatever identity the closed form rests on."""
    for kind, wave, scale in (
        ({"antithetic": True}, np.cosh, math.exp(-t)),
        ({"trigonometric": True}, np.cos, math.exp(t)),
    ):
        want = scale * product_mean(t, d, wave) - 1
        got = math.exp(t) * correlation(np.array([t]), d, "simplex", **kind)
        budget = coupled.quadrature_budget(t, 40, 0.0, math.exp(2 * t))
        compare(f"c, {kind}", [got], [[want]], budget).require()


@pytest.mark.parametrize("options", [{}, {"antithetic": True}], ids=str)
def test_samples_have_the_variance_that_is_predicted(options: dict[str, Any]) -> None:
    """d = 3, small norms: the mean square of the error, within 8 of its standard errors."""
    rng = np.random.default_rng(11)
    z, n = np.array([0.5, 0.0, 0.2]), 6 if options else 3
    W = sample_projections(3 * 40000, 3, rng=rng, coupling="simplex").reshape(-1, 3, 3)
    even = bool(options)
    phases = W @ z
    terms = (np.cosh(phases) if even else np.exp(phases)) * math.exp(-z @ z / 2)
    x = z[None]
    predicted = PositiveFeatures.log_relative_variance(x, 0 * x, n, coupling="simplex", **options)
    squares = (terms.mean(axis=1) - 1) ** 2 / math.exp(predicted.item())
    standard_error = squares.std() / math.sqrt(len(squares))
    assert abs(squares.mean() - 1) <= 8 * standard_error
    assert 8 * standard_error < 1 / 4


def test_one_dimension_has_no_angle() -> None:
    x = [[0.75]]
    for kind in KINDS:
        both = [
            log_relative_variance(x, [[0.0]], 4, coupling=coupling, **kind)
            for coupling in ("iid", "simplex")
        ]
        assert np.array_equal(*both)
