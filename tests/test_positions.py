"""The proof's own expressions against the code, and the corners of positions."""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equivalence import OneStepRegressor, attention
from equivalence.features import Features, GramFeatures, biased
from equivalence.layers import rotary, rotary_attention
from equivalence.streaming import AttentionState, causal_attention_by_chunks
from equivalence.verify.budgets import Budget, attention_budget, gamma, sum_budget
from equivalence.verify.cases import Case, make_case
from equivalence.verify.claims.causal_streaming import streaming_budget
from equivalence.verify.claims.positions import biased_budget
from equivalence.verify.compare import compare
from equivalence.verify.dual_case import exponent_error, scaled, see_dual
from equivalence.verify.implementation import OURS
from equivalence.verify.strategies import cases
from proofs import load

U = 2.0**-53
PROOF = load("positions")


def evaluated(name: str, **arrays: Any) -> np.ndarray:
    lists = {key: np.asarray(array).tolist() for key, array in arrays.items()}
    return np.array(PROOF.evaluate(name, lists), float)


def turn_budget(x: np.ndarray, p: float) -> Budget:
    """Each coordinate of a pair: products and a sum, and angles p theta <= p that err by 12 u."""
    length = abs(x).reshape(-1, 2).sum(axis=-1).repeat(2)
    return sum_budget(length[:, None], 4 + math.ceil(12 * (1 + abs(p))), U)


