"""The operations by which a step produces its new expression from the one before.

Each operation does two independent things: `apply` carries it out symbolically, `confirm` evaluates
the meaning of the step at a numerical instance without using the symbolic result.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from sympy import (
    Add,
    Dummy,
    Expr,
    Indexed,
    IndexedBase,
    Integer,
    Integral,
    MatAdd,
    MatrixSymbol,
    Product,
    Sum,
    Symbol,
    block_collapse,
    diff,
    exp,
    expand_log,
    expand_mul,
    integrate,
    log,
    solve,
    sympify,
)

from .evaluation import Value, multiply, name_of, read, transpose
from .instances import Comparison, Instance
from .normal_form import normal, outermost_parts


class Operation(ABC):
    """A symbolic operation that knows how to confirm its claim numerically."""

    @abstractmethod
    def __str__(self) -> str:
        """Name the operation for the reader."""

    @abstractmethod
    def apply(self, start: Expr) -> Expr:
        """Carry the operation out on the starting expression."""

    def confirm(self, start: Expr, claim: Expr, at: Instance) -> Comparison:
        """Compare the starting expression with the claim; right where the value is preserved."""
        return Comparison(at.value(start), at.value(claim))


@dataclass(frozen=True)
class Expand(Operation):
    """Multiply out, move constants out of sums, cancel common factors."""

    def __str__(self) -> str:
        return "multiply out, move constants out of the sums and cancel"

    def apply(self, start: Expr) -> Expr:
        return normal(start)


@dataclass(frozen=True)
class MultiplyBlocks(Operation):
    """Multiply, add, transpose and invert block matrices block by block."""

    def __str__(self) -> str:
        return "calculate block by block"

    def apply(self, start: Expr) -> Expr:
        return block_collapse(start)


@dataclass(frozen=True)
class Substitute(Operation):
    """Put expressions in the place of symbols, all at once.

    An entry such as K[j, l] stands for every entry of K, with j and l running in its replacement.
    """

    replacements: Mapping[Expr, Expr | int]

    def __str__(self) -> str:
        return "substitute " + ", ".join(f"{old} = {new}" for old, new in self.replacements.items())

    def apply(self, start: Expr) -> Expr:
        replaced: dict[Expr, Expr] = {}
        for old, new in self.replacements.items():
            if not isinstance(old, Indexed):
                replaced[old] = sympify(new)
                continue
            for entry in start.atoms(Indexed):
                if entry.base == old.base:
                    chosen = dict(zip(old.indices, entry.indices, strict=True))
                    replaced[entry] = sympify(new).xreplace(chosen)
        return start.xreplace(replaced)

    def confirm(self, start: Expr, claim: Expr, at: Instance) -> Comparison:
        """Evaluate the start at the *values* of the replacements."""
        overrides: dict[str, Value] = {}
        for old, new in self.replacements.items():
            overrides |= at.placed_everywhere(old, sympify(new))
        return Comparison(at.value(start, overrides), at.value(claim))


@dataclass(frozen=True)
class Differentiate(Operation):
    """Differentiate by a scalar, an entry a[r], or (a scalar expression) by a matrix.

    Terms are differentiated one by one, because SymPy differentiates a sum of traces to zero.
    """

    variable: Expr

    def __str__(self) -> str:
        return f"differentiate by {self.variable}"

    def apply(self, start: Expr) -> Expr:
        terms = [diff(term, self.variable) for term in Add.make_args(expand_mul(start, deep=False))]
        matrices = [term for term in terms if term.is_Matrix]
        return MatAdd(*matrices).doit() if matrices else Add(*terms)

    def confirm(self, start: Expr, claim: Expr, at: Instance) -> Comparison:
        """Compare with a central difference quotient along a random direction.

        It is exact for a polynomial of degree two in the variable; otherwise its error is a sixth
        of the third derivative times 1e-40, which 30 digits leave room for.
        """
        direction, derivative = Fraction(1), at.value(claim)
        if isinstance(self.variable, MatrixSymbol):
            direction = at.draw(self.variable, salt="direction ")
            if len(direction) != len(derivative) or len(direction[0]) != len(derivative[0]):
                return Comparison(direction, derivative)
            product = multiply(transpose(derivative), direction)
            derivative = sum(product[k][k] for k in range(len(product)))
        step = Fraction(1, 10**20)
        ahead, behind = (
            at.value(start, at.moved(self.variable, sign * step, direction)) for sign in (1, -1)
        )
        return Comparison(_quotient(ahead, behind, 2 * step), derivative, digits=30)


def _quotient(ahead: Value, behind: Value, step: Fraction) -> Value:
    if isinstance(ahead, list):
        pairs = zip(ahead, behind, strict=True)
        return [_quotient(a, b, step) for a, b in pairs]
    return (ahead - behind) * step.denominator / step.numerator


@dataclass(frozen=True)
class Solve(Operation):
    """Solve `start = 0`, which must be linear in the unknown."""

    unknown: Expr

    def __str__(self) -> str:
        return f"set to zero and solve for {self.unknown}"

    def apply(self, start: Expr) -> Expr:
        # the coefficients are hidden, since solve would rewrite exponentials of sums as products
        equation = normal(start)
        plain = {part: Dummy() for part in outermost_parts(equation)}
        (root,) = solve(equation.xreplace(plain), plain.get(self.unknown, self.unknown))
        return root.xreplace({dummy: part for part, dummy in plain.items()})

    def confirm(self, start: Expr, claim: Expr, at: Instance) -> Comparison:
        """Find the root from the values at 0 and 1."""
        at_zero, at_one = (at.value(start, at.placed(self.unknown, Fraction(k))) for k in (0, 1))
        return Comparison(at_zero / (at_zero - at_one), at.value(claim))


@dataclass(frozen=True)
class Integrate(Operation):
    """Evaluate the integrals in the start."""

    def __str__(self) -> str:
        return "integrate"

    def apply(self, start: Expr) -> Expr:
        return start.replace(Integral, lambda body, *limits: integrate(body, *limits)).doit()

    def confirm(self, start: Expr, claim: Expr, at: Instance) -> Comparison:
        """Compare with numerical quadrature."""
        return Comparison(at.value(start), at.value(claim), digits=40)


@dataclass(frozen=True)
class LogarithmOfProduct(Operation):
    """Write a product of factors, one per coordinate, as exp of the sum of their logarithms."""

    def __str__(self) -> str:
        return "take the logarithm of one factor and sum over the coordinates"

    def apply(self, start: Expr) -> Expr:
        return start.replace(Product, _exp_of_sum)


def _exp_of_sum(factor: Expr, *limits) -> Expr:
    return exp(Sum(expand_log(log(factor), force=True), *limits))


@dataclass(frozen=True)
class EvaluateAt(Operation):
    """Work out one explicit instance: numbers for scalars and sizes, lists for indexed bases."""

    numbers: Mapping[Symbol | IndexedBase, Any]

    @property
    def _by_name(self) -> dict[str, Any]:
        # substituting a size changes the identity of the arrays that have it
        return {name_of(symbol): number for symbol, number in self.numbers.items()}

    def __str__(self) -> str:
        given = (f"{symbol} = {number}" for symbol, number in self.numbers.items())
        return "evaluate at " + ", ".join(given)

    def apply(self, start: Expr) -> Expr:
        scalars = {s: number for s, number in self.numbers.items() if isinstance(s, Symbol)}
        return start.subs(scalars).doit().replace(Indexed, self._entry)

    def _entry(self, base: IndexedBase, *indices: Integer) -> Expr:
        entry = self._by_name[name_of(base)]
        for index in indices:
            entry = entry[int(index) - 1]
        return sympify(entry)

    def confirm(self, start: Expr, claim: Expr, at: Instance) -> Comparison:
        """Evaluate at the given numbers, whatever the instance."""
        overrides = {name_of(s): read(number, s) for s, number in self.numbers.items()}
        return Comparison(at.value(start, overrides), at.value(claim))
