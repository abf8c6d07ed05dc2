"""The proof's own expressions against the code, complex steps, and the corners of derivatives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given

from equivalence import OneStepRegressor, attention
from equivalence.dual import predict
from equivalence.features import GramFeatures, PositiveFeatures
from equivalence.gradients import attention_jacobians, dual_jacobian
from equivalence.verify.budgets import Budget, gamma, kernel_budget, weight_errors
from equivalence.verify.cases import Case, make_case
from equivalence.verify.compare import compare
from equivalence.verify.dual_case import exponent_error, on_one_scale, scaled
from equivalence.verify.gradient_budgets import jacobian_budgets
from equivalence.verify.strategies import cases
from proofs import load

PROOF = load("attention_gradients")


def of(case: Case) -> tuple[Any, Any]:
    """The Jacobians of a case, and their budgets."""
    by = attention_jacobians(case.Q, case.K, case.V, scale=case.scale)
    return by, jacobian_budgets(case.Q, case.K, case.V, case.s, case.u)


def evaluated(name: str, case: Case, **indices: int) -> float:
    """A named expression of the proof at the case's only query."""
    given = {
        "kappa": np.exp(case.s * case.K @ case.Q[0]).tolist(),
        "K": case.K.tolist(), "q": case.Q[0].tolist(), "v": case.V.tolist(), "s": case.s,
        "g": np.eye(case.V.shape[1])[indices.get("r", 1) - 1].tolist(), **indices,
    }  # fmt: skip
    value: float = PROOF.evaluate(name, {key: given[key] for key in PROOF.arguments(name)})
    return value


@pytest.mark.parametrize("sizes", [{"n": 2, "d": 1, "c": 1}, {"n": 4, "d": 3, "c": 2}])
def test_the_code_computes_the_expressions_of_the_proof(sizes: dict[str, int]) -> None:
    case = make_case(3, n_q=1, scale=0.7, **sizes)
    by, budgets = of(case)
    n, d, c = sizes.values()
    model = OneStepRegressor(scale=case.scale).fit(case.K, case.V)
    frozen = dual_jacobian(model, case.Q, freeze_normalizer=True)
    # The proof is exact, but its kappa are rounded like those of attention itself.
    wide = budgets.query.times(2)
    for name in ("do_dq", "covariance"):
        want = [[evaluated(name, case, r=r + 1, a=a + 1) for a in range(d)] for r in range(c)]
        compare(name, by.query[0], want, wide[0]).require()
    for i in range(n):
        want = [[evaluated("do_dk_i", case, i=i + 1, r=r + 1, a=a + 1) for a in range(d)]
                for r in range(c)]  # fmt: skip
        got = np.outer(by.key[0, i], case.Q[0])
        budget = Budget(2 * np.outer(budgets.key.bound[0, i], abs(case.Q[0])), "kappa", case.u)
        compare("do_dk_i", got, want, budget).require()
        pulled = [evaluated("pulled_back", case, i=i + 1, r=r + 1) for r in range(c)]
        compare(
            "pulled_back", by.value[0, i] * np.ones(c), pulled, budgets.value[0, i].times(2)
        ).require()
    excess = [[evaluated("excess", case, r=r + 1, a=a + 1) for a in range(d)] for r in range(c)]
    size = abs(case.s) * abs(case.V).max() * abs(case.K).max()
    dual = Budget(np.full((c, d), gamma(64 * n, case.u) * size), "sums over n keys", case.u)
    compare("excess", frozen[0] - by.query[0], excess, wide[0] + dual).require()


def complex_step(case: Case, name: str, at: tuple[int, int]) -> np.ndarray:
    """The derivative of attention's formula by one entry, from an imaginary step: no difference."""
    x = {"Q": case.Q, "K": case.K, "V": case.V}
    x[name] = x[name].astype(complex)
    tiny = 2.0**-300
    x[name][at] += 1j * tiny
    scores = case.s * x["Q"] @ x["K"].T
    kappa = np.exp(scores - scores.real.max(axis=-1, keepdims=True))
    slope: np.ndarray = ((kappa @ x["V"]) / kappa.sum(axis=-1, keepdims=True)).imag / tiny
    return slope


