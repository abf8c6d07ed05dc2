"""What a user of `attention` and `attention_weights` relies on, beyond the claims about them."""

from __future__ import annotations

import math
import re
import tracemalloc
from collections.abc import Callable
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equivalence import attention, attention_weights, scores
from equivalence.verify import oracle
from equivalence.verify.budgets import Budget, attention_budget, unit_roundoff, weights_budget
from equivalence.verify.compare import compare
from equivalence.verify.oracle import FLOATS

Array = np.ndarray[Any, Any]


def problem(
    seed: int = 0, *, n_q: int = 3, n_k: int = 5, d: int = 4, c: int = 2, dtype: str = "float64"
) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng([seed, n_q, n_k, d, c])
    shapes = ((n_q, d), (n_k, d), (n_k, c))
    Q, K, V = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    return Q, K, V


def require_attention(
    got: Array,
    Q: Array,
    K: Array,
    V: Array,
    *,
    scale: float | None = None,
    bias: Array | None = None,
    attended: Array | None = None,
    u: float | None = None,
) -> None:
    """`got` (n_q, c) against the definition in scalar arithmetic; NaN for rows without a key."""
    u = unit_roundoff(got.dtype) if u is None else u
    b = np.zeros((len(Q), len(K))) if bias is None else np.asarray(bias, np.float64)
    b = b if attended is None else np.where(attended, b, -np.inf)
    rows = np.isfinite(b).any(axis=1)
    assert np.isnan(got[~rows]).all()
    Q, b, got = Q[rows], b[rows], got[rows]
    s = 1 / math.sqrt(Q.shape[1]) if scale is None else scale
    number = oracle.scale_of(FLOATS, scale, Q.shape[1])
    q, k, v, biases = (FLOATS.vectors(x) for x in (Q, K, V, b))
    want = [oracle.attention(FLOATS, x, k, v, number, y) for x, y in zip(q, biases, strict=True)]
    # Both sides are rounded: what is tested, and the scalar arithmetic.
    budget = attention_budget(Q, K, V, s, u, b) + attention_budget(Q, K, V, s, 2.0**-53, b)
    if got.dtype == np.float16:
        u16 = unit_roundoff(np.float16)
        smallest = float(np.finfo(np.float16).smallest_subnormal)
        last = Budget(u16 * abs(np.array(want)) + smallest, "rounded to float16 at the end", u16)
        assert compare("attention in float16", got, want, budget + last).share <= 1
        return
    oracle.against(FLOATS, "attention", got, want, budget).require()


def require_weights(
    got: Array, Q: Array, K: Array, *, scale: float | None = None, bias: Array | None = None
) -> None:
    s = 1 / math.sqrt(Q.shape[1]) if scale is None else scale
    number = oracle.scale_of(FLOATS, scale, Q.shape[1])
    q, k = FLOATS.vectors(Q), FLOATS.vectors(K)
    biases = [None] * len(Q) if bias is None else FLOATS.vectors(bias)
    want = [oracle.weights(FLOATS, x, k, number, y) for x, y in zip(q, biases, strict=True)]
    budget = weights_budget(Q, K, s, unit_roundoff(got.dtype), bias)
    budget += weights_budget(Q, K, s, 2.0**-53, bias)
    oracle.against(FLOATS, "weights", got, want, budget).require()


def without_values(query: Any, key: Any, value: Any, **options: Any) -> Array:
    """`attention_weights` with the signature of `attention`."""
    return attention_weights(query, key, **options)


BOTH = pytest.mark.parametrize("function", [attention, without_values])
Q, K, V = problem()
EVERY, NO_KEY = np.ones((3, 5), bool), np.zeros((3, 5), bool)
RAGGED = [[1.0, 2.0], [3.0]]

