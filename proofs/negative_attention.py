"""Negative samples in the loss take a multiple of their mean from each demonstration's value.

Expressions, with V_N (N, c), V_T (T, c), Phi_N (N, m), Phi_T (T, m), phi_q (m), W (c, m), eta,
beta, and M (N, N) whose row i holds 1/|N(i)| for the members of N(i) and 0 for the others:

- `labels` (V_N, M, beta), the loss `L_beta` at W, its `gradient` (V_N, M, W, eta, beta and those of
  D: Phi_N, Phi_T, phi_q; W in the loss only)
- `W_1` after one step from W_0, `prediction` = W_1 phi(q) (V_N, V_T, M, beta and those of D)

and at one coordinate of the output, where all n tokens are demonstrations with values v (n); S (n,
n) and s (n) are 1 for members of a set and 0 for others:

- `o_sets`, with weights p (n) and the set S[i] for token i (p, v, S, beta)
- `o`, attention with kernel values kappa (n) (kappa, v); `o_one_set`, with the set s for all tokens
  (kappa, v, s, beta); `o_centred` = o - vbar (kappa, v)
- `jump` of the output where token b takes the place of a among the r negatives (beta, p_D, v_a,
  v_b, r), p_D being the weight of all demonstrations
"""

from sympy import BlockMatrix, IndexedBase, Integer, MatrixSymbol, OneMatrix, Sum, Trace, symbols

from .derivation import Derivation, Differentiate, Expand, MultiplyBlocks, Proof, Substitute

N, T, c, m, n = symbols("N T c m n", integer=True, positive=True)
i, j, l = symbols("i j l", integer=True, positive=True)  # noqa: E741
eta, D, beta = symbols("eta D beta", positive=True)

W, M = MatrixSymbol("W", c, m), MatrixSymbol("M", N, N)
V_N, V_T = MatrixSymbol("V_N", N, c), MatrixSymbol("V_T", T, c)
Phi_N, Phi_T = MatrixSymbol("Phi_N", N, m), MatrixSymbol("Phi_T", T, m)
phi_q = MatrixSymbol("phi_q", m, 1)
total_kernel = sum(
    Trace(OneMatrix(1, rows) * Phi * phi_q) for rows, Phi in ((N, Phi_N), (T, Phi_T))
)

labels = V_N - beta * M * V_N
W_0 = V_T.T * Phi_T / D
L_beta = -Trace(V_N * W * Phi_N.T) / (eta * D) + beta * Trace(M * V_N * W * Phi_N.T) / (eta * D)
L_labels = -Trace(labels * W * Phi_N.T) / (eta * D)
gradient = -labels.T * Phi_N / (eta * D)
W_1 = W_0 + labels.T * Phi_N / D
prediction = W_1 * phi_q
layer = BlockMatrix([[labels], [V_T]]).T * BlockMatrix([[Phi_N], [Phi_T]]) * phi_q / D

p = IndexedBase("p", shape=(n,), positive=True)
kappa = IndexedBase("kappa", shape=(n,), positive=True)
v = IndexedBase("v", shape=(n,), real=True)
S = IndexedBase("S", shape=(n, n), positive=True)
s = IndexedBase("s", shape=(n,), positive=True)


def mean_over(member):
    return Sum(member(j) * v[j], (j, 1, n)) / Sum(member(l), (l, 1, n))


def attend(values):
    return Sum(kappa[i] * values, (i, 1, n)) / Sum(kappa[l], (l, 1, n))


o_sets = Sum(p[i] * (v[i] - beta * mean_over(lambda k: S[i, k])), (i, 1, n))
as_negative = Sum(p[i] * S[i, j] / Sum(S[i, l], (l, 1, n)), (i, 1, n))
o = attend(v[i])
o_one_set = attend(v[i] - beta * mean_over(lambda k: s[k]))
o_centred = o - Sum(v[j], (j, 1, n)) / n

r, p_D, others, v_a, v_b = symbols("r p_D others v_a v_b", positive=True)
jump = beta * p_D * (v_a - v_b) / r


def lowered(o, entering):
    return o - beta * p_D * (others + entering) / r


