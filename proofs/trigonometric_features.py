"""Trigonometric random features: mean, variance, and a sign that no kernel has.

Expressions, with x (d), y (d), delta = |x - y|^2:

- `feature_product`, phi_w(x).phi_w(y) = e^{|x|^2/2} e^{|y|^2/2} (cos cos + sin sin), and `wave`,
  the same as one cosine (w (d), x, y)
- `mean`, the kernel (x, y)
- `second_moment` and `variance` of one frequency, relative to the squared kernel (delta)
"""

from sympy import (
    IndexedBase,
    Integer,
    Integral,
    Sum,
    cos,
    cosh,
    exp,
    oo,
    pi,
    sin,
    sqrt,
    symbols,
)

from .derivation import Derivation, Expand, Integrate, Proof, Substitute

d = symbols("d", integer=True, positive=True)
l = symbols("l", integer=True)  # noqa: E741
omega, h = symbols("omega h", real=True)
r, delta = symbols("r delta", positive=True)

w = IndexedBase("w", shape=(d,), real=True)
x, y = IndexedBase("x", shape=(d,), real=True), IndexedBase("y", shape=(d,), real=True)


def over_coordinates(term):
    return Sum(term, (l, 1, d))


def expectation(function):
    """The mean of a function of one standard normal coordinate omega."""
    return Integral(exp(-(omega**2) / 2) / sqrt(2 * pi) * function, (omega, -oo, oo))


def phase(point):
    return over_coordinates(w[l] * point[l])


scale = exp(over_coordinates(x[l] ** 2) / 2) * exp(over_coordinates(y[l] ** 2) / 2)
cosines = cos(phase(x)) * cos(phase(y))
feature_product = scale * (cosines + sin(phase(x)) * sin(phase(y)))
wave = scale * cos(over_coordinates(w[l] * (x[l] - y[l])))
mean = exp(over_coordinates(x[l] * y[l]))
gauss = exp(-over_coordinates((x[l] - y[l]) ** 2) / 2)
second_moment = exp(delta) * (1 + exp(-2 * delta)) / 2
variance = cosh(delta) - 1


def argument(proof: Proof) -> None:
    proof.step(
        "The product of two points' features",
        feature_product,
        Expand(),
        wave,
        because="cos a cos b + sin a sin b = cos(a - b): only x - y is left in the phase",
    )
    proof.step(
        "The mean of a wave",
        expectation(cos(r * omega)),
        Integrate(),
        exp(-(r**2) / 2),
        because="w.(x-y) is |x-y| times one normal coordinate; its characteristic function",
    )
    proof.step(
        "The mean is the kernel",
        scale * gauss,
        Expand(),
        mean,
        because="(|x|^2 + |y|^2 - |x-y|^2)/2 = x.y",
    )
    proof.step(
        "The square of a wave",
        cos(h) ** 2,
        Expand(),
        (1 + cos(2 * h)) / 2,
        because="twice the frequency, and a constant that no averaging lowers",
    )
    proof.step(
        "Its mean",
        expectation((1 + cos(2 * r * omega)) / 2),
        Integrate(),
        (1 + exp(-2 * r**2)) / 2,
        because="the characteristic function at 2 r",
    )
    proof.step(
        "Relative to the squared kernel",
        scale**2 / mean**2,
        Expand(),
        exp(over_coordinates((x[l] - y[l]) ** 2)),
        because="a wave is exp(delta/2) cos(w.(x-y)) times the kernel",
    )
    proof.step(
        "The second moment of one frequency",
        exp(r**2) * (1 + exp(-2 * r**2)) / 2,
        Substitute({r: sqrt(delta)}),
        second_moment,
        because="delta = r^2",
    )
    proof.step(
        "The variance of one frequency",
        second_moment - 1,
        Expand(),
        variance,
        because="relative to exp(x.y) the mean is 1",
    )
    proof.step(
        "The estimate can be negative",
        exp(delta / 2) * cos(h),
        Substitute({h: pi}),
        -exp(delta / 2),
        because="where w.(x-y) = pi the estimate of a positive kernel is negative, so a sum such "
        "as D(q) may be zero or negative",
    )
    refuse_variants(proof)


def refuse_variants(proof: Proof) -> None:
    proof.refuse(
        "cosines without sines",
        scale * cosines,
        Expand(),
        wave,
        because="cos a cos b = (cos(a-b) + cos(a+b))/2",
    )
    proof.refuse(
        "the scale of positive features",
        gauss / scale,
        Expand(),
        mean,
        because="e^{-|x|^2/2} belongs to exp(w.x); a wave needs e^{|x|^2/2}",
    )
    proof.refuse(
        "the variance of positive features",
        second_moment - 1,
        Expand(),
        exp(delta) - 1,
        because="a wave is bounded: its square has mean 1/2 at large delta, not e^delta",
    )
    proof.refuse(
        "a cosine and a sine are two draws",
        second_moment - 1,
        Expand(),
        variance / 2,
        because="they share one w: cosh(delta) - 1 is the variance of both together",
    )
    proof.refuse(
        "the mean of a wave for the wrong width",
        expectation(cos(r * omega)),
        Integrate(),
        exp(-(r**2)),
        because="that is the mean for projections of variance 2",
    )
    proof.refuse(
        "the square averages out",
        cos(h) ** 2,
        Expand(),
        cos(2 * h) / 2,
        because="cos^2 has the mean value 1/2",
    )
    proof.refuse(
        "|x+y|^2 in the variance",
        scale**2 / mean**2,
        Expand(),
        exp(over_coordinates((x[l] + y[l]) ** 2)),
        because="equal points have no variance at all, opposite ones the most",
    )
    proof.refuse(
        "the estimate is positive",
        exp(delta / 2) * cos(h),
        Substitute({h: pi}),
        exp(delta / 2) * Integer(1),
        because="cos(pi) = -1",
    )


derivation = Derivation(
    title="Trigonometric features have relative variance cosh(|x-y|^2) - 1",
    statement=(
        "For phi_w(x) = e^{|x|^2/2} [cos w.x, sin w.x] with w standard normal, phi_w(x).phi_w(y) "
        "has mean exp(x.y) and relative variance cosh(delta) - 1, delta = |x-y|^2. It is a wave: "
        "its sign is that of cos(w.(x-y))."
    ),
    scope="every d",
    assumptions=(
        "x and y are real and w is standard normal, so that w.(x-y) is |x-y| times a normal "
        "coordinate",
    ),
    sizes=({"d": 1, "l": 1}, {"d": 2, "l": 2}, {"d": 4, "l": 3}),
    expressions={
        "feature_product": feature_product,
        "wave": wave,
        "mean": mean,
        "second_moment": second_moment,
        "variance": variance,
    },
    argument=argument,
)