# What is passed instead, what the message says of it, and what it says was expected.
SHAPES: dict[str, tuple[dict[str, Any], str, str]] = {
    "query with one axis": ({"query": Q[0]}, "query has shape (4,)", "(..., n_tokens, dim)"),
    "query is a number": ({"query": 1.0}, "query has shape ()", "(..., n_tokens, dim)"),
    "d is 0": ({"query": Q[:, :0], "key": K[:, :0]}, "query has shape (3, 0)", "a last axis of at"),
    "key with one axis": ({"key": K[0]}, "key has shape (4,)", "(..., n_tokens, dim)"),
    "key of another d": ({"key": K[:, :3]}, "key has shape (5, 3)", "(..., n_tokens, 4)"),
    "key of d 0": ({"key": K[:, :0]}, "key has shape (5, 0)", "(..., n_tokens, 4)"),
    "key of other heads": (
        {"query": np.stack([Q] * 2), "key": np.stack([K] * 3)},
        "key has leading axes (3,)",
        "axes that broadcast with (2,)",
    ),
    "mask of another n_k": ({"mask": EVERY[:, :4]}, "mask has shape (3, 4)", "to broadcast to (3,"),
    "mask of another n_q": ({"mask": EVERY[:2]}, "mask has shape (2, 5)", "to broadcast to (3, 5)"),
    "mask transposed": ({"mask": EVERY.T}, "mask has shape (5, 3)", "to broadcast to (3, 5)"),
    "mask that widens n_k": (
        {"key": K[:1], "value": V[:1], "mask": EVERY},
        "mask has shape (3, 5)",
        "to broadcast to (3, 1)",
    ),
    "mask of other heads": (
        {"query": np.stack([Q] * 2), "mask": np.stack([EVERY] * 3)},
        "mask has shape (3, 3, 5)",
        "to broadcast to (2, 3, 5)",
    ),
    "ragged query": ({"query": RAGGED}, "query is no array", "rows of one length"),
    "ragged key": ({"key": RAGGED}, "key is no array", "rows of one length"),
    "ragged mask": ({"mask": [[True], [True, False]]}, "mask is no array", "rows of one length"),
    "scale is NaN": ({"scale": math.nan}, "scale is nan", "a finite number"),
    "scale is inf": ({"scale": -math.inf}, "scale is -inf", "a finite number"),
    "scale is beyond floats": ({"scale": 10**400}, f"scale is {10**400}", "a finite number"),
}
VALUE_SHAPES: dict[str, tuple[dict[str, Any], str, str]] = {
    "value with one axis": ({"value": V[:, 0]}, "value has shape (5,)", "(..., n_tokens, dim)"),
    "value for other keys": ({"value": V[:4]}, "value has shape (4, 2)", "(..., 5, c), one row"),
    "value transposed": ({"value": V.T}, "value has shape (2, 5)", "(..., 5, c), one row for each"),
    "ragged value": ({"value": RAGGED}, "value is no array", "rows of one length"),
    "value of other heads": (
        {"query": np.stack([Q] * 2), "value": np.stack([V] * 3)},
        "value has leading axes (3,)",
        "axes that broadcast with (2,)",
    ),
}
NUMBERS = "float16, float32, float64 or integers"
NOT_REAL = {
    "complex128": Q.astype(complex),
    "object": Q.astype(object),
    "<U32": Q.astype(str),
    "datetime64[s]": np.zeros((3, 4), "datetime64[s]"),
    np.dtype(np.longdouble).name: Q.astype(np.longdouble),
}
NOT_MASKS = {
    "int64": np.ones((3, 5), np.int64),
    "uint8": np.ones((3, 5), np.uint8),
    "complex128": np.zeros((3, 5), complex),
    "object": np.full((3, 5), None),
    "<U1": np.full((3, 5), "x"),
    np.dtype(np.longdouble).name: np.zeros((3, 5), np.longdouble),
}


