"""Attention and a feed-forward layer after it: one step on labels that the layer has mapped."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import special

from equivalence import layers
from equivalence._arrays import Array
from equivalence.verify import oracle
from equivalence.verify.budgets import (
    Budget,
    attention_budget,
    dual_budget,
    feed_forward_budget,
    feed_forward_dual_budget,
    gamma,
    slope_error,
)
from equivalence.verify.cases import Case
from equivalence.verify.claim import Claim, Kind, Mutant
from equivalence.verify.compare import Comparison, Refutation, compare, refute
from equivalence.verify.dual_case import DualCase, exponent_error, see_dual
from equivalence.verify.implementation import Implementation

_ETA = 0.3
_ACTIVATIONS = ("relu", "gelu", "silu")
_N_HIDDEN, _N_OUTPUTS = 5, 3


class _Layer(NamedTuple):
    """Weights and biases."""

    W_1: Array
    b_1: Array
    W_2: Array
    b_2: Array


def check(impl: Implementation, case: Case) -> Iterator[Comparison | Refutation]:
    """The step on the labels W_F v_i, W_F itself, and the demonstration that flips a unit."""
    layer = _drawn(case)
    p = _exact_weights(case)
    yield from _one_step_on_labels(impl, case, layer, p)
    if not case.real:
        yield from _at_exact_points(impl, case, layer)
    yield from _flip(impl, case, layer, p[0])


def _drawn(case: Case) -> _Layer:
    """A layer of sixteenths, none zero, which every dtype holds exactly."""
    rng = case.rng("layer")

    def sixteenths(*shape: int) -> Array:
        size = rng.integers(4, 9, shape) * rng.choice([-1, 1], shape)
        drawn: Array = (size / 16).astype(case.V.dtype)
        return drawn

    c = case.V.shape[1]
    return _Layer(
        sixteenths(_N_HIDDEN, c),
        sixteenths(_N_HIDDEN),
        sixteenths(_N_OUTPUTS, _N_HIDDEN),
        sixteenths(_N_OUTPUTS),
    )


def _exact_weights(case: Case) -> list[list[oracle.Number]]:
    """The attention weights of the oracle, a row for each of `case.rows`."""
    number = case.arithmetic
    s = oracle.scale_of(number, case.scale, case.Q.shape[-1])
    q, k = number.vectors(case.Q[_rows(case)]), number.vectors(case.K)
    return [oracle.weights(number, x, k, s) for x in q]


def _rows(case: Case) -> npt.NDArray[np.intp]:
    return case.rows[:1] if case.real else case.rows


def _exactly(case: Case, layer: _Layer) -> tuple[Any, Any, Any, Any]:
    """The layer in the oracle's numbers."""
    number = case.arithmetic
    W_1, (b_1,), W_2, (b_2,) = (number.vectors(np.atleast_2d(array)) for array in layer)
    return W_1, b_1, W_2, b_2


def _one_step_on_labels(
    impl: Implementation, case: Case, layer: _Layer, p: list[list[oracle.Number]]
) -> Iterator[Comparison]:
    x = see_dual(impl, case)
    o = impl.attention(case.Q, case.K, case.V, scale=case.scale)
    number, rows, u = case.arithmetic, _rows(case), case.u
    columns = list(zip(*number.vectors(case.V), strict=True))
    exact_o = [[number.dot(row, column) for column in columns] for row in p]
    exact_layer = _exactly(case, layer)

    # |o| is at most the largest |v_j|, and a label W_F v_j at most |W_2||W_1||v_j|: slopes are.
    size, label_size = abs(case.V).max(axis=0), abs(case.V) @ (abs(layer.W_2) @ abs(layer.W_1)).T
    o_error = attention_budget(case.Q, case.K, case.V, case.s, u)
    step_error = dual_budget(x.Phi, x.phi_q, label_size, exponent_error(case, u), u)
    for activation in _ACTIVATIONS[: 2 if case.real else 3]:
        y = impl.feed_forward(o, *layer, activation=activation)
        predicted = _predict(impl, case, x, o, layer, activation)
        own = feed_forward_budget(size, o_error.bound, layer, activation, u)
        dual = step_error + feed_forward_dual_budget(size, o_error.bound, layer, activation, u)
        yield compare(f"W_1 phi(q) + b_F = FFN(o), {activation}", predicted, y, own + dual)
        yield oracle.against(
            number,
            f"W_1 phi(q) + b_F = W_2 sigma(W_1 o + b_1) + b_2, {activation}",
            predicted[rows],
            [oracle.feed_forward(number, a, *exact_layer, activation) for a in exact_o],
            dual[rows],
        )


