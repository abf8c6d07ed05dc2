"""A factor of the Gram matrix gives finite features that are exact for every query.

Expressions, with n landmarks Z, any invertible factor L (n, n), the kernel of the landmarks with
the query kappa_q (n), a vector e_i (n) and V (N, c), S (N, n) whose rows select a token's landmark:

- `phi_q` = L^{-1} kappa(Z, q) (L, kappa_q), `phi_z` = L^T e_i (L, e_i), `kernel` = phi_z . phi_q
  (those of both), `phi_z_from_kernel` = L^{-1} G e_i (L, G (n, n), e_i)
- `dual_output` of any features (V, Phi (N, n), f (n)), `softmax_output` (V, S, kappa_q)
- `gaussian_form`, `kernel_form` of exp(x.y) (x (d), y (d))
- `completed_factor`, `completed_gram`, `completed_phi_q` (L_11 (r, r), L_21 (k, r), jitter; the
  last also kappa_1 (r), kappa_2 (k)), where jitter^2 = tol
"""

from sympy import (
    BlockMatrix,
    Identity,
    IndexedBase,
    Inverse,
    MatMul,
    MatrixSymbol,
    OneMatrix,
    Sum,
    Trace,
    ZeroMatrix,
    exp,
    symbols,
)

from .derivation import Derivation, Expand, MultiplyBlocks, Proof, Substitute

n, N, c, d, r, k = symbols("n N c d r k", integer=True, positive=True)
coordinate = symbols("l", integer=True, positive=True)
jitter = symbols("jitter", positive=True)

L, G = MatrixSymbol("L", n, n), MatrixSymbol("G", n, n)
kappa_q, e_i = MatrixSymbol("kappa_q", n, 1), MatrixSymbol("e_i", n, 1)
phi_q = Inverse(L) * kappa_q
phi_z = L.T * e_i
phi_z_from_kernel = Inverse(L) * G * e_i
kernel = MatMul(phi_z.T, phi_q, evaluate=False)  # SymPy would cancel L before the proof does

V, S = MatrixSymbol("V", N, c), MatrixSymbol("S", N, n)
Phi, f = MatrixSymbol("Phi", N, n), MatrixSymbol("f", n, 1)
dual_output = V.T * Phi * f / Trace(OneMatrix(1, N) * Phi * f)
softmax_output = V.T * S * kappa_q / Trace(OneMatrix(1, N) * S * kappa_q)

x, y = IndexedBase("x", shape=(d,), real=True), IndexedBase("y", shape=(d,), real=True)


def over_coordinates(term):
    return Sum(term, (coordinate, 1, d))


x_l, y_l = x[coordinate], y[coordinate]
kernel_form = exp(over_coordinates(x_l * y_l))
gaussian = exp(-over_coordinates((x_l - y_l) ** 2) / 2)
gaussian_form = exp(over_coordinates(x_l**2) / 2) * gaussian * exp(over_coordinates(y_l**2) / 2)

# r landmarks were pivots; the k others are, to rounding, in their span, and the factor is completed
L_11, L_21 = MatrixSymbol("L_11", r, r), MatrixSymbol("L_21", k, r)
G_22 = MatrixSymbol("G_22", k, k)
kappa_1, kappa_2 = MatrixSymbol("kappa_1", r, 1), MatrixSymbol("kappa_2", k, 1)
completed_factor = BlockMatrix([[L_11, ZeroMatrix(r, k)], [L_21, jitter * Identity(k)]])
stacked_kappa = BlockMatrix([[kappa_1], [kappa_2]])
completed_phi_q = Inverse(completed_factor) * stacked_kappa
G_blocks = BlockMatrix([[L_11 * L_11.T, L_11 * L_21.T], [L_21 * L_11.T, G_22]])
schur_complement = G_22 - (L_21 * L_11.T) * Inverse(L_11 * L_11.T) * (L_11 * L_21.T)
completed_gram = completed_factor * completed_factor.T


def trailing_block(block):
    return BlockMatrix([[ZeroMatrix(r, r), ZeroMatrix(r, k)], [ZeroMatrix(k, r), block]])


