"""Evaluation of symbolic expressions at explicit matrices, independent of SymPy's own rewriting.

Arithmetic is exact over the rationals; where an expression leaves them (exp, pi, an integral) it is
carried out again with `DIGITS` decimal digits. Indices of `Indexed` run from 1, as in the formulas;
those of matrix elements from 0, as in SymPy.
"""

from collections.abc import Mapping
from fractions import Fraction
from functools import singledispatch
from itertools import chain, count
from math import isfinite, prod
from typing import Any

import mpmath
from sympy import (
    Abs,
    Add,
    Basic,
    Expr,
    Function,
    Identity,
    IndexedBase,
    Integer,
    Integral,
    Inverse,
    KroneckerDelta,
    MatAdd,
    MatMul,
    MatPow,
    MatrixSymbol,
    Max,
    Min,
    Mul,
    OneMatrix,
    Pow,
    Product,
    Rational,
    Sum,
    Symbol,
    Trace,
    Transpose,
    ZeroMatrix,
    oo,
)
from sympy.core.numbers import ImaginaryUnit, NumberSymbol
from sympy.matrices.expressions import BlockMatrix
from sympy.matrices.expressions.matexpr import MatrixElement
from sympy.tensor.indexed import Indexed

DIGITS = 60
REALS = mpmath.mp.clone()
REALS.dps = DIGITS

Value = Any  # a number, or nested lists of numbers
Unknown = Symbol | MatrixSymbol | IndexedBase


class NotRational(ArithmeticError):
    """The expression leaves the rational numbers at the given point."""


def value(
    expr: Expr, values: Mapping[str, Value], definitions: Mapping[Unknown, Expr] | None = None
) -> Value:
    """Evaluate an expression at given numbers.

    Args:
        expr: the expression; a matrix gives a list of rows.
        values: for each name a number, a list of rows (matrix) or nested lists (indexed base).
        definitions: symbols that stand for expressions, used where `values` has no such name.

    Raises:
        ValueError: a name is missing, or an index lies outside its array.
        TypeError: the expression has a node that has no numerical meaning here.

    >>> from sympy import symbols
    >>> x, y = symbols("x y")
    >>> value(x / y, {"x": 1, "y": 3})
    Fraction(1, 3)
    """
    named = {name_of(symbol): expression for symbol, expression in (definitions or {}).items()}
    try:
        return _Evaluator(values, named, rational=True).of(expr)
    except NotRational:
        return _Evaluator(values, named, rational=False).of(expr)


def name_of(unknown: Unknown) -> str:
    """Return the name under which a symbol, matrix or indexed base receives its value."""
    return str(unknown.label) if isinstance(unknown, IndexedBase) else unknown.name


def unknowns(expr: Basic, definitions: Mapping[Unknown, Expr] | None = None) -> dict[str, Unknown]:
    """Return what has to be given to evaluate an expression, by name, sizes included.

    >>> from sympy import MatrixSymbol, symbols
    >>> n, c = symbols("n c", integer=True)
    >>> sorted(unknowns(MatrixSymbol("V", n, c)))
    ['V', 'c', 'n']
    """
    found: dict[str, Unknown] = {}
    _collect_unknowns(expr, frozenset(), definitions or {}, found)
    return dict(sorted(found.items()))


def _collect_unknowns(expr, bound, definitions, found) -> None:
    if isinstance(expr, Symbol | MatrixSymbol | IndexedBase):
        if expr in bound or name_of(expr) in found:
            return
        if expr in definitions:
            _collect_unknowns(definitions[expr], frozenset(), definitions, found)
            return
        found[name_of(expr)] = expr
        children = () if isinstance(expr, Symbol) else expr.shape or ()
    elif isinstance(expr, Sum | Product | Integral):
        for limit in expr.limits:
            for edge in limit[1:]:
                _collect_unknowns(edge, bound, definitions, found)
        bound = bound | {limit[0] for limit in expr.limits}
        children = (expr.function,)
    else:
        children = expr.args
    for child in children:
        _collect_unknowns(child, bound, definitions, found)


