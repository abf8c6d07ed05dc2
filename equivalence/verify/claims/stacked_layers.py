"""L attention layers are a sequence of L duals, layer l + 1 trained on the outputs of layer l."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from equivalence import OneStepRegressor
from equivalence._arrays import Array
from equivalence.layers import AttentionLayer, LayerDual, LayerNorm, stack, stack_duals
from equivalence.verify import layer_oracle, oracle, propagation
from equivalence.verify.budgets import Budget
from equivalence.verify.cases import Case
from equivalence.verify.claim import Claim, Kind, Mutant
from equivalence.verify.compare import Comparison, Refutation, compare, refute
from equivalence.verify.implementation import Implementation
from equivalence.verify.oracle import Arithmetic, Number, Vector
from equivalence.verify.propagation import Near

# A causal layer has one dual a position; this many show what all would.
_POSITIONS = 3
_WIDTH = 4


@dataclass(frozen=True)
class _Run:
    """The duals of a stack on states x; of each its keys, values and output, with their errors."""

    x: Array
    layers: list[AttentionLayer]
    causal: bool
    duals: list[LayerDual]
    nears: list[tuple[Near, Near, Near]]

    @property
    def pairs(self) -> Near:
        """The training pairs of layer 2 at all tokens but the last, keys beside values."""
        keys, values, _ = self.nears[1]
        return Near(
            np.concatenate([keys.at, values.at], axis=1)[:-1],
            np.concatenate([keys.error, values.error], axis=1)[:-1],
        )


def check(impl: Implementation, case: Case) -> Iterator[Comparison | Refutation]:
    """Both sides of two layers, with both masks; what the query token moves; and post-norm."""
    x, layers = _stack_of(case)
    whole = _run(impl, case, x, layers, causal=False)
    yield from _both_sides(impl, case, whole)
    if case.real:
        return
    prefix = _run(impl, case, x[:_POSITIONS], layers, causal=True)
    yield from _both_sides(impl, case, prefix)
    # What must differ by far more than rounding is shown in float64.
    if x.dtype == np.float64:
        if len(x) > 1:
            yield from _query_token(impl, case, whole)
            yield from _query_token(impl, case, prefix)
        yield from _post_norm(impl, case, whole)


def _stack_of(case: Case) -> tuple[Array, list[AttentionLayer]]:
    """Token states (q, k, v, 1, -1); layer 1 is the case's own head, layer 2 drawn, with a norm.

    The last two keep the entries of a state apart: a norm divides by their standard deviation.
    """
    (n, d), c, dtype = case.K.shape, case.V.shape[1], case.K.dtype
    apart = np.tile(np.array([1.0, -1.0], dtype), (n, 1))
    x = np.concatenate([np.resize(case.Q, (n, d)), case.K, case.V, apart], axis=1)
    m = x.shape[1]
    pick_q, pick_k, pick_v, _ = np.split(np.eye(m, dtype=dtype), [d, 2 * d, 2 * d + c])
    head = AttentionLayer(pick_q, pick_k, pick_v, pick_v.T, scale=case.scale)
    rng = case.rng("layer 2")
    W_Q, W_K, W_V, W_O = (rng.standard_normal((4, _WIDTH, m)) / np.sqrt(m)).astype(dtype)
    gain, offset = (np.array([[1.0], [0.0]]) + 0.1 * rng.standard_normal((2, m))).astype(dtype)
    second = AttentionLayer(W_Q, W_K, W_V, W_O.T, norm=LayerNorm(gain, offset))
    return x, [head, second]


def _run(
    impl: Implementation, case: Case, x: Array, layers: list[AttentionLayer], causal: bool
) -> _Run:
    duals = impl.stack_duals(x, layers, causal=causal)
    nears, state = [], Near.exactly(x)
    for layer, dual in zip(layers, duals, strict=True):
        nears.append(propagation.layer_dual(state, layer, dual, causal, case.u))
        state = nears[-1][-1]
    return _Run(x, layers, causal, duals, nears)


def _both_sides(impl: Implementation, case: Case, run: _Run) -> Iterator[Comparison]:
    mask = "causal" if run.causal else "bidirectional"
    by_attention = Near.exactly(run.x)
    for layer in run.layers:
        by_attention = propagation.attention_layer(by_attention, layer, run.causal, case.u)
    got, budget = run.duals[-1].output, run.nears[-1][-1].budget(case.u)
    yield compare(
        f"two duals give what two {mask} layers give",
        got,
        impl.stack(run.x, run.layers, causal=run.causal),
        budget + by_attention.budget(case.u),
    )
    if case.real:
        yield _head_in_state(case, run)
        return
    number = case.arithmetic
    want: Sequence[Vector] = number.vectors(run.x)
    for layer in run.layers:
        want = layer_oracle.attention_layer(number, want, layer, causal=run.causal)
    yield oracle.against(number, f"{mask} duals, by the definition", got, want, budget)


def _head_in_state(case: Case, run: _Run) -> Comparison:
    """Layer 1 is the case's head; one number of it, as the rest of them is one_gradient_step."""
    number, d = case.arithmetic, case.K.shape[1]
    q, k, v = (number.vectors(x) for x in (case.Q[:1], case.K, case.V[:, :1].T))
    p = oracle.weights(number, q[0], k, oracle.scale_of(number, case.scale, d))
    state = run.nears[0][-1]
    first = np.s_[:1, 2 * d : 2 * d + 1]
    return oracle.against(
        number,
        "layer 1 turns (q, k, v) into (q, k, v + o)",
        state.at[first],
        [[v[0][0] + number.dot(p, v[0])]],
        state.budget(case.u)[first],
    )


