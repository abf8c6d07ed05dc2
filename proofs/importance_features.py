"""Importance features: projections drawn where the attention lies, and what their weights are.

Expressions, for queries Q (n_q, d), keys K (n, d), and a projection w (d); i and j count from 1:

- `shifted`, the density of q_i + k_j + N(0, I) at w over that of N(0, I) (Q, K, w, i, j)
- `mixture`, the same of all pairs, i uniform and j by A_ij, and `ratio`, what it is: one over the
  weight of w (Q, K, w)
- `contribution` of w to A_ij, with features f (n_q), g (n) and normalizers D (n_q) (f, g, D, i, j)
"""

from sympy import Expr, IndexedBase, Integer, Integral, Sum, exp, oo, pi, sqrt, symbols

from .derivation import Derivation, Expand, Integrate, Proof, Substitute

d, n, m = symbols("d n m", integer=True, positive=True)
n_q = symbols("n_q", integer=True, positive=True)
i, j, h, l, r, s = symbols("i j h l r s", integer=True, positive=True)  # noqa: E741
omega, x, y, a, c = symbols("omega x y a c", real=True)
A, T = symbols("A T", positive=True)

Q = IndexedBase("Q", shape=(n_q, d), real=True)
K = IndexedBase("K", shape=(n, d), real=True)
w = IndexedBase("w", shape=(d,), real=True)
f, D = IndexedBase("f", shape=(n_q,), positive=True), IndexedBase("D", shape=(n_q,), positive=True)
g, C = IndexedBase("g", shape=(n,), positive=True), IndexedBase("C", shape=(n,), positive=True)


def over_coordinates(term: Expr) -> Expr:
    return Sum(term, (l, 1, d))


def phi(X: IndexedBase, token: Expr) -> Expr:
    """phi_w at a row of X."""
    return exp(over_coordinates(w[l] * X[token, l]) - over_coordinates(X[token, l] ** 2) / 2)


def kappa(query: Expr, key: Expr) -> Expr:
    return exp(over_coordinates(Q[query, l] * K[key, l]))


def normalizer(query: Expr) -> Expr:
    return Sum(kappa(query, h), (h, 1, n))


def about(query: Expr, key: Expr) -> Expr:
    z = Q[query, l] + K[key, l]
    return exp(over_coordinates(w[l] * z) - over_coordinates(z**2) / 2)


def density(point: Expr) -> Expr:
    return exp(-(point**2) / 2) / sqrt(2 * pi)


A_ij = kappa(i, j) / normalizer(i)
shifted = about(i, j)
mixture = Sum(A_ij * shifted, (i, 1, n_q), (j, 1, n)) / n_q
ratio = Sum(phi(Q, r) / normalizer(r), (r, 1, n_q)) * Sum(phi(K, s), (s, 1, n)) / n_q
inverse_weight = Sum(f[r] / D[r], (r, 1, n_q)) * Sum(g[s], (s, 1, n)) / n_q
contribution = f[i] * g[j] / D[i] / inverse_weight
half_norms = (x**2 + y**2) / 2


