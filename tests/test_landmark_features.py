"""Landmarks: the least squares and the greedy choice against their definitions, and the corners."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from equivalence import OneStepRegressor, attention, attention_weights
from equivalence.features import LandmarkFeatures
from equivalence.features.landmarks import greedy_columns
from equivalence.verify.budgets import Budget, attention_budget, gamma
from equivalence.verify.compare import compare

Array = np.ndarray[Any, Any]
U = 2.0**-53

RNG = np.random.default_rng(0)
K, V = RNG.standard_normal((8, 3)), RNG.standard_normal((8, 2))
Q, NEW = RNG.standard_normal((30, 3)), RNG.standard_normal((4, 3))


def fitted(m: int, keys: Array = K, queries: Array = Q) -> LandmarkFeatures:
    return LandmarkFeatures(m).fit(keys, queries)


def log_kernel_budget(phi: LandmarkFeatures, x: Array, keys: Array, u: float) -> Budget:
    """exp(z.x - log norm) exp(log norm) for a landmark z: the relative error of its exponent.

    A dot product, and the norm and the largest exponent taken off and put back.
    """
    d = x.shape[-1]
    size = abs(x).astype(float) @ abs(keys).T.astype(float)
    terms = 2 * size.max() + 2 * abs(phi.keys(keys).log_scale.astype(float)) + size
    kernel = np.exp(x.astype(float) @ keys.T.astype(float))
    return Budget(
        kernel * np.expm1(2 * gamma(d + 6, u) * terms + 16 * u),
        "the exponent errs by gamma_(d+6) of its terms, exp by 4 ulp, on both sides",
        u,
    )


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_at_landmarks_the_kernel_is_exact_for_every_query(dtype: str) -> None:
    keys, points = K.astype(dtype), (3 * NEW).astype(dtype)
    phi = fitted(5, keys)
    at_keys, at_points = phi.keys(phi.landmarks_), phi.queries(points)
    assert np.array_equal(at_keys.features, np.eye(5))
    assert at_keys.features.dtype == at_points.features.dtype == dtype
    got = at_points.phi() @ at_keys.phi().T
    want = np.exp(points.astype(float) @ phi.landmarks_.T.astype(float))
    budget = log_kernel_budget(phi, points, phi.landmarks_, 2.0**-24 if dtype == "float32" else U)
    compare("exp(z.q)", got, want, budget).require()


def test_with_all_keys_the_dual_is_attention() -> None:
    phi = fitted(len(K))
    assert sorted(phi.indices_.tolist()) == list(range(len(K)))
    model = OneStepRegressor(phi.keys, query_map=phi.queries, scale=1.0).fit(K, V)
    budget = attention_budget(NEW, K, V, 1.0, U)
    relative = (log_kernel_budget(phi, NEW, K, U).bound / np.exp(NEW @ K.T)).max()
    dual = Budget(
        2 * (relative + gamma(len(K) + 2, U)) * abs(V).max() * np.ones((4, 2)),
        "kernel values that err relatively, in a mean",
        U,
    )
    want = attention(NEW, K, V, scale=1.0)
    compare("W_1 phi(q) = o", model.predict(NEW), want, budget + dual).require()


def test_coefficients_are_least_squares_over_the_queries() -> None:
    """Also of keys that were not there: each against NumPy's solver on the columns themselves."""
    phi = fitted(4)
    keys = np.concatenate([K, NEW])
    D = np.exp(Q @ K.T).sum(axis=1, keepdims=True)
    X, targets = (np.exp(Q @ x.T) / D for x in (phi.landmarks_, keys))
    C, _, rank, s = np.linalg.lstsq(X, targets, rcond=None)
    assert rank == 4
    norms = np.linalg.norm(X, axis=0)
    got = phi.keys(keys).phi() / norms
    condition = float(s[0] / s[-1])
    # Higham 2002, thm 20.1: perturbations of X and of a target, by the rounding of exponents of
    # size |q||k| and of a QR factor, move a solution by cond (1 + cond r) of its own size.
    move = gamma(30 * 4 * 12, U) * condition * (1 + condition) * abs(C).max() * 4
    compare("argmin |X c - x|", got, C.T, Budget(np.array(move), "condition of X", U)).require()


def test_each_choice_lowers_the_error_most() -> None:
    A = attention_weights(Q, K, scale=1.0)

    def left(columns: list[int]) -> float:
        X = A[:, columns]
        return float(np.linalg.norm(A - X @ np.linalg.lstsq(X, A, rcond=None)[0]))

    order = fitted(6).indices_.tolist()
    for m in range(6):
        errors = {j: left([*order[:m], j]) for j in range(len(K)) if j not in order[:m]}
        assert min(errors, key=lambda j: errors[j]) == order[m]


