"""The proof's own expressions against the code, the slopes at the ends, and the flip of a unit."""

import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equivalence import attention, dual
from equivalence.layers import feed_forward, feed_forward_dual
from equivalence.verify.budgets import (
    Budget,
    attention_budget,
    feed_forward_budget,
    feed_forward_dual_budget,
    slope_error,
    sum_budget,
)
from equivalence.verify.cases import Case
from equivalence.verify.compare import compare
from equivalence.verify.strategies import cases
from proofs import load

U = 2.0**-53
PROOF = load("feed_forward_layer")
ACTIVATIONS = ("relu", "gelu", "silu")
each_activation = pytest.mark.parametrize("activation", ACTIVATIONS)

Layer = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def drawn(seed: int, c: int, h: int = 4, c_out: int = 3) -> Layer:
    rng = np.random.default_rng([seed, c, h, c_out])
    shapes = (h, c), (h,), (c_out, h), (c_out,)
    W_1, b_1, W_2, b_2 = (rng.standard_normal(shape) for shape in shapes)
    return W_1, b_1, W_2, b_2


def evaluated(name: str, given: dict[str, Any]) -> np.ndarray:
    lists = {key: value.tolist() for key, value in given.items()}
    return np.array(PROOF.evaluate(name, {key: lists[key] for key in PROOF.arguments(name)}))


def slope_of(z: np.ndarray, activation: str) -> np.ndarray:
    if activation == "relu":
        return (z > 0).astype(float)
    return np.array([PROOF.evaluate(f"{activation}_slope", {"z": float(a)}) for a in z])


@each_activation
@pytest.mark.parametrize(("c", "h", "c_out"), [(1, 1, 1), (3, 4, 2)])
def test_the_code_computes_the_expressions_of_the_proof(
    activation: str, c: int, h: int, c_out: int
) -> None:
    rng = np.random.default_rng(0)
    N, T, m, eta = 3, 2, 4, 0.3
    V, Phi = rng.standard_normal((N + T, c)), rng.random((N + T, m)) + 0.5
    phi_q = rng.random(m) + 0.5
    D = dual.normalizer(Phi, phi_q[None])[0]
    x = dual.predict(dual.initial_weights(V, Phi, D), phi_q)
    layer = W_1, b_1, W_2, b_2 = drawn(1, c, h, c_out)
    W_F, b_F = (part[0] for part in feed_forward_dual(x[None], *layer, activation=activation))
    labels = V @ W_F.T
    slope = dual.gradient(labels[:N], Phi[:N], D, eta)
    W = dual.gradient_step(dual.initial_weights(labels[N:], Phi[N:], D), slope, eta)
    given = {
        "V_N": V[:N], "V_T": V[N:], "Phi_N": Phi[:N], "Phi_T": Phi[N:], "phi_q": phi_q, "x": x,
        "W_1": W_1, "b_1": b_1, "W_2": W_2, "b_2": b_2, "eta": np.array(eta),
        "G": np.diag(slope_of(W_1 @ x + b_1, activation)),
    }  # fmt: skip
    terms = abs(W_2) @ np.column_stack([abs(W_1), abs(b_1)])
    terms[:, -1] += abs(b_2)
    # The proof takes the slopes at the rounded z: so does the code, up to one more rounding of z.
    z = abs(W_1) @ abs(x) + abs(b_1)
    relative = slope_error(activation, U) + 2 * (c + 2) * U * z.max()
    weights = Budget(terms * relative, "the slopes", U)
    weights = weights + sum_budget(terms[..., None], h + 2, U)
    size = terms[:, :-1] @ abs(V).T @ Phi / D
    depth = 2 * (N + T + m + c + h) + 8
    total = sum_budget((size * phi_q).sum(-1) + terms[:, -1], depth, U, axis=())
    compare("W_F", W_F, evaluated("W_F", given), weights[:, :-1]).require()
    compare("b_F", b_F, evaluated("b_F", given), weights[:, -1]).require()
    y = feed_forward(x[None], *layer, activation=activation)[0]
    at_x = feed_forward_budget(abs(x[None]), 0 * x[None], layer, activation, U)[0]
    compare("layer", y, evaluated("layer", given), at_x.times(2)).require()
    moved = Budget(size * relative / eta, "the slopes", U)
    gradient = moved + sum_budget(size[..., None] / eta, depth, U)
    compare("gradient", slope, evaluated("gradient", given), gradient).require()
    prediction = total + Budget(((size * phi_q).sum(-1) + terms[:, -1]) * relative, "slopes", U)
    got = dual.predict(W, phi_q) + b_F
    compare("prediction", got, evaluated("prediction", given), prediction).require()