def argument(proof: Proof) -> None:
    proof.step(
        "A landmark's feature times a query's feature is the kernel",
        kernel,
        Expand(),
        e_i.T * kappa_q,
        because="L L^{-1} cancels: entry i of kappa(Z, q), for every query q and every factor L",
    )
    proof.step(
        "The landmark's own feature is the one the formula for queries gives it",
        phi_z_from_kernel,
        Substitute({G: L * L.T}),
        phi_z,
        because="kappa(Z, z_i) = G e_i, and G = L L^T",
    )
    proof.step(
        "The Gaussian normalisation",
        gaussian_form,
        Expand(),
        kernel_form,
        because="|x|^2/2 - |x-y|^2/2 + |y|^2/2 = x.y, in every dimension",
    )
    proof.step(
        "Attention of the dual is softmax attention",
        dual_output,
        Substitute({Phi: S * L, f: phi_q}),
        softmax_output,
        because="the features reproduce every kernel value above and below the fraction bar",
    )
    proof.step(
        "A completed factor still reproduces the kernel",
        MatMul(completed_factor, completed_phi_q, evaluate=False),
        MultiplyBlocks(),
        stacked_kappa,
        because="row i of the factor is phi(z_i): both block rows give kappa(Z, q), whatever the "
        "jitter",
    )
    proof.step(
        "What the jitter changes in the Gram matrix",
        completed_gram - G_blocks,
        MultiplyBlocks(),
        trailing_block(jitter**2 * Identity(k) - schur_complement),
        because="only the trailing block changes, by tol I minus the Schur complement that the "
        "pivoting left over",
    )
    refuse_variants(proof)


def refuse_variants(proof: Proof) -> None:
    proof.refuse(
        "L^{-T} instead of L^{-1}",
        phi_z.T * Inverse(L.T) * kappa_q,
        Expand(),
        e_i.T * kappa_q,
        because="L L^{-T} is the identity for diagonal factors only",
    )
    proof.refuse(
        "L e_i instead of L^T e_i",
        (L * e_i).T * phi_q,
        Expand(),
        e_i.T * kappa_q,
        because="the features of the landmarks are the rows of L",
    )
    proof.refuse(
        "G = L^T L",
        phi_z_from_kernel,
        Substitute({G: L.T * L}),
        phi_z,
        because="the factor stands on the left",
    )
    proof.refuse(
        "Gaussian without the weight of y",
        exp(over_coordinates(x_l**2) / 2) * gaussian,
        Expand(),
        kernel_form,
        because="exp(|y|^2/2) is missing; only the weight of the query cancels in attention",
    )
    proof.refuse(
        "Gaussian of the wrong bandwidth",
        exp(over_coordinates(x_l**2) / 2) * gaussian**2 * exp(over_coordinates(y_l**2) / 2),
        Expand(),
        kernel_form,
        because="exp(-|x-y|^2) leaves exp(2 x.y) with half-weighted norms",
    )
    proof.refuse(
        "D from the landmarks instead of the tokens",
        dual_output,
        Substitute({Phi: S * L, f: phi_q}),
        V.T * S * kappa_q / Trace(OneMatrix(1, n) * kappa_q),
        because="a landmark counts as often as tokens select it",
    )
    proof.refuse(
        "the jitter is added to the whole diagonal",
        completed_gram - G_blocks,
        MultiplyBlocks(),
        BlockMatrix(
            [
                [jitter**2 * Identity(r), ZeroMatrix(r, k)],
                [ZeroMatrix(k, r), jitter**2 * Identity(k) - schur_complement],
            ]
        ),
        because="the pivots' block is L_11 L_11^T as before",
    )
    proof.refuse(
        "the completed factor reproduces the Gram matrix plus tol",
        completed_gram - G_blocks,
        MultiplyBlocks(),
        trailing_block(jitter**2 * Identity(k)),
        because="the Schur complement that was cut off is missing",
    )


derivation = Derivation(
    title="Gram features are exact and finite",
    statement=(
        "For n landmarks Z and any invertible factor L, the features phi(q) = L^{-1} kappa(Z, q) "
        "and phi(z_i) = L^T e_i satisfy phi(z_i).phi(q) = kappa(z_i, q) for every query q; when "
        "G = L L^T is the Gram matrix the two formulas agree on the landmarks. Attention built "
        "from them, denominator included, is softmax attention. Where G is rank deficient, "
        "completing the pivoted factor by a jitter keeps all of this and changes only the trailing "
        "block of the features' Gram matrix."
    ),
    scope="every n, N, c, d, r, k",
    assumptions=(
        "L is invertible, and so is L_11; the jitter is positive",
        "every token is at a landmark, so that its row of S has a single 1 (the steps hold for any "
        "S)",
    ),
    sizes=(
        {"n": 1, "N": 3, "c": 1, "d": 1, "r": 1, "k": 1},
        {"n": 2, "N": 3, "c": 2, "d": 2, "r": 2, "k": 2},
        {"n": 3, "N": 4, "c": 6, "d": 5, "r": 2, "k": 1},
    ),
    expressions={
        "phi_q": phi_q,
        "phi_z": phi_z,
        "phi_z_from_kernel": phi_z_from_kernel,
        "kernel": kernel,
        "dual_output": dual_output,
        "softmax_output": softmax_output,
        "gaussian_form": gaussian_form,
        "kernel_form": kernel_form,
        "completed_factor": completed_factor,
        "completed_gram": completed_gram,
        "completed_phi_q": completed_phi_q,
    },
    argument=argument,
)
