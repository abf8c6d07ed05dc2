"""The weights trained for one query answer another one in the wrong units; a ratio answers all.

Tokens V (n, c), Phi (n, m) that every query attends to, features f_q of the query that the weights
are trained for and f_r of another one. Expressions:

- `D_q`, `D_r`, `W_q` the weights trained for q, `o_q` and `o_r` the attention outputs
- `read_at_r` = W_q f_r (V, Phi, f_q, f_r), and `excess` = W_q f_r - o_r
- `failure`, one coordinate of the excess from kernel values a (n) at q, b (n) at r, values w (n)
- `H`, the weights of the targets [v; 1] without D, and their `readouts` at f_r (V, Phi, f_r)
"""

from sympy import (
    BlockMatrix,
    IndexedBase,
    MatrixSymbol,
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

n, c, m = symbols("n c m", integer=True, positive=True)
j = symbols("j", integer=True)
eta, D_q, D_r = symbols("eta D_q D_r", positive=True)

V, Phi = MatrixSymbol("V", n, c), MatrixSymbol("Phi", n, m)
f_q, f_r, f = MatrixSymbol("f_q", m, 1), MatrixSymbol("f_r", m, 1), MatrixSymbol("f", m, 1)
one = OneMatrix(n, 1)

total_at_q, total_at_r = Trace(one.T * Phi * f_q), Trace(one.T * Phi * f_r)

W_q = V.T * Phi / D_q
o_q, o_r = V.T * Phi * f_q / D_q, V.T * Phi * f_r / D_r
read_at_r = D_r / D_q * o_r
excess = (D_r - D_q) / D_q * o_r

# one coordinate, from kernel values
a = IndexedBase("a", shape=(n,), positive=True)
b = IndexedBase("b", shape=(n,), positive=True)
w = IndexedBase("w", shape=(n,), real=True)


def total(x):
    return Sum(x, (j, 1, n))


failure = total(b[j] * w[j]) / total(a[j]) - total(b[j] * w[j]) / total(b[j])

# the dual without D: targets [v; 1], weights in two blocks
W, h = MatrixSymbol("W", c, m), MatrixSymbol("h", 1, m)
targets = BlockMatrix([[V, one]])
L = -Trace(V * W * Phi.T) / eta - Trace(one * h * Phi.T) / eta
H = BlockMatrix([[V.T * Phi], [one.T * Phi]])
readouts = BlockMatrix([[V.T * Phi * f_r], [one.T * Phi * f_r]])
numerator, denominator = MatrixSymbol("y", c, 1), MatrixSymbol("z", 1, 1)


def argument(proof: Proof) -> None:
    proof.step(
        "The weights trained for the query q",
        Trace(V * W * Phi.T) / D_q,
        Differentiate(W),
        W_q,
        because="this is -eta L(W) of one_gradient_step with every token a demonstration: the step "
        "from 0 is its gradient",
    )
    proof.step(
        "Read at the query that they were trained for, the weights give the attention output",
        W_q * f,
        Substitute({f: f_q}),
        o_q,
        because="W_q carries 1/D(q), and D(q) is the denominator of attention at q",
    )
    proof.step(
        "Trained for another query, they would answer that one",
        W_q * f,
        Substitute({f: f_r, D_q: D_r}),
        o_r,
        because="this is the same statement at r: each query has its own weights",
    )
    proof.step(
        "But trained for q, and read at r",
        W_q * f,
        Substitute({f: f_r}),
        read_at_r,
        because="the numerator is that of attention at r, but the denominator is still D(q): the "
        "answer is D(r)/D(q) times too large",
    )
    proof.step(
        "What is too much",
        W_q * f_r - o_r,
        Expand(),
        excess,
        because="the answer is right only where D(r) = D(q), or o(r) = 0",
    )
    proof.step(
        "Two tokens show it",
        failure,
        EvaluateAt({n: 2, a: [1, 1], b: [1, 3], w: [2, 6]}),
        Rational(5),
        because="D(q) = 2 and D(r) = 4: the answer is 10 where attention gives 5, beyond all of "
        "the values",
    )
    proof.step(
        "Learning the targets [v; 1]: the rows of the values",
        L,
        Differentiate(W),
        -V.T * Phi / eta,
        because="without D, the loss L = -(1/eta) sum_i [v_i; 1]^T W phi(k_i) knows no query",
    )
    proof.step(
        "Learning the targets [v; 1]: the row of ones",
        L,
        Differentiate(h),
        -one.T * Phi / eta,
        because="a target of 1 for every token",
    )
    proof.step(
        "One step from 0",
        targets.T * Phi,
        MultiplyBlocks(),
        H,
        because="eta cancels as before; both rows together are sum_i [v_i; 1] phi(k_i)^T",
    )
    proof.step(
        "Its two read-outs, at any query",
        H * f_r,
        MultiplyBlocks(),
        readouts,
        because="the first is the numerator of attention at r, the second is D(r): the model has "
        "learned the denominator as well",
    )
    ratio = Substitute({numerator: V.T * Phi * f_r, denominator: one.T * Phi * f_r})
    proof.step(
        "Their ratio is the attention output, at any query",
        numerator / Trace(denominator),
        ratio,
        o_r.xreplace({D_r: total_at_r}),
        because="the weights are the same for all queries, and no D was given to them",
    )
    scaled = Substitute({numerator: V.T * Phi * f_r / D_q, denominator: one.T * Phi * f_r / D_q})
    proof.step(
        "The ratio also repairs the weights that were trained with D(q)",
        numerator / Trace(denominator),
        scaled,
        o_r.xreplace({D_r: total_at_r}),
        because="a factor common to both read-outs cancels: [v; 1] are homogeneous coordinates",
    )
    refuse_variants(proof)


def refuse_variants(proof: Proof) -> None:
    proof.refuse(
        "the weights trained for one query answer every other one",
        W_q * f,
        Substitute({f: f_r}),
        o_r,
        because="the tempting statement: the denominator is that of the wrong query",
    )
    proof.refuse(
        "the error is the inverse ratio",
        W_q * f,
        Substitute({f: f_r}),
        D_q / D_r * o_r,
        because="a larger D(r) makes the answer too large, as it is not divided by it",
    )
    proof.refuse(
        "the answer is that of the trained query, rescaled",
        W_q * f,
        Substitute({f: f_r}),
        D_r / D_q * o_q,
        because="the numerator does follow the query that is read",
    )
    proof.refuse(
        "the excess relative to D(r)",
        W_q * f_r - o_r,
        Expand(),
        (D_r - D_q) / D_r * o_r,
        because="it is relative to the D that was trained with",
    )
    proof.refuse(
        "without D, the values alone are enough",
        H * f_r,
        MultiplyBlocks(),
        BlockMatrix([[o_r], [one.T * Phi * f_r]]),
        because="the first read-out is the numerator: it has to be divided by the second",
    )
    proof.refuse(
        "targets [v; 0]",
        BlockMatrix([[V, 0 * one]]).T * Phi,
        MultiplyBlocks(),
        H,
        because="the second row would learn nothing",
    )
    proof.refuse(
        "targets [v; 1/n], a mean",
        BlockMatrix([[V, one / n]]).T * Phi,
        MultiplyBlocks(),
        H,
        because="the ratio would be n times the attention output",
    )
    proof.refuse(
        "the denominator of the trained query repairs it",
        numerator / Trace(denominator),
        Substitute({numerator: V.T * Phi * f_r, denominator: one.T * Phi * f_q}),
        o_r.xreplace({D_r: total_at_r}),
        because="both read-outs have to be taken at the same query",
    )


derivation = Derivation(
    title="The rate depends on the query, and a ratio of read-outs does not",
    statement=(
        "The weights W_1(q) = (1/D(q)) sum_j v_j phi(k_j)^T answer the query q as attention does; "
        "read at another query r they give (D(r)/D(q)) o(r). The targets [v_j; 1], learned without "
        "D, give one set of weights whose two read-outs have the ratio o(r) at every query r."
    ),
    scope="every n, c, m",
    assumptions=(
        "D(q) and D(r) are not zero",
        "both queries attend to the same tokens; W_0 of query-side tokens is part of the sum",
    ),
    sizes=(
        {"n": 1, "c": 2, "m": 3},
        {"n": 3, "c": 2, "m": 2},
        {"n": 4, "c": 3, "m": 5},
    ),
    definitions={D_q: total_at_q, D_r: total_at_r},
    expressions={
        "D_q": total_at_q,
        "D_r": total_at_r,
        "W_q": W_q,
        "o_q": o_q,
        "o_r": o_r,
        "read_at_r": read_at_r,
        "excess": excess,
        "failure": failure,
        "H": H,
        "readouts": readouts,
    },
    argument=argument,
)