def _predict(
    impl: Implementation, case: Case, x: DualCase, o: Array, layer: _Layer, activation: str
) -> Array:
    """One step on the labels W_F v_i, and query-side W_F v_t: a set of labels for each query."""
    W_F, b_F = impl.feed_forward_dual(o, *layer, activation=activation)
    labels = case.V @ np.swapaxes(W_F, -1, -2)
    W_0 = impl.initial_weights(labels[:, case.N :], x.Phi[case.N :], x.D)
    slope = impl.gradient(labels[:, : case.N], x.Phi[: case.N], x.D, _ETA)
    W_1 = impl.gradient_step(W_0, slope, _ETA)
    prediction: Array = impl.predict(W_1, x.phi_q) + b_F
    return prediction


def _at_exact_points(impl: Implementation, case: Case, layer: _Layer) -> Iterator[Comparison]:
    """W_F, b_F and FFN where z has no rounding error, so that no slope is in doubt.

    At the first point the first unit is at its kink, z = 0.
    """
    number, u = case.arithmetic, case.u
    x = (case.rng("points").integers(-8, 9, (2, case.V.shape[1])) / 8).astype(case.V.dtype)
    b_1 = layer.b_1.copy()
    b_1[0] = -(layer.W_1[0] @ x[0])
    layer = layer._replace(b_1=b_1)
    points, exact_layer = number.vectors(x), _exactly(case, layer)

    W_1, b_1, W_2, b_2 = (abs(array) for array in layer)
    terms = W_2 @ np.column_stack([W_1, b_1])
    terms[:, -1] += b_2
    for activation in _ACTIVATIONS:
        W_F, b_F = impl.feed_forward_dual(x, *layer, activation=activation)
        relative = gamma(_N_HIDDEN + 2, u) + slope_error(activation, u)
        yield oracle.against(
            number,
            f"W_F = W_2 diag(g) W_1 and b_F = W_2 diag(g) b_1 + b_2, {activation}",
            np.concatenate([W_F, b_F[..., None]], axis=-1).reshape(-1, W_F.shape[-1] + 1),
            [row for a in points for row in _affine_map(number, a, *exact_layer, activation)],
            Budget(
                relative * np.concatenate([terms] * len(x)),
                "gamma_(h+2) |W_2||[W_1, b_1]| (Higham 2002, sec. 3.1), and the slopes' own error",
                u,
            ),
        )
        yield oracle.against(
            number,
            f"FFN(x) = W_2 sigma(W_1 x + b_1) + b_2, {activation}",
            impl.feed_forward(x, *layer, activation=activation),
            [oracle.feed_forward(number, a, *exact_layer, activation) for a in points],
            feed_forward_budget(abs(x), np.zeros(x.shape), layer, activation, u),
        )


def _affine_map(
    number: oracle.Arithmetic, x: Any, W_1: Any, b_1: Any, W_2: Any, b_2: Any, activation: str
) -> list[list[oracle.Number]]:
    """The rows of [W_F, b_F] by their definition."""
    z = oracle.affine(number, W_1, x, b_1)
    slopes = [oracle.slope(number, unit, activation) for unit in z]
    columns = [*zip(*W_1, strict=True), b_1]
    rows = []
    for out, offset in zip(W_2, b_2, strict=True):
        gated = [a * g for a, g in zip(out, slopes, strict=True)]
        row = [number.dot(gated, column) for column in columns]
        rows.append([*row[:-1], row[-1] + offset])
    return rows


