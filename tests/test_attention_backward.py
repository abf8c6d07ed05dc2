"""Reverse mode beyond its claim: masks, blocks, broadcasting, what is not finite, and memory."""

from __future__ import annotations

import math
import re
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equivalence import attention, attention_backward, backward, panels
from equivalence.backward import AttentionGradients
from equivalence.verify.budgets import Budget, unit_roundoff
from equivalence.verify.compare import compare
from equivalence.verify.gradient_budgets import backward_budgets

Array = np.ndarray[Any, Any]
S = 0.5
BLOCKS = ("_KEY_BYTES", 96), ("_CAUSAL_KEY_BYTES", 56), ("_MOST_ROWS", 8), ("_FEWEST_ROWS", 8)


@pytest.fixture(autouse=True, scope="module")
def small_blocks() -> Any:
    """Blocks small enough that the problems here have several."""
    with pytest.MonkeyPatch.context() as patch:
        for name, size in BLOCKS:
            patch.setattr(backward, name, size)
        yield


def problem(
    seed: int, n_q: int = 9, n_k: int = 30, d: int = 4, c: int = 3, dtype: str = "float64"
) -> tuple[Array, Array, Array, Array]:
    """The gradient by the output, queries, keys and values; the scale is 1/sqrt(4)."""
    rng = np.random.default_rng([seed, n_q, n_k])
    G, Q, K, V = (rng.standard_normal(s) for s in ((n_q, c), (n_q, d), (n_k, d), (n_k, c)))
    return G.astype(dtype), Q.astype(dtype), K.astype(dtype), V.astype(dtype)


def slope(arrays: tuple[Array, ...], moved: tuple[Array, ...], bias: Array) -> float:
    """How fast sum g.o grows as queries, keys and values move: from an imaginary step."""
    tiny = 2.0**-300
    G, *rest = (x.astype(np.float64) for x in arrays)
    Q, K, V = (x + 1j * tiny * y for x, y in zip(rest, moved, strict=True))
    scores = S * Q @ K.T + bias
    kappa = np.exp(scores - scores.real.max(axis=-1, keepdims=True))
    output = (kappa @ V) / kappa.sum(axis=-1, keepdims=True)
    return float((G * output.imag).sum() / tiny)


MASKS = st.sampled_from(["all", "causal", "boolean", "additive"])


@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(1, 20), st.integers(1, 40)),
    MASKS,
    st.sampled_from(["float64", "float32"]),
)
def test_the_gradients_are_the_slopes_of_the_definition(
    seed: int, sizes: tuple[int, int], kind: str, dtype: str
) -> None:
    arrays, rng = problem(seed, *sizes, dtype=dtype), np.random.default_rng(seed)
    kept = rng.random(sizes) < 0.7
    kept[:, 0] = True
    added = np.where(kept, rng.standard_normal(sizes), -np.inf).astype(dtype)
    options, bias = {
        "all": ({}, np.zeros(sizes)),
        "causal": ({"causal": True}, np.where(np.tri(*sizes, dtype=bool), 0.0, -np.inf)),
        "boolean": ({"mask": kept}, np.where(kept, 0.0, -np.inf)),
        "additive": ({"mask": added}, added.astype(float)),
    }[kind]
    got = attention_backward(*arrays, **options)
    budgets = [backward_budgets(*arrays, S, u, bias) for u in (unit_roundoff(dtype), 2.0**-53)]
    for part in range(3):
        moved = [np.zeros(x.shape) for x in arrays[1:]]
        moved[part] = rng.standard_normal(moved[part].shape)
        want, size = slope(arrays, tuple(moved), bias), abs(moved[part])
        ours, theirs = ((b[part].bound * size).sum() for b in budgets)
        along = (got[part].astype(float) * moved[part]).sum()
        unit = (abs(arrays[0]).sum() * abs(arrays[3]).max() + 1) * (size.sum() + 1)
        reason, u = budgets[0][part].because, budgets[0][part].u
        budget = Budget(np.array((ours + 2 * theirs) / unit), reason, u)
        compare(f"{kind}, part {part}", along / unit, want / unit, budget).require()


