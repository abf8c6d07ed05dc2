"""The loss of the dual model is linear: no minimum, except in a ball, where one step reaches it.

Demonstrations V (N, c), Phi (N, m), weights W and X (c, m), a number eta and a positive number D;
G = V^T Phi. Expressions:

- `L` at W; `L_at_G` at s G, the loss along its own descent (V, Phi, eta, D, s)
- `W_T`, the end of T full steps from W_0, and its `prediction` at phi_q (V, Phi, W_0, D, T)
- `squared_norm` = |G|_F^2 (V, Phi), and `from_kernels`, the same from U = V V^T and
  Kappa = Phi Phi^T (N, N) alone
- `optimum` of the ball of radius r, and `least`, its loss (V, Phi, eta, D, r)
- `gap` = L(X) - L(optimum), as the completed square (V, Phi, X, eta, D, r)
"""

from sympy import MatrixSymbol, Rational, Trace, sqrt, symbols

from .derivation import Derivation, Differentiate, Expand, Proof, Substitute

N, c, m, T = symbols("N c m T", integer=True, positive=True)
eta, D, r, g, s, lamda = symbols("eta D r g s lamda", positive=True)
alpha, beta = symbols("alpha beta", real=True)

W, X, W_0 = MatrixSymbol("W", c, m), MatrixSymbol("X", c, m), MatrixSymbol("W_0", c, m)
V, Phi = MatrixSymbol("V", N, c), MatrixSymbol("Phi", N, m)
phi_q = MatrixSymbol("phi_q", m, 1)
U, Kappa = MatrixSymbol("U", N, N), MatrixSymbol("Kappa", N, N)

G = V.T * Phi


def L_at(weights):
    return -Trace(V * weights * Phi.T) / (eta * D)


L = L_at(W)
gradient = -G / (eta * D)
squared_norm = Trace(G * G.T)
from_kernels = Trace(U * Kappa)
L_at_G = -s * squared_norm / (eta * D)

W_T = W_0 + T * G / D
prediction = W_0 * phi_q + T * V.T * Phi * phi_q / D

# g is |G|_F: the square is completed for any number g, and only its length needs the root
optimum = r / g * G
least = -r * sqrt(squared_norm) / (eta * D)
distance = Trace((X - optimum) * (X - optimum).T)
gap = g / (2 * r * eta * D) * (distance + Trace(optimum * optimum.T) - Trace(X * X.T))


def argument(proof: Proof) -> None:
    proof.step(
        "The loss is linear",
        L,
        Substitute({W: alpha * W + beta * X}),
        alpha * L + beta * L_at(X),
        because="each term v_i^T W phi(k_i) is linear in W",
    )
    proof.step(
        "Its gradient is one matrix, everywhere",
        L_at(W + X),
        Differentiate(W),
        gradient,
        because="the displacement X does not occur in it; there is no point where it vanishes",
    )
    proof.step(
        "It is unbounded below",
        L,
        Substitute({W: s * G}),
        L_at_G,
        because="unless G = 0, the loss falls without end as s grows: least squares has a minimum, "
        "this loss has none",
    )
    proof.step(
        "One more full step",
        W - eta * gradient,
        Substitute({W: W_T}),
        W_T.xreplace({T: T + 1}),
        because="every step adds the same matrix G/D; with T = 0, where W_T is W_0, this is the "
        "induction for every T",
    )
    proof.step(
        "What T full steps predict",
        W_T * phi_q,
        Expand(),
        prediction,
        because="the demonstrations count T times: attention is the first step, not the limit",
    )
    proof.step(
        "On a ball, a multiplier lamda makes the gradient vanish along G only",
        L + lamda / 2 * Trace(W * W.T),
        Differentiate(W),
        lamda * (W - G / (lamda * eta * D)),
        because="the Lagrangian of |W|_F <= r is stationary at a positive multiple of G; of length "
        "r there is one, r G/|G|_F",
    )
    proof.step(
        "Completing the square",
        L_at(X) - L_at(optimum),
        Expand(),
        gap,
        because="this holds at every X; in the ball, where |X|_F <= r = |optimum|_F, both parts "
        "are not negative, so no X is lower, and only X = optimum is as low",
    )
    length = Substitute({g: sqrt(squared_norm)})
    proof.step(
        "The optimum lies on the sphere",
        Trace(optimum * optimum.T),
        length,
        r**2,
        because="g = |G|_F",
    )
    proof.step(
        "The least loss in the ball",
        L_at(optimum),
        length,
        least,
        because="this is the bound of Cauchy and Schwarz for L = -<G, W>/(eta D): it is attained",
    )
    proof.step(
        "The norm needs Gram matrices only",
        from_kernels,
        Substitute({U: V * V.T, Kappa: Phi * Phi.T}),
        squared_norm,
        because="|G|_F^2 = sum_ij (v_i.v_j) (phi(k_i).phi(k_j)): no feature is needed where the "
        "kernel is known",
    )
    proof.step(
        "One step from 0 is the optimum of the ball that it reaches",
        optimum,
        Substitute({r: g / D}),
        G / D,
        because="in the ball of radius |G|_F/D, the length of the step, nothing does better",
    )
    proof.step(
        "The same around W_0",
        L_at(W_0 + X),
        Expand(),
        L_at(W_0) + L_at(X),
        because="W_0 shifts the loss by a constant: the step from W_0 is the optimum of the ball "
        "around W_0",
    )
    refuse_variants(proof)


