"""A dual trained on augmented pairs is attention over augmented values and augmented keys.

Expressions, with the values of the maps G_N = g1(V_N) (N, c), G_T (T, c), the features of mapped
keys Psi_N = phi(g2(K_N)) (N, m), Psi_T (T, m), phi_q (m), W (c, m), eta:

- `D` (Psi_N, Psi_T, phi_q), `L` (G_N, W, eta and those of D), `gradient` (G_N, eta, those of D)
- `W_1` after one step from W_0, `prediction` = W_1 phi(q) (G_N, G_T and those of D)
- `o_kernel`, the output from kernel values alone (G_N, G_T, S_N (N, m), S_T (T, m), kappa_q (m)):
  rows of S select a token's landmark, a mapped key, and kappa_q is their kernel with the query

and at coordinate r of the output, with K (n, d), q (d), v (n, c), A (c, c), a (c), B (d, d), and
the inner values H (n, d) of a residual map k + h(k):

- `kappa_linear`, the kernel of token j under g2(k) = B k (K, q, B, j); `kappa_residual`, under
  g2(k) = k + h(k) (K, H, q, j)
- `o_residual`, the output under a residual key map (K, H, q, v, r); `o` without maps (K, q, v, r)
- `o_affine`, the output under g1(v) = A v + a too (K, H, q, v, A, a, r)
"""

from sympy import (
    BlockMatrix,
    IndexedBase,
    Inverse,
    MatrixSymbol,
    OneMatrix,
    Sum,
    Trace,
    exp,
    symbols,
)

from .derivation import Derivation, Differentiate, Expand, MultiplyBlocks, Proof, Substitute

N, T, c, m, n, d = symbols("N T c m n d", integer=True, positive=True)
j, l, r, s, u = symbols("j l r s u", integer=True, positive=True)  # noqa: E741
eta, D = symbols("eta D", positive=True)

W = MatrixSymbol("W", c, m)
V_N, G_N, G_T = MatrixSymbol("V_N", N, c), MatrixSymbol("G_N", N, c), MatrixSymbol("G_T", T, c)
Phi_N, Phi_T = MatrixSymbol("Phi_N", N, m), MatrixSymbol("Phi_T", T, m)
Psi_N, Psi_T = MatrixSymbol("Psi_N", N, m), MatrixSymbol("Psi_T", T, m)
phi_q = MatrixSymbol("phi_q", m, 1)
one_N, one_T = OneMatrix(N, 1), OneMatrix(T, 1)
total_kernel = Trace(one_N.T * Psi_N * phi_q) + Trace(one_T.T * Psi_T * phi_q)

W_0 = G_T.T * Psi_T / D
L = -Trace(G_N * W * Psi_N.T) / (eta * D)
gradient = -G_N.T * Psi_N / (eta * D)
W_1 = W_0 + G_N.T * Psi_N / D
prediction = W_1 * phi_q
Psi = BlockMatrix([[Psi_N], [Psi_T]])
layer = BlockMatrix([[G_N], [G_T]]).T * Psi * phi_q / D

# features that are exact for the kernel: the landmarks are mapped keys, selected by S
F = MatrixSymbol("F", m, m)
S_N, S_T = MatrixSymbol("S_N", N, m), MatrixSymbol("S_T", T, m)
kappa_q = MatrixSymbol("kappa_q", m, 1)
exact_features = {Psi_N: S_N * F, Psi_T: S_T * F, phi_q: Inverse(F) * kappa_q}
D_kernel = Trace(one_N.T * S_N * kappa_q) + Trace(one_T.T * S_T * kappa_q)
o_kernel = (G_N.T * S_N * kappa_q + G_T.T * S_T * kappa_q) / D_kernel

K = IndexedBase("K", shape=(n, d), real=True)
H = IndexedBase("H", shape=(n, d), real=True)
q = IndexedBase("q", shape=(d,), real=True)
v = IndexedBase("v", shape=(n, c), real=True)
A = IndexedBase("A", shape=(c, c), real=True)
a = IndexedBase("a", shape=(c,), real=True)
B = IndexedBase("B", shape=(d, d), real=True)


def kernel(key_entry, query_entry=lambda entry: q[entry]):
    return exp(Sum(key_entry(l) * query_entry(l), (l, 1, d)))


def smooth(kappa, value):
    return Sum(kappa * value, (j, 1, n)) / Sum(kappa, (j, 1, n))


def mapped_by_B(entry):
    return Sum(B[entry, u] * K[j, u], (u, 1, d))


kappa_j = kernel(lambda entry: K[j, entry])
kappa_linear = kernel(mapped_by_B)
kappa_residual = kernel(lambda entry: K[j, entry] + H[j, entry])
kappa_inner = kernel(lambda entry: H[j, entry])
affine = Sum(A[r, s] * v[j, s], (s, 1, c)) + a[r]

o = smooth(kappa_j, v[j, r])
o_residual = smooth(kappa_residual, v[j, r])
o_affine = smooth(kappa_residual, affine)