def test_a_greedy_choice_can_aim_at_less_than_everything() -> None:
    X = np.array([[3.0, 0.0, 1.0], [0.0, 2.0, 1.0]])
    T = np.array([[0.0], [1.0]])
    assert greedy_columns(X.T @ X, X.T @ T, 1).tolist() == [1]
    assert greedy_columns(X.T @ X, X.T @ X, 1).tolist() == [0]


def test_without_queries_the_keys_are_the_sample() -> None:
    alone, twice = LandmarkFeatures(3).fit(K), LandmarkFeatures(3).fit(K, K)
    assert alone.indices_.tolist() == twice.indices_.tolist()
    np.testing.assert_array_equal(alone.keys(K).phi(), twice.keys(K).phi())


def test_fewer_landmarks_are_the_first_of_more() -> None:
    more = fitted(6)
    for m in range(1, 6):
        assert np.array_equal(fitted(m).landmarks_, more.landmarks_[:m])


def test_landmarks_end_with_the_rank_of_the_attention() -> None:
    phi = fitted(8, queries=Q[:3])
    assert len(phi.landmarks_) == 3
    twice = np.concatenate([K, K])
    phi = fitted(16, twice)
    assert sorted(phi.indices_.tolist()) == list(range(8))
    first, again = np.split(phi.keys(twice).phi(), 2)
    assert np.array_equal(first, again)
    near = np.concatenate([K, K[:1] + 1e-5])
    assert sorted(fitted(9, near).indices_.tolist()) == list(range(9))


def test_least_squares_beat_interpolation_where_queries_are() -> None:
    """The Nystrom estimate at the same landmarks is another point of the same column space."""
    phi = fitted(4)
    A = attention_weights(Q, K, scale=1.0)
    D = np.exp(Q @ K.T).sum(axis=1, keepdims=True)
    estimate = phi.queries(Q).phi() @ phi.keys(K).phi().T / D
    Z = phi.landmarks_
    nystrom = np.exp(Q @ Z.T) @ np.linalg.solve(np.exp(Z @ Z.T), np.exp(Z @ K.T)) / D
    assert np.linalg.norm(estimate - A) < np.linalg.norm(nystrom - A)


def test_nothing_overflows_where_the_attention_does_not() -> None:
    keys, queries = 30 * K, 30 * Q
    phi = fitted(8, keys, queries)
    at_keys, at_queries = phi.keys(keys), phi.queries(queries)
    assert all(np.isfinite(x).all() for x in (*at_keys, *at_queries))
    scale = np.exp(at_keys.log_scale - at_keys.log_scale.max())[:, None]
    weights = at_queries.features @ (at_keys.features * scale).T
    assert np.isfinite(weights / weights.sum(axis=1, keepdims=True)).all()


def test_leading_axes_and_points_that_are_not_finite() -> None:
    phi, points = fitted(4), np.stack([NEW, 2 * NEW])
    points[1, 2] = np.nan
    for side in (phi.queries, phi.keys):
        kept = points.copy()
        features, log_scale = side(points)
        assert np.array_equal(points, kept, equal_nan=True)
        assert (features.shape, log_scale.shape) == ((2, 4, 4), (2, 4))
        assert np.isnan(features[1, 2]).all()
        alone = side(points[0])
        assert np.array_equal(features[0], alone.features)
        assert np.isfinite(np.delete(features.reshape(8, 4), 6, axis=0)).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: LandmarkFeatures(0), ValueError, "n_landmarks is 0; expected at least 1"),
        (lambda: LandmarkFeatures(2.0), TypeError, "n_landmarks is 2.0; expected an integer"),  # type: ignore[arg-type]
        (lambda: fitted(2, K[0]), ValueError, "keys has shape (3,)"),
        (lambda: fitted(2, K[:0]), ValueError, "keys has shape (0, 3)"),
        (lambda: fitted(2, K * np.nan), ValueError, "keys has entries that are NaN"),
        (lambda: fitted(2, queries=Q[:, :2]), ValueError, "queries has shape (30, 2)"),
        (lambda: fitted(2, queries=Q * np.inf), ValueError, "queries has entries that are NaN"),
        (lambda: fitted(2, 1e200 * K, 1e200 * Q), ValueError, "queries has rows whose scores over"),
        (lambda: fitted(2).keys(NEW[:, :2]), ValueError, "x has shape (4, 2)"),
        (lambda: fitted(2).queries(NEW.astype(complex)), TypeError, "x has dtype complex128"),
        (lambda: LandmarkFeatures(2).keys(NEW), ValueError, "LandmarkFeatures has no landmarks"),
    ],
)
def test_bad_input_is_refused_by_name(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()
