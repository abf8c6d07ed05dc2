"""Dense exponential features: a tilt an axis, the best axes, and the two reductions of |x+y|^2.

Expressions, with x, y, z = x + y as coordinates along d axes and rho_l = 1/(1-8A_l):

- `mean`, `second_moment` of the product of two features (x, y; the second also rho)
- `mirrored_moment`, of the product at w and at -w (x, y, rho)
- `log_moment` = sum_l log G(rho_l) + rho_l m_l at z_l^2 = m_l (rho, m), its `slope` in one rho_k,
  and the `stationary_moment` at which a rho is best (rho)
- `pair_slope`, the slope of an antithetic pair's (rho, m)
- `kernel`, x.y of points (X, Y; columns), and its `reduction` (also a, b, S, R = S^{-T})
- `balanced_moment` = S M_x S^T (S, M_x), and the `query_moment` S^{-T} M_y S^{-1}
- `mean_of_z`, of one coordinate (z (n)), the best a + b
"""

from sympy import (
    BlockMatrix,
    Expr,
    Identity,
    IndexedBase,
    Integral,
    Inverse,
    MatrixSymbol,
    Product,
    Sum,
    Trace,
    ZeroMatrix,
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
    MultiplyBlocks,
    Proof,
    Solve,
    Substitute,
)

d, n = symbols("d n", integer=True, positive=True)
i, j, k, l = symbols("i j k l", integer=True)  # noqa: E741
omega, b_1 = symbols("omega b_1", real=True)
c, r, t, mu, g_q = symbols("c r t mu g_q", positive=True)

x, y = IndexedBase("x", shape=(d,), real=True), IndexedBase("y", shape=(d,), real=True)
rho = IndexedBase("rho", shape=(d,), positive=True)
m = IndexedBase("m", shape=(d,), positive=True)
h = IndexedBase("h", shape=(d,), real=True)
Q_2 = IndexedBase("Q_2", shape=(d, d), positive=True)
z = IndexedBase("z", shape=(n,), real=True)
v, kappa = IndexedBase("v", shape=(n,), real=True), IndexedBase("kappa", shape=(n,), positive=True)

X, Y, a, b = (MatrixSymbol(name, d, 1) for name in "XYab")
S, R = (MatrixSymbol(name, d, d) for name in "SR")
(M_x, M_y), (L_x, L_y), (N_x, N_y) = (
    (MatrixSymbol(f"{name}_x", d, d), MatrixSymbol(f"{name}_y", d, d)) for name in "MLN"
)
O, I = ZeroMatrix(d, d), Identity(d)  # noqa: E741


def over_axes(term: Expr) -> Expr:
    return Sum(term, (l, 1, d))


def log_G(rho: Expr) -> Expr:
    return log(1 + rho) - log(2) - log(rho) / 2


z_l, squares = x[l] + y[l], x[l] ** 2 + y[l] ** 2

normal_moment = Integral(exp(b_1 * omega - omega**2 / 2) / sqrt(2 * pi), (omega, -oo, oo))
lemma = exp(b_1**2 / (2 * c)) / sqrt(c)
root_squared = (1 + r) / (2 * r)
one_mean = sqrt(root_squared) * lemma * exp(-squares / 2)
one_square = root_squared * lemma * exp(-squares)

mean = exp(over_axes(x[l] * y[l]))
second_moment = exp(over_axes(log_G(rho[l]) + 2 * x[l] * y[l] + rho[l] * z_l**2))
mirrored_moment = exp(over_axes(log_G(rho[l]) + 2 * x[l] * y[l] - z_l**2))

log_moment = over_axes(log_G(rho[l]) + rho[l] * m[l])
slope = 1 / (1 + rho[k]) - 1 / (2 * rho[k]) + m[k]
stationary_moment = (1 - r) / (2 * r * (1 + r))
discriminant = (2 * mu + 1) ** 2 + 8 * mu
discriminant_root = (1 + 2 * r - r**2) / (r * (1 + r))

