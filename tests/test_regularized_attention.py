"""The proof's own expressions against the code, and what the penalty does and does not shrink."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equivalence import attention, dual
from equivalence.modifications import (
    regularized_attention,
    regularized_gradient,
    regularized_loss,
)
from equivalence.verify.budgets import attention_budget, sum_budget
from equivalence.verify.cases import Case, make_case
from equivalence.verify.compare import compare
from equivalence.verify.strategies import cases
from proofs import load

U = 2.0**-53
PROOF = load("regularized_attention")


def evaluated(name: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
    numbers = {"eta": 0.3, "alpha": 0.4} | {key: value.tolist() for key, value in arrays.items()}
    needed = {key: numbers[key] for key in PROOF.arguments(name)}
    return np.array(PROOF.evaluate(name, needed), float)


@pytest.mark.parametrize(("N", "T", "c", "m"), [(1, 1, 2, 3), (4, 2, 3, 2)])
def test_the_code_computes_the_expressions_of_the_proof(N: int, T: int, c: int, m: int) -> None:
    rng, eta, alpha = np.random.default_rng([N, T, c, m]), 0.3, 0.4
    V, Phi = rng.standard_normal((N + T, c)), rng.random((N + T, m)) + 0.5
    W, phi_q = rng.standard_normal((c, m)), rng.random(m) + 0.5
    D = dual.normalizer(Phi, phi_q[None])[0]
    W_0 = dual.initial_weights(V[N:], Phi[N:], D)
    slope = regularized_gradient(W_0, V[:N], Phi[:N], D, eta, alpha=alpha)
    W_1 = dual.gradient_step(W_0, slope, eta)
    x = {
        "V_N": V[:N], "V_T": V[N:], "Phi_N": Phi[:N], "Phi_T": Phi[N:], "phi_q": phi_q, "W": W,
    }  # fmt: skip
    size = abs(V).T @ Phi / D + abs(W)
    # As in one_gradient_step, and the sum of c m squares.
    depth = 2 * (N + T + m + c) + c * m + 8
    weights, output = (
        sum_budget(2 * size[..., None], depth, U),
        sum_budget(2 * size * phi_q, depth, U),
    )
    total = sum_budget((size * abs(W)).reshape(-1), depth, U).times(1 / eta)
    slope = regularized_gradient(W, V[:N], Phi[:N], D, eta, alpha=alpha)
    for name, got, budget in (
        ("gradient", slope, weights.times(1 / eta)),
        ("L_alpha", regularized_loss(W, V[:N], Phi[:N], D, eta, alpha=alpha), total),
        ("W_1", W_1, weights),
        ("prediction", dual.predict(W_1, phi_q), output),
    ):
        compare(name, got, evaluated(name, x), budget).require()


def test_the_kernel_form_and_the_weights_of_the_proof_are_those_of_the_layer() -> None:
    case = make_case(3, n_q=1, n=6, d=3, c=2, N=4)
    select, kernel = np.eye(6), np.exp(case.s * case.K @ case.Q[0])
    x = {
        "V_N": case.V[:4], "V_T": case.V[4:], "S_N": select[:4], "S_T": select[4:],
        "kappa_q": kernel, "Phi_N": select[:4], "Phi_T": select[4:], "phi_q": kernel,
    }  # fmt: skip
    budget = attention_budget(case.Q, case.K, 2 * abs(case.V), case.s, case.u)[0].times(2)
    layer = regularized_attention(case.Q, case.K, case.V, alpha=0.4, n_demonstrations=4)
    compare("o_kernel", layer[0], evaluated("o_kernel", x), budget).require()
    o = attention(case.Q, case.K, case.V)
    compare("o", o[0], evaluated("o", x), budget).require()
    ones = np.ones((6, 1))
    summed = regularized_attention(case.Q, case.K, ones, alpha=0.4, n_demonstrations=4)
    budget = attention_budget(case.Q, case.K, 2 * ones, case.s, case.u)[0].times(2)
    compare("weights", summed[0], [evaluated("weights", x)], budget).require()


@given(case=cases(), alpha=st.sampled_from([-2.0, 0.25, 1.0, 1.5, 7.0]))
def test_the_layer_is_linear_in_alpha(case: Case, alpha: float) -> None:
    def layer(strength: float) -> np.ndarray:
        return regularized_attention(
            case.Q, case.K, case.V, alpha=strength, n_demonstrations=case.N, scale=case.scale
        )

    line = (1 - alpha) * layer(0.0) + alpha * layer(1.0)
    size = (2 + 2 * abs(alpha)) * abs(case.V.astype(float))
    budget = attention_budget(case.Q, case.K, size, case.s, case.u)
    compare("between and beyond", layer(alpha), line, budget.times(2)).require()


def test_alpha_one_forgets_the_values_but_not_their_weights() -> None:
    Q, K, V = np.zeros((1, 1)), np.zeros((2, 1)), np.array([[3.0], [5.0]])
    assert regularized_attention(Q, K, V, alpha=1.0, n_demonstrations=1) == 1.5
    assert regularized_attention(Q, K, V, alpha=1.0, n_demonstrations=0) == 0.0


def test_by_default_all_tokens_demonstrate_and_the_layer_is_attention() -> None:
    case = make_case(4)
    layer = regularized_attention(case.Q, case.K, case.V, alpha=0.7)
    assert np.array_equal(layer, attention(case.Q, case.K, case.V))


def test_two_steps_of_half_the_rate_shrink_twice() -> None:
    """(1 - alpha/2)^2, not 1 - alpha: it matters that there is one step."""
    W, none = np.ones((1, 1)), np.zeros((0, 1))
    for _ in range(2):
        slope = regularized_gradient(W, none, none, 1.0, alpha=0.5)
        W = dual.gradient_step(W, slope, 0.5)
    assert W == (1 - 0.25) ** 2


def test_a_causal_query_before_the_query_side_tokens_is_not_touched() -> None:
    case = make_case(5, n_q=5, n=5, N=3)
    given = {"alpha": 0.5, "n_demonstrations": 3}
    layer = regularized_attention(case.Q, case.K, case.V, causal=True, **given)
    o = attention(case.Q, case.K, case.V, causal=True)
    assert np.array_equal(layer[:3], o[:3])
    assert (layer[3:] != o[3:]).all()
    halved = np.concatenate([case.V[:3], case.V[3:] / 2])
    assert np.array_equal(layer, attention(case.Q, case.K, halved, causal=True))


def test_one_penalty_for_each_D() -> None:
    W, v, phi = np.full((2, 1, 1), 3.0), np.ones((1, 1)), np.ones((1, 1))
    losses = regularized_loss(W, v, phi, np.array([1.0, 2.0]), alpha=2.0)
    assert losses.tolist() == [9.0 - 3.0, 9.0 - 1.5]
    slopes = regularized_gradient(W, v, phi, np.array([1.0, 2.0]), alpha=2.0)
    assert slopes.ravel().tolist() == [6.0 - 1.0, 6.0 - 0.5]


def test_loss_and_gradient_compute_float16_in_float32() -> None:
    W, v, phi = (np.ones((1, 1), np.float16) for _ in range(3))
    assert regularized_loss(W, v, phi, 1.0, alpha=1.0).dtype == np.float32
    assert regularized_gradient(W, v, phi, 1.0, alpha=1.0).dtype == np.float32


ONE = [[1.0]]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"alpha": np.nan}, ValueError, "alpha is nan; expected a finite number"),
        ({"alpha": "1"}, TypeError, "alpha is '1'; expected a finite number"),
        ({"n_demonstrations": 2}, ValueError, "n_demonstrations is 2; expected 0 to 1"),
        ({"n_demonstrations": -1}, ValueError, "n_demonstrations is -1; expected 0 to 1"),
        ({"n_demonstrations": 1.0}, TypeError, "n_demonstrations is 1.0; expected an integer"),
        ({"value": [[1.0], [2.0]]}, ValueError, "value has shape"),
        ({"value": [1.0]}, ValueError, "value has shape"),
        ({"query": [["a"]]}, TypeError, "query has dtype"),
        ({"scale": np.inf}, ValueError, "scale is inf"),
    ],
)
def test_bad_arguments_of_the_layer_are_named(
    arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    given: dict[str, object] = {"query": ONE, "key": ONE, "value": ONE, "alpha": 0.5}
    with pytest.raises(error, match=message):
        regularized_attention(**(given | arguments))  # type: ignore[arg-type]


@pytest.mark.parametrize("function", [regularized_loss, regularized_gradient])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"alpha": np.inf}, ValueError, "alpha is inf; expected a finite number"),
        ({"alpha": None}, TypeError, "alpha is None; expected a finite number"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate is 0.0; expected a positive number"),
        ({"W": [[1.0, 2.0]]}, ValueError, r"W has shape \(1, 2\); expected \(..., 1, 1\)"),
        ({"W": [1.0]}, ValueError, r"W has shape \(1,\); expected"),
        ({"W": np.ones((2, 1, 1)), "D": np.ones(3)}, ValueError, "leading axes"),
        ({"values": [[1.0], [1.0]]}, ValueError, "values has shape"),
    ],
)
def test_bad_arguments_of_loss_and_gradient_are_named(
    function: object, arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    given: dict[str, object] = {"W": ONE, "values": ONE, "features": ONE, "D": 1.0, "alpha": 0.5}
    with pytest.raises(error, match=message):
        function(**(given | arguments))  # type: ignore[operator]
