"""The one-step identity holds for every kernel and any values: it is the associative law.

Expressions, in matrices, with V_N (N, c), V_T (T, c), Phi_N (N, m), Phi_T (T, m), phi_q (m):

- `prediction`, of any features and values, and `o`, their weighted mean (all of those)
- `smoother` of a kernel with the values kappa_q (m) at the query, in any factor of whose Gram
  matrix the features are written (V_N, V_T, S_N (N, m), S_T (T, m), kappa_q)

and in coordinates, with kernel values kappa (n), another kernel's kappa_j rho_j (rho (n)), values v
(n), other values u (n), at token t:

- `o_softmax` (kappa, v), `o_other` (kappa, rho, v), and `difference` = o_other - o_softmax, written
  as a `covariance` over a mean (kappa, rho, v)
- `p_difference`, of the weight of token t (kappa, rho, t)
- `moved`, the output of the values u (kappa, u)
- `gaussian` = exp(-|k-q|^2/2) and `gaussian_from_softmax`, the same from exp(k.q) (k (d), q (d))
"""

from sympy import (
    BlockMatrix,
    IndexedBase,
    Inverse,
    KroneckerDelta,
    MatrixSymbol,
    OneMatrix,
    Sum,
    Trace,
    exp,
    symbols,
)

from .derivation import Derivation, Differentiate, Expand, MultiplyBlocks, Proof, Substitute

N, T, c, m = symbols("N T c m", integer=True, positive=True)
eta, D = symbols("eta D", positive=True)

W = MatrixSymbol("W", c, m)
V_N, V_T = MatrixSymbol("V_N", N, c), MatrixSymbol("V_T", T, c)
Phi_N, Phi_T = MatrixSymbol("Phi_N", N, m), MatrixSymbol("Phi_T", T, m)
phi_q = MatrixSymbol("phi_q", m, 1)
one_N, one_T = OneMatrix(N, 1), OneMatrix(T, 1)

L = -Trace(V_N * W * Phi_N.T) / (eta * D)
gradient = -V_N.T * Phi_N / (eta * D)
W_0 = V_T.T * Phi_T / D
prediction = (W_0 + V_N.T * Phi_N / D) * phi_q
kernel_values = BlockMatrix([[Phi_N * phi_q], [Phi_T * phi_q]])
o = BlockMatrix([[V_N], [V_T]]).T * kernel_values / D
total_kernel = Trace(one_N.T * Phi_N * phi_q) + Trace(one_T.T * Phi_T * phi_q)

# any positive semidefinite kernel: rows of S select landmarks, F is a factor of their Gram matrix
F, kappa_q = MatrixSymbol("F", m, m), MatrixSymbol("kappa_q", m, 1)
S_N, S_T = MatrixSymbol("S_N", N, m), MatrixSymbol("S_T", T, m)
D_kernel = Trace(one_N.T * S_N * kappa_q) + Trace(one_T.T * S_T * kappa_q)
of_any_kernel = {Phi_N: S_N * F, Phi_T: S_T * F, phi_q: Inverse(F) * kappa_q, D: D_kernel}
smoother = (V_N.T * S_N * kappa_q + V_T.T * S_T * kappa_q) / D_kernel

n, d = symbols("n d", integer=True, positive=True)
j, l, t = symbols("j l t", integer=True, positive=True)  # noqa: E741
beta = symbols("beta", positive=True)

kappa = IndexedBase("kappa", shape=(n,), positive=True)
rho = IndexedBase("rho", shape=(n,), positive=True)
v, u = IndexedBase("v", shape=(n,), real=True), IndexedBase("u", shape=(n,), real=True)
k, q = IndexedBase("k", shape=(d,), real=True), IndexedBase("q", shape=(d,), real=True)


def mean(of_token, weight=kappa[j]):
    return Sum(weight * of_token, (j, 1, n)) / Sum(weight, (j, 1, n))


o_softmax, o_other = mean(v[j]), mean(v[j], kappa[j] * rho[j])
difference = o_other - o_softmax
covariance = mean((rho[j] - mean(rho[j])) * (v[j] - o_softmax)) / mean(rho[j])
p_other = kappa[t] * rho[t] / Sum(kappa[j] * rho[j], (j, 1, n))
p_difference = p_other - kappa[t] / Sum(kappa[j], (j, 1, n))
moved = mean(u[j])


def over_coordinates(term):
    return Sum(term, (l, 1, d))


gaussian = exp(-over_coordinates((k[l] - q[l]) ** 2) / 2)
gaussian_from_softmax = (
    exp(over_coordinates(k[l] * q[l]))
    * exp(-over_coordinates(k[l] ** 2) / 2)
    * exp(-over_coordinates(q[l] ** 2) / 2)
)


