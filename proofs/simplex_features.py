"""Simplex projections: their angles, and the correlation of two of them.

Expressions, for d = n + 1 dimensions with n >= 1 (in one dimension there is no angle), s = |x+y|^2:

- `corner_product`, the product of the corners i and j of the simplex (n, i, j)
- `norm_of_sum`, |w_1 + w_2|^2 (R_1, R_2, n)
- `ratio`, the quotient of the terms of degree k + 1 and k of the mean over S = R_1^2 + R_2^2 and
  the direction, at a given B = 2 R_1 R_2/S (n, k, s, B)
- `first_order`, the part of c of first order in s, with e_B = E B (n, s, e_B)
"""

from sympy import Integer, KroneckerDelta, Rational, Sum, cos, sin, sqrt, symbols

from .derivation import Derivation, EvaluateAt, Expand, Proof, Substitute

n, k, i, j = symbols("n k i j", integer=True, positive=True)
l = symbols("l", integer=True)  # noqa: E741
R_1, R_2, S, s, e_B, rho, B = symbols("R_1 R_2 S s e_B rho B", positive=True)
theta, phi = symbols("theta phi", real=True)

d = n + 1


def corner(index):
    """Coordinate l of a corner, before its length is made 1."""
    return KroneckerDelta(index, l) - 1 / d


raw_product = Sum(corner(i) * corner(j), (l, 1, n + 1))
corner_product = (KroneckerDelta(i, j) - 1 / d) * d / n
norms = R_1**2 + R_2**2 + 2 * R_1 * R_2 * rho
norm_of_sum = R_1**2 + R_2**2 - 2 * R_1 * R_2 / n
polar = {R_1: sqrt(S) * cos(theta), R_2: sqrt(S) * sin(theta)}
direction_ratio = s / 2 * S / ((k + 1) * 2 * (d * Rational(1, 2) + k))
ratio = s * (d + k) * (1 - B / n) / ((d + 2 * k) * (k + 1))
degree_one = s * (1 + rho * e_B) - s
first_order = -s * e_B / n


def argument(proof: Proof) -> None:
    proof.step(
        "The product of two unit vectors moved to their common centre",
        raw_product,
        Expand(),
        KroneckerDelta(i, j) - 1 / d,
        because="the corners e_i - (1/d) sum_j e_j lie around 0",
    )
    proof.step(
        "Times sqrt(d/(d-1)) they have length one",
        corner_product,
        EvaluateAt({i: 1, j: 1}),
        Integer(1),
        because="each had the squared length 1 - 1/d",
    )
    proof.step(
        "Two of them meet at the cosine -1/(d-1)",
        corner_product,
        EvaluateAt({i: 1, j: 2}),
        -1 / n,
        because="d = n + 1: no d unit vectors could have a smaller common cosine, as the square of "
        "their sum is not negative",
    )
    proof.step(
        "The norm of the sum of two projections",
        norms,
        Substitute({rho: -1 / n}),
        norm_of_sum,
        because="a Haar rotation makes its direction uniform, so only its norm matters",
    )
    proof.step(
        "In polar coordinates of the two norms",
        norms,
        Substitute(polar),
        S * (1 + rho * sin(2 * theta)),
        because="S = R_1^2 + R_2^2 is chi-square of 2 d degrees, apart from the angle",
    )
    proof.step(
        "The angle's density",
        R_1 * R_2,
        Substitute(polar),
        S * sin(2 * theta) / 2,
        because="the norms have the density (R_1 R_2)^(d-1) exp(-S/2): B = sin(2 theta) has "
        "sin(2 theta)^(d-1), the law of sin(a) with density sin(a)^(d-1) on (0, pi)",
    )
    proof.step(
        "The mean over the direction and over S, at a given angle",
        direction_ratio,
        Substitute({S: 2 * (d + k) * (1 - B / n)}),
        ratio,
        because="the direction gives 0F1(; d/2; s |w_1 + w_2|^2/4), E S^(k+1) is 2 (d + k) E S^k: "
        "the series of 1F1(d; d/2; s (1 + rho B)/2)",
    )
    proof.step(
        "The correlation has a first order",
        degree_one,
        Substitute({rho: -1 / n}),
        first_order,
        because="c = e^{-s} E 1F1 - 1 is negative from the start, where that of orthogonal "
        "projections begins with s^2",
    )
    proof.step(
        "What is even in w has none",
        (s * (1 + rho * e_B) + s * (1 - rho * e_B)) / 2,
        Expand(),
        s,
        because="antithetic pairs and cosines meet at rho and at -rho, so c is the mean of both: "
        "e^{-s} (1 + s) - 1 is of degree 2",
    )
    proof.step(
        "Two waves are half the wave of the sum and half that of the difference",
        cos(theta) * cos(phi),
        Expand(),
        (cos(theta + phi) + cos(theta - phi)) / 2,
        because="w_1 - w_2 has the cosine -rho, so cosines do not have the c of e^{i w.z} alone",
    )
    refuse_variants(proof)


