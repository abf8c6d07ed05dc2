"""Derivatives of the oracle's definitions, by the rules of arithmetic alone (forward mode).

A number that moves carries its slope; sums, products, quotients and exponentials pass it on. No
formula for a derivative of attention is used, and the numbers are floats or certified balls.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from equivalence.verify.oracle import Arithmetic, Number, Vector


@dataclass(frozen=True, slots=True)
class Moving:
    """A value and its slope; a number without a slope stands still."""

    value: Number
    slope: Number

    def __float__(self) -> float:
        return float(self.value)

    def __add__(self, other: Number) -> Moving:
        if isinstance(other, Moving):
            return Moving(self.value + other.value, self.slope + other.slope)
        return Moving(self.value + other, self.slope)

    __radd__ = __add__

    def __neg__(self) -> Moving:
        return Moving(-self.value, -self.slope)

    def __sub__(self, other: Number) -> Moving:
        return self.__add__(-other)

    def __rsub__(self, other: Number) -> Moving:
        return (-self).__add__(other)

    def __mul__(self, other: Number) -> Moving:
        if isinstance(other, Moving):
            slope = self.slope * other.value + self.value * other.slope
            return Moving(self.value * other.value, slope)
        return Moving(self.value * other, self.slope * other)

    __rmul__ = __mul__

    def __truediv__(self, other: Number) -> Moving:
        if isinstance(other, Moving):
            quotient = self.value / other.value
            return Moving(quotient, (self.slope - quotient * other.slope) / other.value)
        return Moving(self.value / other, self.slope / other)

    def __rtruediv__(self, other: Number) -> Moving:
        quotient = other / self.value
        return Moving(quotient, -quotient * self.slope / self.value)


def forward(number: Arithmetic) -> Arithmetic:
    """The arithmetic, for numbers some of which move."""

    def exp(x: Number) -> Number:
        if not isinstance(x, Moving):
            return number.exp(x)
        value = number.exp(x.value)
        return Moving(value, value * x.slope)

    def add_up(terms: Iterable[Number]) -> Number:
        values, slopes = [], []
        for x in terms:
            if isinstance(x, Moving):
                values.append(x.value)
                slopes.append(x.slope)
            else:
                values.append(x)
        return Moving(number.sum(values), number.sum(slopes)) if slopes else number.sum(values)

    return replace(number, exp=exp, sum=add_up)


def still(x: Number) -> Number:
    """The value of a number that may move."""
    return x.value if isinstance(x, Moving) else x


def moving(number: Arithmetic, vector: Vector, at: int) -> list[Number]:
    """The vector with its entry `at` moving at speed 1."""
    return [Moving(x, number.number(1.0)) if i == at else x for i, x in enumerate(vector)]


def slopes(number: Arithmetic, outputs: Sequence[Number]) -> list[Number]:
    """How fast each output moves.

    >>> from equivalence.verify.oracle import FLOATS
    >>> x, y = moving(FLOATS, [3.0, 2.0], at=0)
    >>> slopes(FLOATS, [x * x * y, y])
    [12.0, 0.0]
    """
    return [x.slope if isinstance(x, Moving) else number.number(0.0) for x in outputs]
