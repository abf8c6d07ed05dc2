"""Linear attention against its definition, in any blocks and chunks, at any size of the norms."""

import math
import re
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equivalence import OneStepRegressor, attention, linear, streaming
from equivalence.features import Features, GramFeatures, PositiveFeatures, TrigonometricFeatures
from equivalence.linear import linear_attention
from equivalence.streaming import AttentionState, causal_attention_by_chunks
from equivalence.verify import oracle
from equivalence.verify.budgets import Budget, attention_budget, exact, gamma, unit_roundoff
from equivalence.verify.cases import Case, make_case
from equivalence.verify.claims.causal_streaming import streaming_budget
from equivalence.verify.compare import compare
from equivalence.verify.dual_case import exponent_error, scaled

Array = np.ndarray[Any, Any]
FEATURES = 5


def projections(case: Case) -> Array:
    return case.rng("projections").standard_normal((FEATURES, case.K.shape[1]))


def by_definition(
    number: oracle.Arithmetic, case: Case, W: Array, causal: bool
) -> list[list[oracle.Number]]:
    """sum_j kappa_j v_j / sum_j kappa_j, kappa_j = sum_r exp(w_r.(q+k_j) - |k_j|^2/2)."""
    s = oracle.scale_of(number, case.scale, case.K.shape[1])
    q, k, v, w = (number.vectors(x) for x in (case.Q, case.K, case.V, W.astype(case.K.dtype)))
    outputs = []
    for i, x in enumerate(q):
        seen = k[: i + 1] if causal else k
        exponents = [
            [
                number.sqrt(s) * (number.dot(a, x) + number.dot(a, y))
                - s * number.dot(y, y) / number.number(2.0)
                for a in w
            ]
            for y in seen
        ]
        top = max((e for row in exponents for e in row), key=float)
        kappa = [number.sum([number.exp(e - top) for e in row]) for row in exponents]
        D = number.sum(kappa)
        columns = zip(*v[: len(seen)], strict=True)
        outputs.append([number.dot(kappa, column) / D for column in columns])
    return outputs


def definition_budget(case: Case, W: Array, causal: bool) -> Budget:
    """The stream's, with exponents that err by a dot product of scaled points and their norms."""
    Q, K = (x.astype(np.float64) for x in scaled(case))
    phi = PositiveFeatures(W)
    keys, queries = phi(scaled(case)[1]), phi(scaled(case)[0])
    at_q, at_k = ((abs(x) @ abs(W).T).max(axis=1) for x in (Q, K))
    half_norms = (K**2).sum(axis=1) / 2
    size = 2 * at_q[:, None] + 2 * at_k + half_norms + half_norms.max()
    # The scale of each row, and of all, is a difference of such terms.
    error = gamma(case.K.shape[1] + 10, case.u) * (size + at_k.max() + math.log(FEATURES))
    attended = np.tri(len(Q), len(K)) if causal else 1.0
    return streaming_budget(case, keys, queries, error, attended)


def require_definition(number: oracle.Arithmetic, case: Case, causal: bool) -> None:
    W = projections(case)
    got = linear_attention(
        case.Q, case.K, case.V, PositiveFeatures(W), scale=case.scale, causal=causal
    )
    assert got.dtype == case.V.dtype
    budget = definition_budget(case, W, causal)
    oracle.against(number, "o", got, by_definition(number, case, W, causal), budget).require()


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 8),
    st.integers(1, 12),
    st.sampled_from([2, 4]),
    st.booleans(),
    st.sampled_from(["float64", "float32"]),
)
def test_it_is_its_definition_in_blocks_of_any_size(
    seed: int, n: int, block: int, many: int, causal: bool, dtype: str
) -> None:
    """And for many queries, for which the state is copied, as for three."""
    case = make_case(seed, n_q=n if causal else 3, n=n, dtype=dtype, spread=0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "_BLOCK_TOKENS", block)
        patch.setattr(streaming, "_MANY", many)
        require_definition(oracle.FLOATS, case, causal)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("dtype", "length"), [("float64", 100.0), ("float32", 14.0)])
def test_balls_of_long_points_whose_exponentials_overflow(
    dtype: str, length: float, causal: bool
) -> None:
    """|x|^2 up to 1e4 in float64: exp(|x|^2/2) is far beyond the range, the answer is not."""
    rng = np.random.default_rng(4)
    K, Q = rng.standard_normal((2, 6, 3))
    K *= (length - 0.05 * np.arange(6)[:, None]) / np.linalg.norm(K, axis=1, keepdims=True)
    case = Case(
        "", 4, Q.astype(dtype), K.astype(dtype), rng.standard_normal((6, 2)).astype(dtype), 6, 1.0
    )
    assert (K**2).sum(axis=1).min() / 2 > math.log(np.finfo(dtype).max)
    require_definition(oracle.balls(), case, causal)