def exact(number: Any, name: str) -> Fraction:
    """Convert a number to the rational it is, without rounding.

    >>> exact(0.5, "eta"), exact(Rational(1, 3), "eta")
    (Fraction(1, 2), Fraction(1, 3))
    """
    if isinstance(number, Rational):
        return Fraction(int(number.p), int(number.q))
    if isinstance(number, Fraction | int):
        return Fraction(number)
    if not hasattr(number, "as_integer_ratio"):
        raise TypeError(f"{name} holds {number!r}; expected a rational number or a float")
    if not isfinite(number):
        raise ValueError(f"{name} holds {number!r}; expected finite numbers")
    return Fraction(*map(int, number.as_integer_ratio()))


class _Evaluator:
    def __init__(self, values, definitions, rational: bool):
        self.rational = rational
        self.definitions = definitions
        self.values = {name: self.array(data) for name, data in values.items()}
        self.running: dict[str, Value] = {}  # the current values of bound symbols

    def real(self, number):
        """Bring a rational into the arithmetic in use."""
        if not isinstance(number, int | Fraction):
            return number
        number = Fraction(number)
        return number if self.rational else REALS.mpf(number.numerator) / number.denominator

    def leave_rationals(self):
        if self.rational:
            raise NotRational

    def array(self, data):
        return [self.array(row) for row in data] if isinstance(data, list) else self.real(data)

    def lookup(self, unknown) -> Value:
        name = name_of(unknown)
        if name in self.running:
            return self.running[name]
        if name not in self.values:
            if name not in self.definitions:
                raise ValueError(f"no value was given for {name}; given: {sorted(self.values)}")
            outer, self.running = self.running, {}
            self.values[name] = self.of(self.definitions[name])
            self.running = outer
        return self.values[name]

    def size(self, expr) -> int:
        return int(self.of(expr))

    def at(self, index, number, expr) -> Value:
        outer = self.running
        self.running = {**outer, index.name: self.real(number)}
        result = self.of(expr)
        self.running = outer
        return result

    def of(self, expr) -> Value:
        return _Evaluator.rules.dispatch(type(expr))(self, expr)

    @singledispatch
    def rules(self, expr) -> Value:
        raise TypeError(f"cannot evaluate {expr} of type {type(expr).__name__}")

    # --- scalars

    @rules.register
    def _(self, expr: Rational):
        return self.real(Fraction(int(expr.p), int(expr.q)))

    @rules.register
    def _(self, expr: NumberSymbol):
        self.leave_rationals()
        return REALS.mpf(str(expr.evalf(DIGITS + 10)))

    @rules.register
    def _(self, expr: ImaginaryUnit):
        self.leave_rationals()
        return REALS.mpc(0, 1)

    @rules.register(Symbol)
    @rules.register(MatrixSymbol)
    def _(self, expr):
        return self.lookup(expr)

    @rules.register
    def _(self, expr: Add):
        return sum(map(self.of, expr.args), self.real(0))

    @rules.register
    def _(self, expr: Mul):
        return prod(map(self.of, expr.args), start=self.real(1))

    @rules.register
    def _(self, expr: Pow):
        base = self.of(expr.base)
        if expr.exp.is_Integer:
            return base ** int(expr.exp)
        self.leave_rationals()
        return REALS.power(base, self.of(expr.exp))

    @rules.register
    def _(self, expr: Function):
        arguments = [self.of(arg) for arg in expr.args]
        if type(expr).__name__ == "exp" and arguments == [0]:
            return self.real(1)
        self.leave_rationals()
        return getattr(REALS, type(expr).__name__)(*arguments)

    @rules.register
    def _(self, expr: Abs):
        return abs(self.of(expr.args[0]))

    @rules.register
    def _(self, expr: Max):
        return max(map(self.of, expr.args))

    @rules.register
    def _(self, expr: Min):
        return min(map(self.of, expr.args))

    @rules.register
    def _(self, expr: KroneckerDelta):
        return self.real(int(self.of(expr.args[0]) == self.of(expr.args[1])))

    @rules.register
    def _(self, expr: Indexed):
        entry = self.lookup(expr.base)
        for index in map(self.size, expr.indices):
            if not 1 <= index <= len(entry):
                raise ValueError(f"index {index} of {expr} lies outside 1..{len(entry)}")
            entry = entry[index - 1]
        return entry

    @rules.register
    def _(self, expr: MatrixElement):
        row, column = map(self.size, expr.indices)
        return self.of(expr.parent)[row][column]

    # --- sums, products, integrals

    @rules.register
    def _(self, expr: Sum):
        return self.accumulate(expr, lambda a, b: a + b, self.real(0))

    @rules.register
    def _(self, expr: Product):
        return self.accumulate(expr, lambda a, b: a * b, self.real(1))

    def accumulate(self, expr, combine, total):
        *inner, (index, lower, upper) = expr.limits
        body = expr.func(expr.function, *inner) if inner else expr.function
        if (lower, upper) == (-oo, oo):
            return self.two_sided_series(lambda number: self.at(index, number, body))
        for number in range(self.size(lower), self.size(upper) + 1):
            total = combine(total, self.at(index, number, body))
        return total

    def two_sided_series(self, term):
        """Sum outwards from 0 until several terms in a row, assumed to fall fast, vanish."""
        self.leave_rationals()
        total, vanished = term(0), 0
        for number in count(1):
            pair = [term(number), term(-number)]
            total += sum(pair)
            small = max(map(abs, pair)) <= REALS.mpf(10) ** (-DIGITS - 10) * abs(total)
            vanished = vanished + 1 if small else 0
            if vanished == 4:
                return total

    @rules.register
    def _(self, expr: Integral):
        self.leave_rationals()
        ((variable, lower, upper),) = expr.limits
        if (lower, upper) == (-oo, oo):
            return self.whole_line(lambda point: self.at(variable, point, expr.function))
        edges = [self.of(lower), self.of(upper)]
        return REALS.quad(lambda point: self.at(variable, point, expr.function), edges)

    def whole_line(self, integrand):
        """Integrate what falls like a Gaussian by the trapezoidal rule, halving the step."""
        step = REALS.mpf(1) / 3
        coarse = self.equidistant(integrand, step, 0)
        while True:
            fine = (coarse + self.equidistant(integrand, step, step / 2)) / 2
            if abs(fine - coarse) <= REALS.mpf(10) ** (10 - DIGITS) * abs(fine):
                return fine
            step, coarse = step / 2, fine

    def equidistant(self, integrand, step, offset):
        return step * self.two_sided_series(lambda number: integrand(number * step + offset))

    # --- matrices, as lists of rows

    @rules.register
    def _(self, expr: Identity):
        return self.filled(expr, lambda i, j: int(i == j))

    @rules.register
    def _(self, expr: ZeroMatrix):
        return self.filled(expr, lambda i, j: 0)

    @rules.register
    def _(self, expr: OneMatrix):
        return self.filled(expr, lambda i, j: 1)

    def filled(self, expr, entry):
        rows, columns = map(self.size, expr.shape)
        return [[self.real(entry(i, j)) for j in range(columns)] for i in range(rows)]

    @rules.register
    def _(self, expr: MatAdd):
        return add(*map(self.of, expr.args))

    @rules.register
    def _(self, expr: MatMul):
        coefficient, factors = expr.as_coeff_matrices()
        return scale(self.of(coefficient), multiply(*map(self.of, factors)))

    @rules.register
    def _(self, expr: MatPow):
        return multiply(*[self.of(expr.base)] * int(expr.exp))

    @rules.register
    def _(self, expr: Inverse):
        return inverse(self.of(expr.arg))

    @rules.register
    def _(self, expr: Transpose):
        return transpose(self.of(expr.arg))

    @rules.register
    def _(self, expr: Trace):
        return sum((row[k] for k, row in enumerate(self.of(expr.arg))), self.real(0))

    @rules.register
    def _(self, expr: BlockMatrix):
        rows, columns = expr.blockshape
        result = []
        for i in range(rows):
            blocks = [self.of(expr.blocks[i, j]) for j in range(columns)]
            result.extend(list(chain(*parts)) for parts in zip(*blocks, strict=True))
        return result


