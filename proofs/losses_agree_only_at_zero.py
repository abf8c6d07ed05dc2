"""Other losses take the dual's step from W_0 = 0, and from elsewhere one that is off by a sum.

Expressions, with demonstrations V_N (N, c), Phi_N (N, m), query-side tokens V_T (T, c) and
Phi_T (T, m), W and W_0 (c, m), phi_q (m), eta and D:

- `dual_step` from W_0 (W_0, V_N, Phi_N, D); `failure`, what the step on another loss is off by
  whose gradient by the outputs is (Z - V_N)/(eta D) at W_0 (Z (N, c), Phi_N, D)
- `least_squares` at W and its `least_squares_gradient` (W, V_N, Phi_N, eta, D); what its step is
  off by, `least_squares_failure` (W_0, Phi_N, D)
- `kernel_failure`, the same of the prediction, from the W_0 of the query-side tokens, for which
  only kernel values count (V_T, Phi_T, Phi_N, phi_q, D)

and by entries, with f (N, m), v (N, c), w (c, m), r (from 1) an output and s a feature:

- `logistic` at w (f, v, w, eta, D) and entry r, s of its `logistic_gradient` (r, s as well); what
  its step is off by in that entry, `logistic_failure` (f, w, D, r, s)
"""

from sympy import IndexedBase, Integer, MatrixSymbol, Rational, Sum, Trace, exp, log, symbols

from .derivation import Derivation, Differentiate, EvaluateAt, Proof, Substitute

N, T, c, m = symbols("N T c m", integer=True, positive=True)
i, a, b, r, s = symbols("i a b r s", integer=True, positive=True)
eta, D = symbols("eta D", positive=True)

W, W_0 = MatrixSymbol("W", c, m), MatrixSymbol("W_0", c, m)
V_N, Phi_N = MatrixSymbol("V_N", N, c), MatrixSymbol("Phi_N", N, m)
V_T, Phi_T = MatrixSymbol("V_T", T, c), MatrixSymbol("Phi_T", T, m)
phi_q = MatrixSymbol("phi_q", m, 1)
G = MatrixSymbol("G", N, c)  # output-gradients of a loss at W_0, one row a demonstration
Z = MatrixSymbol("Z", N, c)  # what W_0 expects, one row a demonstration
Y = MatrixSymbol("Y", N, c)  # any targets

dual_gradient = -V_N.T * Phi_N / (eta * D)
dual_step = W_0 + V_N.T * Phi_N / D
failure = -Z.T * Phi_N / D


def squares(targets):
    residual = Phi_N * W.T - targets
    return Rational(1, 2) * Trace(residual * residual.T) / (eta * D)


def squares_gradient(targets):
    return -(targets - Phi_N * W.T).T * Phi_N / (eta * D)


least_squares = squares(V_N)
least_squares_gradient = squares_gradient(V_N)
least_squares_failure = -W_0 * Phi_N.T * Phi_N / D

query_side = {W_0: V_T.T * Phi_T / D}
kernel_failure = -V_T.T * (Phi_T * Phi_N.T) * (Phi_N * phi_q) / D**2

# by entries: an output x with value y, and one sigmoid for each output
x, y = symbols("x y", real=True)
f = IndexedBase("f", shape=(N, m), real=True)
v = IndexedBase("v", shape=(N, c), real=True)
w = IndexedBase("w", shape=(c, m), real=True)
z = IndexedBase("z", shape=(N, c), real=True)


def sigma(x):
    return 1 / (1 + exp(-x))


def tanh_of_half(x):
    return (exp(x) - 1) / (exp(x) + 1)


def cross_entropy(x, label):
    return -label * log(sigma(x)) - (1 - label) * log(sigma(-x))


def output(token, coordinate):
    return Sum(w[coordinate, b] * f[token, b], (b, 1, m))


def twice(x, y):
    """Twice the cross-entropy with the label (1 + y)/2."""
    return -(1 + y) * log(sigma(x)) - (1 - y) * log(sigma(-x))


logistic = Sum(twice(output(i, a), v[i, a]), (a, 1, c), (i, 1, N)) / (eta * D)
logistic_gradient = -Sum((v[i, r] - tanh_of_half(output(i, r))) * f[i, s], (i, 1, N)) / (eta * D)
logistic_failure = -Sum(tanh_of_half(output(i, r)) * f[i, s], (i, 1, N)) / D
dual_gradient_entry = -Sum(v[i, r] * f[i, s], (i, 1, N)) / (eta * D)

