"""The proof's own expressions against the code, stacks of any depth, and their corners."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equivalence import attention, attention_weights
from equivalence.layers import AttentionLayer, LayerDual, LayerNorm, stack, stack_duals
from equivalence.verify import propagation
from equivalence.verify.budgets import attention_budget, sum_budget, unit_roundoff
from equivalence.verify.compare import compare
from equivalence.verify.dual_case import on_one_scale
from equivalence.verify.propagation import Near
from proofs import load

U = 2.0**-53
PROOF = load("stacked_layers")

seeds = st.integers(0, 2**32 - 1)


def some_layer(rng: np.random.Generator, m: int, d: int, c: int, norm: bool) -> AttentionLayer:
    """Weights that keep the states of any depth moderate: keys whose norms differ by far more than
    those of a real model are beyond what a Gram matrix in floats can tell apart.
    """
    W_Q, W_K = 0.5 * rng.standard_normal((2, d, m)) / m**0.5
    W_V, W_O = 0.5 * rng.standard_normal((c, m)) / m**0.5, rng.standard_normal((m, c)) / c**0.5
    gain, offset = 1 + rng.random(m), rng.standard_normal(m)
    return AttentionLayer(W_Q, W_K, W_V, W_O, norm=LayerNorm(gain, offset) if norm else None)


def some_stack(
    seed: int, *, n: int = 4, m: int = 5, L: int = 2, norm: bool = True
) -> tuple[np.ndarray, list[AttentionLayer]]:
    """States and L layers, of which every other one has a norm."""
    rng = np.random.default_rng([seed, n, m, L])
    layers = [some_layer(rng, m, 2 + at, 3, norm and at % 2 == 0) for at in range(L)]
    return rng.standard_normal((n, m)), layers


def by_attention(x: np.ndarray, layers: list[AttentionLayer], causal: bool) -> Near:
    near = Near.exactly(x)
    for layer in layers:
        near = propagation.attention_layer(near, layer, causal, U)
    return near


def by_duals(
    x: np.ndarray, layers: list[AttentionLayer], duals: list[LayerDual], causal: bool
) -> Near:
    near = Near.exactly(x)
    for layer, dual in zip(layers, duals, strict=True):
        *_, near = propagation.layer_dual(near, layer, dual, causal, U)
    return near


def evaluated(name: str, **given: object) -> np.ndarray:
    listed = {key: x.tolist() if isinstance(x, np.ndarray) else x for key, x in given.items()}
    return np.array(PROOF.evaluate(name, listed), float)


# The proof.


@pytest.mark.parametrize(("seed", "n", "m"), [(0, 1, 2), (1, 3, 4), (2, 5, 3)])
def test_the_code_computes_the_output_of_the_proof(seed: int, n: int, m: int) -> None:
    x, (first, second) = some_stack(seed, n=n, m=m, norm=False)
    duals = stack_duals(x, [first, second])
    P = attention_weights(x @ first.W_Q.T, x @ first.W_K.T)
    (model,) = duals[1].models
    root = len(second.W_Q) ** -0.25
    Phi = on_one_scale(model.feature_map_(duals[1].keys * root))
    phi_q = model.feature_map_(duals[1].queries[-1:] * root).features[0]
    want = evaluated(
        "output",
        **{"X": x, "x_q": x[-1], "P": P, "p": P[-1], "Phi": Phi, "phi_q": phi_q},
        **{"W_1": first.W_V, "U_1": first.W_O, "W_2": second.W_V, "U_2": second.W_O},
    )
    # The weights and features that the proof is given carry the same rounding once more.
    budget = by_duals(x, [first, second], duals, False).budget(U).times(2)
    compare("output", duals[1].output[-1], want, budget[-1]).require()


def test_what_layer_2_is_trained_on_is_what_the_proof_says() -> None:
    x, (first, second) = some_stack(3, norm=False)
    first_dual, second_dual = stack_duals(x, [first, second])
    P = attention_weights(x @ first.W_Q.T, x @ first.W_K.T)
    near = by_duals(x, [first], [first_dual], False)
    X_1 = evaluated("X_1", X=x, P=P, W_1=first.W_V, U_1=first.W_O)
    compare("X_1", first_dual.output, X_1, near.budget(U).times(2)).require()
    keys = propagation.product(near.seen(X_1), second.W_K, U)
    compare("keys", second_dual.keys, keys.at, keys.budget(U).times(2)).require()


def test_a_key_behind_a_norm_is_that_of_the_proof() -> None:
    x, (layer, _) = some_stack(4)
    norm = layer.norm
    assert norm is not None
    sigma = np.sqrt(x.var(axis=-1) + norm.eps)
    (dual,) = stack_duals(x, [layer])
    near = propagation.product(propagation.normed(Near.exactly(x), norm, U), layer.W_K, U)
    want = [
        [
            evaluated("key", W=layer.W_K, g=norm.gain, b=norm.offset, x=row, sigma=root, l=at + 1)
            for at in range(len(layer.W_K))
        ]
        for row, root in zip(x, sigma, strict=True)
    ]
    # sigma is given rounded, which the norm's budget allows for.
    compare("key", dual.keys, want, near.budget(U).times(2)).require()


def test_the_query_token_pulls_as_the_proof_says() -> None:
    rng = np.random.default_rng(5)
    q, K, V = rng.standard_normal((1, 3)), rng.standard_normal((5, 3)), rng.standard_normal((5, 2))
    kappa = np.exp(K @ q[0] / 3**0.5)
    pulled = attention(q, K, V)[0] - attention(q, K[:-1], V[:-1])[0]
    moved = [
        evaluated("moved", kappa=kappa[:-1], v=V[:-1], kappa_q=kappa[-1], v_q=V[-1], l=at + 1)
        for at in range(2)
    ]
    budget = attention_budget(q, K, V, 3**-0.5, U).times(2)
    less = attention_budget(q, K[:-1], V[:-1], 3**-0.5, U)
    compare("moved", pulled, moved, (budget + less)[0]).require()


def test_the_defect_of_post_norm_is_that_of_the_proof() -> None:
    rng = np.random.default_rng(6)
    z, o, gain = rng.standard_normal((3, 4))
    z, o = z - z.mean(), o - o.mean()
    norm = LayerNorm(gain, np.zeros(4))
    sigmas = np.sqrt([evaluated("square", z=z, o=o, t=t, eps=norm.eps) for t in range(3)])
    y_0, y_1, y_2 = norm(z + np.arange(3)[:, None] * o)
    roots = {f"sigma_{t}": sigma for t, sigma in enumerate(sigmas)}
    want = [evaluated("defect", g=gain, z=z, o=o, l=at + 1, **roots) for at in range(4)]
    nears = [propagation.normed(Near(z + t * o, 2 * U * abs(z + t * o)), norm, U) for t in range(3)]
    error = nears[0].error + 2 * nears[1].error + nears[2].error
    # The proof is given rounded sigmas: once more.
    rounded = sum_budget(np.stack([y_0, y_1, y_1, y_2]), 3, U, axis=0)
    budget = Near(error, error).budget(U).times(2) + rounded
    compare("defect", (y_2 - y_1) - (y_1 - y_0), want, budget).require()


# Stacks of any depth.


@given(seed=seeds, n=st.integers(1, 5), m=st.integers(1, 5), L=st.integers(0, 4), causal=...)
def test_l_layers_are_l_duals(seed: int, n: int, m: int, L: int, causal: bool) -> None:
    x, layers = some_stack(seed, n=n, m=m, L=L)
    duals = stack_duals(x, layers, causal=causal)
    got = duals[-1].output if duals else x
    budget = by_duals(x, layers, duals, causal).budget(U)
    attended = by_attention(x, layers, causal).budget(U)
    assert [len(dual.models) for dual in duals] == [n if causal else 1] * L
    compare("L duals", got, stack(x, layers, causal=causal), budget + attended).require()


@given(seed=seeds, L=st.integers(1, 3), t=st.integers(1, 4))
def test_with_a_causal_mask_a_prefix_is_trained_on_the_same_pairs(
    seed: int, L: int, t: int
) -> None:
    x, layers = some_stack(seed, n=5, L=L)
    long, short = (stack_duals(some, layers, causal=True) for some in (x, x[:t]))
    near = Near.exactly(x)
    for layer, whole, prefix in zip(layers, long, short, strict=True):
        keys, values, near = propagation.layer_dual(near, layer, whole, True, U)
        for what, got, want, error in (
            ("keys", whole.keys, prefix.keys, keys),
            ("values", whole.values, prefix.values, values),
            ("states", whole.output, prefix.output, near),
        ):
            compare(what, got[:t], want, error.budget(U).times(2)[:t]).require()


@given(seed=seeds)
def test_without_a_mask_the_order_of_the_tokens_does_not_matter(seed: int) -> None:
    x, layers = some_stack(seed, n=6, L=3)
    order = np.random.default_rng(seed).permutation(len(x))
    budget = by_attention(x, layers, False).budget(U).times(2)
    compare("order", stack(x[order], layers), stack(x, layers)[order], budget[order]).require()


@given(seed=seeds, causal=...)
def test_a_stack_is_its_layers_one_after_the_other(seed: int, causal: bool) -> None:
    x, layers = some_stack(seed, L=3)
    states = x
    for layer in layers:
        states = stack(states, [layer], causal=causal)
    np.testing.assert_array_equal(stack(x, layers, causal=causal), states)


@given(seed=seeds)
def test_a_norm_before_the_projections_is_a_layer_on_normed_states(seed: int) -> None:
    x, (layer, _) = some_stack(seed)
    assert layer.norm is not None
    update = replace(layer, residual=False)
    bare = replace(update, norm=None)
    np.testing.assert_array_equal(stack(x, [update]), stack(layer.norm(x), [bare]))


# Corners.


def test_a_layer_without_values_is_its_residual() -> None:
    x, (layer, _) = some_stack(7)
    silent = replace(layer, W_V=0 * layer.W_V)
    np.testing.assert_array_equal(stack(x, [silent]), x)
    np.testing.assert_array_equal(stack_duals(x, [silent])[0].output, x)


def test_without_projection_and_residual_the_width_is_that_of_the_values() -> None:
    x, _ = some_stack(8)
    layer = AttentionLayer(np.eye(5), np.eye(5), np.ones((1, 5)), residual=False)
    want = attention(x, x, x.sum(axis=1, keepdims=True))
    near = by_attention(x, [layer], False)
    compare("width", stack(x, [layer]), want, near.budget(U).times(2)).require()
    assert stack_duals(x, [layer])[0].output.shape == (4, 1)


def test_the_scale_of_a_layer_is_used() -> None:
    x, (layer, _) = some_stack(9)
    flat = replace(layer, scale=1e-300, norm=None, residual=False)
    near = by_attention(x, [flat], False)
    mean = np.broadcast_to((x @ flat.W_V.T @ flat.W_O.T).mean(axis=0), x.shape)
    compare("flat", stack(x, [flat]), mean, near.budget(U).times(2)).require()


def test_batch_entries_do_not_mix() -> None:
    x, layers = some_stack(10)
    batch = stack(np.stack([x, x[::-1]])[:, None], layers, causal=True)
    assert batch.shape == (2, 1, 4, 5)
    for got, alone in ((batch[0, 0], x), (batch[1, 0], x[::-1])):
        budget = by_attention(alone, layers, True).budget(U).times(2)
        compare("batch", got, stack(alone, layers, causal=True), budget).require()


def cast(layer: AttentionLayer, dtype: str) -> AttentionLayer:
    matrices = {name: getattr(layer, name).astype(dtype) for name in ("W_Q", "W_K", "W_V", "W_O")}
    norm = layer.norm and LayerNorm(layer.norm.gain.astype(dtype), layer.norm.offset.astype(dtype))
    return replace(layer, norm=norm, **matrices)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype_in_is_dtype_out(dtype: str) -> None:
    x, layers = some_stack(11)
    x, layers = x.astype(dtype), [cast(layer, dtype) for layer in layers]
    got = stack(x, layers)
    assert got.dtype == stack_duals(x, layers)[-1].output.dtype == dtype
    near = Near.exactly(x)
    for layer in layers:
        near = propagation.attention_layer(near, layer, False, unit_roundoff(dtype))
    wide = stack(x.astype(float), [cast(layer, "float64") for layer in layers])
    compare(dtype, got, wide, near.budget(unit_roundoff(dtype)).times(2)).require()


def test_float16_is_computed_in_float32_throughout_and_rounded_once() -> None:
    x, layers = some_stack(11)
    x, layers = x.astype(np.float16), [cast(layer, "float16") for layer in layers]
    single = x.astype(np.float32), [cast(layer, "float32") for layer in layers]
    got = stack(x, layers)
    assert got.dtype == np.float16
    np.testing.assert_array_equal(got, stack(*single).astype(np.float16))
    assert stack_duals(x, layers)[-1].output.dtype == np.float32


def test_integers_are_computed_in_float64() -> None:
    _, layers = some_stack(12)
    x = np.arange(20).reshape(4, 5)
    assert stack(x, layers).dtype == np.float64
    np.testing.assert_array_equal(stack(x, layers), stack(x.astype(float), layers))
    assert stack([[1]], []).dtype == np.float64


def test_no_tokens_give_no_states() -> None:
    _, layers = some_stack(13)
    assert stack(np.zeros((0, 5)), layers).shape == (0, 5)


def test_a_nan_reaches_the_tokens_that_see_it() -> None:
    x, layers = some_stack(14)
    x[2, 0] = np.nan
    after = np.isnan(stack(x, layers, causal=True))
    assert not after[:2].any()
    assert after[2:].all()
    assert np.isnan(stack(x, layers)).all()


def test_a_constant_row_is_normed_to_its_offset() -> None:
    norm = LayerNorm([2.0, 3.0], [5.0, 7.0])
    np.testing.assert_array_equal(norm([[4.0, 4.0]]), [[5.0, 7.0]])
    assert norm(np.ones((1, 2), np.float16)).dtype == np.float64
    single = LayerNorm(np.ones(2, np.float16), np.zeros(2, np.float16))
    assert single(np.ones((3, 1, 2), np.float16)).dtype == np.float16


def test_inputs_are_not_modified() -> None:
    x, layers = some_stack(15)
    before = x.copy()
    stack(x, layers)
    stack_duals(x, layers, causal=True)
    np.testing.assert_array_equal(x, before)


# Bad input.

ONE = np.eye(2)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"W_Q": np.ones(2)}, ValueError, r"W_Q has shape \(2,\); expected \(n_out, width\)"),
        ({"W_Q": np.ones((0, 2))}, ValueError, r"W_Q has shape \(0, 2\).*no axis of 0"),
        ({"W_K": np.ones((3, 2))}, ValueError, r"W_K has shape \(3, 2\); expected \(2, 2\)"),
        ({"W_V": np.ones((2, 3))}, ValueError, r"W_V has shape \(2, 3\); expected \(n_out, 2\)"),
        ({"W_O": np.ones((2, 3))}, ValueError, r"W_O has shape \(2, 3\); expected \(n_out, 2\)"),
        ({"W_O": np.ones((3, 2))}, ValueError, "width 2 give outputs of width 3; expected one"),
        ({"W_K": [[1.0, 2.0], [3.0]]}, ValueError, "W_K is no array"),
        ({"W_V": ONE * 1j}, TypeError, "W_V has dtype complex128"),
        ({"residual": 1}, TypeError, "residual is 1; expected True or False"),
        ({"norm": "pre"}, TypeError, "norm is 'pre'; expected a LayerNorm or None"),
        ({"norm": LayerNorm([1.0], [0.0])}, ValueError, "norm has width 1; expected 2"),
        ({"scale": np.inf}, ValueError, "scale is inf; expected a finite number"),
    ],
)
def test_a_layer_that_does_not_fit_is_refused(
    fields: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        AttentionLayer(**{"W_Q": ONE, "W_K": ONE, "W_V": ONE, **fields})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1.0]], [1.0]), r"gain has shape \(1, 1\); expected \(width,\)"),
        (([], []), r"gain has shape \(0,\); expected \(width,\), at least 1"),
        (([1.0], [1.0, 2.0]), r"offset has shape \(2,\); expected \(1,\), as gain"),
        (([1.0], [1.0], 0.0), "eps is 0.0; expected a positive number"),
    ],
)
def test_a_norm_that_does_not_fit_is_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LayerNorm(*arguments)


@pytest.mark.parametrize("function", [stack, stack_duals])
def test_bad_input_is_refused_by_name(function: object) -> None:
    layer = AttentionLayer(ONE, ONE, ONE)
    narrow = AttentionLayer(ONE, ONE, ONE[:1], residual=False)
    for x, layers, causal, error, message in (
        ([1.0, 2.0], [layer], False, ValueError, r"x has shape \(2,\)"),
        (
            [[1.0]],
            [layer],
            False,
            ValueError,
            r"layers\[0\] takes .* 2; expected 1, the width of x",
        ),
        ([[1.0, 2.0]], [narrow, layer], False, ValueError, r"layers\[1\].*output of layers\[0\]"),
        ([[1.0, 2.0]], [layer, "layer"], False, TypeError, r"layers\[1\] is 'layer'"),
        ([[1.0, 2.0]], [layer], 1, TypeError, "causal is 1; expected True or False"),
        ([["a", "b"]], [layer], False, TypeError, "x has dtype <U1"),
    ):
        with pytest.raises(error, match=message):
            function(x, layers, causal=causal)


def test_a_norm_refuses_another_width() -> None:
    with pytest.raises(ValueError, match=r"x has shape \(1, 1\); expected \(..., n_tokens, 2\)"):
        LayerNorm([1.0, 1.0], [0.0, 0.0])([[1.0]])


def test_what_only_the_duals_need_is_refused() -> None:
    layer = AttentionLayer(ONE, ONE, ONE)
    for x in (np.ones((2, 3, 2)), np.ones((0, 2))):
        with pytest.raises(ValueError, match=r"expected \(n_tokens, width\), at least one"):
            stack_duals(x, [layer])
    with pytest.raises(ValueError, match="finite"):
        stack_duals([[np.nan, 1.0]], [layer])
    with pytest.raises(ValueError, match=r"scale is -1\.0; expected a positive number"):
        stack_duals(np.ones((1, 2)), [replace(layer, scale=-1.0)])
