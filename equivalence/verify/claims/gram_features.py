"""Any factor of the landmarks' Gram matrix gives exact finite features of exp(x.y)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from equivalence._arrays import Array
from equivalence.features import Features, GramFeatures
from equivalence.verify import oracle
from equivalence.verify.budgets import (
    Budget,
    exact,
    gamma,
    gaussian_exponent_error,
    kernel_budget,
)
from equivalence.verify.cases import Case
from equivalence.verify.claim import Claim, Kind, Mutant
from equivalence.verify.compare import Comparison, compare
from equivalence.verify.dual_case import scaled
from equivalence.verify.implementation import Implementation

# |x|^2 = 900 is beyond the range of exp in float64 (709) and far beyond float32's (88).
_FAR = 30.0


def check(impl: Implementation, case: Case) -> Iterator[Comparison]:
    """Every key with every query, the Gram matrix, the dimension, and norms where exp overflows."""
    Q, K = scaled(case)
    phi = impl.GramFeatures().fit(K)
    at_keys, at_queries = phi(K), phi(Q)
    distinct = len(np.unique(K, axis=0))
    yield compare(
        "the dimension is the number of distinct keys",
        [at_queries.features.shape[1]],
        [distinct],
        exact("a count"),
    )
    yield _kernel(case, "phi(k_i).phi(q) = exp(k_i.q)", Q, K, at_queries, at_keys)
    yield _gram(case, K, at_keys)
    yield _far_away(impl, case)


def _kernel(
    case: Case, what: str, X: Array, Z: Array, at_x: Features, at_z: Features
) -> Comparison:
    """Both sides without their log scales, so that nothing overflows."""
    number, rows = case.arithmetic, case.rows
    budget = kernel_budget(
        at_x.features, at_z.features, gaussian_exponent_error(X, Z, case.u), case.u
    )
    got = at_x.features @ at_z.features.T
    want = _scaled_kernel(case, X[rows], Z, at_x.log_scale[rows], at_z.log_scale)
    return oracle.against(number, what, got[rows], want, budget[rows])


def _scaled_kernel(
    case: Case, X: Array, Z: Array, log_x: Array, log_z: Array
) -> list[list[oracle.Number]]:
    number = case.arithmetic
    a, b = number.vectors(log_x[None])[0], number.vectors(log_z[None])[0]
    return [
        [number.exp(dot - s - t) for dot, t in zip(dots, b, strict=True)]
        for dots, s in zip(number.dots(number.vectors(X), number.vectors(Z)), a, strict=True)
    ]


def _gram(case: Case, K: Array, at_keys: Features) -> Comparison:
    """phi(k_i).phi(k_j) = exp(k_i.k_j), up to Cholesky's error and the tolerance of the rank."""
    L, u = at_keys.features, case.u
    m = L.shape[1]
    substitution = kernel_budget(L, L, gaussian_exponent_error(K, K, u), u)
    largest = float((K.astype(np.float64) ** 2).sum(axis=-1).max())
    rank = Budget(
        gamma(m + 1, u) * (abs(L) @ abs(L).T).astype(np.float64) + 4 * m * u * (1 + largest),
        "Cholesky's backward error gamma_(m+1) |L||L|^T (Higham 2002, thm 10.3), and the trailing "
        "block below the numerical rank, 2 m u (1 + max |k|^2), once for what is left and once for "
        "what replaces it",
        u,
    )
    rows = case.rows if case.real else np.arange(len(K))
    want = _scaled_kernel(case, K[rows], K, at_keys.log_scale[rows], at_keys.log_scale)
    return oracle.against(
        case.arithmetic,
        "phi(k_i).phi(k_j) = exp(k_i.k_j)",
        (L @ L.T)[rows],
        want,
        (substitution + rank)[rows],
    )


def _far_away(impl: Implementation, case: Case) -> Comparison:
    """At |k|^2 = 900 and queries nearby: k.q itself, from features whose exp overflows."""
    rng = case.rng("far")
    direction = rng.standard_normal(case.K.shape)
    K = (_FAR * direction / np.linalg.norm(direction, axis=-1, keepdims=True)).astype(case.K.dtype)
    Q = (K + 0.1 * rng.standard_normal(K.shape)).astype(K.dtype)
    phi = impl.GramFeatures().fit(K)
    at_keys, at_queries = phi(K), phi(Q)
    product = np.einsum("nm,nm->n", at_keys.features, at_queries.features)
    logs = (at_keys.log_scale, at_queries.log_scale)
    with np.errstate(all="ignore"):
        got = np.log(product) + logs[0] + logs[1]
    number = case.arithmetic
    k, q = number.vectors(K), number.vectors(Q)
    want = [[number.dot(a, b)] for a, b in zip(k, q, strict=True)]
    error = kernel_budget(
        at_queries.features, at_keys.features, gaussian_exponent_error(Q, K, case.u), case.u
    )
    relative = np.diagonal(error.bound) / product
    sums = 8 * case.u * (abs(logs[0]) + abs(logs[1]) + abs(got))
    budget = Budget(
        (relative / (1 - relative) + sums)[:, None], error.because + "; log and two sums", case.u
    )
    return oracle.against(
        number, "log phi(k).phi(q) = k.q at |k|^2 = 900", got[:, None], want, budget
    )