def _query_token(impl: Implementation, case: Case, run: _Run) -> Iterator[Comparison | Refutation]:
    """Give the last token another content, and look at what layer 2 is trained on before it."""
    content = case.rng("content").standard_normal((1, run.x.shape[1]))
    x = np.concatenate([run.x[:-1], content])
    other = _run(impl, case, x, run.layers, run.causal)
    budget = run.pairs.budget(case.u) + other.pairs.budget(case.u)
    what = "the training pairs of layer 2 do not depend on the query token"
    if run.causal:
        yield compare(f"causal: {what}", other.pairs.at, run.pairs.at, budget)
        return
    yield refute(f"bidirectional: {what}", other.pairs.at, run.pairs.at, budget)
    old, new = (r.nears[0][-1] for r in (run, other))
    moved = Near(new.at - old.at, new.error + old.error + case.u * abs(new.at - old.at))
    yield oracle.against(
        case.arithmetic,
        "token 0 enters layer 2 moved by W_O (p' (v' - o) - p (v - o)), o without the query token",
        moved.at[:1],
        [_moved_state(case.arithmetic, run, other)],
        moved.budget(case.u)[:1],
    )


def _moved_state(number: Arithmetic, run: _Run, other: _Run) -> list[Number]:
    """Layer 1 gives token 0 the output (1 - p) o + p v, of which only p and v are new."""
    head, pulls = run.layers[0], []
    for x in (run.x, other.x):
        q, k, v = layer_oracle.projected(number, number.vectors(x), head)
        s = oracle.scale_of(number, head.scale, len(k[0]))
        p = oracle.weights(number, q[0], k, s)[-1]
        o = oracle.attention(number, q[0], k[:-1], v[:-1], s)
        pulls.append([p * (b - a) for a, b in zip(o, v[-1], strict=True)])
    assert head.W_O is not None
    return layer_oracle.times(number, head.W_O, [b - a for a, b in zip(*pulls, strict=True)])


def _post_norm(impl: Implementation, case: Case, run: _Run) -> Iterator[Comparison | Refutation]:
    """A norm after the residual: twice the values is not twice the increment of the output."""
    x, (head, second), u = run.x, run.layers, case.u
    norm = second.norm
    assert norm is not None
    doubled = _run(impl, case, x, [replace(head, W_V=2 * head.W_V)], causal=False)
    states = [Near.exactly(x), run.nears[0][-1], doubled.nears[0][-1]]
    s = _second_difference([state.at for state in states])
    yield compare(
        "twice the values: the dual adds its increment once more",
        s,
        0 * s,
        _second_difference_budget(states, u),
    )
    outputs = [propagation.normed(state, norm, u).seen(norm(state.at)) for state in states]
    y = _second_difference([output.at for output in outputs])
    budget = _second_difference_budget(outputs, u)
    yield refute("twice the values: the post-normed output moves as much again", y, 0 * y, budget)
    yield oracle.against(
        case.arithmetic,
        "post-norm is off by 2 (sigma_1/sigma_2 - 1) y_1 + (1 - sigma_0/sigma_2) y_0",
        y[:1],
        [_post_norm_defect(case.arithmetic, x, head, norm)],
        budget[:1],
    )