@pytest.mark.parametrize(("p", "d"), [(0.0, 2), (3.0, 6), (-2.5, 4)])
def test_rotary_computes_the_expressions_of_the_proof(p: float, d: int) -> None:
    x = np.random.default_rng(d).standard_normal(d)
    theta = 100.0 ** (-np.arange(0, d, 2) / d)
    given = {"a": x[::2], "b": x[1::2], "theta": theta, "p": p}
    want = [
        evaluated(name, **given, l=pair + 1)
        for pair in range(d // 2)
        for name in ("turned_a", "turned_b")
    ]
    got = rotary(x[None], [p], base=100.0)[0]
    compare("turned", got, want, turn_budget(x, p)).require()


def test_turned_scores_are_those_of_the_proof() -> None:
    q, k = np.random.default_rng(0).standard_normal((2, 6))
    p, r, theta = 4.0, 9.0, 10000.0 ** (-np.arange(0, 6, 2) / 6)
    got = rotary(q[None], [p])[0] @ rotary(k[None], [r])[0]
    pairs = {"a": q[::2], "b": q[1::2], "g": k[::2], "f": k[1::2], "theta": theta}
    length = [abs(x).reshape(-1, 2).sum(axis=-1) for x in (q, k)]
    budget = sum_budget(2 * length[0] * length[1], 8 + math.ceil(12 * (2 + p + r)), U)
    for name in ("turned_score", "relative_score"):
        want = evaluated(name, **pairs, p=p, r=r)
        compare(name, got, want, budget).require()


def biased_case(seed: int = 0) -> tuple[Case, np.ndarray]:
    case = make_case(seed, n_q=1, n=6, d=4, c=2, N=4)
    return case, case.rng("bias").standard_normal(6)


def both_budgets(case: Case, b: np.ndarray) -> Budget:
    """Of the dual with a bias of its only query, and of attention."""
    x = see_dual(OURS, case)
    dual = biased_budget(x.Phi, x.phi_q, case.V, exponent_error(case, U), b[None], U)
    return dual + attention_budget(case.Q, case.K, case.V, case.s, U, b[None])


def test_the_regressor_with_a_bias_computes_the_expressions_of_the_proof() -> None:
    case, b = biased_case()
    Q, K = scaled(case)
    phi = GramFeatures().fit(K)
    keys, phi_q = phi(K), phi(Q).features[0]
    model = OneStepRegressor(lambda x: phi(x)).fit(case.K, case.V, n_demonstrations=4, bias=b)
    weight = np.exp(b + keys.log_scale - model.log_scale_)
    stacks = {
        "V_N": case.V[:4], "V_T": case.V[4:], "Phi_N": keys.features[:4],
        "Phi_T": keys.features[4:], "B_N": np.diag(weight[:4]), "B_T": np.diag(weight[4:]),
        "phi_q": phi_q,
    }  # fmt: skip
    # Exponents of order 10 are rounded a few times, on either side.
    depth = 2 * (6 + len(phi_q)) + 100
    sizes = (abs(case.V).T * weight) @ abs(keys.features)
    budget = sum_budget(sizes[..., None], depth, U)
    D = model.normalizer_ @ phi_q
    terms = weight[:, None] * abs(keys.features) * abs(phi_q)
    compare("D", D, evaluated_with("D", stacks), sum_budget(terms.reshape(-1), depth, U)).require()
    scale = float(abs(D))
    for name, got in (("W_0", model.initial_coef_ / D), ("W_1", model.coef_ / D)):
        divided = budget.times(1 / scale) + sum_budget(terms.reshape(-1), depth, U).times(
            sizes / scale**2
        )
        compare(name, got, evaluated_with(name, stacks), divided).require()
    output = both_budgets(case, b)[0]
    o = evaluated_with("o", stacks)
    compare("o", model.predict(case.Q)[0], o, output).require()
    compare("attention", attention(case.Q, case.K, case.V, mask=b)[0], o, output).require()


def evaluated_with(name: str, stacks: dict[str, np.ndarray]) -> np.ndarray:
    needed = {key: stacks[key] for key in PROOF.arguments(name) if key in stacks}
    return evaluated(name, **needed)


def test_attention_with_a_mask_computes_the_proof_s_mean() -> None:
    case, b = biased_case(3)
    s = case.s * (case.K @ case.Q[0])
    o = attention(case.Q, case.K, case.V, mask=b)[0, :1]
    budget = attention_budget(case.Q, case.K, case.V, case.s, U, b[None])[0, :1]
    # The scores given to the proof are rounded as well: by (d + 2) u of |q|.|k|.
    moved = 2 * np.expm1(2 * gamma(8, U) * (abs(s).max() + abs(b).max())) * abs(case.V).max()
    rounded = budget + Budget(np.full(1, moved), "rounded scores", U)
    for name in ("o_biased", "o_weighted"):
        want = evaluated(name, s=s, bias=b, v=case.V[:, 0])
        compare(name, o, [want], rounded).require()


SLOPE = 0.25


def test_alibi_is_one_weighted_loss_for_every_position() -> None:
    """The bias slope j of the key alone, in one stream, is -slope (i - j) for every query i."""
    case = make_case(1, n_q=7, n=7, d=4, c=2)
    Q, K = scaled(case)
    phi, at = GramFeatures().fit(K), np.arange(7.0)
    keys, queries = biased(phi(K), SLOPE * at), phi(Q)
    o = causal_attention_by_chunks(queries, keys, case.V, chunk_size=3)
    alibi = -SLOPE * (at[:, None] - at)
    want = attention(case.Q, case.K, case.V, mask=alibi, causal=True)
    causal = np.tri(7)
    exponent = exponent_error(case, U) + gamma(8, U) * SLOPE * 7
    attended = np.where(causal, alibi, -np.inf)
    budget = streaming_budget(case, keys, queries, exponent, causal)
    budget += attention_budget(case.Q, case.K, case.V, case.s, U, attended)
    compare("ALiBi", o, want, budget).require()
    scores = case.s * (case.K @ case.Q[-1])
    proof = evaluated("o_alibi", s=scores, v=case.V[:, 0], slope=SLOPE)
    compare("o_alibi", o[-1:, 0], [proof], budget[-1:, 0].times(2)).require()


def test_alibi_is_a_state_that_decays() -> None:
    V, Phi = np.random.default_rng(0).random((2, 5, 3)) + 0.5
    S, zero = np.zeros((3, 3)), np.zeros(1)
    for j in range(5):
        S = np.exp(-SLOPE) * S + np.outer(V[j], Phi[j])
    state = AttentionState.empty(3, 3)
    for j in range(5):
        token = Features(Phi[j : j + 1], zero)
        state = state.update(biased(token, [SLOPE * j]), V[j : j + 1])
    budget = sum_budget((V.T @ Phi)[..., None], 5 * 16, U)
    compare("S", state.S * np.exp(state.log_scale - SLOPE * 4), S, budget).require()


@given(case=cases(dtypes=("float64",)), seed=st.integers(0, 2**32 - 1))
def test_turns_add_up(case: Case, seed: int) -> None:
    """R(p) R(r) = R(p + r), and R(0) is the identity: turns are a group."""
    x = np.concatenate([case.K, case.K], axis=1)
    p, r = np.random.default_rng(seed).integers(-20, 20, (2, len(x))).astype(float)
    twice, once = rotary(rotary(x, p), r), rotary(x, p + r)
    largest = float(abs(p).max() + abs(r).max())
    length = np.stack([turn_budget(row, largest).bound for row in x])
    # A turn of the error of a turn: at most the sum of the pair's two.
    budget = Budget(4 * length, "three turns of angles below |p| + |r|", U)
    compare("R(p) R(r) = R(p + r)", twice, once, budget).require()
    np.testing.assert_array_equal(rotary(x, np.zeros(len(x))), x)


@given(case=cases(), seed=st.integers(0, 2**32 - 1))
def test_halves_are_neighbours_in_another_order(case: Case, seed: int) -> None:
    x = np.concatenate([case.K, case.K[:, ::-1]], axis=1)
    order = np.arange(x.shape[1]).reshape(2, -1).T.reshape(-1)
    p = np.random.default_rng(seed).uniform(-50, 50, len(x))
    halves = rotary(x, p, interleaved=False)
    np.testing.assert_array_equal(halves[:, order], rotary(x[:, order], p))
    assert halves.dtype == x.dtype


def test_default_positions_count_from_zero_and_batches_broadcast() -> None:
    x = np.random.default_rng(0).standard_normal((2, 1, 5, 4))
    np.testing.assert_array_equal(rotary(x), rotary(x, np.arange(5)))
    p = np.arange(15).reshape(3, 5)
    turned = rotary(x, p)
    assert turned.shape == (2, 3, 5, 4)
    np.testing.assert_array_equal(turned[1, 2], rotary(x[1, 0], p[2]))
    assert rotary(np.empty((0, 4))).shape == (0, 4)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64"])
def test_the_dtype_is_the_argument_s_and_angles_are_not_rounded_to_it(dtype: str) -> None:
    """At position 2^24 + 1 float32 would lose one position."""
    x = np.array([[3, 4, 1, 2]], dtype)
    p = [2**24 + 1]
    turned = rotary(x, p)
    wide = rotary(x.astype(np.float64), p)
    assert turned.dtype == (np.float64 if dtype == "int64" else x.dtype)
    u = float(np.finfo(turned.dtype).eps) / 2
    terms = np.array([[7.0, 7, 3, 3]])[..., None]
    budget = sum_budget(terms, 4, u) + sum_budget(terms, 12 * 2**24, U)
    assert compare("one angle for all dtypes", turned, wide, budget).share <= 1
    o = rotary_attention(x, x, np.ones((1, 1), dtype))
    assert (o.dtype, o.tolist()) == (turned.dtype, [[1.0]])


def test_rotary_attention_takes_the_mask_and_the_scale_of_attention() -> None:
    case = make_case(4, n_q=5, n=5, d=4)
    options = {"scale": 0.3, "mask": np.arange(5) != 1, "causal": True}
    o = rotary_attention(case.Q[1:], case.K, case.V, query_positions=np.arange(1, 5), **options)
    want = attention(rotary(case.Q)[1:], rotary(case.K), case.V, **options)
    np.testing.assert_array_equal(o, want)


def test_a_bias_does_not_widen_the_dtype() -> None:
    case = make_case(0, dtype="float32")
    model = OneStepRegressor().fit(case.K, case.V, bias=np.zeros(5, np.float64))
    assert model.coef_.dtype == model.log_scale_.dtype == np.float32
    plain = OneStepRegressor().fit(case.K, case.V)
    np.testing.assert_array_equal(model.coef_, plain.coef_)


def test_what_is_not_finite_stays_with_its_token() -> None:
    x, p = np.ones((3, 4)), np.array([0.0, np.nan, np.inf])
    assert np.isfinite(rotary(x, p)).all(axis=1).tolist() == [True, False, False]
    x[0, 0] = np.inf
    assert np.isfinite(rotary(x)).all(axis=1).tolist() == [False, True, True]


def test_a_bias_of_minus_infinity_takes_the_token_out() -> None:
    case, b = biased_case(5)
    kept = np.arange(6) != 2
    without = Case("", 0, case.Q, case.K[kept], case.V[kept], 5)
    o = OneStepRegressor().fit(case.K, case.V, bias=np.where(kept, b, -np.inf)).predict(case.Q)
    want = attention(case.Q, case.K[kept], case.V[kept], mask=b[kept])
    budget = both_budgets(without, b[kept]) + both_budgets(case, np.where(kept, b, -50))
    compare("without the token", o, want, budget).require()
    assert np.isnan(OneStepRegressor().fit(case.K, case.V, bias=b * np.inf).predict(case.Q)).all()


def test_a_bias_beyond_exp_is_a_shift_of_the_log_scale() -> None:
    """e^1000 overflows; a bias of 1000 for all tokens changes nothing."""
    case, b = biased_case(6)
    plain, shifted = (
        OneStepRegressor().fit(case.K, case.V, bias=x).predict(case.Q) for x in (b, b + 1000)
    )
    budget = both_budgets(case, b) + both_budgets(case, b + 1000)
    compare("one bias for all", shifted, plain, budget).require()


X, P = np.ones((3, 4)), np.arange(3)
FEATURES = Features(np.ones((3, 2)), np.zeros(3))
REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "one axis": (lambda: rotary(np.ones(4)), ValueError, "x has shape (4,)"),
    "an odd d": (lambda: rotary(np.ones((3, 5))), ValueError, "(3, 5); expected an even last axis"),
    "no coordinates": (lambda: rotary(np.ones((3, 0))), ValueError, "x has shape (3, 0)"),
    "complex x": (lambda: rotary(X.astype(complex)), TypeError, "x has dtype complex128"),
    "a position too many": (
        lambda: rotary(X, np.arange(4)), ValueError, "positions has shape (4,); expected (..., 3)",
    ),
    "a position for all": (lambda: rotary(X, 1.0), ValueError, "positions has shape ()"),
    "positions of text": (lambda: rotary(X, ["a", "b", "c"]), TypeError, "positions has dtype <U1"),
    "positions of other batches": (
        lambda: rotary(np.ones((2, 3, 4)), np.ones((5, 3))),
        ValueError, "positions has leading axes (5,)",
    ),
    "base zero": (lambda: rotary(X, base=0), ValueError, "base is 0; expected a positive"),
    "base of text": (lambda: rotary(X, base="1e4"), TypeError, "base is '1e4'"),  # type: ignore[arg-type]
    "interleaved of text": (
        lambda: rotary(X, interleaved="no"), TypeError, "interleaved is 'no'",  # type: ignore[arg-type]
    ),
    "an odd query": (
        lambda: rotary_attention(np.ones((1, 3)), X, X), ValueError, "query has shape (1, 3)",
    ),
    "an odd key": (
        lambda: rotary_attention(X, np.ones((1, 3)), X), ValueError, "key has shape (1, 3)",
    ),
    "query positions": (
        lambda: rotary_attention(X, X, X, query_positions=[1]),
        ValueError, "query_positions has shape (1,)",
    ),
    "key positions": (
        lambda: rotary_attention(X, X, X, key_positions=[1]),
        ValueError, "key_positions has shape (1,)",
    ),
    "value of one axis": (
        lambda: rotary_attention(X, X, np.ones(3)), ValueError, "value has shape (3,)",
    ),
    "a bias too many": (
        lambda: OneStepRegressor().fit(X, X, bias=np.ones(4)),
        ValueError, "bias has shape (4,); expected (..., 3), one for each token",
    ),
    "a bias of text": (
        lambda: OneStepRegressor().fit(X, X, bias=["a"] * 3), TypeError, "bias has dtype <U1",
    ),
    "a bias of other batches": (
        lambda: biased(Features(np.ones((2, 3, 2)), np.zeros((2, 3))), np.ones((5, 3))),
        ValueError, "bias has leading axes (5,)",
    ),
    "a scalar bias": (lambda: biased(FEATURES, 1.0), ValueError, "bias has shape ()"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_by_name(
    call: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()