def _flip(
    impl: Implementation, case: Case, layer: _Layer, p: list[oracle.Number]
) -> Iterator[Comparison | Refutation]:
    """One demonstration's value moves by delta; at half of its way the first unit of relu flips.

    W_F and b_F of before then miss W_2 e_1 (z of after) = W_2 e_1 p_i (w.delta)/2, w = W_1^T e_1.
    """
    number, row, u = case.arithmetic, _rows(case)[:1], case.u
    i = max(range(max(1, case.N)), key=lambda j: float(p[j]))
    w, V = layer.W_1[0], case.V.copy()
    # The output moves by about 1 in each coordinate, however small the weight.
    V[i] += np.sign(w) * V.dtype.type(2.0 ** -np.floor(np.log2(float(p[i]))))
    before, after = (impl.attention(case.Q[row], case.K, x, scale=case.scale) for x in (case.V, V))
    budgets = [attention_budget(case.Q[row], case.K, x, case.s, u) for x in (case.V, V)]
    error = (budgets[0] + budgets[1]).bound
    layer = _first_unit_flips(layer, before, after)

    W_F, b_F = impl.feed_forward_dual(before, *layer)
    y, fixed = impl.feed_forward(after, *layer), after @ W_F[0].T + b_F
    size = np.maximum(abs(before), abs(after))
    budget = feed_forward_budget(size, error, layer, "relu", u) + feed_forward_dual_budget(
        size, error, layer, "relu", u
    )
    yield refute("one W_F and b_F serve both contexts", y, fixed, budget)
    W_1, _, W_2, _ = _exactly(case, layer)
    new, old = (number.vectors(x[i : i + 1])[0] for x in (V, case.V))
    half = p[i] * (number.dot(W_1[0], new) - number.dot(W_1[0], old)) / number.number(2.0)
    yield oracle.against(
        number,
        "the flipped unit is missing: W_2 e_1 p_i (w.delta)/2",
        y - fixed,
        [[out[0] * half for out in W_2]],
        budget,
    )


def _first_unit_flips(layer: _Layer, before: Array, after: Array) -> _Layer:
    """Two of the units: the kink of the first half way, that of the second behind both ends."""
    W_1, W_2 = layer.W_1[:2], layer.W_2[:, :2]
    kink = -(W_1[0] @ (before + after)[0]) / 2
    on = 1 + abs(W_1[1]) @ np.maximum(abs(before), abs(after))[0]
    return _Layer(W_1, np.array([kink, on], W_1.dtype), W_2, layer.b_2)


def _without_hidden_bias(x: Any, W_1: Any, b_1: Any, W_2: Any, b_2: Any, **o: Any) -> Any:
    W_F, b_F = layers.feed_forward_dual(x, W_1, b_1, W_2, b_2, **o)
    return W_F, 0 * b_F + b_2


def _one_for_all_queries(x: Any, *layer: Any, **o: Any) -> Any:
    W_F, b_F = layers.feed_forward_dual(x, *layer, **o)
    return 0 * W_F + W_F[:1], 0 * b_F + b_F[:1]


def _pattern_without_bias(x: Any, W_1: Any, b_1: Any, W_2: Any, b_2: Any, **o: Any) -> Any:
    W_F, _ = layers.feed_forward_dual(x, W_1, 0 * b_1, W_2, b_2, **o)
    _, b_F = layers.feed_forward_dual(x, W_1, b_1, W_2, b_2, **o)
    return W_F, b_F


def _with_slopes(g: Array, W_1: Array, b_1: Array, W_2: Array, b_2: Array) -> Any:
    return (W_2 * g[:, None, :]) @ W_1, (g * b_1) @ W_2.T + b_2


def _by_derivative(x: Any, W_1: Any, b_1: Any, *layer: Any, activation: str = "relu") -> Any:
    z = x @ W_1.T + b_1
    derivative = {
        "relu": lambda: np.heaviside(z, 0 * z),
        "gelu": lambda: special.ndtr(z) + z * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi),
        "silu": lambda: special.expit(z) * (1 + z * special.expit(-z)),
    }
    return _with_slopes(derivative[activation](), W_1, b_1, *layer)


def _tangent(x: Any, *layer: Any, **o: Any) -> Any:
    """The tangent of FFN at x: it too meets FFN at x, with other labels."""
    W_F, _ = _by_derivative(x, *layer, **o)
    y = layers.feed_forward(x, *layer, **o)
    return W_F, y - np.einsum("noc,nc->no", W_F, x)


