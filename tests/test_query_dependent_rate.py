"""The proof's own expressions against the code, the regressor's two parts, and equal D."""

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equivalence import OneStepRegressor, attention, dual
from equivalence.ratio import from_homogeneous, to_homogeneous
from equivalence.verify.budgets import attention_budget, sum_budget
from equivalence.verify.cases import Case, make_case
from equivalence.verify.compare import compare
from equivalence.verify.dual_case import on_one_scale, scaled, see_dual
from equivalence.verify.implementation import OURS
from equivalence.verify.strategies import cases
from proofs import load

U = 2.0**-53
PROOF = load("query_dependent_rate")


def evaluated(name: str, given: dict[str, np.ndarray]) -> np.ndarray:
    needed = {key: given[key].tolist() for key in PROOF.arguments(name) if key in given}
    return np.array(PROOF.evaluate(name, needed))


@pytest.mark.parametrize(("n", "c", "m"), [(1, 2, 3), (4, 2, 2), (5, 3, 4)])
def test_the_code_computes_the_expressions_of_the_proof(n: int, c: int, m: int) -> None:
    rng = np.random.default_rng([n, c, m])
    V, Phi = rng.standard_normal((n, c)), rng.random((n, m)) + 0.5
    f_q, f_r = rng.random((2, m)) + 0.5
    D_q, D_r = dual.normalizer(Phi, np.stack([f_q, f_r]))
    zero = np.zeros((c, m))
    W_q, W_r = (dual.gradient_step(zero, dual.gradient(V, Phi, D)) for D in (D_q, D_r))
    H = dual.gradient_step(np.zeros((c + 1, m)), dual.gradient(to_homogeneous(V), Phi, 1.0))
    read, o_r = dual.predict(W_q, f_r), dual.predict(W_r, f_r)
    terms = abs(to_homogeneous(V)).T @ Phi
    depth = 2 * (n + m) + 8
    values = sum_budget(terms[:-1, :, None] / D_q, depth, U)
    at_q, at_r = (sum_budget(terms * f, depth, U) for f in (f_q, f_r))
    for name, got, budget in (
        ("D_q", D_q, at_q[-1]),
        ("D_r", D_r, at_r[-1]),
        ("W_q", W_q, values),
        ("o_q", dual.predict(W_q, f_q), at_q[:-1].times(1 / D_q)),
        ("o_r", o_r, at_r[:-1].times(1 / D_r)),
        ("read_at_r", read, at_r[:-1].times(1 / D_q)),
        ("excess", read - o_r, at_r[:-1].times(1 / D_q + 1 / D_r)),
        ("H", H, sum_budget(terms[..., None], depth, U)),
        ("readouts", dual.predict(H, f_r), at_r),
    ):
        compare(name, got, evaluated(name, {"V": V, "Phi": Phi, "f_q": f_q, "f_r": f_r}),
                budget).require()  # fmt: skip
    answer = from_homogeneous(dual.predict(H, f_r))
    compare("the ratio is o_r", answer, o_r, at_r[:-1].times(4 / D_r)).require()


def test_two_tokens_show_the_failure_exactly() -> None:
    """The proof's counterexample: all its numbers are small integers, and nothing is rounded."""
    a, b, w = np.array([1.0, 1.0]), np.array([1.0, 3.0]), np.array([2.0, 6.0])
    Phi, V = np.stack([a, b], axis=1), w[:, None]
    f_q, f_r = np.eye(2)
    D_q, D_r = dual.normalizer(Phi, np.eye(2))
    W_q = dual.gradient_step(np.zeros((1, 2)), dual.gradient(V, Phi, D_q))
    o_r = from_homogeneous(dual.predict(dual.initial_weights(to_homogeneous(V), Phi, 1.0), f_r))
    assert (D_q, D_r) == (2.0, 4.0)
    assert dual.predict(W_q, f_q) == np.mean(w)
    assert (dual.predict(W_q, f_r), o_r) == (10.0, 5.0)
    assert dual.predict(W_q, f_r) - o_r == evaluated("failure", {"a": a, "b": b, "w": w})


