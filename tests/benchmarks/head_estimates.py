"""What head_features.py compares: a head, and estimates of its attention by any number of features.

An estimate is (query features)^T (key features); its rows are divided by their sums afterwards, as
attention divides by D. Where the first m features of one construction are the construction with m
features, they are made once: `Nested`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from head_data import Array, Split, weights

from equivalence.features import Features
from equivalence.features.landmarks import greedy_columns

Order = np.ndarray[Any, np.dtype[np.intp]]
# Of the fit queries of many texts, so many are judged.
MOST_JUDGED = 512


class Estimate(Protocol):
    """Estimates of the attention matrices, up to a factor a row."""

    @property
    def largest(self) -> int:
        """The most features it has."""
        ...

    def fit(self, m: int) -> Array:
        """At the judged fit queries."""
        ...

    def held(self, m: int) -> Array:
        """At the held-out queries."""
        ...


@dataclass(frozen=True, eq=False)
class Nested:
    """Features of fit queries, held-out queries and keys, (M, n_fit), (M, n_held) and (M, n)."""

    at_fit: Array
    at_held: Array
    at_keys: Array

    @property
    def largest(self) -> int:
        """M."""
        return len(self.at_keys)

    def fit(self, m: int) -> Array:
        """At the judged fit queries."""
        return np.asarray(self.at_fit[:m].T @ self.at_keys[:m])

    def held(self, m: int) -> Array:
        """At the held-out queries."""
        return np.asarray(self.at_held[:m].T @ self.at_keys[:m])


@dataclass(frozen=True, eq=False)
class Controlled:
    """Features of which the first `exact` count as they are, the others as a mean of products."""

    whole: Nested
    exact: int

    @property
    def largest(self) -> int:
        """As many as there are."""
        return self.whole.largest

    def fit(self, m: int) -> Array:
        """At the judged fit queries."""
        return self._of(self.whole.fit, m)

    def held(self, m: int) -> Array:
        """At the held-out queries."""
        return self._of(self.whole.held, m)

    def _of(self, products: Callable[[int], Array], m: int) -> Array:
        head = products(min(m, self.exact))
        return head if m <= self.exact else head + (products(m) - head) / (m - self.exact)


@dataclass(frozen=True, eq=False)
class Remade:
    """A construction made anew for each number of features: the last multiple of largest/32."""

    largest: int
    make: Callable[[int], Nested]

    def fit(self, m: int) -> Array:
        """At the judged fit queries."""
        return self.make(self._rounded(m)).fit(m)

    def held(self, m: int) -> Array:
        """At the held-out queries."""
        return self.make(self._rounded(m)).held(m)

    def _rounded(self, m: int) -> int:
        step = max(1, self.largest // 32)
        return max(m // step * step, 1)


@dataclass(frozen=True, eq=False)
class Head:
    """A split with what many maps need of it."""

    split: Split
    seed: int

    @cached_property
    def judged(self) -> Array:
        """The fit queries on which a map is judged."""
        fit = self.split.fit
        return fit[:: -(-len(fit) // MOST_JUDGED)]

    @cached_property
    def A_fit(self) -> Array:
        """Attention of the judged fit queries."""
        return weights(self.judged, self.split.K)

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
        return np.asarray(self.A_likely.T @ self.A_likely)

    @cached_property
    def greedy(self) -> Order:
        """The keys in the order in which their columns are chosen greedily."""
        return chosen(self.G, self.G)


def chosen(G: Array, H: Array) -> Order:
    """The greedy order, then the columns that it left out."""
    order = greedy_columns(G, H, len(G))
    return np.concatenate([order, np.setdiff1d(np.arange(len(G)), order)])


def generator(head: Head) -> np.random.Generator:
    """One stream a head."""
    return np.random.default_rng([head.seed, 1])


def nested(fit: Features, held: Features, keys: Features) -> Nested:
    """Features without the queries' scales, which cancel, and with one shift of the keys'."""
    scale = np.exp(keys.log_scale - keys.log_scale.max())
    return Nested(fit.features.T, held.features.T, keys.features.T * scale)