@pytest.mark.parametrize("seed", [1, 2])
def test_complex_steps_give_every_derivative(seed: int) -> None:
    case = make_case(seed, n_q=3, n=6, d=4, c=3, scale=0.6)
    by, _ = of(case)
    n_q, (n, d), c = len(case.Q), case.K.shape, case.V.shape[1]
    _, relative = weight_errors(case.Q, case.K, case.s, case.u)
    # Both sides sum n terms of at most this size, some of them twice, and cancel.
    size = abs(case.s) * 2 * abs(case.V).max() * max(abs(case.K).max(), abs(case.Q).max())
    error = (2 * relative.max() + 2 * gamma(4 * n + 32, case.u)) * max(1.0, size)
    budget = Budget(np.full((n_q, c), error), "n terms of size s |v||k|", case.u)
    for a in range(d):
        stepped = sum(complex_step(case, "Q", (i, a)) for i in range(n_q))
        compare("do/dq", by.query[..., a], stepped, budget).require()
    for j in range(n):
        for a in range(d):
            got = by.key[:, j] * case.Q[:, a : a + 1]
            compare("do/dk", got, complex_step(case, "K", (j, a)), budget).require()
        for r in range(c):
            got = by.value[:, j, None] * np.eye(c)[r]
            compare("do/dv", got, complex_step(case, "V", (j, r)), budget).require()


def test_a_query_moves_its_own_output_only() -> None:
    case = make_case(4, n_q=3)
    moved = complex_step(case, "Q", (1, 0))
    assert not moved[[0, 2]].any()
    assert moved[1].all()


@given(case=cases(dtypes=("float64",)))
def test_the_order_of_the_tokens_orders_the_derivatives(case: Case) -> None:
    by, budgets = of(case)
    order = case.rng("order").permutation(len(case.K))
    again = attention_jacobians(case.Q, case.K[order], case.V[order], scale=case.scale)
    compare("query", again.query, by.query, budgets.query.times(2)).require()
    compare("key", again.key, by.key[:, order], budgets.key[:, order].times(2)).require()
    compare("value", again.value, by.value[:, order], budgets.value[:, order].times(2)).require()


@given(case=cases(dtypes=("float64",)))
def test_the_dual_has_one_derivative_however_the_tokens_are_split(case: Case) -> None:
    models = [
        OneStepRegressor(scale=case.scale).fit(case.K, case.V, n_demonstrations=N)
        for N in (0, case.N, len(case.K))
    ]
    first, *others = (dual_jacobian(model, case.Q) for model in models)
    by, _ = of(case)
    Q, K = scaled(case)
    phi = GramFeatures().fit(K)
    terms = abs(on_one_scale(phi(K))) @ abs(phi.jacobian(Q)) / np.einsum(
        "qm,nm->q", phi(Q).features, on_one_scale(phi(K)))[:, None, None]  # fmt: skip
    # The splits differ by the order of summation alone.
    size = (2 * abs(case.V).max() * terms.sum(axis=1) + abs(by.query).max()).max()
    depth = gamma(4 * len(K) * (1 + abs(case.V).shape[1]), case.u)
    budget = Budget(np.full(first.shape, depth * max(1.0, size)), "another order", case.u)
    for other in others:
        compare("any split", other, first, budget).require()


