"""The proof's own expressions against the code, the laws of the monoid, and the state's corners."""

import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equivalence import OneStepRegressor, attention
from equivalence.features import Features, GramFeatures, PositiveFeatures
from equivalence.streaming import AttentionState, causal_attention_by_chunks
from equivalence.verify.budgets import attention_budget, sum_budget
from equivalence.verify.cases import Case, make_case
from equivalence.verify.claims.causal_streaming import streaming_budget
from equivalence.verify.compare import compare
from equivalence.verify.dual_case import exponent_error, scaled
from equivalence.verify.strategies import cases
from proofs import load

U = 2.0**-53
PROOF = load("causal_streaming")


def plain(Phi: np.ndarray) -> Features:
    return Features(Phi, np.zeros(Phi.shape[:-1], Phi.dtype))


def tokens(seed: int, n: int, c: int = 2, m: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Values, and features with kernels bounded away from zero."""
    rng = np.random.default_rng([seed, n, c, m])
    return rng.standard_normal((n, c)), rng.random((n, m)) + 0.5


def evaluated(name: str, **arrays: Any) -> np.ndarray:
    lists = {key: np.asarray(array).tolist() for key, array in arrays.items()}
    needed = {key: lists[key] for key in PROOF.arguments(name)}
    return np.array(PROOF.evaluate(name, needed), float)


@pytest.mark.parametrize(("t", "h", "c", "m"), [(1, 1, 2, 3), (4, 3, 1, 2), (3, 5, 4, 4)])
def test_the_code_computes_the_expressions_of_the_proof(t: int, h: int, c: int, m: int) -> None:
    V, Phi = tokens(0, t + h, c, m)
    phi_q, own = Phi[:1] + 0.25, np.diag(np.arange(h) == 0)
    given = {
        "V_t": V[:t], "Phi_t": Phi[:t], "V_h": V[t:], "Phi_h": Phi[t:], "M_h": own.astype(float),
        "v": V[t], "f": Phi[t], "phi_q": phi_q[0],
    }  # fmt: skip
    state = AttentionState.of(plain(Phi[:t]), V[:t])
    after = state.update(plain(Phi[t : t + 1]), V[t : t + 1])
    queries = np.concatenate([Phi[:t], phi_q, Phi[t + 1 :]])
    chunked = causal_attention_by_chunks(plain(queries), plain(Phi), V, chunk_size=t)[t]
    depth, D = 2 * (t + h + m), evaluated("D", **given)
    sums, features = abs(V).T @ abs(Phi), abs(Phi).sum(axis=0)
    output = sum_budget(sums * phi_q / D, 2 * depth, U)
    for name, got, budget in (
        ("S_t", state.S, sum_budget(sums[..., None], depth, U)),
        ("n_t", state.n[None], sum_budget(features[None, :, None], depth, U)),
        ("S_next", after.S, sum_budget(sums[..., None], depth, U)),
        ("n_next", after.n[None], sum_budget(features[None, :, None], depth, U)),
        ("o_t", state.read(plain(phi_q))[0], output),
        ("S_chunk", chunked * (Phi[: t + 1].sum(axis=0) @ phi_q[0]), output.times(D).times(2)),
        ("W_t", state.S / D, sum_budget(sums[..., None] / D, 2 * depth, U)),
    ):
        compare(name, got, evaluated(name, **given), budget).require()


def test_merging_is_the_proof_s_sum_at_the_larger_log_scale() -> None:
    (V_1, Phi_1), (V_2, Phi_2) = tokens(1, 3), tokens(2, 4)
    one = AttentionState.of(Features(Phi_1, np.full(3, 2.0)), V_1)
    other = AttentionState.of(Features(Phi_2, np.full(4, 5.0)), V_2)
    merged = one + other
    assert (merged.log_scale, merged.least_log_scale) == (5.0, 2.0)
    want = evaluated("S_merged", S_1=one.S, S_2=other.S, a=2.0, b=5.0, A=5.0)
    terms = np.stack([abs(one.S), abs(other.S)], axis=-1)
    compare("S_merged", merged.S, want, sum_budget(terms, 12, U)).require()


def features_of(case: Case) -> tuple[Features, Features]:
    """Gram features of the case's keys and queries, landmarks at all keys."""
    Q, K = scaled(case)
    phi = GramFeatures().fit(K)
    return phi(K), phi(Q)


def token_states(keys: Features, V: np.ndarray) -> list[AttentionState]:
    rows = [slice(j, j + 1) for j in range(len(V))]
    return [
        AttentionState.of(Features(keys.features[row], keys.log_scale[row]), V[row]) for row in rows
    ]


@given(case=cases(), seed=st.integers(0, 2**32 - 1))
def test_any_two_ways_of_merging_agree(case: Case, seed: int) -> None:
    rng = np.random.default_rng(seed)
    keys, queries = features_of(case)
    single = token_states(keys, case.V)

    def merged() -> AttentionState:
        parts = [single[j] for j in rng.permutation(len(single))]
        while len(parts) > 1:
            i = int(rng.integers(len(parts) - 1))
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        return parts[0]

    budget = streaming_budget(case, keys, queries, exponent_error(case, case.u), 1.0)
    a, b = merged().read(queries), merged().read(queries)
    compare("any grouping", a, b, budget + budget).require()


@given(case=cases())
def test_the_monoid_s_laws_that_rounding_leaves_exact(case: Case) -> None:
    first, *_, last = 2 * token_states(features_of(case)[0], case.V)
    empty = AttentionState.empty(*first.S.shape, dtype=first.S.dtype)
    for one, other in (
        (first + last, last + first),
        (first + empty, first),
        (empty + first, first),
        (empty + empty, empty),
    ):
        for x, y in zip(one.to_arrays().values(), other.to_arrays().values(), strict=True):
            assert x.dtype == y.dtype == case.V.dtype
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("t", [1, 4, 6])
def test_the_state_is_the_regressor_s_weights(t: int) -> None:
    """Fitted on the tokens 0..t with the landmarks of the whole context."""
    case = make_case(3, n=6, scale=1.0)
    phi = GramFeatures().fit(case.K)
    model = OneStepRegressor(lambda x: phi(x), scale=1.0).fit(case.K[:t], case.V[:t])
    keys = phi(case.K[:t])
    state = AttentionState.of(keys, case.V[:t])
    assert state.log_scale == model.log_scale_
    terms = abs(case.V[:t]).T[:, None] * abs(keys.features.T)
    budget = sum_budget(terms, 2 * t + 16, U)
    compare("coef_", state.S, model.coef_, budget).require()
    features = sum_budget(abs(keys.features.T), 2 * t + 16, U)
    compare("normalizer_", state.n, model.normalizer_, features).require()


@pytest.mark.parametrize("chunk_size", [1, 2, 7, 8, 100])
def test_every_chunk_size_gives_causal_attention(chunk_size: int) -> None:
    case = make_case(2, n_q=8, n=8, d=4)
    keys, queries = features_of(case)
    o = causal_attention_by_chunks(queries, keys, case.V, chunk_size=chunk_size)
    want = attention(case.Q, case.K, case.V, causal=True)
    causal = np.tri(8)
    budget = streaming_budget(case, keys, queries, exponent_error(case, case.u), causal)
    bias = np.where(causal, 0.0, -np.inf)
    both = budget + attention_budget(case.Q, case.K, case.V, case.s, case.u, bias)
    compare("causal attention", o, want, both).require()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("n", [0, 1, 384, 385, 768, 1000])
def test_the_sums_of_many_tokens_are_exact_where_all_terms_are(dtype: str, n: int) -> None:
    """Integers: every order of summation gives the same."""
    rng = np.random.default_rng(0)
    Phi, V = rng.integers(-9, 9, (2, n, 7)), rng.integers(-9, 9, (3, 1, n, 2))
    state = AttentionState.of(Features(Phi.astype(dtype), np.zeros((2, n), dtype)), V)
    np.testing.assert_array_equal(
        state.S, np.einsum("bjm,abjc->abcm", Phi, np.tile(V, (1, 2, 1, 1)))
    )
    np.testing.assert_array_equal(state.n, Phi.sum(axis=1))


def test_states_hold_where_every_real_feature_overflows() -> None:
    """|k|^2/2 from 1225 to 1250, where exp overflows at 710: the log scale carries it."""
    rng = np.random.default_rng(0)
    K = rng.standard_normal((6, 3))
    K *= (50 - 0.1 * np.arange(6)[:, None]) / np.linalg.norm(K, axis=1, keepdims=True)
    # A query near its own key: far from the others, all of its weight is there.
    case = Case("", 0, K + 0.01, K, rng.standard_normal((6, 2)), 6, scale=1.0)
    keys, queries = features_of(case)
    assert keys.log_scale.min() > 709
    state, outputs = AttentionState.empty(2, 6), []
    for j, token in enumerate(token_states(keys, case.V)):
        state += token
        outputs.append(state.read(Features(*(x[j : j + 1] for x in queries))))
    causal = np.tri(6)
    budget = streaming_budget(case, keys, queries, exponent_error(case, U), causal)
    budget += attention_budget(case.Q, K, case.V, 1.0, U, np.where(causal, 0.0, -np.inf))
    want = attention(case.Q, K, case.V, scale=1.0, causal=True)
    compare("o_t", np.concatenate(outputs), want, budget).require()


@pytest.mark.parametrize(("dtype", "carried"), [("float64", 708), ("float32", 87)])
def test_keys_that_one_scale_cannot_carry_are_refused(dtype: str, carried: int) -> None:
    def token(log_scale: float) -> AttentionState:
        ones = Features(np.ones((1, 1), dtype), np.array([log_scale], dtype))
        return AttentionState.of(ones, np.ones((1, 1), dtype))

    near = token(0.0) + token(carried - 1.0)
    assert near.least_log_scale == 0
    message = rf"log scales that differ by {carried + 1}; expected at most {carried}"
    with pytest.raises(ValueError, match=message):
        near + token(carried + 1.0)
    both = Features(np.ones((2, 1), dtype), np.array([carried + 1.0, 0], dtype))
    with pytest.raises(ValueError, match=message):
        AttentionState.of(both, np.ones((2, 1), dtype))


def test_a_token_of_log_scale_minus_infinity_is_none() -> None:
    V, Phi = tokens(0, 3)
    masked = AttentionState.of(Features(Phi, np.array([0.0, -np.inf, 0.0])), V)
    kept = AttentionState.of(plain(Phi[[0, 2]]), V[[0, 2]])
    budget = sum_budget(abs(V).T[:, None] * Phi.T, 3, U)
    compare("without the masked token", masked.S, kept.S, budget).require()
    assert (masked.log_scale, masked.least_log_scale) == (0, 0)


def test_an_empty_context_is_a_mean_over_nothing() -> None:
    queries = plain(np.ones((2, 3)))
    assert np.isnan(AttentionState.empty(4, 3).read(queries)).all()
    none = plain(np.empty((0, 3)))
    assert causal_attention_by_chunks(none, none, np.empty((0, 4))).shape == (0, 4)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_spoils_its_own_position_and_later_ones(bad: float) -> None:
    V, Phi = tokens(0, 8)
    V_bad, Phi_bad, scales = V.copy(), Phi.copy(), np.zeros(8)
    V_bad[4, 0], Phi_bad[4, 0], scales[4] = bad, bad, bad
    for keys, values, columns in (
        (plain(Phi), V_bad, [True, False]),
        (plain(Phi_bad), V, [True, True]),
        (Features(Phi, scales), V, [True, True]),
    ):
        o = causal_attention_by_chunks(plain(Phi), keys, values, chunk_size=3)
        spoilt = ~np.isfinite(o)
        assert not spoilt[:4].any()
        assert (spoilt[4:] == columns).all()


def test_batches_do_not_mix_and_broadcast() -> None:
    case = make_case(5, n_q=6, n=6, c=2, d=3)
    phi = PositiveFeatures.sample(3, 5, rng=np.random.default_rng(0))
    keys = Features(*(np.stack([x, x[::-1]]) for x in phi(case.K)))
    values = np.stack([case.V, -case.V, 2 * case.V])[:, None]
    together = causal_attention_by_chunks(phi(case.Q), keys, values, chunk_size=4)
    assert together.shape == (3, 2, 6, 2)
    state = AttentionState.of(keys, values)
    assert (state.S.shape, state.n.shape) == ((3, 2, 2, 5), (2, 5))
    last = state.read(Features(*(x[-1:] for x in phi(case.Q))))
    alone = causal_attention_by_chunks(
        phi(case.Q), Features(*(x[1] for x in keys)), values[1, 0], chunk_size=4
    )
    budget = sum_budget(np.broadcast_to(abs(case.V).max(axis=0), (6, 2))[..., None], 64, U)
    compare("one of the batch", together[1, 1], alone, budget).require()
    compare("its last position", last[1, 1], alone[-1:], budget[-1:]).require()


@pytest.mark.parametrize(
    ("given", "computed"), [("float16", "float32"), ("float32", "float32"), ("int32", "float64")]
)
def test_the_dtype_is_what_is_computed_in(given: str, computed: str) -> None:
    Phi, V = np.ones((3, 2), given), np.arange(6).reshape(3, 2).astype(given)
    state = AttentionState.of(plain(Phi), V)
    assert {array.dtype for array in state.to_arrays().values()} == {np.dtype(computed)}
    o = causal_attention_by_chunks(plain(Phi), plain(Phi), V, chunk_size=2)
    assert o.dtype == state.read(plain(Phi)).dtype == computed
    assert o.tolist() == [[0, 1], [1, 2], [2, 3]]


def by_file(state: AttentionState, folder: Path) -> AttentionState:
    np.savez(folder / "state.npz", **state.to_arrays())  # type: ignore[arg-type]
    with np.load(folder / "state.npz") as arrays:
        return AttentionState.from_arrays(arrays)


def by_pickle(state: AttentionState, folder: Path) -> AttentionState:
    restored: AttentionState = pickle.loads(pickle.dumps(state))
    return restored


@pytest.mark.parametrize("kept", [by_file, by_pickle])
def test_a_state_is_saved_and_goes_on(
    kept: Callable[[AttentionState, Path], AttentionState], tmp_path: Path
) -> None:
    V, Phi = tokens(0, 4)
    state = AttentionState.of(Features(Phi[:3], np.array([800.0, 1200.0, 1000.0])), V[:3])
    restored = kept(state, tmp_path)
    more = Features(Phi[3:], np.array([1300.0]))
    for one, other in (
        (state, restored),
        (state.update(more, V[3:]), restored.update(more, V[3:])),
    ):
        for x, y in zip(one.to_arrays().values(), other.to_arrays().values(), strict=True):
            np.testing.assert_array_equal(x, y)
            assert not y.flags.writeable


def test_a_state_is_immutable_and_so_are_its_inputs() -> None:
    S, n, zero = np.ones((2, 3)), np.ones(3), np.zeros(())
    state = AttentionState(S, n, zero, zero)
    S[0, 0] = n[0] = 7
    assert state.S[0, 0] == state.n[0] == 1
    with pytest.raises(ValueError, match="read-only"):
        state.S[0, 0] = 2
    with pytest.raises(FrozenInstanceError):
        state.n = n  # type: ignore[misc]
    before = state.S.copy()
    state.update(plain(np.ones((1, 3))), np.ones((1, 2)))
    assert np.array_equal(state.S, before)


STATE = AttentionState.of(plain(np.ones((2, 3))), np.ones((2, 4)))
KEYS, VALUES = plain(np.ones((2, 3))), np.ones((2, 4))
REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "keys that are no features": (
        lambda: AttentionState.of(np.ones((2, 3)), VALUES),  # type: ignore[arg-type]
        TypeError, "key_features is ndarray; expected Features",
    ),
    "features of one axis": (
        lambda: AttentionState.of(plain(np.ones(3)), VALUES),
        ValueError, r"key_features has shape \(3,\)",
    ),
    "complex features": (
        lambda: AttentionState.of(plain(np.ones((2, 3), complex)), VALUES),
        TypeError, "key_features has dtype complex128",
    ),
    "a log scale too many": (
        lambda: AttentionState.of(Features(np.ones((2, 3)), np.zeros(3)), VALUES),
        ValueError, r"key_features has log scales of shape \(3,\); expected \(2,\)",
    ),
    "a value too many": (
        lambda: STATE.update(KEYS, np.ones((3, 4))), ValueError, r"values has shape \(3, 4\)",
    ),
    "values of other outputs": (
        lambda: STATE.update(KEYS, np.ones((2, 5))),
        ValueError, r"other has S of shape \(5, 3\); expected \(..., 4, 3\)",
    ),
    "merging a number": (
        lambda: STATE.merge(1), TypeError, "other is 1; expected an AttentionState",  # type: ignore[arg-type]
    ),
    "merging other batches": (
        lambda: AttentionState.of(plain(np.ones((2, 2, 3))), VALUES)
        + AttentionState.of(plain(np.ones((5, 2, 3))), VALUES),
        ValueError, r"other has leading axes \(5,\)",
    ),
    "reading other features": (
        lambda: STATE.read(plain(np.ones((1, 2)))),
        ValueError, r"query_features has shape \(1, 2\)",
    ),
    "reading what is no features": (
        lambda: STATE.read(np.ones((1, 3))),  # type: ignore[arg-type]
        TypeError, "query_features is ndarray",
    ),
    "extending by other features": (
        lambda: STATE.extend(KEYS, plain(np.ones((2, 4))), VALUES),
        ValueError, r"key_features has shape \(2, 4\); expected \(..., n_tokens, 3\)",
    ),
    "extending by values of other outputs": (
        lambda: STATE.extend(KEYS, KEYS, np.ones((2, 5))),
        ValueError, r"values has shape \(2, 5\); expected \(..., 4\), as the state has",
    ),
    "extending other batches": (
        lambda: AttentionState.of(plain(np.ones((2, 2, 3))), VALUES).extend(
            KEYS, plain(np.ones((5, 2, 3))), VALUES
        ),
        ValueError, r"key_features has leading axes \(5,\)",
    ),
    "a missing array": (
        lambda: AttentionState.from_arrays({"S": VALUES}),
        ValueError, r"arrays has \['S'\]; expected S, n, log_scale, least_log_scale",
    ),
    "S of one axis": (
        lambda: AttentionState(np.ones(3), np.ones(3), np.zeros(()), np.zeros(())),
        ValueError, r"S has shape \(3,\)",
    ),
    "n of other features": (
        lambda: AttentionState(np.ones((4, 3)), np.ones(2), np.zeros(()), np.zeros(())),
        ValueError, r"n has shape \(2,\); expected \(..., 3\)",
    ),
    "a log scale for no batch": (
        lambda: AttentionState(np.ones((4, 3)), np.ones(3), np.zeros(1), np.zeros(())),
        ValueError, r"log_scale has shape \(1,\); expected \(\)",
    ),
    "S of text": (
        lambda: AttentionState(np.array([["a"]]), np.ones(1), np.zeros(()), np.zeros(())),  # type: ignore[arg-type]
        TypeError, "S has dtype <U1",
    ),
    "a query too many": (
        lambda: causal_attention_by_chunks(plain(np.ones((3, 3))), KEYS, VALUES),
        ValueError, r"query_features has features of shape \(3, 3\); expected \(..., 2, 3\)",
    ),
    "values of other batches": (
        lambda: causal_attention_by_chunks(
            KEYS, plain(np.ones((2, 2, 3))), np.ones((5, 2, 4))
        ),
        ValueError, r"values has leading axes \(5,\)",
    ),
    "no chunk": (
        lambda: causal_attention_by_chunks(KEYS, KEYS, VALUES, chunk_size=0),
        ValueError, "chunk_size is 0; expected at least 1",
    ),
    "half a chunk": (
        lambda: causal_attention_by_chunks(KEYS, KEYS, VALUES, chunk_size=1.5),  # type: ignore[arg-type]
        TypeError, "chunk_size is 1.5",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_by_name(
    call: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()
