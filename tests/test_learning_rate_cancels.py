"""The proof's own expressions against the code, and learning rates at the ends of the range."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equivalence import OneStepRegressor, dual
from equivalence.verify.budgets import sum_budget
from equivalence.verify.cases import Case
from equivalence.verify.compare import compare
from equivalence.verify.dual_case import see_dual
from equivalence.verify.implementation import OURS
from equivalence.verify.strategies import cases
from proofs import load

U = 2.0**-53
PROOF = load("learning_rate_cancels")


@pytest.mark.parametrize(("N", "T", "c", "m"), [(1, 1, 2, 3), (3, 2, 2, 2), (5, 1, 1, 4)])
def test_the_code_computes_the_expressions_of_the_proof(N: int, T: int, c: int, m: int) -> None:
    rng = np.random.default_rng([N, T, c, m])
    V, Phi, phi_q = rng.standard_normal((N + T, c)), rng.random((N + T, m)) + 0.5, rng.random(m)
    W, (eta_L, eta_S, eta, lamda) = rng.standard_normal((c, m)), (0.7, 0.3, 2.9, 0.2)
    D = dual.normalizer(Phi, phi_q[None])[0]
    W_0 = dual.initial_weights(V[N:], Phi[N:], D)
    slope, same = (dual.gradient(V[:N], Phi[:N], D, rate) for rate in (eta_L, eta))
    W_two = dual.gradient_step(W_0, slope, eta_S)
    W_1 = dual.gradient_step(W_0, same, eta)
    arrays = {
        "V_N": V[:N], "V_T": V[N:], "Phi_N": Phi[:N], "Phi_T": Phi[N:], "phi_q": phi_q, "W": W,
    }  # fmt: skip
    values = {name: array.tolist() for name, array in arrays.items()}
    values |= {"eta_L": eta_L, "eta_S": eta_S, "eta": eta, "lamda": lamda}
    terms = abs(V).T @ abs(Phi) / D
    # D and its products have at most N + T + m roundings, the sums behind them as many again.
    depth = 2 * (N + T + m + c) + 12
    weights = sum_budget(terms[..., None], depth, U)
    output = sum_budget(terms * phi_q, depth, U)
    total = sum_budget(terms * abs(W), depth, U, axis=(0, 1))
    for name, got, budget in (
        ("gradient", slope, weights.times(1 / eta_L)),
        ("L", dual.loss(W, V[:N], Phi[:N], D, eta_L), total.times(1 / eta_L)),
        ("W_two", W_two, weights),
        ("prediction_two", dual.predict(W_two, phi_q), output),
        ("W_1", W_1, weights),
        ("prediction", dual.predict(W_1, phi_q), output),
        ("W_decayed", dual.gradient_step(W_0, same + lamda * W_0, eta), weights),
    ):
        needed = {key: values[key] for key in PROOF.arguments(name) if key in values}
        compare(name, got, PROOF.evaluate(name, needed), budget).require()


@given(case=cases(dtypes=("float64",)), decades=st.floats(-250, 250))
def test_any_learning_rate_over_500_decades_gives_the_same_prediction(
    case: Case, decades: float
) -> None:
    model = OneStepRegressor(scale=case.scale, learning_rate=10.0**decades)
    got = model.fit(case.K, case.V, n_demonstrations=case.N).predict(case.Q)
    one = OneStepRegressor(scale=case.scale).fit(case.K, case.V, n_demonstrations=case.N)
    budget = see_dual(OURS, case).budget
    compare("eta cancels", got, one.predict(case.Q), budget.times(2)).require()


@pytest.mark.parametrize("exponent", [-1000, -7, 7, 1000])
def test_a_power_of_two_cancels_without_any_rounding(exponent: int) -> None:
    rng = np.random.default_rng(0)
    W, V, Phi = (rng.standard_normal(shape) for shape in ((2, 3), (4, 2), (4, 3)))
    eta = 2.0**exponent
    one = dual.gradient_step(W, dual.gradient(V, Phi, 3.0))
    assert np.array_equal(dual.gradient_step(W, dual.gradient(V, Phi, 3.0, eta), eta), one)
    assert dual.loss(W, V, Phi, 3.0, eta) * eta == dual.loss(W, V, Phi, 3.0)


@pytest.mark.parametrize(("dtype", "eta"), [("float64", 2.0**1023), ("float32", 2.0**127)])
def test_the_demonstrations_are_not_lost_where_eta_times_D_overflows(
    dtype: str, eta: float
) -> None:
    V, Phi, W = (np.full((1, 1), x, dtype) for x in (96.0, 3.0, 0.0))
    D = np.array(8.0, dtype)
    step = dual.gradient_step(W, dual.gradient(V, Phi, D, eta), eta)
    assert step.dtype == dtype
    assert step.item() == 36.0
    assert dual.loss(W + 1, V, Phi, D, eta).item() * eta == -36.0


def test_a_gradient_that_overflows_is_not_finite() -> None:
    V, Phi = np.full((1, 1), 1e10), np.ones((1, 1))
    slope = dual.gradient(V, Phi, 1.0, 1e-300)
    assert np.isinf(slope).all()
    assert not np.isfinite(dual.gradient_step(np.zeros((1, 1)), slope, 1e-300)).any()


@pytest.mark.parametrize("eta", [0.0, -0.1, float("nan"), float("inf"), 10**400])
@pytest.mark.parametrize(
    "use",
    [
        lambda eta: OneStepRegressor(learning_rate=eta),
        lambda eta: dual.gradient([[1.0]], [[1.0]], 1.0, eta),
        lambda eta: dual.loss([[1.0]], [[1.0]], [[1.0]], 1.0, eta),
    ],
)
def test_a_learning_rate_that_has_no_inverse_is_refused(use, eta: float) -> None:
    with pytest.raises(ValueError, match=f"learning_rate is {re.escape(repr(eta))}; expected a"):
        use(eta)


@pytest.mark.parametrize("eta", ["0.1", None, True, [0.1]])
def test_a_learning_rate_that_is_no_number_is_refused(eta: object) -> None:
    for use in (lambda: OneStepRegressor(learning_rate=eta),
                lambda: dual.gradient_step([[1.0]], [[1.0]], eta)):  # fmt: skip
        with pytest.raises(TypeError, match=r"learning_rate is .*; expected a finite number"):
            use()
