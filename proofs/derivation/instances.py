"""Exact rational instances at which every symbolic statement is confirmed, and their comparison."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from random import Random

from sympy import Expr, Indexed, MatrixSymbol, Symbol

from .evaluation import REALS, Unknown, Value, add, name_of, scale, shape_of, unknowns, value

AGREEING_DIGITS = 50


@dataclass(frozen=True)
class Instance:
    """Sizes, and for every symbol a random rational value that depends only on its name."""

    sizes: Mapping[str, int]
    definitions: Mapping[Unknown, Expr] = field(default_factory=dict)

    def __str__(self) -> str:
        return " ".join(f"{name}={size}" for name, size in self.sizes.items())

    def value(self, expr: Expr, overrides: Mapping[str, Value] | None = None) -> Value:
        """Evaluate an expression here, some symbols overridden by other values."""
        values: dict[str, Value] = {**self.sizes, **(overrides or {})}
        for name, unknown in unknowns(expr, self.definitions).items():
            if name not in values:
                values[name] = self.draw(unknown)
        try:
            return value(expr, values, self.definitions)
        except ZeroDivisionError as error:
            raise ValueError(f"{expr} divides by zero at {self}; choose other sizes") from error

    def draw(self, unknown: Unknown, salt: str = "") -> Value:
        """Draw the value of one symbol: rationals below 5 in size, none of them zero."""
        name = name_of(unknown)
        if isinstance(unknown, Symbol) and unknown.is_integer:
            raise ValueError(f"no size was given for {name}; the sizes are: {self}")
        random = Random(f"{salt}{name} {self}")
        shape = [] if isinstance(unknown, Symbol) else [value(s, self.sizes) for s in unknown.shape]
        return _random(random, [int(length) for length in shape], _assumptions(unknown))

    def moved(self, variable: Expr, step: Value, direction: Value = 1) -> dict[str, Value]:
        """Return the override that moves a variable by step * direction."""
        if isinstance(variable, MatrixSymbol):
            here = self.value(variable)
            return {variable.name: add(here, scale(step, direction))}
        return self.placed(variable, self.value(variable) + step * direction)

    def placed(self, variable: Expr, number: Value) -> dict[str, Value]:
        """Return the override that puts a value in the place of a variable or of one entry."""
        if not isinstance(variable, Indexed):
            return {variable.name: number}
        array = self.draw(variable.base)
        entry, *rest = [int(value(index, self.sizes)) - 1 for index in variable.indices]
        target = array
        for index in rest:
            target, entry = target[entry], index
        target[entry] = number
        return {name_of(variable.base): array}

    def placed_everywhere(self, old: Expr, new: Expr) -> dict[str, Value]:
        """Return the override that puts the values of `new` in the place of `old`.

        An entry such as K[j, l] stands for every entry of K.
        """
        if not isinstance(old, Indexed):
            return self.placed(old, self.value(new))
        lengths = [int(value(length, self.sizes)) for length in old.base.shape]
        return {name_of(old.base): self._table(new, list(old.indices), lengths, {})}

    def _table(self, expr: Expr, indices: list, lengths: list[int], chosen: dict) -> Value:
        if not indices:
            return self.value(expr, chosen)
        name, length = name_of(indices[0]), lengths[0]
        return [
            self._table(expr, indices[1:], lengths[1:], {**chosen, name: k})
            for k in range(1, length + 1)
        ]


def _random(random: Random, shape: list[int], assumptions: Mapping[str, bool]) -> Value:
    if shape:
        return [_random(random, shape[1:], assumptions) for _ in range(shape[0])]
    if assumptions.get("integer"):
        return Fraction(random.randint(1, 3))
    number = Fraction(random.randint(1, 9), random.choice((2, 3, 5, 7)))
    return number if assumptions.get("positive") else number * random.choice((-1, 1))


def _assumptions(unknown: Unknown) -> Mapping[str, bool]:
    return {} if isinstance(unknown, MatrixSymbol) else unknown.assumptions0


@dataclass(frozen=True)
class Comparison:
    """Two values that should agree: exactly, or to `digits` decimal digits of the largest entry."""

    left: Value
    right: Value
    digits: int = AGREEING_DIGITS

    @property
    def same_shape(self) -> bool:
        """Whether the two values have one shape."""
        return shape_of(self.left) == shape_of(self.right)

    @property
    def exactly(self) -> bool:
        """Whether the two values are equal, without tolerance."""
        return self.left == self.right

    @property
    def agrees(self) -> bool:
        """Whether the two values agree within the stated digits."""
        if not self.same_shape or self.exactly:
            return self.exactly
        left, right = _entries(self.left), _entries(self.right)
        bound = REALS.mpf(10) ** -self.digits * max(map(abs, map(_real, left + right)))
        pairs = zip(left, right, strict=True)
        return not self.rational and all(abs(_real(a) - _real(b)) <= bound for a, b in pairs)

    @property
    def rational(self) -> bool:
        """Whether both values are exact."""
        return all(isinstance(x, int | Fraction) for x in _entries([self.left, self.right]))

    @property
    def is_zero(self) -> bool:
        """Whether the claimed value is zero throughout."""
        return all(entry == 0 for entry in _entries(self.right))

    @property
    def how(self) -> str:
        """How well the values agree, for the reader."""
        return "exactly" if self.exactly and self.rational else f"to {self.digits} digits"


def _entries(data: Value) -> list:
    return [x for part in data for x in _entries(part)] if isinstance(data, list) else [data]


def _real(number: Value) -> Value:
    if isinstance(number, int | Fraction):
        return REALS.mpf(Fraction(number).numerator) / Fraction(number).denominator
    return number


def show(data: Value) -> str:
    """Write a value for a reader: rationals as p/q, other numbers with ten digits."""
    if isinstance(data, list):
        return "[" + ", ".join(map(show, data)) + "]"
    return str(data) if isinstance(data, int | Fraction) else REALS.nstr(data, 10)
