"""The first step on InfoNCE with in-batch negatives predicts centred attention, o - vbar."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from equivalence import attention, dual, losses
from equivalence._arrays import Array
from equivalence.verify import oracle
from equivalence.verify.budgets import (
    Budget,
    attention_budget,
    dual_budget,
    gamma,
    mean_error,
    softmax_errors,
    sum_budget,
)
from equivalence.verify.cases import Case
from equivalence.verify.claim import Claim, Kind, Mutant
from equivalence.verify.compare import Comparison, compare
from equivalence.verify.dual_case import DualCase, exponent_error, see_dual
from equivalence.verify.forward_mode import Moving, forward, slopes
from equivalence.verify.implementation import Implementation

# Any temperature gives the same step; a power of two would hide its rounding.
_TAU = 0.3
# Logits in the thousands, whose exponentials overflow in float32 and in float64.
_COLD = 2.0**-12
# A batch of any size has a loss; a derivative of its definition is dear.
_BATCH = 6


def check(impl: Implementation, case: Case) -> Iterator[Comparison]:
    """The prediction after one step from W = 0, its gradient, and loss and gradient elsewhere."""
    x = see_dual(impl, case)
    yield from _first_step(impl, case, x)
    if not case.real:
        yield from _gradient_at_zero(impl, case, x.Phi)
        yield from _anywhere(impl, case, x.Phi)


def _first_step(impl: Implementation, case: Case, x: DualCase) -> Iterator[Comparison]:
    """With rate tau/D(q) from W = 0: the loss has no D, which divides the read-out instead."""
    Q, K, V, u = case.Q, case.K, case.V, case.u
    W_0 = np.zeros((V.shape[1], x.Phi.shape[1]), V.dtype)
    W_1 = impl.gradient_step(W_0, impl.info_nce_gradient(W_0, V, x.Phi, _TAU), _TAU)
    prediction = impl.predict(W_1, x.phi_q) / x.D[:, None]
    centred = abs(V) + abs(V).mean(axis=0)
    own = dual_budget(x.Phi, x.phi_q, centred, exponent_error(case, u), u).times(
        2, "the mean of the values adds no more roundings than W_1 has: "
    )
    o = impl.attention(Q, K, V, scale=case.scale)
    theirs = attention_budget(Q, K, V, case.s, u) + _mean_budget(V, u)
    yield compare(
        "a step on InfoNCE from 0 predicts o - vbar", prediction, o - V.mean(axis=0), own + theirs
    )
    number, rows = case.arithmetic, case.rows
    s = oracle.scale_of(number, case.scale, Q.shape[-1])
    q, k, v = (number.vectors(a) for a in (Q[rows], K, V))
    vbar = _mean(number, v)
    want = [
        [a - b for a, b in zip(oracle.attention(number, y, k, v, s), vbar, strict=True)] for y in q
    ]
    yield oracle.against(
        number, "the prediction is sum_j p_j v_j - vbar", prediction[rows], want, own[rows]
    )


def _mean_budget(V: Array, u: float) -> Budget:
    """The error of vbar, and of its difference with an o that is a mean of the values too."""
    n = len(V)
    return sum_budget(V.T / n, n + 2, u) + Budget(2 * u * abs(V).max(axis=0), "a difference", u)


def _gradient_at_zero(impl: Implementation, case: Case, Phi: Array) -> Iterator[Comparison]:
    V, u, number = case.V, case.u, case.arithmetic
    n, c = V.shape
    W_0 = np.zeros((c, Phi.shape[1]), V.dtype)
    slope = impl.info_nce_gradient(W_0, V, Phi, _TAU)
    size = (abs(V) + abs(V).mean(axis=0)).T[:, None] * abs(Phi).T / _TAU
    budget = sum_budget(size, 2 * n + 8, u)
    v, phi, (tau,) = (number.vectors(a) for a in (V, Phi, np.array([[_TAU]])))
    vbar = _mean(number, v)
    want = [
        [
            number.sum((b - a[r]) * f[s] for a, f in zip(v, phi, strict=True)) / tau[0]
            for s in range(Phi.shape[1])
        ]
        for r, b in enumerate(vbar)
    ]
    yield oracle.against(
        number,
        "at W = 0 the gradient is -(1/tau) sum_i (v_i - vbar) phi(k_i)^T",
        slope,
        want,
        budget,
    )
    without = impl.gradient(V, Phi, 1.0, _TAU)
    yield compare(
        "the loss without negatives is the part without vbar",
        slope - without,
        np.outer(V.mean(axis=0), Phi.sum(axis=0)) / np.asarray(_TAU, V.dtype),
        budget.times(3, "three sums, and their difference: "),
    )


def _mean(number: oracle.Arithmetic, v: list[list[oracle.Number]]) -> list[oracle.Number]:
    n = number.number(float(len(v)))
    return [number.sum(column) / n for column in zip(*v, strict=True)]


def _anywhere(impl: Implementation, case: Case, Phi: Array) -> Iterator[Comparison]:
    """The loss by its definition, and the slope of that definition along a direction E."""
    batch = case.rng("batch").permutation(len(Phi))[:_BATCH]
    V, Phi, u = case.V[batch], Phi[batch], case.u
    W, E = case.rng("W").standard_normal((2, V.shape[1], Phi.shape[1])).astype(V.dtype)
    number = case.arithmetic
    temperatures = (_TAU, _COLD)
    yield oracle.against(
        number,
        f"L(W) = -sum_i log P_ii at temperatures {temperatures}",
        np.array([[impl.info_nce_loss(W, V, Phi, tau)] for tau in temperatures]),
        [[_by_definition(number, W, V, Phi, tau)] for tau in temperatures],
        Budget(np.array([[loss_error(W, V, Phi, tau, u)] for tau in temperatures]), _BECAUSE, u),
    )
    slope = impl.info_nce_gradient(W, V, Phi, _TAU)
    terms = (abs(V) + abs(V).max(axis=0)).T @ abs(Phi) * abs(E) / _TAU
    size = float(terms.sum()) or 1.0
    off = gradient_error(W, V, Phi, _TAU, u) * abs(E)
    at_W = _by_definition(number, W, V, Phi, _TAU, E)
    yield oracle.against(
        number,
        "<grad L(W), E> is the derivative of L along E",
        np.reshape((slope * E).sum() / size, (1, 1)),
        [[slopes(number, [at_W])[0] / number.number(size)]],
        Budget(off.sum(keepdims=True) / size, _BECAUSE, u),
    )


def _by_definition(
    number: oracle.Arithmetic, W: Array, V: Array, Phi: Array, tau: float, E: Array | None = None
) -> oracle.Number:
    """L(W) = sum_i log sum_j exp(z_ij - z_ii); with E, of W + t E with t moving at t = 0."""
    w, v, phi = (number.vectors(a) for a in (W, V, Phi))
    if E is not None:
        number, w = (
            forward(number),
            [
                [Moving(x, y) for x, y in zip(*rows, strict=True)]
                for rows in zip(w, number.vectors(E), strict=True)
            ],
        )
    one, total = number.number(1.0), []
    for i, f in enumerate(phi):
        output = [number.dot(row, f) for row in w]
        z = [number.dot(output, a) * (one / number.number(tau)) for a in v]
        top = max(z, key=float)
        # In this order nothing is lost of a small loss beside large logits.
        total.append(number.log(number.sum(number.exp(a - top) for a in z)) + (top - z[i]))
    return number.sum(total)


_BECAUSE = (
    "logits v_j^T W phi(k_i)/tau err by gamma_(c+m+4) |v||W||phi|/tau, which the softmax turns "
    "into expm1 of twice that (Higham 2002, sec. 3.1)"
)


def _logits(W: Array, V: Array, Phi: Array, tau: float, u: float) -> tuple[Array, Array]:
    """The logits (n, n) in float64, and how far the computed ones may be."""
    W, V, Phi = (a.astype(np.float64) for a in (W, V, Phi))
    depth = gamma(sum(W.shape) + 4, u)
    return Phi @ W.T @ V.T / tau, depth * (abs(Phi) @ abs(W).T @ abs(V).T / tau)


def loss_error(W: Array, V: Array, Phi: Array, tau: float, u: float) -> float:
    """L_i = log sum_j exp(z_ij - z_ii), where a logit errs against another one only.

    As computed, (top - z_ii) + log sum_j exp(z_ij - top), every part is rounded once.
    """
    Z, error = _logits(W, V, Phi, tau, u)
    n = len(Z)
    gap = error + np.diagonal(error)[:, None]
    np.fill_diagonal(gap, 0)
    p, relative = softmax_errors(Z, gap, u)
    moved = (p * relative).sum(axis=-1) + gamma(n, u)
    apart = Z.max(axis=-1) - np.diagonal(Z)
    each = -np.log1p(-moved) + gamma(n + 8, u) * (apart + np.log(n) + 1)
    return float(each.sum())


def gradient_error(W: Array, V: Array, Phi: Array, tau: float, u: float) -> Array:
    """How far each entry of the gradient may be off, and by what a sum over all of them adds."""
    Z, error = _logits(W, V, Phi, tau, u)
    p, relative = softmax_errors(Z, error, u)
    expected = abs(p @ V.astype(np.float64))
    moved = mean_error(p, relative, V, u) + gamma(len(V) + W.size + 6, u) * (abs(V) + expected)
    off: Array = moved.T @ abs(Phi) / tau
    return off


def _no_negatives(W: Array, V: Array, Phi: Array, tau: float = 1.0) -> Array:
    return dual.gradient(V, Phi, 1.0, tau)


def _others_only(W: Array, V: Array, Phi: Array, tau: float = 1.0) -> Array:
    """The denominator runs over j != i, as in the decoupled loss."""
    attended = ~np.eye(len(V), dtype=bool)
    others = attention(Phi @ W.T / tau, V, V, scale=1.0, mask=attended)
    return dual.gradient(V - np.nan_to_num(others), Phi, 1.0, tau)


def _over_anchors(W: Array, V: Array, Phi: Array, tau: float = 1.0) -> Array:
    """The softmax runs over the tokens i that could have the value j; the same at W = 0."""
    F = Phi @ W.T
    expected = attention(V / tau, F, Phi, scale=1.0)
    slope: Array = V.T @ (expected - Phi) / np.asarray(tau, V.dtype)
    return slope


def _both_ways(W: Array, V: Array, Phi: Array, tau: float = 1.0) -> Array:
    """CLIP's symmetric loss, whose first step from W = 0 is the same."""
    slope: Array = (losses.info_nce_gradient(W, V, Phi, tau) + _over_anchors(W, V, Phi, tau)) / 2
    return slope


