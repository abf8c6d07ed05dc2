"""L attention layers are a sequence of L duals, layer l + 1 trained on the outputs of layer l.

Rows are tokens. States X (n, m) and that of the query token, x_q (m); W_1 (c_1, m), W_2 (c_2, m)
make the values, U_1 (m, c_1), U_2 (m, c_2) project the outputs; P (n, n) and p (n) are layer 1's
weights for all tokens and for the query token; Phi (n, r), phi_q (r) layer 2's features of its keys
and its query. Expressions:

- `X_1`, the states after layer 1 (X, P, W_1, U_1)
- `gradient` of layer 2's loss (those of X_1, W_2, U_2, Phi, phi_q, eta), `M_1`, its weights after
  one step, and `output`, the query token's state after both layers (and x_q, p)
- `key`, coordinate l of a key behind a norm (W (d, m), g (m), b (m), x (m), sigma, l)
- `moved`, what a query token adds to the output of another token in layer 1, at coordinate l
  (kappa (n), v (n, m), kappa_q, v_q (m), l)
- `square`, sigma_t^2 of a state z and t increments o, both centred (z (m), o (m), t, eps), and
  `defect`, of the post-normed state at coordinate l (g (m), z, o, sigma_0, sigma_1, sigma_2, l)
"""

from sympy import (
    BlockMatrix,
    Identity,
    IndexedBase,
    Integer,
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

n, m, c_1, c_2, r, d = symbols("n m c_1 c_2 r d", integer=True, positive=True)
j, k, l = symbols("j k l", integer=True, positive=True)  # noqa: E741
eta, D, eps, sigma, t = symbols("eta D eps sigma t", positive=True)

# Two layers: the first by its weights, the second by its features, at any states Y.
X, x_q = MatrixSymbol("X", n, m), MatrixSymbol("x_q", m, 1)
Y, y_q = MatrixSymbol("Y", n, m), MatrixSymbol("y_q", m, 1)
W_1, U_1 = MatrixSymbol("W_1", c_1, m), MatrixSymbol("U_1", m, c_1)
W_2, U_2 = MatrixSymbol("W_2", c_2, m), MatrixSymbol("U_2", m, c_2)
P, p = MatrixSymbol("P", n, n), MatrixSymbol("p", n, 1)
Phi, phi_q = MatrixSymbol("Phi", n, r), MatrixSymbol("phi_q", r, 1)
M = MatrixSymbol("M", m, r)
total_kernel = Trace(OneMatrix(n, 1).T * Phi * phi_q)

X_1 = X + P * X * W_1.T * U_1.T
x_1 = x_q + U_1 * W_1 * X.T * p

loss = -Trace(Y * W_2.T * U_2.T * M * Phi.T) / (eta * D)
gradient_at_Y = -U_2 * W_2 * Y.T * Phi / (eta * D)
read_out, features = BlockMatrix([[M, Identity(m)]]), BlockMatrix([[phi_q], [y_q]])

gradient = gradient_at_Y.xreplace({Y: X_1})
M_1 = U_2 * W_2 * X_1.T * Phi / D
output = M_1 * phi_q + x_1
a = Phi * phi_q / D
direct = x_q + U_1 * W_1 * X.T * p + U_2 * W_2 * X.T * a
composed = U_2 * W_2 * U_1 * W_1 * X.T * P.T * a

# A norm before the projections, by coordinates.
W = IndexedBase("W", shape=(d, m), real=True)
g, b, x = (IndexedBase(name, shape=(m,), real=True) for name in "gbx")
normed = g[j] * (x[j] - Sum(x[k], (k, 1, m)) / m) / sigma + b[j]
key = Sum(W[l, j] * normed, (j, 1, m))
absorbed = W[l, j] * g[j] - Sum(W[l, k] * g[k], (k, 1, m)) / m
offset = Sum(W[l, j] * b[j], (j, 1, m))

# What the query token does to another token in layer 1.
kappa = IndexedBase("kappa", shape=(n,), positive=True)
v = IndexedBase("v", shape=(n, m), real=True)
v_q, v_new = (IndexedBase(name, shape=(m,), real=True) for name in ("v_q", "v_new"))
kappa_q, kappa_new = symbols("kappa_q kappa_new", positive=True)
numerator, denominator = Sum(kappa[j] * v[j, l], (j, 1, n)), Sum(kappa[j], (j, 1, n))
without = numerator / denominator


def beside(kernel, value):
    """The output of a token that also attends to the query token."""
    return (numerator + kernel * value[l]) / (denominator + kernel)


def pull(kernel, value):
    """The query token's weight times its value's distance from the output without it."""
    return kernel / (denominator + kernel) * (value[l] - without)


moved = pull(kappa_q, v_q)

# A norm after the residual, by coordinates; y_t is the normed state for t times the values.
z, o = IndexedBase("z", shape=(m,), real=True), IndexedBase("o", shape=(m,), real=True)
sigma_0, sigma_1, sigma_2 = symbols("sigma_0 sigma_1 sigma_2", positive=True)
square = Sum((z[j] + t * o[j]) ** 2, (j, 1, m)) / m + eps
variance, covariance = Sum(z[j] ** 2, (j, 1, m)) / m, Sum(z[j] * o[j], (j, 1, m)) / m
variance_of_o = Sum(o[j] ** 2, (j, 1, m)) / m
y_0, y_1, y_2 = (
    g[l] * (z[l] + times * o[l]) / root for times, root in enumerate((sigma_0, sigma_1, sigma_2))
)
defect = 2 * (sigma_1 / sigma_2 - 1) * y_1 + (1 - sigma_0 / sigma_2) * y_0


def argument(proof: Proof) -> None:
    proof.step(
        "The gradient of a layer's loss",
        loss,
        Differentiate(M),
        gradient_at_Y,
        because="the training pairs are the features and the labels U_2 W_2 y_i, from states Y",
    )
    proof.step(
        "The residual adds the identity to the read-out",
        read_out * features,
        MultiplyBlocks(),
        M * phi_q + y_q,
        because="[M, I] reads the state beside its features: what is trained is M alone",
    )
    proof.step(
        "Layer 2 is trained on the outputs of layer 1",
        gradient_at_Y,
        Substitute({Y: X_1}),
        gradient,
        because="Y was any state matrix: put what layer 1 gives. Putting these outputs again, and "
        "so on, is the induction over L layers",
    )
    proof.step(
        "One step from no weights",
        M - eta * gradient,
        Substitute({M: 0 * M}),
        M_1,
        because="the learning rate cancels; one_gradient_step has the split into demonstrations",
    )
    proof.step(
        "Its prediction is the output of two layers",
        M * phi_q + y_q,
        Substitute({M: M_1, y_q: x_1}),
        output,
        because="it is read at the query token's own state after layer 1",
    )
    proof.step(
        "Four paths from the embeddings to the output",
        output,
        Expand(),
        direct + composed,
        because="neither layer, layer 1, layer 2, and layer 1 seen through layer 2: for the last "
        "one the duals are a sequence and not a sum",
    )
    proof.step(
        "Twice the values: twice the increment",
        M_1 * phi_q,
        Substitute({W_2: 2 * W_2}),
        2 * M_1 * phi_q,
        because="the one-step weights are linear in the labels",
    )
    proof.step(
        "A norm before the projections is absorbed in them",
        key,
        Expand(),
        Sum(absorbed * x[j], (j, 1, m)) / sigma + offset,
        because="a key is a projection of its own token, divided by that token's own number: the "
        "dual has other features and labels, and the same read-out",
    )
    proof.step(
        "The query token pulls every other token towards its value",
        beside(kappa_q, v_q) - without,
        Expand(),
        moved,
        because="the output is (1 - p) o + p v, with p its weight: what layer 2 is trained on "
        "depends on the query token, if the mask is bidirectional",
    )
    proof.step(
        "Another content of the query token",
        beside(kappa_new, v_new) - beside(kappa_q, v_q),
        Expand(),
        pull(kappa_new, v_new) - moved,
        because="the output without the query token is the same for both",
    )
    proof.step(
        "With a causal mask it does not pull",
        beside(kappa_q, v_q),
        Substitute({kappa_q: 0}),
        without,
        because="an earlier token does not attend to it: its kernel value counts as 0, and the "
        "training pairs of earlier positions are the same for every query token",
    )
    proof.step(
        "The variance behind a residual",
        square,
        Expand(),
        variance + eps + 2 * t * covariance + t**2 * variance_of_o,
        because="the norm of z + t o is no linear function of o",
    )
    proof.step(
        "A norm after the residual is no linear read-out",
        y_2 - 2 * y_1 + y_0,
        Expand(),
        defect,
        because="a read-out trained on twice the values moves the output as much again, so this "
        "second difference would be 0",
    )
    proof.step(
        "It is not zero",
        defect,
        EvaluateAt(
            {
                l: 1,
                g: [1, 1],
                z: [1, -1],
                o: [-2, 2],
                sigma_0: Rational(7, 2),
                sigma_1: Rational(7, 2),
                sigma_2: Rational(9, 2),
            }
        ),
        Rational(4, 21),
        because="m = 2 and eps = 45/4: sigma_t^2 = (1 - 2 t)^2 + eps is 49/4, 49/4 and 81/4",
    )
    refuse_variants(proof)


def refuse_variants(proof: Proof) -> None:
    proof.refuse(
        "layer 2 is trained on the embeddings",
        gradient_at_Y,
        Substitute({Y: X_1}),
        -U_2 * W_2 * X.T * Phi / (eta * D),
        because="layer 1 has changed every token that layer 2 learns from",
    )
    proof.refuse(
        "no residual in the read-out",
        read_out * features,
        MultiplyBlocks(),
        M * phi_q,
        because="the identity carries the state itself",
    )
    proof.refuse(
        "the duals are added",
        output,
        Expand(),
        direct,
        because="layer 2 attends to what layer 1 wrote",
    )
    proof.refuse(
        "the residual is counted twice",
        M * phi_q + y_q,
        Substitute({M: M_1, y_q: x_1}),
        output + x_q,
        because="x_1 already carries x_q",
    )
    proof.refuse(
        "the composed path by layer 1's transposed weights",
        output,
        Expand(),
        direct + U_2 * W_2 * U_1 * W_1 * X.T * P * a,
        because="token i gathers along its own row of P",
    )
    proof.refuse(
        "a norm only rescales the projections",
        key,
        Expand(),
        Sum(W[l, j] * g[j] * x[j], (j, 1, m)) / sigma + offset,
        because="the mean is subtracted as well",
    )
    proof.refuse(
        "the query token adds its share to the others",
        beside(kappa_q, v_q) - without,
        Expand(),
        kappa_q / (denominator + kappa_q) * v_q[l],
        because="its weight is taken from the other tokens",
    )
    proof.refuse(
        "layer 2's training pairs do not depend on the query token",
        beside(kappa_new, v_new),
        Expand(),
        beside(kappa_q, v_q),
        because="only a causal mask makes it so",
    )
    proof.refuse(
        "variances add up",
        square,
        Expand(),
        variance + eps + t**2 * variance_of_o,
        because="an increment correlates with its state",
    )
    proof.refuse(
        "a norm after the residual is absorbed like one before",
        y_2 - 2 * y_1 + y_0,
        Expand(),
        Integer(0),
        because="its sigma depends on the values",
    )


derivation = Derivation(
    title="A stack of attention layers is a sequence of duals",
    statement=(
        "Layer l + 1 is the dual that is trained, in one gradient step, on the outputs of layer l, "
        "and read at the query token's output of layer l. A residual adds the identity to the "
        "read-out; a norm before the projections is absorbed in keys, queries and values. With a "
        "causal mask the training pairs of earlier positions do not depend on the query token; "
        "without it they do, by p (v - o). A norm after the residual is not covered: its output is "
        "not linear in the values."
    ),
    scope="every n, m, c_1, c_2, r, d; L layers by induction",
    assumptions=(
        "D and the kernel sums are not zero, eta and the sigmas are positive",
        "the features of layer 2 are those of its own keys and query, which layer 1 determines",
        "layer 1's weights P and p are given: one_gradient_step gives its output by a dual",
    ),
    sizes=(
        {"n": 1, "m": 2, "c_1": 1, "c_2": 3, "r": 2, "d": 2, "l": 2},
        {"n": 2, "m": 3, "c_1": 3, "c_2": 3, "r": 2, "d": 3, "l": 3},
        {"n": 3, "m": 4, "c_1": 2, "c_2": 5, "r": 6, "d": 7, "l": 1},
    ),
    definitions={D: total_kernel},
    expressions={
        "X_1": X_1,
        "gradient": gradient,
        "M_1": M_1,
        "output": output,
        "key": key,
        "moved": moved,
        "square": square,
        "defect": defect,
    },
    argument=argument,
)
