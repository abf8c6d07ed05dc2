"""Features drawn where the attention lies: exact in expectation, bounded at the queries."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy import special

from equivalence._arrays import Array
from equivalence.features import Features, ImportanceFeatures, importance
from equivalence.verify import oracle
from equivalence.verify.budgets import Budget, gamma
from equivalence.verify.cases import Case
from equivalence.verify.claim import Claim, Kind, mutant
from equivalence.verify.compare import Comparison, compare
from equivalence.verify.coupled import exponent_error, log_products, moment_along, near
from equivalence.verify.dual_case import scaled
from equivalence.verify.implementation import Implementation
from equivalence.verify.laws import LawTest, distribution_test, neighbours_test, variance_test
from equivalence.verify.oracle import Arithmetic, Number

_ALPHA = 1e-9
_N_DRAWS = 20000
_FEATURES = 4
_U = 2.0**-53


def check(impl: Implementation, case: Case) -> Iterator[Comparison]:
    """The weights, what they do at the queries, and the map at single pairs and in the mean."""
    Q, K = scaled(case)
    queries, keys = near(Q[case.rows], K)
    yield from _weights(impl, case, queries, keys)
    yield _contributions(impl, case, queries, keys)
    for x, y in zip(queries, keys, strict=False):
        yield _by_definition(impl, case, x[None], y[None])
        yield _mean(impl, case, x[None], y[None], queries, keys)


def law(impl: Implementation, rng: np.random.Generator) -> Iterator[LawTest]:
    """Projections are independent draws of q_i + k_j + N(0, I), j by the attention of query i."""
    keys, queries = np.array([[-2.0], [0.0], [3.0]]), np.array([[-1.0], [0.5]])
    phi = impl.ImportanceFeatures.sample(keys, queries, _N_DRAWS, rng=rng)
    w = phi.projections[:, 0]
    where = f"w ~ q + k + N(0, 1), {_N_DRAWS} draws"
    yield distribution_test(f"law of {where}", w, _distribution, alpha=_ALPHA, gap=0.05)
    normal = special.ndtri(_distribution(w))
    yield neighbours_test(f"independence of {where}: neighbours", normal, alpha=_ALPHA, ratio=1.3)
    q, k = rng.standard_normal((2, 1, 3))
    phi = impl.ImportanceFeatures.sample(k, q, _N_DRAWS, rng=rng)
    z = (phi.projections - q - k).ravel()
    where = f"w - q - k of one pair, d=3, {_N_DRAWS} draws"
    yield variance_test(f"variance of {where}", z**2, len(z), alpha=_ALPHA, ratio=1.2)
    yield neighbours_test(f"independence of {where}: neighbours", z, alpha=_ALPHA, ratio=1.3)


def _distribution(w: Array) -> Array:
    """P(w' <= w) for the queries -1 and 1/2 and the keys -2, 0 and 3."""
    total = np.zeros_like(w)
    for q in (-1.0, 0.5):
        kappa = {k: math.exp(q * k) for k in (-2.0, 0.0, 3.0)}
        D = math.fsum(kappa.values())
        for k, weight in kappa.items():
            total += weight / D / 2 * special.ndtr(w - q - k)
    return total


def _weights(impl: Implementation, case: Case, Q: Array, K: Array) -> Iterator[Comparison]:
    """-log of the density of the mixture over that of N(0, I), pair by pair."""
    drawn = impl.ImportanceFeatures.sample(K, Q, _FEATURES, rng=case.rng("drawn"))
    W = 3 * case.rng("anywhere").standard_normal((_FEATURES, K.shape[1]))
    for where, at, got in (
        ("of a sample", drawn.projections, drawn.log_weights),
        ("anywhere", W, impl.log_importance_weights(W, K, Q)),
    ):
        yield oracle.against(
            case.arithmetic,
            f"the weight is N(w; 0, I) / p(w), {where}",
            np.asarray(got)[None],
            [_log_weights(case.arithmetic, at, Q, K)],
            Budget(_weight_error(at, Q, K)[None], _OF_WEIGHTS, _U),
        )


def _log_weights(number: Arithmetic, W: Array, Q: Array, K: Array) -> list[Number]:
    """-log (1/n_q) sum_ij A_ij exp(w.z - |z|^2/2), z = q_i + k_j, for each row w of W."""
    queries, keys = number.vectors(Q), number.vectors(K)
    A = [oracle.weights(number, q, keys, number.number(1.0)) for q in queries]
    pairs = [
        (p, [a + b for a, b in zip(q, k, strict=True)])
        for q, row in zip(queries, A, strict=True)
        for k, p in zip(keys, row, strict=True)
    ]
    half_norms = [number.dot(z, z) / number.number(2.0) for _, z in pairs]
    found = []
    for dots in number.dots(number.vectors(W), [z for _, z in pairs]):
        exponents = [dot - half for dot, half in zip(dots, half_norms, strict=True)]
        top = max(exponents, key=float)
        terms = (p * number.exp(e - top) for (p, _), e in zip(pairs, exponents, strict=True))
        found.append(-top - number.log(number.sum(terms) / number.number(float(len(Q)))))
    return found


def _weight_error(W: Array, Q: Array, K: Array) -> Array:
    """The error of each weight's logarithm, that of the oracle in floats included.

    Exponents and log D are sums of terms of w.z and |z|^2, z = |q| + |k|, and of their logarithms;
    sums of exponentials err relative to themselves.
    """
    W, Q, K = (abs(x.astype(np.float64)) for x in (W, Q, K))
    z, n = Q[:, None] + K, len(Q) + len(K)
    size = (z @ W.T).max(axis=(0, 1)) + 2 * (z**2).sum(axis=-1).max() + 2 * math.log(n)
    error: Array = gamma(2 * K.shape[1] + 16, _U) * size + gamma(n + 32, _U)
    return error


def _contributions(impl: Implementation, case: Case, Q: Array, K: Array) -> Comparison:
    """mean_i (1/D_i) sum_j m phi(q_i)_r phi(k_j)_r = 1 at each projection r."""
    W = case.rng("contributions").standard_normal((_FEATURES, K.shape[1]))
    W += Q[0].astype(np.float64) + K[0]
    log_weights = impl.log_importance_weights(W, K, Q)
    phi = impl.ImportanceFeatures(W, log_weights)
    scores = Q.astype(np.float64) @ K.T
    log_D = special.logsumexp(scores, axis=1)
    with np.errstate(divide="ignore"):
        by_query, by_key = (
            np.log(features.astype(np.float64)) + log_scale.astype(np.float64)[:, None]
            for features, log_scale in (phi(Q), phi(K))
        )
    by_query -= log_D[:, None]
    log_sum = special.logsumexp(by_query, axis=0) + special.logsumexp(by_key, axis=0)
    got = np.exp(log_sum + math.log(len(W) / len(Q)))
    largest_q, largest_k = (abs(x).max(axis=0, keepdims=True) for x in (Q, K))
    error = _tilted_error(W, log_weights, largest_q, largest_k, case.u)
    rest = gamma(K.shape[1] + 16, _U) * abs(scores).max() + gamma(len(K) + len(Q) + 64, _U)
    return compare(
        "what the queries get from one projection has the mean 1",
        got,
        np.ones_like(got),
        Budget(np.expm1(error + _weight_error(W, Q, K) + rest), _BECAUSE, case.u),
    )


def _by_definition(impl: Implementation, case: Case, x: Array, y: Array) -> Comparison:
    """phi(x).phi(y) = (1/m) sum_r weight_r exp(w_r.(x + y) - (|x|^2 + |y|^2)/2)."""
    rng, number, u = case.rng("definition"), case.arithmetic, case.u
    W = rng.standard_normal((_FEATURES, x.shape[1])).astype(x.dtype)
    log_weights = 2 * rng.standard_normal(_FEATURES)
    (f, a), (g, b) = (impl.ImportanceFeatures(W, log_weights)(p) for p in (x, y))
    shift = float(a[0]) + float(b[0])
    p, q = number.vectors(x)[0], number.vectors(y)[0]
    half = (number.dot(p, p) + number.dot(q, q)) / number.number(2.0)
    total = number.sum(
        number.exp(number.number(float(t)) + number.dot(w, p) + number.dot(w, q) - half
                   - number.number(float(a[0])) - number.number(float(b[0])))
        for t, w in zip(log_weights, number.vectors(W), strict=True)
    )  # fmt: skip
    error = np.expm1(
        _tilted_error(W, log_weights, x, y, u).max() + 2 * u * (abs(a) + abs(b) + abs(shift))
    )
    product = (f * g).sum(axis=-1, keepdims=True)
    bound = (error + gamma(len(W) + 2, u)) * product.astype(np.float64)
    return oracle.against(
        number,
        "phi(x).phi(y) is the weighted mean over the projections",
        product,
        [[total / number.number(float(len(W)))]],
        Budget(bound, _BECAUSE, u),
    )


def _mean(impl: Implementation, case: Case, x: Array, y: Array, Q: Array, K: Array) -> Comparison:
    """E phi(x).phi(y) over the mixture: p(w) times a product of features is N(w; 0, I) times T."""
    number = case.arithmetic
    log_A = special.log_softmax(Q.astype(np.float64) @ K.T, axis=1)

    def log_T_at(W: Array) -> tuple[Array, Array]:
        log_weights = impl.log_importance_weights(W, K, Q)
        log_T = log_products(impl.ImportanceFeatures(W, log_weights), x, y)[0]
        error = _tilted_error(W, log_weights, x, y, case.u) + 2 * _weight_error(W, Q, K)
        return log_T + _log_mixture(W, Q, K, log_A - math.log(len(Q))), error

    dot = number.dot(number.vectors(x)[0], number.vectors(y)[0])
    return moment_along(case, x, y, "E phi(x).phi(y) = exp(x.y)", 1, dot, log_T_at, _BECAUSE)


def _log_mixture(W: Array, Q: Array, K: Array, log_chances: Array | float) -> Array:
    """log p(w) / N(w; 0, I), p the density of q_i + k_j + N(0, I) with these chances of a pair."""
    W, Q, K = (x.astype(np.float64) for x in (W, Q, K))
    z = Q[:, None] + K
    exponents = log_chances + z.dot(W.T).transpose(2, 0, 1) - (z**2).sum(axis=-1) / 2
    ratio: Array = special.logsumexp(exponents, axis=(1, 2))
    return ratio


def _tilted_error(W: Array, log_weights: Array, x: Array, y: Array, u: float) -> Array:
    """That of a product of positive features, and half a weight's logarithm in each exponent."""
    size = abs(W) @ (abs(x) + abs(y))[0].astype(np.float64)
    tilts = abs(np.asarray(log_weights)) + abs(np.asarray(log_weights)).max()
    error: Array = exponent_error(W, x, y, u) + 8 * u * (tilts + size + size.max() + 1)
    return error


_OF_WEIGHTS = (
    "exponents err by gamma_(2d+16) of |w|.z + 2 |z|^2, z = |q| + |k|, and sums by "
    "gamma_(n+n_q+32), in the code and in the oracle's floats"
)
_BECAUSE = (
    "exponents err by gamma_(2d+8) |w|.(|x|+|y|), 7u of the largest, and 8u of the weights' "
    "logarithms beside them"
)


class _Altered(ImportanceFeatures):
    """Weights to some power; |x|^2 and m in the log scale as often as they should not be."""

    power, norms, means, eps = 1.0, 0.0, 0.0, 0.0

    def __init__(self, projections: npt.ArrayLike, log_weights: npt.ArrayLike) -> None:
        super().__init__(projections, self.power * np.asarray(log_weights))

    def __call__(self, x: npt.ArrayLike) -> Features:
        X = np.asarray(x)
        features, log_scale = super().__call__(X)
        changed = log_scale + self.norms * (X**2).sum(axis=-1)
        changed += self.means * math.log(len(self.projections))
        return Features(features + self.eps, changed.astype(X.dtype))


class _ForgetsWeights(_Altered):
    power = 0.0


class _WholeWeights(_Altered):
    power = 2.0


class _InverseWeights(_Altered):
    power = -1.0


class _ForgetsNorm(_Altered):
    norms = 0.5


class _ForgetsMean(_Altered):
    means = 0.5


class _AddsEpsilon(_Altered):
    eps = 1e-4


class _Float32(ImportanceFeatures):
    def __call__(self, x: npt.ArrayLike) -> Features:
        X = np.asarray(x)
        features, log_scale = super().__call__(X.astype(np.float32))
        return Features(features.astype(X.dtype), log_scale.astype(X.dtype))


class _Sampler(ImportanceFeatures):
    """Draws pairs by wrong chances, or something else about them."""

    spread = 1.0

    @classmethod
    def sample(
        cls, keys: npt.ArrayLike, queries: npt.ArrayLike, n_features: int, *, rng: Any
    ) -> Self:
        K, Q = (np.asarray(x, np.float64) for x in (keys, queries))
        chances = cls.chances(Q, K)
        i, j = np.divmod(rng.choice(chances.size, n_features, p=chances.ravel()), len(K))
        noise = cls.spread * rng.standard_normal((n_features, K.shape[1]))
        W = cls.centres(Q[i], K[j]) + noise
        return cls(W, importance.log_importance_weights(W, K, Q))

    @staticmethod
    def chances(Q: Array, K: Array) -> Array:
        A: Array = special.softmax(Q @ K.T, axis=1) / len(Q)
        return A

    @staticmethod
    def centres(Q: Array, K: Array) -> Array:
        return Q + K


class _UniformKeys(_Sampler):
    @staticmethod
    def chances(Q: Array, K: Array) -> Array:
        return np.full((len(Q), len(K)), 1 / (len(Q) * len(K)))


class _KeysChoose(_Sampler):
    @staticmethod
    def chances(Q: Array, K: Array) -> Array:
        A: Array = special.softmax(Q @ K.T, axis=0) / len(K)
        return A


class _ByKernel(_Sampler):
    """Pairs by kappa_ij, all queries together: those of large scores more often."""

    @staticmethod
    def chances(Q: Array, K: Array) -> Array:
        A: Array = special.softmax(Q @ K.T)
        return A


class _ForgetsQueries(_Sampler):
    @staticmethod
    def centres(Q: Array, K: Array) -> Array:
        return K


class _WiderNormal(_Sampler):
    spread = 2**0.25


class _Repeated(ImportanceFeatures):
    """Neighbours are equal: not independent draws."""

    @classmethod
    def sample(
        cls, keys: npt.ArrayLike, queries: npt.ArrayLike, n_features: int, *, rng: Any
    ) -> Self:
        drawn = super().sample(keys, queries, n_features, rng=rng)
        twice = np.arange(n_features) // 2
        return cls(drawn.projections[twice], drawn.log_weights[twice])


class _UnitWeights(ImportanceFeatures):
    @classmethod
    def sample(
        cls, keys: npt.ArrayLike, queries: npt.ArrayLike, n_features: int, *, rng: Any
    ) -> Self:
        drawn = super().sample(keys, queries, n_features, rng=rng)
        return cls(drawn.projections, np.zeros(n_features))


def _forgets_normalizers(W: npt.ArrayLike, keys: npt.ArrayLike, queries: npt.ArrayLike) -> Array:
    w, K, Q = (np.asarray(x, np.float64) for x in (W, keys, queries))
    by_query, by_key = (
        special.logsumexp(w @ x.T - (x**2).sum(axis=-1) / 2, axis=1) for x in (Q, K)
    )
    weights: Array = math.log(len(Q)) - by_query - by_key
    return weights


def _swaps_tokens(W: npt.ArrayLike, keys: npt.ArrayLike, queries: npt.ArrayLike) -> Array:
    return importance.log_importance_weights(W, queries, keys)


def _mean_over_keys(W: npt.ArrayLike, keys: npt.ArrayLike, queries: npt.ArrayLike) -> Array:
    n = len(np.asarray(keys))
    weights: Array = importance.log_importance_weights(W, keys, queries) + math.log(n)
    return weights


def _for_uniform_keys(W: npt.ArrayLike, keys: npt.ArrayLike, queries: npt.ArrayLike) -> Array:
    """Those of w ~ q + k + N(0, I) with any query and any key."""
    w, K, Q = (np.asarray(x, np.float64) for x in (W, keys, queries))
    return -_log_mixture(w, Q, K, -math.log(len(Q) * len(K)))


claim = Claim(
    stem="importance_features",
    statement="For w ~ q_i + k_j + N(0, I), i uniform and j by the attention A_ij, with density p: "
    "p(w)/N(w; 0, I) = mean_i phi_w(q_i)/D_i sum_j phi_w(k_j), and the positive features times the "
    "root of N(w; 0, I)/p(w) have the mean exp(x.y) at all x and y. What they contribute to the "
    "A_ij adds up to n_q at every w: the relative variance of m of them is below n_q/(m A_ij).",
    kind=Kind.EXPECTATION,
    needs=("ImportanceFeatures", "log_importance_weights"),
    check=check,
    law=law,
    mutants=(
        mutant("forgets_weights", "no weights: features of N(0, I)",
               ImportanceFeatures=_ForgetsWeights),
        mutant("whole_weights", "the weight instead of its root in each feature",
               ImportanceFeatures=_WholeWeights),
        mutant("inverse_weights", "p(w)/N(w) instead of N(w)/p(w)",
               ImportanceFeatures=_InverseWeights),
        mutant("forgets_norm", "exp(w.x) without |x|^2/2", ImportanceFeatures=_ForgetsNorm),
        mutant("forgets_mean", "no 1/sqrt(m): the sum, not the mean",
               ImportanceFeatures=_ForgetsMean),
        mutant("adds_epsilon", "1e-4 is added to every feature", ImportanceFeatures=_AddsEpsilon),
        mutant("float32_features", "computed in float32", ImportanceFeatures=_Float32),
        mutant("uniform_keys", "keys are drawn uniformly", ImportanceFeatures=_UniformKeys),
        mutant("keys_choose", "queries by the attention of the keys",
               ImportanceFeatures=_KeysChoose),
        mutant("pairs_by_kernel", "queries of a large D are drawn more often",
               ImportanceFeatures=_ByKernel),
        mutant("forgets_queries", "w ~ k + N(0, I)", ImportanceFeatures=_ForgetsQueries),
        mutant("wider_normal", "standard deviation 2^(1/4)", ImportanceFeatures=_WiderNormal),
        mutant("repeated_projections", "each projection twice, posing as independent",
               ImportanceFeatures=_Repeated),
        mutant("unit_weights", "a sample has the weights 1", ImportanceFeatures=_UnitWeights),
        mutant("forgets_normalizers", "weights without 1/D_i",
               log_importance_weights=_forgets_normalizers),
        mutant("swaps_tokens", "keys for queries in the weights",
               log_importance_weights=_swaps_tokens),
        mutant("mean_over_keys", "weights with a mean over the keys too",
               log_importance_weights=_mean_over_keys),
        mutant("weights_for_uniform_keys", "weights of another mixture",
               log_importance_weights=_for_uniform_keys),
    ),
    assumptions="pairs are drawn at scale 1: queries and keys come times the root of the scale.",
    budget="quadrature: 2 exp(-2 pi^2/h^2), h = 1/2, and Gaussian tails beyond 9; the exponents' "
    "rounding gamma_(2d+8) |w|.(|x|+|y|) + 8u (...). Laws: alpha = 1e-9 each, 4 tests.",
    code="equivalence/features/importance.py",
    on_heads=True,
)  # fmt: skip