def require_refusal(
    function: Callable[..., Array], error: type[Exception], given: dict[str, Any], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        function(**{"query": Q, "key": K, "value": V, **given})


@BOTH
@pytest.mark.parametrize(("given", "was", "expected"), SHAPES.values(), ids=SHAPES)
def test_what_does_not_fit_is_refused_by_name(
    function: Callable[..., Array], given: dict[str, Any], was: str, expected: str
) -> None:
    require_refusal(function, ValueError, given, f"{was}")
    require_refusal(function, ValueError, given, f"; expected {expected}")


@pytest.mark.parametrize(("given", "was", "expected"), VALUE_SHAPES.values(), ids=VALUE_SHAPES)
def test_values_that_do_not_fit_are_refused_by_name(
    given: dict[str, Any], was: str, expected: str
) -> None:
    require_refusal(attention, ValueError, given, was)
    require_refusal(attention, ValueError, given, f"; expected {expected}")


@pytest.mark.parametrize("name", ["query", "key", "value"])
@pytest.mark.parametrize(("dtype", "array"), NOT_REAL.items(), ids=NOT_REAL)
def test_what_is_not_real_is_refused_by_name(name: str, dtype: str, array: Array) -> None:
    given = {name: array}
    require_refusal(attention, TypeError, given, f"{name} has dtype {dtype}; expected {NUMBERS}")


@BOTH
@pytest.mark.parametrize(("dtype", "mask"), NOT_MASKS.items(), ids=NOT_MASKS)
def test_a_mask_that_is_neither_boolean_nor_floating_is_refused(
    function: Callable[..., Array], dtype: str, mask: Array
) -> None:
    message = f"mask has dtype {dtype}; expected booleans (True attends) or float16"
    require_refusal(function, TypeError, {"mask": mask}, message)


@BOTH
@pytest.mark.parametrize("scale", ["1", True, np.True_, 1j, [0.5], np.array(0.5)], ids=repr)
def test_a_scale_that_is_no_number_is_refused(function: Callable[..., Array], scale: Any) -> None:
    message = f"scale is {scale!r}; expected a finite number"
    require_refusal(function, TypeError, {"scale": scale}, message)


@BOTH
@pytest.mark.parametrize("causal", ["no", 1, None, np.array([True, False])], ids=repr)
def test_a_causal_that_is_no_boolean_is_refused(
    function: Callable[..., Array], causal: Any
) -> None:
    message = f"causal is {causal!r}; expected True or False"
    require_refusal(function, TypeError, {"causal": causal}, message)


@pytest.mark.parametrize("scale", [0, 0.0, -0.7, 2, np.float32(0.5), np.int64(1)], ids=repr)
def test_every_finite_scale_is_taken_zero_and_negative_ones_too(scale: float) -> None:
    require_attention(attention(Q, K, V, scale=scale), Q, K, V, scale=float(scale))
    require_weights(attention_weights(Q, K, scale=scale), Q, K, scale=float(scale))


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"mask": True}, {"mask": [[0.0]]}])
@pytest.mark.parametrize(
    ("batch", "n_q", "n_k", "c"),
    [
        ((), 0, 5, 2),
        ((), 3, 0, 2),
        ((), 0, 0, 2),
        ((), 3, 5, 0),
        ((0,), 3, 5, 2),
        ((2, 0), 3, 0, 2),
    ],
)
def test_empty_axes_give_empty_arrays_and_no_keys_give_nan(
    batch: tuple[int, ...], n_q: int, n_k: int, c: int, options: dict[str, Any]
) -> None:
    q, k, v = np.ones((*batch, n_q, 4)), np.ones((*batch, n_k, 4)), np.ones((*batch, n_k, c))
    output, weights = attention(q, k, v, **options), attention_weights(q, k, **options)
    assert output.shape == (*batch, n_q, c)
    assert weights.shape == (*batch, n_q, n_k)
    assert np.isnan(output).all() == (n_k == 0 or output.size == 0)


DTYPES = ["float64", "float32", "float16"]


@pytest.mark.parametrize("v", DTYPES)
@pytest.mark.parametrize("k", DTYPES)
@pytest.mark.parametrize("q", DTYPES)
def test_the_dtype_is_the_arguments_and_so_is_the_accuracy(q: str, k: str, v: str) -> None:
    x, y, z = Q.astype(q), K.astype(k), V.astype(v)
    weights, output = attention_weights(x, y), attention(x, y, z)
    assert weights.dtype == np.result_type(x, y)
    assert output.dtype == np.result_type(x, y, z)
    single = unit_roundoff(np.float32) if output.dtype == np.float16 else None
    require_attention(output, x, y, z, u=single)
    if weights.dtype != np.float16:
        require_weights(weights, x, y)


