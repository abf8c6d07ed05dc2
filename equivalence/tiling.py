"""How attention is cut up: heads, queries and keys that fit a cache together, and threads."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from equivalence._arrays import Array

# So many scores are worked on at a time, 1 MiB of float32, a typical L2 cache, and of so many keys:
# sums over fewer are added up more often.
_ENTRIES, _KEYS = 1 << 18, 512
# The fewer keys at a time, the less is computed above a causal mask's diagonal.
_CAUSAL_ENTRIES, _CAUSAL_KEYS = 1 << 17, 128
# What a thread keeps for its next call. Fresh pages cost more than attention does at n = 512.
_KEPT_BYTES = 1 << 23
_LINE = 64

_Task = TypeVar("_Task")
Index = tuple[int | slice, ...]
"""Some entries of the batch."""


class Tiles(NamedTuple):
    """How many heads, queries and keys are worked on at a time."""

    heads: int
    queries: int
    keys: int

    @classmethod
    def of(cls, n_q: int, n_k: int, width: int, *, causal: bool) -> Tiles:
        """The sizes for n_q queries and n_k keys, where no token has more than `width` entries."""
        entries, most = (_CAUSAL_ENTRIES, _CAUSAL_KEYS) if causal else (_ENTRIES, _KEYS)
        queries = max(1, min(n_q, entries // max(min(n_k, most), width)))
        keys = max(1, min(n_k, most if causal else entries // queries))
        return cls(max(1, entries // (queries * max(keys, width))), queries, keys)


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
    """Do the work of each task, which depends on no other; NumPy's loops let threads overlap."""
    if n_threads == 1 or len(each) == 1:
        for task in each:
            work(task)
        return
    with ThreadPoolExecutor(n_threads) as pool:
        for _ in pool.map(work, each):
            pass


_spare = threading.local()


@contextmanager
def scratch(dtype: np.dtype[Any], *shapes: tuple[int, ...]) -> Iterator[list[Array]]:
    """Arrays of these shapes, each from a cache line's start, in memory that the thread keeps."""
    sizes = [-(-math.prod(shape) * dtype.itemsize // _LINE) * _LINE for shape in shapes]
    memory: npt.NDArray[np.uint8] | None = _spare.__dict__.pop("memory", None)
    if memory is None or memory.size < sum(sizes) + _LINE:
        memory = np.empty(sum(sizes) + _LINE, np.uint8)
    starts = accumulate(sizes, initial=-memory.ctypes.data % _LINE)
    arrays = [
        np.ndarray(shape, dtype, memory.data, at) for shape, at in zip(shapes, starts, strict=False)
    ]
    try:
        yield arrays
    finally:
        if memory.size <= _KEPT_BYTES:
            _spare.memory = memory
