"""Deterministic maps for head_features.py: each gives estimates of A with any number of features.

Every estimate is (query features)^T (key features), its rows divided by their sums, as attention
divides by D. Where the first m features of one construction are the construction with m features,
they are made once: `Nested`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from head_data import Array, Split, weights
from scipy.cluster.vq import kmeans2
from scipy.linalg import cholesky, lapack, solve_triangular

from equivalence.features import GramFeatures, TaylorFeatures
from equivalence.features.landmarks import greedy_columns

Order = np.ndarray[Any, np.dtype[np.intp]]
EPS = float(np.finfo(np.float64).eps)


class Estimate(Protocol):
    """Estimates of the attention matrices, up to a factor a row, with at most `largest` features."""

    largest: int

    def fit(self, m: int) -> Array:
        """For the fit queries."""
        ...

    def held(self, m: int) -> Array:
        """For the held-out queries."""
        ...


@dataclass(frozen=True, eq=False)
class Nested:
    """Query features (M, n_fit) and (M, n_held), and key features (M, n), of which m are taken."""

    at_fit: Array
    at_held: Array
    at_keys: Array

    @property
    def largest(self) -> int:
        """M."""
        return len(self.at_keys)

    def fit(self, m: int) -> Array:
        """For the fit queries."""
        return self.at_fit[:m].T @ self.at_keys[:m]

    def held(self, m: int) -> Array:
        """For the held-out queries."""
        return self.at_held[:m].T @ self.at_keys[:m]


@dataclass(frozen=True, eq=False)
class Remade:
    """A construction that is made anew for each number of features."""

    largest: int
    make: Callable[[int], Nested]

    def fit(self, m: int) -> Array:
        """For the fit queries."""
        return self.make(m).fit(m)

    def held(self, m: int) -> Array:
        """For the held-out queries."""
        return self.make(m).held(m)


@dataclass(frozen=True, eq=False)
class Head:
    """A split with what many maps need of it."""

    split: Split
    seed: int

    @cached_property
    def A_fit(self) -> Array:
        """Attention of the fit queries."""
        return weights(self.split.fit, self.split.K)

    @cached_property
    def A_held(self) -> Array:
        """Attention of the held-out queries."""
        return weights(self.split.held, self.split.K)

    @cached_property
    def A_likely(self) -> Array:
        """Attention of the likely queries."""
        return weights(self.split.likely, self.split.K)

    @cached_property
    def G(self) -> Array:
        """A^T A of the likely queries: all that least squares needs of them."""
        return self.A_likely.T @ self.A_likely

    @cached_property
    def greedy(self) -> Order:
        """The keys in the order in which their columns are chosen greedily."""
        return completed(greedy_columns(self.G, self.G, len(self.G)), self.G)


def completed(order: Order, G: Array) -> Order:
    """The order, then the columns that it left out."""
    return np.concatenate([order, np.setdiff1d(np.arange(len(G)), order)])


# Exact at full rank, by interpolation at the landmarks: the kernel of the keys alone.


def gram(head: Head) -> Nested:
    """The first m of the GramFeatures: pivoted Cholesky of the Gaussian-normalised Gram matrix."""
    phi = GramFeatures().fit(head.split.K)
    at_keys, log_scale = phi(head.split.K)
    scaled = at_keys * np.exp(log_scale - log_scale.max())[:, None]
    return Nested(phi(head.split.fit).features.T, phi(head.split.held).features.T, scaled.T)


def gaussian(K: Array) -> Array:
    """The Gaussian-normalised Gram matrix of the keys."""
    half = (K**2).sum(1) / 2
    return np.asarray(np.exp(K @ K.T - half[:, None] - half))


def pivots(G: Array, log_weight: Array) -> Order:
    """Pivots of a Cholesky factor of diag(weight) G diag(weight)."""
    w = np.exp(log_weight - log_weight.max())
    return np.asarray(lapack.dpstrf(w[:, None] * G * w, tol=0.0, lower=1)[1] - 1, np.intp)


def interpolated(weight: Callable[[Head], Array]) -> Callable[[Head], Nested]:
    """As `gram`, with the pivots of the weighted Gram matrix."""

    def estimate(head: Head) -> Nested:
        K, G = head.split.K, gaussian(head.split.K)
        order = pivots(G, weight(head))
        noise = len(K) * EPS * (1 + float((K**2).sum(1).max()))
        L = cholesky(G[np.ix_(order, order)] + noise * np.eye(len(K)), lower=True)
        half = (K[order] ** 2).sum(1) / 2
        at_keys = np.empty_like(L)
        at_keys[:, order] = L.T * np.exp(half - half.max())

        def features(Q: Array) -> Array:
            exponent = Q @ K[order].T - half
            g = np.exp(exponent - exponent.max(axis=1, keepdims=True))
            return np.asarray(solve_triangular(L, g.T, lower=True))

        return Nested(features(head.split.fit), features(head.split.held), at_keys)

    return estimate


def half_norms(head: Head) -> Array:
    """log e^{|k|^2/2}: the weights that make the Gaussian kernel the exponential one."""
    return np.asarray((head.split.K**2).sum(1) / 2)


def log_mass(head: Head) -> Array:
    """The logarithm of the attention that each key gets from the likely queries."""
    return np.log(head.A_likely.mean(0) + np.finfo(np.float64).tiny)


# Fitted: landmarks among the keys, and the coefficients of all keys by least squares.


def least_squares(head: Head, order: Order, G: Array) -> Nested:
    """Landmarks in an order; key coefficients that are best for the queries whose A^T A is G."""
    noise = 4 * len(G) * EPS
    P = G[np.ix_(order, order)]
    L = cholesky(P + noise * np.diag(np.diagonal(P) + EPS), lower=True)

    def divided(X: Array) -> Array:
        return np.asarray(solve_triangular(L, X, lower=True, check_finite=False))

    at_fit, at_held = (divided(A[:, order].T) for A in (head.A_fit, head.A_held))
    return Nested(at_fit, at_held, divided(G[order]))


def by(rule: Callable[[Head], Order]) -> Callable[[Head], Nested]:
    """Least squares over the likely queries at the landmarks of a rule."""
    return lambda head: least_squares(head, rule(head), head.G)


def pivoted_qr(head: Head) -> Order:
    """Column-pivoted QR of A, which is the pivoted Cholesky factor of A^T A."""
    return pivots(head.G, np.zeros(len(head.G)))


def leverage(head: Head) -> Order:
    """The largest ridge leverage scores of the columns of A, ridge 1e-4 of the energy."""
    scores = ridge_leverage(head)
    return np.asarray(np.argsort(-scores, kind="stable"), np.intp)


def ridge_leverage(head: Head) -> Array:
    """diag(G (G + lambda I)^{-1}), lambda = 1e-4 tr G / n."""
    ridge = 1e-4 * np.trace(head.G) / len(head.G)
    scores = 1 - ridge * np.diagonal(np.linalg.inv(head.G + ridge * np.eye(len(head.G))))
    return np.asarray(np.maximum(scores, 0.0))


def column_norms(head: Head) -> Order:
    """The largest columns of A."""
    return np.asarray(np.argsort(-np.diagonal(head.G), kind="stable"), np.intp)


def value_aware(head: Head) -> Order:
    """Greedy for the attention outputs A V instead of A."""
    H = head.G @ head.split.V
    return completed(greedy_columns(head.G, H, len(head.G)), head.G)


def greedy_without_draws(head: Head) -> Nested:
    """Greedy choice and least squares over the fit queries alone."""
    G = head.A_fit.T @ head.A_fit
    return least_squares(head, completed(greedy_columns(G, G, len(G)), G), G)


def greedy_interpolated(head: Head) -> Nested:
    """The greedy landmarks with interpolation instead of least squares."""
    rank = np.empty(len(head.G))
    rank[head.greedy] = -40.0 * np.arange(len(head.G)) / len(head.G)
    return interpolated(lambda head: rank)(head)


def centroids(head: Head) -> Remade:
    """Landmarks that need not be keys: k-means centroids of the keys, in the queries' metric."""
    s = head.split
    metric = np.linalg.cholesky(np.cov(s.likely.T) + EPS * np.eye(s.K.shape[1]))

    def make(m: int) -> Nested:
        label = kmeans2(s.K @ metric, m, seed=head.seed, minit="++", missing="warn")[1]
        used = np.unique(label)
        Z = np.array([s.K[label == r].mean(0) for r in used])
        X, X_fit, X_held = (columns(Q, Z, s.K) for Q in (s.likely, s.fit, s.held))
        L = cholesky(X.T @ X + 1e-10 * np.diag((X**2).sum(0)), lower=True)
        divide: Callable[[Array], Array] = lambda x: np.asarray(solve_triangular(L, x, lower=True))
        return Nested(divide(X_fit.T), divide(X_held.T), divide(X.T @ head.A_likely))

    return Remade(len(s.K), make)


