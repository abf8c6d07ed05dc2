"""A dual trained on augmented pairs is attention over augmented values and keys, in D as well."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from equivalence import attention
from equivalence._arrays import Array
from equivalence.modifications import augmented_attention, augmented_pairs, linear, mlp, residual
from equivalence.verify import oracle
from equivalence.verify.budgets import Budget, attention_budget, gamma, weight_errors
from equivalence.verify.cases import Case
from equivalence.verify.claim import Claim, Kind, mutant
from equivalence.verify.compare import Comparison, compare
from equivalence.verify.dual_case import DualCase, see_dual
from equivalence.verify.implementation import Implementation

_ETA = 0.7
_HIDDEN = 2


class _Perceptron(NamedTuple):
    """The weights of x -> x + B relu(A x + a) + b, as a map of arrays and of scalars."""

    A: Array
    a: Array
    B: Array
    b: Array

    @classmethod
    def draw(cls, rng: np.random.Generator, like: Array) -> _Perceptron:
        """Weights that change a token by a quarter of its size, in its dtype."""
        d = like.shape[-1]
        shapes = (_HIDDEN, d), (_HIDDEN,), (d, _HIDDEN), (d,)
        drawn = (rng.standard_normal(shape) / np.sqrt(4 * shape[-1]) for shape in shapes)
        return cls(*(x.astype(like.dtype) for x in drawn))

    def __call__(self, x: Array) -> Any:
        """The map of arrays."""
        return residual(mlp(*self))(x)

    def scalars(self, number: oracle.Arithmetic, tokens: Array) -> list[list[oracle.Number]]:
        """The map by its definition."""
        A, (a,), B, (b,) = (number.vectors(np.atleast_2d(x)) for x in self)
        x, zero = number.vectors(tokens), number.number(0.0)
        inner = number.dots(x, A)
        hidden = [
            [max(y + c, zero, key=float) for y, c in zip(row, a, strict=True)] for row in inner
        ]
        outer = number.dots(hidden, B)
        return [
            [s + t + c for s, t, c in zip(x_j, y_j, b, strict=True)]
            for x_j, y_j in zip(x, outer, strict=True)
        ]

    def error(self, tokens: Array, u: float) -> Array:
        """|computed - exact|: gamma_(d+h+4) times the magnitudes, as relu does not amplify."""
        A, a, B, b, x = (abs(y.astype(np.float64)) for y in (*self, tokens))
        roundings = sum(self.A.shape) + 4
        error: Array = gamma(roundings, u) * (x + (x @ A.T + a) @ B.T + b)
        return error


def check(impl: Implementation, case: Case) -> Iterator[Comparison]:
    """The layer by its definition and by its dual; linear maps, and none."""
    rng = case.rng("maps")
    g1, g2 = _Perceptron.draw(rng, case.V), _Perceptron.draw(rng, case.K)
    maps = {"value_map": g1, "key_map": g2}
    layer = impl.augmented_attention(case.Q, case.K, case.V, scale=case.scale, **maps)
    # From here on it is one_gradient_step, with augmented pairs.
    K, V = impl.augmented_pairs(case.K, case.V, **maps)
    pairs = replace(case, K=np.asarray(K), V=np.asarray(V))
    x = see_dual(impl, pairs)
    own = attention_budget(case.Q, pairs.K, pairs.V, case.s, case.u)
    prediction = _one_step(impl, pairs, x)
    yield compare("one step on augmented pairs gives the layer", prediction, layer, own + x.budget)
    yield _by_definition(case, layer, g1, g2)
    o = impl.attention(case.Q, case.K, case.V, scale=case.scale)
    own = attention_budget(case.Q, case.K, case.V, case.s, case.u)
    nothing = impl.augmented_attention(case.Q, case.K, case.V, scale=case.scale)
    yield compare("without maps it is attention", nothing, o, own + own)
    if not case.real:
        yield _linear_maps(impl, case)


def _by_definition(case: Case, layer: Array, g1: _Perceptron, g2: _Perceptron) -> Comparison:
    number, rows = case.arithmetic, case.rows
    s = oracle.scale_of(number, case.scale, case.Q.shape[-1])
    q = number.vectors(case.Q[rows])
    k, v = g2.scalars(number, case.K), g1.scalars(number, case.V)
    want = [oracle.attention(number, x, k, v, s) for x in q]
    what = "o = sum_j kappa(g2(k_j), q) g1(v_j) / sum_j kappa(g2(k_j), q)"
    return oracle.against(number, what, layer[rows], want, _with_maps(case, g1, g2)[rows])


def _with_maps(case: Case, g1: _Perceptron, g2: _Perceptron) -> Budget:
    """Scores that move by up to e change p_j by up to (exp(2e) - 1) p_j; values add their own."""
    K, V, u = g2(case.K), g1(case.V), case.u
    p, _ = weight_errors(case.Q, K, case.s, u)
    e = case.s * (_size(case.Q) @ g2.error(case.K, u).T).max(axis=-1, keepdims=True)
    off = g1.error(case.V, u)
    return attention_budget(case.Q, K, V, case.s, u) + Budget(
        np.expm1(2 * e) * (p @ (_size(V) + off)) + p @ off,
        f"the maps' sums err by gamma_(d+h+4), h={_HIDDEN}, and move scores and values",
        u,
    )


def _size(x: Array) -> Array:
    return abs(x.astype(np.float64))


def _one_step(impl: Implementation, pairs: Case, x: DualCase) -> Array:
    N, V = pairs.N, pairs.V
    W_0 = impl.initial_weights(V[N:], x.Phi[N:], x.D)
    slope = impl.gradient(V[:N], x.Phi[:N], x.D, _ETA)
    prediction: Array = impl.predict(impl.gradient_step(W_0, slope, _ETA), x.phi_q)
    return prediction


def _linear_maps(impl: Implementation, case: Case) -> Comparison:
    """A linear key map is a map of the query, an affine value map one of the output."""
    Q, K, V = case.Q, case.K, case.V
    rng, d, c = case.rng("linear"), K.shape[-1], V.shape[-1]
    drawn = (rng.standard_normal(shape) for shape in ((d, d), (d,), (c + 1, c), (c + 1,)))
    B, b, A, a = (x.astype(K.dtype) for x in drawn)
    # Scores of the size of the others, or the budget of one precision would let a lower one pass.
    B, b = B / K.dtype.type(4 * np.sqrt(d)), b / 4
    layer = impl.augmented_attention(
        Q, K, V, scale=case.scale, key_map=linear(B, b), value_map=linear(A, a)
    )
    return compare(
        "linear maps: the layer at B^T q without maps, times A, plus a",
        layer,
        impl.attention(Q @ B, K, V, scale=case.scale) @ A.T + a,
        _linear_budget(case, A, a, B, b),
    )


def _linear_budget(case: Case, A: Array, a: Array, B: Array, b: Array) -> Budget:
    """Two ways to the scores q^T B k + q.b and the values A v + a, the same bound for each."""
    (n, d), c, u = case.K.shape, case.V.shape[-1], case.u
    scores = _size(case.Q) @ (_size(B) @ _size(case.K).T + _size(b)[:, None])
    e = gamma(2 * d + 6, u) * case.s * scores.max(axis=-1, keepdims=True)
    p, relative = weight_errors(case.Q @ B, case.K, case.s, u)
    # Each kappa moves by a factor of at most exp(e) / (1 - relative), each p_j by its square.
    moved = np.expm1(2 * (e - np.log1p(-relative.max(axis=-1, keepdims=True))))
    sums = 2 * gamma(n + c + 3, u)
    each = (moved + sums + moved * sums) * (p @ (_size(case.V) @ _size(A).T + _size(a)))
    return Budget(
        2 * each,
        f"scores err by gamma_(2d+6) |q|.(|B||k| + |b|) s, sums by gamma_(n+c+3), d={d}, n={n}, "
        f"c={c}, on both sides",
        u,
    )


def _keys_only(key: Array, value: Array, **maps: Any) -> tuple[Array, Array]:
    K, _ = augmented_pairs(key, value, **maps)
    return K, value


def _values_only(key: Array, value: Array, **maps: Any) -> tuple[Array, Array]:
    _, V = augmented_pairs(key, value, **maps)
    return key, V


def _D_of_original_keys(query: Array, key: Array, value: Array, **o: Any) -> Array:
    """The numerator has the augmented keys, D has the original ones."""
    s = query.shape[-1] ** -0.5 if o.get("scale") is None else o["scale"]
    g2 = o.get("key_map") or (lambda k: k)
    log_D = [
        np.logaddexp.reduce(s * (query.astype(np.float64) @ k.T), axis=-1, keepdims=True)
        for k in (g2(key), key)
    ]
    ratio: Array = np.exp(log_D[0] - log_D[1]).astype(value.dtype)
    return augmented_attention(query, key, value, **o) * ratio


def _maps_the_output(query: Array, key: Array, value: Array, **o: Any) -> Any:
    """g1 of the mean instead of the mean of g1."""
    g1 = o.pop("value_map", None) or (lambda v: v)
    mean = augmented_attention(query, key, value, **o)
    return g1(mean)


def _maps_the_query(query: Array, key: Array, value: Array, **o: Any) -> Array:
    g2 = o.get("key_map") or (lambda k: k)
    return augmented_attention(np.asarray(g2(query)), key, value, **o)


def _not_the_last_token(query: Array, key: Array, value: Array, **maps: Any) -> Array:
    """The query's own token keeps its key and value."""
    scale = maps.pop("scale", None)
    K, V = augmented_pairs(key, value, **maps)
    if V.shape == value.shape:
        K, V = (np.concatenate([x[:-1], y[-1:]]) for x, y in ((K, key), (V, value)))
    return attention(query, K, V, scale=scale)


