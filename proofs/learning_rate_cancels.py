"""The learning rate cancels, because the loss carries its inverse.

Expressions, with N demonstrations (V_N, Phi_N), T query-side tokens (V_T, Phi_T), W (c, m), two
learning rates eta_L of the loss and eta_S of the step, and D from Phi_N, Phi_T and phi_q:

- `L` at W (V_N, W, eta_L) and its `gradient` (V_N, eta_L)
- `W_two`, the end of a step eta_S on the loss of eta_L (V_N, V_T, eta_L, eta_S)
- `prediction_two` = W_two phi(q); `W_1` and `prediction`, both for eta_S = eta_L (V_N, V_T)
- `W_decayed`, the end of a step with weight decay (V_N, V_T, eta, lamda)
"""

from sympy import MatrixSymbol, OneMatrix, Rational, Trace, symbols

from .derivation import Derivation, Differentiate, Expand, Proof, Substitute

N, T, c, m = symbols("N T c m", integer=True, positive=True)
eta, eta_L, eta_S, D, lamda = symbols("eta eta_L eta_S D lamda", positive=True)

W = MatrixSymbol("W", c, m)
V_N, V_T = MatrixSymbol("V_N", N, c), MatrixSymbol("V_T", T, c)
Phi_N, Phi_T = MatrixSymbol("Phi_N", N, m), MatrixSymbol("Phi_T", T, m)
phi_q = MatrixSymbol("phi_q", m, 1)
P = MatrixSymbol("P", m, m)

total_kernel = sum(
    Trace(OneMatrix(rows, 1).T * Phi * phi_q) for rows, Phi in ((N, Phi_N), (T, Phi_T))
)

agreement = Trace(V_N * W * Phi_N.T)
L = -agreement / (eta_L * D)
gradient = -V_N.T * Phi_N / (eta_L * D)

W_0 = V_T.T * Phi_T / D
learned = V_N.T * Phi_N / D
W_two = W_0 + eta_S / eta_L * learned
W_1 = W_0 + learned
prediction_two = V_T.T * Phi_T * phi_q / D + eta_S / eta_L * V_N.T * Phi_N * phi_q / D
prediction = V_T.T * Phi_T * phi_q / D + V_N.T * Phi_N * phi_q / D

one_rate = Substitute({eta_L: eta, eta_S: eta})
W_decayed = (1 - eta * lamda) * W_0 + learned


def argument(proof: Proof) -> None:
    proof.step(
        "The gradient of the loss",
        L,
        Differentiate(W),
        gradient,
        because="the loss is linear in W; its factor 1/eta_L becomes that of the gradient",
    )
    proof.step(
        "The learning rate of the loss only stretches the loss",
        L,
        Substitute({eta_L: eta_S}),
        eta_L / eta_S * L,
        because="the losses of two learning rates are multiples of each other: they descend along "
        "the same line, at different speeds",
    )
    proof.step(
        "A step with another learning rate than the loss carries",
        W - eta_S * gradient,
        Substitute({W: W_0}),
        W_two,
        because="the gradient is 1/eta_L times a matrix that knows no learning rate, and the step "
        "multiplies it by eta_S: what counts is their ratio",
    )
    proof.step(
        "What such a step predicts",
        W_two * phi_q,
        Expand(),
        prediction_two,
        because="the query-side tokens count once, the demonstrations eta_S/eta_L times",
    )
    proof.step(
        "With one learning rate it cancels",
        W_two,
        one_rate,
        W_1,
        because="the ratio is 1, for every eta",
    )
    proof.step(
        "And the prediction is the attention output",
        prediction_two,
        one_rate,
        prediction,
        because="this is sum_j v_j phi(k_j).phi(q) / D over all tokens, as one_gradient_step shows",
    )
    proof.step(
        "A loss without 1/eta leaves the learning rate in the prediction",
        prediction_two,
        Substitute({eta_L: 1}),
        V_T.T * Phi_T * phi_q / D + eta_S * V_N.T * Phi_N * phi_q / D,
        because="that loss is the one of eta_L = 1: the step is right for eta_S = 1 only",
    )
    proof.step(
        "A preconditioner stays, and the learning rate cancels all the same",
        W - eta * gradient * P,
        Substitute({W: W_0, eta_L: eta}),
        W_0 + learned * P,
        because="P multiplies the gradient whatever eta is",
    )
    decay = -lamda * W + learned / eta
    proof.step(
        "The gradient with a weight decay that carries no 1/eta",
        agreement / (eta * D) - lamda / 2 * Trace(W * W.T),
        Differentiate(W),
        decay,
        because="this is minus L minus the penalty (lamda/2)|W|^2",
    )
    proof.step(
        "Such a weight decay brings the learning rate back",
        W + eta * decay,
        Substitute({W: W_0}),
        W_decayed,
        because="eta multiplies what does not carry 1/eta; with lamda = alpha/eta, as in "
        "regularized_attention, it cancels again",
    )
    refuse_variants(proof)


