"""Random maps for head_features.py, unbiased for the kernel or fitted by least squares."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from head_data import Array
from head_maps import Head, Nested, Order, Remade, centred, completed, least_squares, ridge_leverage
from scipy.special import logsumexp

from equivalence.features import GeneralizedFeatures, PositiveFeatures

MOST = 4096
Draw = Callable[[int, int, np.random.Generator], PositiveFeatures | GeneralizedFeatures]


def favor(head: Head) -> Nested:
    """FAVOR+: positive features at orthogonal projections (Choromanski et al. 2021)."""
    s = head.split
    d = s.K.shape[1]
    phi = PositiveFeatures.sample(d, MOST, rng=generator(head), coupling="orthogonal")
    return estimate(phi, (s.fit, s.held), s.K, np.ones(len(s.K)))


def favor_centred(head: Head) -> Nested:
    """FAVOR+ after the shift and the balance."""
    queries, keys, factor = centred(head)
    d = keys.shape[1]
    phi = PositiveFeatures.sample(d, MOST, rng=generator(head), coupling="orthogonal")
    return estimate(phi, queries, keys, factor)


def generalized(head: Head) -> Nested:
    """Shift, balance, antithetic orthogonal projections, and the tilt A that fits the data."""
    queries, keys, factor = centred(head)
    d = keys.shape[1]
    rng = generator(head)
    phi = GeneralizedFeatures.sample(d, MOST, rng=rng, coupling="orthogonal", antithetic=True)
    phi.fit(keys, queries[0])
    pairs = np.arange(MOST).reshape(2, -1).T.ravel()
    phi.projections = phi.projections[pairs]
    return estimate(phi, queries, keys, factor)


def estimate(
    phi: PositiveFeatures | GeneralizedFeatures,
    queries: tuple[Array, Array],
    keys: Array,
    factor: Array,
) -> Nested:
    """The features without the queries' scales, which cancel, and with the keys' in one shift."""
    at_keys, log_scale = phi(keys)
    scale = factor * np.exp(log_scale - log_scale.max())
    at_fit, at_held = (phi(Q).features.T for Q in queries)
    return Nested(at_fit, at_held, at_keys.T * scale)


def generator(head: Head) -> np.random.Generator:
    """One stream a head."""
    return np.random.default_rng([head.seed, 1])


def proposed(t: float) -> Callable[[Head], Nested]:
    """Positive features whose projections are drawn where attention lies, with the exact weights.

    w ~ N(q_i + k_j, I), i uniform and j by A_ij, has the density
    N(w; 0, I) sum_j phi_w(k_j) mean_i phi_w(q_i) / D_i: the weight is one over the two factors. So
    E = exp(q.k) still, and at the fit queries a feature's contribution to A_ij lies in [0, n_fit].
    Queries times t and keys over t: a large t draws near queries, a small one near keys.
    """

    def estimate(head: Head) -> Nested:
        s, rng = head.split, generator(head)
        F, K = t * s.likely, s.K / t
        mass = np.cumsum(head.A_likely)
        drawn = np.searchsorted(mass, mass[-1] * rng.random(MOST)).clip(max=mass.size - 1)
        i, j = np.divmod(drawn, len(K))
        W = F[i] + K[j] + rng.standard_normal((MOST, K.shape[1]))
        log_D = logsumexp(s.likely @ s.K.T, axis=1)
        at_keys = exponents(W, K)
        at_keys = np.exp(at_keys - logsumexp(at_keys, axis=1, keepdims=True))
        shared = logsumexp(exponents(W, F) - log_D, axis=1, keepdims=True)
        at_fit, at_held = (exponents(W, t * Q) - shared for Q in (s.fit, s.held))
        return Nested(*(np.exp(x - x.max(axis=0)) for x in (at_fit, at_held)), at_keys)

    return estimate


def exponents(W: Array, x: Array) -> Array:
    """log phi_w(x) = w.x - |x|^2/2."""
    return np.asarray(W @ x.T - (x**2).sum(1) / 2)


def drawn_landmarks(scores: Callable[[Head], Array]) -> Callable[[Head], Nested]:
    """Landmarks drawn without replacement with probability as the scores; least squares."""

    def estimate(head: Head) -> Nested:
        p = scores(head)
        size = np.count_nonzero(p)
        order = generator(head).choice(len(p), size, replace=False, p=p / p.sum())
        return least_squares(head, completed(order, head.G), head.G)

    return estimate


def squared_norms(head: Head) -> Array:
    """The squared column norms of A."""
    return np.asarray(np.diagonal(head.G))


def uniform(head: Head) -> Array:
    """Every key alike."""
    return np.ones(len(head.G))


def remainder(head: Head) -> Remade:
    """Half of the features a greedy head, half drawn columns of what it leaves: unbiased.

    With R = A - A_Z C, the estimate of R is the mean of R e_j e_j^T / p_j over drawn j, p_j as the
    norms of R's columns, the choice of least variance.
    """
    n = len(head.split.K)
    nested = least_squares(head, head.greedy, head.G)
    likely = nested_likely(head, head.greedy)

    def make(m: int) -> Nested:
        k, draws = m - m // 2, m // 2
        R, R_fit, R_held = (
            A - x[:k].T @ nested.at_keys[:k]
            for A, x in (
                (head.A_likely, likely),
                (head.A_fit, nested.at_fit),
                (head.A_held, nested.at_held),
            )
        )
        p = np.linalg.norm(R, axis=0)
        p /= p.sum()
        chosen = generator(head).choice(n, draws, p=p)
        at_keys = np.zeros((draws, n))
        at_keys[np.arange(draws), chosen] = 1 / (p[chosen] * draws) if draws else 0.0
        return Nested(
            np.concatenate([nested.at_fit[:k], R_fit[:, chosen].T]),
            np.concatenate([nested.at_held[:k], R_held[:, chosen].T]),
            np.concatenate([nested.at_keys[:k], at_keys]),
        )

    return Remade(n, make)


def nested_likely(head: Head, order: Order) -> Array:
    """The features of the likely queries, as `least_squares` gives them for the others."""
    from scipy.linalg import cholesky, solve_triangular

    P = head.G[np.ix_(order, order)]
    noise = 4 * len(P) * np.finfo(np.float64).eps
    L = cholesky(P + noise * np.diag(np.diagonal(P)), lower=True)
    return np.asarray(solve_triangular(L, head.A_likely[:, order].T, lower=True))