def identity_layer(size: int) -> Layer:
    return np.eye(size), np.zeros(size), np.eye(size), np.zeros(size)


@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_slopes_and_activations_are_those_of_the_proof(activation: str) -> None:
    z = np.array([[-30.0, -3.0, -1.0, -1e-9, 1e-300, 0.5, 2.0, 20.0]])
    layer = identity_layer(z.size)
    slopes = np.diagonal(feed_forward_dual(z, *layer, activation=activation)[0][0])
    error = Budget(np.full(z.size, slope_error(activation, U)), "the slopes are good to 8 u", U)
    compare("the slope", slopes, slope_of(z[0], activation), error).require()
    sigma = [PROOF.evaluate(activation, {"z": float(a)}) for a in z[0]]
    got = feed_forward(z, *layer, activation=activation)[0]
    compare("sigma", got, sigma, error.times(2 * abs(z[0]))).require()


@each_activation
def test_the_budget_moves_with_the_steepest_slope_and_no_more(activation: str) -> None:
    z = np.linspace(-6, 6, 1201)[:, None]
    layer = identity_layer(1)
    step = 2.0**-10
    moved = feed_forward(z + step, *layer, activation=activation)
    change = abs(moved - feed_forward(z, *layer, activation=activation))
    error = np.full(z.shape, step)
    bound = feed_forward_budget(abs(z), error, layer, activation, U).bound
    assert (change <= bound).all()
    assert (change / bound).max() > 0.99


@pytest.mark.parametrize(("activation", "slope"), [("relu", 0.0), ("gelu", 0.5), ("silu", 0.5)])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_at_zero_the_slope_is_the_limit(activation: str, slope: float, dtype: str) -> None:
    z = np.array([[0.0, -0.0]], dtype)
    layer = tuple(array.astype(dtype) for array in identity_layer(2))
    W_F, b_F = feed_forward_dual(z, *layer, activation=activation)
    assert np.array_equal(W_F[0], slope * np.eye(2))
    assert np.array_equal(b_F, np.zeros((1, 2)))
    smallest = np.nextafter(z.dtype.type(0), z.dtype.type(1))
    beside, _ = feed_forward_dual(z + smallest, *layer, activation=activation)
    assert beside[0, 0, 0] == (1.0 if activation == "relu" else 0.5)


@each_activation
def test_far_away_a_unit_is_on_or_off(activation: str) -> None:
    far = [[1e300, -1e300, math.inf, -math.inf]]
    layer = np.array([[1.0]]), np.zeros(1), np.array([[1.0]]), np.zeros(1)
    got = feed_forward(np.transpose(far), *layer, activation=activation)[:, 0]
    assert np.array_equal(got, [1e300, 0.0, math.inf, 0.0])
    W_F, _ = feed_forward_dual(np.transpose(far), *layer, activation=activation)
    assert np.array_equal(W_F.reshape(-1), [1.0, 0.0, 1.0, 0.0])


@each_activation
def test_a_nan_spoils_its_own_token_only(activation: str) -> None:
    x = np.array([[1.0, 2.0], [math.nan, 0.0]])
    layer = drawn(2, 2)
    y = feed_forward(x, *layer, activation=activation)
    W_F, b_F = feed_forward_dual(x, *layer, activation=activation)
    for part in (y, W_F, b_F):
        assert np.isfinite(part[0]).all()
        assert np.isnan(part[1]).all()


