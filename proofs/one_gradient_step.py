"""One gradient step of the dual model is the attention output.

Expressions, with V_N (N, c), V_T (T, c), Phi_N (N, m), Phi_T (T, m), phi_q (m), W (c, m), eta:

- `D` (Phi_N, Phi_T, phi_q), `W_0` (V_T and those of D)
- `L` (V_N, W, eta and those of D), `gradient` (V_N, eta and those of D)
- `W_1`, `prediction` = W_1 phi(q), `o` (V_N, V_T and those of D)
- `o_kernel`, the output from kernel values alone (V_N, V_T, S_N (N, m), S_T (T, m), kappa_q (m)):
  rows of S select a token's landmark, kappa_q holds the kernel of the landmarks with the query
"""

from sympy import BlockMatrix, Inverse, MatrixSymbol, OneMatrix, Rational, Trace, symbols

from .derivation import Derivation, Differentiate, MultiplyBlocks, Proof, Substitute

N, T, c, m = symbols("N T c m", integer=True, positive=True)
eta, D = symbols("eta D", positive=True)

W = MatrixSymbol("W", c, m)
V_N, V_T = MatrixSymbol("V_N", N, c), MatrixSymbol("V_T", T, c)
Phi_N, Phi_T = MatrixSymbol("Phi_N", N, m), MatrixSymbol("Phi_T", T, m)
phi_q = MatrixSymbol("phi_q", m, 1)

one_N, one_T = OneMatrix(N, 1), OneMatrix(T, 1)
total_kernel = Trace(one_N.T * Phi_N * phi_q) + Trace(one_T.T * Phi_T * phi_q)

W_0 = V_T.T * Phi_T / D
L = -Trace(V_N * W * Phi_N.T) / (eta * D)
gradient = -V_N.T * Phi_N / (eta * D)
W_1 = W_0 + V_N.T * Phi_N / D
prediction = W_1 * phi_q

V, Phi = BlockMatrix([[V_N], [V_T]]), BlockMatrix([[Phi_N], [Phi_T]])
one = BlockMatrix([[one_N], [one_T]])
o = V.T * Phi * phi_q / D

# features that are exact for the kernel: landmarks selected by S, and any invertible factor F
F = MatrixSymbol("F", m, m)
S_N, S_T = MatrixSymbol("S_N", N, m), MatrixSymbol("S_T", T, m)
kappa_q = MatrixSymbol("kappa_q", m, 1)
exact_features = {Phi_N: S_N * F, Phi_T: S_T * F, phi_q: Inverse(F) * kappa_q}
D_kernel = Trace(one_N.T * S_N * kappa_q) + Trace(one_T.T * S_T * kappa_q)
o_kernel = (V_N.T * S_N * kappa_q + V_T.T * S_T * kappa_q) / D_kernel


def argument(proof: Proof) -> None:
    proof.step(
        "The denominator sums the kernel over every attended token",
        one.T * Phi * phi_q,
        MultiplyBlocks(),
        one_N.T * Phi_N * phi_q + one_T.T * Phi_T * phi_q,
        because="demonstrations and query-side tokens are stacked; this number is D",
    )
    proof.step(
        "The gradient of the loss",
        L,
        Differentiate(W),
        gradient,
        because="the loss is linear in W, so its gradient is a constant: the outer products",
    )
    proof.step(
        "One step from W_0",
        W - eta * gradient,
        Substitute({W: W_0}),
        W_1,
        because="the step size eta cancels the 1/eta that the loss carries",
    )
    proof.step(
        "The attention output is the prediction of the stepped model",
        o,
        MultiplyBlocks(),
        prediction,
        because="attention over the stacked tokens is the sum over the two groups, which are W_0 "
        "and the step",
    )
    proof.step(
        "With exact features the denominator is that of softmax",
        total_kernel,
        Substitute(exact_features),
        D_kernel,
        because="Phi phi(q) = S F F^{-1} kappa(Z, q): the factor cancels",
    )
    proof.step(
        "With exact features the prediction is softmax attention",
        prediction,
        Substitute({**exact_features, D: D_kernel}),
        o_kernel,
        because="kappa = exp(k.q) is all that is left, divided by its sum over all tokens",
    )
    refuse_variants(proof)


def refuse_variants(proof: Proof) -> None:
    proof.refuse(
        "loss without 1/D",
        -Trace(V_N * W * Phi_N.T) / eta,
        Differentiate(W),
        gradient,
        because="the step would be D times too long",
    )
    proof.refuse(
        "transposed outer product",
        L,
        Differentiate(W),
        -Phi_N.T * V_N / (eta * D),
        because="phi(k) v^T has the shape of W^T, and is not its value even when c = m",
    )
    proof.refuse(
        "ascent instead of descent",
        W + eta * gradient,
        Substitute({W: W_0}),
        W_1,
        because="the demonstrations would be subtracted",
    )
    proof.refuse(
        "eta applied twice",
        W - eta**2 * gradient,
        Substitute({W: W_0}),
        W_1,
        because="the loss carries 1/eta once",
    )
    proof.refuse(
        "step from zero instead of W_0",
        W - eta * gradient,
        Substitute({W: 0 * W}),
        W_1,
        because="the query-side tokens would be lost",
    )
    proof.refuse(
        "query-side tokens dropped from the output",
        o,
        MultiplyBlocks(),
        V_N.T * Phi_N * phi_q / D,
        because="the query attends to itself as well",
    )
    proof.refuse(
        "D over the demonstrations only",
        one.T * Phi * phi_q,
        MultiplyBlocks(),
        one_N.T * Phi_N * phi_q,
        because="the softmax denominator runs over every attended token",
    )
    residual = Phi_N * W.T - V_N
    proof.refuse(
        "least squares has the same gradient",
        Rational(1, 2) * Trace(residual * residual.T) / (eta * D),
        Differentiate(W),
        gradient,
        because="its gradient depends on W; the two agree at W = 0 only",
    )


derivation = Derivation(
    title="One gradient step of the dual model is the attention output",
    statement=(
        "Let W_0 = (1/D) sum_t v_t phi(k_t)^T be built from the query-side tokens, and let "
        "L(W) = -(1/(eta D)) sum_i v_i^T W phi(k_i) be the loss over the demonstrations. One step "
        "of gradient descent, W_1 = W_0 - eta grad L(W_0), predicts W_1 phi(q) = o, the output of "
        "attention at q; with features that are exact for exp(k.q) this is softmax attention."
    ),
    scope="every N, T, c, m",
    assumptions=(
        "D is not zero and eta is positive",
        "D is a number, fixed while W is differentiated",
        "for the last two steps: phi is exact on the landmarks, as gram_features shows it can be",
    ),
    sizes=(
        {"N": 1, "T": 1, "c": 2, "m": 3},
        {"N": 2, "T": 1, "c": 2, "m": 2},
        {"N": 3, "T": 2, "c": 1, "m": 4},
        {"N": 5, "T": 2, "c": 3, "m": 4},
    ),
    definitions={D: total_kernel},
    expressions={
        "D": total_kernel,
        "W_0": W_0,
        "L": L,
        "gradient": gradient,
        "W_1": W_1,
        "prediction": prediction,
        "o": o,
        "o_kernel": o_kernel,
    },
    argument=argument,
)