def test_the_features_move_as_the_kernel_does() -> None:
    """phi(k_i).dphi(x)/dx = kappa(k_i, x) k_i, at queries and at landmarks."""
    case = make_case(5, n_q=4, n=6, d=3)
    Q, K = scaled(case)
    phi = GramFeatures().fit(K)
    for X in (Q, K):
        slope, here = phi.jacobian(X), phi(X)
        assert slope.shape == (*X.shape[:1], 6, 3)
        g = here.features @ phi(K).features.T
        exponent = exponent_error(case, case.u).max() * np.ones(g.shape)
        for a in range(3):
            budget = kernel_budget(slope[..., a], phi(K).features, exponent, case.u)
            of_g = kernel_budget(here.features, phi(K).features, exponent, case.u)
            compare(
                "phi(k).phi'(x) = kappa k",
                slope[..., a] @ phi(K).features.T,
                g * K[:, a],
                budget + of_g.times(2 * abs(K[:, a])),
            ).require()


def test_frozen_weights_are_those_of_the_step() -> None:
    """The derivative with D frozen is the constant matrix W_1(q) times that of the features."""
    case = make_case(6, n_q=1, n=4, d=2, c=2)
    Q, _ = scaled(case)
    model = OneStepRegressor().fit(case.K, case.V)
    D = float(np.exp(model.log_normalizer(case.Q)[0] - model.log_scale_))
    phi = model.feature_map_
    columns = np.moveaxis(phi.jacobian(Q)[0], -1, 0)  # type: ignore[attr-defined]
    W_1 = model.coef_ / (D * np.exp(-phi(Q).log_scale[0]))
    got = dual_jacobian(model, case.Q, freeze_normalizer=True)[0]
    want = np.sqrt(case.s) * predict(W_1, columns).T
    size = np.sqrt(case.s) * (abs(W_1) @ abs(columns[..., None]))[..., 0].T
    budget = Budget(gamma(64, case.u) * size, "two orders of the same products", case.u)
    compare("W_1 phi'(q)", got, want, budget).require()


@pytest.mark.parametrize(
    ("dtype", "computed"),
    [("float16", "float32"), ("float32", "float32"), ("float64", "float64")],
)
def test_the_dtype_is_that_of_the_arguments(dtype: str, computed: str) -> None:
    case = make_case(7)
    stored = [x.astype(dtype) for x in (case.Q, case.K, case.V)]
    by = attention_jacobians(*stored)
    wide = attention_jacobians(*(x.astype(computed) for x in stored))
    for got, want in zip(by, wide, strict=True):
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, want.astype(dtype))
    model = OneStepRegressor().fit(*stored[1:])
    assert dual_jacobian(model, stored[0]).dtype == dtype


def test_integers_are_computed_in_float64() -> None:
    by = attention_jacobians([[1, 2]], [[1, 0], [0, 1]], [[3], [4]])
    assert [x.dtype for x in by] == [np.dtype("float64")] * 3


def test_leading_axes_broadcast() -> None:
    rng = np.random.default_rng(8)
    Q, K, V = (rng.standard_normal(s) for s in ((2, 1, 3, 4), (5, 6, 4), (6, 2)))
    by = attention_jacobians(Q, K, V)
    assert by.query.shape == (2, 5, 3, 2, 4)
    assert by.key.shape == (2, 5, 3, 6, 2)
    assert by.value.shape == (2, 5, 3, 6)
    one = attention_jacobians(Q[1, 0], K[3], V)
    budgets = jacobian_budgets(Q[1, 0], K[3], V, 0.5, 2.0**-53)
    for got, want, budget in zip(by, one, budgets, strict=True):
        compare("one of the batch", got[1, 3], want, budget.times(2)).require()


def test_the_dual_takes_queries_with_leading_axes() -> None:
    case = make_case(9, n_q=4)
    model = OneStepRegressor().fit(case.K, case.V)
    batch = dual_jacobian(model, case.Q.reshape(2, 2, -1))
    by, budgets = of(case)
    wide = Budget(np.full(by.query.shape, gamma(4096, case.u)), "small sizes", case.u)
    compare("batched", batch.reshape(by.query.shape), by.query, budgets.query + wide).require()