pair = over_axes(log_G(rho[l])) + log(exp(over_axes(rho[l] * m[l])) / 2 + exp(-over_axes(m[l])) / 2)
sigma = 1 / (1 + exp(-over_axes((1 + rho[l]) * m[l])))
pair_slope = 1 / (1 + rho[k]) - 1 / (2 * rho[k]) + sigma * m[k]

other_axes = Sum(Q_2[l, k] * (h[l] + rho[l] * m[k]), (k, 1, d), (l, 1, d))

kernel = Trace(X.T * Y)
reduction = Trace((S * (X - a)).T * R * (Y - b)) + Trace((X - a).T * b) + Trace(a.T * Y)
balance_alone = Trace((S * X).T * R * Y)

balanced_moment = S * M_x * S.T
query_moment = Inverse(S).T * M_y * Inverse(S)
side_by_side = BlockMatrix([[N_x, N_y]])
signs = BlockMatrix([[I, O], [O, -I]])
gram = BlockMatrix([[N_x.T * N_x, N_x.T * N_y], [N_y.T * N_x, N_y.T * N_y]])
gram_with_signs = BlockMatrix([[N_x.T * N_x, -N_x.T * N_y], [-N_y.T * N_x, N_y.T * N_y]])
cross = BlockMatrix([[O, 2 * N_x.T * N_y], [2 * N_y.T * N_x, O]])

mean_of_z = Sum(z[i], (i, 1, n)) / n
mean_square = Sum(z[i] ** 2, (i, 1, n)) / n
about = Sum((z[i] - t) ** 2, (i, 1, n)) / n

values = Sum(v[j] * kappa[j] * g_q, (j, 1, n)) / Sum(kappa[j] * g_q, (j, 1, n))
values_without = Sum(v[j] * kappa[j], (j, 1, n)) / Sum(kappa[j], (j, 1, n))


def argument(proof: Proof) -> None:
    moments_of_one_axis(proof)
    moments_of_all_axes(proof)
    best_tilts(proof)
    best_axes(proof)
    reductions(proof)
    best_balance(proof)
    best_shift(proof)
    refuse_variants(proof)


def moments_of_one_axis(proof: Proof) -> None:
    proof.step(
        "The moment generating function of one normal coordinate",
        normal_moment,
        Integrate(),
        exp(b_1**2 / 2),
        because="completing the square",
    )
    proof.step(
        "The lemma: E exp((1-c) omega^2/2 + b omega)",
        exp(b_1**2 / 2) / sqrt(c),
        Substitute({b_1: b_1 / sqrt(c)}),
        lemma,
        because="the tilted density exp(-c omega^2/2) is normal in sqrt(c) omega",
    )
    proof.step(
        "The root in front of w_l u_l",
        1 - 4 * (1 - 1 / r) / 8,
        Expand(),
        root_squared,
        because="A = (1 - 1/rho)/8, so 1 - 8A = 1/rho",
    )
    proof.step(
        "The mean, along one axis, squared",
        one_mean**2,
        Substitute({b_1: sqrt(root_squared) * z_l, c: root_squared}),
        exp(2 * x[l] * y[l]),
        because="two features have A twice, c = 1 - 4A: the normaliser (1-4A)^{1/2} of both "
        "cancels sqrt(c)",
    )
    proof.step(
        "The second moment, along one axis, squared",
        one_square**2,
        Substitute({b_1: 2 * sqrt(root_squared) * z_l, c: 1 / r}),
        (1 + r) ** 2 / (4 * r) * exp(4 * x[l] * y[l] + 2 * r * z_l**2),
        because="c = 1 - 8A = 1/rho; the factor is G^2, G = (1 + rho)/(2 sqrt(rho))",
    )
    proof.step(
        "w and -w, along one axis, squared",
        one_square**2,
        Substitute({b_1: 0, c: 1 / r}),
        (1 + r) ** 2 / (4 * r) * exp(4 * x[l] * y[l] - 2 * z_l**2),
        because="w_l z_l and -w_l z_l cancel, the tilts add up",
    )