def _second_difference(y: list[Array]) -> Array:
    return (y[2] - y[1]) - (y[1] - y[0])


def _second_difference_budget(nears: list[Near], u: float) -> Budget:
    y_0, y_1, y_2 = nears
    rounded = 2 * u * (abs(y_2.at - y_1.at) + abs(y_1.at - y_0.at))
    return Near(y_0.at, y_0.error + 2 * y_1.error + y_2.error + rounded).budget(u)


def _post_norm_defect(
    number: Arithmetic, x: Array, head: AttentionLayer, norm: LayerNorm
) -> list[Number]:
    """Of token 0: sigma_t^2 = sigma_0^2 + 2 t cov(x, o) + t^2 var(o), and y without its offset."""
    X = number.vectors(x)
    (after,) = layer_oracle.attention_layer(number, X, head, tokens=1)
    c_0, c_1 = layer_oracle.centred(number, X[0]), layer_oracle.centred(number, after)
    c_o = [b - a for a, b in zip(c_0, c_1, strict=True)]
    m = number.number(len(c_0))
    square = number.dot(c_0, c_0) / m + number.number(norm.eps)
    cov, var = number.dot(c_0, c_o) / m, number.dot(c_o, c_o) / m
    sigma_0, sigma_1, sigma_2 = (number.sqrt(square + 2 * t * cov + t * t * var) for t in range(3))
    return [
        g * (2 * (sigma_1 / sigma_2 - 1) * b / sigma_1 + (1 - sigma_0 / sigma_2) * a / sigma_0)
        for g, a, b in zip(number.vectors(norm.gain[None])[0], c_0, c_1, strict=True)
    ]


# Wrong stacks. Each has the signature of the right one.

Layers = Sequence[AttentionLayer]


def _forgets_residual(x: Array, layers: Layers, *, causal: bool = False) -> list[LayerDual]:
    return stack_duals(x, [replace(layer, residual=False) for layer in layers], causal=causal)


def _one(x: Array, layer: AttentionLayer, causal: bool) -> LayerDual:
    (dual,) = stack_duals(x, [layer], causal=causal)
    return dual


def _chained(x: Array, layers: Layers, step: Callable[..., LayerDual]) -> list[LayerDual]:
    """One dual after the other, each by `step(states, layer, at)`."""
    duals: list[LayerDual] = []
    for at, layer in enumerate(layers):
        duals.append(step(x, layer, at))
        x = duals[-1].output
    return duals


def _answers(models: Sequence[OneStepRegressor], Q: Array) -> Array:
    queries = [Q] if len(models) == 1 else [Q[t : t + 1] for t in range(len(Q))]
    return np.concatenate([m.predict(q) for m, q in zip(models, queries, strict=True)])


def _trained_on(
    keys: Array, values: Array, x: Array, layer: AttentionLayer, causal: bool
) -> LayerDual:
    """The dual of a layer, but with other training pairs."""
    dual, n = _one(x, layer, causal), len(x)
    models = [
        OneStepRegressor(scale=layer.scale).fit(keys[:end], values[:end])
        for end in (range(1, n + 1) if causal else [n])
    ]
    return replace(dual, keys=keys, values=values, output=x + _answers(models, dual.queries))


def _trained_on_the_inputs(x: Array, layers: Layers, *, causal: bool = False) -> list[LayerDual]:
    def step(states: Array, layer: AttentionLayer, at: int) -> LayerDual:
        first = _one(x, layer, causal)
        return _trained_on(first.keys, first.values, states, layer, causal)

    return _chained(x, layers, step)


def _read_at_the_inputs(x: Array, layers: Layers, *, causal: bool = False) -> list[LayerDual]:
    def step(states: Array, layer: AttentionLayer, at: int) -> LayerDual:
        dual, queries = _one(states, layer, causal), _one(x, layer, causal).queries
        return replace(dual, queries=queries, output=states + _answers(dual.models, queries))

    return _chained(x, layers, step)


def _without_query_token(x: Array, layers: Layers, *, causal: bool = False) -> list[LayerDual]:
    def step(states: Array, layer: AttentionLayer, at: int) -> LayerDual:
        earlier = np.concatenate([stack(x[:-1], layers[:at], causal=causal), states[-1:]])
        prepared = _one(earlier, layer, causal)
        return _trained_on(prepared.keys, prepared.values, states, layer, causal)

    return _chained(x, layers, step)


