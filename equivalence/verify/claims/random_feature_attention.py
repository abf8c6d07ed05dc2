"""Attention from random features is a biased ratio: both constants of 1/m, exactly, and its tail.

No sampling. For m independent features with sums N and D, 1/D = int_0^inf exp(-lam D) dlam gives

    E N/D     = m int E[N_1 e^{-lam D_1}] L^{m-1} dlam,                       L = E e^{-lam D_1},
    E |N/D|^2 = int lam (m E[|N_1|^2 e^{-lam D_1}] L^{m-1}
                         + m (m-1) |E N_1 e^{-lam D_1}|^2 L^{m-2}) dlam,

and E is over one normal coordinate. Richardson extrapolation in m then leaves the constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from equivalence._arrays import Array
from equivalence.features import prediction
from equivalence.verify import oracle
from equivalence.verify.budgets import Budget, gamma
from equivalence.verify.cases import Case
from equivalence.verify.claim import Claim, Kind, Mutant
from equivalence.verify.compare import Comparison, Inconclusive, compare, settle
from equivalence.verify.dual_case import scaled
from equivalence.verify.implementation import Implementation
from equivalence.verify.quadrature import gaussian_nodes

_U = 2.0**-53
_COUNTS = tuple(2**k for k in range(4, 11))
# Relative deviation 2^-40: the count is beyond 2^53, where rounding up changes nothing.
_RTOL = 2.0**-40


def check(impl: Implementation, case: Case) -> Iterator[Comparison | Inconclusive]:
    """The constants on the case's first coordinate, the count on all, and the tail of one pair."""
    q, k, V = _line(case)
    T = _relative_features(impl, q, k)
    yield from _constants(impl, case, q, k, V, T)
    yield _count(impl, case)
    yield _tail(impl, case, q + k[:1], T[:, 0])


def _line(case: Case) -> tuple[Array, Array, Array]:
    """One query and at most 8 keys on a line, no further than 1/4 from 0, in the case's dtype.

    There |k + q| <= 1/2, and features are near their means at 16 of them. At |k + q| = 1 the
    expansion is valid too, but the last of Richardson's steps changes less than what is left.
    """
    Q, K = scaled(case)
    q, k = Q[case.rows[0], :1], K[:8, 0]
    reach = np.asarray(max(1.0, float(abs(k).max()), float(abs(q).max())) * 4, K.dtype)
    return q / reach, k / reach, case.V[:8].astype(np.float64)


def _relative_features(impl: Implementation, q: Array, k: Array) -> Array:
    """T_i at the nodes of the normal law, from the map: phi_w(k_i) phi_w(q) / exp(k_i q)."""
    nodes, _ = gaussian_nodes(0.0)
    phi = impl.PositiveFeatures(nodes[:, None])
    x, y = k.astype(np.float64)[:, None], q.astype(np.float64)[:, None]
    (f, a), (g, b) = phi(x), phi(y)
    T: Array = (f * g * np.exp(a + b - (x @ y.T)[:, 0])[:, None]).T * len(nodes)
    return T


def _constants(
    impl: Implementation, case: Case, q: Array, k: Array, V: Array, T: Array
) -> Iterator[Comparison | Inconclusive]:
    _, law = gaussian_nodes(0.0)
    kappa = np.exp(q.astype(np.float64) * k)
    p = kappa / kappa.sum()
    N, D = (T * p) @ (V - p @ V), T @ p
    arguments = (q[:, None], k[:, None], case.V[:8], 1)
    for what, predict, exact in (
        ("m times the bias", impl.attention_bias, lambda m: _mean_ratio(law, N, D, m)),
        ("m times the mean square error", impl.attention_mean_square_error,
         lambda m: _mean_square_ratio(law, N, D, m)),
    ):  # fmt: skip
        constant, interval = _extrapolate(exact)
        got = np.ravel(predict(*arguments, scale=1.0))
        # The terms of N, which may cancel: their sizes count, not that of N.
        lengths = (T * p) @ np.linalg.norm(V - p @ V, axis=1)
        spread = float(law @ (lengths**2 if "square" in what else lengths))
        # Sums over nodes: a power m of L multiplies their rounding by m; the steps of Richardson
        # with factors 2^j have weights below 9 together.
        rounding = 9 * gamma(len(law) + len(k) + 40, _U) * _COUNTS[-1] * (spread + abs(constant))
        own = gamma(8 * len(k) + 64, _U) * (spread + abs(constant)) + 2 * case.u * abs(constant)
        budget = Budget(
            interval + rounding + own,
            "what the last Richardson step changed, twice; m gamma_n of the sums over nodes; the "
            "prediction by gamma_8n of its terms, and by its dtype",
            case.u,
        )
        yield settle(compare(f"{what} tends to the prediction", got, constant, budget))