def argument(proof: Proof) -> None:
    proof.step(
        "The negative samples are part of the labels",
        L_beta,
        Expand(),
        L_labels,
        because="both sums of the loss are linear in the values: agreement with v_i, less beta "
        "times the mean agreement with the members of N(i)",
    )
    proof.step(
        "The gradient of the loss",
        L_beta,
        Differentiate(W),
        gradient,
        because="the loss is linear in W, and its gradient the outer products with the labels",
    )
    proof.step(
        "One step from W_0",
        W - eta * gradient,
        Substitute({W: W_0}),
        W_1,
        because="the step size eta cancels the 1/eta that the loss carries",
    )
    proof.step(
        "Attention with these values is the prediction of the stepped model",
        layer,
        MultiplyBlocks(),
        prediction,
        because="the query-side tokens, which are W_0, keep their values; keys and D are untouched",
    )
    proof.step(
        "What a token weighs: its own share, less beta times what it has as a negative",
        o_sets,
        Expand(),
        Sum((p[j] - beta * as_negative) * v[j], (j, 1, n)),
        because="the order of the two sums is exchanged: the weights may be negative, and the "
        "output may leave the convex hull of the values",
    )
    proof.step(
        "One set for all tokens lowers the output by beta times its mean",
        o_one_set,
        Expand(),
        o - beta * mean_over(lambda k: s[k]),
        because="the weights p_i sum to one",
    )
    proof.step(
        "All tokens as negatives and beta = 1: centred attention",
        o_one_set,
        Substitute({s[j]: 1, beta: 1}),
        o_centred,
        because="the mean over all tokens is vbar",
    )
    proof.step(
        "The jump at a tie",
        lowered(v_a, v_b) - lowered(v_a, v_a),
        Expand(),
        jump,
        because="where two scores cross, b takes the place of a among the r lowest; the weights "
        "do not jump, and the other r - 1 negatives stay",
    )
    refuse_variants(proof)


def refuse_variants(proof: Proof) -> None:
    proof.refuse(
        "the negatives attract",
        L_beta,
        Differentiate(W),
        -(V_N + beta * M * V_N).T * Phi_N / (eta * D),
        because="the loss rewards agreement with v_i and punishes agreement with the negatives",
    )
    proof.refuse(
        "the sets are transposed",
        L_beta,
        Differentiate(W),
        -(V_N - beta * M.T * V_N).T * Phi_N / (eta * D),
        because="that j is a negative of i does not make i one of j",
    )
    proof.refuse(
        "the query-side tokens lose the mean of the negatives too",
        layer,
        MultiplyBlocks(),
        (W_1 - beta * OneMatrix(c, T) * Phi_T / D) * phi_q,
        because="they are in W_0, and not in the loss",
    )
    proof.refuse(
        "negatives are weighted by attention",
        o_one_set,
        Substitute({s[j]: 1}),
        o - beta * o,
        because="the mean over N(i) is plain: it is the sum over i that attention weighs",
    )
    proof.refuse(
        "negatives are summed",
        o_one_set,
        Expand(),
        o - beta * Sum(s[j] * v[j], (j, 1, n)),
        because="the sum is divided by |N(i)|",
    )
    proof.refuse(
        "the mean is over all tokens",
        o_one_set,
        Expand(),
        o - beta * Sum(s[j] * v[j], (j, 1, n)) / n,
        because="the sum is divided by the number of negatives, not by that of tokens",
    )
    proof.refuse(
        "the weights are still those of attention",
        o_sets,
        Expand(),
        (1 - beta) * Sum(p[i] * v[i], (i, 1, n)),
        because="each token loses what it has as a negative, not a share of its own weight",
    )
    proof.refuse(
        "the output is continuous in the query",
        lowered(v_a, v_b) - lowered(v_a, v_a),
        Expand(),
        Integer(0),
        because="the mean over the lowest scores jumps where its members change",
    )


derivation = Derivation(
    title="Negative samples lower each value by their mean",
    statement=(
        "With the loss L(W) = -(1/(eta D)) sum_i (v_i - (beta/|N(i)|) sum_{j in N(i)} v_j)^T W "
        "phi(k_i), one gradient step from W_0 predicts attention with the values v_i - "
        "(beta/|N(i)|) sum_{j in N(i)} v_j of the demonstrations. One set N for all tokens gives "
        "o - beta vbar_N, all tokens as negatives and beta = 1 centred attention. With the r "
        "lowest scores for N, the output jumps by (beta/r) p_D (v_a - v_b) where b takes the "
        "place of a."
    ),
    scope="every N, T, c, m, n, any sets",
    assumptions=(
        "D is not zero and eta is positive",
        "D is a number, fixed while W is differentiated",
        "no set is empty in the scalar form; in the matrix form an empty set is a row of zeros",
        "S and s may be any positive numbers: members of a set that count differently",
    ),
    sizes=(
        {"N": 1, "T": 1, "c": 2, "m": 3, "n": 3},
        {"N": 2, "T": 1, "c": 2, "m": 2, "n": 2},
        {"N": 3, "T": 2, "c": 1, "m": 4, "n": 5},
        {"N": 5, "T": 2, "c": 3, "m": 4, "n": 6},
    ),
    definitions={D: total_kernel},
    expressions={
        "labels": labels,
        "L_beta": L_beta,
        "gradient": gradient,
        "W_1": W_1,
        "prediction": prediction,
        "o": o,
        "o_sets": o_sets,
        "o_one_set": o_one_set,
        "o_centred": o_centred,
        "jump": jump,
    },
    argument=argument,
)
