"""The inputs of the checks: small problems made from a seed, and the real heads."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from equivalence._arrays import Array
from equivalence.data import load_heads
from equivalence.verify.budgets import unit_roundoff
from equivalence.verify.oracle import FLOATS, Arithmetic


@dataclass(frozen=True)
class Case:
    """One problem: queries (n_q, d), keys (n, d), values (n, c); the first N keys demonstrate."""

    label: str
    seed: int
    Q: Array
    K: Array
    V: Array
    N: int
    scale: float | None = None
    arithmetic: Arithmetic = FLOATS
    place: tuple[int, int] | None = None
    """Layer and head of a real one."""

    def __post_init__(self) -> None:
        # A target that wrote into its inputs would change the question to fit its answer.
        for array in (self.Q, self.K, self.V):
            array.setflags(write=False)

    @property
    def real(self) -> bool:
        """Whether this is a real head."""
        return self.place is not None

    @property
    def s(self) -> float:
        """The score scale as a number."""
        return 1 / math.sqrt(self.Q.shape[-1]) if self.scale is None else self.scale

    @property
    def u(self) -> float:
        """The unit roundoff of the inputs' dtype."""
        return unit_roundoff(self.Q.dtype)

    @property
    def rows(self) -> npt.NDArray[np.intp]:
        """The queries that the oracle answers: all of a small problem, one of a real head.

        Which one depends on the seed and on the head.
        """
        n_q = len(self.Q)
        return self.rng(self.label).integers(n_q, size=1) if self.real else np.arange(n_q)

    def rng(self, purpose: str) -> np.random.Generator:
        """A generator of this case's own, one for each purpose."""
        return np.random.default_rng([self.seed, *purpose.encode()])


def make_case(
    seed: int,
    *,
    n_q: int = 3,
    n: int = 5,
    d: int = 3,
    c: int = 2,
    N: int | None = None,
    dtype: str = "float64",
    spread: float = 1.0,
    scale: float | None = None,
    twins: bool = False,
    arithmetic: Arithmetic = FLOATS,
) -> Case:
    """A problem with normal entries; `spread` multiplies keys and queries, `twins` repeats one
    of at least 4 keys exactly and another one nearly.
    """
    rng = np.random.default_rng([seed, n_q, n, d, c])
    Q, K = spread * rng.standard_normal((n_q, d)), spread * rng.standard_normal((n, d))
    V = rng.standard_normal((n, c))
    twins = twins and n >= 4
    if twins:
        K[1] = K[0]
        K[3] = K[2] * (1 + 2.0**-30)
    N = n - 1 if N is None else N
    label = f"n_q={n_q} n={n} d={d} c={c} N={N} dtype={dtype} spread={spread:g}"
    label += "" if scale is None else f" scale={scale:g}"
    label += " twins" if twins else ""
    return Case(
        label, seed, Q.astype(dtype), K.astype(dtype), V.astype(dtype), N, scale, arithmetic
    )


def generated_cases(seed: int, repeats: int, arithmetic: Arithmetic = FLOATS) -> Iterator[Case]:
    """The fixed list of shapes and corners, `repeats` times with new numbers."""
    for repeat in range(repeats):
        s, a = seed + 1000 * repeat, arithmetic
        yield make_case(s, arithmetic=a)
        yield make_case(s, n_q=1, n=1, d=1, c=1, N=1, arithmetic=a)
        yield make_case(s, n_q=2, n=6, d=2, c=4, N=0, arithmetic=a)
        yield make_case(s, n_q=4, n=7, d=5, c=3, N=7, scale=0.7, arithmetic=a)
        yield make_case(s, n_q=3, n=12, d=2, c=2, N=9, twins=True, arithmetic=a)
        yield make_case(s, n_q=4, n=24, d=16, c=5, N=20, spread=2.0, arithmetic=a)
        yield make_case(s, n_q=3, n=6, d=4, c=2, dtype="float32", arithmetic=a)
        yield make_case(s, n_q=3, n=8, d=3, c=3, dtype="float32", twins=True, arithmetic=a)


def head_cases(seed: int, arithmetic: Arithmetic) -> Iterator[Case]:
    """Every head of the shipped sample, layer after layer."""
    layers, per_layer = load_heads().query.shape[:2]
    for layer in range(layers):
        for head in range(per_layer):
            yield head_case(seed, layer, head, arithmetic)


def head_case(seed: int, layer: int, head: int, arithmetic: Arithmetic = FLOATS) -> Case:
    """One head of the shipped sample, in float64; the last token is the query's own."""
    heads = load_heads()
    Q, K, V = (np.asarray(x, np.float64) for x in heads.head(layer, head))
    label = f"layer={layer} head={head} n={len(K)} of {heads.model}"
    return Case(label, seed, Q, K, V, len(K) - 1, arithmetic=arithmetic, place=(layer, head))
