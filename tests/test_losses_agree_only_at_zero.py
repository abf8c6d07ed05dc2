"""Least squares and logistic: the proof's own expressions against the code, and the corners."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equivalence import dual
from equivalence.losses import (
    least_squares_gradient,
    least_squares_loss,
    logistic_gradient,
    logistic_loss,
)
from equivalence.verify.budgets import Budget, gamma, sum_budget
from equivalence.verify.cases import Case
from equivalence.verify.compare import compare
from equivalence.verify.dual_case import see_dual
from equivalence.verify.implementation import OURS
from equivalence.verify.strategies import cases
from proofs import load

U = 2.0**-53
PROOF = load("losses_agree_only_at_zero")
Array = np.ndarray[Any, Any]
GRADIENTS = [least_squares_gradient, logistic_gradient]
LOSSES = [least_squares_loss, logistic_loss]


def drawn(seed: int, N: int, c: int, m: int) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng([seed, N, c, m])
    return rng.standard_normal((c, m)), rng.standard_normal((N, c)), rng.random((N, m)) + 0.5


def evaluated(name: str, **values: Any) -> Any:
    needed = PROOF.arguments(name)
    lists = {key: getattr(values[key], "tolist", lambda x=values[key]: x)() for key in needed}
    return np.array(PROOF.evaluate(name, lists), float)


def entries(name: str, c: int, m: int, **values: Any) -> Array:
    """Entry r, s of an expression for each output and feature, which it counts from 1."""
    return np.array(
        [[evaluated(name, r=r, s=s, **values) for s in range(1, m + 1)] for r in range(1, c + 1)]
    )


@pytest.mark.parametrize(("N", "c", "m"), [(1, 1, 2), (3, 2, 2), (4, 1, 3), (2, 3, 1)])
def test_the_code_computes_the_expressions_of_the_proof(N: int, c: int, m: int) -> None:
    (W, V, Phi), eta, D = drawn(0, N, c, m), 0.3, 1.7
    V_T, Phi_T = drawn(1, 2, c, m)[1:]
    phi_q = Phi_T[0]
    W_0 = dual.initial_weights(V_T, Phi_T, D)
    plain = dual.gradient_step(W_0, dual.gradient(V, Phi, D, eta), eta)
    off = [
        dual.gradient_step(W_0, gradient(W_0, V, Phi, D, eta), eta) - plain
        for gradient in GRADIENTS
    ]
    size = 1 + abs(V) + abs(Phi) @ (abs(W) + abs(V_T).T @ abs(Phi_T) / D).T
    terms = size.T @ abs(Phi)
    # Outputs, residuals, sums and the two steps, each a few roundings an operation.
    depth = gamma(4 * (N + m + c) + 40, U)
    because = "the proof is rounded once"
    weights = Budget(depth * (terms / (eta * D) + abs(W_0)), because, U)
    steps = Budget(depth * (terms / D + abs(W_0)), because, U)
    total = Budget(np.array(depth * 2 * (size**2).sum() / (eta * D)), because, U)
    matrices = {"W": W, "W_0": W_0, "V_N": V, "Phi_N": Phi, "V_T": V_T, "Phi_T": Phi_T}
    matrices |= {"phi_q": phi_q, "eta": eta, "D": D, "Z": np.tanh(Phi @ W_0.T / 2)}
    table = {"w": W, "v": V, "f": Phi, "eta": eta, "D": D}
    for name, got, budget in (
        ("least_squares", least_squares_loss(W, V, Phi, D, eta), total),
        ("least_squares_gradient", least_squares_gradient(W, V, Phi, D, eta), weights),
        ("dual_step", plain, steps),
        ("least_squares_failure", off[0], steps),
        ("failure", off[1], steps),
        (
            "kernel_failure",
            dual.predict(off[0], phi_q),
            Budget(steps.bound @ abs(phi_q) * m, because, U),
        ),
    ):
        compare(name, got, evaluated(name, **matrices), budget).require()
    logistic = logistic_loss(W, V, Phi, D, eta)
    compare("logistic", logistic, evaluated("logistic", **table), total).require()
    slope = entries("logistic_gradient", c, m, **table)
    compare("logistic_gradient", logistic_gradient(W, V, Phi, D, eta), slope, weights).require()
    want = entries("logistic_failure", c, m, **table | {"w": W_0})
    compare("logistic_failure", off[1], want, steps).require()


@given(case=cases(), gradient=st.sampled_from(GRADIENTS))
def test_at_zero_the_gradient_is_the_duals_bit_for_bit(
    case: Case, gradient: Callable[..., Array]
) -> None:
    """Outputs of zero are exact, and so is what is expected of them."""
    x = see_dual(OURS, case)
    W_0 = np.zeros((case.V.shape[1], x.Phi.shape[1]), case.V.dtype)
    got = gradient(W_0, case.V, x.Phi, x.D, 0.3)
    assert np.array_equal(got, dual.gradient(case.V, x.Phi, x.D, 0.3))


@pytest.mark.parametrize(
    ("gradient", "expects"),
    [(least_squares_gradient, lambda F: F), (logistic_gradient, lambda F: np.tanh(F / 2))],
)
@given(case=cases())
def test_with_output_gradients_of_the_dual_the_step_is_the_duals(
    gradient: Callable[..., Array], expects: Callable[[Array], Array], case: Case
) -> None:
    """Values that make up for what W_0 expects: any loss can be brought to the dual's step."""
    x, u = see_dual(OURS, case), case.u
    W_0 = case.rng("W_0").standard_normal((case.V.shape[1], x.Phi.shape[1])).astype(case.V.dtype)
    F = x.Phi @ W_0.T
    terms = (abs(case.V) + 2 * abs(F)).T @ abs(x.Phi) / abs(x.D)[:, None, None]
    compare(
        "the dual's gradient",
        gradient(W_0, case.V + expects(F), x.Phi, x.D),
        dual.gradient(case.V, x.Phi, x.D),
        sum_budget(terms[..., None], 4 * (len(case.V) + x.Phi.shape[1]) + 16, u),
    ).require()


