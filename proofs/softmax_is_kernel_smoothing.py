"""Softmax attention is the kernel smoother of the exponential kernel.

Expressions, at coordinate r (from 1) of the output, with K (n, d), q (d), v (n, c):

- `kappa_j`, the kernel value of token j (K, q, j); `objective` at a (K, q, v, a (c))
- `o`, coordinate r of the attention output (K, q, v, r); `p_j`, the weight of token j (K, q, j)
- `o_merged`, the output when token j occurs w_j times (K, q, v, r, w (n))
"""

from sympy import IndexedBase, Integer, Sum, exp, symbols

from .derivation import Derivation, Differentiate, Expand, Proof, Solve, Substitute

n, d, c = symbols("n d c", integer=True, positive=True)
i, j, l, r, s, u = symbols("i j l r s u", integer=True, positive=True)  # noqa: E741

K = IndexedBase("K", shape=(n, d), real=True)
q = IndexedBase("q", shape=(d,), real=True)
v = IndexedBase("v", shape=(n, c), real=True)
a = IndexedBase("a", shape=(c,), real=True)
b = IndexedBase("b", shape=(d,), real=True)
B = IndexedBase("B", shape=(n, d), real=True)
A = IndexedBase("A", shape=(c, c), real=True)
beta = IndexedBase("beta", shape=(c,), real=True)
w = IndexedBase("w", shape=(n,), integer=True, positive=True)

kappa_j = exp(Sum(K[j, l] * q[l], (l, 1, d)))
total = Sum(kappa_j.subs(j, i), (i, 1, n))
p_j = kappa_j / total

objective = Sum(kappa_j * (v[j, s] - a[s]) ** 2, (s, 1, c), (j, 1, n))
slope = -2 * Sum(kappa_j * (v[j, r] - a[r]), (j, 1, n))


def output(coordinate):
    return Sum(kappa_j * v[j, coordinate], (j, 1, n)) / total


o = output(r)
o_merged = Sum(w[j] * kappa_j * v[j, r], (j, 1, n)) / Sum(w[j] * kappa_j, (j, 1, n))
repeated = Sum(kappa_j * v[j, r], (u, 1, w[j]), (j, 1, n)) / Sum(kappa_j, (u, 1, w[j]), (j, 1, n))
mapped = Sum(p_j * (Sum(A[r, s] * v[j, s], (s, 1, c)) + beta[r]), (j, 1, n))


def argument(proof: Proof) -> None:
    proof.step(
        "The slope of the objective in one coordinate",
        objective,
        Differentiate(a[r]),
        slope,
        because="the objective is a sum over coordinates, and only coordinate r depends on a_r",
    )
    proof.step(
        "Its only zero is the attention output",
        slope,
        Solve(a[r]),
        o,
        because="the slope is linear in a_r",
    )
    proof.step(
        "The curvature is positive",
        slope,
        Differentiate(a[r]),
        2 * total,
        because="exponentials are positive, so the stationary point is a minimum",
    )
    proof.step(
        "Completing the square",
        Sum(kappa_j * (v[j, r] - a[r]) ** 2, (j, 1, n)),
        Expand(),
        Sum(kappa_j * (v[j, r] - o) ** 2, (j, 1, n)) + total * (a[r] - o) ** 2,
        because="any other a costs sum_j kappa_j (a - o)^2 more: the minimum is unique",
    )
    proof.step(
        "The weights sum to one",
        Sum(p_j, (j, 1, n)),
        Expand(),
        Integer(1),
        because="the denominator does not depend on the token; with p_j > 0 the output lies in the "
        "convex hull of the values",
    )
    shift = Substitute({K[j, l]: K[j, l] + b[l]})
    proof.step(
        "One vector added to every key multiplies every kernel value by the same factor",
        kappa_j,
        shift,
        kappa_j * exp(Sum(b[l] * q[l], (l, 1, d))),
        because="exp((k_j + b).q) = exp(k_j.q) exp(b.q)",
    )
    proof.step(
        "One vector added to every key changes nothing",
        o,
        shift,
        o,
        because="the common factor exp(b.q) cancels",
    )
    proof.step(
        "An affine map of the values is the same affine map of the output",
        mapped,
        Expand(),
        Sum(A[r, s] * output(s), (s, 1, c)) + beta[r],
        because="the output is linear in the values and the weights sum to one",
    )
    proof.step(
        "Equal tokens merge into one that carries their number",
        repeated,
        Expand(),
        o_merged,
        because="a token that occurs w_j times contributes w_j equal terms above and below",
    )
    refuse_variants(proof)


def refuse_variants(proof: Proof) -> None:
    proof.refuse(
        "plain mean of the weighted values",
        slope,
        Solve(a[r]),
        Sum(kappa_j * v[j, r], (j, 1, n)) / n,
        because="the denominator is the sum of the kernel, not the number of tokens",
    )
    gauss_j = exp(-Sum((K[j, l] - q[l]) ** 2, (l, 1, d)) / 2)
    proof.refuse(
        "the Gaussian kernel gives the same smoother",
        Sum(gauss_j * v[j, r], (j, 1, n)) / Sum(gauss_j, (j, 1, n)),
        Expand(),
        o,
        because="exp(-|k-q|^2/2) carries exp(-|k|^2/2), which differs from key to key",
    )
    proof.refuse(
        "wrong bandwidth",
        Sum(kappa_j**2 * v[j, r], (j, 1, n)) / Sum(kappa_j**2, (j, 1, n)),
        Expand(),
        o,
        because="a temperature is not a common factor",
    )
    proof.refuse(
        "adding one vector to the query changes nothing",
        o,
        Substitute({q[l]: q[l] + b[l]}),
        o,
        because="exp(k_j.b) depends on the token",
    )
    proof.refuse(
        "adding a different vector to each key changes nothing",
        o,
        Substitute({K[j, l]: K[j, l] + B[j, l]}),
        o,
        because="only a common factor cancels",
    )
    proof.refuse(
        "an affine map of the values without its offset",
        mapped,
        Expand(),
        Sum(A[r, s] * output(s), (s, 1, c)),
        because="the weights sum to one, so the offset stays",
    )
    proof.refuse(
        "equal tokens count once",
        repeated,
        Expand(),
        o,
        because="multiplicities do not cancel unless they are all equal",
    )


derivation = Derivation(
    title="Softmax attention is kernel smoothing",
    statement=(
        "The output of softmax attention minimises sum_j kappa_j |v_j - a|^2 over a, with "
        "kappa_j = exp(k_j.q): it is the Nadaraya-Watson smoother of the exponential kernel. Its "
        "weights are positive and sum to one; it does not change when one vector is added to all "
        "keys; it follows affine maps of the values; equal tokens merge their weights."
    ),
    scope="every n, d, c",
    assumptions=("all entries are real and finite", "there is at least one token"),
    sizes=(
        {"n": 1, "d": 2, "c": 1, "r": 1, "j": 1},
        {"n": 2, "d": 1, "c": 3, "r": 2, "j": 2},
        {"n": 4, "d": 5, "c": 3, "r": 2, "j": 1},
    ),
    expressions={
        "kappa_j": kappa_j,
        "objective": objective,
        "o": o,
        "p_j": p_j,
        "o_merged": o_merged,
    },
    argument=argument,
)
