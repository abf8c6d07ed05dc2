"""The exponentials of scores: which is fast, where, and what a few of the scores tell of it."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from equivalence._arrays import Array
from equivalence.scores import Problem

# So many queries and keys of a block tell what scores to expect.
_SAMPLED_QUERIES, _SAMPLED_KEYS = 8, 64


@cache
def fast_exponential(dtype: np.dtype[Any]) -> tuple[np.ufunc, float]:
    """exp or exp2, and the factor of its argument that makes it exp.

    Where NumPy has a vector loop for exp2 it takes half the time of exp in float32, and 7/8 of it
    in float64; where it has none, exp may have one.
    """
    introspect = getattr(np.lib, "introspect", None)  # NumPy 2.1
    if introspect is None:
        return np.exp, 1.0
    loops = introspect.opt_func_info(func_name="^exp2$", signature=dtype.name)["exp2"]
    vector = any(not loop["current"].startswith("baseline") for loop in loops.values())
    return (np.exp2, 1 / math.log(2)) if vector else (np.exp, 1.0)


def exponential_of(problem: Problem, dtype: np.dtype[Any]) -> tuple[np.ufunc, float]:
    """The exponential for the scores, and the factor that they have to have for it."""
    return (np.exp, 1.0) if problem.is_biased else fast_exponential(dtype)


def kernel_of(problem: Problem, scores: Array, queries: slice, keys: slice) -> Array:
    """Turn scores times that factor into kappa without a shift, in place; 0 if not attended."""
    exponential, _ = exponential_of(problem, scores.dtype)
    if problem.is_biased:
        problem.exclude(scores, queries, keys)
        exponential(scores, out=scores)
        return scores
    # After it: the exponential of -inf takes ten times as long.
    exponential(scores, out=scores)
    problem.exclude(scores, queries, keys, to=0.0)
    return scores


def exponential_of_shifted(problem: Problem, scores: Array) -> np.ufunc:
    """The exponential for such scores minus a shift; multiplies them, in place, by what it needs.

    Far below 0 exp2 takes ten to a hundred times as long, and so does exp, but not in float32.
    """
    exponential, base = exponential_of(problem, scores.dtype)
    if exponential is np.exp2 and scores.dtype == np.float32:
        np.multiply(scores, scores.dtype.type(1 / base), out=scores)
        return np.exp
    return exponential


def sample_of(scores: Array) -> Array:
    """A few of the scores: what to expect of the others, which are seldom twice as large."""
    n_q, n_k = scores.shape[-2:]
    return scores[..., :: -(-n_q // _SAMPLED_QUERIES), :: -(-n_k // _SAMPLED_KEYS)]


@cache
def log_of_largest(dtype: np.dtype[Any]) -> float:
    """The logarithm of the largest number."""
    return math.log(np.finfo(dtype).max)