@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 6),
    st.integers(1, 9),
    st.sampled_from(["float64", "float32"]),
)
def test_any_chunk_size_and_any_state_before_give_the_same(
    seed: int, before: int, chunk_size: int, dtype: str
) -> None:
    case = make_case(seed, n_q=8, n=8, dtype=dtype, spread=0.5)
    phi = PositiveFeatures(projections(case))
    queries, keys = (phi(x) for x in scaled(case))
    old, new = slice(None, before), slice(before, None)
    state = AttentionState.of(Features(*(x[old] for x in keys)), case.V[old])
    later = [Features(*(x[new] for x in features)) for features in (queries, keys)]
    output, after = state.extend(*later, case.V[new], chunk_size=chunk_size)
    budget = definition_budget(case, phi.projections, causal=True)
    whole = causal_attention_by_chunks(queries, keys, case.V)
    compare("outputs", output, whole[new], (budget + budget)[new]).require()
    last, at_once = Features(*(x[-1:] for x in queries)), AttentionState.of(keys, case.V)
    for what, state in (("extended", after), ("at once", at_once)):
        got = state.read(last)
        compare(f"the state {what}", got, whole[-1:], (budget + budget)[-1:]).require()
    assert (after.log_scale, after.least_log_scale) == (at_once.log_scale, at_once.least_log_scale)


def test_gram_features_make_it_softmax_attention() -> None:
    case = make_case(1, n_q=6, n=6, scale=1.0)
    phi = GramFeatures().fit(case.K)
    for causal in (False, True):
        got = linear_attention(case.Q, case.K, case.V, phi, scale=1.0, causal=causal)
        want = attention(case.Q, case.K, case.V, scale=1.0, causal=causal)
        attended = np.tri(6) if causal else np.ones((6, 6))
        error = exponent_error(case, case.u)
        budget = streaming_budget(case, phi(case.K), phi(case.Q), error, attended)
        bias = np.where(attended, 0.0, -np.inf)
        budget += attention_budget(case.Q, case.K, case.V, 1.0, case.u, bias)
        compare("softmax attention", got, want, budget).require()


def test_it_is_the_regressor_s_prediction_with_features_of_either_sign() -> None:
    case = make_case(2, spread=0.1)
    phi = TrigonometricFeatures(projections(case))
    got = linear_attention(case.Q, case.K, case.V, phi)
    want = OneStepRegressor(phi).fit(case.K, case.V).predict(case.Q)
    Q, K = scaled(case)
    budget = streaming_budget(case, phi(K), phi(Q), np.zeros((len(Q), len(K))), 1.0)
    compare("the same features", got, want, budget + budget).require()


@pytest.mark.parametrize("causal", [False, True])
def test_leading_axes_broadcast_and_are_a_loop(causal: bool) -> None:
    rng = np.random.default_rng(0)
    Q, K = rng.standard_normal((2, 1, 4, 3)), rng.standard_normal((3, 4, 3))
    V = rng.standard_normal((5, 1, 1, 4, 2))
    phi = PositiveFeatures(rng.standard_normal((FEATURES, 3)))
    for x in (Q, K, V):
        x.setflags(write=False)
    together = linear_attention(Q, K, V, phi, causal=causal)
    assert together.shape == (5, 2, 3, 4, 2)
    for i, j, k in np.ndindex(5, 2, 3):
        case = Case("", 0, Q[j, 0], K[k], V[i, 0, 0], 4)
        alone = linear_attention(case.Q, case.K, case.V, phi, causal=causal)
        budget = definition_budget(case, phi.projections, causal)
        compare("one of the batch", together[i, j, k], alone, budget + budget).require()


@pytest.mark.parametrize(
    ("given", "returned"), [("float16", "float16"), ("float32", "float32"), ("int32", "float64")]
)
def test_the_dtype_is_that_of_the_arguments(given: str, returned: str) -> None:
    ones, V = np.ones((2, 1), given), np.array([[1], [3]], given)
    for causal, want in ((False, [[2], [2]]), (True, [[1], [2]])):
        o = linear_attention(ones, ones, V, PositiveFeatures([[0.5]]), causal=causal)
        assert (o.dtype, o.tolist()) == (returned, want)


def test_no_keys_are_a_mean_over_nothing_and_no_queries_have_no_outputs() -> None:
    phi = PositiveFeatures(np.ones((2, 3)))
    one, none, V = np.ones((1, 3)), np.ones((0, 3)), np.ones((0, 4))
    assert np.isnan(linear_attention(one, none, V, phi)).all()
    assert linear_attention(none, one, np.ones((1, 4)), phi).shape == (0, 4)
    assert linear_attention(none, none, V, phi, causal=True).shape == (0, 4)


