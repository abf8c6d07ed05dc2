"""Generalised exponential features: mean, second moments, and the tilt of least variance.

Expressions, with x (d), y (d), rho = 1/(1-8A), g = 1-4A = (1+rho)/(2 rho), and z = x + y:

- `root_squared` = 1-4A (rho)
- `mean`, `second_moment` of the product of two features (x, y; the second also rho)
- `mirrored_moment`, of the product at w and at -w (x, y, rho)
- `log_relative_moment` = d log G + rho s, `slope` of it in rho, and the `stationary_s` at which a
  rho is best (d, rho; the first two also s)
- `discriminant` of the best rho at that s (d, s), a square: `discriminant_root` (d, rho)
"""

from sympy import (
    Expr,
    IndexedBase,
    Integral,
    Product,
    Sum,
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
    Expand,
    Integrate,
    LogarithmOfProduct,
    Proof,
    Solve,
    Substitute,
)

d = symbols("d", integer=True, positive=True)
l = symbols("l", integer=True)  # noqa: E741
omega, b = symbols("omega b", real=True)
c, rho, s = symbols("c rho s", positive=True)

x, y = IndexedBase("x", shape=(d,), real=True), IndexedBase("y", shape=(d,), real=True)
z_l, squares = x[l] + y[l], x[l] ** 2 + y[l] ** 2

A = (1 - 1 / rho) / 8
root_squared = (1 + rho) / (2 * rho)
log_G = log(1 + rho) - log(2) - log(rho) / 2


normal_moment = Integral(exp(b * omega - omega**2 / 2) / sqrt(2 * pi), (omega, -oo, oo))
lemma = exp(b**2 / (2 * c)) / sqrt(c)
one_mean = sqrt(root_squared) * lemma * exp(-squares / 2)
one_square = root_squared * lemma * exp(-squares)


def over_coordinates(term: Expr) -> Expr:
    return Sum(term, (l, 1, d))


one_moment = exp(log_G + 2 * x[l] * y[l] + rho * z_l**2)
one_mirrored = exp(log_G + 2 * x[l] * y[l] - z_l**2)
one_kernel = exp(x[l] * y[l])
mean = exp(over_coordinates(x[l] * y[l]))
second_moment = exp(d * log_G + over_coordinates(2 * x[l] * y[l] + rho * z_l**2))
mirrored_moment = exp(d * log_G + over_coordinates(2 * x[l] * y[l] - z_l**2))

log_relative_moment = d * log_G + rho * s
slope = d * (1 / (1 + rho) - 1 / (2 * rho)) + s
stationary_s = d * (1 - rho) / (2 * rho * (1 + rho))
discriminant = (2 * s + d) ** 2 + 8 * d * s
discriminant_root = d * (1 + 2 * rho - rho**2) / (rho * (1 + rho))


def argument(proof: Proof) -> None:
    proof.step(
        "The moment generating function of one normal coordinate",
        normal_moment,
        Integrate(),
        exp(b**2 / 2),
        because="completing the square",
    )
    proof.step(
        "A tilt exp((1-c) omega^2/2), on another scale",
        b * omega - c * omega**2 / 2,
        Substitute({omega: omega / sqrt(c)}),
        b * omega / sqrt(c) - omega**2 / 2,
        because="the tilted density exp(-c omega^2/2) becomes the normal one, d omega brings "
        "1/sqrt(c), and b becomes b/sqrt(c)",
    )
    proof.step(
        "The lemma: E exp((1-c) omega^2/2 + b omega)",
        exp(b**2 / 2) / sqrt(c),
        Substitute({b: b / sqrt(c)}),
        lemma,
        because="the two steps before, together",
    )
    proof.step(
        "The root in front of w.x",
        1 - 4 * A,
        Expand(),
        root_squared,
        because="A = (1 - 1/rho)/8, so 1 - 8A = 1/rho",
    )
    proof.step(
        "The mean, in one coordinate",
        one_mean**2,
        Substitute({b: sqrt(root_squared) * z_l, c: root_squared}),
        one_kernel**2,
        because="two features have A twice, c = 1 - 4A: the factor sqrt(1-4A) cancels sqrt(c), and "
        "the exponent is |x+y|^2/2 - (|x|^2+|y|^2)/2; squared here, both sides positive",
    )
    proof.step(
        "The second moment, in one coordinate, squared",
        one_square**2,
        Substitute({b: 2 * sqrt(root_squared) * z_l, c: 1 / rho}),
        rho * root_squared**2 * exp(4 * x[l] * y[l] + 2 * rho * z_l**2),
        because="c = 1 - 8A = 1/rho and b^2/(2c) = (1 + rho) z^2; -(|x|^2+|y|^2) + |z|^2 = 2 x.y",
    )
    proof.step(
        "w and -w, in one coordinate, squared",
        one_square**2,
        Substitute({b: 0, c: 1 / rho}),
        rho * root_squared**2 * exp(4 * x[l] * y[l] - 2 * z_l**2),
        because="w.z and -w.z cancel, the tilts add up",
    )
    proof.step(
        "The factor of a coordinate",
        rho * root_squared**2,
        Expand(),
        (1 + rho) ** 2 / (4 * rho),
        because="its root is G = (1 + rho)/(2 sqrt(rho))",
    )
    proof.step(
        "The mean",
        Product(one_kernel, (l, 1, d)),
        LogarithmOfProduct(),
        mean,
        because="independent coordinates multiply: it is the kernel",
    )
    proof.step(
        "The second moment",
        Product(one_moment, (l, 1, d)),
        LogarithmOfProduct(),
        second_moment,
        because="independent coordinates multiply: G^d exp(2 x.y + rho s)",
    )
    proof.step(
        "The moment of w and -w",
        Product(one_mirrored, (l, 1, d)),
        LogarithmOfProduct(),
        mirrored_moment,
        because="G^d exp(2 x.y - s): a pair has the mean of both, G^d (e^{rho s} + e^{-s})/2",
    )
    proof.step(
        "The slope of the logarithm of the second moment",
        log_relative_moment,
        Differentiate(rho),
        slope,
        because="G is least at rho = 1, and e^{rho s} pulls rho down",
    )
    proof.step(
        "For which s a rho is best",
        slope,
        Solve(s),
        stationary_s,
        because="the slope is linear in s, and falls with rho to its only zero",
    )
    proof.step(
        "The best rho at that s",
        discriminant,
        Substitute({s: stationary_s}),
        discriminant_root**2,
        because="2 s rho^2 + (2s + d) rho - d = 0 has this discriminant; with the root, "
        "2d/(2s + d + root) is rho",
    )
    proof.step(
        "The denominator of the best rho",
        2 * stationary_s + d + discriminant_root,
        Expand(),
        2 * d / rho,
        because="so 2d/(2s + d + sqrt((2s+d)^2 + 8ds)) = rho, as long as 1 + 2 rho > rho^2",
    )
    refuse_variants(proof)