def columns(Q: Array, Z: Array, K: Array) -> Array:
    """kappa(Q, Z) / D(Q): what attention to K would be for landmarks that are no keys."""
    S, T = Q @ Z.T, Q @ K.T
    largest = T.max(axis=1, keepdims=True)
    return np.asarray(np.exp(S - largest) / np.exp(T - largest).sum(axis=1, keepdims=True))


def projected(head: Head) -> Nested:
    """A's rows on the first right singular vectors of the likely queries' A: n exponentials each.

    The best m features that know those queries; what landmarks could save is their cost.
    """
    V = np.linalg.eigh(head.G)[1][:, ::-1].T
    return Nested(V @ head.A_fit.T, V @ head.A_held.T, V)


def taylor(head: Head) -> Nested:
    """Taylor features around the means, in the order of their degrees: 1, 33, 561 at d = 32."""
    queries, keys, key_factor = centred(head)
    phi = TaylorFeatures(2)
    at_fit, at_held, at_keys = (phi(x).phi().T for x in (*queries, keys))
    return Nested(at_fit, at_held, at_keys * key_factor)


def centred(head: Head) -> tuple[tuple[Array, Array], Array, Array]:
    """Fit and held-out queries and keys, shifted and balanced, and the factor of each key.

    exp(x.y) = exp((x-a).(y-b)) exp(a.y) times a factor of x, which cancels in attention. The
    balance t, 1/t gives both the same variance.
    """
    s = head.split
    a, b = s.fit.mean(0), s.K.mean(0)
    t = (np.var(s.K, axis=0).sum() / np.var(s.fit, axis=0).sum()) ** 0.25
    log_factor = s.K @ a
    queries = t * (s.fit - a), t * (s.held - a)
    return queries, (s.K - b) / t, np.asarray(np.exp(log_factor - log_factor.max()))
