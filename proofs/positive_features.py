"""Positive random features: exact mean, exact law, exact variance.

Expressions, with x (d), y (d):

- `feature` phi_w(x) and `feature_product` phi_w(x) phi_w(y) (w (d), x, y)
- `log_product`, the logarithm of that product (w, x, y); `log_mean` and `log_variance` of its
  normal law, `moment` of order tau of the product (x, y; and tau)
- `mean`, `second_moment`, `variance` of the product over w (x, y)
- `trapezoid`, `trapezoid_exact`, the two sides of the quadrature identity (a, h), and
  `trapezoid_error`, the largest relative error over all a (h)
"""

from dataclasses import dataclass

from sympy import (
    Expr,
    I,
    IndexedBase,
    Integral,
    Poly,
    Product,
    Sum,
    cos,
    exp,
    expand,
    log,
    oo,
    pi,
    sqrt,
    symbols,
)

from .derivation import (
    Derivation,
    Differentiate,
    Expand,
    Integrate,
    LogarithmOfProduct,
    Operation,
    Proof,
    Substitute,
)

d = symbols("d", integer=True, positive=True)
l, j, k = symbols("l j k", integer=True)  # noqa: E741
omega, tau, a = symbols("omega tau a", real=True)
h = symbols("h", positive=True)
b = symbols("b")  # any complex number

x, y = IndexedBase("x", shape=(d,), real=True), IndexedBase("y", shape=(d,), real=True)
w = IndexedBase("w", shape=(d,), real=True)


def over_coordinates(term: Expr) -> Expr:
    return Sum(term, (l, 1, d))


def expectation(function: Expr) -> Expr:
    """The mean of a function of one standard normal coordinate omega."""
    return Integral(density(omega) * function, (omega, -oo, oo))


def density(point: Expr) -> Expr:
    return exp(-(point**2) / 2) / sqrt(2 * pi)


feature = exp(over_coordinates(w[l] * x[l]) - over_coordinates(x[l] ** 2) / 2)
feature_product = feature * feature.subs(x, y)
squares = x[l] ** 2 + y[l] ** 2
log_product = over_coordinates(w[l] * (x[l] + y[l]) - squares / 2)

one_factor = exp(omega * (x[l] + y[l]) - squares / 2)
one_moment = exp(tau**2 * (x[l] + y[l]) ** 2 / 2 - tau * squares / 2)

log_mean = -over_coordinates(squares) / 2
log_variance = over_coordinates((x[l] + y[l]) ** 2)
moment = exp(tau * log_mean + tau**2 * log_variance / 2)
mean = exp(over_coordinates(x[l] * y[l]))
second_moment = exp(2 * over_coordinates(x[l] * y[l]) + log_variance)
variance = exp(2 * over_coordinates(x[l] * y[l])) * (exp(log_variance) - 1)

wave = exp(-2 * pi * I * j * omega / h)
transform = exp(a**2 / 2 - 2 * pi**2 * j**2 / h**2 - 2 * pi * I * j * a / h)
trapezoid = h * Sum(density(k * h) * exp(a * k * h), (k, -oo, oo))
ripple = exp(-2 * pi**2 * j**2 / h**2)
trapezoid_exact = exp(a**2 / 2) * Sum(ripple * cos(2 * pi * j * a / h), (j, -oo, oo))
trapezoid_error = Sum(ripple, (j, -oo, oo)) - 1


def apply_lemma(integral: Expr) -> Expr:
    """Put E exp(b omega + rest) = exp(b^2/2 + rest) in the place of an integral."""
    exponent = expand(log(integral.function / density(omega)), force=True)
    slope, rest = Poly(exponent, omega).all_coeffs()
    return exp(slope**2 / 2 + rest)


@dataclass(frozen=True)
class ByTheLemma(Integrate):
    """Evaluate Gaussian expectations of exp(b omega + rest) by the lemma, b complex."""

    def __str__(self) -> str:
        return "apply the lemma, with the coefficient of omega for b"

    def apply(self, start: Expr) -> Expr:
        return start.replace(lambda part: isinstance(part, Integral), apply_lemma)


@dataclass(frozen=True)
class PoissonSummation(Operation):
    """Replace h sum_k f(k h) by the sum over j of the Fourier transform of f at j/h."""

    def __str__(self) -> str:
        return "apply Poisson summation, each j paired with -j"

    def apply(self, start: Expr) -> Expr:
        (samples,) = start.atoms(Sum)
        f = samples.function.subs(k, omega / h)
        spectrum = apply_lemma(Integral(f * wave, (omega, -oo, oo)))
        return Sum((spectrum + spectrum.subs(j, -j)) / 2, (j, -oo, oo))


