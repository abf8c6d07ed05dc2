"""Taylor features: monomials reproduce the series of exp(x.y), and the remainder has a bound.

Expressions, with t = x.y in d coordinates and the degree n:

- `tuples`, the product of two tensor powers of order 3 (x (d), y (d)), and `tuples_value` = (x.y)^3
- `monomials` of degree k in one coordinate more, by the exponent of the new one (t, b, k), and
  `monomials_value` = (t + b)^k / k!
- `growth`, of k!/alpha! from a monomial to one that has a coordinate `run` times (k, run)
- `dimension`, the number of monomials up to degree n (d, n)
- `remainder`, the integral form of exp(t) - sum_{k<=n} t^k/k! (t, n)
- `bound`, of the size of the remainder (size = |t|, n, largest = max(1, e^t))
"""

from dataclasses import dataclass

from sympy import (
    Expr,
    IndexedBase,
    Integer,
    Integral,
    Mul,
    Pow,
    Sum,
    binomial,
    combsimp,
    exp,
    factorial,
    symbols,
)

from .derivation import (
    Derivation,
    Differentiate,
    EvaluateAt,
    Expand,
    Integrate,
    Operation,
    Proof,
    Substitute,
)

d, n, k, run = symbols("d n k run", integer=True, positive=True)
i, j, l, a = symbols("i j l a", integer=True)  # noqa: E741
t, b = symbols("t b", real=True, nonzero=True)
v, size, largest, W = symbols("v size largest W", positive=True)

x, y = IndexedBase("x", shape=(d,), real=True), IndexedBase("y", shape=(d,), real=True)

tuples = Sum(x[i] * x[j] * x[l] * y[i] * y[j] * y[l], (i, 1, d), (j, 1, d), (l, 1, d))
tuples_value = Sum(x[l] * y[l], (l, 1, d)) ** 3

monomials = Sum(b**a / factorial(a) * t ** (k - a) / factorial(k - a), (a, 0, k))
monomials_value = (t + b) ** k / factorial(k)

weight = factorial(k) / factorial(run)
growth = weight / weight.subs({k: k - 1, run: run - 1}, simultaneous=True)


def count(coordinates: Expr, degree: Expr) -> Expr:
    """The number of monomials up to that degree."""
    return binomial(coordinates + degree, degree)


dimension = count(d, n)


def integrand(degree: Expr) -> Expr:
    """Its integral over v from 0 to 1 is what remains after the term of that degree."""
    return t ** (degree + 1) / factorial(degree) * (1 - v) ** degree * exp(t * v)


primitive = -(t**n) / factorial(n) * (1 - v) ** n * exp(t * v)
before = n * t**n / factorial(n) * (1 - v) ** n / (1 - v) * exp(t * v)
after = t * t**n / factorial(n) * (1 - v) ** n * exp(t * v)

remainder = Integral(integrand(n), (v, 0, 1))
average = Integral((1 - v) ** n, (v, 0, 1))
bound = size * size**n / ((n + 1) * factorial(n)) * largest


@dataclass(frozen=True)
class BinomialTheorem(Operation):
    """Put (p + q)^k / k! in the place of sum_a p^a/a! q^(k-a)/(k-a)!."""

    def __str__(self) -> str:
        return "apply the binomial theorem"

    def apply(self, start: Expr) -> Expr:
        ((index, _, degree),) = start.limits
        powers = start.function * factorial(index) * factorial(degree - index)
        ends = (powers.subs(index, end).subs(degree, 1) for end in (degree, 0))
        return sum(ends) ** degree / factorial(degree)


@dataclass(frozen=True)
class OnOneFactorial(Operation):
    """Write (m + 1)! as (m + 1) m!, and powers with exponent m + 1 alike."""

    def __str__(self) -> str:
        return "split neighbouring factorials and powers"

    def apply(self, start: Expr) -> Expr:
        return start.replace(factorial, _split_factorial).replace(Pow, _split_power)


def _split_factorial(argument: Expr) -> Expr:
    steps, rest = argument.as_coeff_Add()
    if steps >= 0:
        return factorial(rest) * Mul(*(rest + step for step in range(1, int(steps) + 1)))
    return factorial(rest) / Mul(*(rest - step for step in range(-int(steps))))


def _split_power(base: Expr, exponent: Expr) -> Expr:
    steps, rest = exponent.as_coeff_Add()
    return base**rest * base**steps if steps.is_Integer else base**exponent


@dataclass(frozen=True)
class CancelFactorials(Operation):
    """Write binomials as factorials, and cancel what they share."""

    def __str__(self) -> str:
        return "write as factorials and cancel"

    def apply(self, start: Expr) -> Expr:
        return combsimp(start.rewrite(factorial)).rewrite(factorial)