def moments_of_all_axes(proof: Proof) -> None:
    proof.step(
        "The mean",
        Product(exp(x[l] * y[l]), (l, 1, d)),
        LogarithmOfProduct(),
        mean,
        because="the coordinates of w along orthonormal axes are independent; x.y does not depend "
        "on the axes",
    )
    proof.step(
        "The second moment",
        Product(exp(log_G(rho[l]) + 2 * x[l] * y[l] + rho[l] * z_l**2), (l, 1, d)),
        LogarithmOfProduct(),
        second_moment,
        because="each axis has a tilt of its own: exp(2 x.y) prod_l G(rho_l) exp(rho_l z_l^2)",
    )
    proof.step(
        "The moment of w and -w",
        Product(exp(log_G(rho[l]) + 2 * x[l] * y[l] - z_l**2), (l, 1, d)),
        LogarithmOfProduct(),
        mirrored_moment,
        because="a pair has the mean of both, prod_l G(rho_l) (e^{sum rho_l z_l^2} + e^{-s})/2",
    )


def best_tilts(proof: Proof) -> None:
    proof.step(
        "The slope of the log of the second moment in one rho",
        log_moment,
        Differentiate(rho[k]),
        slope,
        because="it is linear in z_l^2, so its mean has m_l = E z_l^2 there; no axis sees another",
    )
    proof.step(
        "For which m a rho is best",
        slope.subs({rho[k]: r, m[k]: mu}),
        Solve(mu),
        stationary_moment,
        because="below this m the slope is negative, above it positive",
    )
    proof.step(
        "It falls as rho grows",
        stationary_moment - stationary_moment.subs(r, t),
        Expand(),
        (t - r) * (1 + r + t - r * t) / (2 * r * t * (1 + r) * (1 + t)),
        because="positive for r < t <= 1, where it covers all of m >= 0, and beyond 1 it is "
        "negative: each m has one best rho",
    )
    proof.step(
        "The best rho at that m",
        discriminant,
        Substitute({mu: stationary_moment}),
        discriminant_root**2,
        because="2 m rho^2 + (2m + 1) rho - 1 = 0 has this discriminant: rho = 2/(2m + 1 + root)",
    )
    proof.step(
        "The denominator of the best rho",
        2 * stationary_moment + 1 + discriminant_root,
        Expand(),
        2 / r,
        because="so 2/(2m + 1 + root) is rho",
    )
    proof.step(
        "The slope of a pair's in one rho",
        pair,
        Differentiate(rho[k]),
        pair_slope,
        because="w's part of the second moment is sigma: each tilt is the best at sigma m_l",
    )


def best_axes(proof: Proof) -> None:
    proof.step(
        "Other axes",
        other_axes,
        Expand(),
        Sum(h[l] * Sum(Q_2[l, k], (k, 1, d)), (l, 1, d))
        + Sum(rho[l] * Sum(Q_2[l, k] * m[k], (k, 1, d)), (l, 1, d)),
        because="with m_k the eigenvalues of E z z^T and q_lk the coordinates of axis l along its "
        "eigenvectors, the moment along axis l is sum_k q_lk^2 m_k, and sum_k q_lk^2 = 1: the "
        "mean of log E T^2, h_l = log G(rho_l), is a mixture of h_l + rho_l m_k",
    )
    proof.step(
        "No axes are better than the eigenvectors",
        Sum(Q_2[l, k] * h[k], (k, 1, d), (l, 1, d)),
        Expand(),
        Sum(h[k] * Sum(Q_2[l, k], (l, 1, d)), (k, 1, d)),
        because="each h_l + rho_l m_k is at least the best that eigenvector k can do, here h_k; "
        "and sum_l q_lk^2 = 1, which leaves the sum of those",
    )


