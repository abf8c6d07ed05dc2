"""Rotary positions turn what the feature map sees; additive ones weigh the loss of the dual."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from equivalence import OneStepRegressor, attention
from equivalence._arrays import Array
from equivalence.features import Features
from equivalence.layers import rotary, rotary_attention
from equivalence.verify import oracle
from equivalence.verify.budgets import Budget, attention_budget, dual_budget, gamma, sum_budget
from equivalence.verify.cases import Case
from equivalence.verify.claim import Claim, Kind, mutant
from equivalence.verify.compare import Comparison, NotRun, compare
from equivalence.verify.dual_case import exponent_error, on_one_scale, scaled
from equivalence.verify.implementation import Implementation

_BASE = 10000.0
# ALiBi: the bias is -slope |i - j|. No power of two, so that float32 does not carry it.
_SLOPE = 0.3


def check(impl: Implementation, case: Case) -> Iterator[Comparison | NotRun]:
    """The turn, the scores of turned pairs, the dual of both, and the dual of a biased query."""
    case = _even(case)
    n_q, n = len(case.Q), len(case.K)
    # The queries are the last tokens, as those of a decoder that has cached its keys.
    at_q, at_k = 3.0 + np.arange(n - n_q, n), 3.0 + np.arange(n)
    yield from _turn(impl, case, at_k)
    turned = replace(case, Q=impl.rotary(case.Q, at_q), K=impl.rotary(case.K, at_k))
    own = attention_budget(turned.Q, turned.K, case.V, case.s, case.u)
    rounded = _rounded_turn(case, turned, at_q, at_k)
    o = _rotary_attention(impl, case, at_q, at_k)
    yield _by_difference(case, o, at_q, at_k, own + rounded)
    shift = float(case.rng("shift").integers(1, 100))
    later = own + own + rounded + _rounded_turn(case, turned, at_q + shift, at_k + shift)
    yield compare(
        "only differences of positions count",
        _rotary_attention(impl, case, at_q + shift, at_k + shift),
        o,
        later,
    )
    yield from _dual(impl, turned, o, own, abs(at_q[:, None] - at_k))


def _even(case: Case) -> Case:
    """The case with one more coordinate if it has an odd number of them: turns need pairs."""
    Q, K = case.Q, case.K
    if Q.shape[1] % 2:
        more = case.rng("even").standard_normal(len(Q) + len(K)).astype(Q.dtype)[:, None]
        Q, K = np.append(Q, more[: len(Q)], axis=1), np.append(K, more[len(Q) :], axis=1)
    return replace(case, Q=Q, K=K)


def _rotary_attention(impl: Implementation, case: Case, at_q: Array, at_k: Array) -> Array:
    o: Array = impl.rotary_attention(
        case.Q, case.K, case.V, query_positions=at_q, key_positions=at_k, scale=case.scale
    )
    return o


def _turn(impl: Implementation, case: Case, at: Array) -> Iterator[Comparison]:
    """Each pair of coordinates turns by p base^(-2l/d), which keeps its length."""
    K, number, rows = case.K, case.arithmetic, case.rows % len(case.K)
    turned = impl.rotary(K, at)
    want = [
        _turned(x, _turns(number, float(p), len(x)))
        for x, p in zip(number.vectors(K[rows]), at[rows], strict=True)
    ]
    error = Budget(
        _turn_error(K, at, case.u),
        "angles err by base^(-2l/d), 4 ulp, and their products; cos and sin by 4 ulp; gamma_2",
        case.u,
    )
    yield oracle.against(number, "pair l turns by p base^(-2l/d)", turned[rows], want, error[rows])
    before, after = (x.astype(np.float64) ** 2 for x in (K, turned))
    lost = 2 * (abs(turned).astype(np.float64) * error.bound).sum(axis=-1)
    budget = Budget(lost, "2 |x| times the error of the turn: " + error.because, case.u)
    sums = sum_budget(before, K.shape[1] + 2, 2.0**-53)
    yield compare("a turn keeps |x|", after.sum(axis=-1), before.sum(axis=-1), budget + sums)


@lru_cache(maxsize=1024)
def _turns(number: oracle.Arithmetic, p: float, d: int) -> list[tuple[Any, Any]]:
    """cos and sin of p base^(-2l/d) for each pair l: all heads ask for the same ones."""
    log_base = number.log(number.number(_BASE))
    shares = [number.number(float(pair)) / number.number(float(d)) for pair in range(0, d, 2)]
    angles = [number.number(p) * number.exp(-share * log_base) for share in shares]
    return [(number.cos(angle), number.sin(angle)) for angle in angles]


def _turned(x: oracle.Vector, turns: list[tuple[Any, Any]]) -> list[oracle.Number]:
    turned = []
    for (cos, sin), a, b in zip(turns, x[::2], x[1::2], strict=True):
        turned += [a * cos - b * sin, a * sin + b * cos]
    return turned


def _turn_error(x: Array, at: Array, u: float) -> Array:
    """|computed - exact| of each coordinate of the turned tokens."""
    d, u_angle = x.shape[1], 2.0**-53
    share = np.arange(0, d, 2) / d
    angle = abs(at)[:, None] * _BASE**-share
    # The exponent is rounded once, the power errs by 4 ulp, the angle is one product more.
    turn = angle * gamma(10, u_angle) + angle * u_angle * share * math.log(_BASE) + 8 * u_angle
    length = abs(x.astype(np.float64)).reshape(len(x), -1, 2).sum(axis=-1)
    return np.repeat(length * (turn + gamma(4, u)), 2, axis=-1)


def _rounded_turn(case: Case, turned: Case, at_q: Array, at_k: Array) -> Budget:
    """What the error of the turns does to the output: each score moves by dq.k + q.dk."""
    dQ, dK = _turn_error(case.Q, at_q, case.u), _turn_error(case.K, at_k, case.u)
    Q, K = (abs(x).astype(np.float64) for x in (turned.Q, turned.K))
    moved = case.s * ((Q + dQ) @ dK.T + dQ @ K.T).max(axis=-1, keepdims=True)
    bound = 2 * np.expm1(2 * moved) * abs(case.V).max(axis=0).astype(np.float64)
    return Budget(bound, "turned queries and keys are rounded, and scores move by it", case.u)


def _by_difference(case: Case, o: Array, at_q: Array, at_k: Array, budget: Budget) -> Comparison:
    """The definition, with scores q . R(p_k - p_q) k: the difference of positions alone."""
    number, rows, d = case.arithmetic, case.rows, case.Q.shape[1]
    s = oracle.scale_of(number, case.scale, d)
    q, k, v = (number.vectors(x) for x in (case.Q[rows], case.K, case.V))
    want = []
    for x, p in zip(q, at_q[rows], strict=True):
        by = [_turns(number, float(r - p), d) for r in at_k]
        scores = number.dots([_turned(y, turns) for y, turns in zip(k, by, strict=True)], [x])
        want.append(oracle.attention(number, [number.number(1.0)], scores, v, s))
    return oracle.against(
        number, "o = sum_j exp(s q.R(p_j - p_q) k_j) v_j / D", o[rows], want, budget[rows]
    )


def _dual(
    impl: Implementation, turned: Case, o: Array, own: Budget, distance: Array
) -> Iterator[Comparison | NotRun]:
    """One gradient step on the turned keys, read at the turned queries, without and with bias."""
    Q, K, V = turned.Q, turned.K, turned.V
    x_q, x_k = scaled(turned)
    phi = impl.GramFeatures().fit(x_k)
    keys, phi_q, exponent = phi(x_k), phi(x_q).features, exponent_error(turned, turned.u)
    model = impl.OneStepRegressor(lambda x: phi(x), scale=turned.scale)
    both = own + dual_budget(on_one_scale(keys), phi_q, V, exponent, turned.u)
    predicted = model.fit(K, V, n_demonstrations=turned.N).predict(Q)
    yield compare("W_1 on turned keys at turned queries is rotary attention", predicted, o, both)
    plain = impl.attention(Q, K, V, scale=turned.scale)
    yield compare("which is attention of the turned", predicted, plain, both)

    yield from _biased(impl, turned, model, keys, exponent, phi_q, distance)


def _biased(
    impl: Implementation,
    case: Case,
    model: Any,
    keys: Features,
    exponent: Array,
    phi_q: Array,
    distance: Array,
) -> Iterator[Comparison | NotRun]:
    """One model a query, whose loss weighs token j by e^b_j: ALiBi's bias, here."""
    Q, K, V, u, rows = case.Q[case.rows], case.K, case.V, case.u, case.rows
    bias = (-_SLOPE * distance[rows]).astype(Q.dtype)
    budget = biased_budget(on_one_scale(keys), phi_q[rows], V, exponent[rows], bias, u)
    model.fit(K, V, n_demonstrations=case.N, bias=bias)
    o = model.predict(Q[:, None])[:, 0]
    if "mask" in impl.keywords:
        attended = impl.attention(Q, K, V, scale=case.scale, mask=bias)
        both = budget + attention_budget(Q, K, V, case.s, u, bias)
        yield compare("the dual of a weighted loss is attention with a bias", o, attended, both)
    else:
        yield NotRun("attention with a bias", "the target takes no `mask`")
    if not case.real:
        number = case.arithmetic
        s = oracle.scale_of(number, case.scale, Q.shape[-1])
        q, k, v, b = (number.vectors(x) for x in (Q, K, V, bias))
        want = [oracle.attention(number, x, k, v, s, y) for x, y in zip(q, b, strict=True)]
        what = "W_1 phi(q) = sum_j e^b_j kappa_j v_j / sum_j e^b_j kappa_j"
        yield oracle.against(number, what, o, want, budget)
        yield _weighted_loss(case, model, keys, bias[0])


