"""Generalised exponential features: the kernel in expectation, G^d e^{rho s}, and the best tilt."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from equivalence._arrays import Array
from equivalence.features import Features, GeneralizedFeatures
from equivalence.features.generalized import optimal_tilt
from equivalence.verify import oracle
from equivalence.verify.budgets import Budget, gamma
from equivalence.verify.cases import Case
from equivalence.verify.claim import Claim, Kind, Mutant
from equivalence.verify.compare import Comparison, compare
from equivalence.verify.coupled import near, orthogonal_c, partners
from equivalence.verify.dual_case import scaled
from equivalence.verify.implementation import Implementation
from equivalence.verify.oracle import Arithmetic, Number
from equivalence.verify.quadrature import discretisation_error, gaussian_nodes

_U = 2.0**-53
# On the tilted measure the integrand does not depend on the norm beside x + y: two norms show it.
_NORMS = 2


def check(impl: Implementation, case: Case) -> Iterator[Comparison]:
    """The best tilt, then the map's moments by quadrature and the variances, a pair at a time."""
    Q, K = scaled(case)
    yield from _fitted(impl, case, Q, K)
    for i, j in zip(case.rows, range(min(len(K), 2)), strict=False):
        x, y = near(Q[i : i + 1], K[j : j + 1])
        number = case.arithmetic
        p, q = number.vectors(x)[0], number.vectors(y)[0]
        s = number.sum((a + b) * (a + b) for a, b in zip(p, q, strict=True))
        A = impl.optimal_tilt(float(s), x.shape[1])
        moments = _Moments(number, A, x.shape[1], s)
        dot = number.dot(p, q)
        yield _by_quadrature(impl, case, x, y, A, (1, 0), dot, moments.one)
        yield _by_quadrature(impl, case, x, y, A, (2, 0), 2 * dot + moments.rho * s, moments.G_d)
        yield _by_quadrature(impl, case, x, y, A, (1, 1), 2 * dot - s, moments.G_d)
        yield from _variances(impl, case, x, y, A, moments)


class _Moments:
    """rho, G^d and the second moments, in the case's arithmetic."""

    def __init__(self, number: Arithmetic, A: float, d: int, s: Number) -> None:
        self.one, self.s, self._number = number.number(1.0), s, number
        self.rho = self.one / (self.one - number.number(8.0) * number.number(A))
        G = (self.one + self.rho) / (number.sqrt(self.rho) * number.number(2.0))
        self.G_d = G**d

    def scaled_excess(self, antithetic: bool) -> Number:
        """e^{-s} (E T^2 - 1)."""
        exp, s = self._number.exp, self.s
        square = self.G_d * exp(self.rho * s - s)
        if antithetic:
            square = (square + self.G_d * exp(-s - s)) / self._number.number(2.0)
        return square - exp(-s)


def _fitted(impl: Implementation, case: Case, Q: Array, K: Array) -> Iterator[Comparison]:
    """d (1 - rho) = 2 s rho (1 + rho) sigma, s from the definition as a mean over all pairs.

    sigma = 1, or 1/(1 + exp(-(1+rho) s)) of antithetic features; sampled ones know what they are.
    """
    d = K.shape[1]
    pairs = Q.astype(np.float64)[:, None] + K.astype(np.float64)
    s = float((pairs**2).sum(axis=-1).mean())
    size = float(((abs(Q.astype(np.float64))[:, None] + abs(K)) ** 2).sum(axis=-1).mean())
    s_error = gamma(2 * len(Q) + 2 * len(K) + 2 * d + 8, _U) * size
    for antithetic in (False, True):
        phi = impl.GeneralizedFeatures.sample(d, 2, rng=case.rng("fit"), antithetic=antithetic).fit(
            K, Q
        )
        rho = 1 / (1 - 8 * phi.A)
        sigma = 1 / (1 + math.exp(-(1 + rho) * s)) if antithetic else 1.0
        pull = 2 * rho * (1 + rho) * sigma
        bound = s_error * pull * (1 + s) + 16 * _U * (d + (1 + s) * s * pull)
        kind = "antithetic" if antithetic else "independent"
        yield compare(
            f"d (1 - rho) = 2 s rho (1 + rho) sigma at the fitted tilt, {kind}",
            [d * (1 - rho)],
            [s * pull],
            Budget(np.array([bound]), "s errs by gamma of its terms, rho and sigma by 8u", _U),
        )


