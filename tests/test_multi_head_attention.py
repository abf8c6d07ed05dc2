"""The proof's own expressions against the code, whole real layers, and the layer's corners."""

import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equivalence import attention, dual
from equivalence.data import load_heads
from equivalence.layers import (
    joint_key_features,
    joint_labels,
    joint_query_features,
    multi_head_attention,
)
from equivalence.verify import oracle
from equivalence.verify.budgets import Budget, attention_budget, sum_budget
from equivalence.verify.cases import head_case, make_case
from equivalence.verify.claims.multi_head_attention import check_heads
from equivalence.verify.compare import compare
from equivalence.verify.implementation import OURS
from proofs import load

U = 2.0**-53
PROOF = load("multi_head_attention")


def evaluated(name: str, given: dict[str, np.ndarray]) -> np.ndarray:
    lists = {key: given[key].tolist() for key in PROOF.arguments(name)}
    return np.array(PROOF.evaluate(name, lists), float)


@pytest.mark.parametrize(("N", "T", "c", "k", "m"), [(1, 1, 1, 1, (1, 2)), (3, 2, 2, 4, (5, 3))])
def test_the_code_computes_the_expressions_of_the_proof(
    N: int, T: int, c: int, k: int, m: tuple[int, int]
) -> None:
    rng, eta = np.random.default_rng(0), 0.3
    V = rng.standard_normal((2, N + T, c))
    Phi = [rng.random((N + T, size)) + 0.5 for size in m]
    f = [rng.random(size) + 0.5 for size in m]
    W_O = rng.standard_normal((k, 2 * c))
    given = {"eta": np.array(eta)}
    for h, name in enumerate("AB"):
        given |= {f"V_{name}": V[h, :N], f"U_{name}": V[h, N:], f"f_{name}": f[h]}
        given |= {f"Phi_{name}": Phi[h][:N], f"Psi_{name}": Phi[h][N:]}
        given |= {f"W_{name}": W_O[:, h * c : (h + 1) * c]}
    D = [dual.normalizer(Phi[h], f[h][None]) for h in range(2)]
    seen, rest = (
        (joint_labels(V[:, tokens], W_O), joint_key_features([x[tokens] for x in Phi]))
        for tokens in (slice(0, N), slice(N, None))
    )
    readout = joint_query_features([x[None] for x in f], D)[0]
    W_0, slope = dual.initial_weights(*rest, 1.0), dual.gradient(*seen, 1.0, eta)
    W_1 = dual.gradient_step(W_0, slope, eta)

    depth = 2 * (N + T + c + sum(m)) + 8
    labels = abs(V) @ np.moveaxis(abs(W_O).reshape(k, 2, c), 0, -1)
    sizes = np.concatenate([labels[h].T @ Phi[h] for h in range(2)], axis=-1)
    alone = [abs(V[h]).T @ (Phi[h] @ f[h]) / D[h] for h in range(2)]
    weights = np.concatenate([Phi[h][:N] @ f[h] / D[h] for h in range(2)])
    y = dual.predict(W_1, readout)
    for name, got, terms in (
        ("D_A", D[0][0], D[0][0]),
        ("D_B", D[1][0], D[1][0]),
        ("labels", seen[0], labels[:, :N].reshape(-1, k)),
        ("key_features", seen[1], 0 * seen[1]),
        ("readout", readout, readout),
        ("gradient", slope, sizes / eta),
        ("W_0", W_0, sizes),
        ("W_1", W_1, sizes),
        ("weights", seen[1] @ readout, weights),
        ("o_A", dual.predict(dual.initial_weights(V[0], Phi[0], D[0]), f[0][None])[0], alone[0]),
        ("o_B", dual.predict(dual.initial_weights(V[1], Phi[1], D[1]), f[1][None])[0], alone[1]),
        ("prediction", y, sizes @ readout),
        ("layer", y, sizes @ readout),
    ):
        budget = sum_budget(np.asarray(terms)[..., None], depth, U)
        want = evaluated(name, given)
        compare(name, np.reshape(got, want.shape), want, budget).require()