def refuse_variants(proof: Proof) -> None:
    proof.refuse(
        "the learning rate cancels from the loss itself",
        L,
        Substitute({eta_L: eta_S}),
        L,
        because="only the step is free of eta; the loss is proportional to 1/eta",
    )
    proof.refuse(
        "any two learning rates cancel",
        W - eta_S * gradient,
        Substitute({W: W_0}),
        W_1,
        because="the ratio eta_S/eta_L is 1 only if they are equal",
    )
    proof.refuse(
        "the learning rates multiply",
        W - eta_S * gradient,
        Substitute({W: W_0}),
        W_0 + eta_S * eta_L * learned,
        because="the loss carries 1/eta_L, not eta_L",
    )
    proof.refuse(
        "the query-side tokens carry the ratio as well",
        W_two * phi_q,
        Expand(),
        eta_S / eta_L * prediction,
        because="W_0 is where the step starts; no step is taken on its tokens",
    )
    proof.refuse(
        "a loss without 1/eta gives the attention output",
        prediction_two,
        Substitute({eta_L: 1}),
        prediction,
        because="the demonstrations would count eta times",
    )
    proof.refuse(
        "a loss with 1/eta^2 gives the same step",
        W + eta * V_N.T * Phi_N / (eta**2 * D),
        Substitute({W: W_0}),
        W_1,
        because="one power of eta would be left",
    )
    proof.refuse(
        "the learning rate cancels under weight decay too",
        W + eta * (-lamda * W + learned / eta),
        Substitute({W: W_0}),
        (1 - lamda) * W_0 + learned,
        because="the penalty carries no 1/eta",
    )
    residual = Phi_N * W.T - V_N
    proof.refuse(
        "a least-squares loss with 1/eta takes the same step",
        -Rational(1, 2) * Trace(residual * residual.T) / (eta * D),
        Differentiate(W),
        learned / eta,
        because="its 1/eta cancels too, but the gradient is that of attention at W = 0 only",
    )


derivation = Derivation(
    title="The learning rate cancels",
    statement=(
        "The loss L(W) = -(1/(eta D)) sum_i v_i^T W phi(k_i) carries 1/eta, so the step "
        "W_0 - eta grad L(W_0) does not depend on eta, and its prediction is the attention output "
        "for every eta > 0. With a learning rate eta_L in the loss and another one, eta_S, in the "
        "step, the demonstrations count eta_S/eta_L times."
    ),
    scope="every N, T, c, m",
    assumptions=(
        "D is not zero, the learning rates are positive",
        "D is a number, fixed while W is differentiated",
    ),
    sizes=(
        {"N": 1, "T": 1, "c": 2, "m": 3},
        {"N": 3, "T": 1, "c": 2, "m": 2},
        {"N": 5, "T": 2, "c": 3, "m": 4},
    ),
    definitions={D: total_kernel},
    expressions={
        "L": L,
        "gradient": gradient,
        "W_two": W_two,
        "prediction_two": prediction_two,
        "W_1": W_1,
        "prediction": prediction,
        "W_decayed": W_decayed,
    },
    argument=argument,
)