def biased_budget(
    Phi: Array, phi_q: Array, V: Array, exponent: Array, bias: Array, u: float
) -> Budget:
    """The dual's budget with the kernel weighted by e^bias (n_q, n), a part of its exponent."""
    largest = bias.max(axis=1, keepdims=True)
    weight = np.exp((bias - largest).astype(np.float64))
    error = exponent + gamma(4, u) * (abs(bias) + abs(largest))
    return dual_budget(Phi, phi_q, V, error, u, weight)


def _weighted_loss(case: Case, model: Any, keys: Features, bias: Array) -> Comparison:
    """The step is along sum_i e^b_i v_i phi(k_i)^T: its product with any direction E."""
    number, N, u = case.arithmetic, case.N, case.u
    V, f, top = case.V[:N], keys.features[:N], float(model.log_scale_[0])
    exponents = [number.vectors(x[:N, None]) for x in (bias, keys.log_scale)]
    step = model.coef_[0] - model.initial_coef_[0]
    E = case.rng("E").standard_normal(step.shape).astype(step.dtype)
    E_f = number.dots(number.vectors(f), number.vectors(E)) if N else []
    terms = [
        number.exp(b + log_scale - number.number(top)) * number.dot(v, x)
        for v, x, (b,), (log_scale,) in zip(number.vectors(V), E_f, *exponents, strict=True)
    ]
    # The sums and, as so many roundings more, what is lost of the exponent b + l - top.
    largest = abs(bias).max() + abs(keys.log_scale).max() + abs(top)
    depth = 2 * (len(bias) + step.size) + 16 + math.ceil(4 * largest)
    size = abs(model.coef_[0]) + abs(model.initial_coef_[0])
    size += (abs(V).T * np.exp(bias[:N] + keys.log_scale[:N] - top)) @ abs(f)
    return oracle.against(
        number,
        "<W_1 - W_0, E> = sum_i e^b_i v_i^T E phi(k_i)",
        (step * E).sum().reshape(1, 1),
        [[number.sum(terms)]],
        sum_budget((size * abs(E)).reshape(1, 1, -1), depth, u),
    )