dual_step_entry = w[r, s] + Sum(v[i, r] * f[i, s], (i, 1, N)) / D
least_squares_entry = dual_step_entry - Sum(output(i, r) * f[i, s], (i, 1, N)) / D
twins = EvaluateAt({N: 1, m: 1, r: 1, s: 1, D: 2, v: [[1]], f: [[1]], w: [[1]]})


def argument(proof: Proof) -> None:
    proof.step(
        "A gradient is that of the outputs, times the features",
        Trace(G.T * Phi_N * (W - W_0).T),
        Differentiate(W),
        G.T * Phi_N,
        because="this trace is the first-order part at W_0 of any loss of the outputs Phi W^T "
        "whose gradient by the outputs is G there",
    )
    proof.step(
        "One step on any loss",
        W_0 - eta * G.T * Phi_N,
        Substitute({G: (Z - V_N) / (eta * D)}),
        dual_step + failure,
        because="every output-gradient can be written like this, as what W_0 expects less the "
        "value; the step is the dual's where nothing is expected, Z = 0, and nowhere else if the "
        "features of the demonstrations are independent",
    )
    proof.step(
        "The gradient of least squares",
        least_squares,
        Differentiate(W),
        least_squares_gradient,
        because="least squares expects the output itself",
    )
    proof.step(
        "Least squares at W = 0",
        least_squares_gradient,
        Substitute({W: 0 * W}),
        dual_gradient,
        because="the outputs are zero, so the residuals are the values",
    )
    proof.step(
        "A least-squares step from W_0",
        W - eta * least_squares_gradient,
        Substitute({W: W_0}),
        dual_step + least_squares_failure,
        because="the values lose what W_0 predicts already: the delta rule",
    )
    proof.step(
        "It is off by what its outputs expect",
        failure,
        Substitute({Z: Phi_N * W_0.T}),
        least_squares_failure,
        because="W_0 sum_i phi(k_i) phi(k_i)^T / D: a second moment, which no loss linear in W has",
    )
    proof.step(
        "What its prediction is off by, from the W_0 of the query-side tokens",
        least_squares_failure * phi_q,
        Substitute(query_side),
        kernel_failure,
        because="in kernel values this is -sum_i p_i sum_t (kappa(k_t, k_i)/D) v_t: the part of "
        "the query-side tokens that the demonstrations resemble is taken out of the output",
    )
    proof.step(
        "Least squares towards other targets",
        W - eta * squares_gradient(Y),
        Substitute({W: W_0, Y: V_N + Phi_N * W_0.T}),
        dual_step,
        because="targets v_i + W_0 phi(k_i) make up for what W_0 expects",
    )
    proof.step(
        "The slope of the logistic loss of one output",
        2 * cross_entropy(x, (1 + y) / 2),
        Differentiate(x),
        tanh_of_half(x) - y,
        because="it expects 2 sigma(x) - 1 = tanh(x/2), written (e^x - 1)/(e^x + 1) here",
    )
    proof.step(
        "The gradient of the logistic loss",
        logistic,
        Differentiate(w[r, s]),
        logistic_gradient,
        because="each output has a sigmoid of its own, so output r alone moves with w_rs",
    )
    proof.step(
        "The logistic loss at W = 0",
        logistic_gradient,
        Substitute({w[a, b]: 0}),
        dual_gradient_entry,
        because="sigma(0) = 1/2 lies between the labels, and tanh(0) = 0",
    )
    proof.step(
        "A logistic step is off by what its outputs expect",
        -Sum(z[i, r] * f[i, s], (i, 1, N)) / D,
        Substitute({z[i, a]: tanh_of_half(output(i, a))}),
        logistic_failure,
        because="the same sum with tanh(x/2) for x: half of it where outputs are small, and never "
        "more than sum_i |phi(k_i)| / D",
    )
    proof.step(
        "A demonstration of value 1 and a query-side token of value 2, with the same key",
        least_squares_entry,
        twins,
        Integer(1),
        because="W_0 = 2/2 expects 1 of the demonstration and gets it, so least squares stays "
        "where it is; attention weights both alike and gives 3/2",
    )
    refuse_variants(proof)