def _laplace_nodes(m: int) -> tuple[Array, Array]:
    """lam and weights on (0, inf): trapezoid in y, lam = exp(y - exp(-y))/m, doubly exponential."""
    y = np.linspace(-4.5, 5.0, 381)
    lam = np.exp(y - np.exp(-y)) / m
    return lam, lam * (1 + np.exp(-y)) * (y[1] - y[0])


def _transforms(law: Array, N: Array, D: Array, lam: Array) -> tuple[Array, Array, Array]:
    """log E e^{-lam D}, E N e^{-lam D}, E |N|^2 e^{-lam D}."""
    E = np.exp(-np.outer(lam, D)) * law
    return np.log(E.sum(axis=1)), E @ N, E @ (N**2).sum(axis=1)


def _mean_ratio(law: Array, N: Array, D: Array, m: int) -> Array:
    lam, weights = _laplace_nodes(m)
    log_L, first, _ = _transforms(law, N, D, lam)
    mean: Array = m * (weights * np.exp((m - 1) * log_L)) @ first
    return mean


def _mean_square_ratio(law: Array, N: Array, D: Array, m: int) -> Array:
    lam, weights = _laplace_nodes(m)
    log_L, first, second = _transforms(law, N, D, lam)
    own = m * second * np.exp((m - 1) * log_L)
    others = m * (m - 1) * (first**2).sum(axis=1) * np.exp((m - 2) * log_L)
    return np.atleast_1d((weights * lam * (own + others)).sum())


def _extrapolate(mean: Callable[[int], Array]) -> tuple[Array, Array]:
    """The limit of m mean(m), a series in 1/m, and twice what the last step changed."""
    row = [m * mean(m) for m in _COUNTS]
    order = 0
    while len(row) > 1:
        order += 1
        before, row = row[-1], [(2**order * b - a) / (2**order - 1)
                                for a, b in pairwise(row)]  # fmt: skip
    return row[0], 2 * abs(row[0] - before)


def _count(impl: Implementation, case: Case) -> Comparison:
    """(e^s - 1) / rtol^2 features, s = |x+y|^2."""
    Q, K = scaled(case)
    number, x, y = case.arithmetic, Q[case.rows[:1]], K[:1]
    pair = zip(number.vectors(x)[0], number.vectors(y)[0], strict=True)
    s = number.sum((a + b) * (a + b) for a, b in pair)
    got = impl.required_features(x, y, _RTOL) * _RTOL**2
    want = number.exp(s) - number.number(1.0)
    bound = gamma(x.shape[1] + 64, _U) * (1 + float(s)) * math.exp(float(s))
    budget = Budget(np.array([[bound]]), "s errs by gamma_(d+2), the logarithm by s u", _U)
    return oracle.against(number, "e^s - 1 features, over rtol^2", got, [[want]], budget)


