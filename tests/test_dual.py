"""What a user of the dual's functions and of the regressor relies on, beyond the claims."""

from __future__ import annotations

import copy
import math
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from equivalence import OneStepRegressor, attention, dual
from equivalence.features import Features, GramFeatures, PositiveFeatures
from equivalence.verify.budgets import sum_budget, unit_roundoff
from equivalence.verify.compare import compare

Array = np.ndarray[Any, Any]

RNG = np.random.default_rng(0)
V, PHI, W = RNG.standard_normal((4, 2)), RNG.random((4, 3)) + 0.5, RNG.standard_normal((2, 3))
PHI_Q, D = RNG.random((5, 3)) + 0.5, RNG.random(5) + 0.5
Q, K = RNG.standard_normal((5, 3)), RNG.standard_normal((4, 3))

# Sums of fewer than 64 terms of order 1, in whatever order memory suggests.
ANY_ORDER = sum_budget(np.full((1,), 64.0), 64, unit_roundoff("float64"))


def last_step(W: Any, values: Any, features: Any, D: Any, **rate: Any) -> Array:
    return list(dual.gradient_steps(W, values, features, D, **rate))[-1]


# Each function with arguments that fit.
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "normalizer": (dual.normalizer, {"key_features": PHI, "query_features": PHI_Q}),
    "initial_weights": (dual.initial_weights, {"values": V, "features": PHI, "D": D}),
    "loss": (dual.loss, {"W": W, "values": V, "features": PHI, "D": D}),
    "gradient": (dual.gradient, {"values": V, "features": PHI, "D": D}),
    "gradient_step": (dual.gradient_step, {"W": W, "gradient": 2 * W}),
    "gradient_steps": (last_step, {"W": W, "values": V, "features": PHI, "D": D}),
    "predict": (dual.predict, {"W": W, "query_features": PHI_Q}),
}
EACH = pytest.mark.parametrize(("function", "given"), CALLS.values(), ids=CALLS)
WITH_RATE = ["loss", "gradient", "gradient_step", "gradient_steps"]
ARGUMENTS = [(name, argument) for name, (_, given) in CALLS.items() for argument in given]


def call(name: str, **changes: Any) -> Any:
    function, given = CALLS[name]
    return function(**{**given, **changes})


def doubled(array: Array, times: int = 2) -> Array:
    return np.stack([array] * times)


# Where, what is passed instead, and what the message says.
MISFITS = [
    ("normalizer", {"key_features": PHI[0]}, "key_features has shape (3,); expected (..., n_tok"),
    ("normalizer", {"query_features": PHI_Q[0]}, "query_features has shape (3,); expected (..., n"),
    ("normalizer", {"query_features": PHI_Q[:, :2]}, "query_features has shape (5, 2); expected ("),
    ("normalizer", {"query_features": PHI_Q[:, :2]}, "(..., n_tokens, 3)"),
    (
        "normalizer",
        {"key_features": doubled(PHI), "query_features": doubled(PHI_Q, 3)},
        "query_features has leading axes (3,); expected axes that broadcast with (2,)",
    ),
    ("gradient", {"values": V[0]}, "values has shape (2,); expected (..., n_tokens, dim)"),
    ("gradient", {"features": PHI[0]}, "features has shape (3,); expected (..., n_tokens, dim)"),
    (
        "gradient",
        {"values": V[:3]},
        "values has shape (3, 2); expected (..., 4, n_outputs), one row for each row of features, "
        "which has shape (4, 3)",
    ),
    (
        "gradient",
        {"values": doubled(V), "features": doubled(PHI, 3)},
        "values has leading axes (2,); expected axes that broadcast with (3,)",
    ),
    (
        "gradient",
        {"values": doubled(V), "D": np.ones(3)},
        "D has leading axes (3,); expected axes that broadcast with (2,)",
    ),
    ("initial_weights", {"values": V[:3]}, "values has shape (3, 2); expected (..., 4, n_outputs)"),
    ("loss", {"W": W[0]}, "W has shape (3,); expected (..., 2, 3)"),
    ("loss", {"W": W.T}, "W has shape (3, 2); expected (..., 2, 3)"),
    ("loss", {"W": W[:, :2]}, "W has shape (2, 2); expected (..., 2, 3)"),
    ("gradient_step", {"W": W[0]}, "W has shape (3,); expected (..., n_outputs, n_features)"),
    ("gradient_step", {"gradient": W.T}, "gradient has shape (3, 2); expected (..., 2, 3)"),
    ("gradient_step", {"gradient": W[0]}, "gradient has shape (3,); expected (..., 2, 3)"),
    (
        "gradient_step",
        {"W": doubled(W), "gradient": doubled(W, 3)},
        "gradient has leading axes (3,); expected axes that broadcast with (2,)",
    ),
    ("gradient_steps", {"W": W.T}, "gradient has shape (5, 2, 3); expected (..., 3, 2)"),
    ("predict", {"W": W[0]}, "W has shape (3,); expected (..., n_outputs, n_features)"),
    ("predict", {"query_features": PHI_Q[:, :2]}, "query_features has shape (5, 2); expected (..."),
    ("predict", {"query_features": 1.0}, "query_features has shape (); expected (..., 3)"),
    (
        "predict",
        {"W": doubled(W), "query_features": PHI_Q},
        "query_features has leading axes (5,); expected axes that broadcast with (2,)",
    ),
]


