"""The proof's own expressions against the code, and the corners of a Gram matrix."""

import numpy as np
import pytest

from equivalence import OneStepRegressor, attention
from equivalence.features import GramFeatures
from equivalence.verify import oracle
from equivalence.verify.budgets import attention_budget, kernel_budget, sum_budget
from equivalence.verify.cases import Case, make_case
from equivalence.verify.compare import compare
from equivalence.verify.dual_case import see_dual
from equivalence.verify.implementation import OURS
from proofs import load

U = 2.0**-53
PROOF = load("gram_features")


def test_the_code_computes_the_expressions_of_the_proof() -> None:
    rng = np.random.default_rng(0)
    K, q = rng.standard_normal((4, 2)), rng.standard_normal((1, 2))
    phi = GramFeatures().fit(K)
    L, Z = phi.factor_, phi.landmarks_
    features = phi(q).features
    # The proof's L phi(q) = kappa(Z, q), with the kernel that the code normalises by the scales.
    g = L @ features[0]
    want = np.array(PROOF.evaluate("phi_q", {"L": L.tolist(), "kappa_q": g.tolist()}), float)
    inverse = abs(np.linalg.inv(L))
    # Substitution errs by gamma_m |L^-1| |L| |phi| (Higham 2002, thm 8.5), and so does g.
    budget = sum_budget((inverse @ abs(L) @ abs(features[0]))[:, None], 2 * len(L) + 2, U)
    compare("phi(q) = L^{-1} kappa(Z, q)", features[0], want, budget).require()
    for i in range(4):
        e = np.eye(4)[i].tolist()
        row = PROOF.evaluate("phi_z", {"L": L.tolist(), "e_i": e})
        compare(
            "phi(z_i) = L^T e_i", phi(Z[i : i + 1]).features[0], row, sum_budget(L[i], 1, U)
        ).require()
        kernel = PROOF.evaluate("kernel", {"L": L.tolist(), "e_i": e, "kappa_q": g.tolist()})
        terms = sum_budget(L[i] * features[0], 2 * len(L) + 2, U)
        compare("phi(z_i).phi(q) = kappa", [L[i] @ features[0]], kernel, terms).require()


def test_the_gaussian_normalisation_of_the_proof_is_the_kernel() -> None:
    x, y = [0.3, -1.2, 0.7], [1.1, 0.4, -0.2]
    got = PROOF.evaluate("gaussian_form", {"x": x, "y": y})
    want = PROOF.evaluate("kernel_form", {"x": x, "y": y})
    exact = oracle.FLOATS
    compare("e^{|x|^2/2} e^{-|x-y|^2/2} e^{|y|^2/2} = e^{x.y}", [got], [want],
            sum_budget(np.array([want]), 2, U)).require()  # fmt: skip
    compare(
        "e^{x.y}", [exact.exp(exact.dot(x, y))], [want], sum_budget(np.array([want]), 16, U)
    ).require()


def test_a_completed_factor_is_what_the_proof_completes() -> None:
    """Keys on a line in one dimension: the Gram matrix has no full numerical rank."""
    K = np.linspace(-1, 1, 24)[:, None]
    phi = GramFeatures().fit(K)
    r, L = phi.rank_, phi.factor_
    assert 0 < r < len(K)
    jitter = float(L[r, r])
    arrays = {"L_11": L[:r, :r].tolist(), "L_21": L[r:, :r].tolist(), "jitter": jitter}
    completed = np.array(PROOF.evaluate("completed_factor", arrays), float)
    compare("[[L11, 0], [L21, jitter I]]", L, completed, sum_budget(L[..., None], 1, U)).require()


@pytest.mark.parametrize("spread", [0.0, 1e-12, 1e-8, 1e-4])
def test_nearly_equal_keys_keep_the_dual_exact(spread: float) -> None:
    rng = np.random.default_rng(0)
    K = rng.standard_normal(4) + spread * rng.standard_normal((9, 4))
    case = Case("", 0, rng.standard_normal((3, 4)), K, rng.standard_normal((9, 2)), 9)
    x = see_dual(OURS, case)
    both = attention_budget(case.Q, case.K, case.V, case.s, case.u) + x.budget
    predicted = OneStepRegressor().fit(case.K, case.V).predict(case.Q)
    compare("the dual predicts o", predicted, attention(case.Q, case.K, case.V), both).require()


def test_duplicates_take_one_feature_and_weigh_double() -> None:
    case = make_case(1, n=3)
    K, V = np.concatenate([case.K, case.K[:1]]), np.concatenate([case.V, case.V[:1]])
    model = OneStepRegressor().fit(K, V)
    assert model.coef_.shape == (2, 3)
    repeated = Case("", 0, case.Q, K, V, 4)
    both = attention_budget(case.Q, K, V, case.s, U) + see_dual(OURS, repeated).budget
    compare("duplicates", model.predict(case.Q), attention(case.Q, K, V), both).require()


def test_zero_and_minus_zero_are_one_landmark() -> None:
    phi = GramFeatures().fit([[0.0], [1.0]])
    assert np.array_equal(phi([[-0.0]]).features, phi([[0.0]]).features)


def test_the_kernel_holds_where_every_gaussian_entry_underflows() -> None:
    """A query 60 away from its nearest key: exp(-1800) is no float64, the features are."""
    K = np.array([[0.0, 0.0], [1.0, 0.5]])
    q = np.array([[60.0, 0.0]])
    phi = GramFeatures().fit(K)
    at_k, at_q = phi(K), phi(q)
    with np.errstate(divide="ignore"):
        got = np.log(at_k.features @ at_q.features[0]) + at_k.log_scale + at_q.log_scale[0]
    exponent = np.full((1, 2), 40 * U * 1800)
    budget = kernel_budget(at_q.features, at_k.features, exponent, U)
    relative = budget.bound[0] / (at_q.features @ at_k.features.T)[0] + exponent[0]
    compare("log kappa", got, (K @ q.T)[:, 0],
            sum_budget(np.ones((2, 1)), 1, U).times(relative / U)).require()  # fmt: skip
