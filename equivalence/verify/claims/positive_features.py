"""Positive random features are the exponential kernel in expectation, with an exact law."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from equivalence._arrays import Array
from equivalence.features import Features, PositiveFeatures
from equivalence.verify import oracle
from equivalence.verify.budgets import Budget, gamma
from equivalence.verify.cases import Case
from equivalence.verify.claim import Claim, Kind, Mutant
from equivalence.verify.compare import Comparison
from equivalence.verify.coupled import exponent_error, log_products, moment_along, near
from equivalence.verify.dual_case import scaled
from equivalence.verify.implementation import Implementation
from equivalence.verify.laws import (
    LawTest,
    distribution_test,
    mean_test,
    neighbours_test,
    variance_test,
)

_ALPHA = 1e-9
_N_DRAWS = 20000


def check(impl: Implementation, case: Case) -> Iterator[Comparison]:
    """One pair (q, k) at a time: the definition, and the moments by quadrature along q + k."""
    Q, K = scaled(case)
    for i, j in zip(case.rows, range(len(K)), strict=False):
        x, y = near(Q[i : i + 1], K[j : j + 1])
        yield _by_definition(impl, case, x, y)
        yield from _moments(impl, case, x, y)


def law(impl: Implementation, rng: np.random.Generator) -> Iterator[LawTest]:
    """log(phi_w(x) phi_w(y)) is N(-(|x|^2 + |y|^2)/2, |x+y|^2), independently for each feature."""
    along_an_axis = np.array([[[1.0, 0.0]], [[0.5, 0.0]]])
    anywhere = rng.standard_normal((2, 1, 6)) / math.sqrt(6)
    for x, y in (along_an_axis, anywhere):
        d = x.shape[1]
        phi = impl.PositiveFeatures.sample(d, _N_DRAWS, rng=rng)
        log_T = log_products(phi, x, y)[0]
        mean, s = -float((x**2 + y**2).sum()) / 2, float(((x + y) ** 2).sum())
        z = (log_T - mean) / math.sqrt(s)
        where = f"log phi_w(x) phi_w(y), d={d}, {_N_DRAWS} draws"
        yield mean_test(f"mean of {where}", z, 0.0, 1.0, alpha=_ALPHA, shift=0.1)
        yield variance_test(f"variance of {where}", z**2, len(z), alpha=_ALPHA, ratio=1.2)
        yield distribution_test(f"law of {where}", z, special.ndtr, alpha=_ALPHA, gap=0.05)
        yield neighbours_test(f"independence of neighbours in {where}", z, alpha=_ALPHA, ratio=1.3)


def _by_definition(impl: Implementation, case: Case, x: Array, y: Array) -> Comparison:
    """phi(x).phi(y) = (1/m) sum_r exp(w_r.x - |x|^2/2) exp(w_r.y - |y|^2/2)."""
    W = case.rng("W").standard_normal((6, x.shape[1])).astype(x.dtype)
    number, u = case.arithmetic, case.u
    (f, a), (g, b) = (impl.PositiveFeatures(W)(p) for p in (x, y))
    logs = number.vectors(np.array([[a[0], b[0]]]))[0]
    px, py = number.vectors(x)[0], number.vectors(y)[0]
    half = (number.dot(px, px) + number.dot(py, py)) / number.number(2.0)
    total = number.sum(
        number.exp(number.dot(w, px) + number.dot(w, py) - half - logs[0] - logs[1])
        for w in number.vectors(W)
    )
    error = np.expm1(exponent_error(W, x, y, u).max() + 2 * u * (abs(a) + abs(b)))
    product = (f * g).sum(axis=-1, keepdims=True)
    budget = Budget((error + gamma(len(W) + 2, u)) * product.astype(np.float64), _BECAUSE, u)
    return oracle.against(
        case.arithmetic,
        "phi(x).phi(y) is the mean over the projections",
        product,
        [[total / number.number(float(len(W)))]],
        budget,
    )


def _moments(impl: Implementation, case: Case, x: Array, y: Array) -> Iterator[Comparison]:
    """E T = exp(x.y) and E T^2 = exp(2 x.y + s): T depends on w through w.(x+y) alone."""
    number = case.arithmetic
    px, py = number.vectors(x)[0], number.vectors(y)[0]
    dot = number.dot(px, py)
    s = number.sum((a + b) * (a + b) for a, b in zip(px, py, strict=True))

    def log_T_at(W: Array) -> tuple[Array, Array]:
        log_T = log_products(impl.PositiveFeatures(W), x, y)[0]
        return log_T, exponent_error(W, x, y, case.u)

    for what, power, log_exact in (
        ("E T = exp(x.y)", 1, dot),
        ("E T^2 = exp(2 x.y + |x+y|^2)", 2, 2 * dot + s),
    ):
        yield moment_along(case, x, y, what, power, log_exact, log_T_at, _BECAUSE)


_BECAUSE = (
    "exponents err by gamma_(2d+8) |w|.(|x|+|y|) and 7u (max |w.x| + max |w.y| + |x|^2 + |y|^2), "
    "exp and log by 4 ulp"
)


class _Altered(PositiveFeatures):
    """Features with one thing wrong in their log scale: `half` times |x|^2, `power` of m."""

    half, power, eps = 0.5, 0.5, 0.0

    def __call__(self, x: npt.ArrayLike) -> Features:
        X = np.asarray(x)
        features, log_scale = super().__call__(X)
        norms = (X**2).sum(axis=-1)
        m = len(self.projections)
        changed = log_scale + (0.5 - self.half) * norms + (0.5 - self.power) * math.log(m)
        return Features(features + self.eps, changed.astype(X.dtype))


class _ForgetsNorm(_Altered):
    half = 0.0


class _WholeNorm(_Altered):
    half = 1.0


class _ForgetsMean(_Altered):
    power = 0.0


class _DividesByM(_Altered):
    power = 1.0


class _AddsEpsilon(_Altered):
    eps = 1e-4


class _Cosine(PositiveFeatures):
    def __call__(self, x: npt.ArrayLike) -> Features:
        X = np.asarray(x)
        phase = X @ self.projections.astype(X.dtype).T
        scale = (X**2).sum(axis=-1) / 2 - math.log(len(self.projections)) / 2
        return Features(abs(np.cos(phase)), scale.astype(X.dtype))


class _Float32(PositiveFeatures):
    def __call__(self, x: npt.ArrayLike) -> Features:
        X = np.asarray(x)
        features, log_scale = super().__call__(X.astype(np.float32))
        return Features(features.astype(X.dtype), log_scale.astype(X.dtype))


class _Uniform(PositiveFeatures):
    """Projections uniform with the right mean and variance."""

    @classmethod
    def sample(
        cls, dim: int, n_features: int, *, rng: np.random.Generator, **_: Any
    ) -> PositiveFeatures:
        return cls(rng.uniform(-math.sqrt(3), math.sqrt(3), (n_features, dim)))


class _FixedNorm(PositiveFeatures):
    """Projections of norm sqrt(d): right mean and covariance, no chi law."""

    @classmethod
    def sample(
        cls, dim: int, n_features: int, *, rng: np.random.Generator, **_: Any
    ) -> PositiveFeatures:
        W = rng.standard_normal((n_features, dim))
        return cls(math.sqrt(dim) * W / np.linalg.norm(W, axis=1, keepdims=True))


class _Mirrored(PositiveFeatures):
    """Half of the projections are the other half's negatives: not independent draws."""

    @classmethod
    def sample(
        cls, dim: int, n_features: int, *, rng: np.random.Generator, **_: Any
    ) -> PositiveFeatures:
        W = rng.standard_normal(((n_features + 1) // 2, dim))
        return cls(np.stack([W, -W], axis=1).reshape(-1, dim)[:n_features])


class _WiderNormal(PositiveFeatures):
    """Standard deviation 2^(1/4): the variance confused with its root."""

    @classmethod
    def sample(
        cls, dim: int, n_features: int, *, rng: np.random.Generator, **_: Any
    ) -> PositiveFeatures:
        return cls(2**0.25 * rng.standard_normal((n_features, dim)))


def _mutant(name: str, defect: str, features: Any) -> Mutant:
    return Mutant(name, defect, {"PositiveFeatures": features})


claim = Claim(
    stem="positive_features",
    statement="E phi_w(x) phi_w(y) = exp(x.y) for phi_w(x) = exp(w.x - |x|^2/2), w ~ N(0, I), with "
    "variance exp(2 x.y) (exp(|x+y|^2) - 1); log(phi_w(x) phi_w(y)) is exactly normal.",
    kind=Kind.EXPECTATION,
    needs=("PositiveFeatures",),
    check=check,
    law=law,
    mutants=(
        _mutant("forgets_norm", "exp(w.x) without |x|^2/2", _ForgetsNorm),
        _mutant("whole_norm", "|x|^2 instead of |x|^2/2", _WholeNorm),
        _mutant("forgets_mean", "no 1/sqrt(m): the sum, not the mean", _ForgetsMean),
        _mutant("divides_by_m", "1/m in each feature: divided twice", _DividesByM),
        _mutant("adds_epsilon", "1e-4 is added to every feature", _AddsEpsilon),
        _mutant("cosine", "|cos(w.x)| with the trigonometric scale", _Cosine),
        _mutant("float32_features", "computed in float32", _Float32),
        _mutant("uniform_projections", "uniform, not normal, projections", _Uniform),
        _mutant("fixed_norm", "projections of norm sqrt(d)", _FixedNorm),
        _mutant("mirrored_projections", "w and -w, posing as independent", _Mirrored),
        _mutant("wider_normal", "standard deviation 2^(1/4)", _WiderNormal),
    ),
    assumptions="w ~ N(0, I), independent; the sampler is tested apart from the map.",
    budget="quadrature: 2 exp(-2 pi^2/h^2), h = 1/2, and Gaussian tails beyond 9; the exponents' "
    "rounding gamma_(2d+8) |w|.(|x|+|y|) + 7u (...). Laws: alpha = 1e-9 each, 8 tests.",
    code="equivalence/features/positive.py",
    on_heads=True,
)