def _frozen(W: Array, V: Array, Phi: Array, tau: float = 1.0) -> Array:
    return losses.info_nce_gradient(0 * W, V, Phi, tau)


def _forgets_outer_temperature(W: Array, V: Array, Phi: Array, tau: float = 1.0) -> Array:
    return losses.info_nce_gradient(W / np.asarray(tau, W.dtype), V, Phi)


def _forgets_inner_temperature(W: Array, V: Array, Phi: Array, tau: float = 1.0) -> Array:
    slope: Array = losses.info_nce_gradient(W, V, Phi) / np.asarray(tau, W.dtype)
    return slope


def _mean_over_tokens(W: Array, V: Array, Phi: Array, tau: float = 1.0) -> Array:
    slope: Array = losses.info_nce_gradient(W, V, Phi, tau) / len(V)
    return slope


def _median_negative(W: Array, V: Array, Phi: Array, tau: float = 1.0) -> Array:
    """One negative for all, their median, instead of the softmax's mean."""
    return dual.gradient(V - np.median(V, axis=0), Phi, 1.0, tau)


def _mean_loss(W: Array, V: Array, Phi: Array, tau: float = 1.0) -> Any:
    return losses.info_nce_loss(W, V, Phi, tau) / len(V)


def _naive_loss(W: Array, V: Array, Phi: Array, tau: float = 1.0) -> Any:
    kappa = np.exp(Phi @ W.T @ V.T / np.asarray(tau, V.dtype))
    return -np.log(np.diagonal(kappa) / kappa.sum(axis=-1)).sum()