def _pairs_halves(x: Array, positions: Array) -> Array:
    return rotary(x, positions, interleaved=False)


def _reflects(x: Array, positions: Array) -> Array:
    """[[cos, sin], [sin, -cos]]: orthogonal, and scores depend on differences alone."""
    mirrored = x.copy()
    mirrored[:, 1::2] *= -1
    return rotary(mirrored, positions)


def _turns_backwards(x: Array, positions: Array) -> Array:
    return rotary(x, -positions)


def _wrong_frequencies(x: Array, positions: Array) -> Array:
    """base^(-l/d), where each pair has two coordinates: the slowest turn is its root."""
    return rotary(x, positions, base=_BASE**0.5)


def _leaves_the_last_pair(x: Array, positions: Array) -> Array:
    return np.append(rotary(x, positions)[:, :-2], x[:, -2:], axis=1)


def _float32_angles(x: Array, positions: Array) -> Array:
    return rotary(x.astype(np.float32), positions).astype(x.dtype)


def _turns_keys_only(query: Array, key: Array, value: Array, **options: Any) -> Array:
    K = rotary(key, options["key_positions"])
    return attention(query, K, value, scale=options["scale"])


def _turns_values_too(query: Array, key: Array, value: Array, **options: Any) -> Array:
    V = np.append(value, 0 * value[:, : value.shape[1] % 2], axis=1)
    turned = rotary(V, options["key_positions"])[:, : value.shape[1]]
    return rotary_attention(query, key, turned, **options)


def _off_by_one(query: Array, key: Array, value: Array, **options: Any) -> Array:
    options["query_positions"] = options["query_positions"] + 1
    return rotary_attention(query, key, value, **options)


def _absolute(query: Array, key: Array, value: Array, **options: Any) -> Array:
    """Turns queries backwards: scores depend on the sum of the positions."""
    options["query_positions"] = -options["query_positions"]
    return rotary_attention(query, key, value, **options)


class _WithBias(OneStepRegressor):
    """A regressor that makes something else of the bias."""

    def wrong(self, bias: Array) -> Array:
        """What is taken for the bias."""
        return bias

    def fit(self, keys: npt.ArrayLike, values: npt.ArrayLike, **options: Any) -> _WithBias:
        if options.get("bias") is not None:
            options["bias"] = self.wrong(options["bias"])
        super().fit(keys, values, **options)
        return self