@pytest.mark.parametrize("mask", [np.zeros((3, 5)), np.zeros((3, 5), np.float16), EVERY])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mask_does_not_change_the_dtype(dtype: str, mask: Array) -> None:
    x, y, z = (a.astype(dtype) for a in (Q, K, V))
    assert attention(x, y, z, mask=mask).dtype == dtype
    assert attention_weights(x, y, mask=mask).dtype == dtype


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint64", "int32"])
def test_integers_are_computed_in_float64(dtype: str) -> None:
    x, y, z = (np.rint(abs(a)).astype(dtype) for a in (Q, K, V))
    output = attention(x, y, z)
    assert output.dtype == np.float64
    require_attention(output, *(a.astype(np.float64) for a in (x, y, z)))


FORMS: dict[str, Callable[[Array], Any]] = {
    "a list": Array.tolist,
    "Fortran order": np.asfortranarray,
    "a transposed view": lambda x: x.T.copy().T,
    "every other entry": lambda x: np.repeat(np.repeat(x, 2, axis=0), 3, axis=1)[::2, ::3],
    "reversed twice": lambda x: x[::-1, ::-1].copy()[::-1, ::-1],
    "the other byte order": lambda x: x.astype(x.dtype.newbyteorder()),
    "unaligned": lambda x: np.frombuffer(b"\0" + x.tobytes(), x.dtype, offset=1).reshape(x.shape),
    "broadcast": lambda x: np.broadcast_to(x, (1, *x.shape))[0],
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_layout_of_the_arguments_does_not_matter(form: Callable[[Array], Any]) -> None:
    bias = np.linspace(-1, 1, 15).reshape(3, 5)
    output = attention(form(Q), form(K), form(V), mask=form(bias))
    assert output.dtype.isnative
    require_attention(output, Q, K, V, bias=bias)
    require_weights(attention_weights(form(Q), form(K), mask=form(bias)), Q, K, bias=bias)


def poisoned(x: Array, bad: float) -> Array:
    y = x.copy()
    y[1, 1] = bad
    return y


@pytest.mark.parametrize("mask", [None, np.tri(3, 5, 1, dtype=bool), np.where(EVERY, -1.0, 0)])
@pytest.mark.parametrize("bad", [0.0, math.nan, -math.inf])
def test_no_argument_is_ever_modified(mask: Array | None, bad: float) -> None:
    arguments = [poisoned(x, bad) for x in (Q, K, V)] + ([] if mask is None else [mask.copy()])
    before = [x.tobytes() for x in arguments]
    for x in arguments:
        x.flags.writeable = False
    M = None if mask is None else arguments[3]
    output = attention(*arguments[:3], mask=M, causal=True)
    weights = attention_weights(*arguments[:2], mask=M, causal=True)
    assert [x.tobytes() for x in arguments] == before
    assert all(not np.shares_memory(y, x) for y in (output, weights) for x in arguments)


BAD = pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])


@BAD
def test_a_bad_query_spoils_its_own_row_alone(bad: float) -> None:
    output = attention(poisoned(Q, bad), K, V)
    weights = attention_weights(poisoned(Q, bad), K)
    assert np.isnan(output[1]).all()
    assert np.isnan(weights[1]).all()
    require_attention(output[::2], Q[::2], K, V)
    require_weights(weights[::2], Q[::2], K)


@BAD
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_bad_key_spoils_every_row_that_attends_to_it(bad: float, sign: float) -> None:
    # Positive queries: the score of an infinite key would be +inf or -inf in each row.
    q = sign * abs(Q)
    assert np.isnan(attention(q, poisoned(K, bad), V)).all()
    assert np.isnan(attention_weights(q, poisoned(K, bad))).all()


@BAD
def test_a_bad_value_spoils_its_column_alone(bad: float) -> None:
    output = attention(Q, K, poisoned(V, bad))
    assert np.isnan(output[:, 1]).all()
    require_attention(output[:, :1], Q, K, V[:, :1])


