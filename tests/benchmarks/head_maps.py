"""Deterministic maps for head_features.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from head_data import Array, weights
from head_estimates import Head, Nested, Order, Remade, chosen, nested
from scipy.cluster.vq import kmeans2
from scipy.linalg import cholesky, lapack, solve_triangular

from equivalence.features import Features, GramFeatures, TaylorFeatures
from equivalence.features.reductions import Reduction

EPS = float(np.finfo(np.float64).eps)


# The kernel of the keys alone, by interpolation at landmarks: exact at full rank.


def gram(head: Head) -> Nested:
    """The first m of the GramFeatures: pivoted Cholesky of the Gaussian-normalised Gram matrix."""
    phi = GramFeatures().fit(head.split.K)
    return nested(*map(phi, (head.judged, head.split.held, head.split.K)))


def gaussian(K: Array) -> Array:
    """The Gaussian-normalised Gram matrix of the keys."""
    half = (K**2).sum(1) / 2
    return np.asarray(np.exp(K @ K.T - half[:, None] - half))


def pivots(G: Array, log_weight: Array) -> Order:
    """The pivots of a Cholesky factor of diag(weight) G diag(weight)."""
    w = np.exp(log_weight - log_weight.max())
    return np.asarray(lapack.dpstrf(w[:, None] * G * w, tol=0.0, lower=1)[1] - 1, np.intp)


def by_keys(head: Head) -> Order:
    """The pivots of GramFeatures."""
    return pivots(gaussian(head.split.K), np.zeros(len(head.split.K)))


def by_exponential(head: Head) -> Order:
    """The pivots with the weights e^{|k|^2/2}, which make the kernel exp(x.y)."""
    return pivots(gaussian(head.split.K), (head.split.K**2).sum(1) / 2)


def by_mass(head: Head) -> Order:
    """The pivots with the attention that each key gets from the likely queries as weights."""
    mass = head.A_likely.mean(0) + np.finfo(np.float64).tiny
    return pivots(gaussian(head.split.K), np.log(mass))


def interpolated(rule: Callable[[Head], Order]) -> Callable[[Head], Nested]:
    """As `gram`, with landmarks in another order."""

    def estimate(head: Head) -> Nested:
        order = rule(head)
        Z = head.split.K[order]
        half = (Z**2).sum(1) / 2
        noise = len(Z) * EPS * (1 + 2 * float(half.max()))
        L = cholesky(gaussian(Z) + noise * np.eye(len(Z)), lower=True)
        at_keys = np.empty_like(L)
        at_keys[:, order] = L.T * np.exp(half - half.max())

        def features(Q: Array) -> Array:
            exponent = Q @ Z.T - half
            g = np.exp(exponent - exponent.max(axis=1, keepdims=True))
            return np.asarray(solve_triangular(L, g.T, lower=True))

        return Nested(features(head.judged), features(head.split.held), at_keys)

    return estimate


# Fitted: landmarks, and the coefficients of all keys by least squares over queries.


def solver(order: Order, G: Array) -> Callable[[Array], Array]:
    """A -> L^{-1} A[:, order]^T with L L^T = G[order, order]: orthonormal features in order.

    They are orthonormal over the queries whose A^T A is G, so that G itself gives the keys'.
    """
    P = G[np.ix_(order, order)]
    L = cholesky(P + 4 * len(P) * EPS * np.diag(np.diagonal(P) + EPS), lower=True)
    return lambda A: np.asarray(solve_triangular(L, A[:, order].T, lower=True, check_finite=False))


def least_squares(head: Head, order: Order, G: Array) -> Nested:
    """Landmarks in an order; key coefficients that are best for the queries whose A^T A is G."""
    features = solver(order, G)
    return Nested(features(head.A_fit), features(head.A_held), features(G))


def by(rule: Callable[[Head], Order]) -> Callable[[Head], Nested]:
    """Least squares over the likely queries at the landmarks of a rule."""
    return lambda head: least_squares(head, rule(head), head.G)


def by_greed(head: Head) -> Order:
    """The order of LandmarkFeatures."""
    return head.greedy


def by_outputs(head: Head) -> Order:
    """Greedy for the attention outputs A V instead of A."""
    return chosen(head.G, head.G @ head.split.V)


def by_pivoted_qr(head: Head) -> Order:
    """Column-pivoted QR of A, whose pivots are those of the Cholesky factor of A^T A."""
    return pivots(head.G, np.zeros(len(head.G)))


def by_norms(head: Head) -> Order:
    """The largest columns of A."""
    return np.asarray(np.argsort(-np.diagonal(head.G), kind="stable"), np.intp)


def by_leverage(head: Head) -> Order:
    """The largest ridge leverage scores of the columns of A."""
    return np.asarray(np.argsort(-ridge_leverage(head), kind="stable"), np.intp)


def ridge_leverage(head: Head) -> Array:
    """diag(G (G + lambda I)^{-1}), lambda = 1e-4 tr G / n, none of them zero."""
    ridge = 1e-4 * np.trace(head.G) / len(head.G)
    scores = 1 - ridge * np.diagonal(np.linalg.inv(head.G + ridge * np.eye(len(head.G))))
    return np.asarray(np.maximum(scores, EPS))


def greedy_at_fit(head: Head) -> Nested:
    """Greedy choice and least squares over the fit queries alone."""
    A = weights(head.split.fit, head.split.K)
    G = A.T @ A
    return least_squares(head, chosen(G, G), G)


def centroids(head: Head) -> Remade:
    """Landmarks that are no keys: k-means of the keys in the queries' metric, from the greedy."""
    s = head.split
    C = np.cov(s.likely.T)
    metric = np.linalg.cholesky(C + 1e-6 * np.trace(C) / len(C) * np.eye(len(C)))
    points = s.K @ metric

    @cache
    def make(m: int) -> Nested:
        label = kmeans2(points, points[head.greedy[:m]], iter=5, minit="matrix", missing="warn")[1]
        Z = np.array([s.K[label == r].mean(0) for r in np.unique(label)])
        A_Z = [columns(Q, Z, s.K) for Q in (head.judged, s.held, s.likely)]
        features = solver(np.arange(len(Z)), A_Z[2].T @ A_Z[2])
        return Nested(features(A_Z[0]), features(A_Z[1]), features(head.A_likely.T @ A_Z[2]))

    return Remade(len(s.K), make)


def columns(Q: Array, Z: Array, K: Array) -> Array:
    """kappa(Q, Z) / D(Q), the columns of A that landmarks which are no keys would have."""
    scores = Q @ K.T
    largest = scores.max(axis=1, keepdims=True)
    D = np.exp(scores - largest).sum(axis=1, keepdims=True)
    return np.asarray(np.exp(Q @ Z.T - largest) / D)


def projected(head: Head) -> Nested:
    """A's rows on the first right singular vectors of the likely queries' A.

    No m features know those queries better. Each costs n exponentials; landmarks cost one.
    """
    V = np.linalg.eigh(head.G)[1][:, ::-1].T
    return Nested(V @ head.A_fit.T, V @ head.A_held.T, V)


def taylor(head: Head) -> Nested:
    """Taylor features after shift and balance, in the order of their degrees."""
    s, phi = head.split, TaylorFeatures(2)
    reduction = Reduction.fit(s.K, s.fit)
    keys, log_factor = reduction.keys(s.K)
    at_keys, log_scale = phi(keys)
    at_fit, at_held = (phi(reduction.queries(Q)[0]) for Q in (head.judged, s.held))
    return nested(at_fit, at_held, Features(at_keys, log_scale + log_factor))
