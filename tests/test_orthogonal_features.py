"""The proof's own expressions against the code, the range of the closed form, and the sampler."""

import math
import re
from typing import Any

import numpy as np
import pytest
from scipy import special

from equivalence.features import PositiveFeatures, TrigonometricFeatures, sample_projections
from equivalence.features.couplings import COUPLINGS, haar
from equivalence.features.variance import correlation, log_relative_variance, partners
from equivalence.verify import coupled, oracle
from equivalence.verify.budgets import Budget, gamma, sum_budget
from equivalence.verify.compare import compare
from proofs import load

U = 2.0**-53
PROOF = load("orthogonal_features")
DIMENSIONS = [2, 3, 8, 64]
# Both sides of where the series of g, the Poisson sum, and e^-t as a float end.
RANGE = [1e-6, 1e-3, 0.5, 1.9, 2.1, 30.0, 690.0, 710.0, 1e4]
KINDS: list[dict[str, Any]] = [{}, {"antithetic": True}, {"trigonometric": True}]


def pair(t: float, d: int, sign: int) -> tuple[Any, Any]:
    """Points with |x + sign y|^2 = t, up to the rounding of its root."""
    x = np.zeros((1, d))
    x[0, 0] = math.sqrt(t) / 2
    return x, sign * x


@pytest.mark.parametrize("d", DIMENSIONS)
@pytest.mark.parametrize("s", [0.25, 1.0, 5.0])
def test_the_correlation_is_the_series_of_the_proof(d: int, s: float) -> None:
    terms = [1.0] + [PROOF.evaluate("series_term", {"d": d, "k": k, "s": s}) for k in range(1, 60)]
    for k in (1, 7):
        ratio = PROOF.evaluate("ratio", {"d": d, "k": k, "s": s})
        quotient = terms[k + 1] / terms[k]
        compare("ratio", [quotient], [ratio], sum_budget(np.array([ratio]), 4, U)).require()
    want = math.exp(-s) * math.fsum(terms) - 1
    # e^-s 1F1 is below 1, and 60 terms leave (2 s)^60/60! out; the code errs like its logarithms.
    budget = Budget(np.array(gamma(100 + 8 * d, U)), "both are differences of numbers below 1", U)
    compare("c", math.exp(s) * correlation(np.array([s]), d, "orthogonal"), [want],
            budget.times(math.exp(s))).require()  # fmt: skip


def test_the_correlation_begins_as_the_proof_says() -> None:
    for d in DIMENSIONS:
        s = 2.0**-20
        leading = PROOF.evaluate("leading", {"d": d, "s": s})
        got = correlation(np.array([s]), d, "orthogonal")
        # The next term is s^3 / (3 (d/2 + 2)(d/2 + 1) 4), and e^-s is 1 - s.
        budget = sum_budget(np.array([leading]), 8, U) + Budget(abs(got) * 2 * s, "next order", U)
        compare("c", got, [leading], budget).require()


@pytest.mark.parametrize("m", [1, 2, 5])
def test_the_variance_of_a_block_is_that_of_the_proof(m: int) -> None:
    s, d = 1.0, 5
    c = math.exp(s) * float(correlation(np.array([s]), d, "orthogonal")[0])
    want = PROOF.evaluate("variance", {"m": m, "E_TT": math.exp(s), "c": c})
    x, y = np.eye(1, d), np.zeros((1, d))
    got = np.exp(PositiveFeatures.log_relative_variance(x, y, m, coupling="orthogonal"))
    compare("variance", got, [[want]], sum_budget(np.array([[[want]]]), 32, U)).require()


def test_the_product_of_terms_is_that_of_the_features() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 1, 3)) / 2
    W = sample_projections(2, 3, rng=rng, coupling="orthogonal")
    phi = PositiveFeatures(W)
    terms = 2 * phi(x).phi()[0] * phi(y).phi()[0] / np.exp((x @ y.T).item())
    given = {"w_1": W[0].tolist(), "w_2": W[1].tolist(), "z": (x + y)[0].tolist()}
    want = PROOF.evaluate("product", given)
    compare("T_1 T_2", [terms.prod()], [want], sum_budget(np.array([[want]]), 256, U)).require()


