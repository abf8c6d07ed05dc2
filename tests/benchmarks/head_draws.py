"""Random maps for head_features.py: unbiased for the kernel, or fitted by least squares."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from head_data import Array
from head_estimates import Head, Nested, Remade, generator, nested
from head_maps import least_squares, solver

from equivalence.features import (
    DenseFeatures,
    GeneralizedFeatures,
    ImportanceFeatures,
    PositiveFeatures,
    ReducedFeatures,
)

MOST = 4096
Sampled = PositiveFeatures | GeneralizedFeatures | DenseFeatures


def favor(head: Head) -> Nested:
    """FAVOR+: positive features at orthogonal projections (Choromanski et al. 2021)."""
    s = head.split
    rng, d = generator(head), s.K.shape[1]
    phi = PositiveFeatures.sample(d, MOST, rng=rng, coupling="orthogonal")
    return nested(*map(phi, (head.judged, s.held, s.K)))


def reduced(
    kind: type[Sampled], *, antithetic: bool = True, balance: bool = True
) -> Callable[[Head], Nested]:
    """Orthogonal features of a kind after the shift, and the balance, fitted to the fit queries."""

    def estimate(head: Head) -> Nested:
        s = head.split
        rng, d = generator(head), s.K.shape[1]
        phi = kind.sample(d, MOST, rng=rng, coupling="orthogonal", antithetic=antithetic)
        maps = ReducedFeatures(phi, balance=balance).fit(s.K, s.fit)
        x = nested(*map(maps.queries, (head.judged, s.held)), maps.keys(s.K))
        # Of m antithetic features, m/2 pairs: a projection stands beside its negative.
        pairs = np.arange(MOST).reshape(2, -1).T.ravel() if antithetic else np.arange(MOST)
        return Nested(x.at_fit[pairs], x.at_held[pairs], x.at_keys[pairs])

    return estimate


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