def refuse_variants(proof: Proof) -> None:
    proof.refuse(
        "the loss is quadratic",
        L,
        Substitute({W: 2 * W}),
        4 * L,
        because="twice the weights give twice the loss",
    )
    residual = Phi * W.T - V
    proof.refuse(
        "the linear loss is least squares",
        Rational(1, 2) * Trace(residual * residual.T) / (eta * D),
        Differentiate(W),
        gradient,
        because="the gradient of least squares has a part linear in W, and a zero",
    )
    proof.refuse(
        "the loss is bounded along its descent",
        L,
        Substitute({W: s * G}),
        -squared_norm / (eta * D),
        because="it falls in proportion to s",
    )
    proof.refuse(
        "T steps are as good as one",
        W_T * phi_q,
        Expand(),
        W_0 * phi_q + V.T * Phi * phi_q / D,
        because="the demonstrations count T times",
    )
    proof.refuse(
        "every step starts from W_0 again",
        W - eta * gradient,
        Substitute({W: W_T}),
        (T + 1) * (W_0 + G / D),
        because="W_0 counts once, whatever the number of steps",
    )
    proof.refuse(
        "the opposite point is the optimum",
        L_at(X) - L_at(-optimum),
        Expand(),
        gap,
        because="-r G/|G| is the point of the ball where the loss is largest",
    )
    proof.refuse(
        "the square without the room left in the ball",
        L_at(X) - L_at(optimum),
        Expand(),
        g / (2 * r * eta * D) * distance,
        because="inside the ball, r^2 - |X|^2 is lost as well",
    )
    proof.refuse(
        "the optimum is as long as G",
        Trace(optimum * optimum.T),
        Substitute({g: sqrt(squared_norm)}),
        r**2 * squared_norm,
        because="dividing by |G|_F makes a direction of length 1",
    )
    proof.refuse(
        "the least loss has |G|^2",
        L_at(optimum),
        Substitute({g: sqrt(squared_norm)}),
        -r * squared_norm / (eta * D),
        because="the other |G| is divided out of the optimum",
    )
    proof.refuse(
        "the step is the optimum of the ball of radius |G|",
        optimum,
        Substitute({r: g}),
        G / D,
        because="the step is D times shorter",
    )
    proof.refuse(
        "the norm of G is the product of the norms",
        from_kernels,
        Substitute({U: V * V.T, Kappa: Phi * Phi.T}),
        Trace(V * V.T) * Trace(Phi * Phi.T),
        because="that is |V|^2 |Phi|^2, an upper bound",
    )


derivation = Derivation(
    title="The loss is linear, and one step is its optimum in a ball",
    statement=(
        "The loss L(W) = -(1/(eta D)) sum_i v_i^T W phi(k_i) is linear in W and unbounded below, "
        "and T full steps end at W_0 + (T/D) G, G = sum_i v_i phi(k_i)^T. In the ball |W|_F <= r "
        "its minimum is r G/|G|_F, with L = -r |G|_F/(eta D); so the step from 0 is the optimum of "
        "the ball of radius |G|_F/D, which it reaches."
    ),
    scope="every N, c, m, T",
    assumptions=("D and eta are positive", "G is not zero"),
    sizes=(
        {"N": 1, "c": 2, "m": 3, "T": 2},
        {"N": 2, "c": 2, "m": 2, "T": 1},
        {"N": 4, "c": 2, "m": 3, "T": 5},
    ),
    definitions={g: sqrt(squared_norm)},
    expressions={
        "L": L,
        "L_at_G": L_at_G,
        "W_T": W_T,
        "prediction": prediction,
        "squared_norm": squared_norm,
        "from_kernels": from_kernels,
        "optimum": optimum,
        "least": least,
        "gap": gap,
    },
    argument=argument,
)
