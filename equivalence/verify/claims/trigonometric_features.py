"""Trigonometric random features: the kernel in expectation, relative variance cosh(|x-y|^2) - 1."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from equivalence._arrays import Array
from equivalence.features import Features, TrigonometricFeatures
from equivalence.features.variance import log_relative_variance
from equivalence.verify import coupled, oracle
from equivalence.verify.budgets import Budget, gamma
from equivalence.verify.cases import Case
from equivalence.verify.claim import Claim, Kind, Mutant
from equivalence.verify.compare import Comparison
from equivalence.verify.implementation import Implementation
from equivalence.verify.laws import LawTest, distribution_test, neighbours_test, variance_test

_N_DRAWS = 20000
_REACH = 9.0


def check(impl: Implementation, case: Case) -> Iterator[Comparison]:
    """The definition, the moments by quadrature along x - y, and the closed form."""
    for x, y, delta in coupled.pairs(case, -1):
        yield _by_definition(impl, case, x, y)
        yield from _moments(impl, case, x, y, delta)
        yield _closed_form(impl, case, x, y, delta)


def law(impl: Implementation, rng: np.random.Generator) -> Iterator[LawTest]:
    """Projections are N(0, I), independent of one another."""
    W = impl.TrigonometricFeatures.sample(2, 2 * _N_DRAWS, rng=rng).projections
    along = W @ np.array([0.6, 0.8])
    where, alpha = f"projections along one direction, d=2, {_N_DRAWS} draws", coupled.ALPHA
    yield distribution_test(f"law of {where}", along, special.ndtr, alpha=alpha, gap=0.05)
    yield variance_test(f"variance of {where}", along**2, len(along), alpha=alpha, ratio=1.2)
    yield neighbours_test(f"independence of neighbours: {where}", along, alpha=alpha, ratio=1.3)


def _terms(phi: TrigonometricFeatures, x: Array, y: Array) -> tuple[Array, float]:
    """cos(w.(x-y)) of each projection as the features give it: times m e^{-(|x|^2+|y|^2)/2}.

    And the size of the exponents that this takes, by which the scale errs.
    """
    (f, a), (g, b) = ([part.astype(np.float64) for part in phi(p)] for p in (x, y))
    m = f.shape[-1] // 2
    half = float((x.astype(np.float64) ** 2 + y.astype(np.float64) ** 2).sum()) / 2
    left = a + b + math.log(m) - half
    product = (f * g)[0]
    return (product[:m] + product[m:]) * np.exp(left), half + math.log(m) + 1


def _term_errors(W: Array, x: Array, y: Array, size: float, u: float) -> Array:
    """The error of each cosine: its two phases, w as rounded, four functions; and the scale's."""
    W, x, y = (a.astype(np.float64) for a in (W, x, y))
    phases = abs(W) @ (abs(x) + abs(y))[0]
    scale = math.expm1(gamma(x.shape[1] + 8, u) * size)
    error: Array = gamma(x.shape[1] + 4, u) * phases + 16 * u + scale
    return error


def _by_definition(impl: Implementation, case: Case, x: Array, y: Array) -> Comparison:
    """phi(x).phi(y) e^{-(|x|^2+|y|^2)/2} = (1/m) sum_r cos(w_r.(x-y))."""
    number = case.arithmetic
    W = case.rng("W").standard_normal((5, x.shape[1])).astype(x.dtype)
    terms, size = _terms(impl.TrigonometricFeatures(W), x, y)
    p, q = number.vectors(x)[0], number.vectors(y)[0]
    waves = [number.cos(number.dot(w, p) - number.dot(w, q)) for w in number.vectors(W)]
    error = _term_errors(W, x, y, size, case.u)
    return oracle.against(
        number,
        "phi(x).phi(y) is the mean of cos(w.(x-y)), times e^{(|x|^2+|y|^2)/2}",
        np.full((1, 1), terms.mean()),
        [[number.sum(waves) / number.number(float(len(W)))]],
        Budget(np.full((1, 1), error.mean() + 4 * case.u), _BECAUSE, case.u),
    )


