"""InfoNCE: the proof's own expressions against the code, and the corners of its first step."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equivalence import attention, dual
from equivalence.losses import info_nce_gradient, info_nce_loss
from equivalence.verify.budgets import Budget, attention_budget, dual_budget, gamma, sum_budget
from equivalence.verify.cases import Case
from equivalence.verify.claims.contrastive_first_step import gradient_error, loss_error
from equivalence.verify.compare import compare
from equivalence.verify.dual_case import exponent_error, see_dual
from equivalence.verify.implementation import OURS
from equivalence.verify.strategies import cases
from proofs import load

U = 2.0**-53
PROOF = load("contrastive_first_step")
Array = np.ndarray[Any, Any]


def drawn(seed: int, n: int, c: int, m: int) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng([seed, n, c, m])
    return rng.standard_normal((c, m)), rng.standard_normal((n, c)), rng.random((n, m)) + 0.5


def evaluated(name: str, r: int, s: int, **values: Any) -> float:
    """The proof's expression; output r and feature s are counted from 0 here."""
    values |= {"r": r + 1, "s": s + 1}
    needed = PROOF.arguments(name)
    lists = {key: getattr(values[key], "tolist", lambda x=values[key]: x)() for key in needed}
    return float(PROOF.evaluate(name, lists))


def entries(name: str, c: int, m: int, **values: Any) -> Array:
    return np.array([[evaluated(name, r, s, **values) for s in range(m)] for r in range(c)])


@pytest.mark.parametrize(("n", "c", "m"), [(1, 1, 2), (3, 2, 2), (4, 1, 3), (2, 3, 1)])
@pytest.mark.parametrize("tau", [0.3, 2.0])
def test_the_code_computes_the_expressions_of_the_proof(n: int, c: int, m: int, tau: float) -> None:
    W, V, Phi = drawn(0, n, c, m)
    g = np.random.default_rng(1).random(m) + 0.5
    given = {"w": W, "v": V, "f": Phi, "g": g, "tau": tau}
    D = float(dual.normalizer(Phi, g[None])[0])
    at_zero = info_nce_gradient(0 * W, V, Phi, tau)
    W_1 = dual.gradient_step(0 * W, at_zero / D, tau)
    size = (abs(V) + abs(V).mean(axis=0)).T @ Phi
    depth = 2 * (n + m + c) + 12
    for name, got, bound in (
        ("gradient", info_nce_gradient(W, V, Phi, tau), gradient_error(W, V, Phi, tau, U)),
        ("gradient_at_zero", at_zero, gamma(depth, U) * size / tau),
        ("paper_gradient", dual.gradient(V, Phi, 1.0, tau), gamma(depth, U) * size / tau),
        ("stepped", W_1, gamma(depth, U) * size / D),
    ):
        budget = Budget(bound, "the proof is rounded once", U)
        compare(name, got, entries(name, c, m, **given), budget).require()
    loss = Budget(np.array(loss_error(W, V, Phi, tau, U)), "the proof is rounded once", U)
    compare("loss", info_nce_loss(W, V, Phi, tau), evaluated("loss", 0, 0, **given), loss).require()
    centred = [evaluated("centred", r, 0, **given) for r in range(c)]
    output = Budget(gamma(depth, U) * (size @ g) / D, "the proof is rounded once", U)
    compare("centred", dual.predict(W_1, g), centred, output).require()


@given(case=cases(), tau=st.sampled_from([1e-3, 0.1, 1.0, 70.0, 1e3]))
def test_on_some_tokens_at_any_temperature_it_is_their_centred_attention(
    case: Case, tau: float
) -> None:
    """With N of the n tokens in the batch, and D of all: sum_{i <= N} p_i (v_i - vbar_N)."""
    x, N = see_dual(OURS, case), case.N
    V, Phi = case.V[:N], x.Phi[:N]
    W_0 = np.zeros((V.shape[1], Phi.shape[1]), V.dtype)
    W_1 = dual.gradient_step(W_0, info_nce_gradient(W_0, V, Phi, tau), tau)
    vbar = V.mean(axis=0) if N else V.sum(axis=0)
    centred = np.concatenate([V - vbar, 0 * case.V[N:]])
    size = np.concatenate([abs(V) + abs(vbar), 0 * case.V[N:]])
    own = dual_budget(x.Phi, x.phi_q, size, exponent_error(case, case.u), case.u).times(2)
    theirs = attention_budget(case.Q, case.K, size, case.s, case.u)
    want = attention(case.Q, case.K, centred, scale=case.scale)
    got = dual.predict(W_1, x.phi_q) / x.D[:, None]
    compare("centred attention of the batch", got, want, own + theirs.times(2)).require()


@given(case=cases())
def test_the_mean_can_be_taken_out_of_the_features_instead(case: Case) -> None:
    x = see_dual(OURS, case)
    W_0 = np.zeros((case.V.shape[1], x.Phi.shape[1]), case.V.dtype)
    centred = x.Phi - x.Phi.mean(axis=0)
    size = (abs(case.V) + abs(case.V).mean(axis=0)).T @ (abs(x.Phi) + abs(x.Phi).mean(axis=0))
    budget = sum_budget(size[..., None], 4 * len(case.V) + 16, case.u)
    compare(
        "a covariance",
        info_nce_gradient(W_0, case.V, x.Phi),
        dual.gradient(case.V, centred, 1.0),
        budget,
    ).require()


