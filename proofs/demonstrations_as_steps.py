"""One demonstration per step, in any order, any split of eta and any sharding: the same model.

Stacks of t demonstrations learned (V_t, Phi_t) and r remaining (V_r, Phi_r), T query-side tokens
(V_T, Phi_T), one demonstration (v_i, f_i), features of the query phi_q. Expressions:

- `gradient_i` of one demonstration (v_i (c), f_i (m), eta, D)
- `W_t` after t steps (V_T, Phi_T, V_t, Phi_t, and those of D: Phi_r, phi_q)
- `W_1` after all steps and `o` the attention output (those of W_t, and V_r)
- `error` = o - W_t phi(q) (V_r and those of D); `remaining_error`, the same by coordinate, and
  `growth` of its square in the next step (p (t+r) weights, v (t+r) values, t, r)
"""

from sympy import (
    BlockMatrix,
    IndexedBase,
    Integer,
    MatrixSymbol,
    Max,
    OneMatrix,
    Rational,
    Sum,
    Trace,
    symbols,
)

from .derivation import (
    Derivation,
    Differentiate,
    EvaluateAt,
    Expand,
    MultiplyBlocks,
    Proof,
    Substitute,
)

t, r, T, c, m, n_parts = symbols("t r T c m n_parts", integer=True, positive=True)
k = symbols("k", integer=True, positive=True)
eta, D, alpha = symbols("eta D alpha", positive=True)

W, H = MatrixSymbol("W", c, m), MatrixSymbol("H", c, m)
V_T, Phi_T = MatrixSymbol("V_T", T, c), MatrixSymbol("Phi_T", T, m)
V_t, Phi_t = MatrixSymbol("V_t", t, c), MatrixSymbol("Phi_t", t, m)
V_r, Phi_r = MatrixSymbol("V_r", r, c), MatrixSymbol("Phi_r", r, m)
v_i, f_i = MatrixSymbol("v_i", c, 1), MatrixSymbol("f_i", m, 1)
v_j, f_j = MatrixSymbol("v_j", c, 1), MatrixSymbol("f_j", m, 1)
phi_q = MatrixSymbol("phi_q", m, 1)

total_kernel = sum(
    Trace(OneMatrix(rows, 1).T * Phi * phi_q) for rows, Phi in ((T, Phi_T), (t, Phi_t), (r, Phi_r))
)

L_i = -Trace(v_i.T * W * f_i) / (eta * D)
gradient_i = -v_i * f_i.T / (eta * D)
gradient_j = -v_j * f_j.T / (eta * D)
after_i = W + v_i * f_i.T / D
after_j = W + v_j * f_j.T / D
after_both = W + v_i * f_i.T / D + v_j * f_j.T / D

W_0 = V_T.T * Phi_T / D
W_t = W_0 + V_t.T * Phi_t / D
W_1 = W_t + V_r.T * Phi_r / D
W_next = W_0 + BlockMatrix([[V_t], [v_i.T]]).T * BlockMatrix([[Phi_t], [f_i.T]]) / D

V_N, Phi_N = BlockMatrix([[V_t], [V_r]]), BlockMatrix([[Phi_t], [Phi_r]])
o = BlockMatrix([[V_T], [V_t], [V_r]]).T * BlockMatrix([[Phi_T], [Phi_t], [Phi_r]]) * phi_q / D
error = V_r.T * Phi_r * phi_q / D

x = IndexedBase("x", shape=(n_parts,), positive=True)
part_of_eta = eta * x[k] / Sum(x[k], (k, 1, n_parts))

p = IndexedBase("p", shape=(t + r,), positive=True)
v = IndexedBase("v", shape=(t + r,), real=True)
remaining_error = Sum(p[k] * v[k], (k, t + 1, t + r))
growth = Sum(p[k] * v[k], (k, t + 2, t + r)) ** 2 - remaining_error**2