def _by_quadrature(
    impl: Implementation,
    case: Case,
    x: Array,
    y: Array,
    A: float,
    powers: tuple[int, int],
    log_exact: Number,
    factor: Number,
) -> Comparison:
    """E T(w)^a T(-w)^b through the map, both sides times exp(-shift).

    With p = a + b the tilts add up to exp(2pA|w|^2): at w = u/sqrt(beta), beta = 1-4pA, they cancel
    what the density of u lacks. Beside u_1 along x + y stays only a norm, chi_{d-1} distributed.
    """
    d, p, u = x.shape[1], sum(powers), case.u
    z = (x + y)[0].astype(np.float64)
    length = float(np.linalg.norm(z))
    beta, root = 1 - 4 * p * A, math.sqrt(1 - 4 * A)
    slope = (powers[0] - powers[1]) * root / math.sqrt(beta) * length
    along, weights = gaussian_nodes(slope)
    beside, shares = _chi_nodes(d)
    t, r = np.repeat(along, len(beside)), np.tile(beside, len(along))
    weights = np.repeat(weights, len(beside)) * np.tile(shares, len(along))
    W = (np.outer(t, z / length) + np.outer(r, _perpendicular(z))) / math.sqrt(beta)
    logs = [_log_products(impl.GeneralizedFeatures(S, A), x, y) for S in _mirrored(W, x.dtype)]
    norm = t**2 + r**2
    tilt = norm * (1 - 1 / beta) / 2 - d / 2 * math.log(beta)
    shift = float(log_exact)
    exponent = powers[0] * logs[0] + (powers[1] * logs[1] if powers[1] else 0) + tilt - shift
    # What it is exactly: the budget follows the theory, not the map.
    norms = float((x.astype(np.float64) ** 2 + y.astype(np.float64) ** 2).sum())
    constant = d / 2 * p * math.log1p(-4 * A) - p * norms / 2 - shift
    ideal = slope * t + constant - d / 2 * math.log(beta)
    terms = weights * np.exp(ideal)
    size = (
        (abs(W) @ (abs(x) + abs(y))[0].astype(np.float64)) * root
        + 2 * abs(A) * norm / beta + norms + d * abs(math.log1p(-4 * A)) + math.log(len(W)) + 1
    )  # fmt: skip
    # The row's largest exponent enters twice and cancels, but for five roundings a point, two of
    # them of log2 e, where exp2 stands for exp; as many more are in each term.
    own = gamma(2 * d + 14, u) * size + 10 * u * size.max() + 64 * u
    ours = gamma(d + 12, _U) * (norm + abs(slope * t) + abs(constant) + abs(shift) + 1)
    lost = np.isneginf(exponent)
    error = np.where(lost, 1.0, np.expm1(p * own + ours))
    budget = Budget(
        np.full((1, 1), (terms * error).sum() + gamma(len(W) + 8, _U) * terms.sum()
                + 2 * discretisation_error() * terms.sum()),
        "exponents err by gamma_(2d+14) of their terms and 10u of the largest; "
        "trapezoidal rule, 2 exp(-2 pi^2/h^2), and tails beyond 9 standard deviations; norms "
        "beside x + y exactly",
        u,
    )  # fmt: skip
    number = case.arithmetic
    want = [[number.exp(log_exact - number.number(shift)) * factor]]
    got = np.full((1, 1), (weights * np.exp(exponent)).sum())
    what = {(1, 0): "E T = exp(x.y)", (2, 0): "E T^2 = exp(2 x.y + rho s) G^d"}.get(
        powers, "E T(w) T(-w) = exp(2 x.y - s) G^d"
    )
    return oracle.against(number, f"{what} by quadrature", got, want, budget)


def _mirrored(W: Array, dtype: npt.DTypeLike) -> tuple[Array, Array]:
    return W.astype(dtype), -W.astype(dtype)