def argument(proof: Proof) -> None:
    proof.step(
        "The denominator sums the kernel over the augmented keys",
        BlockMatrix([[one_N], [one_T]]).T * Psi * phi_q,
        MultiplyBlocks(),
        one_N.T * Psi_N * phi_q + one_T.T * Psi_T * phi_q,
        because="a mapped key is a key like any other; this number is D",
    )
    proof.step(
        "The gradient of the loss over augmented pairs",
        L,
        Differentiate(W),
        gradient,
        because="the maps are applied to the tokens, not to W: the loss is still linear in it",
    )
    proof.step(
        "One step from W_0",
        W - eta * gradient,
        Substitute({W: W_0}),
        W_1,
        because="W_0 is made of the augmented query-side tokens, and eta cancels",
    )
    proof.step(
        "Attention over the augmented tokens is the prediction of the stepped model",
        layer,
        MultiplyBlocks(),
        prediction,
        because="nothing but the pairs has changed: any maps will do, and they need not be smooth",
    )
    proof.step(
        "With exact features it is softmax attention over the augmented keys",
        prediction,
        Substitute({**exact_features, D: D_kernel}),
        o_kernel,
        because="the landmarks are the mapped keys, so numerator and denominator have the kernel "
        "exp(g2(k).q)",
    )
    proof.step(
        "A linear key map is a linear map of the query",
        kappa_linear,
        Expand(),
        kernel(lambda entry: K[j, entry], lambda entry: Sum(B[u, entry] * q[u], (u, 1, d))),
        because="(B k).q = k.(B^T q): it is another projection, and nothing new",
    )
    proof.step(
        "A residual key map multiplies each kernel value by that of its inner map",
        kappa_residual,
        Expand(),
        kappa_j * kappa_inner,
        because="exp((k + h).q) = exp(k.q) exp(h.q), which differs from token to token",
    )
    proof.step(
        "An affine value map is the same map of the output",
        o_affine,
        Expand(),
        Sum(A[r, s] * smooth(kappa_residual, v[j, s]), (s, 1, c)) + a[r],
        because="the weights sum to one: only a map that is not affine is new",
    )
    proof.step(
        "A residual map of nothing is attention",
        o_residual,
        Substitute({H[j, l]: 0}),
        o,
        because="identity maps leave keys and kernel as they are",
    )
    refuse_variants(proof)


def refuse_variants(proof: Proof) -> None:
    proof.refuse(
        "D over the original keys",
        prediction,
        Substitute({D: total_kernel}),
        (G_N.T * Psi_N * phi_q + G_T.T * Psi_T * phi_q)
        / (Trace(one_N.T * Phi_N * phi_q) + Trace(one_T.T * Phi_T * phi_q)),
        because="the softmax runs over the keys that it is given, and these are the augmented ones",
    )
    proof.refuse(
        "the labels are the original values",
        L,
        Differentiate(W),
        -V_N.T * Psi_N / (eta * D),
        because="the outer products are those of the pairs in the loss",
    )
    proof.refuse(
        "the features are those of the original keys",
        L,
        Differentiate(W),
        -G_N.T * Phi_N / (eta * D),
        because="the outer products are those of the pairs in the loss",
    )
    proof.refuse(
        "the query-side tokens are not augmented",
        layer,
        MultiplyBlocks(),
        (W_1 - W_0 + G_T.T * Phi_T / D) * phi_q,
        because="the layer maps every token that is attended",
    )
    proof.refuse(
        "a linear key map acts on the query as B",
        kappa_linear,
        Expand(),
        kernel(lambda entry: K[j, entry], lambda entry: Sum(B[entry, u] * q[u], (u, 1, d))),
        because="moved to the other side of a dot product a matrix is transposed",
    )
    proof.refuse(
        "the query is mapped with the keys",
        kappa_linear,
        Expand(),
        kernel(mapped_by_B, lambda entry: Sum(B[entry, u] * q[u], (u, 1, d))),
        because="g2 belongs to the tokens of the training set, the query is read as it is",
    )
    proof.refuse(
        "a residual key map adds kernels",
        kappa_residual,
        Expand(),
        kappa_j + kappa_inner,
        because="a sum in the exponent is a product",
    )
    proof.refuse(
        "any value map is a map of the output",
        smooth(kappa_j, v[j, r] ** 2),
        Expand(),
        o**2,
        because="the mean of squares is not the square of the mean",
    )


derivation = Derivation(
    title="A dual trained on augmented pairs is attention over augmented tokens",
    statement=(
        "Train the dual on the pairs (phi(g2(k_i)), g1(v_i)) in the place of (phi(k_i), v_i), for "
        "any maps g1 and g2. One gradient step predicts attention with the values g1(v_j) and the "
        "keys g2(k_j), whose denominator sums over the augmented keys. Affine value maps and "
        "linear key maps are maps of the output and of the query; a residual key map multiplies "
        "each kernel value by that of its inner map; identity maps give attention."
    ),
    scope="every N, T, c, m, n, d, any maps",
    assumptions=(
        "D is not zero and eta is positive",
        "D is a number, fixed while W is differentiated",
        "every token is augmented, the query-side ones too",
        "for softmax: phi is exact on the mapped keys, as gram_features shows it can be",
    ),
    sizes=(
        {"N": 1, "T": 1, "c": 2, "m": 3, "n": 2, "d": 1, "r": 1, "j": 2},
        {"N": 2, "T": 1, "c": 2, "m": 2, "n": 3, "d": 2, "r": 2, "j": 1},
        {"N": 5, "T": 4, "c": 3, "m": 7, "n": 6, "d": 8, "r": 1, "j": 2},
    ),
    definitions={D: total_kernel},
    expressions={
        "D": total_kernel,
        "L": L,
        "gradient": gradient,
        "W_1": W_1,
        "prediction": prediction,
        "o_kernel": o_kernel,
        "kappa_linear": kappa_linear,
        "kappa_residual": kappa_residual,
        "o_residual": o_residual,
        "o": o,
        "o_affine": o_affine,
    },
    argument=argument,
)
