"""A penalty on the dual's weights multiplies the values of the query-side tokens by 1 - alpha."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from equivalence import attention
from equivalence._arrays import Array
from equivalence.modifications import (
    regularized_attention,
    regularized_gradient,
    regularized_loss,
)
from equivalence.verify import oracle
from equivalence.verify.budgets import Budget, attention_budget, sum_budget
from equivalence.verify.cases import Case
from equivalence.verify.claim import Claim, Kind, mutant
from equivalence.verify.compare import Comparison, compare
from equivalence.verify.dual_case import DualCase
from equivalence.verify.implementation import Implementation
from equivalence.verify.modified_case import modify

# Neither is a power of two, which would hide a rounding.
_ALPHA, _ETA = 0.3, 0.7


def check(impl: Implementation, case: Case) -> Iterator[Comparison]:
    """The layer by its definition, its dual, the loss that the dual descends, and the limits."""
    ones = np.ones_like(case.V[:, :1])
    # The output of the value 1, in the last column, is the sum of the weights.
    summed = replace(case, V=np.concatenate([case.V, ones], axis=1))
    query_side = np.arange(len(case.K))[:, None] >= case.N
    magnitude = abs(summed.V) * np.where(query_side, 1 + _ALPHA, 1.0)
    x = modify(impl, summed, magnitude)
    layer = _layer(impl, summed, _ALPHA, case.N)
    yield from _by_definition(summed, layer, x.layer)
    yield compare("one step gives the layer", _one_step(impl, summed, x.dual), layer, x.both)

    o = impl.attention(case.Q, case.K, case.V, scale=case.scale)
    own = attention_budget(case.Q, case.K, case.V, case.s, case.u)
    yield compare("alpha = 0 is attention", _layer(impl, case, 0.0, case.N), o, own + own)
    without = _layer(impl, case, _ALPHA, len(case.K))
    yield compare("alpha does nothing where W_0 = 0", without, o, own + own)
    if not case.real:
        yield from _descent(impl, case, x.dual)


def _layer(impl: Implementation, case: Case, alpha: float, N: int) -> Array:
    output: Array = impl.regularized_attention(
        case.Q, case.K, case.V, alpha=alpha, n_demonstrations=N, scale=case.scale
    )
    return output


def _by_definition(case: Case, layer: Array, budget: Budget) -> Iterator[Comparison]:
    number, rows, N = case.arithmetic, case.rows, case.N
    s = oracle.scale_of(number, case.scale, case.Q.shape[-1])
    q, k, v = (number.vectors(a) for a in (case.Q[rows], case.K, case.V))
    kept = number.number(1.0) - number.number(_ALPHA)
    alpha = number.number(_ALPHA)
    want, sums = [], []
    for x in q:
        p = oracle.weights(number, x, k, s)
        counted = p[:N] + [kept * weight for weight in p[N:]]
        want += number.dots([counted], [list(column) for column in zip(*v, strict=True)])
        sums.append([number.number(1.0) - alpha * number.sum(p[N:])])
    yield oracle.against(
        number, "o = sum_i p_i v_i + (1 - alpha) sum_t p_t v_t", layer[rows], want, budget[rows]
    )
    yield oracle.against(
        number, "weights sum to 1 - alpha p_T", layer[rows, -1:], sums, budget[rows, -1:]
    )


def _one_step(impl: Implementation, case: Case, x: DualCase) -> Array:
    N = case.N
    W_0 = impl.initial_weights(case.V[N:], x.Phi[N:], x.D)
    slope = impl.regularized_gradient(W_0, case.V[:N], x.Phi[:N], x.D, _ETA, alpha=_ALPHA)
    prediction: Array = impl.predict(impl.gradient_step(W_0, slope, _ETA), x.phi_q)
    return prediction


def _descent(impl: Implementation, case: Case, x: DualCase) -> Iterator[Comparison]:
    """The loss is what it is said to be, and the gradient is its gradient.

    Both sides are divided by the magnitude of the terms of the loss, which may cancel.
    """
    V, Phi, D = case.V[: case.N], x.Phi[: case.N], float(x.D[0])
    W, E = case.rng("W").standard_normal((2, V.shape[1], Phi.shape[1])).astype(V.dtype)
    largest = abs(W) + abs(E)
    terms = abs(V).T @ abs(Phi) / (_ETA * abs(D)) * largest + _ALPHA / (2 * _ETA) * largest**2
    size = float(terms.sum())
    depth = case.N + V.shape[1] + Phi.shape[1] + W.size
    budget = sum_budget(np.ones((1, 1, 1)), 2 * depth + 8, case.u)
    at_W = impl.regularized_loss(W, V, Phi, D, _ETA, alpha=_ALPHA)
    yield oracle.against(
        case.arithmetic,
        "the loss is L(W) + (alpha/(2 eta)) |W|^2",
        np.reshape(at_W / size, (1, 1)),
        [[_loss(case, Phi, D, W) / case.arithmetic.number(size)]],
        budget,
    )
    slope = impl.regularized_gradient(W, V, Phi, D, _ETA, alpha=_ALPHA)
    ahead = impl.regularized_loss(W + E, V, Phi, D, _ETA, alpha=_ALPHA)
    curvature = _ALPHA / (2 * _ETA) * (E**2).sum()
    yield compare(
        "the loss at W + E is <gradient, E> + (alpha/(2 eta)) |E|^2 above that at W",
        np.reshape((ahead - at_W) / size, (1, 1)),
        np.reshape(((slope * E).sum() + curvature) / size, (1, 1)),
        budget.times(3),
    )


def _loss(case: Case, Phi: Array, D: float, W: Array) -> oracle.Number:
    number = case.arithmetic
    v, phi, w = (number.vectors(a) for a in (case.V[: case.N], Phi, W))
    eta, alpha, two = (number.number(a) for a in (_ETA, _ALPHA, 2.0))
    agreement = number.sum(
        number.dot(a, W_f) for a, W_f in zip(v, number.dots(phi, w) if v else [], strict=True)
    )
    square = number.sum(number.dot(row, row) for row in w)
    return -agreement / (eta * number.number(D)) + alpha / (two * eta) * square


def _shrinks(demonstrations: float, query_side: float) -> Any:
    """A layer that multiplies the values by 1 - alpha times these factors."""

    def layer(
        query: Array, key: Array, value: Array, *, alpha: float, n_demonstrations: int, **o: Any
    ) -> Array:
        later = np.arange(len(value))[:, None] >= n_demonstrations
        kept = 1 - alpha * np.where(later, query_side, demonstrations)
        return attention(query, key, (value * kept).astype(value.dtype), **o)

    return layer


def _renormalizes(
    query: Array, key: Array, value: Array, *, alpha: float, n_demonstrations: int, **o: Any
) -> Array:
    """The kernel of the query-side tokens is multiplied, in D as well."""
    later = np.arange(len(value)) >= n_demonstrations
    lower = np.where(later, np.log(1 - alpha), 0.0).astype(value.dtype)
    return attention(query, key, value, mask=lower, **o)


def _last_token_is_query_side(
    query: Array, key: Array, value: Array, *, n_demonstrations: int, **o: Any
) -> Array:
    return regularized_attention(query, key, value, n_demonstrations=len(value) - 1, **o)


def _float32(query: Array, key: Array, value: Array, **o: Any) -> Array:
    single = (x.astype(np.float32) for x in (query, key, value))
    return regularized_attention(*single, **o).astype(value.dtype)


def _penalty_without_half(
    W: Array, values: Array, features: Array, D: npt.ArrayLike, eta: float, *, alpha: float
) -> Array:
    return regularized_loss(W, values, features, D, eta, alpha=2 * alpha)


def _gradient_without_half(
    W: Array, values: Array, features: Array, D: npt.ArrayLike, eta: float, *, alpha: float
) -> Array:
    return regularized_gradient(W, values, features, D, eta, alpha=2 * alpha)


def _penalty_without_eta(
    W: Array, values: Array, features: Array, D: npt.ArrayLike, eta: float, *, alpha: float
) -> Array:
    return regularized_gradient(W, values, features, D, eta, alpha=alpha * eta)


def _penalty_forgotten(
    W: Array, values: Array, features: Array, D: npt.ArrayLike, eta: float, *, alpha: float
) -> Array:
    return regularized_gradient(W, values, features, D, eta, alpha=0 * alpha)


claim = Claim(
    stem="regularized_attention",
    statement="One step from W_0 on L(W) + (alpha/(2 eta)) |W|_F^2 gives (1 - alpha) W_0 + "
    "(1/D) sum_i v_i phi(k_i)^T, attention with the values of the query-side tokens times "
    "1 - alpha and the same denominators; its weights sum to 1 - alpha p_T.",
    kind=Kind.EXACT,
    needs=("attention", "regularized_attention", "regularized_loss", "regularized_gradient"),
    check=check,
    mutants=(
        mutant(
            "shrinks_demonstrations",
            "the demonstrations are multiplied by 1 - alpha, the query-side tokens are not",
            regularized_attention=_shrinks(1.0, 0.0),
        ),
        mutant(
            "shrinks_everything",
            "the output is multiplied by 1 - alpha, as if the step came before the decay",
            regularized_attention=_shrinks(1.0, 1.0),
        ),
        mutant(
            "grows",
            "the query-side tokens are multiplied by 1 + alpha",
            regularized_attention=_shrinks(0.0, -1.0),
        ),
        mutant(
            "renormalizes",
            "D counts the query-side tokens 1 - alpha times, so that weights sum to 1",
            regularized_attention=_renormalizes,
        ),
        mutant(
            "last_token_is_query_side",
            "the last token is query-side, however many demonstrations there are",
            regularized_attention=_last_token_is_query_side,
        ),
        mutant(
            "penalty_without_half",
            "the loss has alpha/eta |W|^2, without the half",
            regularized_loss=_penalty_without_half,
        ),
        mutant(
            "gradient_without_half",
            "the gradient of the penalty is 2 alpha/eta W",
            regularized_gradient=_gradient_without_half,
        ),
        mutant(
            "penalty_without_eta",
            "the gradient of the penalty is alpha W, so that eta no longer cancels",
            regularized_gradient=_penalty_without_eta,
        ),
        mutant(
            "penalty_forgotten",
            "the gradient is that of the loss without the penalty",
            regularized_gradient=_penalty_forgotten,
        ),
        mutant("float32_layer", "the layer is computed in float32", regularized_attention=_float32),
    ),
    assumptions="As one_gradient_step, and one step: two of half the rate shrink W_0 by "
    "(1 - alpha/2)^2. Where all tokens are demonstrations, W_0 = 0 and alpha does nothing.",
    budget="those of attention and of the dual's step, and gamma_(5n/4+7) p_j, for values of "
    "the magnitude |v_i| and (1 + alpha) |v_t|.",
    code="equivalence/modifications/regularized.py",
    on_heads=True,
)
