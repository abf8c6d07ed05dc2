"""A stream of tokens updates one state, states add, and the state of t tokens is a dual model.

Stacks of t tokens seen (V_t, Phi_t), r later ones (V_r, Phi_r) and h of one chunk (V_h, Phi_h), one
token (v, f), features of the query phi_q; log scales a, b, e of three shards, A and B of merged
ones. Expressions:

- `S_t` (V_t, Phi_t) and `n_t` (Phi_t) of t tokens, `S_next` and `n_next` with one more (also v, f)
- `D` (Phi_t, phi_q) and `o_t`, what the state reads (V_t, Phi_t, phi_q)
- `S_chunk`, the numerator of a chunk's query (those of o_t, V_h, Phi_h and M_h (h, h), the part of
  the causal mask within the chunk: its diagonal is 1 for the tokens that the query sees)
- `S_merged` of two shards (S_1 (c, m), S_2 (c, m), a, b, A)
- `W_t` of the dual model, after one step on t tokens (V_t, Phi_t, phi_q)
"""

from sympy import (
    BlockMatrix,
    Identity,
    MatrixSymbol,
    OneMatrix,
    Rational,
    Trace,
    ZeroMatrix,
    exp,
    symbols,
)

from .derivation import Derivation, Differentiate, Expand, MultiplyBlocks, Proof, Substitute

t, r, h, c, m = symbols("t r h c m", integer=True, positive=True)
eta, D = symbols("eta D", positive=True)
a, b, e, A, B = symbols("a b e A B", real=True)

V_t, Phi_t = MatrixSymbol("V_t", t, c), MatrixSymbol("Phi_t", t, m)
V_r, Phi_r = MatrixSymbol("V_r", r, c), MatrixSymbol("Phi_r", r, m)
V_h, Phi_h = MatrixSymbol("V_h", h, c), MatrixSymbol("Phi_h", h, m)
M_h = MatrixSymbol("M_h", h, h)
v, f, phi_q = MatrixSymbol("v", c, 1), MatrixSymbol("f", m, 1), MatrixSymbol("phi_q", m, 1)
W = MatrixSymbol("W", c, m)

one_t, one_r, one_h = (OneMatrix(rows, 1) for rows in (t, r, h))

S_t, n_t = V_t.T * Phi_t, one_t.T * Phi_t
S_next, n_next = S_t + v * f.T, n_t + f.T
total_kernel = Trace(n_t * phi_q)
o_t = S_t * phi_q / D

V, Phi = BlockMatrix([[V_t], [V_r]]), BlockMatrix([[Phi_t], [Phi_r]])
one = BlockMatrix([[one_t], [one_r]])
mask = BlockMatrix([[Identity(t), ZeroMatrix(t, r)], [ZeroMatrix(r, t), ZeroMatrix(r, r)]])

V_chunk, Phi_chunk = BlockMatrix([[V_t], [V_h]]), BlockMatrix([[Phi_t], [Phi_h]])
triangle = BlockMatrix([[Identity(t), ZeroMatrix(t, h)], [ZeroMatrix(h, t), M_h]])
S_chunk = S_t * phi_q + V_h.T * M_h * Phi_h * phi_q

# a state is kept as sums and a log scale: S_1 with log scale a stands for exp(a) S_1
S_1, S_2, S_3 = (MatrixSymbol(f"S_{k}", c, m) for k in (1, 2, 3))
n_1, n_2 = (MatrixSymbol(f"n_{k}", 1, m) for k in (1, 2))
S_merged = exp(a - A) * S_1 + exp(b - A) * S_2
n_merged = exp(a - A) * n_1 + exp(b - A) * n_2
from_the_left = exp(A - B) * S_merged + exp(e - B) * S_3
from_the_right = exp(a - B) * S_1 + exp(A - B) * (exp(b - A) * S_2 + exp(e - A) * S_3)


def reading(S, n):
    return S * phi_q / Trace(n * phi_q)


L = -Trace(V_t * W * Phi_t.T) / (eta * D)
gradient = -S_t / (eta * D)
W_t = S_t / D
L_next = -Trace(v.T * W * f) / eta
gradient_next = -v * f.T / eta