def argument(proof: Proof) -> None:
    proof.step(
        "The density about a query and a key, in one coordinate",
        density(omega - x - y) / density(omega),
        Expand(),
        exp(omega * (x + y) - (x + y) ** 2 / 2),
        because="w ~ q + k + N(0, I), relative to N(0, I); coordinates multiply",
    )
    proof.step(
        "Times the kernel it is a product of features",
        kappa(i, j) * shifted,
        Expand(),
        phi(Q, i) * phi(K, j),
        because="|q+k|^2/2 has q.k, which the kernel takes away",
    )
    proof.step(
        "The mixture of all pairs is a product of two sums",
        mixture,
        Expand(),
        ratio,
        because="A_ij = kappa_ij/D_i, and D_i depends on the query alone",
    )
    proof.step(
        "The moment generating function of one normal coordinate",
        Integral(density(omega) * exp(c * omega), (omega, -oo, oo)),
        Integrate(),
        exp(c**2 / 2),
        because="completing the square",
    )
    proof.step(
        "The mean of a weighted product, in one coordinate",
        exp(c**2 / 2 - half_norms),
        Substitute({c: x + y}),
        exp(x * y),
        because="p is positive everywhere and cancels against the weight N(w; 0, I)/p(w): "
        "E phi(x).phi(y) = exp(x.y), at all points x and y",
    )
    proof.step(
        "What the queries get from one projection",
        Sum(contribution, (i, 1, n_q), (j, 1, n)),
        Expand(),
        n_q,
        because="f_i = phi_w(q_i) and g_j = phi_w(k_j) in the ratio: at every w, drawn or not; as "
        "no contribution is negative, none is larger than n_q",
    )
    proof.step(
        "The second moment of a bounded feature",
        T * n_q / A - T**2,
        Expand(),
        T * (n_q / A - T),
        because="T is the contribution over A_ij, of mean 1, and 0 <= T <= n_q/A_ij: E T^2 <= "
        "n_q/A_ij",
    )
    proof.step(
        "The bound of the relative variance of m features",
        (T * n_q / A - 1) / m,
        Substitute({T: 1}),
        (n_q / A - 1) / m,
        because="E T = 1, and the features are independent",
    )
    refuse_variants(proof)


def refuse_variants(proof: Proof) -> None:
    proof.refuse(
        "the density is a product of features",
        shifted,
        Expand(),
        phi(Q, i) * phi(K, j),
        because="exp(-q.k) is missing: pairs of a large score would be drawn too often",
    )
    proof.refuse(
        "keys drawn uniformly",
        Sum(shifted, (i, 1, n_q), (j, 1, n)) / (n_q * n),
        Expand(),
        ratio,
        because="only the attention takes exp(-q.k) away",
    )
    proof.refuse(
        "a sum over queries instead of a mean",
        n_q * mixture,
        Expand(),
        ratio,
        because="a density has the integral 1",
    )
    proof.refuse(
        "a normalizer of the keys",
        Sum(f[i] * g[j] / C[j] / inverse_weight, (i, 1, n_q), (j, 1, n)),
        Expand(),
        n_q,
        because="attention is normalised over the keys of a query",
    )
    proof.refuse(
        "unbiased without weights",
        exp(c**2 / 2 + a * c - half_norms),
        Substitute({c: x + y}),
        exp(x * y),
        because="about a the mean is exp(x y) exp(a (x + y))",
    )
    proof.refuse(
        "contributions have the mean 1",
        Sum(contribution, (i, 1, n_q), (j, 1, n)) / (n_q * n),
        Expand(),
        Integer(1),
        because="they share one projection among all keys",
    )
    proof.refuse(
        "the second moment is the mean",
        T * n_q / A - T**2,
        Substitute({T: 1}),
        n_q / A - n_q,
        because="the bound is n_q/A_ij, not 1/A_ij",
    )


derivation = Derivation(
    title="Random features drawn where the attention lies",
    statement=(
        "Let w ~ q_i + k_j + N(0, I), i uniform and j by the attention A_ij, with density p. Then "
        "p(w)/N(w; 0, I) = mean_i phi_w(q_i)/D_i sum_j phi_w(k_j). Positive features times the "
        "root of N(w; 0, I)/p(w) have the mean exp(x.y) at all x and y; their contributions to the "
        "A_ij add up to n_q at every w: the relative variance of m is below n_q/(m A_ij)."
    ),
    scope="every n_q, n, d and m",
    assumptions=(
        "queries and keys are real, the scale of the scores is 1",
        "the expectation over one coordinate of N(0, I), as in positive_features",
    ),
    sizes=(
        {"n_q": 1, "n": 1, "d": 2, "m": 3, "i": 1, "j": 1},
        {"n_q": 2, "n": 3, "d": 1, "m": 1, "i": 2, "j": 1},
        {"n_q": 4, "n": 3, "d": 5, "m": 6, "i": 2, "j": 1},
    ),
    expressions={
        "shifted": shifted,
        "mixture": mixture,
        "ratio": ratio,
        "contribution": contribution,
    },
    argument=argument,
)