EXCLUSIONS: dict[str, tuple[dict[str, Any], Array]] = {
    "boolean": ({"mask": np.arange(5) != 1}, EVERY & (np.arange(5) != 1)),
    "additive": ({"mask": np.where(np.arange(5) == 1, -np.inf, 0)}, EVERY & (np.arange(5) != 1)),
    "causal, seen by later rows": ({"causal": True}, np.tri(3, 5, dtype=bool)),
}


@BAD
@pytest.mark.parametrize(("options", "attended"), EXCLUSIONS.values(), ids=EXCLUSIONS)
@pytest.mark.parametrize("where", ["key", "value"])
def test_a_bad_token_that_is_excluded_has_no_effect(
    where: str, options: dict[str, Any], attended: Array, bad: float
) -> None:
    k, v = (poisoned(K, bad), V) if where == "key" else (K, poisoned(V, bad))
    clean = ~attended[:, 1]
    output = attention(Q, k, v, **options)
    require_attention(output[clean], Q[clean], K, V, attended=attended[clean])
    assert np.isnan(output[~clean, 1]).all()
    bias = np.where(attended[clean], 0, -np.inf)
    require_weights(attention_weights(Q, k, **options)[clean], Q[clean], K, bias=bias)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_additive_mask_spoils_its_own_row_alone(bad: float) -> None:
    output = attention(Q, K, V, mask=poisoned(np.zeros((3, 5)), bad))
    assert np.isnan(output[1]).all()
    require_attention(output[::2], Q[::2], K, V)


@pytest.mark.parametrize(
    "mask", [EVERY & [[True], [False], [True]], np.where([[0], [1], [0]], -np.inf, [0] * 5)]
)
@pytest.mark.parametrize("causal", [False, True])
def test_a_fully_masked_row_is_nan_and_the_others_are_not(mask: Array, causal: bool) -> None:
    attended = EVERY & [[True], [False], [True]] & (np.tri(3, 5, dtype=bool) | (not causal))
    require_attention(attention(Q, K, V, mask=mask, causal=causal), Q, K, V, attended=attended)
    weights = attention_weights(Q, K, mask=mask, causal=causal)
    assert np.array_equal(np.isnan(weights), np.broadcast_to([[False], [True], [False]], (3, 5)))


@pytest.mark.parametrize(("n_q", "n_k"), [(1, 4), (2, 5), (4, 4), (6, 3)])
def test_causal_query_i_sees_the_keys_0_to_i(n_q: int, n_k: int) -> None:
    q, k, v = problem(n_q=n_q, n_k=n_k)
    seen = np.tri(n_q, n_k, dtype=bool)
    assert np.array_equal(attention_weights(q, k, causal=True) > 0, seen)
    require_attention(attention(q, k, v, causal=True), q, k, v, attended=seen)


@given(st.data())
def test_masks_exclude_and_add_and_combine(data: st.DataObject) -> None:
    n_q, n_k = (data.draw(st.integers(1, 6), label=name) for name in ("n_q", "n_k"))
    seed = data.draw(st.integers(0, 2**32 - 1), label="seed")
    dtype = data.draw(st.sampled_from(["float64", "float32"]), label="dtype")
    kind = data.draw(st.sampled_from(["none", "boolean", "additive"]), label="mask")
    causal = data.draw(st.booleans(), label="causal")
    scale = data.draw(st.sampled_from([None, 0.3, -1.0]), label="scale")
    q, k, v = problem(seed, n_q=n_q, n_k=n_k, dtype=dtype)
    rng = np.random.default_rng(seed)
    attended, bias = rng.random((n_q, n_k)) < 0.6, rng.standard_normal((n_q, n_k)).astype(dtype)
    mask = {"none": None, "boolean": attended, "additive": np.where(attended, bias, -np.inf)}[kind]
    output = attention(q, k, v, scale=scale, mask=mask, causal=causal)
    require_attention(
        output,
        q,
        k,
        v,
        scale=scale,
        bias=bias if kind == "additive" else None,
        attended=(attended | (kind == "none")) & (np.tri(n_q, n_k, dtype=bool) | (not causal)),
    )