def reductions(proof: Proof) -> None:
    proof.step(
        "The reductions leave the kernel as it is",
        reduction,
        Substitute({R: Inverse(S).T}),
        kernel,
        because="S^T S^{-T} = 1, and (x-a).(y-b) + (x-a).b + a.y = x.y",
    )
    proof.step(
        "The query's factor cancels",
        values,
        Expand(),
        values_without,
        because="g_q = exp(a.y) multiplies every term; the keys' exp((x-a).b) do not cancel",
    )


def best_balance(proof: Proof) -> None:
    proof.step(
        "The geometric mean balances",
        query_moment,
        Substitute({M_y: S.T * S * M_x * S.T * S}),
        balanced_moment,
        because="P = S^T S, the geometric mean of M_x^{-1} and M_y, is the positive solution of "
        "P M_x P = M_y",
    )
    proof.step(
        "The product of the factors does not depend on S",
        N_x.T * N_y,
        Substitute({N_x: S * L_x, N_y: Inverse(S).T * L_y}),
        L_x.T * L_y,
        because="M_x = L_x L_x^T and M_y = L_y L_y^T",
    )
    proof.step(
        "The Gram matrix of both factors, side by side",
        side_by_side.T * side_by_side,
        MultiplyBlocks(),
        gram,
        because="it has the same nonzero eigenvalues as N_x N_x^T + N_y N_y^T, the second moment "
        "of the sum, N_x = S L_x and N_y = S^{-T} L_y",
    )
    proof.step(
        "The same with other signs",
        signs * gram * signs,
        MultiplyBlocks(),
        gram_with_signs,
        because="positive semidefinite as the first",
    )
    proof.step(
        "Their difference",
        gram - gram_with_signs,
        MultiplyBlocks(),
        cross,
        because="so the first is at least this one, whose largest eigenvalues are 2 sigma_j, the "
        "singular values of N_x^T N_y = L_x^T L_y: by Weyl's monotonicity no S brings eigenvalue j "
        "of the second moment below 2 sigma_j",
    )
    proof.step(
        "The balance reaches all of these bounds",
        M_x * M_y,
        Substitute({M_x: balanced_moment, M_y: query_moment}),
        S * M_x * M_y * Inverse(S),
        because="balanced, both factors are one matrix, whose square has the eigenvalues of "
        "M_x M_y, sigma_j^2; the sum is twice that matrix",
    )


def best_shift(proof: Proof) -> None:
    proof.step(
        "The slope in the shift a + b, one coordinate",
        about,
        Differentiate(t),
        2 * t - 2 * mean_of_z,
        because="z over all pairs of a key and a query; coordinates add up",
    )
    proof.step(
        "The best shift",
        2 * t - 2 * mean_of_z,
        Solve(t),
        mean_of_z,
        because="a + b = mean(x) + mean(y); with a and b the two means it is best after any S",
    )
    proof.step(
        "What it takes away",
        about,
        Substitute({t: mean_of_z}),
        mean_square - mean_of_z**2,
        because="exactly the square of the mean",
    )


