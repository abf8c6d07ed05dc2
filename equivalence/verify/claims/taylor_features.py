"""Taylor features are the series of the exponential kernel, exactly, with a bound on the rest."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from equivalence._arrays import Array
from equivalence.features import Features, TaylorFeatures
from equivalence.verify import oracle
from equivalence.verify.budgets import Budget, exact, gamma
from equivalence.verify.cases import Case
from equivalence.verify.claim import Claim, Kind, Mutant
from equivalence.verify.compare import Comparison, compare
from equivalence.verify.coupled import near
from equivalence.verify.dual_case import scaled
from equivalence.verify.implementation import Implementation
from equivalence.verify.oracle import Arithmetic, Number

# Degree 6 of a point 2^200 long is 2^1200, beyond float64; of 2^25, 2^150, beyond float32.
_FAR_DEGREE = 6
_FAR = {"float64": 200, "float32": 25}


def check(impl: Implementation, case: Case) -> Iterator[Comparison]:
    """The dimension, the series, its distance from the kernel, and points whose powers overflow."""
    Q, K = near(*scaled(case))
    n = 4 if K.shape[-1] <= 5 else 2
    phi = impl.TaylorFeatures(n)
    at_queries, at_keys = phi(Q[case.rows]), phi(K)
    yield compare(
        "the dimension is C(d+n, n)",
        [at_keys.features.shape[-1]],
        [math.comb(K.shape[-1] + n, n)],
        exact("a count"),
    )
    number = case.arithmetic
    dots = number.dots(number.vectors(Q[case.rows]), number.vectors(K))
    series = _series(case, n, dots, at_queries, at_keys)
    yield series
    yield _remainder(impl, case, n, dots, series, at_queries, at_keys)
    yield _bound(impl, case, n, dots)
    yield _far_away(impl, case, K[:1, :2])


def _taylor(number: Arithmetic, t: Number, n: int) -> Number:
    """sum_{k<=n} t^k / k!, by Horner."""
    one = number.number(1.0)
    total = one
    for k in range(n, 0, -1):
        total = one + total * t / number.number(float(k))
    return total


def _series(
    case: Case, n: int, dots: list[list[Number]], at_x: Features, at_y: Features
) -> Comparison:
    """phi(x).phi(y) = sum_{k<=n} (x.y)^k / k!, both sides without the log scales."""
    number = case.arithmetic
    a, b = (number.vectors(f.log_scale[None])[0] for f in (at_x, at_y))
    want = [
        [_taylor(number, t, n) * number.exp(-s - r) for t, r in zip(row, b, strict=True)]
        for row, s in zip(dots, a, strict=True)
    ]
    return oracle.against(
        number,
        "phi(x).phi(y) = sum_{k<=n} (x.y)^k / k!",
        at_x.features @ at_y.features.T,
        want,
        _rounding(case.u, n, case.K.shape[-1], at_x, at_y),
    )


def _rounding(u: float, n: int, d: int, at_x: Features, at_y: Features) -> Budget:
    """A degree brings a coordinate of x/|x|, a factor |x|/sqrt(k), and a growth sqrt(k/run)."""
    m = at_x.features.shape[-1]
    terms = abs(at_x.features.astype(np.float64)) @ abs(at_y.features.astype(np.float64)).T
    logs = abs(at_x.log_scale.astype(np.float64))[:, None] + abs(at_y.log_scale)
    relative = gamma(m + 2 * n * (3 * d + 24), u) + gamma(n + 8, u) * logs
    return Budget(
        np.expm1(relative) * terms + (m + 2) * float(np.finfo(at_x.features.dtype).tiny),
        f"a degree brings 3d+24 roundings on each side, the sum m={m}, the log scales n+8 times "
        "their size",
        u,
    )


def _remainder(
    impl: Implementation,
    case: Case,
    n: int,
    dots: list[list[Number]],
    series: Comparison,
    at_x: Features,
    at_y: Features,
) -> Comparison:
    """|exp(x.y) - phi(x).phi(y)| is at most the bound, both without the log scales."""
    Q, K = near(*scaled(case))
    logs = at_x.log_scale.astype(np.float64)[:, None] + at_y.log_scale
    kernel = np.exp(np.array([[float(t) for t in row] for row in dots]) - logs)
    log_bound = impl.TaylorFeatures(n).log_error_bound(Q[case.rows], K).astype(np.float64)
    bound = np.exp(log_bound - logs)
    missing = kernel - series.got.astype(np.float64)
    size = _finite(abs(log_bound)) + abs(logs)
    u = case.u
    rounding = Budget(
        gamma(2, u) * (size + 8) * (kernel + bound), "exp of the log scales and of the bound", u
    )
    return compare(
        "exp(x.y) is no further away than the bound",
        missing,
        np.clip(missing, -bound, bound),
        series.budget + rounding,
    )


def _bound(impl: Implementation, case: Case, n: int, dots: list[list[Number]]) -> Comparison:
    """The bound is |t|^{n+1}/(n+1)! max(1, e^t), and not a wider one."""
    Q, K = near(*scaled(case))
    Q, number, u = Q[case.rows], case.arithmetic, case.u
    log_bound = impl.TaylorFeatures(n).log_error_bound(Q, K)
    top = number.number(float(math.factorial(n + 1)))
    want = [[abs(t) ** (n + 1) / top * number.exp(max(t, 0 * t, key=float)) for t in row]
            for row in dots]  # fmt: skip
    size = abs(Q.astype(np.float64)) @ abs(K.astype(np.float64)).T
    t = np.array([[float(t) for t in row] for row in dots])
    error = gamma(K.shape[-1] + 2, 2.0**-53) * size
    # The derivative of the bound in t, at the far end of the error.
    reach = abs(t) + error
    steep = (reach**n / math.factorial(n) + reach ** (n + 1) / math.factorial(n + 1)) * np.exp(
        np.maximum(t, 0) + error
    )
    got = np.exp(log_bound.astype(np.float64))
    logs = _finite(abs(log_bound.astype(np.float64)))
    size_of_terms = (n + 1) * abs(np.log(reach)) + math.lgamma(n + 2) + abs(t)
    rounding = gamma(8, 2.0**-53) * (size_of_terms + 1) + gamma(1, u) * (logs + 1)
    budget = Budget(
        error * steep + np.expm1(rounding) * got,
        "t errs by gamma_(d+2) |x|.|y|, the logarithm by u times its terms",
        u,
    )
    return oracle.against(number, "the bound is |t|^(n+1)/(n+1)! max(1, e^t)", got, want, budget)


def _finite(x: Array) -> Array:
    finite: Array = np.where(np.isfinite(x), x, 0)
    return finite


def _far_away(impl: Implementation, case: Case, x: Array) -> Comparison:
    """phi(x).phi(x) 2^{-2np} for x times 2^p: n = 6, where x^n overflows."""
    p, n, number = _FAR[x.dtype.name], _FAR_DEGREE, case.arithmetic
    phi = impl.TaylorFeatures(n)(x * x.dtype.type(2.0) ** p)
    product = (phi.features.astype(np.float64) ** 2).sum(axis=-1, keepdims=True)
    logs = 2 * (phi.log_scale.astype(np.float64) - n * p * math.log(2))
    with np.errstate(all="ignore"):
        got = product * np.exp(logs)
    (v,) = number.vectors(x)
    t = number.dot(v, v)
    want = number.number(0.0)
    for k in range(n, -1, -1):  # from the top: degree k is 4^{-p (n-k)} t^k / k!
        small = number.number(2.0 ** max(-2 * p * (n - k), -1074))
        want = want + t**k / number.number(float(math.factorial(k))) * small
    own = _rounding(case.u, n, x.shape[-1], phi, phi)
    slack = 4 * case.u * float(abs(phi.log_scale[0]) + n * p)
    budget = own.times(np.exp(logs)) + Budget(slack * got, "exp of what is left of the scales",
                                              case.u)  # fmt: skip
    return oracle.against(number, f"phi(x).phi(x) at x times 2^{p}", got, [[want]], budget)


class _Altered(TaylorFeatures, ABC):
    """Each monomial times the factor of its multi-index."""

    def __call__(self, x: npt.ArrayLike) -> Features:
        phi = super().__call__(x)
        factors = [self.factor(alpha) for alpha in _multi_indices(np.shape(x)[-1], self.degree)]
        dtype = phi.features.dtype
        return Features(phi.features * np.array(factors, dtype), phi.log_scale)

    @abstractmethod
    def factor(self, alpha: npt.NDArray[np.intp]) -> float:
        """What the feature x^alpha / sqrt(alpha!) is multiplied with."""


def _multi_indices(d: int, n: int) -> list[npt.NDArray[np.intp]]:
    from itertools import combinations_with_replacement as choose

    return [np.bincount(np.array(c, int), minlength=d) for k in range(n + 1)
            for c in choose(range(d), k)]  # fmt: skip


class _WithoutMultinomials(_Altered):
    def factor(self, alpha: npt.NDArray[np.intp]) -> float:
        return math.sqrt(math.prod(map(math.factorial, alpha)) / math.factorial(int(alpha.sum())))


class _WithoutRoots(_Altered):
    def factor(self, alpha: npt.NDArray[np.intp]) -> float:
        return 1 / math.sqrt(math.prod(map(math.factorial, alpha)))


class _DropsTopDegree(_Altered):
    def factor(self, alpha: npt.NDArray[np.intp]) -> float:
        return float(alpha.sum() < self.degree)


class _DropsMixed(_Altered):
    def factor(self, alpha: npt.NDArray[np.intp]) -> float:
        return float((alpha > 0).sum() <= 1)


class _TensorPowers(TaylorFeatures):
    """All d^k entries of each tensor power, equal ones included."""

    def __call__(self, x: npt.ArrayLike) -> Features:
        X = np.asarray(x)
        part, parts = np.ones((*X.shape[:-1], 1), X.dtype), []
        for k in range(self.degree + 1):
            parts.append(part / np.asarray(math.sqrt(math.factorial(k)), X.dtype))
            part = (part[..., None] * X[..., None, :]).reshape(*X.shape[:-1], -1)
        return Features(np.concatenate(parts, axis=-1), np.zeros(X.shape[:-1], X.dtype))


class _ForgetsLogScale(TaylorFeatures):
    def __call__(self, x: npt.ArrayLike) -> Features:
        features, log_scale = super().__call__(x)
        return Features(features, 0 * log_scale)


class _Overflows(TaylorFeatures):
    def __call__(self, x: npt.ArrayLike) -> Features:
        phi = super().__call__(x)
        return Features(phi.phi(), 0 * phi.log_scale)


class _Float32(TaylorFeatures):
    def __call__(self, x: npt.ArrayLike) -> Features:
        features, log_scale = super().__call__(x)
        return Features(features.astype(np.float32).astype(features.dtype), log_scale)


class _BoundForNegative(TaylorFeatures):
    def log_error_bound(self, x: npt.ArrayLike, y: npt.ArrayLike) -> Array:
        t = np.asarray(x) @ np.asarray(y).T
        bound: Array = super().log_error_bound(x, y) - np.maximum(t, 0)
        return bound


class _BoundOfTheLastTerm(TaylorFeatures):
    def log_error_bound(self, x: npt.ArrayLike, y: npt.ArrayLike) -> Array:
        bound: Array = super().log_error_bound(x, y) + np.asarray(
            math.log(self.degree + 1), np.asarray(x).dtype
        )
        return bound


def _mutant(name: str, defect: str, features: Any) -> Mutant:
    return Mutant(name, defect, {"TaylorFeatures": features})


claim = Claim(
    stem="taylor_features",
    statement="The C(d+n, n) features x^alpha/sqrt(alpha!), |alpha| <= n, have phi(x).phi(y) = "
    "sum_{k<=n} t^k/k!, t = x.y, and |exp(t) - phi(x).phi(y)| <= |t|^(n+1)/(n+1)! max(1, e^t).",
    kind=Kind.EXACT,
    needs=("TaylorFeatures",),
    check=check,
    mutants=(
        _mutant("without_multinomials", "every monomial of degree k has weight 1/sqrt(k!)",
                _WithoutMultinomials),
        _mutant("without_roots", "1/alpha! in each feature instead of its root", _WithoutRoots),
        _mutant("drops_top_degree", "degree n itself is left out", _DropsTopDegree),
        _mutant("drops_mixed", "only powers of single coordinates", _DropsMixed),
        _mutant("tensor_powers", "equal entries of the tensor powers are all kept", _TensorPowers),
        _mutant("forgets_log_scale", "the log scale is 0", _ForgetsLogScale),
        _mutant("overflows", "real features, without a log scale", _Overflows),
        _mutant("bound_for_negative", "the bound lacks max(1, e^t)", _BoundForNegative),
        _mutant("bound_of_the_last_term", "n! instead of (n+1)! in the bound", _BoundOfTheLastTerm),
        _mutant("float32_features", "features are rounded to float32", _Float32),
    ),
    assumptions="Points are finite. The series is exact; that it is near the kernel needs a degree "
    "above e |x.y|, which the bound tells.",
    budget="|phi^.phi^ - sum| <= gamma_(m + 2n(3d+24)) |phi(x)|.|phi(y)|, after the log scales, "
    "which add n+8 roundings of their size.",
    code="equivalence/features/taylor.py",
    on_heads=True,
)  # fmt: skip