@pytest.mark.parametrize("layer", range(6))
def test_a_whole_real_layer_is_one_step_of_one_model(layer: int) -> None:
    """All twelve heads at once: 444 training pairs, one query against certified balls."""
    n_heads = load_heads().query.shape[1]
    heads = [head_case(layer, layer, head, oracle.balls()) for head in range(n_heads)]
    items = list(check_heads(OURS, heads))
    for item in items:
        item.require()
    assert len(heads) == 12
    assert len(items) >= 3


def drawn(seed: int, h: int = 3, n: int = 4, d: int = 2, c: int = 2) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng([seed, h, n, d, c])
    Q, K, V = (rng.standard_normal((h, size, dim)) for size, dim in ((2, d), (n, d), (n, c)))
    return Q, K, V, rng.standard_normal((3, h * c))


def budget_of(Q: np.ndarray, K: np.ndarray, V: np.ndarray, W_O: np.ndarray) -> Budget:
    """The error of the sum over the heads: |W_O^h| times each one's, and that of the product."""
    u, blocks = float(np.finfo(V.dtype).eps) / 2, np.split(abs(W_O), len(V), axis=1)
    scale = 1 / math.sqrt(Q.shape[-1])
    heads = [attention_budget(*x, scale, u) for x in zip(Q, K, V, strict=True)]
    own = sum(x.bound @ W.T for x, W in zip(heads, blocks, strict=True))
    terms = abs(W_O) * abs(V).max(axis=1).reshape(-1)
    return Budget(np.asarray(own), heads[0].because, u) + sum_budget(terms, W_O.shape[1] + 2, u)


@given(seed=st.integers(0, 2**32 - 1), h=st.integers(1, 4))
def test_heads_in_any_order_with_their_columns_give_the_same_output(seed: int, h: int) -> None:
    Q, K, V, W_O = drawn(seed, h)
    order = np.random.default_rng(seed).permutation(h)
    blocks = W_O.reshape(3, h, -1)[:, order].reshape(W_O.shape)
    got = multi_head_attention(Q[order], K[order], V[order], blocks)
    budget = budget_of(Q, K, V, W_O)
    compare("any order", got, multi_head_attention(Q, K, V, W_O), budget.times(2)).require()


@given(seed=st.integers(0, 2**32 - 1))
def test_scale_and_masks_reach_every_head(seed: int) -> None:
    Q, K, V, _ = drawn(seed)
    added = np.random.default_rng(seed).standard_normal((3, 2, 4))
    earlier = np.where(np.tri(2, 4, dtype=bool), 0.0, -np.inf)[None].repeat(3, axis=0)
    for options, bias in (({"mask": added}, added), ({"causal": True}, earlier)):
        o = np.split(multi_head_attention(Q, K, V, scale=0.3, **options), 3, axis=1)
        for h in range(3):
            want = attention(Q[h], K[h], V[h], scale=0.3, mask=bias[h])
            budget = attention_budget(Q[h], K[h], V[h], 0.3, U, bias[h])
            compare(f"head {h}", o[h], want, budget.times(2)).require()


def test_one_head_is_attention() -> None:
    case = make_case(0)
    o = attention(case.Q, case.K, case.V)
    assert np.array_equal(multi_head_attention(case.Q[None], case.K[None], case.V[None]), o)


def test_a_key_and_a_value_of_one_head_are_shared() -> None:
    Q, K, V, W_O = drawn(1)
    shared = multi_head_attention(Q, K[:1], V[:1], W_O)
    budget = budget_of(Q, K[[0, 0, 0]], V[[0, 0, 0]], W_O)
    repeated = multi_head_attention(Q, K[[0, 0, 0]], V[[0, 0, 0]], W_O)
    compare("shared", shared, repeated, budget.times(2)).require()