def argument(proof: Proof) -> None:
    proof.step(
        "The lemma: the moment generating function of one normal coordinate",
        expectation(exp(b * omega)),
        Integrate(),
        exp(b**2 / 2),
        because="completing the square; b may be complex",
    )
    proof.step(
        "The product of two features",
        feature_product,
        Expand(),
        exp(log_product),
        because="its logarithm is affine in the Gaussian w, so it is normally distributed",
    )
    proof.step(
        "The mean of the logarithm, in one coordinate",
        expectation(log(one_factor)),
        Integrate(),
        -squares / 2,
        because="omega has mean 0; the coordinates add up to log_mean",
    )
    proof.step(
        "The variance of the logarithm, in one coordinate",
        expectation((log(one_factor) + squares / 2) ** 2),
        Integrate(),
        (x[l] + y[l]) ** 2,
        because="omega has variance 1; the coordinates are independent and add up to log_variance",
    )
    proof.step(
        "The moment of order tau, in one coordinate",
        expectation(one_factor**tau),
        ByTheLemma(),
        one_moment,
        because="b = tau (x_l + y_l)",
    )
    proof.step(
        "The moment of order tau, in all coordinates",
        Product(one_moment, (l, 1, d)),
        LogarithmOfProduct(),
        moment,
        because="independent coordinates multiply; this is the moment generating function of the "
        "normal law with mean log_mean and variance log_variance = s",
    )
    proof.step(
        "The cumulants of the logarithm",
        tau * log_mean + tau**2 * log_variance / 2,
        Differentiate(tau),
        log_mean + tau * log_variance,
        because="at tau = 0 the slope is the mean; the curvature, a constant, is the variance",
    )
    proof.step(
        "The mean is the kernel",
        moment,
        Substitute({tau: 1}),
        mean,
        because="-(|x|^2 + |y|^2)/2 + |x + y|^2/2 = x.y",
    )
    proof.step(
        "The second moment",
        moment,
        Substitute({tau: 2}),
        second_moment,
        because="-(|x|^2 + |y|^2) + 2 |x + y|^2 = 2 x.y + s",
    )
    proof.step(
        "The variance",
        second_moment - mean**2,
        Expand(),
        variance,
        because="the square of the mean, exp(2 x.y), is a common factor",
    )
    proof.step(
        "The Fourier transform of the tilted normal density",
        expectation(exp(a * omega) * wave),
        ByTheLemma(),
        transform,
        because="b = a - 2 pi i j/h is complex",
    )
    proof.step(
        "Trapezoidal quadrature",
        trapezoid,
        PoissonSummation(),
        trapezoid_exact,
        because="the term j = 0 is the exact expectation, the others are the error",
    )
    proof.step(
        "The error of the quadrature",
        trapezoid_exact - exp(a**2 / 2),
        Substitute({a: 0}),
        trapezoid_error,
        because="|cos| <= 1, so relative to exp(a^2/2) no a has a larger error than a = 0 has: "
        "2 sum_{j >= 1} exp(-2 pi^2 j^2/h^2)",
    )
    refuse_variants(proof)


def refuse_variants(proof: Proof) -> None:
    proof.refuse(
        "lemma for the wrong bandwidth",
        expectation(exp(b * omega)),
        Integrate(),
        exp(b**2),
        because="that is the moment generating function at variance 2",
    )
    proof.refuse(
        "features without -|x|^2/2",
        expectation(exp(omega * (x[l] + y[l]))),
        ByTheLemma(),
        exp(x[l] * y[l]),
        because="the mean would be exp(|x+y|^2/2)",
    )
    proof.refuse(
        "features with -|x|^2",
        expectation(exp(omega * (x[l] + y[l]) - squares)),
        ByTheLemma(),
        exp(x[l] * y[l]),
        because="the norms would be subtracted twice",
    )
    proof.refuse(
        "variance with e^{s/2} - 1",
        second_moment - mean**2,
        Expand(),
        exp(2 * over_coordinates(x[l] * y[l])) * (exp(log_variance / 2) - 1),
        because="the log-normal variance has the whole s",
    )
    proof.refuse(
        "variance from |x-y|^2 instead of |x+y|^2",
        second_moment - mean**2,
        Expand(),
        mean**2 * (exp(over_coordinates((x[l] - y[l]) ** 2)) - 1),
        because="features of opposite vectors have a constant product, those of equal ones do not",
    )
    proof.refuse(
        "the logarithm has mean x.y",
        expectation(log(one_factor)),
        Integrate(),
        x[l] * y[l],
        because="the mean of the logarithm lies below the logarithm of the mean, by s/2",
    )
    proof.refuse(
        "trapezoidal quadrature is exact",
        trapezoid,
        PoissonSummation(),
        exp(a**2 / 2),
        because="the terms j != 0 remain, however small",
    )
    proof.refuse(
        "quadrature error counted on one side only",
        trapezoid_exact - exp(a**2 / 2),
        Substitute({a: 0}),
        trapezoid_error / 2,
        because="j and -j both contribute",
    )


derivation = Derivation(
    title="Positive random features have exactly known law",
    statement=(
        "For phi_w(x) = exp(w.x - |x|^2/2) with w standard normal, phi_w(x) phi_w(y) has mean "
        "exp(x.y); its logarithm is normal with mean -(|x|^2 + |y|^2)/2 and variance s = |x+y|^2; "
        "its variance is exp(2 x.y)(e^s - 1). Expectations over one normal coordinate can be "
        "verified by trapezoidal quadrature with relative error at most "
        "2 sum_{j>=1} exp(-2 pi^2 j^2/h^2)."
    ),
    scope="every d",
    assumptions=(
        "x and y are real",
        "the coordinates of w are independent standard normal: expectations of products over "
        "coordinates are products of expectations",
        "Poisson's summation formula, which holds for these rapidly falling smooth functions",
    ),
    sizes=(
        {"d": 1, "l": 1, "j": 1, "h": 2},
        {"d": 2, "l": 2, "j": -1, "h": 1},
        {"d": 4, "l": 3, "j": 1, "h": 2},
    ),
    expressions={
        "feature": feature,
        "feature_product": feature_product,
        "log_product": log_product,
        "log_mean": log_mean,
        "log_variance": log_variance,
        "moment": moment,
        "mean": mean,
        "second_moment": second_moment,
        "variance": variance,
        "trapezoid": trapezoid,
        "trapezoid_exact": trapezoid_exact,
        "trapezoid_error": trapezoid_error,
    },
    argument=argument,
)
