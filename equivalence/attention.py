"""Softmax attention, written so that it reads like its definition.

With kappa(k, q) = exp(scale q.k) and D(q) = sum_j kappa(k_j, q), the weights are
p_j = kappa(k_j, q) / D(q) and the output is o = sum_j p_j v_j: see
proofs/softmax_is_kernel_smoothing.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from equivalence._arrays import (
    Array,
    as_integer,
    broadcast_axes,
    common_dtype,
    compute_dtype,
)
from equivalence.blocked import evaluate, exponentials
from equivalence.scores import Problem, as_values


def attention(
    query: npt.ArrayLike,
    key: npt.ArrayLike,
    value: npt.ArrayLike,
    *,
    scale: float | None = None,
    mask: npt.ArrayLike | None = None,
    causal: bool = False,
    out: Array | None = None,
    n_threads: int = 1,
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
    out : array (..., n_q, c), optional
        Where to write the result, of its shape and dtype; it shares no memory with an argument.
    n_threads : int
        How many threads at most divide the query rows, or the heads, among them: the result has
        the same bits. They pay only if the BLAS of NumPy has one thread (OPENBLAS_NUM_THREADS=1).

    Returns
    -------
    array (..., n_q, c) of the common dtype of query, key and value: `out` if it is given.
        A row that attends to no key (all masked, or n_k = 0) is a mean over nothing: NaN.
        A NaN or inf of an attended token gives NaN; of an excluded token it has no effect.
        A row whose largest score overflows is NaN, and may be from 0.69 times that limit on.

    Raises
    ------
    ValueError
        A shape, or a scale, that does not fit, an `out` that overlaps an argument, or no thread;
        the message names the argument.
    TypeError
        A dtype that is not a real number, a `causal` that is not a boolean, an `out` that is not an
        array of the result's dtype, or an `n_threads` that is not an integer.

    Notes
    -----
    Scores exist for a block of queries and keys at a time: memory beyond the output is about 2 MiB
    a thread, kept for the next call, and a copy of the keys and values of the heads it works on.
    How: equivalence/blocked.py.
    Source: Vaswani et al. 2017, eq. 1; as a kernel smoother, proofs/softmax_is_kernel_smoothing.py.

    Examples
    --------
    >>> attention([[0.0]], [[1.0], [1.0]], [[2.0], [4.0]])
    array([[3.]])
    """
    problem = Problem.of(query, key, scale, mask, causal)
    V = as_values(value, problem)
    dtype = common_dtype(problem.query, problem.key, V)
    batch = broadcast_axes("value", problem.batch, V.shape[:-2])
    shape = (*batch, problem.query.shape[-2], V.shape[-1])
    if out is not None:
        _check_out(out, shape, dtype, {"query": query, "key": key, "value": value, "mask": mask})
    if as_integer("n_threads", n_threads) < 1:
        raise ValueError(f"n_threads is {n_threads}; expected at least 1")
    exact = np.dtype(compute_dtype(dtype))
    output = np.empty(shape, exact) if out is None or out.dtype != exact else out
    evaluate(problem._replace(batch=batch), V, output, n_threads=int(n_threads))
    if out is None:
        return output.astype(dtype, copy=False)
    if output is not out:
        with np.errstate(all="ignore"):
            np.copyto(out, output, casting="same_kind")
    return out


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
            D = exponentials(scores)
            np.divide(scores, D, out=weights[..., rows, :], casting="same_kind")
    return weights


def _check_out(
    out: Array, shape: tuple[int, ...], dtype: np.dtype[Any], arguments: dict[str, Any]
) -> None:
    if not isinstance(out, np.ndarray) or out.dtype != dtype:
        was = f"dtype {out.dtype}" if isinstance(out, np.ndarray) else f"type {type(out).__name__}"
        raise TypeError(f"out has {was}; expected an array of {dtype}")
    if out.shape != shape or not out.flags.writeable:
        was = f"shape {out.shape}" if out.shape != shape else "no right to be written to"
        raise ValueError(f"out has {was}; expected a writeable array of shape {shape}")
    for name, argument in arguments.items():
        if isinstance(argument, np.ndarray) and np.may_share_memory(out, argument):
            raise ValueError(f"out overlaps {name} in memory; expected memory of its own")