class _BiasSign(_WithBias):
    def wrong(self, bias: Array) -> Array:
        return -bias


class _BiasLinear(_WithBias):
    def wrong(self, bias: Array) -> Array:
        return -np.log1p(abs(bias))


class _BiasScaled(_WithBias):
    """The bias is scaled like the scores."""

    def wrong(self, bias: Array) -> Array:
        return bias / bias.dtype.type(np.sqrt(self.n_features_in_))


class _BiasOfFirstQuery(_WithBias):
    def wrong(self, bias: Array) -> Array:
        return np.broadcast_to(bias[:1], bias.shape)


class _Float32Bias(_WithBias):
    def wrong(self, bias: Array) -> Array:
        return bias.astype(np.float32).astype(bias.dtype)


class _BiasNotInD(OneStepRegressor):
    def fit(self, keys: npt.ArrayLike, values: npt.ArrayLike, **options: Any) -> _BiasNotInD:
        plain = OneStepRegressor(self.feature_map, scale=self.scale).fit(keys, values)
        super().fit(keys, values, **options)
        rescaled = np.exp(plain.log_scale_ - self.log_scale_)
        self.normalizer_ = plain.normalizer_ * rescaled[..., None]
        return self


class _BiasOfDemonstrationsOnly(OneStepRegressor):
    """The loss is weighted, W_0 is not."""

    def fit(self, keys: npt.ArrayLike, values: npt.ArrayLike, **options: Any) -> OneStepRegressor:
        bias, N = options.get("bias"), options["n_demonstrations"]
        if bias is not None:
            options["bias"] = np.where(np.arange(bias.shape[-1]) < N, bias, bias.dtype.type(0))
        super().fit(keys, values, **options)
        return self


claim = Claim(
    stem="positions",
    statement="Rotary: phi sees the turned key and query, and scores depend on differences of "
    "positions alone. An additive bias b_ij multiplies the weight of the pair by e^b_ij: the loss "
    "of query i is -(1/(eta D)) sum_j e^b_ij v_j^T W phi(k_j), D = sum_j e^b_ij kappa_ij.",
    kind=Kind.EXACT,
    # Not OneStepRegressor: somebody else's need not take a bias.
    needs=("attention", "GramFeatures", "rotary", "rotary_attention"),
    check=check,
    mutants=(
        mutant("pairs_halves", "pairs (x_l, x_{l+d/2}), not neighbours", rotary=_pairs_halves),
        mutant("reflects", "a reflection instead of a rotation", rotary=_reflects),
        mutant("turns_backwards", "turns by the negative angle", rotary=_turns_backwards),
        mutant("wrong_frequencies", "frequencies base^(-l/d)", rotary=_wrong_frequencies),
        mutant("leaves_last_pair", "the last pair does not turn", rotary=_leaves_the_last_pair),
        mutant("float32_angles", "turned in float32", rotary=_float32_angles),
        mutant("turns_keys_only", "queries do not turn", rotary_attention=_turns_keys_only),
        mutant("turns_values_too", "values turn as well", rotary_attention=_turns_values_too),
        mutant("off_by_one", "queries are one position too far", rotary_attention=_off_by_one),
        mutant("absolute", "queries turn the other way", rotary_attention=_absolute),
        mutant("bias_sign", "the bias is subtracted", OneStepRegressor=_BiasSign),
        mutant("bias_linear", "weights 1/(1 + |b|), not e^b", OneStepRegressor=_BiasLinear),
        mutant("bias_scaled", "the bias is divided by sqrt(d)", OneStepRegressor=_BiasScaled),
        mutant(
            "bias_of_first_query", "one bias for all queries", OneStepRegressor=_BiasOfFirstQuery
        ),
        mutant("bias_not_in_D", "D is not weighted", OneStepRegressor=_BiasNotInD),
        mutant(
            "bias_of_demonstrations_only",
            "query-side tokens are not weighted",
            OneStepRegressor=_BiasOfDemonstrationsOnly,
        ),
        mutant("float32_bias", "the bias is rounded to float32", OneStepRegressor=_Float32Bias),
    ),
    assumptions="d is even for rotary positions; those of one_gradient_step for the turned keys "
    "and queries; a bias that leaves at least one token.",
    budget="one_gradient_step's at the turned vectors, weighted by e^b, plus expm1(2 e) 2 max |v| "
    "with e = s (|dq|.|k| + |q|.|dk|), dx = (|x_2l| + |x_2l+1|) (gamma_10 |angle| + 8u + gamma_4).",
    code="equivalence/layers/positions.py",
    on_heads=True,
)
