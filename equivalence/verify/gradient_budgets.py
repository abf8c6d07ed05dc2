"""How far computed derivatives of attention, and of its dual, may be from the exact ones."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from equivalence._arrays import Array
from equivalence.verify.budgets import (
    Budget,
    attention_budget,
    dual_budget,
    gamma,
    normalizer_budget,
    weights_budget,
)


class JacobianBudgets(NamedTuple):
    """One budget for each part of AttentionJacobians."""

    query: Budget
    key: Budget
    value: Budget


def jacobian_budgets(Q: Array, K: Array, V: Array, scale: float, u: float) -> JacobianBudgets:
    """The errors of s sum_j p_j (v_j - o) k_j^T, of s p_j (v_j - o), and of p_j.

    A distance v_j - o errs by o and one rounding, its product with p_j by p_j and another; the
    scale, its cast and the product with it add three, and the sum over the keys gamma_n.
    """
    n = len(K)
    Q, K, V = (x.astype(np.float64) for x in (Q, K, V))
    p_budget, o_budget = weights_budget(Q, K, scale, u), attention_budget(Q, K, V, scale, u)
    p = _weights(scale * Q @ K.T)
    o_error = o_budget.bound[:, None]
    distance = abs(V - (p @ V)[:, None]) + o_error
    weight, weight_error = p[..., None], p_budget.bound[..., None]
    factor_error = weight_error * distance + weight * (o_error + gamma(8, u) * distance)
    terms = gamma(n + 2, u) * weight * distance + factor_error
    because = "p_j (v_j - o) errs by p_j and by o; " + p_budget.because
    return JacobianBudgets(
        query=Budget(abs(scale) * np.swapaxes(terms, -1, -2) @ abs(K), because, u),
        key=Budget(abs(scale) * factor_error, because, u),
        value=p_budget,
    )


def backward_budgets(
    G: Array, Q: Array, K: Array, V: Array, scale: float, u: float, bias: Array | None = None
) -> JacobianBudgets:
    """The errors of s e k, s e^T q and p^T g, e_ij = p_ij (g_i.v_j - g_i.o_i), summed in any order.

    p_ij is that of attention, and carries the factor between two shifts: an exponential (8 u), two
    products and a quotient. g.v, of g divided by D, is a dot product, g.o = sum_j p_ij g.v_j a sum
    of n of them, and each is multiplied by p_ij before they are subtracted. D is between u and 1/u:
    a weight loses tiny/u where kappa is below the normal numbers, and g, in the product with kappa,
    tiny where g / D is.
    """
    n_q, n = len(Q), len(K)
    p_budget = weights_budget(Q, K, scale, u, bias)
    G, Q, K, V = (x.astype(np.float64) for x in (G, Q, K, V))
    p = _weights(scale * Q @ K.T + (0 if bias is None else bias))
    tiny = float(np.finfo(np.float32 if u > 2.0**-53 else np.float64).tiny)
    p_error = p_budget.bound + gamma(12, u) * p + tiny / u
    product, size = G @ V.T, abs(G) @ abs(V).T
    product_error = gamma(V.shape[-1] + 4, u) * size + tiny * (abs(V) + 1).sum(axis=-1)
    mean = (p * product).sum(axis=-1, keepdims=True)
    mean_error = (
        p_error * (abs(product) + product_error) + p * product_error + gamma(n + 4, u) * p * size
    ).sum(axis=-1, keepdims=True)
    distance, off = abs(product - mean), product_error + mean_error
    e = p * distance
    e_error = (1 + gamma(2, u)) * (p_error * (distance + off) + p * off) + gamma(2, u) * e
    because = "p_ij (g.v_j - g.o) errs by p_ij, by g.v and by g.o; " + p_budget.because
    more = gamma(n + 6, u), gamma(n_q + 6, u)
    by_query = (e_error + more[0] * (e + e_error)) @ abs(K)
    by_key = (e_error + more[1] * (e + e_error)).T @ abs(Q)
    by_value = (p_error + more[1] * (p + p_error)).T @ abs(G) + tiny * p.sum(axis=0)[:, None]
    return JacobianBudgets(
        query=Budget(abs(scale) * by_query, because, u),
        key=Budget(abs(scale) * by_key, because, u),
        value=Budget(by_value, p_budget.because, u),
    )


def dual_jacobian_budgets(
    Phi: Array, phi_q: Array, slope: Array, Z: Array, V: Array, exponent_error: Array, u: float
) -> tuple[Budget, Budget]:
    """The errors of the dual's derivative by the scaled query, with D differentiated and frozen.

    Phi (n, m) are the key features on one scale, phi_q (n_q, m) and slope (n_q, m, d) those of the
    queries and their derivatives, Z (n, d) the scaled keys: phi(k_j).slope = kernel_j z_j.
    """
    n, m = Phi.shape
    Phi, phi_q, slope, Z, V = (x.astype(np.float64) for x in (Phi, phi_q, slope, Z, V))
    D_error = normalizer_budget(Phi, phi_q, exponent_error, u).bound[:, None, None]
    o_error = dual_budget(Phi, phi_q, V, exponent_error, u).bound[..., None]
    kernel = phi_q @ Phi.T
    p = kernel / kernel.sum(axis=-1, keepdims=True)
    moved = abs(p)[..., None] * abs(Z)
    # Solved by substitution and summed like the features, from a kernel that errs by its exponent
    # and 4 ulp of exp, times a key that carries two roundings.
    solved = abs(Phi) @ abs(slope) / kernel.sum(axis=-1)[:, None, None]
    error = gamma(n + 3 * m + 8, u) * solved
    error = error + (np.expm1(exponent_error) + gamma(20, u))[..., None] * moved
    o = abs(p @ V)[..., None]
    numerator, numerator_error = abs(V).T @ moved, abs(V).T @ error
    by_D, by_D_error = (x.sum(axis=-2)[:, None] for x in (moved, error))
    rounding = D_error + gamma(8, u)
    frozen = (1 + rounding) * numerator_error + rounding * numerator
    lost = (o + o_error) * by_D_error + o_error * by_D
    because = (
        f"W_1, n and L^-1 kappa(Z, q) Z are sums over n={n} keys and m={m} features, "
        "gamma_(n+3m) (Higham 2002, sec. 3.1 and thm 8.5), divided by D"
    )
    return (
        Budget(frozen + (1 + rounding) * lost + rounding * o * by_D, because + "; o errs", u),
        Budget(frozen, because, u),
    )


def _weights(scores: Array) -> Array:
    kappa = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights: Array = kappa / kappa.sum(axis=-1, keepdims=True)
    return weights