def test_the_moments_of_a_chi_norm_are_those_of_its_square() -> None:
    # v^d with v^-2 = 1 - 2 tau, at tau = -3/2: the mean of exp(-3 R^2/2), by Gauss-Laguerre.
    for d in (2, 5):
        want = PROOF.evaluate("chi_square", {"d": d, "v": 0.5})
        R, w = coupled._nodes(d, 60)[:2]
        got = float(w @ np.exp(-1.5 * R**2))
        assert abs(got - want) <= coupled.quadrature_budget(3.0, 60, 0.0, 1.0).bound


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("d", DIMENSIONS)
def test_the_logarithm_is_right_up_to_norms_of_ten_thousand(kind: dict[str, Any], d: int) -> None:
    balls, sign = oracle.balls(), -1 if kind.get("trigonometric") else 1
    for root in np.sqrt(RANGE):
        t = float(root) ** 2
        x, y = pair(t, d, sign)
        t = float((x - y)[0, 0] ** 2 if sign < 0 else (x + y)[0, 0] ** 2)
        n = 2 * d + 1
        got = log_relative_variance(x, y, n * (1 + ("antithetic" in kind)), coupling="orthogonal",
                                    **kind)  # fmt: skip
        c = coupled.orthogonal_c(balls, balls.number(t), d, sign)
        p = coupled.partners(n, d)
        exact = coupled.exact_variance(balls, balls.number(t), p, c, pair=bool(kind))
        want = exact.log() + t - balls.number(float(n)).log()
        # Relative to the variance, c errs like the Poisson sum, and cancels all but 3/(d + 2).
        lost = gamma(200 + int(min(t, 1e3)), U) * (d + 2)
        budget = Budget(lost + gamma(4, U) * abs(got), "c beside E T^2 - 1; the sum's size", U)
        oracle.against(balls, f"log variance at t={t:g}", got, [[want]], budget).require()


@pytest.mark.parametrize("t", [np.inf, np.nan])
def test_what_is_not_finite_is_not_a_finite_variance(t: float) -> None:
    for kind in KINDS:
        got = log_relative_variance([[t]], [[0.0]], 2, coupling="orthogonal", **kind)
        assert not np.isfinite(got).any()


def test_at_no_distance_there_is_no_variance() -> None:
    for kind in KINDS:
        x, y = pair(0.0, 3, 1)
        assert log_relative_variance(x, y, 4, coupling="orthogonal", **kind) == -np.inf


def test_pairs_of_rows_broadcast_and_keep_their_dtype() -> None:
    x, y = np.ones((2, 1, 4, 3), np.float32), np.zeros((5, 6, 3), np.float32)
    got = log_relative_variance(x, y, 4, coupling="orthogonal")
    assert got.shape == (2, 5, 4, 6)
    assert got.dtype == np.float32
    assert (got == got[0, 0, 0, 0]).all()


@pytest.mark.parametrize("make", [PositiveFeatures, TrigonometricFeatures])
@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("antithetic", [False, True])
def test_maps_draw_by_the_sampler(make: Any, coupling: str, antithetic: bool) -> None:
    features = 12
    rows = features // (2 if make is TrigonometricFeatures else 1)
    options = {"coupling": coupling, "antithetic": antithetic}
    drawn = make.sample(3, features, rng=np.random.default_rng(3), **options)
    want = sample_projections(rows, 3, rng=np.random.default_rng(3), **options)
    assert np.array_equal(drawn.projections, want)
    assert want.shape == (rows, 3)
    assert drawn(np.zeros((1, 3))).features.shape == (1, features)


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize(("n", "d"), [(1, 1), (7, 1), (1, 5), (4, 3), (6, 3), (7, 3)])
def test_any_number_of_projections_in_any_dimension(coupling: str, n: int, d: int) -> None:
    W = sample_projections(n, d, rng=np.random.default_rng(0), coupling=coupling)
    assert W.shape == (n, d)
    assert np.isfinite(W).all()