def _chi_nodes(d: int) -> tuple[Array, Array]:
    """Norms r and weights of the chi_{d-1} law: Gauss-Laguerre in r^2/2."""
    if d == 1:
        return np.zeros(1), np.ones(1)
    v, w = special.roots_genlaguerre(_NORMS, (d - 3) / 2)
    return np.sqrt(2 * v), w / w.sum()


def _perpendicular(z: Array) -> Array:
    """A unit vector at a right angle to z, or 0 in one dimension."""
    e = np.zeros(len(z))
    if len(z) > 1:
        i = int(np.argmin(abs(z)))
        e[i] = 1
        e -= z[i] * z / (z @ z)
        e /= np.linalg.norm(e)
    return e


def _log_products(phi: GeneralizedFeatures, x: Array, y: Array) -> Array:
    (f, a), (g, b) = ([part.astype(np.float64) for part in phi(p)] for p in (x, y))
    with np.errstate(divide="ignore"):
        log_T: Array = (np.log(f) + np.log(g) + (a + b)[:, None] + math.log(f.shape[-1]))[0]
    return log_T


def _variances(
    impl: Implementation, case: Case, x: Array, y: Array, A: float, moments: _Moments
) -> Iterator[Comparison]:
    """n e^{-s} times the relative variance: E T^2 - 1, plus c of orthogonal projections."""
    number, d, s, u = case.arithmetic, x.shape[1], moments.s, case.u
    for coupling, antithetic, n in (("iid", False, 3), ("iid", True, 1), ("orthogonal", False, d)):
        log_variance = impl.GeneralizedFeatures.log_relative_variance(
            x, y, 2 * n if antithetic else n, A=A, coupling=coupling, antithetic=antithetic
        ).astype(np.float64)
        t, p = float(s), partners(n, d) if coupling == "orthogonal" else 0.0
        own = moments.scaled_excess(antithetic)
        want = own + number.number(p) * orthogonal_c(number, s, d, 1) if p else own
        got = n * np.exp(log_variance - t)
        d_log_G = abs(float(moments.G_d) - 1) + d * abs(A)
        # Terms beside one another: G^d e^{rho s}, G^d e^{-s} and 1, all times e^{-s}.
        terms = abs(float(own)) + (p + 1) * min(1.0, t + d_log_G)
        subtracted = gamma(2 * d + 8, _U) * (abs(float(own)) + 1)
        # The Poisson sums of c: probabilities are exponentials of terms up to k log k.
        k = t + 12 * math.sqrt(t) + 60
        poisson = p * gamma(6, _U) * k * (math.log(k) + 1)
        size = np.nan_to_num(abs(log_variance), posinf=0.0) + t + math.log(n) + 1
        budget = Budget(
            got * np.expm1(4 * u * size)
            + gamma(d + 32, _U) * (t + 4) * terms
            + poisson
            + subtracted,
            "s errs by gamma_(d+2), its exponentials by s times that, the logarithm by u times its "
            "size, each Poisson probability of c by 6 k log k u; G^d e^{(rho-1)s} - e^{-s} by "
            "gamma_(2d+8) of both where it is subtracted in floats",
            u,
        )
        what = f"{coupling}, antithetic" if antithetic else coupling
        yield oracle.against(number, f"the variance is the closed form: {what}", got, [[want]],
                             budget)  # fmt: skip


class _Altered(GeneralizedFeatures):
    """One thing wrong in the constant or the tilt: (1-4A)^power, `root`^2 = 1 - four A."""

    power, four, norm = 0.25, 4.0, 0.5

    def __call__(self, x: npt.ArrayLike) -> Features:
        X = np.asarray(x)
        W, A, d = self.projections.astype(np.float64), self.A, X.shape[-1]
        x64 = X.astype(np.float64)
        exponent = math.sqrt(1 - self.four * A) * x64 @ W.T + A * (W**2).sum(axis=1)
        largest = exponent.max(axis=-1)
        log_scale = largest - self.norm * (x64**2).sum(axis=-1) - math.log(len(W)) / 2
        log_scale += self.power * d * math.log1p(-4 * A)
        features = np.exp(exponent - largest[:, None])
        return Features(features.astype(X.dtype), log_scale.astype(X.dtype))


class _ConstantSquared(_Altered):
    power = 0.5


class _ForgetsConstant(_Altered):
    power = 0.0