def refuse_variants(proof: Proof) -> None:
    proof.refuse(
        "no normaliser",
        (one_mean / sqrt(root_squared)) ** 2,
        Substitute({b_1: sqrt(root_squared) * z_l, c: root_squared}),
        exp(2 * x[l] * y[l]),
        because="det(1 - 4A)^{1/4} in each feature cancels what the tilt takes from the mean",
    )
    proof.refuse(
        "the tilt with the other sign",
        one_square**2,
        Substitute({b_1: 2 * sqrt(root_squared) * z_l, c: r}),
        (1 + r) ** 2 / (4 * r) * exp(4 * x[l] * y[l] + 2 * r * z_l**2),
        because="a positive tilt makes long projections weigh more",
    )
    proof.refuse(
        "the best rho of Gaussian norms alone",
        slope.subs({rho[k]: r, m[k]: mu}),
        Solve(mu),
        (1 - r) / (2 * r),
        because="the normaliser G has a slope of its own",
    )
    proof.refuse(
        "one slope for all axes",
        log_moment,
        Differentiate(rho[k]),
        slope - m[k] + over_axes(m[l]),
        because="axis k sees its own moment only",
    )
    proof.refuse(
        "a pair's tilts do not see sigma",
        pair,
        Differentiate(rho[k]),
        slope,
        because="the part of -w does not grow with rho",
    )
    proof.refuse(
        "S on both sides",
        balance_alone,
        Substitute({R: S}),
        kernel,
        because="only an orthogonal S keeps x.y so",
    )
    proof.refuse(
        "the inverse without transpose",
        balance_alone,
        Substitute({R: Inverse(S)}),
        kernel,
        because="S^T S^{-1} is not 1",
    )
    proof.refuse(
        "the shift without the keys' factor",
        reduction - Trace((X - a).T * b),
        Substitute({R: Inverse(S).T}),
        kernel,
        because="(x-a).b depends on the key and does not cancel",
    )
    proof.refuse(
        "the keys' factor with x.b",
        reduction + Trace(a.T * b),
        Substitute({R: Inverse(S).T}),
        kernel,
        because="a.b would be counted twice",
    )
    proof.refuse(
        "a balance by S = M_y M_x^{-1}",
        query_moment,
        Substitute({M_y: S * M_x}),
        balanced_moment,
        because="P M_x P = M_y, not P M_x = M_y",
    )
    proof.refuse(
        "the mean shifted out of one side only",
        about,
        Substitute({t: mean_of_z / 2}),
        mean_square - mean_of_z**2,
        because="half of the mean leaves a quarter of its square",
    )


derivation = Derivation(
    title="Dense exponential features have a best tilt on each of the best axes",
    statement=(
        "With u = axes^T x, f(x) = prod_l (1-4A_l)^{1/4} exp(A_l w_l^2 + sqrt(1-4A_l) w_l u_l) "
        "e^{-|x|^2/2} has E f(x) f(y) = exp(x.y) and the second moment exp(2 x.y) prod_l G(rho_l) "
        "exp(rho_l z_l^2), rho_l = 1/(1-8A_l), z = axes^T (x+y); its mean logarithm is least on "
        "the eigenvectors of E z z^T with 2/(2m + 1 + sqrt((2m+1)^2 + 8m)) at each eigenvalue m. "
        "x.y = (S(x-a)).(S^{-T}(y-b)) + (x-a).b + a.y: no shift leaves less of E z z^T than a + b "
        "= mean(z), no S a smaller eigenvalue than the one that balances M_x and M_y."
    ),
    scope="every d and n",
    assumptions=(
        "x and y are real, the axes orthonormal",
        "the coordinates of w along the axes are independent standard normal",
        "A_l < 1/8, so that rho_l is positive and the second moment finite",
        "M_x and M_y are symmetric and positive definite, S is invertible; of the balance, x and y "
        "have mean zero",
    ),
    sizes=(
        {"d": 1, "n": 2, "k": 1, "l": 1},
        {"d": 2, "n": 3, "k": 2, "l": 1},
        {"d": 3, "n": 4, "k": 1, "l": 2},
    ),
    expressions={
        "mean": mean,
        "second_moment": second_moment,
        "mirrored_moment": mirrored_moment,
        "log_moment": log_moment,
        "slope": slope,
        "stationary_moment": stationary_moment,
        "pair_slope": pair_slope,
        "kernel": kernel,
        "reduction": reduction,
        "balanced_moment": balanced_moment,
        "query_moment": query_moment,
        "mean_of_z": mean_of_z,
    },
    argument=argument,
)
