"""How an error of the inputs travels through a layer, and what its own rounding adds.

Each function takes what was computed, with a bound on its distance from the exact number, and gives
the same of the next quantity: rounding by the standard model (Higham 2002, ch. 2-3), input errors
by inequalities that hold for errors of any size, not by a first-order expansion.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from equivalence import OneStepRegressor
from equivalence._arrays import Array
from equivalence.layers import AttentionLayer, LayerDual, LayerNorm
from equivalence.verify.budgets import Budget, attention_budget, dual_budget, gamma
from equivalence.verify.cases import Case
from equivalence.verify.dual_case import exponent_error, on_one_scale, scaled

# The bounds are evaluated in float64 themselves.
_ROUND_UP = 1 + 2.0**-20
_BECAUSE = (
    "products err by gamma_m |x||W|, scores moved by e change weights by exp(e) - 1, a moved state "
    "moves a norm by |dx|/sigma (1 + |y|/sqrt(m))"
)


@dataclass(frozen=True)
class Near:
    """An array as computed (in float64), and how far from it the exact one may be, by entry."""

    at: Array
    error: Array

    @classmethod
    def exactly(cls, x: npt.ArrayLike) -> Near:
        """What is given has no error."""
        at = np.asarray(x, np.float64)
        return cls(at, np.zeros_like(at))

    def seen(self, computed: Array) -> Near:
        """The same error, around the array that the code computed."""
        return Near(np.asarray(computed, np.float64), self.error)

    def budget(self, u: float, because: str = "") -> Budget:
        """The error as a budget."""
        return Budget(_ROUND_UP * self.error, because + _BECAUSE, u)


def product(x: Near, W: Array, u: float) -> Near:
    """x W^T for rows x (n, m) and a given W (c, m)."""
    W = np.asarray(W, np.float64)
    rounded = gamma(W.shape[1], u) * ((abs(x.at) + x.error) @ abs(W).T)
    return Near(x.at @ W.T, x.error @ abs(W).T + rounded)


def total(x: Near, y: Near, u: float) -> Near:
    """x + y, rounded once."""
    moved = x.error + y.error
    return Near(x.at + y.at, moved + u * (abs(x.at + y.at) + moved))


def normed(x: Near, norm: LayerNorm, u: float) -> Near:
    """The layer norm of rows x (n, m).

    sigma = |(x - mean, sqrt(m eps))| / sqrt(m) moves by at most |d(x - mean)| / sqrt(m).
    """
    gain, offset = (np.asarray(a, np.float64) for a in (norm.gain, norm.offset))
    m = x.at.shape[-1]
    centred = x.at - x.at.mean(axis=-1, keepdims=True)
    sigma = np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + norm.eps)
    y = centred / sigma
    size = (abs(x.at) + x.error).mean(axis=-1, keepdims=True)
    moved = x.error + x.error.mean(axis=-1, keepdims=True) + gamma(m + 1, u) * size
    moved = moved + u * (abs(centred) + moved)
    off = np.sqrt(np.mean(moved**2, axis=-1, keepdims=True)) + gamma(m + 6, u) * sigma
    quotient = _beside(sigma, off, moved + abs(y) * off) + u * abs(y)
    error = abs(gain) * quotient
    error += gamma(4, u) * (abs(gain) * (abs(y) + quotient) + abs(offset))
    return Near(gain * y + offset, error)


def moved_attention(Q: Near, K: Near, V: Near, scale: float, bias: Array | None = None) -> Array:
    """How far the exact output for the exact arrays may be from that for the computed ones.

    A score that moves by at most e turns p_j into p_j exp(e_j) / sum_i p_i exp(e_i), so the output
    moves by sum_j p_j (exp(e_j) - 1)(v_j - o), and by the mean of the values' own errors, over the
    same sum.
    """
    p = _weights(Q, K, scale, bias)
    distance = abs(V.at - (p @ V.at)[:, None])
    q, k = abs(Q.at), abs(K.at)
    e = abs(scale) * (Q.error @ (k + K.error).T + q @ K.error.T)
    changed = p * np.expm1(e)
    pulled = np.einsum("qn,qnc->qc", changed, distance) + (p + changed) @ V.error
    return _beside(np.ones(()), changed.sum(axis=-1, keepdims=True), pulled)


def attention_layer(x: Near, layer: AttentionLayer, causal: bool, u: float) -> Near:
    """The states after one layer, by attention."""
    z = x if layer.norm is None else normed(x, layer.norm, u)
    Q, K, V = (product(z, W, u) for W in (layer.W_Q, layer.W_K, layer.W_V))
    scale, bias = _scale(layer), _mask(causal, len(x.at))
    # The budget belongs to the arrays that the code computed, which differ from these by rounding.
    own = 2 * attention_budget(Q.at, K.at, V.at, scale, u, bias).bound
    o = Near(_weights(Q, K, scale, bias) @ V.at, own + moved_attention(Q, K, V, scale, bias))
    o = o if layer.W_O is None else product(o, layer.W_O, u)
    return total(x, o, u) if layer.residual else o


def layer_dual(
    x: Near, layer: AttentionLayer, dual: LayerDual, causal: bool, u: float
) -> tuple[Near, Near, Near]:
    """The keys and values that the dual of one layer was trained on, and the states it gives."""
    z = x if layer.norm is None else normed(x, layer.norm, u)
    Q, K, V = (product(z, W, u) for W in (layer.W_Q, layer.W_K, layer.W_V))
    V = V if layer.W_O is None else product(V, layer.W_O, u)
    Q, K, V = Q.seen(dual.queries), K.seen(dual.keys), V.seen(dual.values)
    moved = moved_attention(Q, K, V, _scale(layer), _mask(causal, len(x.at)))
    increment = np.asarray(dual.output - x.at if layer.residual else dual.output)
    o = Near(increment, moved + _own_error(layer, dual))
    return K, V, (total(x, o, u) if layer.residual else o).seen(dual.output)


def regressor_error(model: OneStepRegressor, part: Case) -> Array:
    """What a regressor fitted to the keys and values of a case may err by at its queries."""
    Q, K = scaled(part)
    Phi, phi_q = on_one_scale(model.feature_map_(K)), model.feature_map_(Q).features
    return dual_budget(Phi, phi_q, part.V, exponent_error(part, part.u), part.u).bound


def _own_error(layer: AttentionLayer, dual: LayerDual) -> Array:
    """What each model may err by, given its training pairs and its queries."""
    Q, K, V = dual.queries, dual.keys, dual.values
    if len(dual.models) == 1:
        return regressor_error(dual.models[0], Case("", 0, Q, K, V, 0, layer.scale))
    parts = [
        Case("", 0, Q[t : t + 1], K[: t + 1], V[: t + 1], 0, layer.scale) for t in range(len(Q))
    ]
    return np.concatenate(
        [regressor_error(model, part) for model, part in zip(dual.models, parts, strict=True)]
    )


def _weights(Q: Near, K: Near, scale: float, bias: Array | None) -> Array:
    scores = scale * (Q.at @ K.at.T) + (0.0 if bias is None else bias)
    kappa = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights: Array = kappa / kappa.sum(axis=-1, keepdims=True)
    return weights


def _scale(layer: AttentionLayer) -> float:
    return len(layer.W_Q) ** -0.5 if layer.scale is None else layer.scale


def _mask(causal: bool, n: int) -> Array | None:
    return np.where(np.tri(n, dtype=bool), 0.0, -np.inf) if causal else None


def _beside(whole: Array, lost: Array, error: Array) -> Array:
    """error / (whole - lost), and infinite where nothing is left of the whole."""
    with np.errstate(all="ignore"):
        quotient: Array = np.where(lost < whole, error / (whole - lost), np.inf)
    return quotient