def test_leading_axes_broadcast_as_a_loop_would_and_inputs_stay() -> None:
    parts = [[drawn(10 * i + j) for j in range(3)] for i in range(2)]
    Q = np.array([row[0][0] for row in parts])[:, None]
    K, V = (np.array([x[part] for x in parts[0]]) for part in (1, 2))
    W_O = np.array([[row[0][3]] for row in parts])
    for array in (Q, K, V, W_O):
        array.setflags(write=False)
    y, labels = multi_head_attention(Q, K, V, W_O), joint_labels(V, W_O)
    assert (y.shape, labels.shape) == ((2, 3, 2, 3), (2, 3, 12, 3))
    for i, j in np.ndindex(2, 3):
        one = Q[i, 0], K[j], V[j], W_O[i, 0]
        compare("one", y[i, j], multi_head_attention(*one), budget_of(*one).times(2)).require()
        terms = joint_labels(abs(V[j]), abs(W_O[i, 0]))
        products = sum_budget(terms[..., None], 4, U)
        compare("labels", labels[i, j], joint_labels(V[j], W_O[i, 0]), products).require()


def test_features_of_a_batch_are_those_of_its_entries() -> None:
    rng = np.random.default_rng(3)
    wide, narrow, D = rng.random((2, 1, 4, 3)), rng.random((5, 2, 1)), rng.random((2, 1, 4))
    joint = joint_key_features([wide, narrow])
    assert joint.shape == (2, 5, 6, 4)
    assert np.array_equal(joint[1, 3], joint_key_features([wide[1, 0], narrow[3]]))
    other = rng.random((5, 4, 1))
    readout = joint_query_features([wide, other], [D, 1.0])
    assert readout.shape == (2, 5, 4, 4)
    one = joint_query_features([wide[1, 0], other[3]], [D[1, 0], np.ones(4)])
    assert np.array_equal(readout[1, 3], one)


def test_a_head_without_tokens_has_its_features_all_the_same() -> None:
    joint = joint_key_features([np.ones((0, 2)), np.ones((1, 1))])
    assert np.array_equal(joint, [[0.0, 0.0, 1.0]])
    assert joint_labels(np.ones((2, 0, 1)), np.ones((3, 2))).shape == (0, 3)


def test_the_weights_of_all_heads_sum_to_their_number() -> None:
    Phi = [np.array([[1.0, 2.0], [3.0, 6.0]]), np.array([[0.5], [1.5]])]
    f = [np.array([[2.0, 1.0]]), np.array([[4.0]])]
    D = [dual.normalizer(*x) for x in zip(Phi, f, strict=True)]
    weights = joint_key_features(Phi) @ joint_query_features(f, D)[0]
    assert np.array_equal(weights, [4 / 16, 12 / 16, 2 / 8, 6 / 8])


def test_a_nan_in_one_head_spoils_its_own_query_only() -> None:
    Q, K, V, W_O = drawn(5)
    Q[1, 0, 0] = math.nan
    assert np.isnan(multi_head_attention(Q, K, V, W_O)[0]).all()
    assert np.isfinite(multi_head_attention(Q, K, V, W_O)[1]).all()
    beside = multi_head_attention(Q, K, V)[0]
    assert np.array_equal(np.isnan(beside), [False, False, True, True, False, False])
    zero = joint_query_features([[[1.0]], [[2.0]]], [[0.0], [4.0]])
    assert np.array_equal(zero, [[math.inf, 0.5]])


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_the_dtype_stays(dtype: str) -> None:
    Q, K, V, W_O = (x.astype(dtype) for x in drawn(6))
    results = (
        multi_head_attention(Q, K, V, W_O),
        multi_head_attention(Q, K, V),
        joint_labels(V, W_O),
        joint_key_features([*Q]),
        joint_query_features([*Q], [*np.ones((3, 2), dtype)]),
    )
    assert {result.dtype.name for result in results} == {dtype}
    assert multi_head_attention(Q, K, V, W_O.astype("float64")).dtype == np.float64
    assert multi_head_attention([[[0]]], [[[1]]], [[[2]]], [[3]]).dtype == np.float64


def test_float16_is_computed_in_float32() -> None:
    """The first head gives 1 + 2^-11, which float16 would round to 1: nothing would be left."""
    zero = np.zeros((2, 2, 1), "float16")
    V = np.array([[[1.0], [1 + 2.0**-10]], [[1.0], [1.0]]], "float16")
    y = multi_head_attention(zero, zero, V, np.array([[1024, -1024]], "float16"))
    assert np.array_equal(y, [[0.5], [0.5]])