def argument(proof: Proof) -> None:
    proof.step(
        "The gradient, whatever the features",
        L,
        Differentiate(W),
        gradient,
        because="the loss is linear in W; nothing is asked of V or Phi",
    )
    proof.step(
        "The prediction after one step, whatever the features",
        (W - eta * gradient) * phi_q,
        Substitute({W: W_0}),
        prediction,
        because="eta cancels",
    )
    proof.step(
        "The identity is the associative law",
        o,
        MultiplyBlocks(),
        prediction,
        because="V^T (Phi phi(q)) = (V^T Phi) phi(q), for any matrices at all: no kernel is named",
    )
    proof.step(
        "Any positive semidefinite kernel",
        prediction,
        Substitute(of_any_kernel),
        smoother,
        because="a factor of its Gram matrix gives features, F cancels, and kappa(Z, q) may be any "
        "vector: the step predicts that kernel's own smoother",
    )
    proof.step(
        "What tells two kernels apart",
        difference,
        Expand(),
        covariance,
        because="with rho_j the ratio of the kernels, o' = E_p(rho v) / E_p rho: the outputs "
        "differ by the covariance of ratio and values over the mean ratio",
    )
    proof.step(
        "Seen by one-hot values",
        difference,
        Substitute({v[j]: KroneckerDelta(j, t)}),
        p_difference,
        because="the outputs are then the weights of token t; so no difference for all values "
        "means equal weights, and rho_t = E_p rho for every t",
    )
    proof.step(
        "A kernel that is proportional at the keys cannot be told apart",
        o_other,
        Substitute({rho[j]: beta}),
        o_softmax,
        because="a factor of the query alone is in D as well",
    )
    proof.step(
        "Any values",
        o_softmax,
        Substitute({v[j]: v[j] + u[j]}),
        o_softmax + moved,
        because="the output is linear in the values: other ones satisfy the identity, and move the "
        "output by their own weighted mean",
    )
    proof.step(
        "The Gaussian kernel, for instance",
        gaussian,
        Expand(),
        gaussian_from_softmax,
        because="exp(-|q|^2/2) is a factor of the query, and exp(-|k_j|^2/2) is the ratio rho_j "
        "that tells it from softmax unless all keys have one norm",
    )
    refuse_variants(proof)


def refuse_variants(proof: Proof) -> None:
    proof.refuse(
        "kernels that satisfy the identity have one output",
        o_other,
        Expand(),
        o_softmax,
        because="each of them predicts its own smoother",
    )
    proof.refuse(
        "the identity holds with the features of another kernel on one side",
        prediction,
        Substitute(of_any_kernel),
        (V_N.T * S_N * F * kappa_q + V_T.T * S_T * F * kappa_q) / D_kernel,
        because="F would have to be the identity",
    )
    proof.refuse(
        "transposed outer product",
        L,
        Differentiate(W),
        -Phi_N.T * V_N / (eta * D),
        because="phi v^T has the shape of W^T, and is not its value even when c = m",
    )
    proof.refuse(
        "dropped query-side tokens",
        o,
        MultiplyBlocks(),
        V_N.T * Phi_N * phi_q / D,
        because="bilinear or not, they belong to the sum",
    )
    proof.refuse(
        "the step has the wrong sign",
        (W + eta * gradient) * phi_q,
        Substitute({W: W_0}),
        prediction,
        because="the demonstrations would be subtracted",
    )
    proof.refuse(
        "the step is scaled by eta twice",
        (W - eta**2 * gradient) * phi_q,
        Substitute({W: W_0}),
        prediction,
        because="the loss carries 1/eta once",
    )
    proof.refuse(
        "D over the demonstrations only",
        prediction,
        Substitute(of_any_kernel),
        smoother * D_kernel / Trace(one_N.T * S_N * kappa_q),
        because="D sums over every attended token",
    )
    proof.refuse(
        "the covariance is not divided by the mean ratio",
        difference,
        Expand(),
        covariance * mean(rho[j]),
        because="the other kernel has a D of its own",
    )
    proof.refuse(
        "the covariance under the other kernel's weights",
        difference,
        Expand(),
        mean((rho[j] - mean(rho[j])) * (v[j] - o_softmax), kappa[j] * rho[j]) / mean(rho[j]),
        because="it is taken under the weights of softmax",
    )
    proof.refuse(
        "the Gaussian kernel is softmax's up to a factor of the query",
        gaussian,
        Expand(),
        exp(over_coordinates(k[l] * q[l])) * exp(-over_coordinates(q[l] ** 2) / 2),
        because="exp(-|k|^2/2) differs from key to key",
    )


derivation = Derivation(
    title="The identity is bilinearity: no kernel and no values are singled out",
    statement=(
        "For any features and any values one gradient step predicts V^T (Phi phi(q)) / D: the "
        "identity is the associative law. With a factor of the Gram matrix of any positive "
        "semidefinite kernel it says that the step predicts that kernel's own smoother. Two "
        "kernels with ratio rho_j at the keys differ by Cov_p(rho, v) / E_p rho, which vanishes "
        "for all values only if rho is the same for every key."
    ),
    scope="every N, T, c, m, n, d",
    assumptions=(
        "D is not zero and eta is positive",
        "F is invertible; the rows of S have a single 1 (the step holds for any S)",
        "in coordinates, both kernels are positive at the keys",
    ),
    sizes=(
        {"N": 1, "T": 1, "c": 2, "m": 3, "n": 2, "d": 1, "t": 1},
        {"N": 2, "T": 1, "c": 2, "m": 2, "n": 3, "d": 2, "t": 3},
        {"N": 3, "T": 2, "c": 1, "m": 4, "n": 7, "d": 5, "t": 6},
    ),
    definitions={D: total_kernel},
    expressions={
        "prediction": prediction,
        "o": o,
        "smoother": smoother,
        "o_softmax": o_softmax,
        "o_other": o_other,
        "difference": difference,
        "covariance": covariance,
        "p_difference": p_difference,
        "moved": moved,
        "gaussian": gaussian,
        "gaussian_from_softmax": gaussian_from_softmax,
    },
    argument=argument,
)
