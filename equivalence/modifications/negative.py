"""Attention whose dual has negative samples: each value less a multiple of a mean of others.

The labels v_i - (beta/|N(i)|) sum_{j in N(i)} v_j, in the place of v_i in the dual's loss and in
attention: proofs/negative_attention.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from equivalence._arrays import (
    Array,
    as_array,
    as_count,
    as_demonstrations,
    as_number,
    as_tokens,
    common_dtype,
    compute_dtype,
)
from equivalence.attention import attention
from equivalence.modifications.base import modifiable
from equivalence.scores import Problem

Sets = npt.NDArray[np.bool_]


def negative_attention(
    query: npt.ArrayLike,
    key: npt.ArrayLike,
    value: npt.ArrayLike,
    *,
    beta: float,
    negatives: npt.ArrayLike | None = None,
    n_negatives: int | None = None,
    n_demonstrations: int | None = None,
    scale: float | None = None,
    mask: npt.ArrayLike | None = None,
    causal: bool = False,
) -> Array:
    """Attention with v_i - (beta/|N(i)|) sum_{j in N(i)} v_j for the value of demonstration i.

    Parameters
    ----------
    query, key, value : arrays (..., n_q, d), (..., n, d), (..., n, c)
        As in `attention`, and so are `scale`, `mask` and `causal`.
    beta : float
        How much of the mean of the negative samples is subtracted; 0 gives attention.
    negatives : boolean array broadcasting to (..., N, N), optional
        Row i is N(i), a set of demonstrations; (1, N) gives all the same set. The sets are what
        they say, whatever the mask: a causal layer needs sets of earlier tokens.
    n_negatives : int, optional
        Instead of `negatives`: N(i) is, for every i, the set of the r attended demonstrations with
        the lowest scores, see `lowest_score_tokens`. It depends on the query, and the output jumps
        by (beta/r) p_D (v_a - v_b), with p_D the weight of the demonstrations, where b takes the
        place of a.
    n_demonstrations : int, optional
        The first N tokens are demonstrations, all by default. Query-side tokens keep their values
        and are not in any N(i).

    Returns
    -------
    array (..., n_q, c) of the common dtype of query, key and value.
        A demonstration with an empty N(i) keeps its value. With beta = 1 and all tokens in every
        N(i) this is centred attention, o - vbar. NaN as in `attention`, and where N(i) has one.

    Raises
    ------
    ValueError
        As in `attention`; neither or both of `negatives` and `n_negatives`, sets of another shape,
        a number of tokens that there are not, a `beta` that is not finite.
    TypeError
        As in `attention`; sets that are not boolean, a `beta` that is no number, or a number of
        tokens that is no integer.

    Notes
    -----
    Source: Ren & Liu (arXiv 2310.13220); proofs/negative_attention.py.

    Examples
    --------
    >>> Q, K, V = [[0.0]], [[1.0], [1.0]], [[2.0], [4.0]]
    >>> negative_attention(Q, K, V, beta=1.0, negatives=[[False, True], [False, False]])
    array([[1.]])
    >>> negative_attention(Q, K, V, beta=1.0, n_negatives=2)
    array([[0.]])
    """
    if (negatives is None) == (n_negatives is None):
        which = "neither" if negatives is None else "both"
        raise ValueError(f"{which} of negatives and n_negatives given; expected exactly one")
    V, dtype = modifiable(query, key, value)
    N = as_demonstrations(n_demonstrations, V.shape[-2], "values")
    options: dict[str, Any] = {"scale": scale, "mask": mask, "causal": causal}
    if negatives is not None:
        labels = negative_labels(V[..., :N, :], beta=beta, negatives=negatives)
        own = np.broadcast_to(V[..., N:, :], (*labels.shape[:-2], *V[..., N:, :].shape[-2:]))
        output = attention(query, key, np.concatenate([labels, own], axis=-2), **options)
        return output.astype(dtype, copy=False)
    assert n_negatives is not None
    b = as_number("beta", beta)
    o = attention(query, key, V, **options)
    lowest = lowest_score_tokens(query, key, n_negatives, n_demonstrations=N, **options)
    demonstrates = (np.arange(V.shape[-2]) < N).astype(V.dtype)
    p_D = attention(query, key, demonstrates[:, None], **options)
    with np.errstate(all="ignore"):
        return (o - V.dtype.type(b) * p_D * _means(lowest, V)).astype(dtype, copy=False)


def negative_labels(values: npt.ArrayLike, *, beta: float, negatives: npt.ArrayLike) -> Array:
    """The labels v_i - (beta/|N(i)|) sum_{j in N(i)} v_j of demonstrations: (..., N, c).

    They turn the dual's loss into the one with negative samples, L(W) =
    -(1/(eta D)) sum_i (v_i - (beta/|N(i)|) sum_{j in N(i)} v_j)^T W phi(k_i): it is `dual.loss` of
    these labels, and one step on it, with `dual.gradient` of these labels, gives
    `negative_attention`.

    Parameters
    ----------
    values : array (..., N, c)
        float16 is computed, and returned, in float32, integers in float64, as in `dual`.
    beta : float
    negatives : boolean array broadcasting to (..., N, N)
        Row i is N(i). An empty one leaves v_i as it is.

    Raises
    ------
    ValueError
        Sets of another shape, a `beta` that is not finite.
    TypeError
        Sets that are not boolean, a `beta` that is no number.

    Notes
    -----
    Source: Ren & Liu (arXiv 2310.13220); proofs/negative_attention.py.

    Examples
    --------
    >>> negative_labels([[2.0], [4.0]], beta=0.5, negatives=[[False, True], [True, True]])
    array([[0. ],
           [2.5]])
    """
    V = as_tokens("values", values)
    V = V.astype(compute_dtype(V.dtype), copy=False)
    sets = _as_sets(negatives, V.shape)
    b = as_number("beta", beta)
    with np.errstate(all="ignore"):
        return V - V.dtype.type(b) * _means(sets, V)


def lowest_score_tokens(
    query: npt.ArrayLike,
    key: npt.ArrayLike,
    n_negatives: int,
    *,
    n_demonstrations: int | None = None,
    scale: float | None = None,
    mask: npt.ArrayLike | None = None,
    causal: bool = False,
) -> Sets:
    """Which r attended demonstrations have the lowest scores: N(q) of `negative_attention`.

    Of equal scores the earlier token counts as the lower, and equal keys have equal scores to the
    last bit. Where fewer than r demonstrations are attended, all of them are in the set.

    Parameters
    ----------
    query, key : arrays (..., n_q, d), (..., n, d)
        As in `attention`, and so are `scale`, `mask` and `causal`.
    n_negatives : int
        r, at most the number of demonstrations.
    n_demonstrations : int, optional
        The first tokens are demonstrations, all by default.

    Returns
    -------
    boolean array (..., n_q, n), True where the token is in N(q).

    Raises
    ------
    ValueError
        As in `attention`; a number of tokens that there are not.
    TypeError
        As in `attention`; a number of tokens that is no integer.

    Notes
    -----
    All scores exist at once, unlike in `attention`.

    Examples
    --------
    >>> lowest_score_tokens([[1.0], [-1.0]], [[0.0], [1.0], [2.0]], 1)
    array([[ True, False, False],
           [False, False,  True]])
    """
    problem = Problem.of(query, key, scale, mask, causal)
    n = problem.key.shape[-2]
    N = as_demonstrations(n_demonstrations, n, "keys")
    r = as_count("n_negatives", n_negatives, N, "demonstrations")
    scores = _scores(problem)
    attended: Sets = scores > -np.inf
    attended[..., N:] = False
    rank = np.where(attended, scores, np.inf)
    lowest = np.zeros_like(attended)
    order = np.argsort(rank, axis=-1, kind="stable")
    np.put_along_axis(lowest, order[..., :r], True, axis=-1)
    return lowest & attended


def _scores(problem: Problem) -> Array:
    """The scores (..., n_q, n), summed one coordinate after another; -inf where not attended.

    A matrix product sums in another order at the edge of a block, so that the scores of equal keys
    differ in their last bits, and a tie is none.
    """
    Q, K = problem.query, problem.key
    dtype = np.dtype(compute_dtype(common_dtype(Q, K)))
    Q, K = Q.astype(dtype) * dtype.type(problem.scale), K.astype(dtype, copy=False)
    scores = np.zeros((*problem.batch, Q.shape[-2], K.shape[-2]), dtype)
    with np.errstate(all="ignore"):
        for i in range(Q.shape[-1]):
            scores += Q[..., :, None, i] * K[..., None, :, i]
        problem.exclude(scores, slice(0, Q.shape[-2]))
    return scores


def _means(sets: Sets, V: Array) -> Array:
    """The mean of the values in each set, 0 for an empty one: attention at equal scores."""
    query, key = np.zeros((sets.shape[-2], 1), V.dtype), np.zeros((sets.shape[-1], 1), V.dtype)
    means = attention(query, key, V, mask=sets)
    return np.where(sets.any(axis=-1, keepdims=True), means, V.dtype.type(0))


def _as_sets(negatives: npt.ArrayLike, shape: tuple[int, ...]) -> Sets:
    """Sets (..., N, N) of the demonstrations whose values have that shape (..., N, c)."""
    sets = np.atleast_2d(as_array("negatives", negatives))
    if sets.dtype != np.bool_:
        raise TypeError(
            f"negatives has dtype {sets.dtype}; expected booleans, True in row i for N(i)"
        )
    N = shape[-2]
    try:
        batch = np.broadcast_shapes(sets.shape[:-2], shape[:-2])
        return np.broadcast_to(sets, (*batch, N, N))
    except ValueError:
        raise ValueError(
            f"negatives has shape {sets.shape}; expected to broadcast to {(*shape[:-2], N, N)}, "
            f"a set of the {N} demonstrations for each of them"
        ) from None