def test_overflow_is_infinite_and_silent() -> None:
    V, W_O = np.full((2, 1, 1), 1e308), np.array([[10.0, 10.0]])
    assert multi_head_attention(0 * V, 0 * V, V, W_O) == math.inf
    assert np.array_equal(joint_labels(V, W_O), [[math.inf], [math.inf]])


GOOD: dict[str, Any] = {
    "query": np.ones((2, 3, 4)),
    "key": np.ones((2, 5, 4)),
    "value": np.ones((2, 5, 6)),
    "W_O": np.ones((7, 12)),
}
BAD: list[tuple[str, Any, str]] = [
    ("query", np.ones((3, 4)), "query has shape (3, 4); expected (..., n_heads, n_tokens, dim)"),
    ("key", np.ones((5, 4)), "key has shape (5, 4); expected (..., n_heads, n_tokens, dim)"),
    ("value", np.ones((5, 6)), "value has shape (5, 6); expected (..., n_heads, n_tokens, dim)"),
    ("key", np.ones((3, 5, 4)), "key has leading axes (3,); expected axes that broadcast with"),
    ("W_O", np.ones((7, 6)), "W_O has shape (7, 6); expected (..., n_outputs, 12)"),
    ("W_O", np.ones(12), "W_O has shape (12,); expected (..., n_outputs, 12)"),
    ("W_O", [[1.0], [1.0, 2.0]], "W_O is no array"),
]


@pytest.mark.parametrize(("name", "bad", "message"), BAD)
def test_bad_input_is_refused_by_name(name: str, bad: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        multi_head_attention(**{**GOOD, name: bad})


@pytest.mark.parametrize("name", GOOD)
def test_what_is_not_real_is_refused_by_name(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} has dtype complex128"):
        multi_head_attention(**{**GOOD, name: GOOD[name].astype(complex)})


def batches(shape: tuple[int, ...]) -> np.ndarray:
    return np.ones((3, *shape))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: multi_head_attention(**{**GOOD, "query": np.ones((2, 2, 3, 4)),
            "W_O": batches((7, 12))}), "W_O has leading axes (3,); expected axes that broadcast"),
        (lambda: joint_labels(np.ones((2, 1)), [[1.0]]),
            "value has shape (2, 1); expected (..., n_heads, n_tokens, n_outputs)"),
        (lambda: joint_labels(np.ones((2, 3, 1)), [[1.0]]),
            "W_O has shape (1, 1); expected (..., n_outputs, 2)"),
        (lambda: joint_labels(np.ones((2, 2, 3, 1)), batches((1, 2))),
            "W_O has leading axes (3,); expected axes that broadcast with (2,)"),
        (lambda: joint_key_features([]), "features has no heads; expected one array a head"),
        (lambda: joint_key_features([[[1.0]], [1.0]]),
            "features[1] has shape (1,); expected (..., n_tokens, dim)"),
        (lambda: joint_key_features([np.ones((2, 1, 1)), np.ones((3, 1, 1))]),
            "features[1] has leading axes (3,); expected axes that broadcast with (2,)"),
        (lambda: joint_query_features([], []), "features has no heads"),
        (lambda: joint_query_features([[[1.0]]], []), "D has 0 heads; expected 1, as features has"),
        (lambda: joint_query_features([np.ones((2, 1)), np.ones((3, 1))], [1.0, 1.0]),
            "features[1] has leading axes (3,); expected axes that broadcast with (2,)"),
        (lambda: joint_query_features([np.ones((2, 1))], [np.ones(3)]),
            "D[0] has leading axes (3,); expected axes that broadcast with (2,)"),
    ],
)  # fmt: skip
def test_the_joint_dual_refuses_by_name(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_the_joint_dual_refuses_what_is_not_real() -> None:
    for call, name in (
        (lambda: joint_labels([[[1j]]], [[1.0]]), "value"),
        (lambda: joint_labels([[[1.0]]], [[1j]]), "W_O"),
        (lambda: joint_key_features([[[1.0]], [[1j]]]), re.escape("features[1]")),
        (lambda: joint_query_features([[[1.0]]], [1j]), re.escape("D[0]")),
    ):
        with pytest.raises(TypeError, match=f"{name} has dtype complex128"):
            call()