def refuse_variants(proof: Proof) -> None:
    squares_step = W - eta * least_squares_gradient
    proof.refuse(
        "a least-squares step from any W_0 is the dual's",
        squares_step,
        Substitute({W: W_0}),
        dual_step,
        because="the outputs W_0 phi(k_i) are not zero",
    )
    proof.refuse(
        "a logistic step from any w is the dual's",
        logistic,
        Differentiate(w[r, s]),
        dual_gradient_entry,
        because="tanh(x/2) is 0 at 0 only",
    )
    proof.refuse(
        "least squares gives attention's output for the two tokens",
        least_squares_entry,
        twins,
        Rational(3, 2),
        because="the demonstration tells it nothing new",
    )
    proof.refuse(
        "what least squares is off by does not fall with D",
        squares_step,
        Substitute({W: W_0}),
        dual_step - W_0 * Phi_N.T * Phi_N,
        because="the residual is divided by D as a whole",
    )
    proof.refuse(
        "the values gain what W_0 predicts",
        squares_step,
        Substitute({W: W_0}),
        dual_step - least_squares_failure,
        because="a residual is a value less its prediction",
    )
    proof.refuse(
        "targets v_i - W_0 phi(k_i) give the dual's step",
        W - eta * squares_gradient(Y),
        Substitute({W: W_0, Y: V_N - Phi_N * W_0.T}),
        dual_step,
        because="the residual takes the outputs off once more; they have to be added",
    )
    proof.refuse(
        "least squares without its 1/2",
        2 * least_squares,
        Differentiate(W),
        least_squares_gradient,
        because="the step would be twice as long",
    )
    proof.refuse(
        "a single cross-entropy",
        cross_entropy(x, (1 + y) / 2),
        Differentiate(x),
        tanh_of_half(x) - y,
        because="the sigmoid has slope 1/4 at 0, and labels (1 + y)/2 halve the values",
    )
    proof.refuse(
        "labels y instead of (1 + y)/2",
        2 * cross_entropy(x, y),
        Differentiate(x),
        tanh_of_half(x) - y,
        because="2 sigma(x) - 2 y expects 1 at x = 0: the middle of its labels is not 0 but 1/2",
    )
    proof.refuse(
        "the logistic loss expects half the output",
        logistic,
        Differentiate(w[r, s]),
        -Sum((v[i, r] - output(i, r) / 2) * f[i, s], (i, 1, N)) / (eta * D),
        because="tanh(x/2) is x/2 to first order only",
    )


derivation = Derivation(
    title="Other losses agree with the dual's at W_0 = 0 only",
    statement=(
        "One step on any loss whose output-gradient at W_0 is -v_i/(eta D) is the step on the "
        "dual's loss. Least squares, and the logistic loss of each output, are such losses at "
        "W_0 = 0, so their first step is attention too. From any other W_0 least squares differs "
        "by exactly -(1/D) sum_i W_0 phi(k_i) phi(k_i)^T, and logistic by -(1/D) sum_i "
        "tanh(W_0 phi(k_i)/2) phi(k_i)^T."
    ),
    scope="every N, T, c, m",
    assumptions=(
        "D is a number that is not zero, fixed while W is differentiated; eta is positive",
        "least squares is sum_i |v_i - W phi(k_i)|^2 / (2 eta D)",
        "the logistic loss is 2/(eta D) times the cross-entropy of the sigmoid of each output with "
        "the label (1 + v)/2, which is a probability for values from -1 to 1",
    ),
    sizes=(
        {"N": 1, "T": 1, "c": 2, "m": 3, "r": 2, "s": 1},
        {"N": 2, "T": 1, "c": 2, "m": 2, "r": 1, "s": 2},
        {"N": 3, "T": 6, "c": 4, "m": 5, "r": 1, "s": 2},
    ),
    expressions={
        "dual_step": dual_step,
        "failure": failure,
        "least_squares": least_squares,
        "least_squares_gradient": least_squares_gradient,
        "least_squares_failure": least_squares_failure,
        "kernel_failure": kernel_failure,
        "logistic": logistic,
        "logistic_gradient": logistic_gradient,
        "logistic_failure": logistic_failure,
    },
    argument=argument,
)