def _divides_by_z(x: Any, W_1: Any, b_1: Any, *layer: Any, activation: str = "relu") -> Any:
    z = x @ W_1.T + b_1
    one, zero = np.eye(z.shape[-1], dtype=z.dtype), np.zeros(z.shape[-1], z.dtype)
    sigma = layers.feed_forward(z, one, zero, one, zero, activation=activation)
    return _with_slopes(sigma / z, W_1, b_1, *layer)


def _kink_is_on(x: Any, W_1: Any, b_1: Any, *layer: Any, activation: str = "relu") -> Any:
    if activation != "relu":
        return layers.feed_forward_dual(x, W_1, b_1, *layer, activation=activation)
    return _with_slopes((x @ W_1.T + b_1 >= 0).astype(x.dtype), W_1, b_1, *layer)


def _gelu_with_tanh(x: Any, *layer: Any, activation: str = "relu") -> Any:
    if activation != "gelu":
        return layers.feed_forward(x, *layer, activation=activation)
    W_1, b_1, W_2, b_2 = layer
    z = x @ W_1.T + b_1
    g = (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))) / 2
    return ((g * z) @ W_2.T + b_2).astype(x.dtype)


def _no_output_bias(x: Any, W_1: Any, b_1: Any, W_2: Any, b_2: Any, **o: Any) -> Any:
    return layers.feed_forward(x, W_1, b_1, W_2, 0 * b_2, **o)


def _leaky(x: Any, W_1: Any, b_1: Any, W_2: Any, b_2: Any, *, activation: str = "relu") -> Any:
    y = layers.feed_forward(x, W_1, b_1, W_2, b_2, activation=activation)
    if activation == "relu":
        y = y - layers.feed_forward(x, -W_1, -b_1, W_2, 0 * b_2) / 100
    return y


def _float32(x: Any, *layer: Any, **o: Any) -> Any:
    single = (np.asarray(array, np.float32) for array in (x, *layer))
    return tuple(part.astype(x.dtype) for part in layers.feed_forward_dual(*single, **o))


def _dual(name: str, defect: str, wrong: Any) -> Mutant:
    return Mutant(name, defect, {"feed_forward_dual": wrong})


def _forward(name: str, defect: str, wrong: Any) -> Mutant:
    return Mutant(name, defect, {"feed_forward": wrong})


claim = Claim(
    stem="feed_forward_layer",
    statement="Attention followed by W_2 sigma(W_1 o + b_1) + b_2 is one gradient step on the "
    "labels W_F v_i, read out with the bias b_F: W_F = W_2 diag(sigma(z)/z) W_1 and "
    "b_F = W_2 diag(sigma(z)/z) b_1 + b_2 at z = W_1 o + b_1, at that pattern only.",
    kind=Kind.EXACT,
    needs=("attention", "GramFeatures", "feed_forward", "feed_forward_dual"),
    check=check,
    mutants=(
        _dual("no_hidden_bias", "b_F leaves out W_2 diag(.) b_1", _without_hidden_bias),
        _dual("one_for_all_queries", "W_F and b_F of the first query", _one_for_all_queries),
        _dual("pattern_without_bias", "the pattern is that of W_1 o", _pattern_without_bias),
        _dual("derivative", "the slope is sigma'(z), not sigma(z)/z", _by_derivative),
        _dual("tangent", "the tangent at o, with the offset that fits it there", _tangent),
        _dual("divides_by_z", "sigma(z)/z is computed as a quotient: 0/0 at 0", _divides_by_z),
        _dual("kink_is_on", "a unit of relu at z = 0 counts as on", _kink_is_on),
        _dual("float32_slopes", "W_F and b_F are computed in float32", _float32),
        _forward("gelu_with_tanh", "gelu is its approximation with tanh", _gelu_with_tanh),
        _forward("no_output_bias", "b_2 is left out", _no_output_bias),
        _forward("leaky", "relu leaks 1/100 of what is negative", _leaky),
    ),
    assumptions="As one_gradient_step. W_F depends on o: for relu through the pattern of the units "
    "that are on, and a demonstration that flips one changes the labels of all; for gelu and silu "
    "through every z.",
    budget="the dual's budget for labels |W_2||W_1||v_j|; z errs by gamma_(c+2) (|W_1||o| + |b_1|) "
    "and |W_1| times attention's budget, and the layer by |W_2| (1 + max |sigma'|) times that.",
    code="equivalence/layers/feed_forward.py",
    on_heads=True,
)