@given(case=cases())
def test_the_regressor_keeps_the_same_weights_in_two_parts(case: Case) -> None:
    """[coef_; normalizer_] are the weights of the targets [v; 1]: the split does not matter."""
    x = see_dual(OURS, case)
    model = OneStepRegressor(scale=case.scale, learning_rate=0.3)
    model.fit(case.K, case.V, n_demonstrations=case.N)
    Y = to_homogeneous(case.V)
    W_0 = dual.initial_weights(Y[case.N :], x.Phi[case.N :], 1.0)
    slope = dual.gradient(Y[: case.N], x.Phi[: case.N], 1.0, 0.3)
    both = np.concatenate([model.coef_, model.normalizer_[None]])
    terms = (abs(Y).T @ abs(x.Phi))[..., None]
    compare(
        "[coef_; normalizer_]",
        both,
        dual.gradient_step(W_0, slope, 0.3),
        sum_budget(terms, len(Y) + 8, case.u).times(2),
    ).require()
    answers = from_homogeneous(dual.predict(both, x.phi_q))
    compare("their ratio", answers, model.predict(case.Q), x.budget.times(2)).require()


@given(case=cases(), power=st.integers(-40, 40))
def test_a_factor_of_the_weights_does_not_matter(case: Case, power: int) -> None:
    """Trained with the D of any query, the ratio is the same; for a power of two, bit by bit."""
    x = see_dual(OURS, case)
    Y = to_homogeneous(case.V)
    D = np.array(2.0**power)
    readouts = dual.predict(dual.initial_weights(Y, x.Phi, D), x.phi_q)
    without = dual.predict(dual.initial_weights(Y, x.Phi, 1.0), x.phi_q)
    assert np.array_equal(from_homogeneous(readouts), from_homogeneous(without))


def test_where_D_is_the_same_the_weights_answer_both_queries() -> None:
    """Keys in pairs k, -k have D(q) = D(-q): the tempting statement is true there."""
    case = make_case(2, n_q=1, n=3, d=2, c=2)
    K, V = np.concatenate([case.K, -case.K]), np.concatenate([case.V, case.V**2])
    Q = np.concatenate([case.Q, -case.Q])
    pairs = Case("pairs", 2, Q, K, V, 6)
    x_q, x_k = scaled(pairs)
    phi = OURS.GramFeatures().fit(x_k)
    Phi, phi_q = on_one_scale(phi(x_k)), on_one_scale(phi(x_q))
    D = dual.normalizer(Phi, phi_q)
    W_q = dual.initial_weights(V, Phi, D[0])
    budget = see_dual(OURS, pairs).budget.times(2) + attention_budget(Q, K, V, pairs.s, U)
    compare("both queries", dual.predict(W_q, phi_q), attention(Q, K, V), budget).require()


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("shape", [(4, 2), (3, 1, 2), (0, 2), (2, 0)])
def test_back_and_forth_keeps_values_shape_and_dtype(dtype: str, shape: tuple[int, ...]) -> None:
    V = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    V.setflags(write=False)
    Y = to_homogeneous(V)
    assert Y.shape == (*shape[:-1], shape[-1] + 1)
    assert (Y[..., -1] == 1).all()
    assert Y.dtype == from_homogeneous(Y).dtype == dtype
    assert np.array_equal(from_homogeneous(Y), V)


def test_a_denominator_of_zero_gives_no_finite_number() -> None:
    got = from_homogeneous([[0.0, 2.0, 0.0], [1.0, np.nan, 2.0], [1.0, 2.0, np.nan]])
    assert not np.isfinite(got[0]).any()
    assert (got[1, 0], np.isnan(got[1, 1])) == (0.5, True)
    assert np.isnan(got[2]).all()


@pytest.mark.parametrize(
    ("function", "value", "error", "message"),
    [
        (to_homogeneous, [1.0], ValueError, "values has shape (1,); expected (..., n_tokens, dim)"),
        (to_homogeneous, [["a"]], TypeError, "values has dtype <U1; expected float16"),
        (to_homogeneous, [[1.0], [1.0, 2.0]], ValueError, "values is no array"),
        (from_homogeneous, 1.0, ValueError, "readouts has shape (); expected (..., n_outputs + 1)"),
        (from_homogeneous, np.ones((2, 0)), ValueError, "readouts has shape (2, 0); expected"),
        (from_homogeneous, [1j], TypeError, "readouts has dtype complex128; expected float16"),
    ],
)
def test_bad_input_is_refused_by_name(
    function: Any, value: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        function(value)