def refuse_variants(proof: Proof) -> None:
    proof.refuse(
        "the cosine -1/d",
        corner_product,
        EvaluateAt({i: 1, j: 2}),
        -1 / d,
        because="that is the simplex with d + 1 corners; a block has d",
    )
    proof.refuse(
        "corners of length sqrt(1 - 1/d)",
        corner_product,
        EvaluateAt({i: 1, j: 1}),
        1 - 1 / d,
        because="they have to be made unit vectors, or the norm is not chi_d",
    )
    proof.refuse(
        "the cosine 1/(d-1)",
        norms,
        Substitute({rho: -1 / n}),
        R_1**2 + R_2**2 + 2 * R_1 * R_2 / n,
        because="the corners repel",
    )
    proof.refuse(
        "right angles",
        norms,
        Substitute({rho: -1 / n}),
        R_1**2 + R_2**2,
        because="d directions around 0 in d - 1 dimensions are not orthogonal",
    )
    proof.refuse(
        "sin(theta) for sin(2 theta)",
        norms,
        Substitute(polar),
        S * (1 + rho * sin(theta)),
        because="2 sin cos is the sine of twice the angle",
    )
    proof.refuse(
        "S has d degrees of freedom",
        direction_ratio,
        Substitute({S: 2 * (d + k) * (1 - B / n)}),
        s * (1 - B / n) / (2 * (k + 1)),
        because="two norms of d degrees add: the mean would be exp(s (1 + rho B)/2)",
    )
    proof.refuse(
        "two waves are the wave of their sum",
        cos(theta) * cos(phi),
        Expand(),
        cos(theta + phi),
        because="that holds of exp(i theta), and at right angles both waves have one mean",
    )
    proof.refuse(
        "no first order",
        degree_one,
        Substitute({rho: -1 / n}),
        Integer(0),
        because="that holds at right angles",
    )


derivation = Derivation(
    title="Simplex projections have cosine -1/(d-1) and an exactly known correlation",
    statement=(
        "The d vectors sqrt(d/(d-1)) (e_i - (1/d) sum_j e_j) are unit vectors at pairwise cosine "
        "rho = -1/(d-1). Rotated by Haar, with independent chi_d norms, two of them have "
        "c = e^{-s} E 0F1(; d/2; s (R_1^2 + R_2^2 + 2 rho R_1 R_2)/4) - 1 "
        "= e^{-s} E 1F1(d; d/2; s (1 + rho B)/2) - 1, B = sin(a) with density sin(a)^(d-1)."
    ),
    scope="every d > 1 and degree k",
    assumptions=(
        "the rotation is Haar, and norms are independent of it and of one another",
        "moments of chi_d norms and of the direction are those of orthogonal_features",
        "series are summed term by term",
    ),
    sizes=(
        {"n": 1, "i": 1, "j": 2, "k": 3},
        {"n": 2, "i": 3, "j": 1, "k": 4},
        {"n": 4, "i": 2, "j": 5, "k": 1},
    ),
    expressions={
        "corner_product": corner_product,
        "norm_of_sum": norm_of_sum,
        "ratio": ratio,
        "first_order": first_order,
    },
    argument=argument,
)
