"""The normal form that decides equality, for matrices and sums of symbolic size.

A scalar becomes one ratio of expanded polynomials whose indeterminates are exponentials of single
terms, finite sums, traces and entries. A sum is split term by term, factors free of the index
leave it, nested sums are merged and the index gets a canonical name. A matrix becomes a linear
combination of words in its letters, with transposes and inverses pushed to the letters.
"""

from functools import cache
from itertools import permutations
from math import lcm

from sympy import (
    Add,
    Dummy,
    Expr,
    Function,
    Identity,
    Indexed,
    Integer,
    Inverse,
    KroneckerDelta,
    MatAdd,
    MatMul,
    MatPow,
    Mul,
    OneMatrix,
    Pow,
    Product,
    Sum,
    Symbol,
    Trace,
    Transpose,
    ZeroMatrix,
    block_collapse,
    cancel,
    cos,
    cosh,
    exp,
    expand,
    sin,
    sinh,
    srepr,
    together,
)
from sympy.matrices.expressions import BlockMatrix, MatrixExpr
from sympy.matrices.expressions.matexpr import MatrixElement

_OPAQUE = (Sum, Product, Trace, Indexed, MatrixElement, Function)
_CANONICAL = "_index"

_Letter = tuple[MatrixExpr, bool, bool]  # base, transposed, inverted
_Words = dict[tuple[_Letter, ...], Expr]


def normal(expr: Expr) -> Expr:
    """Return the normal form of a scalar or matrix expression.

    >>> from sympy import MatrixSymbol, Trace, symbols
    >>> c, m = symbols("c m", integer=True, positive=True)
    >>> W, G = MatrixSymbol("W", c, m), MatrixSymbol("G", c, m)
    >>> normal((W + G).T - W.T)
    G.T
    >>> normal(Trace(W * G.T) - Trace(G.T * W))
    0
    """
    return _matrix(expr) if _is_matrix(expr) else _scalar(expr)


def equal(left: Expr, right: Expr) -> bool:
    """Decide whether two expressions have the same shape and the same normal form.

    >>> from sympy.abc import x, y
    >>> equal((x + y) ** 2, x**2 + 2 * x * y + y**2), equal((x + y) ** 2, x**2 + y**2)
    (True, False)
    """
    if _is_matrix(left) != _is_matrix(right):
        return False
    if not _is_matrix(left):
        return normal(left - right) == 0
    if any(_scalar(a - b) != 0 for a, b in zip(left.shape, right.shape, strict=True)):
        return False
    return is_zero(normal(left - right))


def is_zero(expr: Expr) -> bool:
    """Say whether a normal form is zero, block by block for a block matrix."""
    if isinstance(expr, BlockMatrix):
        return all(is_zero(block) for block in expr.blocks)
    return isinstance(expr, ZeroMatrix) or expr == 0


def _is_matrix(expr: Expr) -> bool:
    return bool(getattr(expr, "is_Matrix", False))


# --- scalars ------------------------------------------------------------------------------------


@cache
def _scalar(expr: Expr) -> Expr:
    return _cancel(_with_normal_atoms(expr))


def _with_normal_atoms(expr: Expr) -> Expr:
    if isinstance(expr, exp):
        return exp(_terms_of(expr.args[0]))
    if expr.is_Add or expr.is_Mul or (expr.is_Pow and expr.exp.is_Integer):
        return expr.func(*(_with_normal_atoms(arg) for arg in expr.args))
    if isinstance(expr, Sum):
        return _sum(expr)
    if isinstance(expr, Trace):
        return _trace(expr)
    if isinstance(expr, cos | sin | cosh | sinh):
        return _with_normal_atoms(expr.rewrite(exp))
    if isinstance(expr, Function | Pow):
        return expr.func(*(normal(arg) for arg in expr.args))
    return expr


def _expand(expr: Expr) -> Expr:
    # the other hints of expand turn exp of a sum into a product
    return expand(expr, power_exp=False, power_base=False, log=False)


def _terms_of(exponent: Expr) -> Expr:
    return _expand(_scalar(exponent))


