"""The derivatives of attention, and of its dual, whose D has to be differentiated too.

Expressions, with the kernel values kappa (n) of a query, K (n, d), q (d), v (n, c), the scale s, at
coordinate r of output and values, a of query and keys, at token i (all from 1):

- `kappa_i` = exp(s k_i.q) (K, q, s, i), `o` (kappa, v, r)
- `slope`, of the output when the scores move at the rates y (n) (kappa, v, y, r)
- `do_dq` and `covariance`, the same thing twice (kappa, K, v, s, r, a), `do_dk_i` (kappa, q, v, s,
  i, r, a), `pulled_back`, the derivative of g.o by v_ir for a cotangent g (c) (kappa, g, i, r)
- `frozen`, the derivative by q_a of a dual whose D stands still, and `excess`, what it has too much
  (those of do_dq)
- in matrices, the derivative of the dual by q, `dual_slope` (V (n, c), Phi (n, m), phi_q (m), its
  derivative J (m, d)), and `softmax_slope` (V, S (n, m), whose rows select a token's landmark,
  Z (m, d), the landmarks, and Kappa (m, m), their kernel with q on the diagonal)
"""

from sympy import (
    IndexedBase,
    Inverse,
    KroneckerDelta,
    MatrixSymbol,
    OneMatrix,
    Sum,
    Trace,
    exp,
    symbols,
)

from .derivation import Derivation, Differentiate, Expand, Proof, Substitute

n, d, c, m = symbols("n d c m", integer=True, positive=True)
i, j, l, r, t, a = symbols("i j l r t a", integer=True, positive=True)  # noqa: E741
s, D_0 = symbols("s D_0", positive=True)
tau = symbols("tau", real=True)

kappa = IndexedBase("kappa", shape=(n,), positive=True)
y = IndexedBase("y", shape=(n,), real=True)
K = IndexedBase("K", shape=(n, d), real=True)
q = IndexedBase("q", shape=(d,), real=True)
v = IndexedBase("v", shape=(n, c), real=True)
g = IndexedBase("g", shape=(c,), real=True)


def over_tokens(term):
    return Sum(term, (j, 1, n))


def mean(of_token):
    return over_tokens(kappa[j] * of_token) / over_tokens(kappa[j])


def kernel(token):
    return exp(s * Sum(K[token, l] * q[l], (l, 1, d)))


kappa_i, p_i = kernel(i), kappa[i] / over_tokens(kappa[j])
o, kbar = mean(v[j, r]), mean(K[j, a])

w = kappa[j] * exp(tau * y[j])
D_moving, o_moving = over_tokens(w), over_tokens(w * v[j, r]) / over_tokens(w)
slope_moving = (
    over_tokens(w * v[j, r] * y[j]) / D_moving - o_moving * over_tokens(w * y[j]) / D_moving
)
slope = mean(v[j, r] * (y[j] - mean(y[j])))

along_q = {y[j]: s * K[j, a]}
along_k_i = {y[j]: s * q[a] * KroneckerDelta(i, j)}
do_dq = s * mean(v[j, r] * (K[j, a] - kbar))
covariance = s * mean((v[j, r] - o) * (K[j, a] - kbar))
do_dk_i = s * p_i * (v[i, r] - o) * q[a]
pulled_back = p_i * g[r]

standing_still = (over_tokens(w * v[j, r]) / D_0).xreplace(along_q)
standing_slope = over_tokens(w * v[j, r] * y[j] / D_0).xreplace(along_q)
frozen = s * mean(v[j, r] * K[j, a])
excess = s * o * kbar

# the dual at a query, and features that are exact at m landmarks Z: any invertible factor F
V, Phi = MatrixSymbol("V", n, c), MatrixSymbol("Phi", n, m)
phi_q, J = MatrixSymbol("phi_q", m, 1), MatrixSymbol("J", m, d)
S, F = MatrixSymbol("S", n, m), MatrixSymbol("F", m, m)
Z, Kappa = MatrixSymbol("Z", m, d), MatrixSymbol("Kappa", m, m)
one_n, one_m = OneMatrix(n, 1), OneMatrix(m, 1)
D_dual = Trace(one_n.T * Phi * phi_q)
D_softmax = Trace(one_n.T * S * Kappa * one_m)
exact_features = {Phi: S * F, phi_q: Inverse(F) * Kappa * one_m, J: Inverse(F) * Kappa * Z}