class _ForgetsLogScale(GramFeatures):
    def __call__(self, x: npt.ArrayLike) -> Features:
        features, log_scale = super().__call__(x)
        return Features(features, np.zeros_like(log_scale))


class _TransposedSolve(GramFeatures):
    def _solve(self, x: Array) -> tuple[Array, Array]:
        features, log_scale = super()._solve(x)
        L = self.factor_
        return np.linalg.solve(L.T, L @ features.T).T, log_scale


class _MultipliesByFactor(GramFeatures):
    def _solve(self, x: Array) -> tuple[Array, Array]:
        features, log_scale = super()._solve(x)
        return features @ self.factor_.T @ self.factor_, log_scale


class _DropsLastPivot(GramFeatures):
    def __call__(self, x: npt.ArrayLike) -> Features:
        features, log_scale = super().__call__(x)
        if features.shape[-1] > 1:
            features = np.concatenate([features[..., :-1], 0 * features[..., -1:]], axis=-1)
        return Features(features, log_scale)


class _ForgetsPivots(GramFeatures):
    def fit(self, keys: npt.ArrayLike, queries: npt.ArrayLike | None = None) -> _ForgetsPivots:
        super().fit(keys)
        order = np.lexsort(self.landmarks_.T[::-1])
        self.landmarks_ = self.landmarks_[order]
        return self


class _FullWidth(GramFeatures):
    """exp(-|x-y|^2): the Gaussian without its 1/2."""

    def fit(self, keys: npt.ArrayLike, queries: npt.ArrayLike | None = None) -> _FullWidth:
        super().fit(np.asarray(keys) * np.asarray(np.sqrt(2), np.asarray(keys).dtype))
        return self

    def __call__(self, x: npt.ArrayLike) -> Features:
        X = np.asarray(x)
        features, log_scale = super().__call__(X * np.asarray(np.sqrt(2), X.dtype))
        return Features(features, log_scale / 2)


class _EigenvectorsOfRawGram(GramFeatures):
    """phi(x) = Lambda^{-1/2} U^T exp(Z x) with the kernel not normalised."""

    def fit(
        self, keys: npt.ArrayLike, queries: npt.ArrayLike | None = None
    ) -> _EigenvectorsOfRawGram:
        super().fit(keys)
        with np.errstate(all="ignore"):
            G = np.nan_to_num(np.exp(self.landmarks_ @ self.landmarks_.T))
        values, vectors = np.linalg.eigh(G)
        kept = values > len(G) * np.finfo(G.dtype).eps * values.max()
        self._project = np.where(kept, vectors / np.sqrt(np.where(kept, values, 1)), 0)
        return self

    def __call__(self, x: npt.ArrayLike) -> Features:
        X = np.asarray(x)
        with np.errstate(all="ignore"):
            features = np.exp(X @ self.landmarks_.T) @ self._project
        return Features(features, np.zeros(len(X), features.dtype))


class _Float32(GramFeatures):
    def __call__(self, x: npt.ArrayLike) -> Features:
        features, log_scale = super().__call__(x)
        return Features(features.astype(np.float32).astype(features.dtype), log_scale)


class _SolvesForLandmarksToo(GramFeatures):
    """A landmark's features are solved for like any point's, not taken from the factor."""

    def _recall(self, x: Array, features: Array, log_scale: Array) -> None:
        pass


def _mutant(name: str, defect: str, features: Any) -> Mutant:
    return Mutant(name, defect, {"GramFeatures": features})


claim = Claim(
    stem="gram_features",
    statement="For any factor L of the keys' Gram matrix, phi(x) = L^{-1} kappa(K, x) has "
    "phi(k_i).phi(q) = exp(k_i.q) for every key and every q: an exact, finite feature map.",
    kind=Kind.EXACT,
    needs=("GramFeatures",),
    check=check,
    mutants=(
        _mutant("forgets_log_scale", "the weights exp(|x|^2/2) are left out", _ForgetsLogScale),
        _mutant("transposed_solve", "solves with L^T instead of L", _TransposedSolve),
        _mutant("multiplies_by_factor", "multiplies by L^T L after solving", _MultipliesByFactor),
        _mutant("drops_last_pivot", "one landmark too few in the factor", _DropsLastPivot),
        _mutant(
            "forgets_pivots", "the landmarks are not in the order of the pivots", _ForgetsPivots
        ),
        _mutant("full_width", "the Gaussian is exp(-|x-y|^2), without the 1/2", _FullWidth),
        _mutant(
            "eigenvectors_of_raw_gram",
            "eigh of exp(X X^T): absolute errors, overflow",
            _EigenvectorsOfRawGram,
        ),
        _mutant(
            "solves_for_landmarks_too",
            "landmarks are solved for, which amplifies the error of L "
            "by the condition of the Gram matrix",
            _SolvesForLandmarksToo,
        ),
        _mutant("float32_features", "features are rounded to float32", _Float32),
    ),
    assumptions="Landmarks contain the keys; keys are finite. The query is arbitrary.",
    budget="|phi(k).phi(q) - kappa| <= gamma_(2m+2) |phi(k)|.|phi(q)| + kappa (exp(gamma_(d+4) "
    "|q|.|k| + gamma_5 (|q|.|k| + |q|^2/2 + |k|^2/2)) - 1 + 8u), after the log scales.",
    code="equivalence/features/gram.py",
    on_heads=True,
)