class _RootOfEight(_Altered):
    four = 8.0


class _ForgetsRoot(_Altered):
    four = 0.0


class _WholeNorm(_Altered):
    norm = 1.0


class _ForgetsTilt(GeneralizedFeatures):
    def __init__(self, projections: npt.ArrayLike, A: float = 0.0) -> None:
        super().__init__(projections, 0.0)


class _Float32(GeneralizedFeatures):
    def __call__(self, x: npt.ArrayLike) -> Features:
        X = np.asarray(x)
        features, log_scale = super().__call__(X.astype(np.float32))
        return Features(features.astype(X.dtype), log_scale.astype(X.dtype))


class _PlainVariance(GeneralizedFeatures):
    @staticmethod
    def log_relative_variance(*args: Any, A: float = 0.0, **options: Any) -> Array:
        return GeneralizedFeatures.log_relative_variance(*args, **options)


class _PairsAreIndependent(GeneralizedFeatures):
    @staticmethod
    def log_relative_variance(*args: Any, antithetic: bool = False, **options: Any) -> Array:
        return GeneralizedFeatures.log_relative_variance(*args, **options)


class _FitsWithoutMeans(GeneralizedFeatures):
    def fit(self, keys: npt.ArrayLike, queries: npt.ArrayLike | None = None) -> Any:
        parts = [np.asarray(keys), np.asarray(queries)]
        s = sum(float((part**2).sum(axis=1).mean()) for part in parts)
        self.A = optimal_tilt(s, self.projections.shape[1], antithetic=self._is_antithetic)
        return self


class _FitsPairsAsIndependent(GeneralizedFeatures):
    _is_antithetic = False


def _best_of_radius(s: float, dim: int, *, antithetic: bool = False) -> float:
    """The tilt that forgets that G has a slope of its own: rho = d/(d + 2s)."""
    return -s / (4 * dim)


def _mutant(name: str, defect: str, features: Any) -> Mutant:
    return Mutant(name, defect, {"GeneralizedFeatures": features})


claim = Claim(
    stem="generalized_exponential_features",
    statement="E f(x) f(y) = exp(x.y) for f(x) = (1-4A)^(d/4) exp(A|w|^2 + sqrt(1-4A) w.x - "
    "|x|^2/2), with relative second moment G^d e^(rho s), rho = 1/(1-8A), G = (1+rho)/(2 sqrt rho),"
    " of w and -w together G^d (e^(rho s) + e^-s)/2; both have a best A, which `fit` finds.",
    kind=Kind.EXPECTATION,
    needs=("GeneralizedFeatures",),
    check=check,
    mutants=(
        _mutant("constant_squared", "(1-4A)^(d/2) in each feature", _ConstantSquared),
        _mutant("forgets_constant", "no (1-4A)^(d/4)", _ForgetsConstant),
        _mutant("root_of_eight", "sqrt(1-8A) w.x", _RootOfEight),
        _mutant("forgets_root", "w.x without sqrt(1-4A)", _ForgetsRoot),
        _mutant("whole_norm", "|x|^2 instead of |x|^2/2", _WholeNorm),
        _mutant("forgets_tilt", "A is ignored: right mean, larger variance", _ForgetsTilt),
        _mutant("plain_variance", "the variance of A = 0", _PlainVariance),
        _mutant("pairs_are_independent", "antithetic features with the variance of independent "
                "ones", _PairsAreIndependent),
        _mutant("fits_without_means", "s lacks 2 mean(x).mean(y)", _FitsWithoutMeans),
        _mutant("fits_pairs_as_independent", "antithetic features get the tilt of independent "
                "ones", _FitsPairsAsIndependent),
        _mutant("float32_features", "computed in float32", _Float32),
    ),
    assumptions="w ~ N(0, I), A < 1/8; the sampler is tested apart from the map.",
    budget="quadrature: 2 exp(-2 pi^2/h^2), h = 1/2, and Gaussian tails beyond 9; exponents err by "
    "gamma_(2d+14) (sqrt(1-4A) |w|.(|x|+|y|) + 2|A||w|^2 + |x|^2 + |y|^2 + ...).",
    code="equivalence/features/generalized.py",
    on_heads=True,
)  # fmt: skip