def add(*matrices: Value) -> Value:
    """Add matrices of one shape."""
    return [
        [sum(entries) for entries in zip(*rows, strict=True)]
        for rows in zip(*matrices, strict=True)
    ]


def scale(factor: Value, matrix: Value) -> Value:
    """Multiply a matrix by a number."""
    return [[factor * entry for entry in row] for row in matrix]


def transpose(matrix: Value) -> Value:
    """Transpose a matrix."""
    return [list(column) for column in zip(*matrix, strict=True)]


def multiply(first: Value, *others: Value) -> Value:
    """Multiply matrices from left to right."""
    for other in others:
        columns = transpose(other)
        first = [
            [sum(a * b for a, b in zip(row, column, strict=True)) for column in columns]
            for row in first
        ]
    return first


def inverse(matrix: Value) -> Value:
    """Invert a matrix by elimination with the largest pivot.

    Raises:
        ValueError: the matrix is singular.
    """
    size = len(matrix)
    rows = [list(row) + [int(i == j) for j in range(size)] for i, row in enumerate(matrix)]
    for k in range(size):
        pivot = max(range(k, size), key=lambda i: abs(rows[i][k]))
        if rows[pivot][k] == 0:
            raise ValueError("the matrix is singular")
        rows[k], rows[pivot] = rows[pivot], rows[k]
        rows[k] = [entry / rows[k][k] for entry in rows[k]]
        for i in range(size):
            if i != k:
                rows[i] = [x - rows[i][k] * y for x, y in zip(rows[i], rows[k], strict=True)]
    return [row[size:] for row in rows]


