"""Random maps for head_features.py: unbiased for the kernel, or fitted by least squares."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import numpy.typing as npt
from head_data import Array
from head_estimates import Controlled, Head, Nested, Remade, generator, nested
from head_maps import least_squares, solver
from scipy.special import roots_genlaguerre

from equivalence.features import (
    DenseFeatures,
    Features,
    GeneralizedFeatures,
    ImportanceFeatures,
    PositiveFeatures,
    ReducedFeatures,
    sample_projections,
)
from equivalence.features.couplings import haar

MOST = 4096
# Radii a direction: their quadrature is exact for polynomials in w of degree 7.
RADII = 4
Sampled = PositiveFeatures | GeneralizedFeatures | DenseFeatures


def favor(head: Head) -> Nested:
    """FAVOR+: positive features at orthogonal projections (Choromanski et al. 2021)."""
    s = head.split
    rng, d = generator(head), s.K.shape[1]
    phi = PositiveFeatures.sample(d, MOST, rng=rng, coupling="orthogonal")
    return nested(*map(phi, (head.judged, s.held, s.K)))


def reduced(
    kind: type[Sampled],
    *,
    antithetic: bool = True,
    balance: bool = True,
    coupling: str = "orthogonal",
) -> Callable[[Head], Nested]:
    """Features of a kind after the shift, and the balance, fitted to the fit queries."""

    def estimate(head: Head) -> Nested:
        s = head.split
        rng, d = generator(head), s.K.shape[1]
        phi = kind.sample(d, MOST, rng=rng, coupling=coupling, antithetic=antithetic)
        maps = ReducedFeatures(phi, balance=balance).fit(s.K, s.fit)
        x = nested(*map(maps.queries, (head.judged, s.held)), maps.keys(s.K))
        # Of m antithetic features, m/2 pairs: a projection stands beside its negative.
        pairs = np.arange(MOST).reshape(2, -1).T.ravel() if antithetic else np.arange(MOST)
        return Nested(x.at_fit[pairs], x.at_held[pairs], x.at_keys[pairs])

    return estimate


def by_radii(head: Head) -> Nested:
    """Positive features at both ends of orthogonal directions, their norms by Gauss's quadrature.

    |w|^2/2 has the density of a generalised Gauss-Laguerre rule, whose weights the features carry.
    """
    s = head.split
    rng, d = generator(head), s.K.shape[1]
    t, weight = roots_genlaguerre(RADII, d / 2 - 1)
    n = MOST // (2 * RADII)
    U = haar(-(-n // d), d, rng).reshape(-1, d)[:n]
    ends = np.stack([U, -U], axis=1)[:, :, None, :] * np.sqrt(2 * t)[:, None]
    log_weights = np.tile(np.log(RADII * weight / weight.sum()), 2 * n)
    phi = ImportanceFeatures(ends.reshape(-1, d), log_weights)
    maps = ReducedFeatures(phi).fit(s.K, s.fit)
    return nested(*map(maps.queries, (head.judged, s.held)), maps.keys(s.K))


def controlled(head: Head) -> Controlled:
    """Positive features less 1 + w.x, and 1 + x.y exactly: a control variate of degree 1.

    Both are what the polynomials 1 and w of a feature, e^{w.x - |x|^2/2} = 1 + w.x + ..., give, and
    E (1 + w.x)(1 + w.y) = 1 + x.y.
    """
    s = head.split
    rng, d = generator(head), s.K.shape[1]
    W = sample_projections(MOST, d, rng=rng, coupling="orthogonal", antithetic=True)
    W = W.reshape(2, -1, d).swapaxes(0, 1).reshape(-1, d)
    phi = PositiveFeatures(W)

    def split(x: npt.ArrayLike) -> Features:
        x = np.asarray(x, np.float64)
        rest = np.sqrt(MOST) * phi(x).phi() - 1 - x @ W.T
        return Features(np.concatenate([np.ones((len(x), 1)), x, rest], axis=1), np.zeros(len(x)))

    maps = ReducedFeatures(split).fit(s.K, s.fit)
    x = nested(*map(maps.queries, (head.judged, s.held)), maps.keys(s.K))
    return Controlled(x, d + 1)


def importance(t: float) -> Callable[[Head], Nested]:
    """Projections drawn where attention lies, for queries times t and keys over t."""

    def estimate(head: Head) -> Nested:
        s = head.split
        phi = ImportanceFeatures.sample(s.K / t, t * s.likely, MOST, rng=generator(head))
        return nested(phi(t * head.judged), phi(t * s.held), phi(s.K / t))

    return estimate


def landmarks(scores: Callable[[Head], Array]) -> Callable[[Head], Nested]:
    """Landmarks drawn without replacement with probability as the scores; least squares."""

    def estimate(head: Head) -> Nested:
        p = scores(head)
        order = generator(head).choice(len(p), len(p), replace=False, p=p / p.sum())
        return least_squares(head, order, head.G)

    return estimate


def uniform(head: Head) -> Array:
    """Every key alike."""
    return np.ones(len(head.G))


def squared_norms(head: Head) -> Array:
    """The squared column norms of A, none of them zero."""
    norms = np.diagonal(head.G)
    return np.asarray(norms + np.finfo(np.float64).eps * norms.max())


def remainder(head: Head) -> Remade:
    """Half of the features a greedy head, half drawn columns of what that leaves: unbiased.

    With R = A - A_Z C for the head's coefficients C, the estimate of R is the mean of R e_j e_j^T /
    p_j over drawn j; p_j as the norms of R's columns gives the least variance.
    """
    features = solver(head.greedy, head.G)
    at_keys = features(head.G)
    matrices = head.A_fit, head.A_held, head.A_likely
    whole = [features(A) for A in matrices]

    @cache
    def make(m: int) -> Nested:
        draws = m // 2
        k = m - draws
        heads = [x[:k] for x in whole]
        rests = [A - x.T @ at_keys[:k] for A, x in zip(matrices, heads, strict=True)]
        p = np.linalg.norm(rests[2], axis=0)
        p /= p.sum()
        j = generator(head).choice(len(p), draws, p=p)
        drawn = np.zeros((draws, len(p)))
        drawn[np.arange(draws), j] = 1 / (p[j] * max(draws, 1))
        at = [np.concatenate([x, R[:, j].T]) for x, R in zip(heads, rests, strict=True)]
        return Nested(at[0], at[1], np.concatenate([at_keys[:k], drawn]))

    return Remade(len(head.G), make)
