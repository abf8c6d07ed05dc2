"""Importance weights against the density of the mixture, its draws, and what they promise."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
from scipy.special import ndtr

from equivalence import attention_weights
from equivalence.features import ImportanceFeatures, PositiveFeatures
from equivalence.features.importance import log_importance_weights
from equivalence.verify.budgets import Budget, gamma
from equivalence.verify.compare import Disagreement, compare
from equivalence.verify.laws import distribution_test, variance_test
from proofs import load

Array = np.ndarray[Any, Any]
U = 2.0**-53
PROOF = load("importance_features")

RNG = np.random.default_rng(0)
K, Q = RNG.standard_normal((5, 3)), 2 * RNG.standard_normal((4, 3))
W = 3 * RNG.standard_normal((7, 3))


def exponent_budget(size: float, terms: int) -> Budget:
    """Logarithms of sums of exponentials of exponents up to `size`."""
    return Budget(
        np.array(gamma(16 + terms, U) * (size + 16)), "exponents err by gamma_n of their terms", U
    )


def contributions(phi: ImportanceFeatures, keys: Array, queries: Array) -> Array:
    """What each feature adds to A_ij with m = 1: (m, n_q, n)."""
    D = np.exp(queries @ keys.T).sum(axis=1)
    x, y = (phi(points).phi() * math.sqrt(len(phi.projections)) for points in (keys, queries))
    return np.einsum("qm,km->mqk", y / D[:, None], x)


def drawn(seed: int = 0, m: int = 6) -> ImportanceFeatures:
    return ImportanceFeatures.sample(K, Q, m, rng=np.random.default_rng(seed))


def test_weights_are_one_over_the_density_of_the_mixture() -> None:
    """N(w; z, I) / N(w; 0, I) = exp(w.z - |z|^2/2), summed over all pairs as they are drawn."""
    A = attention_weights(Q, K, scale=1.0)
    want = [
        -math.log(
            math.fsum(
                A[i, j] / len(Q) * math.exp(w @ (q + k) - (q + k) @ (q + k) / 2)
                for i, q in enumerate(Q)
                for j, k in enumerate(K)
            )
        )
        for w in W
    ]
    size = float((abs(W).sum(1).max() + 40) * 20)
    budget = exponent_budget(size, len(K) * len(Q))
    compare("log N(w) / p(w)", log_importance_weights(W, K, Q), want, budget).require()


def test_the_code_computes_the_expressions_of_the_proof() -> None:
    """Exponents up to 200 in size, sums of 20 terms."""
    D = np.exp(Q @ K.T).sum(axis=1)
    for w in W:
        given = {"Q": Q, "K": K, "w": w}
        weight = math.exp(log_importance_weights([w], K, Q)[0])
        for name in ("ratio", "mixture"):
            want = PROOF.evaluate(name, given)
            compare(name, [1 / weight], [want], Budget(want * gamma(4096, U), "exp", U)).require()
        phi = ImportanceFeatures([w], log_importance_weights([w], K, Q))
        f, g = (np.exp(X @ w - (X**2).sum(axis=1) / 2) for X in (Q, K))
        for i, j in ((0, 0), (3, 4)):
            given = {"f": f, "g": g, "D": D, "i": i + 1, "j": j + 1}
            want = PROOF.evaluate("contribution", given)
            got = contributions(phi, K, Q)[0, i, j]
            budget = Budget(want * gamma(4096, U), "exp", U)
            compare("contribution", [got], [want], budget).require()


@pytest.mark.parametrize(("i", "j"), [(0, 0), (3, 4)])
def test_the_density_of_the_proof_is_that_of_a_shifted_normal(i: int, j: int) -> None:
    z = Q[i] + K[j]
    for w in W:
        want = math.exp(((w**2).sum() - ((w - z) ** 2).sum()) / 2)
        got = PROOF.evaluate("shifted", {"Q": Q, "K": K, "w": w, "i": i + 1, "j": j + 1})
        compare("N(w; z) / N(w)", [got], [want], Budget(want * gamma(4096, U), "exp", U)).require()


def test_without_weights_they_are_positive_features() -> None:
    got, want = ImportanceFeatures(W, np.zeros(7))(K), PositiveFeatures(W)(K)
    assert all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))


def test_a_contribution_is_bounded_and_all_of_them_have_mean_one() -> None:
    """At any projections, whether they were drawn or not."""
    for phi in (drawn(), ImportanceFeatures(W, log_importance_weights(W, K, Q))):
        found = contributions(phi, K, Q)
        assert (found >= 0).all()
        assert found.max() <= len(Q) * (1 + 64 * U)
        one = found.sum(axis=2).mean(axis=1)
        budget = Budget(np.array(gamma(4096, U)), "exponents up to 200, 20 terms", U)
        compare("mean_i sum_j", one, np.ones_like(one), budget).require()


def mixture_cdf(queries: Array, keys: Array, A: Array) -> Any:
    """The distribution function of q_i + k_j + N(0, 1) in one dimension."""
    centres = (queries[:, None, 0] + keys[:, 0]).ravel()
    chance = A.ravel() / len(queries)
    return lambda x: ndtr(np.asarray(x)[..., None] - centres) @ chance


def test_projections_are_drawn_where_the_attention_lies() -> None:
    keys, queries = np.array([[-2.0], [0.0], [3.0]]), np.array([[-1.0], [0.5]])
    A = attention_weights(queries, keys, scale=1.0)
    phi = ImportanceFeatures.sample(keys, queries, 4000, rng=np.random.default_rng(1))
    sample = phi.projections[:, 0]
    right = mixture_cdf(queries, keys, A)
    # Keys drawn uniformly; queries and keys paired by column instead of row; no query at all.
    uniform = mixture_cdf(queries, keys, np.full_like(A, 1 / 3))
    columns = mixture_cdf(queries, keys, 2 * A / A.sum(axis=0) / 3)
    alone = mixture_cdf(0 * queries, keys, A)
    grid = np.linspace(-12, 12, 2001)
    for wrong in (uniform, columns, alone):
        gap = float(abs(right(grid) - wrong(grid)).max())
        test = distribution_test("w ~ p", sample, right, alpha=1e-9, gap=gap)
        assert test.power > 0.99
        test.require()
        with pytest.raises(Disagreement):
            distribution_test("w ~ p", sample, wrong, alpha=1e-9, gap=gap).require()


def test_about_a_pair_projections_are_standard_normal() -> None:
    pair = np.array([[1.0, -2.0]]), np.array([[0.5, 3.0]])
    phi = ImportanceFeatures.sample(*pair, 4000, rng=np.random.default_rng(0))
    squares = (phi.projections - pair[0] - pair[1]).ravel() ** 2
    test = variance_test("w - q - k", squares, squares.size, alpha=1e-9, ratio=1.21)
    assert test.power > 0.99
    test.require()
    with pytest.raises(Disagreement):
        variance_test("w", 1.21 * squares, squares.size, alpha=1e-9, ratio=1.21).require()


def test_the_mean_over_the_mixture_is_the_kernel() -> None:
    """By the trapezoidal rule, which converges geometrically: p times a feature is N(w) phi phi."""
    keys, queries = np.array([[-1.0], [0.5]]), np.array([[0.25], [1.0], [-0.5]])
    A = attention_weights(queries, keys, scale=1.0)
    h, w = 0.25, np.arange(-12, 12.1, 0.25)[:, None]
    centres = (queries[:, None, 0] + keys[:, 0]).ravel()
    normal = np.exp(-((w - centres) ** 2) / 2) / math.sqrt(2 * math.pi)
    p = normal @ (A / len(queries)).ravel()
    phi = ImportanceFeatures(w, log_importance_weights(w, keys, queries))
    new = np.array([[0.75], [-1.25]])
    x, y = phi(keys).phi(), phi(new).phi()
    got = h * len(w) * (y * p) @ x.T
    want = np.exp(new @ keys.T)
    # Aliases exp(-2 pi^2 / h^2) = 1e-137; the tails beyond 12 - 3 standard deviations.
    tail = 2 * math.exp(-(9.0**2) / 2)
    budget = Budget(want * (gamma(4096, U) + tail), "exponents up to 100, and the tails cut off", U)
    compare("E phi(x).phi(y)", got, want, budget).require()


def test_a_sample_is_the_generators_and_nothing_else() -> None:
    assert np.array_equal(drawn(3).projections, drawn(3).projections)
    assert not np.isin(drawn(3).projections, drawn(4).projections).any()
    kept = K.copy(), Q.copy()
    drawn()
    assert np.array_equal(K, kept[0])
    assert np.array_equal(Q, kept[1])


def test_far_beyond_the_range_of_exp_everything_is_finite() -> None:
    phi = ImportanceFeatures.sample(30 * K, 30 * Q, 5, rng=np.random.default_rng(0))
    assert np.isfinite(phi.log_weights).all()
    for points in (30 * K, (30 * Q).astype(np.float32)):
        features, log_scale = phi(points)
        assert features.dtype == log_scale.dtype == points.dtype
        assert np.isfinite(features).all()
        assert np.isfinite(log_scale).all()


def sample(**changed: Any) -> ImportanceFeatures:
    given = {"keys": K, "queries": Q, "n_features": 3, "rng": RNG, **changed}
    return ImportanceFeatures.sample(**given)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sample(keys=K[0]), ValueError, "keys has shape (3,)"),
        (lambda: sample(queries=Q[:, :2]), ValueError, "queries has shape (4, 2)"),
        (lambda: sample(queries=Q * np.nan), ValueError, "queries has entries that are NaN"),
        (lambda: sample(n_features=0), ValueError, "n_features is 0; expected at least 1"),
        (lambda: sample(n_features=1.0), TypeError, "n_features is 1.0; expected an integer"),
        (lambda: sample(rng=0), TypeError, "rng is 0; expected a numpy.random.Generator"),
        (lambda: ImportanceFeatures(W, np.zeros(6)), ValueError, "log_weights has shape (6,)"),
        (lambda: ImportanceFeatures(W, W[:, 0] * np.inf), ValueError, "log_weights has shape"),
        (lambda: ImportanceFeatures(W[0], [0.0]), ValueError, "projections has shape (3,)"),
        (lambda: drawn()(K[:, :2]), ValueError, "x has shape (5, 2)"),
        (lambda: log_importance_weights(W, K[:0], Q), ValueError, "keys has shape (0, 3)"),
    ],
)
def test_bad_input_is_refused_by_name(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()
