"""Which scores attention has, and which of them are attended: what its arguments say.

The score of key j for query q is scale q.k_j, plus what an additive mask adds to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from equivalence._arrays import (
    Array,
    as_array,
    as_points,
    as_scale,
    as_tokens,
    broadcast_axes,
)
from equivalence.tiling import Index

# Scores are evaluated for as many query rows at a time as fit a typical L2 cache.
_BLOCK_BYTES = 1 << 20
# Tiles on the diagonal exclude the same pairs again and again: up to this many are remembered.
_KEPT_PAIRS = 1 << 17

_Scalar = TypeVar("_Scalar", bound=np.generic)


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

    @property
    def is_biased(self) -> bool:
        """Whether the mask adds to the scores."""
        return self.mask is not None and self.mask.dtype != np.bool_

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

    def exclude(
        self,
        scores: Array,
        rows: slice,
        keys: slice = slice(None),
        *,
        to: float = -np.inf,
    ) -> None:
        """Set the scores of the pairs that are not attended to -inf, in place; add the mask's.

        With another `to`, for what is computed from the scores, nothing is added.
        """
        n_q, n_k = self.query.shape[-2], self.key.shape[-2]
        if self.mask is not None:
            M = np.broadcast_to(self.mask, (*self.mask.shape[:-2], n_q, n_k))[..., rows, keys]
            if M.dtype == np.bool_:
                np.copyto(scores, to, where=np.logical_not(M))
            else:
                if to == -np.inf:
                    np.add(scores, M, out=scores, casting="same_kind")
                np.copyto(scores, to, where=np.isneginf(M))
        if self.causal:
            (i, end, _), (j, stop, _) = rows.indices(n_q), keys.indices(n_k)
            n = max(0, min(end, stop - 1) - i)  # later queries see all of these keys
            some = scores[..., :n, :]
            if to == 0.0:
                keep_earlier(some, i - j)
            else:
                np.copyto(some, to, where=_later(n, stop - j, i - j))

    def tiles(self, rows: slice, width: int) -> Iterator[tuple[slice, slice]]:
        """Those of these rows that attend to one of the next `width` keys, and these keys."""
        n_k = self.key.shape[-2]
        end = min(n_k, rows.stop) if self.causal else n_k
        for start in range(0, end, width):
            first = max(rows.start, start) if self.causal else rows.start
            yield slice(first, rows.stop), slice(start, min(start + width, end))

    def of_heads(self, index: Index) -> Problem:
        """The part of the problem that these entries of the batch are."""
        if index == ():
            return self
        Q, K = (of_heads(X, self.batch, index) for X in self[:2])
        M = None if self.mask is None else of_heads(self.mask, self.batch, index)
        return Problem(Q, K, self.scale, M, self.causal, Q.shape[:-2])


def of_heads(X: npt.NDArray[_Scalar], batch: tuple[int, ...], index: Index) -> npt.NDArray[_Scalar]:
    """These entries of X (..., n, d), whose leading axes broadcast to those of the batch."""
    # NumPy's own function takes ten times as long where there is nothing to do.
    whole = X if X.shape[:-2] == batch else np.broadcast_to(X, (*batch, *X.shape[-2:]))
    return whole[index]


def keep_earlier(X: Array, ahead: int = 0) -> None:
    """Set X (..., n_q, n_k) to 0, in place, where a key comes after a query.

    The first query is `ahead` of the first key. Bit by bit, which is twice as fast as by a mask,
    and also removes what is not finite.

    >>> X = np.full((2, 3), np.nan)
    >>> keep_earlier(X)
    >>> X
    array([[nan,  0.,  0.],
           [nan, nan,  0.]])
    """
    n_q, n_k = X.shape[-2:]
    of = _bits_of_earlier if n_q * n_k <= _KEPT_PAIRS else _bits_of_earlier.__wrapped__
    bits = of(n_q, n_k, ahead, X.itemsize)
    np.bitwise_and(X.view(bits.dtype), bits, out=X.view(bits.dtype))


@lru_cache(maxsize=4)
def _bits_of_earlier(n_q: int, n_k: int, ahead: int, size: int) -> npt.NDArray[np.integer[Any]]:
    """All bits of a number of that many bytes, where a key does not come after a query."""
    return -np.logical_not(_later(n_q, n_k, ahead)).astype(f"i{size}")


def _later(n_q: int, n_k: int, ahead: int) -> npt.NDArray[np.bool_]:
    """Which of n_k keys come after each of n_q queries, the first of which is `ahead` of them."""
    return np.arange(n_k) > np.arange(ahead, ahead + n_q)[:, None]


def as_values(value: npt.ArrayLike, problem: Problem) -> Array:
    """Return `value` as a (..., n_k, c) array; ValueError unless there is one for each key."""
    V, K = as_tokens("value", value), problem.key
    if V.shape[-2] != K.shape[-2]:
        raise ValueError(
            f"value has shape {V.shape}; expected (..., {K.shape[-2]}, c), one row for each key of "
            f"shape {K.shape}"
        )
    return V


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
