"""Rotary positions turn what the feature map sees; an additive bias weighs the loss of the dual.

Pairs l = 1..h of a query (a, b) and of a key (g, f), frequencies theta, positions p and r; of
attention with a bias: stacks (V_N, Phi_N) and (V_T, Phi_T), diagonal matrices B_N (N, N) and
B_T (T, T) of the weights e^b, features phi_q; scores s_j and biases b_j of n tokens, the query at
position i with ALiBi's slope. Expressions:

- `turned_a`, `turned_b`, pair l of the turned query (a (h), b (h), theta (h), p, l)
- `turned_score`, `relative_score` (a, b, g, f, theta, p, r)
- `D`, `W_0`, `W_1` and `o`, the output of attention with the bias (V, Phi and B of both stacks;
  phi_q; without V for D), `L` and its `gradient` (V_N, Phi_N, B_N, eta, D; W for L)
- `o_biased` (s (n), bias (n), v (n)), `o_weighted`, the same with weights; `o_alibi` (s, v, slope)
"""

from sympy import (
    BlockMatrix,
    IndexedBase,
    MatrixSymbol,
    OneMatrix,
    Sum,
    Trace,
    ZeroMatrix,
    cos,
    exp,
    sin,
    symbols,
)

from .derivation import Derivation, Differentiate, Expand, MultiplyBlocks, Proof, Substitute

h, n, N, T, c, m = symbols("h n N T c m", integer=True, positive=True)
i, j, l = symbols("i j l", integer=True, positive=True)  # noqa: E741
p, r, t, shift, slope = symbols("p r t shift slope", real=True)
eta, D = symbols("eta D", positive=True)

a, b, g, f = (IndexedBase(name, shape=(h,), real=True) for name in "abgf")
theta = IndexedBase("theta", shape=(h,), real=True)


def turned(first, second, position):
    angle = position * theta[l]
    return first * cos(angle) - second * sin(angle), first * sin(angle) + second * cos(angle)


def over_pairs(term):
    return Sum(term, (l, 1, h))


turned_a, turned_b = turned(a[l], b[l], p)
turned_g, turned_f = turned(g[l], f[l], r)
turned_score = over_pairs(turned_a * turned_g + turned_b * turned_f)
relative_g, relative_f = turned(g[l], f[l], r - p)
relative_score = over_pairs(a[l] * relative_g + b[l] * relative_f)

W = MatrixSymbol("W", c, m)
V_N, V_T = MatrixSymbol("V_N", N, c), MatrixSymbol("V_T", T, c)
Phi_N, Phi_T = MatrixSymbol("Phi_N", N, m), MatrixSymbol("Phi_T", T, m)
B_N, B_T = MatrixSymbol("B_N", N, N), MatrixSymbol("B_T", T, T)
phi_q = MatrixSymbol("phi_q", m, 1)
one_N, one_T = OneMatrix(N, 1), OneMatrix(T, 1)
total_weight = Trace(one_N.T * B_N * Phi_N * phi_q) + Trace(one_T.T * B_T * Phi_T * phi_q)

V, Phi = BlockMatrix([[V_N], [V_T]]), BlockMatrix([[Phi_N], [Phi_T]])
B = BlockMatrix([[B_N, ZeroMatrix(N, T)], [ZeroMatrix(T, N), B_T]])
one = BlockMatrix([[one_N], [one_T]])
o = V.T * B * Phi * phi_q / D

W_0 = V_T.T * B_T * Phi_T / D
L = -Trace(V_N.T * B_N * Phi_N * W.T) / (eta * D)
gradient = -V_N.T * B_N * Phi_N / (eta * D)
W_1 = W_0 + V_N.T * B_N * Phi_N / D

s, bias, v = (IndexedBase(name, shape=(n,), real=True) for name in ("s", "bias", "v"))


def mean(weight):
    return Sum(weight * v[j], (j, 1, n)) / Sum(weight, (j, 1, n))


o_biased = mean(exp(s[j] + bias[j]))
o_weighted = mean(exp(bias[j]) * exp(s[j]))
o_alibi = mean(exp(slope * j) * exp(s[j]))

S_t = MatrixSymbol("S_t", c, m)
token = MatrixSymbol("v", c, 1) * MatrixSymbol("f", m, 1).T


