"""A feed-forward layer after attention maps the labels of the dual, at a fixed pattern of slopes.

Stacks of N demonstrations (V_N, Phi_N) and T query-side tokens (V_T, Phi_T) with features of the
query phi_q; a layer W_1 (h, c), b_1 (h), W_2 (k, h), b_2 (k) and the slopes G (h, h) of its units,
diagonal, at the attention output. Expressions:

- `W_F` (W_1, W_2, G), `b_F` (b_1, W_2, b_2, G), `layer` at x (c) with the slopes G (those of both)
- `gradient` of the loss on the labels W_F v_i (V_N, eta, Phi_N, Phi_T, phi_q and those of W_F)
- `prediction` = W_1' phi(q) + b_F of the stepped model W_1', the layer at the attention output
- `gelu_slope`, `silu_slope` at z, and the layers' `gelu`, `silu`
- `missed` at x by W_F and b_F when unit `unit` (h) of the slopes flips on (x, b_1, W_1, W_2)
- `half_way`, what that unit holds when an output moves by p delta (c) over its kink (p, w (c))
"""

from sympy import (
    BlockMatrix,
    Integer,
    MatrixSymbol,
    OneMatrix,
    Rational,
    Trace,
    ZeroMatrix,
    erf,
    exp,
    pi,
    sqrt,
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

N, T, c, m, h, k = symbols("N T c m h k", integer=True, positive=True)
eta, D, p = symbols("eta D p", positive=True)
z, beta = symbols("z beta", real=True)

V_N, V_T = MatrixSymbol("V_N", N, c), MatrixSymbol("V_T", T, c)
Phi_N, Phi_T = MatrixSymbol("Phi_N", N, m), MatrixSymbol("Phi_T", T, m)
phi_q = MatrixSymbol("phi_q", m, 1)
one_N, one_T = OneMatrix(N, 1), OneMatrix(T, 1)
total_kernel = Trace(one_N.T * Phi_N * phi_q) + Trace(one_T.T * Phi_T * phi_q)
o = BlockMatrix([[V_N], [V_T]]).T * BlockMatrix([[Phi_N], [Phi_T]]) * phi_q / D

W_1, b_1 = MatrixSymbol("W_1", h, c), MatrixSymbol("b_1", h, 1)
W_2, b_2 = MatrixSymbol("W_2", k, h), MatrixSymbol("b_2", k, 1)
G, s, x = MatrixSymbol("G", h, h), MatrixSymbol("s", h, 1), MatrixSymbol("x", c, 1)
W_F = W_2 * G * W_1
b_F = W_2 * G * b_1 + b_2
layer = W_2 * G * (W_1 * x + b_1) + b_2

W = MatrixSymbol("W", k, m)
L = -Trace(V_N * W_F.T * W * Phi_N.T) / (eta * D)
gradient = -W_F * V_N.T * Phi_N / (eta * D)
W_0 = W_F * V_T.T * Phi_T / D
stepped = W_0 + W_F * V_N.T * Phi_N / D
prediction = stepped * phi_q + b_F

gelu_slope, silu_slope = (1 + erf(z / sqrt(2))) / 2, 1 / (1 + exp(-z))
gelu, silu = z * gelu_slope, z * silu_slope

G_after, unit = MatrixSymbol("G_after", h, h), MatrixSymbol("unit", h, 1)
missed = W_2 * unit * unit.T * (W_1 * x + b_1)

w, a, delta = (MatrixSymbol(name, c, 1) for name in ("w", "a", "delta"))
half_way = p * Trace(w.T * delta) / 2


def argument(proof: Proof) -> None:
    proof.step(
        "A unit that holds z gives out its slope times z",
        W_2 * s + b_2,
        Substitute({s: G * (W_1 * x + b_1)}),
        layer,
        because="the slope is sigma(z)/z, so that G z = sigma(z), unit by unit",
    )
    proof.step(
        "At the slopes of its own point the layer is affine",
        layer,
        Expand(),
        W_F * x + b_F,
        because="G is fixed; the biases of the units pass the same slopes",
    )
    proof.step(
        "Weights and bias side by side",
        BlockMatrix([[W_2 * G]]) * BlockMatrix([[W_1, b_1]])
        + BlockMatrix([[ZeroMatrix(k, c), b_2]]),
        MultiplyBlocks(),
        BlockMatrix([[W_F, b_F]]),
        because="b_1 is one more column of W_1, and b_2 is added after the slopes",
    )
    proof.step(
        "The gradient of the loss on the mapped labels",
        L,
        Differentiate(W),
        gradient,
        because="the loss on the labels W_F v_i is linear in W",
    )
    proof.step(
        "One step from W_0, which holds the mapped labels of the query-side tokens",
        W - eta * gradient,
        Substitute({W: W_0}),
        stepped,
        because="W_F is a common factor: the step is W_F times the step on the values",
    )
    proof.step(
        "The layer at the attention output is the prediction of the stepped model",
        layer,
        Substitute({x: o}),
        prediction,
        because="o is linear in the values, W_F moves onto them, and b_F is added to the read-out",
    )
    proof.step(
        "The slope of gelu is not its derivative",
        gelu,
        Differentiate(z),
        gelu_slope + z * exp(-(z**2) / 2) / sqrt(2 * pi),
        because="the tangent passes through sigma(z) too, but with another offset: it gives other "
        "labels",
    )
    proof.step(
        "The slope of silu is not its derivative",
        silu,
        Differentiate(z),
        silu_slope + z * exp(-z) / (1 + exp(-z)) ** 2,
        because="the two differ by z times the derivative of the slope",
    )
    proof.step(
        "At zero the slope of gelu is its derivative",
        gelu_slope + z * exp(-(z**2) / 2) / sqrt(2 * pi),
        EvaluateAt({z: 0}),
        Rational(1, 2),
        because="the limit of sigma(z)/z at a zero of sigma is sigma'(0), and Phi(0) is its value",
    )
    proof.step(
        "At zero the slope of silu is its derivative",
        silu_slope + z * exp(-z) / (1 + exp(-z)) ** 2,
        EvaluateAt({z: 0}),
        Rational(1, 2),
        because="the logistic function at 0 is the limit of sigma(z)/z",
    )
    proof.step(
        "The slopes at z and at -z add up to one",
        silu_slope + silu_slope.subs(z, -z),
        Expand(),
        Integer(1),
        because="both are positive, so each lies between 0 and 1, as those of relu and gelu do",
    )
    proof.step(
        "When a unit flips on, W_F and b_F of before miss it",
        W_2 * G_after * (W_1 * x + b_1) + b_2 - (W_F * x + b_F),
        Substitute({G_after: G + unit * unit.T}),
        missed,
        because="the slopes differ there alone: what it holds goes through its column of W_2",
    )
    threshold = {beta: -Trace(w.T * (2 * a + p * delta)) / 2}
    proof.step(
        "A demonstration moves the output over the kink of a unit",
        Trace(w.T * x) + beta,
        Substitute({x: a + p * delta, **threshold}),
        half_way,
        because="its value moves by delta and the output by p delta; the kink is half way",
    )
    proof.step(
        "Before, the unit was off by as much",
        Trace(w.T * x) + beta,
        Substitute({x: a, **threshold}),
        -half_way,
        because="for w.delta > 0 the unit was off and is on: W_F of before is wrong by half of "
        "what the demonstration moves it",
    )
    refuse_variants(proof)


def refuse_variants(proof: Proof) -> None:
    proof.refuse(
        "b_F is the bias b_2",
        layer,
        Expand(),
        W_F * x + b_2,
        because="the units' own biases reach the output",
    )
    proof.refuse(
        "the labels skip the slopes",
        layer,
        Expand(),
        W_2 * W_1 * x + b_F,
        because="W_2 W_1 is the layer with every unit on",
    )
    proof.refuse(
        "the bias is divided by D",
        layer,
        Substitute({x: o}),
        stepped * phi_q + b_F / D,
        because="b_F is added to the read-out, after the weights have been normalised",
    )
    proof.refuse(
        "the query-side tokens drop out",
        layer,
        Substitute({x: o}),
        W_F * V_N.T * Phi_N * phi_q / D + b_F,
        because="their labels are mapped as well, and make W_0",
    )
    proof.refuse(
        "the outer product is transposed",
        L,
        Differentiate(W),
        -Phi_N.T * V_N * W_F.T / (eta * D),
        because="phi(k) (W_F v)^T has the shape of W^T",
    )
    proof.refuse(
        "the slope is the derivative",
        gelu,
        Differentiate(z),
        gelu_slope,
        because="that holds where sigma is linear: for relu, and at zero",
    )
    proof.refuse(
        "the slope of gelu is a logistic function",
        gelu_slope,
        Expand(),
        1 / (1 + exp(-Rational(1702, 1000) * z)),
        because="1.702 makes the two close, not equal",
    )
    proof.refuse(
        "one W_F serves both contexts",
        W_2 * G_after * (W_1 * x + b_1) + b_2 - (W_F * x + b_F),
        Substitute({G_after: G + unit * unit.T}),
        ZeroMatrix(k, 1),
        because="the flipped unit is missing",
    )
    proof.refuse(
        "the flip is missed with its bias alone",
        W_2 * G_after * (W_1 * x + b_1) + b_2 - (W_F * x + b_F),
        Substitute({G_after: G + unit * unit.T}),
        W_2 * unit * unit.T * b_1,
        because="W_F misses the unit as much as b_F does",
    )
    proof.refuse(
        "the whole move is missed",
        Trace(w.T * x) + beta,
        Substitute({x: a + p * delta, beta: -Trace(w.T * (2 * a + p * delta)) / 2}),
        p * Trace(w.T * delta),
        because="up to its kink the unit was rightly off",
    )


derivation = Derivation(
    title="A feed-forward layer maps the labels of the dual",
    statement=(
        "Let G hold the slopes sigma(z)/z of a layer's units at the attention output o. There the "
        "layer is W_F o + b_F with W_F = W_2 G W_1 and b_F = W_2 G b_1 + b_2, so attention "
        "followed by the layer is one gradient step on the labels W_F v_i, and b_F added to the "
        "read-out. The slope of relu is 1[z > 0], of gelu Phi(z), of silu the logistic function. "
        "They depend on o: after a demonstration that flips a unit, the old W_F and b_F are wrong "
        "by what that unit holds."
    ),
    scope="every N, T, c, m, h, k",
    assumptions=(
        "D is not zero and eta is positive",
        "G is diagonal with the slopes at o, and fixed while W is differentiated (the steps hold "
        "for any matrix G)",
        "unit is a unit vector (the steps hold for any), w its row of W_1, and beta its bias",
    ),
    sizes=(
        {"N": 1, "T": 1, "c": 2, "m": 3, "h": 1, "k": 1},
        {"N": 2, "T": 1, "c": 2, "m": 2, "h": 2, "k": 2},
        {"N": 3, "T": 2, "c": 1, "m": 4, "h": 5, "k": 6},
    ),
    definitions={D: total_kernel},
    expressions={
        "W_F": W_F,
        "b_F": b_F,
        "layer": layer,
        "gradient": gradient,
        "prediction": prediction,
        "gelu_slope": gelu_slope,
        "silu_slope": silu_slope,
        "gelu": gelu,
        "silu": silu,
        "missed": missed,
        "half_way": half_way,
    },
    argument=argument,
)