def _without_residual(query: Array, key: Array, value: Array, **o: Any) -> Array:
    """x -> g(x) - x: the inner map of a residual one."""
    for name in ("value_map", "key_map"):
        if isinstance(o.get(name), _Perceptron):
            o[name] = mlp(*o[name])
    return augmented_attention(query, key, value, **o)


def _float32(query: Array, key: Array, value: Array, **o: Any) -> Array:
    single = (x.astype(np.float32) for x in (query, key, value))
    return augmented_attention(*single, **o).astype(value.dtype)


claim = Claim(
    stem="augmented_attention",
    statement="One step on the loss over augmented pairs (phi(g2(k_i)), g1(v_i)) gives attention "
    "with the keys g2(k_j) and the values g1(v_j), for any maps g1 and g2; D sums over the "
    "augmented keys.",
    kind=Kind.EXACT,
    needs=("attention", "augmented_attention", "augmented_pairs"),
    check=check,
    mutants=(
        mutant(
            "D_of_original_keys",
            "D sums over the keys before they are mapped",
            augmented_attention=_D_of_original_keys,
        ),
        mutant(
            "maps_the_output",
            "the value map is applied to the output",
            augmented_attention=_maps_the_output,
        ),
        mutant(
            "maps_the_query",
            "the key map is applied to the query as well",
            augmented_attention=_maps_the_query,
        ),
        mutant(
            "not_the_last_token",
            "the query's own token is not augmented",
            augmented_attention=_not_the_last_token,
        ),
        mutant(
            "without_residual",
            "a residual map loses its identity part",
            augmented_attention=_without_residual,
        ),
        mutant(
            "keys_only", "the dual is trained on the original labels", augmented_pairs=_keys_only
        ),
        mutant(
            "values_only",
            "the dual is trained on the features of the original keys",
            augmented_pairs=_values_only,
        ),
        mutant("float32_layer", "the layer is computed in float32", augmented_attention=_float32),
    ),
    assumptions="As one_gradient_step, with the augmented tokens in the place of all tokens, the "
    "query-side ones among them. The maps act on each token by itself.",
    budget="those of attention and of the dual at the augmented tokens; against the definition, "
    "the maps' own rounding: exp(2 s |q|.|dk|) - 1 of sum_j p_j |g1(v_j)|, and sum_j p_j |dv_j|.",
    code="equivalence/modifications/augmented.py",
    on_heads=True,
)