def _float32(W: Array, V: Array, Phi: Array, tau: float = 1.0) -> Array:
    W_32, V_32, Phi_32 = (a.astype(np.float32) for a in (W, V, Phi))
    return losses.info_nce_gradient(W_32, V_32, Phi_32, tau).astype(W.dtype)


def _gradient(name: str, defect: str, gradient: Any) -> Mutant:
    return Mutant(name, defect, {"info_nce_gradient": gradient})


def _loss(name: str, defect: str, loss: Any) -> Mutant:
    return Mutant(name, defect, {"info_nce_loss": loss})


claim = Claim(
    stem="contrastive_first_step",
    statement="InfoNCE with in-batch negatives, logits v_j^T W phi(k_i)/tau, has the gradient "
    "-(1/tau) sum_i (v_i - vbar) phi(k_i)^T at W = 0; its first step, with rate tau/D, predicts "
    "o - vbar at every temperature: attention centred by the mean of the values.",
    kind=Kind.EXACT,
    needs=(
        "attention",
        "GramFeatures",
        "gradient",
        "gradient_step",
        "info_nce_gradient",
        "info_nce_loss",
        "normalizer",
        "predict",
    ),
    check=check,
    mutants=(
        _gradient("no_negatives", "the negatives, and with them vbar, are missing", _no_negatives),
        _gradient("others_only", "a token is left out of its own denominator", _others_only),
        _gradient("over_anchors", "the softmax runs over the other index", _over_anchors),
        _gradient("both_ways", "both directions are averaged, as in CLIP", _both_ways),
        _gradient("frozen_negatives", "the weights of the negatives stay those at 0", _frozen),
        _gradient(
            "outer_temperature", "1/tau is missing before the sum", _forgets_outer_temperature
        ),
        _gradient(
            "inner_temperature", "1/tau is missing in the logits", _forgets_inner_temperature
        ),
        _gradient("mean_over_tokens", "the gradient is averaged over tokens", _mean_over_tokens),
        _gradient("median_negative", "the median stands for the negatives", _median_negative),
        _loss("mean_loss", "the loss is averaged over tokens", _mean_loss),
        _loss("naive_softmax", "exponentials of logits overflow", _naive_loss),
        _gradient("float32_gradient", "the gradient is computed in float32", _float32),
    ),
    assumptions="phi(x).phi(y) is the kernel that attention uses; every attended token is in the "
    "batch, its own value among the candidates; the step starts from W = 0. Elsewhere the "
    "negatives are an attention over the values, not their mean.",
    budget="twice the dual's budget of one_gradient_step with |v_i| + mean |v| for |v_i|, and "
    "attention's; elsewhere gamma_(c+m) |v||W||phi|/tau through the softmax.",
    code="equivalence/losses.py",
    on_heads=True,
)
