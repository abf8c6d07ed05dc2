"""A penalty on the weights shrinks the query-side tokens, and leaves the denominators alone.

Expressions, with V_N (N, c), V_T (T, c), Phi_N (N, m), Phi_T (T, m), phi_q (m), W (c, m), eta:

- `L_alpha` (V_N, W, eta, alpha and those of D: Phi_N, Phi_T, phi_q), its `gradient` (the same)
- `W_1` after one step from W_0, `prediction` = W_1 phi(q) (V_N, V_T, alpha and those of D)
- `weights` of all values together (alpha and those of D), `o` of attention (V_N, V_T, those of D)
- `o_kernel`, the output from kernel values alone (V_N, V_T, alpha, S_N (N, m), S_T (T, m),
  kappa_q (m)): rows of S select a token's landmark, kappa_q is the landmarks' kernel with the query
"""

from sympy import (
    BlockMatrix,
    Integer,
    Inverse,
    MatrixSymbol,
    OneMatrix,
    Trace,
    ZeroMatrix,
    symbols,
)

from .derivation import Derivation, Differentiate, MultiplyBlocks, Proof, Substitute

N, T, c, m = symbols("N T c m", integer=True, positive=True)
eta, D, alpha = symbols("eta D alpha", positive=True)

W = MatrixSymbol("W", c, m)
V_N, V_T = MatrixSymbol("V_N", N, c), MatrixSymbol("V_T", T, c)
Phi_N, Phi_T = MatrixSymbol("Phi_N", N, m), MatrixSymbol("Phi_T", T, m)
phi_q = MatrixSymbol("phi_q", m, 1)

kernel_N = Trace(OneMatrix(1, N) * Phi_N * phi_q)
kernel_T = Trace(OneMatrix(1, T) * Phi_T * phi_q)
total_kernel = kernel_N + kernel_T

W_0 = V_T.T * Phi_T / D
L = -Trace(V_N * W * Phi_N.T) / (eta * D)
L_alpha = L + alpha / (2 * eta) * Trace(W * W.T)
gradient = -V_N.T * Phi_N / (eta * D) + (alpha / eta) * W
W_1 = (1 - alpha) * W_0 + V_N.T * Phi_N / D
prediction = W_1 * phi_q

Phi = BlockMatrix([[Phi_N], [Phi_T]])
layer = BlockMatrix([[V_N], [(1 - alpha) * V_T]]).T * Phi * phi_q / D
o = BlockMatrix([[V_N], [V_T]]).T * Phi * phi_q / D
weights = (kernel_N + (1 - alpha) * kernel_T) / D

# features that are exact for the kernel: landmarks selected by S, and any invertible factor F
F = MatrixSymbol("F", m, m)
S_N, S_T = MatrixSymbol("S_N", N, m), MatrixSymbol("S_T", T, m)
kappa_q = MatrixSymbol("kappa_q", m, 1)
exact_features = {Phi_N: S_N * F, Phi_T: S_T * F, phi_q: Inverse(F) * kappa_q}
D_kernel = Trace(OneMatrix(1, N) * S_N * kappa_q) + Trace(OneMatrix(1, T) * S_T * kappa_q)
o_kernel = (V_N.T * S_N * kappa_q + (1 - alpha) * V_T.T * S_T * kappa_q) / D_kernel


def argument(proof: Proof) -> None:
    proof.step(
        "The gradient of the penalised loss",
        L_alpha,
        Differentiate(W),
        gradient,
        because="the loss itself is linear; the penalty is a square, and its half cancels",
    )
    proof.step(
        "One step from W_0",
        W - eta * gradient,
        Substitute({W: W_0}),
        W_1,
        because="eta cancels in both terms: the penalty takes the share alpha of where the step "
        "starts, and W_0 is all there is",
    )
    proof.step(
        "The stepped model is attention with shrunken query-side values",
        layer,
        MultiplyBlocks(),
        prediction,
        because="only the rows of V_T are multiplied; Phi, and so D, is what it was",
    )
    proof.step(
        "It differs from attention by the query-side tokens' part alone",
        o - layer,
        MultiplyBlocks(),
        alpha * W_0 * phi_q,
        because="the demonstrations are learned in full",
    )
    proof.step(
        "The weights sum to 1 - alpha p_T",
        weights,
        Substitute({D: total_kernel}),
        1 - alpha * kernel_T / total_kernel,
        because="p_T = sum_t p_t is what the query-side tokens have of D: the weights are not "
        "made to sum to one again",
    )
    proof.step(
        "Where W_0 = 0 the penalty does nothing",
        W_1,
        Substitute({V_T: ZeroMatrix(T, c)}),
        V_N.T * Phi_N / D,
        because="the gradient of the penalty is alpha/eta W, and it is taken at W_0",
    )
    proof.step(
        "With exact features it is softmax attention with these values",
        prediction,
        Substitute({**exact_features, D: D_kernel}),
        o_kernel,
        because="Phi phi(q) = S F F^{-1} kappa(Z, q): kappa = exp(k.q) is all that is left",
    )
    refuse_variants(proof)