@given(case=cases(), activation=st.sampled_from(ACTIVATIONS))
def test_attention_on_mapped_labels_is_the_layer_after_attention(
    case: Case, activation: str
) -> None:
    """The theorem without its dual: attention itself, with labels in the place of values."""
    layer = drawn(case.seed, case.V.shape[1])
    W_1, b_1, W_2, b_2 = (array.astype(case.V.dtype) for array in layer)
    o = attention(case.Q, case.K, case.V, scale=case.scale)
    W_F, b_F = feed_forward_dual(o, W_1, b_1, W_2, b_2, activation=activation)
    labels = case.V @ np.swapaxes(W_F, -1, -2)
    got = attention(case.Q[:, None], case.K, labels, scale=case.scale)[:, 0] + b_F
    y = feed_forward(o, W_1, b_1, W_2, b_2, activation=activation)
    error = attention_budget(case.Q, case.K, case.V, case.s, case.u)
    size, given = abs(case.V).max(axis=0), (W_1, b_1, W_2, b_2)
    mapped = abs(case.V) @ (abs(W_2) @ abs(W_1)).T
    budget = (
        attention_budget(case.Q, case.K, mapped, case.s, case.u)
        + feed_forward_budget(size, error.bound, given, activation, case.u)
        + feed_forward_dual_budget(size, error.bound, given, activation, case.u)
    )
    compare("attention on labels", got, y, budget).require()


@given(seed=st.integers(0, 2**32 - 1), activation=st.sampled_from(ACTIVATIONS))
def test_leading_axes_broadcast_as_a_loop_would(seed: int, activation: str) -> None:
    rng = np.random.default_rng(seed)
    x, b_1 = rng.standard_normal((2, 1, 4, 3)), rng.standard_normal((3, 5))
    W_1, W_2 = rng.standard_normal((3, 5, 3)), rng.standard_normal((2, 1, 2, 5))
    b_2 = rng.standard_normal(2)
    given = (x, W_1, b_1, W_2, b_2)
    for array in given:
        array.setflags(write=False)
    y = feed_forward(*given, activation=activation)
    W_F, b_F = feed_forward_dual(*given, activation=activation)
    assert (y.shape, W_F.shape, b_F.shape) == ((2, 3, 4, 2), (2, 3, 4, 2, 3), (2, 3, 4, 2))
    for i, j in np.ndindex(2, 3):
        one = x[i, 0], (W_1[j], b_1[j], W_2[i, 0], b_2)
        budget = feed_forward_budget(abs(one[0]), 0 * one[0], one[1], activation, U)
        alone = feed_forward(one[0], *one[1], activation=activation)
        compare("one of them", y[i, j], alone, budget.times(2)).require()
        sides = np.einsum("noc,nc->no", W_F[i, j], one[0]) + b_F[i, j]
        at_x = feed_forward_dual_budget(abs(one[0]), 0 * one[0], one[1], activation, U)
        compare("W_F x + b_F", sides, alone, budget + at_x).require()


@each_activation
def test_the_dtype_stays(activation: str) -> None:
    for dtype in ("float64", "float32", "float16"):
        layer = tuple(array.astype(dtype) for array in drawn(3, 2))
        x = np.ones((1, 2), dtype)
        parts = (
            feed_forward(x, *layer, activation=activation),
            *feed_forward_dual(x, *layer, activation=activation),
        )
        assert {part.dtype.name for part in parts} == {dtype}
    assert feed_forward([[1]], [[1]], [0], [[1]], [0]).dtype == np.float64


@each_activation
def test_float16_is_computed_in_float32(activation: str) -> None:
    """A sum of 131072 or 98304 on the way is beyond the 65504 of float16; the results are not."""
    x, W_1, zero = (np.array(a, "float16") for a in ([[256]], [[512]], [0]))
    quarter, factor, offset = (np.array(a, "float16") for a in ([[0.25]], [[192]], [-49152]))
    assert feed_forward(x, W_1, zero, quarter, zero, activation=activation) == 32768
    _, b_F = feed_forward_dual(x, W_1, W_1[0], factor, offset, activation=activation)
    assert b_F == 49152


def test_no_token_and_no_unit_are_answered() -> None:
    W_1, b_1, W_2, b_2 = drawn(4, 2)
    assert feed_forward(np.ones((0, 2)), W_1, b_1, W_2, b_2).shape == (0, 3)
    W_F, b_F = feed_forward_dual(np.ones((1, 2)), W_1[:0], b_1[:0], W_2[:, :0], b_2)
    assert np.array_equal(W_F, np.zeros((1, 3, 2)))
    assert np.array_equal(b_F[0], b_2)