def _moments(
    impl: Implementation, case: Case, x: Array, y: Array, delta: oracle.Number
) -> Iterator[Comparison]:
    """E cos(w.(x-y)) = e^{-delta/2}, E cos^2 = (1 + e^{-2 delta})/2, by the trapezoidal rule."""
    number, u = case.arithmetic, case.u
    z = (x - y)[0].astype(np.float64)
    length = float(np.linalg.norm(z)) or 1.0
    # A wave of frequency a meets its first alias at 2 pi/h - a: 12 away, for a = 2 |x-y|.
    step = 2.0 ** math.floor(math.log2(2 * math.pi / (2 * length + 12)))
    nodes = step * np.arange(-math.ceil(_REACH / step), math.ceil(_REACH / step) + 1)
    weights = step * np.exp(-(nodes**2) / 2) / math.sqrt(2 * math.pi)
    left_out = 4 * math.exp(-(12.0**2) / 2) + math.erfc((_REACH - step) / math.sqrt(2))
    W = (nodes[:, None] * (z / length if z.any() else np.eye(1, len(z))[0])).astype(x.dtype)
    terms, size = _terms(impl.TrigonometricFeatures(W), x, y)
    error = _term_errors(W, x, y, size, u)
    one, two = number.number(1.0), number.number(2.0)
    for power, what, want in (
        (1, "E T = exp(x.y)", number.exp(-delta / two)),
        (2, "E T^2 = exp(2 x.y) cosh delta", (one + number.exp(-delta - delta)) / two),
    ):
        bound = power * float((weights * error).sum()) * 1.5 + gamma(len(nodes) + 8, u) + left_out
        yield oracle.against(
            number,
            f"{what}, by quadrature along x - y",
            np.full((1, 1), (weights * terms**power).sum()),
            [[want]],
            Budget(np.full((1, 1), bound), _BECAUSE + "; trapezoidal rule, aliases 12 away", u),
        )


_BECAUSE = (
    "phases err by gamma_(d+4) |w|.(|x|+|y|), cos and sin by 4 ulp, the log scales by "
    "gamma_(d+8) (|x|^2 + |y|^2 + log m)"
)


def _closed_form(
    impl: Implementation, case: Case, x: Array, y: Array, delta: oracle.Number
) -> Comparison:
    number, d, t = case.arithmetic, x.shape[-1], float(delta)
    sizes = (1, 5)
    logs = [impl.log_relative_variance(x, y, n, trigonometric=True) for n in sizes]
    budgets = [
        coupled.variance_budget(log, t, n, d, 0.0, case.u)
        for log, n in zip(logs, sizes, strict=True)
    ]
    want = coupled.exact_variance(number, delta, 0.0, number.number(0.0), pair=True)
    return oracle.against(
        number,
        "m frequencies have the relative variance (cosh delta - 1)/m",
        np.concatenate(
            [n * np.exp(log.astype(np.float64) - t) for log, n in zip(logs, sizes, strict=True)]
        ),
        [[want]] * len(sizes),
        Budget(np.concatenate([b.bound for b in budgets]), budgets[0].because, case.u),
    )


class _Altered(TrigonometricFeatures):
    """Features with one thing wrong in their log scale: `half` times |x|^2, `factor` of phi."""

    half, factor = 0.5, 1.0

    def __call__(self, x: npt.ArrayLike) -> Features:
        X = np.asarray(x)
        features, log_scale = super().__call__(X)
        changed = log_scale + (self.half - 0.5) * (X**2).sum(axis=-1) + math.log(self.factor)
        return Features(features, changed.astype(X.dtype))


class _ForgetsNorm(_Altered):
    half = 0.0


class _NormBelow(_Altered):
    half = -0.5


class _TwiceTheMean(_Altered):
    factor = math.sqrt(2)


