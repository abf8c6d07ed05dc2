"""Each bound bounds what rounding does, for inputs chosen to hurt, and is no wider than it must."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from equivalence import attention, attention_weights, dual
from equivalence._arrays import Array
from equivalence.features import GramFeatures
from equivalence.verify import oracle
from equivalence.verify.budgets import (
    Budget,
    attention_budget,
    dual_budget,
    exact,
    gamma,
    gaussian_exponent_error,
    kernel_budget,
    normalizer_budget,
    score_error,
    sum_budget,
    unit_roundoff,
    weight_errors,
    weights_budget,
)
from equivalence.verify.compare import Comparison
from equivalence.verify.dual_case import on_one_scale

BALLS = oracle.balls()
DTYPES = ("float64", "float32")
Problem = tuple[Array, Array, Array, float]


def ordinary(rng: np.random.Generator) -> Problem:
    return rng.normal(size=(2, 3)), rng.normal(size=(6, 3)), rng.normal(size=(6, 2)), 0.7


def one_key(rng: np.random.Generator) -> Problem:
    return rng.normal(size=(2, 1)), rng.normal(size=(1, 1)), rng.normal(size=(1, 1)), 1.0


def large_norms(rng: np.random.Generator) -> Problem:
    """Scores in the hundreds that nearly agree: their rounding is seen in every weight."""
    q = 20 * rng.normal(size=(1, 8))
    return q, q + 0.02 * rng.normal(size=(5, 8)), rng.normal(size=(5, 3)), 1.0


def cancelling_values(rng: np.random.Generator) -> Problem:
    """Values a million times as large as the mean that is left of them, 1/6.

    No sum of them in float32 has it: such sums are multiples of more than a thousandth.
    """
    Q, K = 0.1 * rng.normal(size=(2, 2)), np.repeat(0.1 * rng.normal(size=(4, 2)), 2, axis=0)
    large = 1e6 * rng.normal(size=(4, 2))
    return Q, K, np.stack([large, 1 / 3 - large], axis=1).reshape(8, 2), 1.0


def cancelling_scores(rng: np.random.Generator) -> Problem:
    """q.k is a small difference of large products."""
    half = 10 * rng.normal(size=(1, 4))
    Q = np.concatenate([half, half], axis=1)
    keys = rng.normal(size=(5, 4))
    K = np.concatenate([keys, -keys + 0.1 * rng.normal(size=(5, 4))], axis=1)
    return Q, K, rng.normal(size=(5, 2)), 1.0


def vanishing_weights(rng: np.random.Generator) -> Problem:
    """Scores down to -900 below the largest: most kappa underflow, in either precision."""
    return np.array([[1.0], [30.0]]), np.linspace(-30, 1, 40)[:, None], rng.normal(size=(40, 1)), 1


def values_that_vanish(rng: np.random.Generator) -> Problem:
    """Only keys whose kappa is subnormal, or zero, have values that are not."""
    K = np.array([[0.0], [-95.0], [-110.0], [-740.0], [-760.0]])
    V = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    return np.ones((1, 1)), K, V, 1.0


def drifting_sum(rng: np.random.Generator) -> Problem:
    """Equal terms whose last bits are lost in one direction, as long as the sum stays near."""
    return np.ones((1, 1)), np.zeros((1000, 1)), np.full((1000, 1), 1 + 0.8 * 2.0**-15), 1.0


def one_value(rng: np.random.Generator) -> Problem:
    """One small part of all weights carries the output: N and D both err by all they may."""
    Q, K, _, scale = large_norms(rng)
    return Q, K[:1].repeat(12, axis=0), np.eye(12)[:, :1], scale


def close_keys(rng: np.random.Generator) -> Problem:
    """A nearly singular Gram matrix: features are large and cancel in every product."""
    return rng.normal(size=(3, 1)), 0.3 * rng.normal(size=(8, 1)), rng.normal(size=(8, 2)), 1.0


def many_keys(rng: np.random.Generator) -> Problem:
    return rng.normal(size=(1, 2)), rng.normal(size=(300, 2)), rng.normal(size=(300, 1)), 0.5


PROBLEMS = [
    ordinary,
    one_key,
    large_norms,
    cancelling_values,
    cancelling_scores,
    vanishing_weights,
    values_that_vanish,
    drifting_sum,
    many_keys,
]
over_problems = pytest.mark.parametrize("problem", PROBLEMS)
over_dtypes = pytest.mark.parametrize("dtype", DTYPES)
over_seeds = pytest.mark.parametrize("seed", range(3))


def made(problem: Callable[[np.random.Generator], Problem], seed: int, dtype: str) -> Problem:
    Q, K, V, scale = problem(np.random.default_rng(seed))
    return Q.astype(dtype), K.astype(dtype), V.astype(dtype), float(np.float32(scale))


def naive_attention(Q: Array, K: Array, V: Array, scale: float) -> tuple[Array, Array]:
    """One term after the other, every intermediate result rounded: no pairwise sums, no fma."""
    real = Q.dtype.type
    outputs, weights = [], []
    for q in Q:
        scores = []
        for k in K:
            score = real(0)
            for a, b in zip(q, k, strict=True):
                score = score + a * b
            scores.append(real(scale) * score)
        kappa = [np.exp(s - max(scores)) for s in scores]
        D, o = real(0), np.zeros(V.shape[1], Q.dtype)
        for x, v in zip(kappa, V, strict=True):
            D, o = D + x, o + x * v
        outputs.append(o / D)
        weights.append([x / D for x in kappa])
    return np.array(outputs), np.array(weights)


def share(got: Array, want: list[list[oracle.Number]], budget: Budget) -> float:
    return oracle.against(BALLS, "a certified error", got, want, budget).share


def exact_attention(Q: Array, K: Array, V: Array, scale: float) -> list[list[oracle.Number]]:
    q, k, v = (BALLS.vectors(x) for x in (Q, K, V))
    return [oracle.attention(BALLS, x, k, v, BALLS.number(scale)) for x in q]


def exact_weights(Q: Array, K: Array, scale: float) -> list[list[oracle.Number]]:
    q, k = BALLS.vectors(Q), BALLS.vectors(K)
    return [oracle.weights(BALLS, x, k, BALLS.number(scale)) for x in q]


@over_problems
@over_dtypes
@over_seeds
def test_attention_errs_by_less_than_its_budget(
    problem: Callable[[np.random.Generator], Problem], dtype: str, seed: int
) -> None:
    Q, K, V, scale = made(problem, seed, dtype)
    budget = attention_budget(Q, K, V, scale, unit_roundoff(dtype))
    want = exact_attention(Q, K, V, scale)
    with np.errstate(under="ignore"):
        assert share(naive_attention(Q, K, V, scale)[0], want, budget) <= 1
    assert share(attention(Q, K, V, scale=scale), want, budget) <= 1


@over_problems
@over_dtypes
@over_seeds
def test_weights_err_by_less_than_their_budget(
    problem: Callable[[np.random.Generator], Problem], dtype: str, seed: int
) -> None:
    Q, K, V, scale = made(problem, seed, dtype)
    budget = weights_budget(Q, K, scale, unit_roundoff(dtype))
    want = exact_weights(Q, K, scale)
    with np.errstate(under="ignore"):
        assert share(naive_attention(Q, K, V, scale)[1], want, budget) <= 1
    assert share(attention_weights(Q, K, scale=scale), want, budget) <= 1


@over_dtypes
def test_an_additive_mask_has_its_own_rounding_in_the_budget(dtype: str) -> None:
    Q, K, V, scale = made(ordinary, 0, dtype)
    bias = 50 + np.random.default_rng(1).normal(size=(2, 6)).astype(dtype)
    budget = attention_budget(Q, K, V, scale, unit_roundoff(dtype), bias)
    q, k, v, b = (BALLS.vectors(x) for x in (Q, K, V, bias))
    want = [
        oracle.attention(BALLS, x, k, v, BALLS.number(scale), y) for x, y in zip(q, b, strict=True)
    ]
    assert share(attention(Q, K, V, scale=scale, mask=bias), want, budget) <= 1
    without = attention_budget(Q, K, V, scale, unit_roundoff(dtype))
    assert (budget.bound > 2 * without.bound).all()


@pytest.mark.parametrize("problem", [ordinary, large_norms, cancelling_values, one_value])
@over_dtypes
def test_the_worst_errors_of_the_kernel_values_fit_and_nearly_fill_the_budget(
    problem: Callable[[np.random.Generator], Problem], dtype: str
) -> None:
    # Each kappa_j errs by all that it may, in the direction that moves o most: v_j away from o.
    Q, K, V, scale = made(problem, 0, dtype)
    Q, V, u = Q[:1], V[:, :1], unit_roundoff(dtype)
    p, relative = weight_errors(Q, K, scale, u)
    o = (p @ V.astype(float)).item()
    kappa = p[0] * (1 + np.sign(V[:, 0] - o) * relative[0])
    moved = abs(kappa @ V.astype(float) / kappa.sum() - o)
    bound = attention_budget(Q, K, V, scale, u).bound.item()
    assert bound / 8 < moved < bound


@pytest.mark.parametrize("problem", [ordinary, large_norms, cancelling_values, cancelling_scores])
@over_seeds
def test_float32_posing_as_float64_exceeds_every_budget(
    problem: Callable[[np.random.Generator], Problem], seed: int
) -> None:
    Q, K, V, scale = made(problem, seed, "float64")
    single = [x.astype(np.float32) for x in (Q, K, V)]
    u = unit_roundoff("float64")
    o = attention(*single, scale=scale).astype(np.float64)
    p = attention_weights(*single[:2], scale=scale).astype(np.float64)
    assert share(o, exact_attention(Q, K, V, scale), attention_budget(Q, K, V, scale, u)) > 10
    assert share(p, exact_weights(Q, K, scale), weights_budget(Q, K, scale, u)) > 10


@over_dtypes
@pytest.mark.parametrize("factor", [0.5, 1, 3, 100])
def test_scores_so_large_that_they_say_nothing_get_an_infinite_budget(
    dtype: str, factor: float
) -> None:
    # D may err by all of itself: error / (1 - error of D) would be negative, and allow anything.
    size = factor / np.sqrt(unit_roundoff(dtype))
    Q = np.full((1, 4), size, dtype)
    K = np.concatenate([Q, -Q, 0.9 * Q]).astype(dtype)
    V, u = np.ones((3, 1), dtype), unit_roundoff(dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        for budget in (attention_budget(Q, K, V, 0.5, u), weights_budget(Q, K, 0.5, u)):
            assert (budget.bound == np.inf).all()


@over_dtypes
def test_a_dot_product_errs_by_less_than_the_score_budget(dtype: str) -> None:
    # A long sum of terms of one sign, added one by one, loses most.
    rng = np.random.default_rng(0)
    q, k = rng.uniform(1, 2, size=(2, 1, 3000)).astype(dtype)
    got = np.add.accumulate(q[0] * k[0])[-1]
    error = BALLS.distance(float(got), BALLS.dot(BALLS.vectors(q)[0], BALLS.vectors(k)[0]))
    bound = score_error(q, k, 1.0, unit_roundoff(dtype)).item()
    assert bound / 10000 < error < bound


@over_dtypes
@pytest.mark.parametrize("axis", [-1, 0, (0, 1)])
def test_a_sum_errs_by_less_than_its_budget(dtype: str, axis: int | tuple[int, ...]) -> None:
    terms = np.random.default_rng(0).normal(size=(40, 50)).astype(dtype)
    terms[:, 1::2] = -terms[:, ::2] * (1 + 8 * unit_roundoff(dtype))
    budget = sum_budget(terms, terms.size, unit_roundoff(dtype), axis=axis)
    total = terms.sum(axis=axis)
    blocks = terms.ravel()[None] if axis == (0, 1) else np.moveaxis(terms, axis, -1)
    want = np.reshape([math.fsum(block) for block in blocks], total.shape)
    assert (abs(total - want) <= budget.bound).all()
    assert np.shape(budget.bound) == total.shape


def test_float32_posing_as_float64_exceeds_the_budget_of_a_sum() -> None:
    terms = np.random.default_rng(0).normal(size=100)
    budget = sum_budget(terms, 100, unit_roundoff("float64"))
    assert abs(float(terms.astype(np.float32).sum()) - terms.sum()) > 10 * budget.bound


def scaled_kernel(X: Array, Z: Array, log_x: Array, log_z: Array) -> list[list[oracle.Number]]:
    x, z = BALLS.vectors(X), BALLS.vectors(Z)
    a, b = BALLS.vectors(log_x[None])[0], BALLS.vectors(log_z[None])[0]
    return [
        [BALLS.exp(BALLS.dot(p, r) - s - t) for r, t in zip(z, b, strict=True)]
        for p, s in zip(x, a, strict=True)
    ]


GRAM_PROBLEMS = [ordinary, one_key, large_norms, cancelling_scores, close_keys]


@pytest.mark.parametrize("problem", GRAM_PROBLEMS)
@over_dtypes
@over_seeds
def test_gram_features_err_by_less_than_the_kernel_budget(
    problem: Callable[[np.random.Generator], Problem], dtype: str, seed: int
) -> None:
    Q, K, _, _ = made(problem, seed, dtype)
    u, phi = unit_roundoff(dtype), GramFeatures().fit(K)
    q, k = phi(Q), phi(K)
    budget = kernel_budget(q.features, k.features, gaussian_exponent_error(Q, K, u), u)
    want = scaled_kernel(Q, K, q.log_scale, k.log_scale)
    assert share(q.features @ k.features.T, want, budget) <= 1


@pytest.mark.parametrize("problem", [ordinary, large_norms])
def test_float32_posing_as_float64_exceeds_the_kernel_budget(
    problem: Callable[[np.random.Generator], Problem],
) -> None:
    Q, K, _, _ = made(problem, 0, "float64")
    u, phi = unit_roundoff("float64"), GramFeatures().fit(K)
    q, k = phi(Q), phi(K)
    rough = q.features.astype(np.float32).astype(np.float64)
    budget = kernel_budget(q.features, k.features, gaussian_exponent_error(Q, K, u), u)
    want = scaled_kernel(Q, K, q.log_scale, k.log_scale)
    assert share(rough @ k.features.T, want, budget) > 10


def dual_sides(
    problem: Callable[[np.random.Generator], Problem], seed: int, dtype: str
) -> tuple[Array, Array, Array, Array, Array]:
    """Phi, phi_q, V, the error of each exponent, and Q, K stacked for the exact answer."""
    Q, K, V, _ = made(problem, seed, dtype)
    u, phi = unit_roundoff(dtype), GramFeatures().fit(K)
    half = (K.astype(float) ** 2).sum(axis=-1).max() / 2
    error = gaussian_exponent_error(Q, K, u) + 2 * u * half
    return on_one_scale(phi(K)), phi(Q).features, V, error, np.concatenate([Q, K])


@pytest.mark.parametrize(
    "problem", [ordinary, one_key, cancelling_values, cancelling_scores, close_keys]
)
@over_dtypes
@over_seeds
def test_the_dual_prediction_errs_by_less_than_its_budget(
    problem: Callable[[np.random.Generator], Problem], dtype: str, seed: int
) -> None:
    Phi, phi_q, V, error, points = dual_sides(problem, seed, dtype)
    Q, K, u = points[: len(phi_q)], points[len(phi_q) :], unit_roundoff(dtype)
    D = dual.normalizer(Phi, phi_q)
    prediction = dual.predict(dual.initial_weights(V, Phi, D), phi_q)
    want = exact_attention(Q, K, V, 1.0)
    assert share(prediction, want, dual_budget(Phi, phi_q, V, error, u)) <= 1
    # As the share of D's relative budget: the exact D has the factor that Phi and phi_q carry.
    phi = GramFeatures().fit(K)
    logs = np.full(len(K), phi(K).log_scale.max())
    kernel = scaled_kernel(Q, K, phi(Q).log_scale, logs)
    totals = [[BALLS.sum(row)] for row in kernel]
    relative = normalizer_budget(Phi, phi_q, error, u).bound
    allowed = Budget((relative * D)[:, None], "relative", u)
    assert share(D[:, None], totals, allowed) <= 1


@over_dtypes
@over_seeds
def test_features_whose_products_cancel_err_by_less_than_the_dual_budget(
    dtype: str, seed: int
) -> None:
    # phi(k).phi(q) = (x, x + e).(-y, y) = e.y, a hundredth of its terms; no exponent errs at all.
    rng = np.random.default_rng(seed)
    x, e, y = rng.normal(size=(6, 9)), rng.random((6, 9)) / 100, rng.random((2, 9))
    Phi, phi_q = np.hstack([x, x + e]).astype(dtype), np.hstack([-y, y]).astype(dtype)
    V, u = rng.normal(size=(6, 2)).astype(dtype), unit_roundoff(dtype)
    f_k, f_q, v = (BALLS.vectors(a) for a in (Phi, phi_q, V))
    kappa = [[BALLS.dot(f, g) for g in f_k] for f in f_q]
    totals = [[BALLS.sum(row)] for row in kappa]
    want = [
        [BALLS.dot(row, column) / total for column in zip(*v, strict=True)]
        for row, (total,) in zip(kappa, totals, strict=True)
    ]
    D = dual.normalizer(Phi, phi_q)
    prediction = dual.predict(dual.initial_weights(V, Phi, D), phi_q)
    nothing = np.zeros((2, 6))
    assert share(prediction, want, dual_budget(Phi, phi_q, V, nothing, u)) <= 1
    relative = normalizer_budget(Phi, phi_q, nothing, u)
    assert share(D[:, None], totals, relative.times(abs(D))[:, None]) <= 1


def test_float32_posing_as_float64_exceeds_the_budgets_of_the_dual() -> None:
    Phi, phi_q, V, error, points = dual_sides(ordinary, 0, "float64")
    Q, K, u = points[:2], points[2:], unit_roundoff("float64")
    rough = phi_q.astype(np.float32).astype(np.float64)
    D, rough_D = dual.normalizer(Phi, phi_q), dual.normalizer(Phi, rough)
    prediction = dual.predict(dual.initial_weights(V, Phi, D), rough)
    want = exact_attention(Q, K, V, 1.0)
    assert share(prediction, want, dual_budget(Phi, phi_q, V, error, u)) > 10
    assert (abs(rough_D - D) > 10 * normalizer_budget(Phi, phi_q, error, u).bound * D).any()


def test_a_dual_whose_normaliser_may_vanish_gets_an_infinite_budget() -> None:
    Phi, phi_q = np.array([[1.0], [2.0**-53 - 1]]), np.array([[1.0]])
    error, u = np.zeros((1, 2)), unit_roundoff("float64")
    assert dual_budget(Phi, phi_q, np.ones((2, 1)), error, u).bound == np.inf
    assert normalizer_budget(Phi, phi_q, error, u).bound == np.inf


@pytest.mark.parametrize(("dtype", "bits"), [("float64", 53), ("float32", 24), ("float16", 11)])
def test_the_unit_roundoff_is_half_the_spacing_at_one(dtype: str, bits: int) -> None:
    u = unit_roundoff(dtype)
    assert u == 2.0**-bits
    real = np.dtype(dtype).type
    assert real(1 + u) == 1
    assert real(1 + 2 * u) > 1


@pytest.mark.parametrize("n", [0, 1, 7])
def test_gamma_exceeds_n_roundings_all_of_one_sign(n: int) -> None:
    u = 2.0**-24
    assert (1 + u) ** n - 1 <= gamma(n, u) <= n * u * (1 + 2 * n * u)


@pytest.mark.parametrize(("n", "u"), [(2, 0.5), (2**24, 2.0**-24), (2**53 + 1, 2.0**-53)])
def test_gamma_refuses_so_many_roundings_that_nothing_is_left(n: int, u: float) -> None:
    with pytest.raises(ValueError, match=rf"^n is {n} and u is .*; expected n u < 1$"):
        gamma(n, u)


def test_budgets_add_their_bounds_and_their_reasons() -> None:
    one = Budget(np.array([1.0, 2.0]), "rounding", 2.0**-53)
    both = one + Budget(np.array([0.5, 0.5]), "tails", 2.0**-24)
    np.testing.assert_array_equal(both.bound, [1.5, 2.5])
    assert (both.because, both.u) == ("rounding; tails", 2.0**-24)


def test_a_reason_is_given_once() -> None:
    one = Budget(np.ones(1), "rounding", 2.0**-53)
    assert (one + one).because == "rounding"
    np.testing.assert_array_equal((one + one).bound, [2.0])


def test_times_and_indexing_keep_reason_and_precision() -> None:
    budget = Budget(np.array([[1.0, 2.0], [3.0, 4.0]]), "rounding", 2.0**-24)
    np.testing.assert_array_equal(budget.times(3).bound, [[3, 6], [9, 12]])
    assert budget.times(3, "three of them: ").because == "three of them: rounding"
    np.testing.assert_array_equal(budget[1].bound, [3, 4])
    np.testing.assert_array_equal(budget[:, :1].bound, [[1], [3]])
    assert (budget[1].because, budget[1].u, budget.times(2).u) == ("rounding", 2.0**-24, 2.0**-24)


def test_the_exact_budget_allows_nothing() -> None:
    nothing = exact("a count")
    one = np.ones(1)
    assert Comparison("equal", one, one, 0 * one, nothing).require() == 0
    assert Comparison("close", one, one, one * 5e-324, nothing).share == np.inf
