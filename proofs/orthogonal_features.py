"""Orthogonal projections: the exact correlation of two of them, and the variance of a block.

Expressions, with z = x + y, s = |z|^2, d dimensions:

- `product` T_1 T_2 of two terms T = exp(w.z - s/2) (w_1 (d), w_2 (d), z (d))
- `chi_square`, E exp(tau R^2) for a chi_d norm R, v = (1 - 2 tau)^(-1/2) (d, v)
- `series_term`, the term of degree k of 1F1(d; d/2; s/2) (d, k, s), and `ratio`, its quotient with
  the one before it (d, k, s)
- `leading`, the part of c of degree 2 (d, s)
- `variance` of the mean of m terms of one block (m, E_TT = E T^2, c)
"""

from sympy import (
    IndexedBase,
    Integer,
    Integral,
    KroneckerDelta,
    Product,
    Rational,
    Sum,
    cosh,
    exp,
    log,
    oo,
    pi,
    sqrt,
    symbols,
)

from .derivation import (
    Derivation,
    Differentiate,
    EvaluateAt,
    Expand,
    Integrate,
    LogarithmOfProduct,
    Proof,
    Substitute,
)

d, k, m = symbols("d k m", integer=True, positive=True)
i, j, l = symbols("i j l", integer=True)  # noqa: E741
omega, tau = symbols("omega tau", real=True)
s, delta, v, rising, a = symbols("s delta v rising a", positive=True)
alpha, beta, c, E_TT = symbols("alpha beta c E_TT", real=True)
R_1, R_2 = symbols("R_1 R_2", positive=True)
cosine = symbols("cosine", real=True)

w_1, w_2 = IndexedBase("w_1", shape=(d,), real=True), IndexedBase("w_2", shape=(d,), real=True)
z = IndexedBase("z", shape=(d,), real=True)


def along(w):
    return Sum(w[l] * z[l], (l, 1, d))


def expectation(function):
    """The mean of a function of one standard normal coordinate omega."""
    return Integral(exp(-(omega**2) / 2) / sqrt(2 * pi) * function, (omega, -oo, oo))


norm = Sum(z[l] ** 2, (l, 1, d))
product = exp(along(w_1) - norm / 2) * exp(along(w_2) - norm / 2)
widened = exp(-(omega**2) / (2 * v**2))
chi_square = exp(Sum(log(v), (l, 1, d)))
moments = 2**k * rising * exp(-(a + k) * log(1 - 2 * tau))
series_term = Product(s * (d + j) / ((d + 2 * j) * (j + 1)), (j, 0, k - 1))
ratio = s * (d + k) / ((d + 2 * k) * (k + 1))
leading = -(s**2) / (2 * (d + 2))
both = Sum(KroneckerDelta(i, j) * E_TT + (1 - KroneckerDelta(i, j)) * (1 + c), (i, 1, m), (j, 1, m))
variance = ((E_TT - 1) + (m - 1) * c) / m


def degree_two(second):
    """What e^{-s} (1 + s + second s^2) has of degree 2."""
    return s**2 / 2 - s**2 + second * s**2


def argument(proof: Proof) -> None:
    proof.step(
        "The product of two terms sees the sum of their projections",
        product,
        Expand(),
        exp(Sum((w_1[l] + w_2[l]) * z[l], (l, 1, d)) - norm),
        because="exponents add; the direction of w_1 + w_2 is uniform, so only its norm matters",
    )
    proof.step(
        "At right angles the squared norms add",
        R_1**2 + 2 * R_1 * R_2 * cosine + R_2**2,
        Substitute({cosine: 0}),
        R_1**2 + R_2**2,
        because="so |w_1 + w_2|^2 is a sum of two independent chi-squares of d degrees: of 2 d",
    )
    proof.step(
        "A normal density times exp(tau omega^2) is one of width v",
        exp(-(omega**2) / 2 + tau * omega**2),
        Substitute({tau: (1 - 1 / v**2) / 2}),
        widened,
        because="v = (1 - 2 tau)^(-1/2)",
    )
    proof.step(
        "The square of one normal coordinate",
        Integral(widened / sqrt(2 * pi), (omega, -oo, oo)),
        Integrate(),
        v,
        because="this is E exp(tau omega^2)",
    )
    proof.step(
        "The square of a chi_d norm",
        Product(v, (l, 1, d)),
        LogarithmOfProduct(),
        chi_square,
        because="independent coordinates multiply: (1 - 2 tau)^-a with a = d/2, and a = d for the "
        "sum of two",
    )
    proof.step(
        "Its moments, one from the other",
        moments,
        Differentiate(tau),
        2 ** (k + 1) * rising * (a + k) * exp(-(a + k) * log(1 - 2 * tau)) / (1 - 2 * tau),
        because="the k-th derivative of (1 - 2 tau)^-a is 2^k (a)_k (1 - 2 tau)^(-a-k), and so is "
        "the next: at tau = 0, E R^2k = 2^k (d/2)_k and E |w_1 + w_2|^2k = 2^k (d)_k",
    )
    proof.step(
        "A normal coordinate has the series of exp(s/2)",
        expectation(exp(omega * z[l])),
        Integrate(),
        exp(z[l] ** 2 / 2),
        because="E (w.z)^2k / (2k)! = (s/2)^k / k!; w = R u with R apart from u, so the direction "
        "has E (u.z)^2k / (2k)! = (s/2)^k / (k! 2^k (d/2)_k)",
    )
    proof.step(
        "The quotient of terms of degree k + 1 and k",
        2 * (d + k) * s / 2 / (2 * (Rational(1, 2) * d + k) * (k + 1)),
        Expand(),
        ratio,
        because="E |w_1 + w_2|^2k E (u.z)^2k / (2k)! = (d)_k / (d/2)_k (s/2)^k / k!, the series of "
        "1F1(d; d/2; s/2)",
    )
    proof.step(
        "The term of degree 2",
        series_term,
        EvaluateAt({k: 2}),
        s**2 * (d + 1) / (2 * (d + 2)),
        because="the empty product is the term 1, and the first factor is s: c begins at degree 2",
    )
    proof.step(
        "The correlation of two projections begins negative",
        degree_two((d + 1) / (2 * (d + 2))),
        Expand(),
        leading,
        because="c = e^{-s} 1F1(d; d/2; s/2) - 1",
    )
    proof.step(
        "It is negative for every s",
        s / (k + 1) - ratio,
        Expand(),
        s * k / ((d + 2 * k) * (k + 1)),
        because="each quotient is at most that of e^s, so 1F1(d; d/2; s/2) < e^s and c < 0",
    )
    proof.step(
        "Antithetic pairs have the same correlation",
        cosh(alpha) * cosh(beta),
        Expand(),
        (cosh(alpha + beta) + cosh(alpha - beta)) / 2,
        because="w_2 and -w_2 have one law, and so have both cosh; with i z for z the same holds "
        "of cosines, with -|x-y|^2 for s",
    )
    proof.step(
        "Cosines begin with the same correlation",
        leading,
        Substitute({s: -delta}),
        -(delta**2) / (2 * (d + 2)),
        because="the square of -|x-y|^2",
    )
    proof.step(
        "The variance of a block",
        both / m**2 - 1,
        Expand(),
        variance,
        because="m terms meet themselves, m (m - 1) pairs meet each other",
    )
    refuse_variants(proof)


