"""The proof's own expressions against the code, and the theorem's corners."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equivalence import OneStepRegressor, attention, dual
from equivalence.verify.budgets import attention_budget, sum_budget
from equivalence.verify.cases import Case, make_case
from equivalence.verify.compare import compare
from equivalence.verify.dual_case import see_dual
from equivalence.verify.implementation import OURS
from equivalence.verify.strategies import cases
from proofs import load

U = 2.0**-53
PROOF = load("one_gradient_step")


def drawn(seed: int, N: int, T: int, c: int, m: int) -> dict[str, np.ndarray]:
    """Features and values with D bounded away from zero."""
    rng = np.random.default_rng([seed, N, T, c, m])
    return {
        "V_N": rng.standard_normal((N, c)),
        "V_T": rng.standard_normal((T, c)),
        "Phi_N": rng.random((N, m)) + 0.5,
        "Phi_T": rng.random((T, m)) + 0.5,
        "phi_q": rng.random(m) + 0.5,
        "W": rng.standard_normal((c, m)),
    }


def evaluated(name: str, given: dict[str, np.ndarray], eta: float = 0.3) -> np.ndarray:
    arrays = {key: value.tolist() for key, value in given.items()} | {"eta": eta}
    needed = {key: arrays[key] for key in PROOF.arguments(name) if key in arrays}
    return np.array(PROOF.evaluate(name, needed), float)


SIZES = [(1, 1, 2, 3), (3, 2, 2, 4), (5, 1, 1, 2), (4, 4, 3, 3)]


@pytest.mark.parametrize(("N", "T", "c", "m"), SIZES)
def test_the_code_computes_the_expressions_of_the_proof(N: int, T: int, c: int, m: int) -> None:
    x, eta = drawn(0, N, T, c, m), 0.3
    Phi = np.concatenate([x["Phi_N"], x["Phi_T"]])
    D = dual.normalizer(Phi, x["phi_q"][None])[0]
    W_0 = dual.initial_weights(x["V_T"], x["Phi_T"], D)
    slope = dual.gradient(x["V_N"], x["Phi_N"], D, eta)
    W_1 = dual.gradient_step(W_0, slope, eta)
    L = dual.loss(x["W"], x["V_N"], x["Phi_N"], D, eta)
    size = abs(np.concatenate([x["V_N"], x["V_T"]])).T @ Phi / D
    # D and its products have at most N + T + m roundings, the sums behind them as many again.
    depth = 2 * (N + T + m + c) + 8
    weights = sum_budget(size[..., None], depth, U)
    total = sum_budget((size * abs(x["W"])).reshape(-1), depth, U).times(1 / eta)
    output = sum_budget(size * x["phi_q"], depth, U)
    for name, got, budget in (
        ("D", D, sum_budget(Phi * x["phi_q"], depth, U, axis=(0, 1))),
        ("W_0", W_0, weights),
        ("gradient", slope, weights.times(1 / eta)),
        ("L", L, total),
        ("W_1", W_1, weights),
        ("prediction", dual.predict(W_1, x["phi_q"]), output),
        ("o", dual.predict(W_1, x["phi_q"]), output),
    ):
        compare(name, got, evaluated(name, x), budget).require()


def test_the_kernel_form_of_the_proof_is_softmax_attention() -> None:
    case = make_case(3, n_q=1, n=6, d=3, c=2, N=4)
    kernel = np.exp(case.s * case.K @ case.Q[0])
    select = np.eye(6)
    given = {
        "V_N": case.V[:4],
        "V_T": case.V[4:],
        "S_N": select[:4],
        "S_T": select[4:],
        "kappa_q": kernel,
    }
    o = attention(case.Q, case.K, case.V)
    budget = attention_budget(case.Q, case.K, case.V, case.s, case.u)
    compare("o_kernel", o[0], evaluated("o_kernel", given), budget[0].times(2)).require()


@given(case=cases(), eta=st.sampled_from([1e-8, 0.1, 1.0, 3.7, 1e8]))
def test_any_learning_rate_gives_the_same_prediction(case: Case, eta: float) -> None:
    def predict(rate: float) -> np.ndarray:
        model = OneStepRegressor(learning_rate=rate, scale=case.scale)
        return model.fit(case.K, case.V, n_demonstrations=case.N).predict(case.Q)

    budget = see_dual(OURS, case).budget
    compare("eta cancels", predict(eta), predict(1.0), budget + budget).require()


@given(case=cases())
def test_every_split_into_demonstrations_and_query_side_gives_the_same_output(case: Case) -> None:
    budget = see_dual(OURS, case).budget
    models = [OneStepRegressor(scale=case.scale).fit(case.K, case.V, n_demonstrations=N)
              for N in range(len(case.K) + 1)]  # fmt: skip
    first = models[0].predict(case.Q)
    for model in models:
        compare("any split", model.predict(case.Q), first, budget + budget).require()


def test_one_step_leaves_the_query_side_weights_where_there_are_no_demonstrations() -> None:
    case = make_case(5, n=4, N=0)
    model = OneStepRegressor().fit(case.K, case.V, n_demonstrations=0)
    assert np.array_equal(model.coef_, model.initial_coef_)