def argument(proof: Proof) -> None:
    proof.step(
        "Tensor powers, here of order 3",
        tuples,
        Expand(),
        tuples_value,
        because="the sum over tuples of coordinates is a product of sums: x^{(x)k}.y^{(x)k} = "
        "(x.y)^k for any k",
    )
    proof.step(
        "Monomials: one coordinate more",
        monomials,
        BinomialTheorem(),
        monomials_value,
        because="if sum_{|alpha|=k} (x.y)^alpha/alpha! = t^k/k! in some coordinates for all k, "
        "then also with one more, where t becomes t + b: so in every number of coordinates",
    )
    proof.step(
        "How often a monomial occurs among the tuples",
        growth,
        OnOneFactorial(),
        k / run,
        because="k!/alpha! tuples have the same product; a coordinate that occurs for the run-th "
        "time in a monomial of degree k brings the factor k/run",
    )
    proof.step(
        "How many monomials there are",
        count(d + 1, n + 1) - count(d + 1, n),
        CancelFactorials(),
        factorial(d + n + 1) / (factorial(d) * factorial(n + 1)),
        because="a monomial of d + 1 coordinates has the new one, and is that times one of a "
        "degree less, or has it not: with C(0 + n, n) = 1 and C(d + 0, 0) = 1, C(d + n, n) it is",
    )
    proof.step(
        "The dimension grows with d as",
        count(d + 1, n) / dimension,
        CancelFactorials(),
        (d + n + 1) / (d + 1),
        because="C(d + n, n) is a polynomial of degree n in d, below the d^n of the tensor power",
    )
    proof.step(
        "What remains after the first term",
        remainder,
        EvaluateAt({n: 0}),
        exp(t) - 1,
        because="the remainder in integral form for degree 0",
    )
    proof.step(
        "The integrand of the remainder before the term of degree n",
        integrand(n - 1),
        OnOneFactorial(),
        before,
        because="1/(n - 1)! = n/n!",
    )
    proof.step(
        "Integration by parts",
        primitive,
        Differentiate(v),
        before - after,
        because="the integrands before and after the term of degree n differ by a derivative",
    )
    proof.step(
        "The term of degree n",
        primitive,
        Substitute({v: 0}),
        -(t**n) / factorial(n),
        because="the primitive is 0 at v = 1, so the remainder falls by t^n/n!: by induction it is "
        "exp(t) - sum_{k<=n} t^k/k!",
    )
    proof.step(
        "The mean of the weight",
        average,
        Integrate(),
        1 / (n + 1),
        because="e^{tv} lies between 1 and e^t, so the remainder lies between t^{n+1}/n! times "
        "this mean, and e^t times as much",
    )
    proof.step(
        "The integrand of the remainder itself",
        integrand(n),
        OnOneFactorial(),
        after,
        because="t^{n+1} = t t^n",
    )
    proof.step(
        "The bound",
        size ** (n + 1) / factorial(n + 1) * largest,
        OnOneFactorial(),
        bound,
        because="it is |t|^{n+1}/n! times the mean 1/(n+1) times the largest e^{tv}, max(1, e^t)",
    )
    refuse_variants(proof)


def refuse_variants(proof: Proof) -> None:
    proof.refuse(
        "monomials all weighted by 1/k!",
        Sum(b**a * t ** (k - a) / factorial(k), (a, 0, k)),
        Expand(),
        monomials_value,
        because="mixed monomials stand for several tuples",
    )
    proof.refuse(
        "tensor powers divided by k! on both sides",
        tuples / factorial(3),
        Expand(),
        tuples_value / factorial(3) ** 2,
        because="each side has 1/sqrt(k!)",
    )
    proof.refuse(
        "a new coordinate grows by k, however often it occurs",
        growth,
        OnOneFactorial(),
        k,
        because="x_1 x_1 is one tuple, not two",
    )
    proof.refuse(
        "monomials counted as tuples",
        count(d + 1, n + 1) - count(d + 1, n),
        CancelFactorials(),
        (d + 1) * count(d, n),
        because="that many children would count x_1 x_2 and x_2 x_1",
    )
    proof.refuse(
        "the last term left out",
        primitive,
        Substitute({v: 0}),
        -(t ** (n - 1)) / factorial(n - 1),
        because="the degree n is still among the features",
    )
    proof.refuse(
        "the remainder after no term",
        remainder,
        EvaluateAt({n: 0}),
        exp(t),
        because="the constant feature is there",
    )
    proof.refuse(
        "a bound with n! for (n+1)!",
        average,
        Integrate(),
        Integer(1),
        because="that bound is n + 1 times too wide",
    )
    proof.refuse(
        "parts without the power of t",
        primitive,
        Differentiate(v),
        before - after / t,
        because="the derivative of e^{tv} brings down t",
    )


derivation = Derivation(
    title="Taylor features have a known error",
    statement=(
        "The features x^alpha/sqrt(alpha!), |alpha| <= n, C(d+n, n) of them, have the product "
        "sum_{k<=n} t^k/k!, t = x.y; it differs from exp(t) by at most "
        "|t|^{n+1}/(n+1)! max(1, e^t)."
    ),
    scope="every d and n",
    assumptions=(
        "x and y are real",
        "induction over the number of coordinates, and over n",
        "the binomial theorem",
    ),
    sizes=(
        {"d": 1, "n": 1, "k": 2, "run": 2},
        {"d": 2, "n": 3, "k": 4, "run": 1},
        {"d": 3, "n": 2, "k": 5, "run": 4},
    ),
    expressions={
        "tuples": tuples,
        "tuples_value": tuples_value,
        "monomials": monomials,
        "monomials_value": monomials_value,
        "growth": growth,
        "dimension": dimension,
        "remainder": remainder,
        "bound": bound,
    },
    argument=argument,
)