def _tail(impl: Implementation, case: Case, z: Array, T: Array) -> Comparison:
    """P(mean <= 1 - t) <= exp(-m t^2/(2 E T^2)) for m = 1, 2 and all t, on the nodes' own law."""
    _, law = gaussian_nodes(0.0)
    second = max(float(law @ T**2), 1.0)
    pair, pair_law = np.add.outer(T, T).ravel() / 2, np.outer(law, law).ravel()
    shortfalls = np.array([0.125, 0.5, 1.0])
    got, bound = [], []
    for m, values, weights in ((1, T, law), (2, pair, pair_law)):
        for t in shortfalls:
            got.append(float(weights[values <= 1 - t].sum()))
            bound.append(math.exp(impl.log_lower_tail(second, float(t), m)))
    # The bound itself, not a wider one.
    wanted = [math.exp(-m * t**2 / (2 * second)) for m in (1, 2) for t in shortfalls]
    rounding = Budget(np.full(2 * len(got), gamma(len(pair), _U)), "a sum of probabilities", _U)
    return compare(
        "the lower tail is below its bound, which is exp(-m t^2/(2 E T^2))",
        np.array([*got, *bound]),
        np.array([*np.minimum(got, bound), *wanted]),
        rounding,
    )


def _altered_bias(factor: Callable[..., Any]) -> Any:
    def bias(query: Any, key: Any, value: Any, m: int, **options: Any) -> Array:
        result: Array = factor(query, key, value) * prediction.attention_bias(
            query, key, value, m, **options
        )
        return result

    return bias


def _independent_error(query: Any, key: Any, value: Any, m: int, **options: Any) -> Array:
    """Tokens as if each had projections of its own: the diagonal alone."""
    total = np.zeros(len(query))
    for i in range(len(key)):
        V = np.zeros_like(np.asarray(value))
        V[i] = value[i]
        total = total + prediction.attention_mean_square_error(query, key, V, m, **options)
    return total


def _float32_bias(query: Any, key: Any, value: Any, m: int, **options: Any) -> Array:
    q, k, v = (np.asarray(a, np.float32) for a in (query, key, value))
    bias = prediction.attention_bias(q, k, v, m, **options)
    return bias.astype(np.asarray(value).dtype)


claim = Claim(
    stem="random_feature_attention",
    statement="Attention from m independent positive features has bias -(1/m) sum_ij p_i p_j "
    "(v_i - o) e^(z_i.z_j) + O(m^-2) and mean square error (1/m) sum_ij p_i p_j (v_i - o).(v_j - o)"
    " e^(z_i.z_j) + O(m^-2), z_i = k_i + q; P(mean <= 1 - t) <= exp(-m t^2/(2 E T^2)).",
    kind=Kind.ASYMPTOTIC,
    needs=("attention_bias", "attention_mean_square_error", "required_features", "log_lower_tail"),
    check=check,
    mutants=(
        Mutant("bias_of_opposite_sign", "the bias pulls away from the mean",
               {"attention_bias": _altered_bias(lambda q, k, v: -1)}),
        Mutant("bias_halved", "the Taylor coefficient 1/2 is left in",
               {"attention_bias": _altered_bias(lambda q, k, v: 0.5)}),
        Mutant("unbiased", "the ratio of unbiased estimates is called unbiased",
               {"attention_bias": _altered_bias(lambda q, k, v: 0)}),
        Mutant("independent_tokens", "tokens have projections of their own",
               {"attention_mean_square_error": _independent_error}),
        Mutant("error_not_squared", "the root of the mean square error",
               {"attention_mean_square_error": lambda *a, **o: np.sqrt(
                   prediction.attention_mean_square_error(*a, **o))}),
        Mutant("count_by_rtol", "1/rtol for 1/rtol^2 features",
               {"required_features": lambda x, y, rtol: prediction.required_features(
                   x, y, math.sqrt(rtol))}),
        Mutant("tail_without_two", "exp(-m t^2 / E T^2)",
               {"log_lower_tail": lambda s, t, m: 2 * prediction.log_lower_tail(s, t, m)}),
        Mutant("float32_bias", "the bias is computed in float32",
               {"attention_bias": _float32_bias}),
    ),
    assumptions="Independent projections; 1/m small beside e^(-|z|^2): above |z|^2 of about 6 no "
    "sample shows the tail, and the constants are all that is known.",
    budget="twice what the last of six Richardson steps in m = 2^4..2^10 changed, and m gamma_n "
    "of the sums; wider than float32's unit roundoff it is inconclusive.",
    code="equivalence/features/prediction.py",
    on_heads=True,
)  # fmt: skip