dual_slope = V.T * Phi * J / D_dual - V.T * Phi * phi_q * one_n.T * Phi * J / D_dual**2
softmax_slope = (
    V.T * S * Kappa * Z / D_softmax
    - V.T * S * Kappa * one_m * one_n.T * S * Kappa * Z / D_softmax**2
)


def argument(proof: Proof) -> None:
    proof.step(
        "What a moving query does to a kernel value",
        kappa_i,
        Substitute({q[l]: q[l] + tau * KroneckerDelta(l, a)}),
        kappa_i * exp(tau * s * K[i, a]),
        because="the score of token i moves at the rate s k_ia",
    )
    proof.step(
        "What a moving key does to its kernel value",
        kappa_i,
        Substitute({K[j, l]: K[j, l] + tau * KroneckerDelta(j, i) * KroneckerDelta(l, a)}),
        kappa_i * exp(tau * s * q[a]),
        because="the score of token i moves at the rate s q_a, and no other score moves",
    )
    proof.step(
        "The output while the scores move at the rates y",
        o_moving,
        Differentiate(tau),
        slope_moving,
        because="kappa_j is now kappa_j exp(tau y_j), above and below the fraction bar",
    )
    proof.step(
        "Its slope at the start",
        slope_moving,
        Substitute({tau: 0}),
        slope,
        because="a token gains weight by the lead of its rate over the mean rate",
    )
    proof.step(
        "The derivative by the query",
        slope,
        Substitute(along_q),
        do_dq,
        because="the rates are s k_ja, so the keys are centred at kbar",
    )
    proof.step(
        "It is a covariance",
        do_dq,
        Expand(),
        covariance,
        because="the leads k_j - kbar have mean zero, so a constant may be taken off the values",
    )
    proof.step(
        "The derivative by a key",
        slope,
        Substitute(along_k_i),
        do_dk_i,
        because="only token i has a rate: weight there pulls the output towards v_i, by the "
        "distance that is left",
    )
    proof.step(
        "The derivative by a value, against any cotangent",
        Sum(g[t] * o.xreplace({r: t}), (t, 1, c)),
        Differentiate(v[i, r]),
        pulled_back,
        because="the output is linear in the values: do/dv_i is p_i times the identity, and "
        "g comes back as p_i g",
    )
    proof.step(
        "To first order, one vector added to all keys changes nothing",
        o + Sum(do_dk_i, (i, 1, n)),
        Expand(),
        o,
        because="the distances v_i - o have mean zero",
    )
    proof.step(
        "Stretching all keys is stretching the query",
        Sum(do_dk_i * K[i, a], (a, 1, d), (i, 1, n)),
        Expand(),
        Sum(do_dq * q[a], (a, 1, d)),
        because="scores are bilinear: sum_i (do/dk_i) k_i = (do/dq) q",
    )
    proof.step(
        "The dual while D stands still",
        standing_still,
        Differentiate(tau),
        standing_slope,
        because="W_1 is a constant, and W_1 phi(q) = sum_j kappa_j v_j / D_0",
    )
    proof.step(
        "Its slope at the query, where D_0 is D",
        standing_slope,
        Substitute({tau: 0, D_0: over_tokens(kappa[j])}),
        frozen,
        because="the constant was D at this query",
    )
    proof.step(
        "What a frozen D leaves too much",
        frozen - do_dq,
        Expand(),
        excess,
        because="the keys are not centred: s o kbar^T, exactly",
    )
    proof.step(
        "Features that are exact at the keys have the derivative of softmax attention",
        dual_slope,
        Substitute(exact_features),
        softmax_slope,
        because="phi(q) = F^{-1} kappa(Z, q) has the derivative F^{-1} Kappa Z, and F cancels; the "
        "second term is that of D",
    )
    refuse_variants(proof)


