"""The proof's own expressions against the code, exact laws of few features, and bad input."""

import math
import re
from typing import Any

import numpy as np
import pytest

from equivalence import attention_weights
from equivalence.features import (
    attention_bias,
    attention_mean_square_error,
    log_lower_tail,
    required_features,
)
from equivalence.verify.budgets import Budget, gamma, sum_budget
from equivalence.verify.cases import generated_cases
from equivalence.verify.claims import random_feature_attention
from equivalence.verify.claims.random_feature_attention import _mean_ratio, _mean_square_ratio
from equivalence.verify.compare import Comparison, Disagreement, Inconclusive, compare
from equivalence.verify.implementation import OURS
from proofs import load

U = 2.0**-53
PROOF = load("random_feature_attention")
RNG = np.random.default_rng(0)
Q, K, V = RNG.standard_normal((2, 3)) / 2, RNG.standard_normal((4, 3)) / 2, RNG.random((4, 2))


@pytest.mark.parametrize("row", [0, 1])
def test_the_code_computes_the_constants_of_the_proof(row: int) -> None:
    p = attention_weights(Q, K, scale=1.0)[row]
    z = K + Q[row]
    M = [[math.prod(PROOF.evaluate("moment", {"a": a, "b": b}) for a, b in zip(x, y, strict=True))
          for y in z] for x in z]  # fmt: skip
    r = V - p @ V
    size = np.array([[float(np.max(M)) * 4]])
    square = 0.0
    for column in range(2):
        given = {"p": p.tolist(), "r": r[:, column].tolist(), "M": M}
        want = PROOF.evaluate("bias", given) / 8
        got = attention_bias(Q, K, V, 8, scale=1.0)[row, column]
        compare("bias", [got], [want], sum_budget(size, 128, U)).require()
        square += PROOF.evaluate("square", given)
    got = attention_mean_square_error(Q, K, V, 8, scale=1.0)[row]
    compare("error", [got], [square / 8], sum_budget(size, 128, U)).require()


def test_an_expansion_that_two_terms_cannot_settle_is_inconclusive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(random_feature_attention, "_COUNTS", (2, 4))
    (case, *_) = generated_cases(0, 1)
    items = list(random_feature_attention.check(OURS, case))
    unclear = [item for item in items if isinstance(item, Inconclusive)]
    assert [item.what.partition(" tends")[0] for item in unclear] == [
        "m times the bias", "m times the mean square error"
    ]  # fmt: skip
    wrong = random_feature_attention.claim.mutants[0].of(OURS)
    first = next(iter(random_feature_attention.check(wrong, case)))
    assert isinstance(first, Comparison)
    with pytest.raises(Disagreement, match="m times the bias"):
        first.require()


def test_the_integral_over_lambda_is_the_mean_of_the_ratio_by_enumeration() -> None:
    law = np.array([0.25, 0.5, 0.25])
    D, N = np.array([0.5, 1.0, 2.0]), np.array([[0.5], [-1.0], [1.5]])
    for m in (1, 2, 3):
        grids = np.meshgrid(*m * [np.arange(3)], indexing="ij")
        picks = np.stack([g.ravel() for g in grids])
        weight = law[picks].prod(axis=0)
        ratio = N[picks, 0].sum(axis=0) / D[picks].sum(axis=0)
        # 381 nodes; the trapezoid in y is cut where its ends are below rounding.
        budget = Budget(np.array([gamma(1024, U)]), "sums over the nodes of lam", U)
        compare("E N/D", _mean_ratio(law, N, D, m), [weight @ ratio], budget).require()
        mean = _mean_square_ratio(law, N, D, m)
        compare("E N^2/D^2", mean, [weight @ ratio**2], budget).require()


def test_equal_tokens_have_no_bias_and_no_error() -> None:
    K_1, V_1 = np.repeat(K[:1], 4, axis=0), V
    bias, error = (f(Q, K_1, V_1, 1) for f in (attention_bias, attention_mean_square_error))
    nothing = Budget(np.array(gamma(64, U) * 16), "sums that cancel", U)
    compare("one key, many values", bias, np.zeros((2, 2)), nothing).require()
    compare("one key, many values", error, np.zeros(2), nothing).require()


def test_a_billion_features_are_said_to_be_needed() -> None:
    # |x+y|^2 = 16 is what standard normal queries and keys of 64 coordinates have.
    x = np.full((1, 64), 0.25)
    assert required_features(x, x, 0.1).item() == math.ceil(math.expm1(16) * 100)
    assert required_features(x, -x, 0.1).item() == 1
    assert required_features(10 * x, 10 * x, 0.1).item() == math.inf
    assert required_features(x.astype("float32"), x, 0.1).dtype == np.float64


def test_the_tail_bound_is_that_of_the_proof() -> None:
    for S, t, m in ((1.0, 1.0, 1), (2.5, 0.25, 64)):
        want = m * PROOF.evaluate("log_tail", {"S": S, "t": t})
        assert log_lower_tail(S, t, m) == want


@pytest.mark.parametrize("f", [attention_bias, attention_mean_square_error])
def test_leading_axes_broadcast(f: Any) -> None:
    heads, layers = np.stack([Q, -Q]), np.stack([K, 2 * K, K / 2])[:, None]
    got = f(heads, layers, V, 8)
    alone = [[f(q, k[0], V, 8) for q in heads] for k in layers]
    assert got.shape[:2] == (3, 2)
    size = np.max(np.abs(alone))
    compare("each alone", got, alone, sum_budget(np.array(size), 128, U)).require()


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_dtypes_are_kept(dtype: str) -> None:
    q, k, v = (x.astype(dtype) for x in (Q, K, V))
    bias, error = attention_bias(q, k, v, 8), attention_mean_square_error(q, k, v, 8)
    assert (bias.shape, bias.dtype, error.shape, error.dtype) == ((2, 2), dtype, (2,), dtype)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: attention_bias(Q, K, V[:2], 8), ValueError, "value has shape (2, 2); expected"),
        (lambda: attention_bias(Q, K[:, :2], V, 8), ValueError, "key has shape (4, 2)"),
        (
            lambda: attention_bias(np.stack([Q] * 2), np.stack([K] * 3), V, 8),
            ValueError,
            "key has leading axes (3,); expected axes that broadcast with (2,)",
        ),
        (lambda: attention_bias(Q, K, V, 0), ValueError, "n_features is 0; expected at least 1"),
        (lambda: attention_bias(Q, K, V, 2.0), TypeError, "n_features is 2.0; expected an int"),
        (lambda: required_features(Q, K, 0.0), ValueError, "rtol is 0.0; expected a positive"),
        (lambda: required_features(Q, K[:, :1], 0.1), ValueError, "y has shape (4, 1)"),
        (lambda: log_lower_tail(0.5, 0.5, 1), ValueError, "second_moment is 0.5; expected at"),
        (lambda: log_lower_tail(2.0, 1.5, 1), ValueError, "shortfall is 1.5; expected at most"),
    ],
)
def test_bad_input_is_refused_by_name(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()