def _keys_before_norm(x: Array, layers: Layers, *, causal: bool = False) -> list[LayerDual]:
    def step(states: Array, layer: AttentionLayer, at: int) -> LayerDual:
        values = _one(states, layer, causal).values
        return _trained_on(states @ layer.W_K.T, values, states, layer, causal)

    return _chained(x, layers, step)


def _norm_after(x: Array, layers: Layers, *, causal: bool = False) -> list[LayerDual]:
    def step(states: Array, layer: AttentionLayer, at: int) -> LayerDual:
        dual = _one(states, replace(layer, norm=None), causal)
        return dual if layer.norm is None else replace(dual, output=layer.norm(dual.output))

    return _chained(x, layers, step)


def _adds_normed_state(x: Array, layers: Layers, *, causal: bool = False) -> list[LayerDual]:
    def step(states: Array, layer: AttentionLayer, at: int) -> LayerDual:
        dual = _one(states, layer, causal)
        z = states if layer.norm is None else layer.norm(states)
        return replace(dual, output=dual.output - states + z)

    return _chained(x, layers, step)


def _mask_in_layer_1_only(x: Array, layers: Layers, *, causal: bool = False) -> list[LayerDual]:
    return _chained(x, layers, lambda states, layer, at: _one(states, layer, causal and not at))


def _float32_between(x: Array, layers: Layers, *, causal: bool = False) -> list[LayerDual]:
    def step(states: Array, layer: AttentionLayer, at: int) -> LayerDual:
        return _one(states.astype(np.float32).astype(x.dtype) if at else x, layer, causal)

    return _chained(x, layers, step)


def _variance_over_m_minus_1(x: Array, layers: Layers, *, causal: bool = False) -> Array:
    m = x.shape[-1]
    shrink = x.dtype.type(((m - 1) / m) ** 0.5)

    def unbiased(layer: AttentionLayer) -> AttentionLayer:
        norm = layer.norm
        return replace(layer, norm=norm and replace(norm, gain=norm.gain * shrink))

    return stack(x, [unbiased(layer) for layer in layers], causal=causal)


def _mutant(name: str, defect: str, duals: Any) -> Mutant:
    return Mutant(name, defect, {"stack_duals": duals})


claim = Claim(
    stem="stacked_layers",
    statement="L attention layers are a sequence of L duals, layer l + 1 trained on the outputs of "
    "layer l: x'_t = [W_1(q_t), I] [phi(q_t); x_t]. A norm before the projections only changes "
    "keys, queries and values; a norm after the residual is not covered. With a causal mask the "
    "training pairs of every layer are independent of later tokens, without it they are not.",
    kind=Kind.EXACT,
    needs=("stack", "stack_duals"),
    check=check,
    mutants=(
        _mutant("forgets_residual", "the read-out has no identity", _forgets_residual),
        _mutant(
            "trained_on_the_inputs",
            "layer 2 is trained on the outputs of layer 0",
            _trained_on_the_inputs,
        ),
        _mutant(
            "without_query_token",
            "layer 2 is trained on states that have not seen the query token",
            _without_query_token,
        ),
        _mutant(
            "read_at_the_inputs", "layer 2 is read at the outputs of layer 0", _read_at_the_inputs
        ),
        _mutant(
            "keys_before_norm", "keys are made from the state, not its norm", _keys_before_norm
        ),
        _mutant("norm_after", "the norm comes after the residual", _norm_after),
        _mutant("adds_normed_state", "the residual adds the normed state", _adds_normed_state),
        _mutant("mask_in_layer_1_only", "layer 2 has no causal mask", _mask_in_layer_1_only),
        Mutant(
            "variance_over_m_minus_1",
            "the norm of the layers divides by the unbiased variance",
            {"stack": _variance_over_m_minus_1},
        ),
        _mutant("float32_between", "states are float32 between the layers", _float32_between),
    ),
    assumptions="Scales are positive, states finite. Post-norm divides by a sigma that depends on "
    "the values: refuted for a linear read-out, with its exact defect.",
    budget="each dual's own budget, and what moved inputs add: sum_j p_j (exp(e_j) - 1)|v_j - o| + "
    "sum_j p_j |dv_j|, e_j = s (|dq||k_j| + |q||dk_j| + |dq||dk_j|); a norm turns |dx| into "
    "(|dc| + |y||dsigma|)/(sigma - |dsigma|), |dsigma| <= |dc|/sqrt(m).",
    code="equivalence/layers/stacks.py",
    on_heads=True,
)