def refuse_variants(proof: Proof) -> None:
    proof.refuse(
        "the root sqrt(1-8A)",
        1 - 4 * A,
        Expand(),
        1 / rho,
        because="that belongs to the second moment",
    )
    proof.refuse(
        "no root in front of w.x",
        one_mean**2,
        Substitute({b: z_l, c: root_squared}),
        one_kernel**2,
        because="the tilt narrows w, and the root widens it again",
    )
    proof.refuse(
        "the power d/2 of 1-4A in each feature",
        one_square**2,
        Substitute({b: 2 * sqrt(root_squared) * z_l, c: 1 / rho}),
        rho * root_squared**4 * exp(4 * x[l] * y[l] + 2 * rho * z_l**2),
        because="two features share (1-4A)^{d/2}",
    )
    proof.refuse(
        "G without the 2",
        rho * root_squared**2,
        Expand(),
        (1 + rho) ** 2 / rho,
        because="G is 1 at rho = 1",
    )
    proof.refuse(
        "w and -w independent",
        one_square**2,
        Substitute({b: 0, c: 1 / rho}),
        exp(4 * x[l] * y[l]),
        because="that would be the square of the mean",
    )
    proof.refuse(
        "the best rho of Gaussian norms alone",
        slope,
        Solve(s),
        d * (1 - rho) / (2 * rho),
        because="the normaliser G has a slope of its own",
    )
    proof.refuse(
        "a discriminant with 4ds",
        (2 * s + d) ** 2 + 4 * d * s,
        Substitute({s: stationary_s}),
        discriminant_root**2,
        because="b^2 - 4ac has a = 2s and c = -d",
    )


derivation = Derivation(
    title="Generalised exponential features have a best tilt",
    statement=(
        "f(x) = (1-4A)^{d/4} exp(A|w|^2 + sqrt(1-4A) w.x - |x|^2/2), 1-8A = 1/rho > 0, has "
        "E f(x) f(y) = exp(x.y) and the second moment exp(2 x.y) G^d e^{rho s}, "
        "G = (1+rho)/(2 sqrt(rho)), s = |x+y|^2; a pair w, -w has G^d (e^{rho s} + e^{-s})/2; the "
        "best rho of the first is 2d/(2s + d + sqrt((2s+d)^2 + 8ds))."
    ),
    scope="every d",
    assumptions=(
        "x and y are real",
        "the coordinates of w are independent standard normal",
        "A < 1/8, so that rho is positive and the second moment finite",
    ),
    sizes=({"d": 1, "l": 1}, {"d": 2, "l": 1}, {"d": 4, "l": 3}),
    expressions={
        "root_squared": root_squared,
        "mean": mean,
        "second_moment": second_moment,
        "mirrored_moment": mirrored_moment,
        "log_relative_moment": log_relative_moment,
        "slope": slope,
        "stationary_s": stationary_s,
        "discriminant": discriminant,
        "discriminant_root": discriminant_root,
    },
    argument=argument,
)