def argument(proof: Proof) -> None:
    proof.step(
        "A turn keeps the length",
        over_pairs(turned_a**2 + turned_b**2),
        Expand(),
        over_pairs(a[l] ** 2 + b[l] ** 2),
        because="cos^2 + sin^2 = 1 in every pair: the kernel of a token with itself stays",
    )
    proof.step(
        "The score of turned vectors",
        turned_score,
        Expand(),
        relative_score,
        because="turning both is turning the key by the difference r - p of the positions",
    )
    proof.step(
        "Only the difference counts",
        turned_score,
        Substitute({p: p + shift, r: r + shift}),
        relative_score,
        because="the shift cancels in r - p",
    )
    proof.step(
        "With weights, the denominator sums the weighted kernel",
        one.T * B * Phi * phi_q,
        MultiplyBlocks(),
        one_N.T * B_N * Phi_N * phi_q + one_T.T * B_T * Phi_T * phi_q,
        because="the weights are a diagonal matrix, block by block; this number is D",
    )
    proof.step(
        "The gradient of the weighted loss",
        L,
        Differentiate(W),
        gradient,
        because="each demonstration counts e^b times, and the loss is still linear in W",
    )
    proof.step(
        "One step from W_0",
        W - eta * gradient,
        Substitute({W: W_0}),
        W_1,
        because="the query-side tokens in W_0 carry their weights as well",
    )
    proof.step(
        "The prediction is attention with the weights",
        o,
        MultiplyBlocks(),
        W_1 * phi_q,
        because="the weighted sum over all tokens is that of the two groups",
    )
    proof.step(
        "An additive bias is such a weight",
        o_biased,
        Expand(),
        o_weighted,
        because="exp(s_j + b_j) = e^{b_j} exp(s_j), above and below",
    )
    proof.step(
        "One bias for all tokens changes nothing",
        o_biased,
        Substitute({bias[j]: bias[j] + shift}),
        o_biased,
        because="e^shift is a common factor: a bias of the query alone is none",
    )
    proof.step(
        "ALiBi is a bias of the key alone",
        o_biased,
        Substitute({bias[j]: -slope * (i - j)}),
        o_alibi,
        because="e^(-slope i) cancels: for the tokens j <= i before the query the weights "
        "e^(slope j) do not depend on it, and one weighted loss serves every position",
    )
    proof.step(
        "which makes the state of a stream decay",
        exp(-slope * (t + 1)) * (exp(slope * t) * S_t + exp(slope * (t + 1)) * token),
        Expand(),
        exp(-slope) * S_t + token,
        because="S_t = e^(-slope t) sum_{j<=t} e^(slope j) v_j phi(k_j)^T is what query t reads, "
        "and a token more makes each one before it older by one",
    )
    refuse_variants(proof)


def refuse_variants(proof: Proof) -> None:
    proof.refuse(
        "only the key turns",
        over_pairs(a[l] * turned_g + b[l] * turned_f),
        Expand(),
        relative_score,
        because="the score would depend on the key's position, not on the difference",
    )
    proof.refuse(
        "positions off by one between query and key",
        turned_score,
        Substitute({p: p + 1}),
        relative_score,
        because="a shift of one of the two does not cancel",
    )
    proof.refuse(
        "the bias is not in D",
        one.T * B * Phi * phi_q,
        MultiplyBlocks(),
        one_N.T * Phi_N * phi_q + one_T.T * Phi_T * phi_q,
        because="the weights of the mean would not sum to one",
    )
    proof.refuse(
        "only the loss is weighted, not W_0",
        o,
        MultiplyBlocks(),
        (V_T.T * Phi_T + V_N.T * B_N * Phi_N) * phi_q / D,
        because="the query-side tokens are biased as well",
    )
    proof.refuse(
        "the bias is a linear weight",
        o_biased,
        Expand(),
        mean((1 + bias[j]) * exp(s[j])),
        because="1 + b is e^b for small b only, and may be negative",
    )
    proof.refuse(
        "the bias is subtracted",
        o_biased,
        Expand(),
        mean(exp(-bias[j]) * exp(s[j])),
        because="a larger bias means a larger weight",
    )
    proof.refuse(
        "the bias is added to the output",
        o_biased,
        Expand(),
        mean(exp(s[j])) + Sum(bias[j] * v[j], (j, 1, n)),
        because="it is added before the exponential",
    )


derivation = Derivation(
    title="Positions in the dual",
    statement=(
        "Rotary positions turn pair l of the coordinates of a token at position p by p theta_l. "
        "The score of a turned query and a turned key depends on the difference of their "
        "positions alone, and the feature map of the dual sees the turned vectors. An additive "
        "bias b_ij weighs the loss of query i: L(W) = -(1/(eta D)) sum_j e^b_ij v_j^T W phi(k_j) "
        "with D = sum_j e^b_ij kappa_ij; one step on it predicts attention with the bias. ALiBi's "
        "bias leaves weights that do not depend on the query."
    ),
    scope="every h, n, N, T, c, m",
    assumptions=(
        "D is not zero and eta is positive",
        "the weights are on the diagonal of B_N and B_T (the steps hold for any)",
        "ALiBi with a causal mask: all tokens j come before the query",
    ),
    sizes=(
        {"h": 1, "n": 2, "N": 1, "T": 1, "c": 2, "m": 3, "i": 2, "l": 1},
        {"h": 1, "n": 3, "N": 2, "T": 2, "c": 2, "m": 2, "i": 3, "l": 1},
        {"h": 2, "n": 4, "N": 3, "T": 5, "c": 6, "m": 7, "i": 8, "l": 1},
    ),
    definitions={D: total_weight},
    expressions={
        "turned_a": turned_a,
        "turned_b": turned_b,
        "turned_score": turned_score,
        "relative_score": relative_score,
        "D": total_weight,
        "W_0": W_0,
        "L": L,
        "gradient": gradient,
        "W_1": W_1,
        "o": o,
        "o_biased": o_biased,
        "o_weighted": o_weighted,
        "o_alibi": o_alibi,
    },
    argument=argument,
)
