"""The independent oracle of layers: their definition in plain scalar arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from equivalence._arrays import Array
from equivalence.layers import AttentionLayer, LayerNorm
from equivalence.verify import oracle
from equivalence.verify.oracle import Arithmetic, Number, Vector


def attention_layer(
    number: Arithmetic,
    x: Sequence[Vector],
    layer: AttentionLayer,
    *,
    causal: bool = False,
    tokens: int | None = None,
) -> list[list[Number]]:
    """The states after one layer with an output projection and a residual: the first `tokens`."""
    z = x if layer.norm is None else [normed(number, row, layer.norm) for row in x]
    q, k, v = projected(number, z, layer)
    s = oracle.scale_of(number, layer.scale, len(k[0]))
    assert layer.W_O is not None
    after = []
    for t, state in enumerate(x[:tokens]):
        seen = t + 1 if causal else len(x)
        o = oracle.attention(number, q[t], k[:seen], v[:seen], s)
        increment = times(number, layer.W_O, o)
        after.append([a + b for a, b in zip(state, increment, strict=True)])
    return after


def projected(
    number: Arithmetic, z: Sequence[Vector], layer: AttentionLayer
) -> tuple[list[list[Number]], ...]:
    """Queries, keys and values."""
    return tuple([times(number, W, row) for row in z] for W in (layer.W_Q, layer.W_K, layer.W_V))


def times(number: Arithmetic, W: Array, x: Vector) -> list[Number]:
    """W x, without the terms of entries that are zero: a matrix may only pick coordinates."""
    return [
        number.sum(number.number(float(w)) * a for w, a in zip(row, x, strict=True) if w)
        for row in W
    ]


def normed(number: Arithmetic, x: Vector, norm: LayerNorm) -> list[Number]:
    """gain (x - mean) / sqrt(variance + eps) + offset."""
    c = centred(number, x)
    sigma = number.sqrt(number.dot(c, c) / number.number(len(x)) + number.number(norm.eps))
    gain, offset = number.vectors(np.stack([norm.gain, norm.offset]))
    return [g * a / sigma + b for g, a, b in zip(gain, c, offset, strict=True)]


def centred(number: Arithmetic, x: Vector) -> list[Number]:
    """x less its mean."""
    mean = number.sum(x) / number.number(len(x))
    return [a - mean for a in x]