def test_leading_axes_broadcast_and_what_is_shared_gets_the_sum() -> None:
    G, Q, K, V = problem(1)
    many = np.stack([[G, 2 * G, -G], [G, G, G]]), np.stack([Q, -Q])[:, None], K, V[None]
    by = attention_backward(*many)
    assert [x.shape for x in by] == [x.shape for x in many[1:]]
    heads = [
        [attention_backward(many[0][i, j], many[1][i, 0], K, V) for j in range(3)] for i in range(2)
    ]
    budgets = [backward_budgets(4 * abs(G), q, K, V, S, 2.0**-53) for q in (Q, -Q)]
    both = [x + y for x, y in zip(*budgets, strict=True)]
    for i in range(2):
        want = sum(head.query for head in heads[i])
        compare("query", by.query[i, 0], want, budgets[i].query.times(2)).require()
    for part, want in (("key", by.key), ("value", by.value[0])):
        total = sum(getattr(head, part) for row in heads for head in row)
        budget = both[("query", "key", "value").index(part)]
        compare(part, want, total, budget.times(2)).require()


def test_many_small_heads_are_those_of_a_loop() -> None:
    rng = np.random.default_rng(2)
    arrays = [rng.standard_normal((5, 4, *size)) for size in ((7, 3), (7, 4), (6, 4), (6, 3))]
    by = attention_backward(*arrays, causal=True)
    bias = np.where(np.tri(7, 6, dtype=bool), 0.0, -np.inf)
    for i in np.ndindex(5, 4):
        head = [x[i] for x in arrays]
        budgets = backward_budgets(*head, S, 2.0**-53, bias)
        for got, want, budget in zip(
            by, attention_backward(*head, causal=True), budgets, strict=True
        ):
            compare("a head", got[i], want, budget.times(2)).require()


BAD = pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
EXCLUDED = pytest.mark.parametrize("kind", ["boolean", "additive", "causal"])


def restricted(kind: str, arrays: tuple[Array, ...]) -> tuple[dict[str, Any], Array]:
    """Options with which key 20 is seen by some queries only, and who attends to what."""
    seen = np.tri(len(arrays[1]), len(arrays[2]), 0 if kind == "causal" else 15, dtype=bool)
    mask = {"boolean": seen, "additive": np.where(seen, 0.0, -np.inf)}.get(kind)
    return ({"causal": True} if kind == "causal" else {"mask": mask}), seen


@BAD
@EXCLUDED
@pytest.mark.parametrize("which", ["gradient", "query", "key", "value"])
def test_what_is_not_finite_spoils_what_is_attended_with_it_and_nothing_else(
    bad: float, kind: str, which: str
) -> None:
    arrays = problem(3, n_q=24, n_k=30)
    options, seen = restricted(kind, arrays)
    at = 20
    spoilt = [x.copy() for x in arrays]
    spoilt[("gradient", "query", "key", "value").index(which)][at, 1] = bad
    got = attention_backward(*spoilt, **options)
    rows = seen[:, at] if which in ("key", "value") else np.arange(24) == at
    keys = seen[rows].any(axis=0)
    assert np.isnan(got.query[rows]).all()
    assert np.isnan(got.key[keys]).all()
    assert np.isnan(got.value[keys]).all()
    # The rest is that of the other queries, with the bad token replaced.
    others = [arrays[0].copy(), *arrays[1:]]
    others[0][rows] = 0
    want = attention_backward(*others, **options)
    budgets = backward_budgets(*arrays, S, 2.0**-53, np.where(seen, 0.0, -np.inf))
    for x, y, budget, good in zip(got, want, budgets, (~rows, ~keys, ~keys), strict=True):
        compare("the rest", x[good], y[good], budget[good].times(2)).require()


def test_a_query_without_keys_has_a_gradient_of_nan_and_adds_nothing() -> None:
    G, Q, K, V = problem(4)
    mask = np.ones((9, 30), bool)
    mask[[2, 8]] = False
    bad = G.copy(), Q.copy()
    bad[0][2], bad[1][8] = np.inf, np.nan
    by = attention_backward(*bad, K, V, mask=mask)
    assert np.array_equal(np.isnan(by.query).all(axis=1), ~mask.any(axis=1))
    rest = attention_backward(*(np.delete(x, [2, 8], axis=0) for x in (G, Q)), K, V)
    budgets = backward_budgets(G, Q, K, V, S, 2.0**-53)
    for got, want, budget in zip(by[1:], rest[1:], budgets[1:], strict=True):
        compare("keys and values", got, want, budget.times(2)).require()


