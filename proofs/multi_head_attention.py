"""Multi-head attention is one gradient step of one model with block-diagonal features.

Two heads A and B, for each the stacks of N demonstrations (V_A (N, c), Phi_A (N, m_A)) and of T
query-side tokens (U_A (T, c), Psi_A (T, m_A)), the features f_A (m_A) of its query and its block
W_A (k, c) of the output matrix; the same with B. Expressions:

- `D_A`, `D_B` (Phi_A, Psi_A, f_A), and `o_A`, `o_B` (V_A, U_A and those of D_A), the heads alone
- `labels` (V_A, V_B, W_A, W_B) and `key_features` (Phi_A, Phi_B) of the demonstrations, `readout`
  (those of D_A, D_B)
- `gradient` (eta, labels' and key_features'), `W_0` (U_A, U_B, Psi_A, Psi_B, W_A, W_B) and `W_1`
- `prediction` = W_1 phi_joint(q), and `layer`, the multi-head output (all of them but eta)
- `weights` of the demonstrations, in each head (Phi_A, Phi_B and those of `readout`)
"""

from sympy import (
    BlockMatrix,
    Integer,
    MatrixSymbol,
    OneMatrix,
    Trace,
    ZeroMatrix,
    symbols,
)

from .derivation import Derivation, Differentiate, MultiplyBlocks, Proof, Substitute

N, T, c, k, m_A, m_B = symbols("N T c k m_A m_B", integer=True, positive=True)
M, m = symbols("M m", integer=True, positive=True)
eta, D_A, D_B = symbols("eta D_A D_B", positive=True)

V_A, V_B = MatrixSymbol("V_A", N, c), MatrixSymbol("V_B", N, c)
U_A, U_B = MatrixSymbol("U_A", T, c), MatrixSymbol("U_B", T, c)
Phi_A, Phi_B = MatrixSymbol("Phi_A", N, m_A), MatrixSymbol("Phi_B", N, m_B)
Psi_A, Psi_B = MatrixSymbol("Psi_A", T, m_A), MatrixSymbol("Psi_B", T, m_B)
f_A, f_B = MatrixSymbol("f_A", m_A, 1), MatrixSymbol("f_B", m_B, 1)
W_A, W_B = MatrixSymbol("W_A", k, c), MatrixSymbol("W_B", k, c)


def total_kernel(Phi, Psi, f):
    return Trace(OneMatrix(N, 1).T * Phi * f) + Trace(OneMatrix(T, 1).T * Psi * f)


def attention(V, U, Phi, Psi, f, D):
    return BlockMatrix([[V], [U]]).T * BlockMatrix([[Phi], [Psi]]) * f / D


def diagonal(upper, lower):
    return BlockMatrix(
        [
            [upper, ZeroMatrix(upper.shape[0], lower.shape[1])],
            [ZeroMatrix(lower.shape[0], upper.shape[1]), lower],
        ]
    )


kernel_A, kernel_B = total_kernel(Phi_A, Psi_A, f_A), total_kernel(Phi_B, Psi_B, f_B)
o_A = attention(V_A, U_A, Phi_A, Psi_A, f_A, D_A)
o_B = attention(V_B, U_B, Phi_B, Psi_B, f_B, D_B)
W_O = BlockMatrix([[W_A, W_B]])

labels = BlockMatrix([[V_A * W_A.T], [V_B * W_B.T]])
key_features = diagonal(Phi_A, Phi_B)
readout = BlockMatrix([[f_A / D_A], [f_B / D_B]])

# the loss of a model W on 2 N training pairs, with labels Y and features F
W = MatrixSymbol("W", k, m_A + m_B)
Y, F = MatrixSymbol("Y", 2 * N, k), MatrixSymbol("F", 2 * N, m_A + m_B)
L = -Trace(Y * W * F.T) / eta

gradient = BlockMatrix([[-W_A * V_A.T * Phi_A / eta, -W_B * V_B.T * Phi_B / eta]])
W_0 = BlockMatrix([[W_A * U_A.T * Psi_A, W_B * U_B.T * Psi_B]])
D_W_A, D_W_B = U_A.T * Psi_A + V_A.T * Phi_A, U_B.T * Psi_B + V_B.T * Phi_B
W_1 = BlockMatrix([[W_A * D_W_A, W_B * D_W_B]])
prediction = W_1 * readout
layer = W_O * BlockMatrix([[o_A], [o_B]])
weights = BlockMatrix([[Phi_A * f_A / D_A], [Phi_B * f_B / D_B]])

# any number of heads, jointly: M training pairs with labels P at features R, read out at r
P, R, r = MatrixSymbol("P", M, k), MatrixSymbol("R", M, m), MatrixSymbol("r", m, 1)