def test_two_tokens_alike_leave_least_squares_where_it_is() -> None:
    """The proof's example: values 1 and 2 with the same key; attention gives 3/2."""
    one = np.ones((1, 1))
    W_0 = dual.initial_weights(2 * one, one, 2.0)
    stepped = [
        dual.gradient_step(W_0, slope)
        for slope in (dual.gradient(one, one, 2.0), least_squares_gradient(W_0, one, one, 2.0))
    ]
    assert [W.item() for W in stepped] == [1.5, 1.0]
    logistic = dual.gradient_step(W_0, logistic_gradient(W_0, one, one, 2.0)).item()
    budget = Budget(np.array(gamma(8, U) * 2), "a tanh and five operations", U)
    compare("tanh(1/2) less", logistic, 1.5 - math.tanh(0.5) / 2, budget).require()


@given(case=cases())
def test_labels_of_plus_and_minus_one_make_it_the_margin_loss(case: Case) -> None:
    """2 log(1 + e^(-v f)) where v is 1 or -1, and twice log 2 an output at W = 0."""
    x, V = see_dual(OURS, case), np.where(case.V < 0, -1, 1).astype(case.V.dtype)
    W = case.rng("W").standard_normal((V.shape[1], x.Phi.shape[1])).astype(V.dtype)
    F = x.Phi @ W.T
    depth = V.size + x.Phi.shape[1] + 24
    reach = 2 * (1 + abs(x.Phi) @ abs(W).T)
    budget = sum_budget(reach, depth, case.u, axis=(0, 1)).times(2)
    margin = 2 * np.logaddexp(0, -V * F).sum()
    compare("the margin loss", logistic_loss(W, V, x.Phi, 1.0), margin, budget).require()
    at_zero = logistic_loss(0 * W, V, x.Phi, 1.0)
    compare("2 log 2", at_zero, V.size * 2 * math.log(2), budget).require()