def test_a_single_key_has_no_derivative_but_by_its_value() -> None:
    by = attention_jacobians([[1.0, 2.0]], [[3.0, 4.0]], [[5.0]])
    assert not by.query.any()
    assert not by.key.any()
    assert by.value.tolist() == [[1.0]]


def test_saturated_weights_leave_nothing_to_move() -> None:
    """Scores far beyond the range of exp: one weight is 1, and no derivative overflows."""
    K, V = np.array([[100.0], [-100.0]]), np.array([[1.0], [2.0]])
    by = attention_jacobians([[100.0]], K, V, scale=1.0)
    assert by.value.tolist() == [[1.0, 0.0]]
    assert not by.query.any()
    assert not by.key.any()


def test_a_large_value_does_not_overflow_where_the_derivative_does_not() -> None:
    by = attention_jacobians([[0.0]], [[1.0], [-1.0]], [[1e300], [1e300]], scale=1.0)
    assert not by.query.any()
    assert np.isfinite(by.key).all()


def test_without_keys_the_derivative_by_the_query_is_that_of_a_mean_over_nothing() -> None:
    by = attention_jacobians(np.ones((2, 3)), np.ones((0, 3)), np.ones((0, 4)))
    assert by.query.shape == (2, 4, 3)
    assert np.isnan(by.query).all()
    assert by.key.shape == (2, 0, 4)
    assert by.value.shape == (2, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_is_not_finite_gives_nan_where_the_output_is_nan(bad: float, which: int) -> None:
    case = make_case(10, n_q=2, n=3, d=2, c=2)
    arrays = [x.copy() for x in (case.Q, case.K, case.V)]
    arrays[which][0, 0] = bad
    by = attention_jacobians(*arrays)
    lost = np.isnan(attention(*arrays))
    assert lost.any()
    assert np.isnan(by.query[lost]).all()
    assert np.isfinite(by.query[~lost]).all()


def test_the_inputs_stay_as_they_are() -> None:
    case = make_case(11)  # its arrays refuse to be written
    attention_jacobians(case.Q, case.K, case.V)
    dual_jacobian(OneStepRegressor().fit(case.K, case.V), case.Q)


Q, K, V = np.ones((2, 3)), np.ones((4, 3)), np.ones((4, 5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((Q[0], K, V), r"query has shape \(3,\); expected \(..., n_tokens, dim\)"),
        ((Q[:, :0], K[:, :0], V), "query has shape .* expected a last axis of at least 1"),
        ((Q, K[:, :2], V), r"key has shape \(4, 2\); expected \(..., n_tokens, 3\)"),
        ((Q, K, V[:3]), r"value has shape \(3, 5\); expected \(..., 4, c\), one row for each key"),
        ((Q, np.ones((2, 4, 3)), np.ones((3, 4, 5))), r"value has leading axes \(3,\)"),
        ((np.ones((3, 2, 3)), np.ones((2, 4, 3)), V), r"key has leading axes \(2,\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attention_jacobians(*arguments)


def test_what_is_no_number_is_named() -> None:
    with pytest.raises(TypeError, match="value has dtype complex128"):
        attention_jacobians(Q, K, V.astype(complex))
    with pytest.raises(ValueError, match="scale is nan; expected a finite number"):
        attention_jacobians(Q, K, V, scale=np.nan)


def test_a_dual_that_cannot_be_differentiated_is_named() -> None:
    with pytest.raises(ValueError, match="OneStepRegressor has no weights yet"):
        dual_jacobian(OneStepRegressor(), Q)
    with pytest.raises(ValueError, match="queries has shape"):
        dual_jacobian(OneStepRegressor().fit(K, V), Q[:, :2])
    phi = PositiveFeatures.sample(3, 4, rng=np.random.default_rng(0))
    with pytest.raises(TypeError, match=r"model has the feature map .*; expected one with a jac"):
        dual_jacobian(OneStepRegressor(phi).fit(K, V), Q)
    with pytest.raises(ValueError, match="GramFeatures has no landmarks yet"):
        GramFeatures().jacobian(Q)