def argument(proof: Proof) -> None:
    proof.step(
        "The output matrix adds the heads up",
        layer,
        MultiplyBlocks(),
        W_A * o_A + W_B * o_B,
        because="each head meets its own block of columns",
    )
    proof.step(
        "The labels of the joint model",
        diagonal(V_A, V_B) * W_O.T,
        MultiplyBlocks(),
        labels,
        because="a token is one training pair a head, and its label there is W_O^h v",
    )
    proof.step(
        "The gradient of the loss on all training pairs",
        L,
        Differentiate(W),
        -Y.T * F / eta,
        because="the loss is linear in W, as that of one head",
    )
    proof.step(
        "Each head has its block of the gradient",
        -Y.T * F / eta,
        Substitute({Y: labels, F: key_features}),
        gradient,
        because="a pair's features are zero outside of its head's block",
    )
    proof.step(
        "One step from W_0",
        W_0 - eta * gradient,
        MultiplyBlocks(),
        W_1,
        because="eta cancels; block h is W_O^h times the head's own weights, before its D",
    )
    proof.step(
        "Its prediction is the layer",
        prediction,
        MultiplyBlocks(),
        layer,
        because="the read-out divides the features of each head by that head's D",
    )
    proof.step(
        "The denominators may stand in the weights instead",
        BlockMatrix([[W_A * D_W_A / D_A, W_B * D_W_B / D_B]]) * BlockMatrix([[f_A], [f_B]]),
        MultiplyBlocks(),
        layer,
        because="then block h is W_O^h W_1^h with the W_1^h of one_gradient_step, and the weights "
        "depend on the query; in the read-out they do not",
    )
    proof.step(
        "A training pair meets the kernel of its own head alone",
        key_features * readout,
        MultiplyBlocks(),
        weights,
        because="the features are zero in the other head's block",
    )
    proof.step(
        "All the weights together sum to the number of heads",
        kernel_A / D_A + kernel_B / D_B,
        Substitute({D_A: kernel_A, D_B: kernel_B}),
        Integer(2),
        because="to one in each head: the joint model is a sum of kernel smoothers, not one itself",
    )
    proof.step(
        "One more head",
        BlockMatrix([[P], [V_B * W_B.T]]).T * diagonal(R, Phi_B) * BlockMatrix([[r], [f_B / D_B]]),
        MultiplyBlocks(),
        P.T * R * r + W_B * V_B.T * Phi_B * f_B / D_B,
        because="what any number of heads predict jointly, and the new head's part: from one head "
        "this is the induction for every number",
    )
    refuse_variants(proof)


def refuse_variants(proof: Proof) -> None:
    proof.refuse(
        "the heads in another order",
        layer,
        MultiplyBlocks(),
        W_B * o_A + W_A * o_B,
        because="the columns of the output matrix belong to their heads",
    )
    proof.refuse(
        "the heads are averaged",
        layer,
        MultiplyBlocks(),
        (W_A * o_A + W_B * o_B) / 2,
        because="they are added",
    )
    proof.refuse(
        "the output matrix lacks the last block",
        prediction,
        MultiplyBlocks(),
        W_A * o_A,
        because="every head is read out",
    )
    proof.refuse(
        "one denominator for all heads",
        BlockMatrix([[W_A * D_W_A, W_B * D_W_B]]) * BlockMatrix([[f_A / D_A], [f_B / D_A]]),
        MultiplyBlocks(),
        layer,
        because="each head normalises its own weights",
    )
    proof.refuse(
        "the denominators are added",
        BlockMatrix([[W_A * D_W_A, W_B * D_W_B]]) * BlockMatrix([[f_A], [f_B]]) / (D_A + D_B),
        MultiplyBlocks(),
        layer,
        because="that is attention over the tokens of all heads, one smoother instead of two",
    )
    side_by_side = BlockMatrix([[Phi_A, Phi_B], [Phi_A, Phi_B]])
    proof.refuse(
        "features side by side instead of on the diagonal",
        side_by_side * readout,
        MultiplyBlocks(),
        weights,
        because="a pair would see the kernels of both heads added",
    )
    proof.refuse(
        "the labels of all heads carry the first block",
        -Y.T * F / eta,
        Substitute({Y: BlockMatrix([[V_A * W_A.T], [V_B * W_A.T]]), F: key_features}),
        gradient,
        because="head B is read out by W_B",
    )
    proof.refuse(
        "the outer product is transposed",
        L,
        Differentiate(W),
        -F.T * Y / eta,
        because="phi (W_O v)^T has the shape of W^T",
    )
    proof.refuse(
        "the step starts from zero",
        0 * W - eta * gradient,
        MultiplyBlocks(),
        W_1,
        because="the query-side tokens of all heads would be lost",
    )
    proof.refuse(
        "all the weights together sum to one",
        kernel_A / D_A + kernel_B / D_B,
        Substitute({D_A: kernel_A, D_B: kernel_B}),
        Integer(1),
        because="two heads, two sums of one",
    )


derivation = Derivation(
    title="Multi-head attention is one step of one model",
    statement=(
        "Concatenated heads times an output matrix W_O = [W_A, W_B] are the prediction of one "
        "linear model after one gradient step. A token gives one training pair a head: the label "
        "W_O^h v, at features that are phi_h(k) in the head's block and zero elsewhere. The step "
        "gives W_1 = [W_A D_A W_1^A, W_B D_B W_1^B], and the read-out divides the features of each "
        "head by its own D. One more head can be added to any number of them."
    ),
    scope="every N, T, c, k, m_A, m_B, M, m",
    assumptions=(
        "D_A and D_B are not zero, and eta is positive",
        "the heads see the same tokens, each with its own keys, values and query",
        "two heads are written out; the last step adds one head to any number",
    ),
    sizes=(
        {"N": 1, "T": 1, "c": 2, "k": 3, "m_A": 2, "m_B": 1, "M": 2, "m": 3},
        {"N": 2, "T": 1, "c": 2, "k": 2, "m_A": 2, "m_B": 2, "M": 2, "m": 2},
        {"N": 3, "T": 2, "c": 1, "k": 4, "m_A": 5, "m_B": 6, "M": 7, "m": 8},
    ),
    definitions={D_A: kernel_A, D_B: kernel_B},
    expressions={
        "D_A": kernel_A,
        "D_B": kernel_B,
        "o_A": o_A,
        "o_B": o_B,
        "labels": labels,
        "key_features": key_features,
        "readout": readout,
        "gradient": gradient,
        "W_0": W_0,
        "W_1": W_1,
        "prediction": prediction,
        "layer": layer,
        "weights": weights,
    },
    argument=argument,
)