def test_a_flip_is_missed_by_what_the_proof_says() -> None:
    """One demonstration of two, p = 1/2 each, moves from 1 to 3: the unit's kink is half way."""
    K, q = np.zeros((2, 1)), np.zeros((1, 1))
    W_1, b_1, W_2, b_2 = np.array([[2.0]]), np.array([-3.0]), np.array([[5.0]]), np.array([7.0])
    before, after = (attention(q, K, [[a], [1.0]]) for a in (1.0, 3.0))
    assert (before, after) == (1.0, 2.0)
    W_F, b_F = feed_forward_dual(before, W_1, b_1, W_2, b_2)
    missed = feed_forward(after, W_1, b_1, W_2, b_2) - (W_F[0] @ after + b_F)
    half_way = PROOF.evaluate("half_way", {"p": 0.5, "w": [2.0], "delta": [2.0]})
    assert missed == W_2 * half_way == 5.0
    given = {"W_1": W_1, "b_1": b_1, "W_2": W_2, "unit": np.ones((1, 1)), "x": after}
    assert missed == evaluated("missed", given)


def test_a_demonstration_that_flips_no_unit_leaves_the_labels_as_they_were() -> None:
    K, q = np.zeros((2, 1)), np.zeros((1, 1))
    layer = np.array([[2.0], [1.0]]), np.array([-3.0, 0.0]), np.array([[5.0, 1.0]]), np.zeros(1)
    contexts = [attention(q, K, [[a], [1.0]]) for a in (1.0, 1.5, 3.0)]
    W_F = [feed_forward_dual(o, *layer)[0].item() for o in contexts]
    assert W_F == [1.0, 1.0, 11.0]
    smooth = [feed_forward_dual(o, *layer, activation="silu")[0].item() for o in contexts]
    assert len(set(smooth)) == 3


GOOD: dict[str, Any] = {
    "x": np.ones((2, 3)),
    "W_1": np.ones((4, 3)),
    "b_1": np.ones(4),
    "W_2": np.ones((5, 4)),
    "b_2": np.ones(5),
}
BAD: list[tuple[str, Any, str]] = [
    ("x", np.ones(3), "has shape (3,); expected (..., n_tokens, dim)"),
    ("W_1", np.ones((4, 2)), "has shape (4, 2); expected (..., n_hidden, 3)"),
    ("W_1", np.ones(3), "has shape (3,); expected (..., n_hidden, 3)"),
    ("b_1", np.ones(3), "has shape (3,); expected (..., 4)"),
    ("b_1", 1.0, "has shape (); expected (..., 4)"),
    ("W_2", np.ones((5, 3)), "has shape (5, 3); expected (..., n_outputs, 4)"),
    ("b_2", np.ones(4), "has shape (4,); expected (..., 5)"),
    ("activation", "tanh", "is 'tanh'; expected one of relu, gelu, silu"),
    ("activation", None, "is None; expected one of relu, gelu, silu"),
    ("b_2", [[1.0], [1.0, 2.0]], "is no array"),
]


@pytest.mark.parametrize("function", [feed_forward, feed_forward_dual])
@pytest.mark.parametrize(("name", "bad", "message"), BAD)
def test_bad_input_is_refused_by_name(function: Any, name: str, bad: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{name} {message}")):
        function(**{**GOOD, name: bad})


@pytest.mark.parametrize("function", [feed_forward, feed_forward_dual])
@pytest.mark.parametrize("name", GOOD)
def test_what_is_not_real_is_refused_by_name(function: Any, name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} has dtype complex128"):
        function(**{**GOOD, name: GOOD[name].astype(complex)})


@pytest.mark.parametrize("function", [feed_forward, feed_forward_dual])
@pytest.mark.parametrize("name", ["W_1", "b_1", "W_2", "b_2"])
def test_axes_that_do_not_broadcast_are_refused_by_name(function: Any, name: str) -> None:
    twice, thrice = np.stack([GOOD["x"]] * 2), np.stack([GOOD[name]] * 3)
    with pytest.raises(ValueError, match=re.escape(f"{name} has leading axes (3,); expected axes")):
        function(**{**GOOD, "x": twice, name: thrice})
