"""Antithetic pairs of positive features: their mean, their variance, and what a pair saves.

Expressions, with z = x + y, s = |z|^2, and everything relative to exp(x.y):

- `pair_term`, the mean of the terms at w and at -w (w (d), z (d))
- `opposite`, the product of the two, which is constant (z)
- `second_moment` of a pair and its `variance` (s)
- `independent`, the variance of the mean of two independent terms (s), and `saved`, the share of it
  that a pair has (s)
"""

from sympy import IndexedBase, Integer, Integral, Sum, cosh, exp, oo, pi, sinh, sqrt, symbols

from .derivation import Derivation, Expand, Integrate, Proof, Substitute

d = symbols("d", integer=True, positive=True)
l = symbols("l", integer=True)  # noqa: E741
omega, b = symbols("omega b", real=True)
s, r = symbols("s r", positive=True)

w, z = IndexedBase("w", shape=(d,), real=True), IndexedBase("z", shape=(d,), real=True)


def expectation(function):
    """The mean of a function of one standard normal coordinate omega."""
    return Integral(exp(-(omega**2) / 2) / sqrt(2 * pi) * function, (omega, -oo, oo))


along = Sum(w[l] * z[l], (l, 1, d))
norm = Sum(z[l] ** 2, (l, 1, d))
term, mirrored = exp(along - norm / 2), exp(-along - norm / 2)
pair_term = exp(-norm / 2) * cosh(along)
opposite = exp(-norm)

# w.z is r omega with r = |z|: a rotation of w turns z into a coordinate axis
on_axis = exp(-(r**2) / 2) * cosh(r * omega)
expanded = exp(-(r**2)) * (2 + exp(2 * r * omega) + exp(-2 * r * omega)) / 4
second_moment = cosh(s)
variance = cosh(s) - 1
independent = (exp(s) - 1) / 2
saved = 1 - exp(-s)


def argument(proof: Proof) -> None:
    proof.step(
        "The term of a pair",
        (term + mirrored) / 2,
        Expand(),
        pair_term,
        because="the norms do not see the sign of w: the pair is even in w",
    )
    proof.step(
        "The two terms of a pair have a constant product",
        term * mirrored,
        Expand(),
        opposite,
        because="w.z cancels: when one is large, the other is small",
    )
    proof.step(
        "The lemma: the moment generating function of one normal coordinate",
        expectation(exp(b * omega)),
        Integrate(),
        exp(b**2 / 2),
        because="completing the square",
    )
    proof.step(
        "A pair has the mean of its terms",
        expectation((exp(r * omega) + exp(-r * omega)) / 2) * exp(-(r**2) / 2),
        Integrate(),
        Integer(1),
        because="b = r and b = -r give exp(r^2/2) both",
    )
    proof.step(
        "The square of a pair's term",
        on_axis**2,
        Expand(),
        expanded,
        because="cosh^2 h = (2 + e^2h + e^-2h)/4",
    )
    proof.step(
        "Its mean",
        expectation(expanded),
        Integrate(),
        cosh(r**2),
        because="b = 2 r and b = -2 r give exp(2 r^2) both, and b = 0 gives 1",
    )
    proof.step(
        "In terms of s",
        cosh(r**2) - 1,
        Substitute({r: sqrt(s)}),
        variance,
        because="s = r^2, and the mean is 1",
    )
    proof.step(
        "From variances and the covariance of a pair",
        (2 * (exp(s) - 1) + 2 * (exp(-s) - 1)) / 4,
        Expand(),
        second_moment - 1,
        because="each term has the variance e^s - 1, and the covariance e^-s - 1 is negative",
    )
    proof.step(
        "What a pair saves",
        independent * saved,
        Expand(),
        variance,
        because="a pair never has more variance than two independent terms, and at small s it has "
        "the share s of it",
    )
    refuse_variants(proof)


def refuse_variants(proof: Proof) -> None:
    proof.refuse(
        "a pair counts as two independent terms",
        (2 * (exp(s) - 1) + 2 * (exp(-s) - 1)) / 4,
        Expand(),
        independent,
        because="the covariance of w and -w is left out",
    )
    proof.refuse(
        "cosh(s/2) - 1",
        cosh(r**2) - 1,
        Substitute({r: sqrt(s)}),
        cosh(s / 2) - 1,
        because="r^2 is s, not s/2: the square of a term doubles the exponent",
    )
    proof.refuse(
        "a pair has half the variance of cosh",
        independent * saved,
        Expand(),
        variance / 2,
        because="the variance is that of a pair, and n features are n/2 pairs",
    )
    proof.refuse(
        "the sum of a pair for its mean",
        term + mirrored,
        Expand(),
        pair_term,
        because="the mean would be 2 exp(x.y)",
    )
    proof.refuse(
        "sinh for cosh",
        (term + mirrored) / 2,
        Expand(),
        exp(-norm / 2) * sinh(along),
        because="that is half the difference, whose mean is 0",
    )
    proof.refuse(
        "the product of a pair is 1",
        term * mirrored,
        Expand(),
        Integer(1),
        because="each term carries exp(-s/2)",
    )


derivation = Derivation(
    title="Antithetic pairs have relative variance cosh(s) - 1",
    statement=(
        "For positive features the mean of the terms at w and -w is exp(-s/2) cosh(w.(x+y)) times "
        "exp(x.y), s = |x+y|^2. Its mean is exp(x.y), its relative variance cosh(s) - 1, which is "
        "1 - e^-s of the variance of the mean of two independent terms."
    ),
    scope="every d",
    assumptions=(
        "x and y are real and w is standard normal, so that w.z is |z| times a normal coordinate",
        "the terms are relative to exp(x.y): exp(w.z - s/2)",
    ),
    sizes=({"d": 1, "l": 1}, {"d": 2, "l": 2}, {"d": 4, "l": 3}),
    expressions={
        "pair_term": pair_term,
        "opposite": opposite,
        "second_moment": second_moment,
        "variance": variance,
        "independent": independent,
        "saved": saved,
    },
    argument=argument,
)
