"""Attention from m independent features: the bias and the error of a ratio, to order 1/m.

Expressions, of the relative features T_i at token i, each of mean 1; n tokens with weights p, and
values r about the output, so that sum p_i r_i = 0:

- `second_moment`, E T_i T_j in one coordinate, and `moment` = exp(ab) (a = k_i + q, b = k_j + q,
  c = a + b)
- `beyond_second_order`, what the ratio N/D leaves of N (2 - D), and `beyond_square`, what its
  square leaves of N^2 (N, D)
- `bias`, `square`, the constants of 1/m (p (n), r (n), M (n, n))
- `tail_exponent` for any lam, and `log_tail` for the best, of one feature (S = E T^2, t; and lam)
"""

from sympy import IndexedBase, Integral, Sum, exp, oo, pi, sqrt, symbols

from .derivation import (
    Derivation,
    Differentiate,
    Expand,
    Integrate,
    Proof,
    Solve,
    Substitute,
)

n = symbols("n", integer=True, positive=True)
i, j = symbols("i j", integer=True)
omega, a, b, c, N, D = symbols("omega a b c N D", real=True, nonzero=True)
lam, S, t = symbols("lam S t", positive=True)

p, r = IndexedBase("p", shape=(n,), real=True), IndexedBase("r", shape=(n,), real=True)
M = IndexedBase("M", shape=(n, n), real=True)

normal_moment = Integral(exp(c * omega - omega**2 / 2) / sqrt(2 * pi), (omega, -oo, oo))
second_moment = exp(c**2 / 2 - (a**2 + b**2) / 2)
moment = exp(a * b)
beyond_second_order = N * (D - 1) ** 2 / D
beyond_square = N**2 * (1 - D) * (1 + D) / D**2

product = Sum(p[i] * r[i] * (M[i, j] - 1) * p[j], (i, 1, n), (j, 1, n))
centred = Sum(p[i] * r[i], (i, 1, n))
bias = -Sum(p[i] * r[i] * M[i, j] * p[j], (i, 1, n), (j, 1, n))
square = Sum(p[i] * r[i] * M[i, j] * p[j] * r[j], (i, 1, n), (j, 1, n))
square_about_means = Sum(p[i] * r[i] * (M[i, j] - 1) * p[j] * r[j], (i, 1, n), (j, 1, n))

tail_exponent = lam * (1 - t) - lam + lam**2 * S / 2
log_tail = -(t**2) / (2 * S)


def argument(proof: Proof) -> None:
    proof.step(
        "The moment generating function of one normal coordinate",
        normal_moment,
        Integrate(),
        exp(c**2 / 2),
        because="completing the square",
    )
    proof.step(
        "Two features with one projection, in one coordinate",
        second_moment,
        Substitute({c: a + b}),
        moment,
        because="their exponents add up; coordinates multiply: M_ij = exp(z_i.z_j)",
    )
    proof.step(
        "The ratio",
        N / D - N * (2 - D),
        Expand(),
        beyond_second_order,
        because="N = sum_i p_i r_i T_i and D = sum_i p_i T_i, means over m features, lie 1/sqrt(m) "
        "about 0 and 1: the rest is of third order, and its mean is O(1/m^2)",
    )
    proof.step(
        "The square of the ratio",
        N**2 / D**2 - N**2,
        Expand(),
        beyond_square,
        because="of third order again, so the mean square error is E N^2 + O(1/m^2)",
    )
    proof.step(
        "The bias",
        N * (2 - D),
        Expand(),
        N - N * (D - 1),
        because="E N = sum p_i r_i = 0: the bias is minus the covariance of N and D, the one of a "
        "feature divided by m",
    )
    proof.step(
        "Minus the covariance of N and D",
        -product,
        Expand(),
        bias + centred * Sum(p[i], (i, 1, n)),
        because="of a feature it is sum_ij p_i r_i p_j (M_ij - 1), and sum p_i r_i = 0",
    )
    proof.step(
        "The variance of N",
        square_about_means,
        Expand(),
        square - centred**2,
        because="of a feature it is sum_ij p_i p_j r_i.r_j (M_ij - 1), one "
        "coordinate of the values at a time",
    )
    proof.step(
        "The lower tail: where the exponent is least",
        tail_exponent,
        Differentiate(lam),
        lam * S - t,
        because="e^{-lam T} <= 1 - lam T + lam^2 T^2/2 for T >= 0, so E e^{-lam T} <= "
        "exp(-lam + lam^2 S/2), and Markov's inequality adds lam (1 - t)",
    )
    proof.step(
        "The best lam",
        lam * S - t,
        Solve(lam),
        t / S,
        because="the exponent is a convex parabola",
    )
    proof.step(
        "The bound of the lower tail, of one feature",
        tail_exponent,
        Substitute({lam: t / S}),
        log_tail,
        because="m independent features multiply it by m",
    )
    refuse_variants(proof)


def refuse_variants(proof: Proof) -> None:
    proof.refuse(
        "features at two tokens are independent",
        second_moment,
        Substitute({c: a + b}),
        exp(0 * a),
        because="they share their projection",
    )
    proof.refuse(
        "the covariance exp(|z_i - z_j|^2/2)",
        second_moment,
        Substitute({c: a + b}),
        exp((a - b) ** 2 / 2),
        because="it is largest for equal tokens",
    )
    proof.refuse(
        "no bias to second order",
        N / D - N,
        Expand(),
        beyond_second_order,
        because="N and D share their features",
    )
    proof.refuse(
        "1/D near D",
        N / D - N * D,
        Expand(),
        beyond_second_order,
        because="a large D makes the ratio small",
    )
    proof.refuse(
        "a covariance of the opposite sign",
        product,
        Expand(),
        bias - centred * Sum(p[i], (i, 1, n)),
        because="N is large where D is, if the values are large where the features are",
    )
    proof.refuse(
        "weights once in the square",
        square_about_means,
        Expand(),
        Sum(p[i] * r[i] * M[i, j] * r[j], (i, 1, n), (j, 1, n)) - centred**2,
        because="both sums over tokens are weighted",
    )
    proof.refuse(
        "a tail without the 2",
        tail_exponent,
        Substitute({lam: t / S}),
        -(t**2) / S,
        because="the parabola gives half of its slope term back",
    )


derivation = Derivation(
    title="Attention from random features is a biased ratio",
    statement=(
        "From m independent positive features the output has the bias -(1/m) sum_ij p_i p_j "
        "(v_i - o) e^{z_i.z_j} + O(1/m^2) and the mean square error (1/m) sum_ij p_i p_j "
        "(v_i - o).(v_j - o) e^{z_i.z_j} + O(1/m^2), z_i = k_i + q; the mean of m independent "
        "nonnegative features of mean 1 is below 1 - t with probability at most "
        "exp(-m t^2/(2 E T^2))."
    ),
    scope="every n, d and m",
    assumptions=(
        "the projections are independent standard normal",
        "the expansion under the expectation, as 1/D has moments of every order for n >= 1",
        "e^{-x} <= 1 - x + x^2/2 for x >= 0",
    ),
    sizes=({"n": 1, "D": 3}, {"n": 2, "D": 5}, {"n": 3, "D": 4}),
    expressions={
        "second_moment": second_moment,
        "moment": moment,
        "beyond_second_order": beyond_second_order,
        "beyond_square": beyond_square,
        "bias": bias,
        "square": square,
        "tail_exponent": tail_exponent,
        "log_tail": log_tail,
    },
    argument=argument,
)