def _cancel(expr: Expr) -> Expr:
    """Cancel the ratio over the exponentials of single terms, so that exp(x) exp(y) = exp(x+y)."""
    exponentials = sorted(expr.atoms(exp), key=srepr)
    split = {e: [t.as_coeff_Mul() for t in Add.make_args(e.args[0])] for e in exponentials}
    denominators: dict[Expr, int] = {}
    for terms in split.values():
        for coefficient, base in terms:
            denominators[base] = lcm(denominators.get(base, 1), coefficient.q)
    letters = {base: Symbol(f"_e{k}", positive=True) for k, base in enumerate(denominators)}
    polynomial = expr.xreplace(
        {
            e: Mul(*(letters[base] ** (c * denominators[base]) for c, base in terms))
            for e, terms in split.items()
        }
    )
    opaque = sorted(outermost_parts(polynomial), key=srepr)
    names = {atom: Symbol(f"_a{k}") for k, atom in enumerate(opaque)}
    ratio = cancel(together(polynomial.xreplace(names)))
    restored = ratio.xreplace({name: atom for atom, name in names.items()})
    return restored.xreplace(
        {letter: exp(base / denominators[base]) for base, letter in letters.items()}
    )


def outermost_parts(expr: Expr) -> set[Expr]:
    """Return the sums, traces, entries, functions that a scalar is a rational expression of."""
    if isinstance(expr, _OPAQUE):
        return {expr}
    return set().union(*(outermost_parts(arg) for arg in expr.args))


# --- sums ---------------------------------------------------------------------------------------


def _sum(expr: Sum) -> Expr:
    total = expr.function
    for index, lower, upper in expr.limits:
        terms = Add.make_args(_expand(_scalar(total)))
        total = Add(*(_sum_of_term(t, index, _scalar(lower), _scalar(upper)) for t in terms))
    return total


def _sum_of_term(term: Expr, index: Symbol, lower: Expr, upper: Expr) -> Expr:
    inside, outside = [], []
    for factor in _factors(term):
        (inside if index in factor.free_symbols else outside).append(factor)
    if not inside:
        return term * (upper - lower + 1)
    for factor in inside:
        if isinstance(factor, KroneckerDelta):
            # the other index is assumed to run over the same range
            other = next(arg for arg in factor.args if arg != index)
            return _scalar((term / factor).xreplace({index: other}))
    limits = [(Dummy(integer=True), lower, upper)]
    body = Mul(*inside).xreplace({index: limits[0][0]})
    summand, limits = _merge_inner_sums(body, limits)
    return Mul(*outside) * _canonical_sum(summand, limits)


def _factors(term: Expr) -> list[Expr]:
    factors: list[Expr] = []
    for factor in Mul.make_args(term):
        if isinstance(factor, exp):
            factors.extend(exp(part) for part in Add.make_args(_expand(factor.args[0])))
        else:
            factors.append(factor)
    return factors


def _merge_inner_sums(body: Expr, limits: list[tuple]) -> tuple[Expr, list[tuple]]:
    factors = []
    for factor in Mul.make_args(body):
        base, power = factor.as_base_exp()
        if not (isinstance(base, Sum) and power.is_Integer and power > 0):
            factors.append(factor)
            continue
        for _ in range(int(power)):
            fresh = {limit[0]: Dummy(integer=True) for limit in base.limits}
            factors.append(base.function.xreplace(fresh))
            limits = limits + [(fresh[i], lower, upper) for i, lower, upper in base.limits]
    return Mul(*factors), limits


def _canonical_sum(body: Expr, limits: list[tuple]) -> Sum:
    depth = 1 + max((_depth(inner) for inner in body.atoms(Sum)), default=0)
    candidates = []
    for order in permutations(limits):
        names = {
            limit[0]: Symbol(f"{_CANONICAL}{depth + k}", integer=True)
            for k, limit in enumerate(order)
        }
        candidates.append(
            Sum(body.xreplace(names), *((names[i], lower, upper) for i, lower, upper in order))
        )
    return min(candidates, key=srepr)