def infer_sizes(values: Mapping[str, Value], expected: Mapping[str, Unknown]) -> dict[str, int]:
    """Read the symbolic sizes off the given arrays.

    Raises:
        ValueError: an array has the wrong number of axes, or two arrays disagree on a size.
    """
    sizes: dict[str, int] = {}
    for name, unknown in expected.items():
        if name not in values or isinstance(unknown, Symbol):
            continue
        for symbol, length in zip(unknown.shape, shape_of(values[name]), strict=True):
            if isinstance(symbol, Integer):
                agrees = int(symbol) == length
            elif isinstance(symbol, Symbol):
                agrees = sizes.setdefault(symbol.name, length) == length
            else:
                agrees = True
            if not agrees:
                wanted = sizes.get(str(symbol), symbol)
                raise ValueError(f"{name} has size {length} where {symbol} = {wanted} was expected")
    return sizes


def shape_of(data: Value) -> tuple[int, ...]:
    """Return the shape of a number or of nested lists."""
    return (len(data), *(shape_of(data[0]) if data else ())) if isinstance(data, list) else ()


def read(data: Any, unknown: Unknown) -> Value:
    """Convert given data to exact nested lists of the shape that an unknown has.

    A flat list stands for a matrix with one column.

    Raises:
        ValueError: the data are ragged or have the wrong number of axes.
    """
    name = name_of(unknown)
    axes = 0 if isinstance(unknown, Symbol) else len(unknown.shape)
    result = _read(data, name)
    if is_vector(unknown) and len(shape_of(result)) == 1:
        result = [[entry] for entry in result]
    if len(shape_of(result)) != axes:
        raise ValueError(f"{name} has {len(shape_of(result))} axes; expected {axes}")
    return result


def is_vector(expr: Expr) -> bool:
    """Say whether an expression is a matrix with, literally, one column."""
    shape = getattr(expr, "shape", ())
    return len(shape) == 2 and shape[1] == 1 and not isinstance(expr, IndexedBase)


def _read(data: Any, name: str) -> Value:
    if isinstance(data, str) or not hasattr(data, "__len__"):
        return exact(data, name)
    rows = [_read(entry, name) for entry in data]
    if len({shape_of(row) for row in rows}) > 1:
        raise ValueError(f"{name} is ragged; expected rows of one length")
    return rows


def to_floats(data: Value) -> Value:
    """Round exact or high-precision numbers to Python floats (complex where not real)."""
    if isinstance(data, list):
        return [to_floats(entry) for entry in data]
    return complex(data) if isinstance(data, REALS.mpc) else float(data)