@given(
    hnp.mutually_broadcastable_shapes(num_shapes=4, min_side=0, max_side=3, max_dims=2),
    st.sampled_from([(3, 5), (1, 5), (3, 1), (1, 1), (5,)]),
    st.booleans(),
)
def test_leading_axes_broadcast_as_a_loop_over_heads(
    axes: hnp.BroadcastableShapes, tail: tuple[int, ...], boolean: bool
) -> None:
    *shapes, of_mask = axes.input_shapes
    rng = np.random.default_rng(len(of_mask))
    x, y, z = (
        rng.standard_normal((*shape, *a.shape)) for shape, a in zip(shapes, (Q, K, V), strict=True)
    )
    noise = rng.standard_normal((*(of_mask if len(tail) == 2 else ()), *tail))
    mask = noise > -0.5 if boolean else noise
    without_mask = np.broadcast_shapes(*shapes)
    batch = np.broadcast_shapes(without_mask, noise.shape[:-2])
    output = attention(x, y, z, mask=mask)
    assert output.shape == (*batch, 3, 2)
    heads = [np.broadcast_to(a, (*batch, *a.shape[-2:])) for a in (x, y, z)]
    M = np.broadcast_to(mask, (*batch, 3, 5))
    for i in np.ndindex(batch):
        given = {"attended": M[i]} if boolean else {"bias": M[i]}
        require_attention(output[i], *(a[i] for a in heads), **given)


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_the_block_of_query_rows_does_not_matter(
    monkeypatch: pytest.MonkeyPatch, rows: int, batch: tuple[int, ...]
) -> None:
    q, k, v = problem(n_q=7, n_k=6)
    bias = np.random.default_rng(1).standard_normal((7, 6))
    heads = [np.broadcast_to(x, (*batch, *x.shape)) for x in (q, k, v)]
    monkeypatch.setattr(scores, "_BLOCK_BYTES", rows * math.prod(batch) * 6 * q.itemsize)
    output = attention(*heads, mask=bias, causal=True)
    weights = attention_weights(*heads[:2], mask=bias, causal=True)
    attended = np.tri(7, 6, dtype=bool)
    for i in np.ndindex(batch):
        require_attention(output[i], q, k, v, bias=bias, attended=attended)
        require_weights(weights[i], q, k, bias=np.where(attended, bias, -np.inf))


@pytest.mark.parametrize("batch", [(), (3,)])
def test_a_block_is_at_least_one_row(
    monkeypatch: pytest.MonkeyPatch, batch: tuple[int, ...]
) -> None:
    monkeypatch.setattr(scores, "_BLOCK_BYTES", 1)
    output = attention(np.broadcast_to(Q, (*batch, *Q.shape)), K, V)
    for i in np.ndindex(batch):
        require_attention(output[i], Q, K, V)


@pytest.mark.parametrize(
    ("function", "n", "options"),
    [
        (attention, 4096, {}),
        (attention, 2048, {"causal": True}),
        (attention, 2048, {"mask": np.ones((2048, 1), bool)}),
        (without_values, 2048, {}),
        (without_values, 2048, {"causal": True}),
    ],
)
def test_nothing_of_size_n_by_n_is_held_beside_the_output(
    function: Callable[..., Array], n: int, options: dict[str, Any]
) -> None:
    q, k, v = problem(n_q=n, n_k=n, d=2, c=1, dtype="float32")
    tracemalloc.start()
    try:
        output = function(q, k, v, **options)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # One block of scores, less than one of booleans, a sample, and copies of the arguments.
    allowed = output.nbytes + 2 * scores._BLOCK_BYTES + q.nbytes + k.nbytes + v.nbytes + 2**16
    assert peak <= allowed
    assert allowed - output.nbytes < n * n * q.itemsize / 4