def test_equal_values_cannot_be_told_apart() -> None:
    W, V, Phi = drawn(2, 4, 2, 3)
    same = np.repeat(V[:1], 4, axis=0)
    loss = info_nce_loss(W, same, Phi)
    budget = Budget(np.array(loss_error(W, same, Phi, 1.0, U)), "log 4 four times", U)
    compare("n log n", loss, 4 * math.log(4), budget).require()
    slope = info_nce_gradient(W, same, Phi)
    size = sum_budget((abs(same).T @ Phi)[..., None], 16, U)
    compare("no direction is better", slope, 0 * W, size).require()


def test_one_token_has_nothing_to_learn() -> None:
    W, V, Phi = drawn(3, 1, 2, 3)
    assert info_nce_loss(1e3 * W, V, Phi, 1e-3) == 0
    assert not info_nce_gradient(W, V, Phi).any()


def test_no_tokens_are_no_loss() -> None:
    W = np.ones((2, 3))
    assert info_nce_loss(W, np.ones((0, 2)), np.ones((0, 3))) == 0
    assert not info_nce_gradient(W, np.ones((0, 2)), np.ones((0, 3))).any()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_logits_whose_exponentials_overflow_are_no_matter(dtype: str) -> None:
    """Two tokens: right by 2e4 each, then wrong by as much."""
    V, Phi = np.eye(2, dtype=dtype), np.eye(2, dtype=dtype)
    W = 1e4 * np.array([[1, -1], [-1, 1]], dtype)
    assert info_nce_loss(W, V, Phi) == 0
    assert info_nce_loss(-W, V, Phi) == 4e4
    assert not info_nce_gradient(W, V, Phi).any()
    assert np.array_equal(info_nce_gradient(-W, V, Phi), [[-1, 1], [1, -1]])


def test_batch_entries_do_not_mix_and_nothing_is_modified() -> None:
    given = [drawn(seed, 4, 2, 3) for seed in (4, 5)]
    stacked = [np.stack(pair) for pair in zip(*given, strict=True)]
    before = [a.copy() for a in stacked]
    loss, slope = info_nce_loss(*stacked, 0.5), info_nce_gradient(*stacked, 0.5)
    assert all(np.array_equal(a, b) for a, b in zip(stacked, before, strict=True))
    for k, (W, V, Phi) in enumerate(given):
        assert loss[k] == info_nce_loss(W, V, Phi, 0.5)
        assert np.array_equal(slope[k], info_nce_gradient(W, V, Phi, 0.5))
    assert info_nce_loss(stacked[0], given[0][1], given[0][2]).shape == (2,)


@pytest.mark.parametrize(
    ("dtype", "returned"),
    [("float64", "float64"), ("float32", "float32"), ("float16", "float32"), ("int8", "float64")],
)
def test_the_dtype_is_kept_and_float16_is_computed_in_float32(dtype: str, returned: str) -> None:
    W, V, Phi = (a.astype(dtype) for a in drawn(6, 4, 2, 3))
    assert info_nce_loss(W, V, Phi).dtype == returned
    assert info_nce_gradient(W, V, Phi).dtype == returned


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_comes_out_as_nan(at: int, bad: float) -> None:
    given = [a.copy() for a in drawn(7, 4, 2, 3)]
    given[at][0, 0] = bad
    assert np.isnan(info_nce_loss(*given))
    assert np.isnan(info_nce_gradient(*given)).any()


W, V, PHI = drawn(8, 4, 2, 3)


@pytest.mark.parametrize("function", [info_nce_loss, info_nce_gradient])
@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"W": W.T}, ValueError, "W has shape (3, 2); expected (..., 2, 3)"),
        ({"W": W[0]}, ValueError, "W has shape (3,); expected (..., 2, 3)"),
        ({"values": V[:3]}, ValueError, "values has shape (3, 2); expected (..., 4, n_outputs)"),
        ({"values": V[:, :0]}, ValueError, "values has shape (4, 0); expected a last axis"),
        ({"features": PHI[0]}, ValueError, "features has shape (3,); expected"),
        ({"W": np.ones((3, 2, 3)), "values": np.ones((2, 4, 2))}, ValueError, "W has leading axes"),
        ({"W": W.astype(complex)}, TypeError, "W has dtype complex128; expected"),
        ({"temperature": 0.0}, ValueError, "temperature is 0.0; expected a positive number"),
        ({"temperature": math.nan}, ValueError, "temperature is nan; expected a finite number"),
        ({"temperature": "hot"}, TypeError, "temperature is 'hot'; expected a finite number"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    function: Any, changed: dict[str, Any], error: type[Exception], message: str
) -> None:
    given = {"W": W, "values": V, "features": PHI} | changed
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        function(**given)