def refuse_variants(proof: Proof) -> None:
    proof.refuse(
        "norm sqrt(d) has the moments of a chi_d norm",
        d**2 + 2 * d,
        Expand(),
        d**2,
        because="E R^4 = 2^2 (d/2)(d/2 + 1) = d (d + 2): a fixed norm is biased from degree 2 on",
    )
    proof.refuse(
        "one norm for two projections",
        R_1**2 + 2 * R_1 * R_2 * cosine + R_2**2,
        Substitute({cosine: 0, R_2: R_1}),
        R_1**2 + R_2**2,
        because="2 R_1^2 is not chi-square of 2 d degrees",
    )
    proof.refuse(
        "1F1(d/2; d; s/2)",
        ratio,
        Expand(),
        (s / 2) * (d / Integer(2) + k) / ((d + k) * (k + 1)),
        because="the degrees of freedom of the sum are above, those of one norm below",
    )
    proof.refuse(
        "1F1(d; d/2; s)",
        ratio,
        Expand(),
        2 * ratio,
        because="E exp(w.z) is exp(s/2): s/2 is the argument",
    )
    proof.refuse(
        "orthogonal projections are uncorrelated",
        degree_two((d + 1) / (2 * (d + 2))),
        Expand(),
        Integer(0),
        because="orthogonal Gaussian directions would be independent; orthogonal draws repel",
    )
    proof.refuse(
        "m pairs instead of m - 1",
        both / m**2 - 1,
        Expand(),
        ((E_TT - 1) + m * c) / m,
        because="a projection is not its own partner",
    )
    proof.refuse(
        "the variance of independent draws",
        both / m**2 - 1,
        Expand(),
        (E_TT - 1) / m,
        because="c is not zero",
    )


derivation = Derivation(
    title="Orthogonal projections have an exactly known variance",
    statement=(
        "Let projections of one block be orthogonal, with uniform directions and independent chi_d "
        "norms. Each is standard normal, so means are those of independent draws. Two terms "
        "T = exp(w.z - s/2) have E T_1 T_2 - 1 = c = e^{-s} 1F1(d; d/2; s/2) - 1 <= 0, antithetic "
        "pairs too, and cosines with -|x-y|^2 for s. The mean of m terms of a block has variance "
        "(1/m) [(E T^2 - 1) + (m - 1) c]."
    ),
    scope="every d, m and degree k",
    assumptions=(
        "the directions of a block are orthogonal and uniform together, which QR of a normal "
        "matrix gives once Q is multiplied by sign(diag R)",
        "norms are independent of one another and of the directions",
        "the series, which have infinite radius of convergence, are summed term by term",
    ),
    sizes=(
        {"d": 1, "k": 2, "m": 3, "l": 1, "tau": -1},
        {"d": 2, "k": 1, "m": 2, "l": 2, "tau": -2},
        {"d": 4, "k": 3, "m": 5, "l": 1, "tau": -1},
        {"d": 4, "k": 3, "m": 5, "l": 2, "tau": -1},
    ),
    expressions={
        "product": product,
        "chi_square": chi_square,
        "series_term": series_term,
        "ratio": ratio,
        "leading": leading,
        "variance": variance,
    },
    argument=argument,
)