@pytest.mark.parametrize(("dtype", "largest"), [("float64", 709.0), ("float32", 88.0)])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_scores_whose_exponential_overflows_are_no_problem(
    dtype: str, largest: float, sign: float
) -> None:
    q, k, v = problem(dtype=dtype)
    # Every score is near sign * 1.5 * largest, and they differ by about 1.
    far = math.sqrt(1.5 * largest)
    q[:, 0], k[:, 0] = sign * far, far
    scores = q.astype(float) @ k.T.astype(float)
    assert (sign * scores > largest).all()
    require_attention(attention(q, k, v, scale=1.0), q, k, v, scale=1.0)
    require_weights(attention_weights(q, k, scale=1.0), q, k, scale=1.0)


@pytest.mark.parametrize(("dtype", "spread"), [("float64", 30.0), ("float32", 10.0)])
def test_scores_that_differ_by_more_than_exp_carries_give_the_nearest_value(
    dtype: str, spread: float
) -> None:
    q, k, v = problem(dtype=dtype)
    q, k = q * q.dtype.type(spread), k * k.dtype.type(spread)
    require_attention(attention(q, k, v, scale=1.0), q, k, v, scale=1.0)


@pytest.mark.parametrize(("dtype", "huge"), [("float64", 1e220), ("float32", 1e30)])
def test_a_row_whose_largest_score_overflows_is_nan_and_the_others_are_not(
    dtype: str, huge: float
) -> None:
    q, k, v = problem(dtype=dtype)
    k = abs(k) * k.dtype.type(math.sqrt(huge))
    q[1] = huge
    q[2] = 0
    output = attention(q, k, v)
    assert np.isnan(output[1]).all()
    require_attention(output[2:], q[2:], k, v)


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_near_the_largest_number_do_not_overflow(dtype: str) -> None:
    # Powers of two scale exactly, so the small values have the same bits.
    q, k, v = (x.astype(dtype) for x in (Q, K, np.sign(V) * (1 + abs(np.tanh(V)) / 2)))
    top = v.dtype.type(2.0 ** (np.finfo(dtype).maxexp - 1))
    assert np.array_equal(attention(q, k, v * top), attention(q, k, v) * top)


def test_equal_values_near_the_largest_number_are_their_own_mean() -> None:
    v = np.full((5, 1), 2.0**1023)
    output = attention(Q, K, v)
    require_attention(output / 2.0**1023, Q, K, v / 2.0**1023)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [3, 200])
def test_out_is_filled_and_returned(dtype: str, n: int) -> None:
    q, k, v = problem(n_q=n, n_k=n, dtype=dtype)
    packed = np.full((n, 5), np.nan, dtype)
    out = packed[:, 1:3]
    assert attention(q, k, v, out=out) is out
    assert np.array_equal(out, attention(q, k, v))
    assert np.isnan(packed[:, [0, 3, 4]]).all()


def read_only(x: Array) -> Array:
    y = x.copy()
    y.flags.writeable = False
    return y


OUT = np.zeros((3, 2))
SHARED = np.zeros((5, 6))
NOT_OUT: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "a list": ({"out": OUT.tolist()}, TypeError, "out has type list; expected an array of float64"),
    "float32": ({"out": OUT.astype("f")}, TypeError, "out has dtype float32; expected an array of"),
    "shape": ({"out": OUT.T}, ValueError, "out has shape (2, 3); expected a writeable array of"),
    "no axes": ({"out": np.empty(2)}, ValueError, "out has shape (2,); expected a writeable"),
    "read-only": ({"out": read_only(OUT)}, ValueError, "out has no right to be written to"),
    "overlap": (
        {"out": SHARED[:3, 2:4], "key": SHARED[:, :4]},
        ValueError,
        "out overlaps key in memory; expected memory of its own",
    ),
    "no thread": ({"n_threads": 0}, ValueError, "n_threads is 0; expected at least 1"),
    "half a thread": ({"n_threads": 0.5}, TypeError, "n_threads is 0.5; expected an integer"),
    "yes": ({"n_threads": True}, TypeError, "n_threads is True; expected an integer"),
}


@pytest.mark.parametrize(("given", "error", "message"), NOT_OUT.values(), ids=NOT_OUT)
def test_an_out_or_threads_that_cannot_be_are_refused(
    given: dict[str, Any], error: type[Exception], message: str
) -> None:
    require_refusal(attention, error, given, message)