@pytest.mark.parametrize("d", [1, 2, 5])
def test_haar_matrices_are_the_q_of_a_positive_diagonal(d: int) -> None:
    G = np.random.default_rng(1).standard_normal((4, d, d))
    Q = haar(4, d, np.random.default_rng(1))
    R = np.swapaxes(Q, -1, -2) @ G
    assert (np.diagonal(R, axis1=-2, axis2=-1) > 0).all()
    found = np.swapaxes(Q, -1, -2) @ Q - np.eye(d)
    compare("Q^T Q = I", found, 0 * found, coupled.cosine_budget(d)).require()
    lower = R[:, *np.tril_indices(d, -1)]
    compare("R is triangular", lower, 0 * lower,
            coupled.cosine_budget(d).times(float(abs(G).max()) * d)).require()  # fmt: skip


def test_partners_are_counted_one_by_one() -> None:
    for n in range(1, 12):
        for d in range(1, 6):
            want = coupled.partners(n, d)
            budget = sum_budget(np.array([[want]]), 2, U)
            compare("partners", [partners(n, d, "orthogonal")], [want], budget).require()


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "coupling": ({"coupling": "haar"}, ValueError, "coupling is 'haar'; expected one of iid, orth"),
    "no name": ({"coupling": None}, ValueError, "coupling is None; expected one of"),
    "antithetic": ({"antithetic": 1}, TypeError, "antithetic is 1; expected True or False"),
    "odd": ({"antithetic": True}, ValueError, "n_features is 5; expected pairs of antithetic"),
}


@pytest.mark.parametrize(("options", "error", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_drawn_is_refused_by_name(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(error, match=re.escape(message)):
        PositiveFeatures.sample(3, 5, rng=rng, **options)
    with pytest.raises(error, match=re.escape(message)):
        PositiveFeatures.log_relative_variance([[1.0]], [[1.0]], 5, **options)


def test_what_has_no_closed_form_says_so() -> None:
    for make in (PositiveFeatures, TrigonometricFeatures):
        with pytest.raises(ValueError, match=r"'sobol'; expected .* no closed form is known"):
            make.log_relative_variance([[1.0]], [[1.0]], 4, coupling="sobol")
    with pytest.raises(ValueError, match="dim is 21202; expected at most 21201"):
        sample_projections(1, 21202, rng=np.random.default_rng(0), coupling="sobol")
    with pytest.raises(
        ValueError, match=re.escape("y has shape (1, 2); expected (..., n_tokens, 1")
    ):
        PositiveFeatures.log_relative_variance([[1.0]], [[1.0, 2.0]], 4)


@pytest.mark.parametrize("d", [2, 3, 5])
def test_the_asymptotic_term_of_cosines_is_right_to_its_next_order(d: int) -> None:
    for delta in (2.1e4, 1e5):
        balls = oracle.balls()
        want = balls.kummer(float(d), d / 2, balls.number(-delta / 2))
        got = correlation(np.array([[delta]]), d, "orthogonal", trigonometric=True)
        # 1F1(a; b; -x) ~ Gamma(b)/Gamma(b-a) x^-a (1 + a (1 + a - b)/x + ..), a = d, b = d/2.
        left_out = 2 * d * (1 + d / 2) / (delta / 2) * abs(float(want)) + np.finfo(float).tiny
        budget = Budget(np.array(left_out + gamma(64, U) * abs(got)), "the next order", U)
        oracle.against(balls, f"c at {delta:g}", got, [[want]], budget).require()


def test_sobol_points_lie_in_the_middles_of_cells_one_in_each() -> None:
    n = 64
    W = sample_projections(n, 3, rng=np.random.default_rng(2), coupling="sobol")
    uniform = special.ndtr(W)
    in_cell = uniform * 2.0**30 % 1
    assert (abs(in_cell - 0.5) < 0.25).all()
    # A scrambled net has one point in each of n equal cells of every coordinate.
    for column in uniform.T:
        assert sorted(np.floor(column * n).astype(int).tolist()) == list(range(n))
