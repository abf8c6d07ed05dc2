"""The independent oracle: the definitions in plain scalar arithmetic, with no NumPy in them.

One text, two arithmetics: floats summed without error (`math.fsum`), and balls (python-flint's arb,
200 bits), whose radii are proofs. Float inputs are exact rationals, so a ball encloses the exact
result for the given inputs.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from equivalence._arrays import Array
from equivalence.verify.budgets import Budget
from equivalence.verify.compare import Comparison, Disagreement

Number = Any  # float, or flint.arb
Vector = Sequence[Number]


@dataclass(frozen=True)
class Arithmetic:
    """How to make, add and exponentiate numbers, and how far a float is from one of them.

    `dots` are the products x.y of each x in X with each y in Y: in balls one matrix product, which
    is several times faster than as many sums. `kummer` is 1F1(a; b; z), b > 0.
    """

    name: str
    number: Callable[[float], Number]
    exp: Callable[[Number], Number]
    cos: Callable[[Number], Number]
    sqrt: Callable[[Number], Number]
    sum: Callable[[Iterable[Number]], Number]
    dots: Callable[[Sequence[Vector], Sequence[Vector]], list[list[Number]]]
    kummer: Callable[[float, float, Number], Number]
    pi: Number
    distance: Callable[[float, Number], float]
    certified: bool

    def vectors(self, array: Array) -> list[list[Number]]:
        """The rows of a matrix, exactly."""
        return [[self.number(float(x)) for x in row] for row in array]

    def dot(self, x: Vector, y: Vector) -> Number:
        """x.y"""
        return self.sum(a * b for a, b in zip(x, y, strict=True))


def _float_dots(X: Sequence[Vector], Y: Sequence[Vector]) -> list[list[Number]]:
    return [[math.fsum(a * b for a, b in zip(x, y, strict=True)) for y in Y] for x in X]


def _float_kummer(a: float, b: float, z: float) -> float:
    """Its series, summed without error; for z < 0 that of e^z 1F1(b - a; b; -z)."""
    if z < 0:
        return math.exp(z) * _float_kummer(b - a, b, -z)
    terms, k = [1.0], 0
    while terms[-1] and (k < 2 * z + 8 or abs(terms[-1]) > math.ulp(0.0)):
        terms.append(terms[-1] * (a + k) * z / ((b + k) * (k + 1)))
        k += 1
    return math.fsum(terms)


FLOATS = Arithmetic(
    name="fsum",
    number=float,
    exp=math.exp,
    cos=math.cos,
    sqrt=math.sqrt,
    sum=math.fsum,
    dots=_float_dots,
    kummer=_float_kummer,
    pi=math.pi,
    distance=lambda got, want: abs(got - want),
    certified=False,
)


def has_balls() -> bool:
    """Whether python-flint is installed."""
    return importlib.util.find_spec("flint") is not None


def balls() -> Arithmetic:
    """Ball arithmetic at 200 bits; ImportError without python-flint."""
    from flint import arb, arb_mat, ctx

    ctx.prec = 200

    def distance(got: float, want: Number) -> float:
        if not math.isfinite(got):
            return math.nan
        difference = arb(got) - want
        # Rounding the upper end to a float may lower it: take the next one up.
        return 0.0 if difference == 0 else math.nextafter(float(abs(difference).upper()), math.inf)

    def dots(X: Sequence[Vector], Y: Sequence[Vector]) -> list[list[Number]]:
        products = arb_mat([list(x) for x in X]) * arb_mat([list(y) for y in Y]).transpose()
        return [[products[i, j] for j in range(len(Y))] for i in range(len(X))]

    return Arithmetic(
        name="arb",
        number=arb,
        exp=arb.exp,
        cos=arb.cos,
        sqrt=arb.sqrt,
        sum=lambda terms: sum(terms, arb(0)),
        dots=dots,
        kummer=lambda a, b, z: z.hypgeom_1f1(a, b),
        pi=arb.pi(),
        distance=distance,
        certified=True,
    )


def scale_of(number: Arithmetic, scale: float | None, dim: int) -> Number:
    """The score scale: 1/sqrt(d), not its rounding, unless one is given."""
    one = number.number(1.0)
    return one / number.sqrt(number.number(float(dim))) if scale is None else number.number(scale)


def weights(
    number: Arithmetic, q: Vector, K: Sequence[Vector], scale: Number, bias: Vector | None = None
) -> list[Number]:
    """p_j = exp(scale q.k_j + b_j) / sum; the largest score is taken out of all of them."""
    scores = [scale * number.dot(q, k) for k in K]
    if bias is not None:
        scores = [s + b for s, b in zip(scores, bias, strict=True)]
    top = max(scores, key=float)
    kappa = [number.exp(s - top) for s in scores]
    D = number.sum(kappa)
    return [x / D for x in kappa]


def attention(
    number: Arithmetic,
    q: Vector,
    K: Sequence[Vector],
    V: Sequence[Vector],
    scale: Number,
    bias: Vector | None = None,
) -> list[Number]:
    """o = sum_j p_j v_j."""
    p = weights(number, q, K, scale, bias)
    return [number.dot(p, column) for column in zip(*V, strict=True)]


def against(
    number: Arithmetic, what: str, got: Array, want: Sequence[Sequence[Number]], budget: Budget
) -> Comparison:
    """Compare an array with the oracle's numbers; in ball arithmetic the error is certified."""
    a = np.asarray(got)
    middle = np.array([[float(x) for x in row] for row in want], np.float64)
    if a.shape != middle.shape:
        raise Disagreement(f"{what}: shape {a.shape} where the theorem gives {middle.shape}")
    error = np.array(
        [
            [number.distance(float(x), y) for x, y in zip(*rows, strict=True)]
            for rows in zip(a, want, strict=True)
        ]
    ).reshape(a.shape)
    return Comparison(f"{what} [{number.name}]", a, middle, error, budget)