def _depth(inner: Sum) -> int:
    return max(int(str(limit[0]).removeprefix(_CANONICAL)) for limit in inner.limits)


# --- matrices -----------------------------------------------------------------------------------


def _matrix(expr: MatrixExpr) -> MatrixExpr:
    if expr.has(BlockMatrix):
        expr = block_collapse(expr)
        if isinstance(expr, BlockMatrix):
            rows, columns = expr.blockshape
            return BlockMatrix(
                [[normal(expr.blocks[i, j]) for j in range(columns)] for i in range(rows)]
            )
    terms = [
        coefficient * _spell(word, expr.shape[0])
        for word, coefficient in sorted(_words(expr).items(), key=lambda item: srepr(item[0]))
    ]
    if not terms:
        return ZeroMatrix(*expr.shape)
    return terms[0] if len(terms) == 1 else MatAdd(*terms)


def _trace(expr: Trace) -> Expr:
    total = Integer(0)
    for word, coefficient in _words(expr.arg).items():
        total += coefficient * (Trace(_spell(_cyclic(word), None)) if word else expr.arg.shape[0])
    return total


def _cyclic(word: tuple[_Letter, ...]) -> tuple[_Letter, ...]:
    turns = [word[k:] + word[:k] for k in range(len(word))]
    return min(turns + [_transposed(turn) for turn in turns], key=srepr)


def _words(expr: MatrixExpr) -> _Words:
    if isinstance(expr, ZeroMatrix):
        return {}
    if isinstance(expr, Identity):
        return {(): Integer(1)}
    if isinstance(expr, MatAdd):
        return _collect(pair for arg in expr.args for pair in _words(arg).items())
    if isinstance(expr, MatMul):
        coefficient, factors = expr.as_coeff_matrices()
        product: _Words = {(): coefficient}
        for factor in factors:
            product = _multiply(product, _words(factor))
        return product
    if isinstance(expr, Transpose):
        return {_transposed(word): value for word, value in _words(expr.arg).items()}
    if isinstance(expr, Inverse):
        return _inverse(expr)
    if isinstance(expr, MatPow) and expr.exp.is_Integer and expr.exp > 0:
        return _words(MatMul(*[expr.base] * int(expr.exp)))
    return {((expr, False, False),): Integer(1)}


def _collect(pairs) -> _Words:
    total: _Words = {}
    for word, value in pairs:
        total[word] = total.get(word, Integer(0)) + value
    total = {word: _scalar(value) for word, value in total.items()}
    return {word: value for word, value in total.items() if value != 0}


def _multiply(left: _Words, right: _Words) -> _Words:
    return _collect((_join(a, b), x * y) for a, x in left.items() for b, y in right.items())


def _join(left: tuple[_Letter, ...], right: tuple[_Letter, ...]) -> tuple[_Letter, ...]:
    while left and right and left[-1][:2] == right[0][:2] and left[-1][2] != right[0][2]:
        left, right = left[:-1], right[1:]
    return left + right


def _transposed(word: tuple[_Letter, ...]) -> tuple[_Letter, ...]:
    return tuple(_transposed_letter(*letter) for letter in reversed(word))


def _transposed_letter(base: MatrixExpr, transposed: bool, inverted: bool) -> _Letter:
    if isinstance(base, OneMatrix):
        return (OneMatrix(*reversed(base.shape)), False, inverted)
    return (base, not transposed, inverted)


def _inverse(expr: Inverse) -> _Words:
    words = _words(expr.arg)
    if len(words) != 1 or not all(base.is_square for word in words for base, *_ in word):
        return {((normal(expr.arg), False, True),): Integer(1)}
    ((word, value),) = words.items()
    return {tuple((base, t, not inverted) for base, t, inverted in reversed(word)): 1 / value}


def _spell(word: tuple[_Letter, ...], size: Expr | None) -> MatrixExpr:
    if not word:
        return Identity(size)
    letters = []
    for base, transposed, inverted in word:
        letter = Inverse(base) if inverted else base
        letters.append(Transpose(letter) if transposed else letter)
    return letters[0] if len(letters) == 1 else MatMul(*letters)