def argument(proof: Proof) -> None:
    proof.step(
        "The gradient of one demonstration",
        L_i,
        Differentiate(W),
        gradient_i,
        because="the loss of one demonstration is linear in W",
    )
    proof.step(
        "It is the same gradient everywhere",
        L_i.xreplace({W: W + H}),
        Differentiate(W),
        gradient_i,
        because="the displacement H does not occur in it",
    )
    proof.step(
        "The second derivative is that of a ridge term alone",
        Trace(H.T * (gradient_i + alpha * W)),
        Differentiate(W),
        alpha * H,
        because="with L_i + (alpha/2)|W|^2 the derivative along H is alpha H; for alpha = 0, the "
        "loss here, it vanishes",
    )
    proof.step(
        "Demonstration i, then j",
        W - eta * gradient_j,
        Substitute({W: after_i}),
        after_both,
        because="the second step starts where the first one ended",
    )
    proof.step(
        "Demonstration j, then i",
        W - eta * gradient_i,
        Substitute({W: after_j}),
        after_both,
        because="the same end: neighbours can be exchanged, and exchanges of neighbours generate "
        "every order",
    )
    proof.step(
        "From t demonstrations to t + 1",
        W - eta * gradient_i,
        Substitute({W: W_t}),
        W_next,
        because="W_t holds the stack of t demonstrations, and the step appends one row to it; with "
        "W_0, the empty stack, this is the induction for every t",
    )
    proof.step(
        "Any split of eta",
        W - Sum(part_of_eta, (k, 1, n_parts)) * gradient_i,
        Expand(),
        after_i,
        because="parts eta x_k / sum x make eta in all, and each meets the same gradient",
    )
    proof.step(
        "Any sharding",
        V_N.T * Phi_N / D,
        MultiplyBlocks(),
        V_t.T * Phi_t / D + V_r.T * Phi_r / D,
        because="two shards add up to their stack; sharding one of them again reaches any number",
    )
    proof.step(
        "All steps give the attention output",
        o,
        MultiplyBlocks(),
        W_1 * phi_q,
        because="after t and r demonstrations nothing is left out",
    )
    proof.step(
        "After t steps, what is missing",
        o - W_t * phi_q,
        MultiplyBlocks(),
        error,
        because="with p_i = phi(k_i).phi(q)/D this is sum_{i>t} p_i v_i",
    )
    proof.step(
        "The error may grow",
        growth,
        EvaluateAt(
            {t: 1, r: 2, p: [Rational(1, 4)] * 3, v: [1, 3, -2]},
        ),
        Rational(3, 16),
        because="learning 3 first uncovers -2: the error goes from 1/4 to -1/2 before it ends at 0",
    )
    refuse_variants(proof)


def refuse_variants(proof: Proof) -> None:
    def least_squares(start, value, feature):
        return start - eta * (start * feature - value) * feature.T

    proof.refuse(
        "steps on a quadratic loss commute",
        least_squares(W, v_j, f_j),
        Substitute({W: least_squares(W, v_i, f_i)}),
        least_squares(least_squares(W, v_j, f_j), v_i, f_i),
        because="the second gradient is taken at the point where the first step ended",
    )
    proof.refuse(
        "a quadratic loss has the same gradient everywhere",
        Trace((v_i - (W + H) * f_i).T * (v_i - (W + H) * f_i)) / 2,
        Differentiate(W),
        -(v_i - W * f_i) * f_i.T,
        because="it depends on the displacement H",
    )
    proof.refuse(
        "every part of eta is a whole eta",
        W - Sum(eta, (k, 1, n_parts)) * gradient_i,
        Expand(),
        after_i,
        because="the demonstration would be learned once per part",
    )
    proof.refuse(
        "shards are averaged",
        V_N.T * Phi_N / D,
        MultiplyBlocks(),
        (V_t.T * Phi_t / D + V_r.T * Phi_r / D) / 2,
        because="partial sums are added",
    )
    proof.refuse(
        "the models of the shards are added",
        o,
        MultiplyBlocks(),
        (W_t + W_0 + V_r.T * Phi_r / D) * phi_q,
        because="W_0 would be counted once per shard",
    )
    proof.refuse(
        "the error is what has been learned",
        o - W_t * phi_q,
        MultiplyBlocks(),
        V_t.T * Phi_t * phi_q / D,
        because="it is what has not been learned yet",
    )
    proof.refuse(
        "the error never grows",
        Max(growth, 0),
        Expand(),
        Integer(0),
        because="a demonstration can cancel the remaining ones until it is learned",
    )


derivation = Derivation(
    title="One demonstration per step gives the same model",
    statement=(
        "The gradient of the dual loss does not depend on W. Hence learning one demonstration per "
        "step, in any order, with eta split into any parts, or on shards whose partial sums are "
        "added, ends at the same W_1 as one step on all of them. After t of N = t + r steps the "
        "prediction lacks exactly sum_{i>t} p_i v_i; the size of this error may grow on the way."
    ),
    scope="every t, r, T, c, m",
    assumptions=("D is not zero, eta is positive", "D sums over all tokens and stays fixed"),
    sizes=(
        {"t": 1, "r": 1, "T": 1, "c": 2, "m": 3, "n_parts": 2},
        {"t": 2, "r": 1, "T": 2, "c": 2, "m": 2, "n_parts": 1},
        {"t": 3, "r": 2, "T": 1, "c": 5, "m": 4, "n_parts": 6},
    ),
    definitions={D: total_kernel},
    expressions={
        "gradient_i": gradient_i,
        "W_t": W_t,
        "W_1": W_1,
        "o": o,
        "error": error,
        "remaining_error": remaining_error,
        "growth": growth,
    },
    argument=argument,
)