def refuse_variants(proof: Proof) -> None:
    by_query, by_key = Substitute(along_q), Substitute(along_k_i)
    proof.refuse(
        "the dual with a frozen D has the derivative of attention",
        slope,
        by_query,
        frozen,
        because="softmax's denominator moves with the query",
    )
    proof.refuse(
        "keys centred at their plain mean",
        slope,
        by_query,
        s * mean(v[j, r] * (K[j, a] - over_tokens(K[j, a]) / n)),
        because="the mean key is weighted by attention",
    )
    proof.refuse(
        "derivative without the scale", slope, by_query, do_dq / s, because="the scores carry it"
    )
    proof.refuse(
        "the plain sum of the covariance",
        do_dq,
        Expand(),
        s * over_tokens((v[j, r] - o) * (K[j, a] - kbar)),
        because="each token counts by its weight",
    )
    proof.refuse(
        "a key's derivative from the diagonal of softmax's Jacobian",
        slope,
        by_key,
        s * p_i * (1 - p_i) * v[i, r] * q[a],
        because="the weights of the other tokens fall when that of token i rises",
    )
    proof.refuse(
        "a key's derivative without the output",
        slope,
        by_key,
        s * p_i * v[i, r] * q[a],
        because="that holds while D stands still",
    )
    proof.refuse(
        "a key's derivative along the key",
        kappa_i,
        Substitute({K[j, l]: K[j, l] + tau * KroneckerDelta(j, i) * KroneckerDelta(l, a)}),
        kappa_i * exp(tau * s * K[i, a]),
        because="the score k_i.q has the slope q by the key",
    )
    proof.refuse(
        "a value's derivative as if the weights depended on it",
        Sum(g[t] * o.xreplace({r: t}), (t, 1, c)),
        Differentiate(v[i, r]),
        p_i * (1 - p_i) * g[r],
        because="the weights depend on queries and keys only",
    )
    proof.refuse(
        "a frozen D leaves kbar too much",
        frozen - do_dq,
        Expand(),
        s * kbar,
        because="it is the outer product with the output",
    )
    proof.refuse(
        "the derivative of D is added",
        V.T * Phi * J / D_dual + V.T * Phi * phi_q * one_n.T * Phi * J / D_dual**2,
        Substitute(exact_features),
        softmax_slope,
        because="the quotient rule subtracts it",
    )


derivation = Derivation(
    title="The derivatives of attention, and what its dual needs to have them",
    statement=(
        "With kappa_j = exp(s k_j.q) and kbar = sum_j p_j k_j, the output o = sum_j p_j v_j has "
        "the derivatives do/dq = s sum_j p_j v_j (k_j - kbar)^T, a covariance of values and keys, "
        "do/dk_i = s p_i (v_i - o) q^T and do/dv_i = p_i I. The dual with features exact at the "
        "keys has the same derivative by q when D(q) is differentiated too; with D frozen it is "
        "s o kbar^T too large."
    ),
    scope="every n, d, c, m",
    assumptions=(
        "all entries are real and finite, the scale s is positive",
        "in the last step the rows of S select the landmark of each token, and Kappa is diagonal "
        "(the step holds for any S and Kappa); F is invertible",
    ),
    sizes=(
        {"n": 2, "d": 1, "c": 1, "m": 3, "r": 1, "a": 1, "i": 2},
        {"n": 2, "d": 6, "c": 4, "m": 7, "r": 3, "a": 5, "i": 1},
        {"n": 4, "d": 2, "c": 3, "m": 3, "r": 3, "a": 2, "i": 3},
    ),
    expressions={
        "kappa_i": kappa_i,
        "o": o,
        "slope": slope,
        "do_dq": do_dq,
        "covariance": covariance,
        "do_dk_i": do_dk_i,
        "pulled_back": pulled_back,
        "frozen": frozen,
        "excess": excess,
        "dual_slope": dual_slope,
        "softmax_slope": softmax_slope,
    },
    argument=argument,
)