@pytest.mark.parametrize("shape", [(1, 8192), (16, 512)])
@pytest.mark.parametrize("causal", [False, True])
def test_memory_is_the_features_of_some_tokens(causal: bool, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    Q, K, V = rng.standard_normal((3, *shape, 4))
    phi = PositiveFeatures(rng.standard_normal((64, 4)))
    tracemalloc.start()
    output = linear_attention(Q, K, V, phi, causal=causal)
    peak = tracemalloc.get_traced_memory()[1] - output.nbytes
    tracemalloc.stop()
    # Beside the features: a state, and scaled points and values, of 4 numbers for 64 features.
    assert peak <= 2 * 2048 * 64 * output.itemsize


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_spoils_what_attends_to_it(bad: float) -> None:
    rng = np.random.default_rng(0)
    good = list(rng.standard_normal((3, 6, 2)))
    phi = PositiveFeatures(rng.standard_normal((FEATURES, 2)))
    for which, whole, by_position in (
        (0, np.arange(6)[:, None] == [3, 3], np.arange(6)[:, None] == [3, 3]),
        (1, np.ones((6, 2), bool), np.arange(6)[:, None] >= [3, 3]),
        (2, np.array([[True, False]] * 6), np.arange(6)[:, None] >= [3, 6]),
    ):
        arrays = [x.copy() for x in good]
        arrays[which][3, 0] = bad
        for causal, spoilt in ((False, whole), (True, by_position)):
            o = linear_attention(*arrays, phi, causal=causal)
            assert np.array_equal(~np.isfinite(o), spoilt)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_shift_is_made_only_in_rows_that_need_it_and_moves_no_other(dtype: str) -> None:
    # Sums of the rows: 2 without a shift, and beyond the fourth root of the largest number.
    edge = math.log(np.finfo(dtype).max) / 4
    x = np.array([[0.0], [edge - 1.0], [edge + 1.0], [-1.0], [8 * edge], [-8 * edge]], dtype)
    W = np.array([[1.0], [1.0]])
    phi, alone = PositiveFeatures(W)(x), PositiveFeatures(W)(x[:1])
    shifted = phi.features.max(axis=1) == 1
    assert shifted.tolist() == [True, False, True, True, True, True]
    rest = phi.log_scale + x[:, 0] ** 2 / 2 + np.log(x.dtype.type(2)) / 2
    u = unit_roundoff(dtype)
    size = abs(x[:, 0]) + x[:, 0] ** 2 + 1
    want = np.where(shifted, x[:, 0], 0)
    rounding = Budget(gamma(6, u) * size, "a sum of three terms, and back", u)
    compare("shift", rest, want, rounding).require()
    nothing = exact("a row's features are its own")
    compare("beside long rows", phi.features[:1], alone.features, nothing).require()


Q, K, V, PHI = np.ones((2, 3)), np.ones((4, 3)), np.ones((4, 5)), PositiveFeatures(np.ones((2, 3)))
REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "one axis": (lambda: linear_attention(Q[0], K, V, PHI), ValueError, "query has shape (3,)"),
    "another dimension": (
        lambda: linear_attention(Q, K[:, :2], V, PHI),
        ValueError, "key has shape (4, 2); expected (..., n_tokens, 3)",
    ),
    "a value too many": (
        lambda: linear_attention(Q, K, V[:3], PHI),
        ValueError, "value has shape (3, 5); expected (..., 4, c), one row for each key",
    ),
    "batches that do not broadcast": (
        lambda: linear_attention(np.ones((2, 2, 3)), np.ones((3, 4, 3)), V, PHI),
        ValueError, "key has leading axes (3,); expected axes that broadcast with (2,)",
    ),
    "values of other batches": (
        lambda: linear_attention(np.ones((2, 2, 3)), K, np.ones((3, 4, 5)), PHI),
        ValueError, "value has leading axes (3,); expected axes that broadcast with (2,)",
    ),
    "causal and fewer queries": (
        lambda: linear_attention(Q, K, V, PHI, causal=True),
        ValueError, "query has shape (2, 3); expected (..., 4, 3) for causal attention",
    ),
    "causal by a number": (
        lambda: linear_attention(Q, K, V, PHI, causal=1),  # type: ignore[arg-type]
        TypeError, "causal is 1; expected True or False",
    ),
    "a scale of zero": (
        lambda: linear_attention(Q, K, V, PHI, scale=0.0), ValueError, "scale is 0.0",
    ),
    "a class of maps": (
        lambda: linear_attention(Q, K, V, PositiveFeatures),  # type: ignore[arg-type]
        TypeError, "expected a feature map",
    ),
    "what is no map": (
        lambda: linear_attention(Q, K, V, None),  # type: ignore[arg-type]
        TypeError, "feature_map is None; expected a feature map",
    ),
    "a map to arrays": (
        lambda: linear_attention(Q, K, V, np.exp),
        TypeError, "feature_map returned ndarray; expected Features",
    ),
    "a map that loses a point": (
        lambda: linear_attention(Q, K, V, lambda x: PHI(x[:-1])),
        ValueError, "values has shape (4, 5); expected (..., 3, n_outputs)",
    ),
    "keys that one scale with those before cannot carry": (
        lambda: AttentionState.of(PHI(K), V).extend(PHI(99 * K), PHI(99 * K), V),
        ValueError, "keys have log scales that differ by",
    ),
    "keys that one scale cannot carry": (
        lambda: linear_attention(Q, K * [[0], [1], [1], [99]], V, PHI),
        ValueError, "keys have log scales that differ by",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_by_name(
    call: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()