@pytest.fixture
def shifted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The first rows of the panels that were evaluated with a shift."""
    rows: list[int] = []
    with_shift = panels.Panel.with_shift

    def spy(panel: Any, scored: Any) -> None:
        rows.append(panel.rows.start)
        with_shift(panel, scored)

    monkeypatch.setattr(panels.Panel, "with_shift", spy)
    return rows


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_at_the_edge_of_the_range_both_ways_hold(
    shifted: list[int], dtype: str, sign: float
) -> None:
    """Scores that all are t; D is n e^t, and needs no shift between u and 1/u."""
    G, Q, K, V = problem(11, dtype=dtype)
    info, n, u = np.finfo(dtype), len(K), unit_roundoff(dtype)
    K[:] = [sign, 0, 0, 0]
    reach = -math.log(u) - sign * math.log(n)
    for t in (0.5 * reach, 0.99 * reach, 1.01 * reach, 2 * reach, math.log(info.max) + 5):
        shifted.clear()
        Q[:, 0] = t
        got = attention_backward(G, Q, K, V, scale=1.0)
        e = (G @ V.T - (G @ V.T).mean(axis=1, keepdims=True)).astype(float) / n
        want = e @ K, e.T @ Q, np.tile(G.astype(float).sum(axis=0) / n, (n, 1))
        budgets = backward_budgets(G, Q, K, V, 1.0, u)
        theirs = backward_budgets(G, Q, K, V, 1.0, 2.0**-53)
        for x, y, own, other in zip(got, want, budgets, theirs, strict=True):
            assert (abs(x - y) <= own.bound + other.bound).all()
        assert shifted == ([] if t < reach else [0, 8])


def test_nothing_is_tried_where_a_sample_tells_that_it_fails(
    monkeypatch: pytest.MonkeyPatch, shifted: list[int]
) -> None:
    G, Q, K, V = problem(17)
    tried: list[slice] = []
    kernel_of = panels.kernel_of

    def spy(question: Any, scores: Array, queries: slice, keys: slice) -> Array:
        tried.append(queries)
        return kernel_of(question, scores, queries, keys)

    monkeypatch.setattr(panels, "kernel_of", spy)
    for t, without in ((30.0, True), (40.0, False), (-350.0, True), (-360.0, False)):
        Q[:, :], K[:, :] = [1, 0, 0, 0], [t, 0, 0, 0]
        tried.clear()
        attention_backward(G, Q, K, V, scale=1.0)
        assert bool(tried) == without
    assert shifted


@pytest.mark.parametrize("factor", [1.0, 1000.0])
def test_each_score_is_computed_once(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    G, Q, K, V = problem(17, 8)
    taken: list[Array] = []

    def spy(A: Array, B: Array, out: Array) -> Array:
        taken.append(A)
        return np.matmul(A, B, out=out)

    monkeypatch.setattr(panels, "product", spy)
    attention_backward(G, Q, K * factor, V)
    assert len(taken) == 5 * 3  # as many as the formulae have, for three blocks of keys


def test_shifted_scores_take_the_exponential_that_is_fast_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    G, Q, K, V = problem(17, 8, dtype="float32")
    asked: list[Array] = []
    function = panels.exponential_of_shifted

    def spy(question: Any, scores: Array) -> np.ufunc:
        asked.append(scores)
        return function(question, scores)

    monkeypatch.setattr(panels, "exponential_of_shifted", spy)
    attention_backward(G, Q, K * np.float32(1000), V)
    assert len(asked) == 2  # blocks of keys


def test_scores_that_overflow_spoil_what_is_attended_with_them() -> None:
    G, Q, K, V = problem(12)
    seen = np.ones((9, 30), bool)
    seen[2, 10:] = False
    Q[2], K[4] = 1e200, 1e200
    others = np.arange(9) != 2
    seen[others, 4] = False
    got = attention_backward(G, Q, K, V, mask=seen)
    assert np.isnan(got.query[2]).all()
    assert np.isnan(got.key[:10]).all()
    assert np.isnan(got.value[:10]).all()
    assert np.isfinite(got.query[others]).all()
    assert np.isfinite(got.key[10:]).all()
    assert np.isfinite(got.value[10:]).all()


def test_products_that_overflow_spoil_what_is_attended_with_them() -> None:
    G, Q, K, V = problem(13)
    seen = np.ones((9, 30), bool)
    seen[2, 10:] = False
    seen[np.arange(9) != 2, :10] = False
    calm = attention_backward(G, Q, K, V, mask=seen)
    G[2], V[25] = 1e200, 1e200  # of which the other does not see anything
    assert np.isfinite(attention_backward(G, Q, K, V, mask=seen).query).all()
    G[2], V[25], V[0] = 1e200, problem(13)[3][25], 1e200
    got = attention_backward(G, Q, K, V, mask=seen)
    assert not np.isfinite(got.query[2]).any()
    assert not np.isfinite(got.key[:10]).any()
    others = np.arange(9) != 2
    for x, y in ((got.query[others], calm.query[others]), (got.key[10:], calm.key[10:])):
        np.testing.assert_array_equal(x, y)


def test_a_query_whose_first_keys_are_excluded_is_shifted_by_those_it_has(
    shifted: list[int],
) -> None:
    G, Q, K, V = problem(14)
    Q[:, 0], K[:, 0] = 80.0, -30.0  # all scores are about -1200
    mask = np.ones((9, 30), bool)
    mask[4, :15] = False
    got = attention_backward(G, Q, K, V, mask=mask)
    assert shifted == [0, 8]
    one = attention_backward(G[4:5], Q[4:5], K[15:], V[15:])
    budgets = backward_budgets(G[4:5], Q[4:5], K[15:], V[15:], S, 2.0**-53)
    compare("query", got.query[4:5], one.query, budgets.query.times(2)).require()
    assert all(np.isfinite(x).all() for x in got)


def test_scores_whose_exponential_overflows_are_no_problem() -> None:
    """Keys sorted by their score, so that the largest one grows from block to block."""
    G, Q, K, V = problem(5)
    Q, K = abs(Q), K[np.argsort(K.sum(axis=1))] * 300
    got = attention_backward(G, Q, K, V)
    for x, y, budget in zip(
        got, attention_backward(G, Q, K[::-1], V[::-1]), backward_budgets(G, Q, K, V, S, 2.0**-53),
        strict=True,
    ):  # fmt: skip
        y = y if x is got.query else y[::-1]
        assert np.isfinite(x).all()
        assert compare("the order of the keys", x, y, budget.times(2)).share <= 1


@pytest.mark.parametrize(("n_q", "n_k", "c"), [(0, 5, 2), (3, 0, 2), (3, 5, 0)])
def test_empty_axes(n_q: int, n_k: int, c: int) -> None:
    by = attention_backward(*problem(6, n_q, n_k, c=c))
    assert [x.shape for x in by] == [(n_q, 4), (n_k, 4), (n_k, c)]
    assert np.isnan(by.query).all() == (n_k == 0 or n_q == 0)
    assert not by.key.any()
    assert not by.value.any()
    none = attention_backward(*(np.ones((0, *x.shape)) for x in problem(6)))
    assert [len(x) for x in none] == [0, 0, 0]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_dtype_is_that_of_the_arguments(dtype: str) -> None:
    arrays = [x.astype(dtype) for x in problem(7)]
    wide = [x.astype(np.result_type(x, np.float32)) for x in arrays]
    for got, want in zip(attention_backward(*arrays), attention_backward(*wide), strict=True):
        np.testing.assert_array_equal(got, want.astype(dtype), strict=True)


def test_the_inputs_stay_as_they_are() -> None:
    arrays = problem(8)
    before = [x.copy() for x in arrays]
    for x in arrays:
        x.flags.writeable = False
    by = attention_backward(*arrays)
    assert all(np.array_equal(x, y) for x, y in zip(arrays, before, strict=True))
    assert not any(np.shares_memory(x, y) for x in by for y in arrays)


G, Q, K, V = problem(9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((G[:4], Q, K, V), "gradient has shape (4, 3); expected (..., 9, 3)"),
        ((G[:, :2], Q, K, V), "gradient has shape (9, 2); expected (..., 9, 3)"),
        ((G, Q, K, V[:4]), "value has shape (4, 3); expected (..., 30, c), one row for each key"),
        ((np.stack([G] * 2), np.stack([Q] * 3), K, V), "gradient has leading axes (2,)"),
        ((G, Q, K[:, :2], V), "key has shape (30, 2); expected (..., n_tokens, 4)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(arguments: tuple[Array, ...], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        attention_backward(*arguments)


def test_memory_grows_with_the_tokens_and_not_with_the_pairs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, size in (("_KEY_BYTES", 2048), ("_MOST_ROWS", 128), ("_FEWEST_ROWS", 128)):
        monkeypatch.setattr(backward, name, size)
    n = 2048
    arrays = [np.ones((n, 8), np.float32) for _ in range(4)]
    tracemalloc.start()
    by: AttentionGradients = attention_backward(*arrays)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    panels = 2 * 128 * n * 4
    assert peak - sum(x.nbytes for x in by) < panels + 2**20 < n * n * 4
    assert attention(*arrays[1:]).shape == by.value.shape