class _CosinesOnly(TrigonometricFeatures):
    """sqrt(2) cos(w.x) twice: the sine is what makes the product depend on x - y alone."""

    def __call__(self, x: npt.ArrayLike) -> Features:
        features, log_scale = super().__call__(x)
        cosines = features[..., : features.shape[-1] // 2]
        return Features(np.concatenate([cosines, cosines], axis=-1), log_scale)


class _Turns(TrigonometricFeatures):
    """w.x times 2 pi, as if frequencies counted turns."""

    def __call__(self, x: npt.ArrayLike) -> Features:
        return Features(
            TrigonometricFeatures(2 * math.pi * self.projections)(x).features,
            super().__call__(x).log_scale,
        )


class _Float32(TrigonometricFeatures):
    def __call__(self, x: npt.ArrayLike) -> Features:
        X = np.asarray(x)
        features, log_scale = super().__call__(X.astype(np.float32))
        return Features(features.astype(X.dtype), log_scale.astype(X.dtype))


class _TwiceTheWidth(TrigonometricFeatures):
    """Projections of variance 2, those of exp(-|x-y|^2)."""

    @classmethod
    def sample(
        cls, dim: int, n_features: int, *, rng: np.random.Generator, **_: Any
    ) -> TrigonometricFeatures:
        return cls(math.sqrt(2) * rng.standard_normal((n_features // 2, dim)))


class _Cauchy(TrigonometricFeatures):
    """Projections of the Laplacian kernel."""

    @classmethod
    def sample(
        cls, dim: int, n_features: int, *, rng: np.random.Generator, **_: Any
    ) -> TrigonometricFeatures:
        return cls(rng.standard_cauchy((n_features // 2, dim)))


def _as_positive(x: Array, y: Array, n_terms: int, **_: Any) -> Array:
    return log_relative_variance(x, y, n_terms)


def _of_the_sum(x: Array, y: Array, n_terms: int, **kind: Any) -> Array:
    return log_relative_variance(x, -y, n_terms, **kind)


def _per_feature(x: Array, y: Array, n_terms: int, **kind: Any) -> Array:
    return log_relative_variance(x, y, 2 * n_terms, **kind)


def _float32_variance(x: Array, y: Array, n_terms: int, **kind: Any) -> Array:
    single = log_relative_variance(x.astype(np.float32), y.astype(np.float32), n_terms, **kind)
    return single.astype(x.dtype)


def _map(name: str, defect: str, features: Any) -> Mutant:
    return Mutant(name, defect, {"TrigonometricFeatures": features})


def _variance(name: str, defect: str, formula: Any) -> Mutant:
    return Mutant(name, defect, {"log_relative_variance": formula})


claim = Claim(
    stem="trigonometric_features",
    statement="e^{|x|^2/2} [cos w.x, sin w.x], w ~ N(0, I), has mean exp(x.y) and relative "
    "variance cosh(|x-y|^2) - 1 a frequency. The estimate is signed: D(q) can be zero or negative.",
    kind=Kind.EXPECTATION,
    needs=("TrigonometricFeatures", "log_relative_variance"),
    check=check,
    law=law,
    mutants=(
        _map("forgets_norm", "no e^{|x|^2/2}: the Gaussian kernel", _ForgetsNorm),
        _map("norm_below", "e^{-|x|^2/2}, as positive features have it", _NormBelow),
        _map("twice_the_mean", "sqrt(2/m), as for cosines with a random shift", _TwiceTheMean),
        _map("cosines_only", "cosines without sines", _CosinesOnly),
        _map("turns", "phases 2 pi w.x", _Turns),
        _map("float32_features", "computed in float32", _Float32),
        _map("twice_the_width", "projections of variance 2", _TwiceTheWidth),
        _map("cauchy", "Cauchy projections", _Cauchy),
        _variance("as_positive", "e^s - 1, that of positive features", _as_positive),
        _variance("of_the_sum", "|x+y|^2 for |x-y|^2", _of_the_sum),
        _variance("per_feature", "a cosine and a sine count as two draws", _per_feature),
        _variance("float32_variance", "the variance in float32", _float32_variance),
    ),
    assumptions="w ~ N(0, I), independent; n features are n/2 frequencies.",
    budget="phases gamma_(d+4) |w|.(|x|+|y|), cos and sin 4 ulp; the trapezoidal rule's aliases "
    "e^{-72} and Gaussian tails beyond 9. Laws: alpha = 1e-9 each, 3 tests.",
    code="equivalence/features/trigonometric.py",
    on_heads=True,
)