def test_a_good_fit_has_a_small_loss_without_cancellation() -> None:
    one = np.ones((1, 1))
    small = float(logistic_loss(80 * one, one, one, 1.0))
    budget = Budget(np.array(gamma(24, U) * small), "log1p(e^-80)", U)
    compare("2 e^-80", small, 2 * math.exp(-80), budget).require()
    assert logistic_loss(1e6 * one, -one, one, 1.0) == 2e6
    assert logistic_gradient(1e6 * one, one, one, 1.0) == 0


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_each_query_has_a_gradient_of_its_own(gradient: Callable[..., Array]) -> None:
    W, V, Phi = drawn(2, 4, 2, 3)
    D = np.array([1.0, 2.0, 3.0])
    W_0 = np.stack([W, 2 * W, -W])
    together = gradient(W_0, V, Phi, D, 0.5)
    assert together.shape == (3, 2, 3)
    for k in range(3):
        assert np.array_equal(together[k], gradient(W_0[k], V, Phi, D[k], 0.5))


def test_batch_entries_do_not_mix_and_nothing_is_modified() -> None:
    given = [drawn(seed, 4, 2, 3) for seed in (4, 5)]
    stacked = [np.stack(pair) for pair in zip(*given, strict=True)]
    before = [a.copy() for a in stacked]
    for function in LOSSES + GRADIENTS:
        together = function(*stacked, 2.0)
        for k, one in enumerate(given):
            assert np.array_equal(together[k], function(*one, 2.0))
    assert all(np.array_equal(a, b) for a, b in zip(stacked, before, strict=True))


@pytest.mark.parametrize("function", LOSSES + GRADIENTS)
@pytest.mark.parametrize(
    ("dtype", "returned"),
    [("float64", "float64"), ("float32", "float32"), ("float16", "float32"), ("int8", "float64")],
)
def test_the_dtype_is_kept_and_float16_is_computed_in_float32(
    function: Callable[..., Array], dtype: str, returned: str
) -> None:
    W, V, Phi = (a.astype(dtype) for a in drawn(6, 4, 2, 3))
    assert function(W, V, Phi, 2.0).dtype == returned


@pytest.mark.parametrize("function", LOSSES + GRADIENTS)
@pytest.mark.parametrize("at", [0, 1, 2])
def test_what_is_not_finite_comes_out_as_nan(function: Callable[..., Array], at: int) -> None:
    given = [a.copy() for a in drawn(7, 4, 2, 3)]
    given[at][0, 0] = math.nan
    assert np.isnan(function(*given, 2.0)).any()


@pytest.mark.parametrize("function", LOSSES + GRADIENTS)
def test_no_demonstrations_are_no_loss(function: Callable[..., Array]) -> None:
    assert not function(np.ones((2, 3)), np.ones((0, 2)), np.ones((0, 3)), 2.0).any()


W, V, PHI = drawn(8, 4, 2, 3)


@pytest.mark.parametrize("function", LOSSES + GRADIENTS)
@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"W": W.T}, ValueError, "W has shape (3, 2); expected (..., 2, 3)"),
        ({"W": W[0]}, ValueError, "W has shape (3,); expected (..., 2, 3)"),
        ({"values": V[:3]}, ValueError, "values has shape (3, 2); expected (..., 4, n_outputs)"),
        ({"features": PHI[0]}, ValueError, "features has shape (3,); expected"),
        ({"W": np.ones((3, 2, 3)), "values": np.ones((2, 4, 2))}, ValueError, "W has leading axes"),
        ({"D": np.ones(3), "W": np.ones((2, 2, 3))}, ValueError, "D has leading axes (3,)"),
        ({"W": W.astype(complex)}, TypeError, "W has dtype complex128; expected"),
        ({"D": "one"}, TypeError, "D has dtype"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate is 0.0; expected a positive number"),
        ({"learning_rate": "fast"}, TypeError, "learning_rate is 'fast'; expected a finite number"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    function: Any, changed: dict[str, Any], error: type[Exception], message: str
) -> None:
    given = {"W": W, "values": V, "features": PHI, "D": 2.0} | changed
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        function(**given)