def argument(proof: Proof) -> None:
    proof.step(
        "One more token adds one outer product",
        BlockMatrix([[V_t], [v.T]]).T * BlockMatrix([[Phi_t], [f.T]]),
        MultiplyBlocks(),
        S_next,
        because="the stack grows by one row; with the empty stack this is the induction for every "
        "t",
    )
    proof.step(
        "and one feature to the normaliser",
        BlockMatrix([[one_t], [OneMatrix(1, 1)]]).T * BlockMatrix([[Phi_t], [f.T]]),
        MultiplyBlocks(),
        n_next,
        because="the sum of the features grows by that of the token",
    )
    proof.step(
        "The causal mask leaves the state in the numerator",
        V.T * mask * Phi * phi_q / D,
        MultiplyBlocks(),
        o_t,
        because="the mask is 1 for the t tokens seen and 0 for the r later ones",
    )
    proof.step(
        "and the state in the denominator",
        one.T * mask * Phi * phi_q,
        MultiplyBlocks(),
        n_t * phi_q,
        because="later tokens count neither above nor below; this number is D",
    )
    proof.step(
        "Within a chunk: the state of what came before, and a triangle",
        V_chunk.T * triangle * Phi_chunk * phi_q,
        MultiplyBlocks(),
        S_chunk,
        because="all tokens before the chunk are seen, and of it those that the mask leaves; "
        "with ones in the place of V the same holds for D",
    )
    proof.step(
        "Shards add up",
        V.T * Phi,
        MultiplyBlocks(),
        S_t + V_r.T * Phi_r,
        because="a context is the stack of its shards, wherever it is cut",
    )
    proof.step(
        "Merging with log scales is this addition",
        exp(A) * S_merged,
        Expand(),
        exp(a) * S_1 + exp(b) * S_2,
        because="exp(A) exp(a - A) = exp(a), whatever A is: the larger of a and b lets nothing "
        "overflow",
    )
    proof.step(
        "Any grouping",
        from_the_left,
        Expand(),
        from_the_right,
        because="both are exp(-B) times the sum of three shards: associativity",
    )
    proof.step(
        "Any order",
        exp(B) * (exp(b - B) * S_2 + exp(a - B) * S_1),
        Expand(),
        exp(A) * S_merged,
        because="the sum is commutative, and the scale that a merge chooses leaves no trace",
    )
    proof.step(
        "The empty state is the identity",
        exp(A) * S_merged,
        Substitute({S_2: ZeroMatrix(c, m)}),
        exp(A) * (exp(a - A) * S_1),
        because="no token contributes no outer product, whatever its log scale b",
    )
    proof.step(
        "The log scale cancels when the state is read",
        reading(S_merged, n_merged),
        Expand(),
        reading(exp(a) * S_1 + exp(b) * S_2, exp(a) * n_1 + exp(b) * n_2),
        because="exp(-A) stands above and below",
    )
    proof.step(
        "The gradient of the dual loss on the t tokens",
        L,
        Differentiate(W),
        gradient,
        because="the loss is linear in W",
    )
    proof.step(
        "One step from zero is the state, divided by D",
        W - eta * gradient,
        Substitute({W: ZeroMatrix(c, m)}),
        W_t,
        because="so W_t phi(q) = o_t: the state of t tokens is the dual model of position t, up to "
        "the D that depends on the query",
    )
    proof.step(
        "The gradient of one token's loss, without D",
        L_next,
        Differentiate(W),
        gradient_next,
        because="D is left to the reading, and the loss does not depend on the query",
    )
    proof.step(
        "An update is a gradient step itself",
        W - eta * gradient_next,
        Substitute({W: S_t}),
        S_next,
        because="it starts from the state of the tokens before",
    )
    refuse_variants(proof)


def refuse_variants(proof: Proof) -> None:
    proof.refuse(
        "reads before it updates",
        BlockMatrix([[V_t], [v.T]]).T * BlockMatrix([[Phi_t], [f.T]]),
        MultiplyBlocks(),
        S_t,
        because="a causal query attends to its own token",
    )
    proof.refuse(
        "the state decays",
        BlockMatrix([[V_t], [v.T]]).T * BlockMatrix([[Phi_t], [f.T]]),
        MultiplyBlocks(),
        Rational(99, 100) * S_t + v * f.T,
        because="softmax attention does not fade with age",
    )
    proof.refuse(
        "later tokens stay in the denominator",
        one.T * mask * Phi * phi_q,
        MultiplyBlocks(),
        (n_t + one_r.T * Phi_r) * phi_q,
        because="the weights of what is seen would not sum to one",
    )
    proof.refuse(
        "the normaliser is forgotten",
        V.T * mask * Phi * phi_q / D,
        MultiplyBlocks(),
        S_t * phi_q,
        because="the read-out is a mean of the values, not a sum",
    )
    proof.refuse(
        "a chunk without its triangle",
        V_chunk.T * triangle * Phi_chunk * phi_q,
        MultiplyBlocks(),
        (S_t + V_h.T * Phi_h) * phi_q,
        because="the query would see the tokens of its chunk that come after it",
    )
    proof.refuse(
        "merging without rescaling",
        exp(A) * S_merged,
        Expand(),
        exp(A) * (S_1 + S_2),
        because="the sums have log scales of their own",
    )
    proof.refuse(
        "merging keeps the first log scale",
        exp(a) * S_merged,
        Expand(),
        exp(a) * S_1 + exp(b) * S_2,
        because="the sums are multiples of exp(A) after the merge",
    )
    proof.refuse(
        "the shards' outputs are averaged",
        reading(S_merged, n_merged),
        Expand(),
        (reading(S_1, n_1) + reading(S_2, n_2)) / 2,
        because="a shard counts by its share of D, which depends on the query",
    )


derivation = Derivation(
    title="Causal attention is a stream, and its state a monoid",
    statement=(
        "The state S_t = sum_{j<=t} v_j phi(k_j)^T, n_t = sum_{j<=t} phi(k_j) grows by one outer "
        "product and one feature a token, and reads S_t phi(q_t) / (n_t.phi(q_t)), the causal "
        "attention at position t. States add, in any grouping and order, with the empty state as "
        "identity, and also when each is kept with a log scale of its own. S_t / D is the dual "
        "model of position t, after one gradient step from zero on the tokens seen."
    ),
    scope="every t, r, h, c, m",
    assumptions=(
        "D is not zero and eta is positive",
        "phi(k).phi(q) is the kernel of the attention; softmax itself by gram_features, with "
        "landmarks that contain every key",
    ),
    sizes=(
        {"t": 1, "r": 1, "h": 1, "c": 2, "m": 3},
        {"t": 2, "r": 2, "h": 2, "c": 2, "m": 2},
        {"t": 3, "r": 2, "h": 1, "c": 5, "m": 4},
    ),
    definitions={D: total_kernel},
    expressions={
        "S_t": S_t,
        "n_t": n_t,
        "S_next": S_next,
        "n_next": n_next,
        "D": total_kernel,
        "o_t": o_t,
        "S_chunk": S_chunk,
        "S_merged": S_merged,
        "W_t": W_t,
    },
    argument=argument,
)
