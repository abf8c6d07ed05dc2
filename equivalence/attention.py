"""Softmax attention, written so that it reads like its definition.

With kappa(k, q) = exp(scale q.k) and D(q) = sum_j kappa(k_j, q), the weights are
p_j = kappa(k_j, q) / D(q) and the output is o = sum_j p_j v_j: see
proofs/softmax_is_kernel_smoothing.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from equivalence._arrays import (
    Array,
    as_array,
    as_points,
    as_scale,
    as_tokens,
    broadcast_axes,
    common_dtype,
    compute_dtype,
)

# Scores are evaluated for as many query rows at a time as fit a typical L2 cache.
_BLOCK_BYTES = 1 << 20


def attention(
    query: npt.ArrayLike,
    key: npt.ArrayLike,
    value: npt.ArrayLike,
    *,
    scale: float | None = None,
    mask: npt.ArrayLike | None = None,
    causal: bool = False,
) -> Array:
    """Softmax attention: the mean of the values, weighted by exp(scale q.k).

    Parameters
    ----------
    query, key, value : arrays (..., n_q, d), (..., n_k, d), (..., n_k, c)
        float64, float32, float16 (computed in float32) or integers (computed in float64).
        Leading batch axes broadcast.
    scale : float, optional
        Factor of the scores, 1/sqrt(d) by default.
    mask : array broadcasting to (..., n_q, n_k), optional
        Boolean: True where the query attends to the key. Floating: added to the scores, and
        -inf excludes the key.
    causal : bool
        Query i attends to keys 0..i only (on top of `mask`).

    Returns
    -------
    array (..., n_q, c) of the common dtype of query, key and value.
        A row that attends to no key (all masked, or n_k = 0) is a mean over nothing: NaN.
        A NaN or inf of an attended token gives NaN; of an excluded token it has no effect.
        A row whose largest score overflows is NaN.

    Raises
    ------
    ValueError
        A shape, or a scale, that does not fit; the message names the argument.
    TypeError
        A dtype that is not a real number, or a `causal` that is not a boolean.

    Notes
    -----
    Scores exist for a block of query rows at a time: memory beyond the output is about 1 MiB,
    or one row of scores per batch entry if that is more.
    Source: Vaswani et al. 2017, eq. 1; as a kernel smoother, proofs/softmax_is_kernel_smoothing.py.

    Examples
    --------
    >>> attention([[0.0]], [[1.0], [1.0]], [[2.0], [4.0]])
    array([[3.]])
    """
    problem = Problem.of(query, key, scale, mask, causal)
    V = as_tokens("value", value)
    if V.shape[-2] != problem.key.shape[-2]:
        raise ValueError(
            f"value has shape {V.shape}; expected (..., {problem.key.shape[-2]}, c), "
            f"one row for each key of shape {problem.key.shape}"
        )
    dtype = common_dtype(problem.query, problem.key, V)
    V = V.astype(compute_dtype(dtype), copy=False)
    batch = broadcast_axes("value", problem.batch, V.shape[:-2])
    output = np.full((*batch, problem.query.shape[-2], V.shape[-1]), np.nan, V.dtype)
    finite = bool(np.isfinite(V).all())
    with np.errstate(all="ignore"):
        for rows, scores in problem.blocks(V.dtype):
            attended = None if finite else scores > -np.inf
            D = _exponentials(scores)
            # Dividing first keeps the sum in the range of the values, however large they are.
            weights = np.divide(scores, D, out=scores)
            output[..., rows, :] = mean_of_attended(weights, V, attended)
    return output.astype(dtype, copy=False)


def attention_weights(
    query: npt.ArrayLike,
    key: npt.ArrayLike,
    *,
    scale: float | None = None,
    mask: npt.ArrayLike | None = None,
    causal: bool = False,
) -> Array:
    """The weights p_j = kappa(k_j, q) / D(q) that attention gives to the values.

    Parameters
    ----------
    query, key : arrays (..., n_q, d), (..., n_k, d)
        As in `attention`, and so are `scale`, `mask` and `causal`.

    Returns
    -------
    array (..., n_q, n_k) of the common dtype of query and key.
        Each row is positive where attended and sums to 1; a row that attends to no key, or to one
        with a NaN or inf, is NaN.

    Raises
    ------
    ValueError, TypeError
        As in `attention`.

    Notes
    -----
    The scores of a block of rows are the only temporary: there is no second n_q x n_k array.
    Source: proofs/softmax_is_kernel_smoothing.py.

    Examples
    --------
    >>> attention_weights([[0.0]], [[1.0], [2.0]])
    array([[0.5, 0.5]])
    """
    problem = Problem.of(query, key, scale, mask, causal)
    dtype = common_dtype(problem.query, problem.key)
    shape = (*problem.batch, problem.query.shape[-2], problem.key.shape[-2])
    weights = np.empty(shape, dtype)
    with np.errstate(all="ignore"):
        for rows, scores in problem.blocks(np.dtype(compute_dtype(dtype))):
            D = _exponentials(scores)
            np.divide(scores, D, out=weights[..., rows, :], casting="same_kind")
    return weights


class Problem(NamedTuple):
    """A validated question: which scores, and which of them are attended."""

    query: Array
    key: Array
    scale: float
    mask: npt.NDArray[Any] | None
    causal: bool
    batch: tuple[int, ...]

    @classmethod
    def of(
        cls,
        query: npt.ArrayLike,
        key: npt.ArrayLike,
        scale: float | None,
        mask: npt.ArrayLike | None,
        causal: bool,
    ) -> Problem:
        """Validate the arguments of `attention` that decide the scores."""
        Q = as_points("query", query)
        K = as_tokens("key", key, dim=Q.shape[-1])
        batch = broadcast_axes("key", Q.shape[:-2], K.shape[:-2])
        M = None if mask is None else _as_mask(mask)
        if M is not None:
            shape = (*batch, Q.shape[-2], K.shape[-2])
            _check_mask(M, shape)
            batch = np.broadcast_shapes(M.shape[:-2], batch)
        if not isinstance(causal, bool | np.bool_):
            raise TypeError(f"causal is {causal!r}; expected True or False")
        # An infinite key could have the score -inf, like a key that is excluded.
        K = K if np.isfinite(K).all() else np.where(np.isfinite(K), K, K.dtype.type(np.nan))
        return cls(Q, K, as_scale(scale, Q.shape[-1]), M, bool(causal), batch)

    def blocks(self, dtype: np.dtype[np.floating]) -> Iterator[tuple[slice, Array]]:
        """Yield query rows and their masked scores (..., rows, n_k), a cacheful at a time.

        All in the same memory. There are none without keys.
        """
        K_T = np.swapaxes(self.key.astype(dtype, copy=False), -1, -2)
        n_q, n_k = self.query.shape[-2], self.key.shape[-2]
        row_bytes = max(1, math.prod(self.batch) * n_k * dtype.itemsize)
        step = max(1, _BLOCK_BYTES // row_bytes)
        buffer = np.empty((*self.batch, min(step, n_q), n_k), dtype)
        for start in range(0, n_q if n_k else 0, step):
            rows = slice(start, min(start + step, n_q))
            Q = self.query[..., rows, :].astype(dtype, copy=False) * dtype.type(self.scale)
            scores = buffer[..., : rows.stop - rows.start, :]
            np.matmul(Q, K_T, out=scores)
            self.exclude(scores, rows)
            yield rows, scores

    def exclude(self, scores: Array, rows: slice) -> None:
        """Give the tokens that these query rows do not attend to the score -inf, in place."""
        if self.mask is not None:
            n_q = self.query.shape[-2]
            M = np.broadcast_to(self.mask, (*self.mask.shape[:-2], n_q, self.mask.shape[-1]))
            M = M[..., rows, :]
            if M.dtype == np.bool_:
                np.copyto(scores, -np.inf, where=np.logical_not(M))
            else:
                np.add(scores, M, out=scores, casting="same_kind")
                np.copyto(scores, -np.inf, where=np.isneginf(M))
        if self.causal:
            later = np.arange(self.key.shape[-2]) > np.arange(rows.start, rows.stop)[:, None]
            np.copyto(scores, -np.inf, where=later)


def _exponentials(scores: Array) -> Array:
    """Turn scores into kappa up to one factor a query, in place; return D (..., n_q, 1)."""
    scores -= scores.max(axis=-1, keepdims=True, initial=-np.inf)
    np.exp(scores, out=scores)
    D: Array = scores.sum(axis=-1, keepdims=True)
    return D


def mean_of_attended(p: Array, V: Array, attended: npt.NDArray[np.bool_] | None) -> Array:
    """sum_j p_j v_j, where a non-finite value counts (as NaN) only if it is attended."""
    mean: Array
    if attended is None:
        mean = np.matmul(p, V)
        return mean
    finite = np.isfinite(V)
    poisoned = np.matmul(attended, np.logical_not(finite))
    mean = np.where(poisoned, np.nan, np.matmul(p, np.where(finite, V, 0)))
    return mean


def _as_mask(mask: npt.ArrayLike) -> npt.NDArray[Any]:
    M = np.atleast_2d(as_array("mask", mask))
    if M.dtype.name not in ("bool", "float16", "float32", "float64"):
        raise TypeError(
            f"mask has dtype {M.dtype}; expected booleans (True attends) or float16, float32 or "
            "float64 (added to the scores)"
        )
    return M


def _check_mask(mask: npt.NDArray[Any], shape: tuple[int, ...]) -> None:
    try:
        fits = np.broadcast_shapes(mask.shape, shape)[-2:] == shape[-2:]
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"mask has shape {mask.shape}; expected to broadcast to {shape}")