def refuse_variants(proof: Proof) -> None:
    proof.refuse(
        "the penalty without its half has the same gradient",
        L + alpha / eta * Trace(W * W.T),
        Differentiate(W),
        gradient,
        because="the derivative of a square is twice it: W_0 would be multiplied by 1 - 2 alpha",
    )
    proof.refuse(
        "a penalty without 1/eta shrinks by 1 - alpha",
        W - eta * (-V_N.T * Phi_N / (eta * D) + alpha * W),
        Substitute({W: W_0}),
        W_1,
        because="the step would shrink W_0 by 1 - eta alpha",
    )
    half_step = W - eta / 2 * gradient
    proof.refuse(
        "two steps of half the rate are one step",
        half_step,
        Substitute({W: (1 - alpha / 2) * W_0 + V_N.T * Phi_N / (2 * D)}),
        W_1,
        because="the second half shrinks what the first one has learned, and W_0 a second time",
    )
    proof.refuse(
        "the whole model is multiplied by 1 - alpha",
        W - eta * gradient,
        Substitute({W: W_0}),
        (1 - alpha) * (W_0 + V_N.T * Phi_N / D),
        because="the gradient is taken before the demonstrations are learned",
    )
    proof.refuse(
        "the demonstrations are multiplied by 1 - alpha",
        layer,
        MultiplyBlocks(),
        (W_0 + (1 - alpha) * V_N.T * Phi_N / D) * phi_q,
        because="it is W_0, of the query-side tokens, that is penalised",
    )
    proof.refuse(
        "the query-side tokens count less in the denominator too",
        prediction,
        Substitute({D: total_kernel}),
        (V_N.T * Phi_N * phi_q + (1 - alpha) * V_T.T * Phi_T * phi_q)
        / (kernel_N + (1 - alpha) * kernel_T),
        because="D is a number in the loss, and the penalty does not touch it",
    )
    proof.refuse(
        "the weights sum to one",
        weights,
        Substitute({D: total_kernel}),
        Integer(1),
        because="the share alpha p_T is gone",
    )


derivation = Derivation(
    title="A penalty on the weights shrinks the query-side tokens",
    statement=(
        "One gradient step from W_0 = (1/D) sum_t v_t phi(k_t)^T on L(W) + (alpha/(2 eta)) |W|_F^2 "
        "gives W_1 = (1 - alpha) W_0 + (1/D) sum_i v_i phi(k_i)^T. So W_1 phi(q) is attention with "
        "the values of the query-side tokens times 1 - alpha and the same denominators; its "
        "weights sum to 1 - alpha p_T, and without query-side tokens alpha does nothing."
    ),
    scope="every N, T, c, m",
    assumptions=(
        "D is not zero and eta is positive",
        "D is a number, fixed while W is differentiated",
        "for the last step: phi is exact on the landmarks, as gram_features shows it can be",
    ),
    sizes=(
        {"N": 1, "T": 1, "c": 2, "m": 3},
        {"N": 2, "T": 1, "c": 2, "m": 2},
        {"N": 3, "T": 2, "c": 1, "m": 4},
        {"N": 5, "T": 2, "c": 3, "m": 4},
    ),
    definitions={D: total_kernel},
    expressions={
        "L_alpha": L_alpha,
        "gradient": gradient,
        "W_1": W_1,
        "prediction": prediction,
        "weights": weights,
        "o": o,
        "o_kernel": o_kernel,
    },
    argument=argument,
)
