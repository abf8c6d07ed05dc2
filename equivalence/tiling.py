"""How attention is cut up: heads, queries and keys that fit a cache together, and threads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import numpy as np

# Scores of so many bytes are worked on at a time, which an L2 cache holds: with fewer, calls cost
# more than the cache gains. They are of so many keys; with a causal mask of fewer, as a block of
# them on the diagonal is computed whole.
_TILE_BYTES = 1 << 20
_KEYS, _CAUSAL_KEYS = 512, 128
# Keys with no more entries than this let BLAS work on several queries at once with its kernels for
# small products.
_KEY_ENTRIES = 1 << 16
# BLAS's kernels work on so many keys at a time.
_MULTIPLE = 64

_Task = TypeVar("_Task")
Index = tuple[int | slice, ...]
"""Some entries of the batch."""


class Tiles(NamedTuple):
    """How many heads, queries and keys are worked on at a time."""

    heads: int
    queries: int
    keys: int

    @classmethod
    @lru_cache(maxsize=64)
    def of(cls, n_q: int, n_k: int, width: int, dtype: np.dtype[Any], *, causal: bool) -> Tiles:
        """The sizes for n_q queries and n_k keys, where no token has more than `width` entries."""
        entries, most_keys = _TILE_BYTES // dtype.itemsize, _CAUSAL_KEYS if causal else _KEYS
        most_keys = min(most_keys, max(256, _KEY_ENTRIES // max(1, width)))
        most_queries = max(1, entries // max(1, min(n_k, most_keys), width))
        queries = max(1, even_parts(n_q, most_queries))
        if not causal:
            most_keys = max(most_keys, entries // queries)
        keys = max(1, even_parts(n_k, most_keys))
        return cls(max(1, entries // (queries * max(keys, width))), queries, keys)


def even_parts(n: int, most: int) -> int:
    """The size of parts of n, of at most `most`: as few as can be, and nearly equal.

    >>> even_parts(600, 512), even_parts(500, 512), even_parts(512, 512)
    (320, 500, 512)
    """
    n_parts = max(1, -(-n // most))
    size = -(-n // n_parts)
    return min(n, most, -(-size // _MULTIPLE) * _MULTIPLE)


def tasks(
    batch: tuple[int, ...], n_q: int, tiles: Tiles, n_threads: int
) -> list[tuple[Index, Sequence[int]]]:
    """Heads, and the first rows of blocks of their queries: enough of them for all threads."""
    groups = list(_groups(batch, tiles.heads))
    starts = range(0, n_q, tiles.queries)
    n_parts = max(1, min(math.ceil(n_threads / max(1, len(groups))), len(starts)))
    return [(group, starts[i::n_parts]) for group in groups for i in range(n_parts)]


def _groups(batch: tuple[int, ...], size: int) -> Iterator[Index]:
    """Indices of consecutive batch entries, up to `size` together."""
    axis = len(batch)
    while axis and math.prod(batch[axis - 1 :]) <= size:
        axis -= 1
    if axis == 0:
        yield ()
        return
    step = max(1, size // math.prod(batch[axis:]))
    for lead in np.ndindex(*batch[: axis - 1]):
        for start in range(0, batch[axis - 1], step):
            yield (*lead, slice(start, start + step))


def in_threads(work: Callable[[_Task], None], each: Sequence[_Task], n_threads: int) -> None:
    """Do the work of each task, which depends on no other; NumPy's loops let threads overlap.

    This thread is one of them, with the memory that it has kept.
    """
    n = min(n_threads, len(each))

    def work_on(first: int) -> None:
        for task in each[first::n]:
            work(task)

    if n == 1:
        work_on(0)
        return
    with ThreadPoolExecutor(n - 1) as pool:
        others = [pool.submit(work_on, first) for first in range(1, n)]
        work_on(0)
    for other in others:
        other.result()