@pytest.mark.parametrize(("name", "changes", "message"), MISFITS)
def test_what_does_not_fit_is_refused_by_name(
    name: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call(name, **changes)


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_what_is_not_real_is_refused_by_name(name: str, argument: str) -> None:
    array = CALLS[name][1][argument].astype(complex)
    told = "gradient" if (name, argument) == ("gradient_step", "gradient") else argument
    with pytest.raises(TypeError, match=f"^{told} has dtype complex128; expected float16"):
        call(name, **{argument: array})


@pytest.mark.parametrize("name", WITH_RATE)
def test_a_learning_rate_is_a_finite_number_and_1_unless_given(name: str) -> None:
    for bad in ("1", True, None, 1j):
        with pytest.raises(TypeError, match=f"^learning_rate is {re.escape(repr(bad))}; expected"):
            call(name, learning_rate=bad)
    for wrong in (math.nan, math.inf):
        with pytest.raises(ValueError, match=f"^learning_rate is {wrong}; expected a "):
            call(name, learning_rate=wrong)
    np.testing.assert_array_equal(call(name), call(name, learning_rate=1.0))
    if name != "gradient_steps":  # there it cancels
        assert not np.array_equal(call(name), call(name, learning_rate=2.0))


@pytest.mark.parametrize("name", ["loss", "gradient"])
@pytest.mark.parametrize("rate", [0.0, -1.0])
def test_the_loss_needs_a_positive_learning_rate(name: str, rate: float) -> None:
    with pytest.raises(ValueError, match=f"learning_rate is {rate}; expected a positive number"):
        call(name, learning_rate=rate)


@EACH
@pytest.mark.parametrize(
    ("dtype", "result"), [("float64", "float64"), ("float32", "float32"), ("float16", "float32")]
)
def test_the_dtype_is_kept_and_half_precision_computed_in_single(
    function: Callable[..., Any], given: dict[str, Any], dtype: str, result: str
) -> None:
    # D stays in float64: it must not widen the rest.
    arrays = {name: x if name == "D" else x.astype(dtype) for name, x in given.items()}
    assert function(**arrays).dtype == result


@EACH
def test_integers_are_computed_in_float64(
    function: Callable[..., Any], given: dict[str, Any]
) -> None:
    whole = {name: np.ceil(x).astype(np.int32) for name, x in given.items()}
    real = {name: x.astype(np.float64) for name, x in whole.items()}
    got = function(**whole)
    assert got.dtype == np.float64
    np.testing.assert_array_equal(got, function(**real))


@EACH
def test_inputs_may_be_read_only_or_strided_and_are_not_written_to(
    function: Callable[..., Any], given: dict[str, Any]
) -> None:
    strided = {name: np.repeat(x, 2, axis=-1)[..., ::2] for name, x in given.items()}
    before = copy.deepcopy(strided)
    for array in strided.values():
        array.setflags(write=False)
    compare("strided", function(**strided), function(**given), ANY_ORDER).require()
    for name, array in strided.items():
        np.testing.assert_array_equal(array, before[name])


def test_leading_axes_broadcast() -> None:
    """Two batches in one call are two calls, up to the order of summation."""
    values, features = RNG.standard_normal((2, 4, 2)), RNG.random((2, 4, 3)) + 0.5
    D = RNG.random(2) + 0.5
    queries = RNG.random((2, 5, 3)) + 0.5
    batched = {
        "normalizer": dual.normalizer(features, queries),
        "one query for all": dual.normalizer(features, queries[0]),
        "weights": dual.initial_weights(values, features, D),
        "one D for all": dual.gradient(values, features, 0.5),
        "loss": dual.loss(W, values, features, D, 0.3),
        "step": dual.gradient_step(W, dual.gradient(values, features, D)),
        "predict": dual.predict(dual.initial_weights(values, features, D), queries[:, 0]),
    }
    for b in range(2):
        weights = dual.initial_weights(values[b], features[b], D[b])
        one = {
            "normalizer": dual.normalizer(features[b], queries[b]),
            "one query for all": dual.normalizer(features[b], queries[0]),
            "weights": weights,
            "one D for all": dual.gradient(values[b], features[b], 0.5),
            "loss": dual.loss(W, values[b], features[b], D[b], 0.3),
            "step": dual.gradient_step(W, dual.gradient(values[b], features[b], D[b])),
            "predict": dual.predict(weights, queries[b, 0]),
        }
        for name, got in batched.items():
            compare(name, got[b], one[name], ANY_ORDER).require()


def test_one_weight_matrix_for_each_query_where_D_has_one_number_for_each() -> None:
    assert dual.initial_weights(V, PHI, D).shape == (5, 2, 3)
    assert dual.gradient(V, PHI, D).shape == (5, 2, 3)
    assert dual.loss(W, V, PHI, D).shape == (5,)
    assert np.shape(dual.loss(W, V, PHI, 2.0)) == ()
    assert dual.predict(dual.initial_weights(V, PHI, D), PHI_Q).shape == (5, 2)


def test_no_demonstrations_are_a_sum_over_nothing() -> None:
    none = np.s_[:0]
    np.testing.assert_array_equal(dual.gradient(V[none], PHI[none], D), np.zeros((5, 2, 3)))
    np.testing.assert_array_equal(dual.loss(W, V[none], PHI[none], D), np.zeros(5))
    assert list(dual.gradient_steps(W, V[none], PHI[none], D)) == []


def test_division_by_zero_and_overflow_are_silent_and_not_finite() -> None:
    huge = np.full((1, 1), 1e200)
    assert np.isinf(dual.initial_weights([[1.0]], [[1.0]], 0.0)).all()
    assert np.isnan(dual.initial_weights([[0.0]], [[1.0]], 0.0)).all()
    assert np.isinf(dual.normalizer(huge, huge)).all()
    assert np.isinf(dual.gradient(huge, huge, 1.0)).all()
    assert np.isinf(dual.loss(huge, huge, [[1.0]], 1.0))
    assert np.isinf(dual.gradient_step(huge, huge, 1e200)).all()
    assert np.isinf(dual.predict(huge, huge)).all()
    for value in (math.nan, math.inf):
        assert not np.isfinite(dual.predict([[value]], [[1.0]])).any()
        assert not np.isfinite(dual.gradient([[value]], [[1.0]], 1.0)).any()


# The regressor.


@pytest.mark.parametrize("bad", [GramFeatures, 3, "gram", [1.0]], ids=repr)
def test_a_feature_map_that_is_none_is_refused(bad: Any) -> None:
    with pytest.raises(TypeError, match=r"^feature_map is .*; expected a feature map, such as"):
        OneStepRegressor(bad)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"learning_rate": 0.0}, ValueError, "learning_rate is 0.0; expected a positive number"),
        ({"learning_rate": "1"}, TypeError, "learning_rate is '1'; expected a finite number"),
        ({"scale": 0.0}, ValueError, "scale is 0.0; expected a positive number"),
        ({"scale": -1.0}, ValueError, "scale is -1.0; expected a positive number"),
        ({"scale": math.nan}, ValueError, "scale is nan; expected a finite number"),
        ({"scale": "1"}, TypeError, "scale is '1'; expected a finite number"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(
    given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        OneStepRegressor(**given).fit(K, V)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"keys": K[0]}, ValueError, "keys has shape (3,)"),
        ({"keys": K[:0], "values": V[:0]}, ValueError, "keys has shape (0, 3); expected at least"),
        ({"keys": K[:, :0]}, ValueError, "keys has shape (4, 0); expected a last axis of at least"),
        ({"values": V[:3]}, ValueError, "values has shape (3, 2); expected (..., 4, n_outputs)"),
        ({"values": V[0]}, ValueError, "values has shape (2,)"),
        ({"keys": K.astype(complex)}, TypeError, "keys has dtype complex128"),
        ({"values": V.astype(str)}, TypeError, "values has dtype <U32"),
        ({"keys": np.where(K[1, 1] == K, np.nan, K)}, ValueError, "keys has entries that are NaN"),
        ({"n_demonstrations": 5}, ValueError, "n_demonstrations is 5; expected 0 to 4, the number"),
        ({"n_demonstrations": -1}, ValueError, "n_demonstrations is -1; expected 0 to 4"),
        ({"n_demonstrations": 2.0}, TypeError, "n_demonstrations is 2.0; expected an integer"),
        ({"n_demonstrations": True}, TypeError, "n_demonstrations is True; expected an integer"),
    ],
)
def test_a_fit_that_is_refused_leaves_the_model_as_it_was(
    given: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = OneStepRegressor().fit(K, V)
    before = model.predict(Q)
    with pytest.raises(error, match=re.escape(message)):
        model.fit(**{"keys": K, "values": V, **given})
    np.testing.assert_array_equal(model.predict(Q), before)


@pytest.mark.parametrize("method", ["predict", "log_normalizer"])
def test_queries_that_do_not_fit_are_refused(method: str) -> None:
    with pytest.raises(ValueError, match=r"no weights yet; expected fit\(keys, values\) to come"):
        getattr(OneStepRegressor(), method)(Q)
    model = OneStepRegressor().fit(K, V)
    with pytest.raises(ValueError, match=re.escape("queries has shape (5, 2); expected (..., n_t")):
        getattr(model, method)(Q[:, :2])
    with pytest.raises(TypeError, match="queries has dtype complex128"):
        getattr(model, method)(Q.astype(complex))
    random = OneStepRegressor(PositiveFeatures(K)).fit(doubled(K), doubled(V))
    with pytest.raises(ValueError, match=re.escape("queries has leading axes (3,); expected")):
        getattr(random, method)(doubled(Q, 3))


def test_keys_whose_norms_one_scale_cannot_carry_are_refused() -> None:
    far = np.array([[0.0], [60.0]])
    with pytest.raises(ValueError, match="keys have log scales that differ by 1800; expected at m"):
        OneStepRegressor(scale=1.0).fit(far, [[1.0], [2.0]])
    # One batch entry that cannot be carried is enough, and none of them alone is.
    batch = np.array([[[0.0], [1.0]], [[0.0], [60.0]]])
    with pytest.raises(ValueError, match="expected at most 708, what float64 carries"):
        OneStepRegressor(_Norms(), scale=1.0).fit(batch, np.ones((2, 2, 1)))
    OneStepRegressor(_Norms(), scale=1.0).fit(batch[:, ::-1][:, :1], np.ones((2, 1, 1)))


class _Norms:
    """One feature, of log scale |x|^2/2."""

    def __call__(self, x: Any) -> Features:
        return Features(np.ones((*x.shape[:-1], 1)), (x**2).sum(axis=-1) / 2)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_query_that_is_not_finite_gives_nan_and_spoils_no_other(bad: float) -> None:
    model = OneStepRegressor().fit(K, V)
    queries = Q.copy()
    queries[1, 0] = bad
    clean = np.arange(len(Q)) != 1
    assert np.isnan(model.predict(queries)[1]).all()
    np.testing.assert_array_equal(model.predict(queries)[clean], model.predict(Q)[clean])
    assert np.isnan(model.log_normalizer(queries)[1])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_prediction_has_the_dtype_of_keys_values_and_queries_together(dtype: str) -> None:
    small = [x.astype(dtype) for x in (Q, K, V)]
    model = OneStepRegressor().fit(*small[1:])
    assert model.predict(small[0]).dtype == dtype
    assert model.log_normalizer(small[0]).dtype == dtype
    assert model.predict(Q).dtype == np.float64
    assert OneStepRegressor().fit(small[1], V).predict(small[0]).dtype == np.float64


def test_the_model_is_fitted_as_scikit_learn_would_have_it() -> None:
    phi = GramFeatures()
    model = OneStepRegressor(phi)
    assert model.fit(K, V, n_demonstrations=3) is model
    assert not hasattr(phi, "factor_")  # the caller's map is left alone
    assert model.coef_.shape == model.initial_coef_.shape == (2, 4)
    assert (model.normalizer_.shape, model.n_features_in_) == ((4,), 3)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict(Q), model.predict(Q))


def test_a_batch_of_keys_is_a_batch_of_models() -> None:
    """With features that need no fitting: (2, n, d) keys and (2, n_q, d) queries at once."""
    rng = np.random.default_rng(1)
    keys, values, queries = (rng.standard_normal((2, n, 3)) for n in (4, 4, 5))
    phi = PositiveFeatures(rng.standard_normal((6, 3)))
    model = OneStepRegressor(phi).fit(keys, values, n_demonstrations=3)
    assert model.coef_.shape == (2, 3, 6)
    for b in range(2):
        one = OneStepRegressor(phi).fit(keys[b], values[b], n_demonstrations=3)
        for method in ("predict", "log_normalizer"):
            got = getattr(model, method)(queries)[b]
            compare(method, got, getattr(one, method)(queries[b]), ANY_ORDER).require()


def test_one_key_gives_its_value_whatever_the_query() -> None:
    model = OneStepRegressor().fit(K[:1], V[:1])
    one = sum_budget(abs(V[:1, :, None]), 8, unit_roundoff("float64"))
    expected = np.repeat(V[:1], len(Q), axis=0)
    compare("the only value", model.predict(Q), expected, one).require()
    np.testing.assert_array_equal(attention(Q, K[:1], V[:1]), expected)
