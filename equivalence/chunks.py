"""The sums of linear attention over many tokens, some of them at a time."""

from __future__ import annotations

import numpy as np

from equivalence._arrays import Array, broadcast_axes
from equivalence.blocked import mean_of_attended
from equivalence.memory import operand
from equivalence.products import product
from equivalence.scores import keep_earlier

# Sums over so many tokens at a time are products that can be cut.
_TOKENS = 384


def sum_of_products(Phi: Array, Y: Array) -> Array:
    """sum_j phi_j y_j^T (..., m, c) for features (..., n, m) and (..., n, c)."""
    batch = broadcast_axes("Y", Phi.shape[:-2], Y.shape[:-2])
    part = total = np.empty((*batch, Phi.shape[-1], Y.shape[-1]), np.result_type(Phi, Y))
    for start in range(0, max(1, Phi.shape[-2]), _TOKENS):
        rows = np.s_[..., start : start + _TOKENS, :]
        if start == _TOKENS:
            part = np.empty_like(total)
        product(np.swapaxes(Phi[rows], -1, -2), Y[rows], part)
        if part is not total:
            total += part
    return total


def by_chunks(
    S_T: Array,
    normalizer: Array,
    phi_q: Array,
    Phi: Array,
    Y: Array,
    falls: Array,
    chunk_size: int,
) -> Array:
    """The causal outputs of tokens with targets Y = [v; 1], whose sums are added up in place.

    S_T (..., m, c) and normalizer (..., m, 1) are the sums over what came before; falls
    (..., chunks) multiply them before a chunk.
    """
    n, c = Y.shape[-2], Y.shape[-1] - 1
    batch = np.broadcast_shapes(S_T.shape[:-2], phi_q.shape[:-2])
    output, part = np.empty((*batch, n, c), np.result_type(S_T, phi_q)), np.empty_like(S_T)
    finite = bool(np.isfinite(Y).all())
    triangle = np.tri(min(chunk_size, n), dtype=bool)
    for chunk, start in enumerate(range(0, n, chunk_size)):
        rows = np.s_[..., start : start + chunk_size, :]
        q, f, y = phi_q[rows], Phi[rows], Y[rows]
        attended = triangle[: y.shape[-2], : y.shape[-2]]
        fall = falls[..., chunk, None, None]
        if (fall != 1).any():
            S_T *= fall
            normalizer *= fall
        f_T = np.swapaxes(f, -1, -2)
        kernel = q @ f_T
        keep_earlier(kernel)
        readouts = mean_of_attended(kernel, y, None if finite else attended)
        numerator = product(q, S_T, output[rows])
        numerator += readouts[..., :c]
        numerator /= readouts[..., c:] + q @ normalizer
        S_T += product(f_T, y[..., :c], part)
        normalizer += f_T @ y[..., c:]
    return output


def largest_so_far(before: Array, log_scale: Array, chunk_size: int) -> Array:
    """The largest finite log scale before (...), and up to the end of each chunk of (..., n)."""
    counted = np.where(np.isfinite(log_scale), log_scale, log_scale.dtype.type(-np.inf))
    starts = np.arange(0, log_scale.shape[-1], chunk_size)
    tops = np.maximum.reduceat(counted, starts, axis=-1)
    batch = np.broadcast_shapes(before.shape, tops.shape[:-1])
    both = [np.broadcast_to(x, (*batch, x.shape[-1])) for x in (before[..., None], tops)]
    largest: Array = np.maximum.accumulate(np.concatenate(both, axis=-1), axis=-1)
    return largest


def scaled(V: Array, factor: Array) -> Array:
    """v times each token's factor: (..., n, c) and (..., n) give (..., n, c)."""
    return homogeneous(V, factor)[..., :-1]


def homogeneous(V: Array, factor: Array) -> Array:
    """[v; 1] times each token's factor: (..., n, c) and (..., n) give (..., n, c + 1)."""
    batch = np.broadcast_shapes(V.shape[:-2], factor.shape[:-1])
    Y = operand((*batch, V.shape[-2], V.shape[-1] + 1), np.result_type(V, factor))
    np.multiply(V, factor[..., None], out=Y[..., :-1])
    Y[..., -1] = factor
    return Y
