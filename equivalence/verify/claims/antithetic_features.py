"""Antithetic pairs of projections, w and -w: relative variance cosh(s) - 1 a pair."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from equivalence._arrays import Array
from equivalence.features import Features, PositiveFeatures
from equivalence.features.couplings import sample_projections
from equivalence.features.variance import log_relative_variance
from equivalence.verify import coupled, oracle
from equivalence.verify.budgets import Budget, exact, gamma
from equivalence.verify.cases import Case
from equivalence.verify.claim import Claim, Kind, Mutant
from equivalence.verify.compare import Comparison, compare
from equivalence.verify.implementation import Implementation
from equivalence.verify.laws import LawTest, distribution_test, neighbours_test, variance_test
from equivalence.verify.quadrature import discretisation_error, gaussian_nodes

_N_DRAWS = 20000


def check(impl: Implementation, case: Case) -> Iterator[Comparison]:
    """The mirror, the moments of a pair by quadrature along x + y, and the closed form."""
    d = case.Q.shape[-1]
    W = impl.sample_projections(6, d, rng=case.rng("W"), antithetic=True)
    yield compare("the second half are the negatives", W[3:], -W[:3], exact("a sign is exact"))
    for x, y, s in coupled.pairs(case, 1):
        yield from _moments(impl, case, x, y, s)
        yield from _closed_form(impl, case, x, y, s)


def law(impl: Implementation, rng: np.random.Generator) -> Iterator[LawTest]:
    """One projection of each pair is N(0, I), and pairs are independent."""
    W = impl.sample_projections(2 * _N_DRAWS, 2, rng=rng, antithetic=True)[:_N_DRAWS]
    along = W @ np.array([0.6, 0.8])
    where = f"one projection of each pair, d=2, {_N_DRAWS} pairs"
    alpha = coupled.ALPHA
    yield distribution_test(f"law of {where}", along, special.ndtr, alpha=alpha, gap=0.05)
    yield variance_test(f"variance of {where}", along**2, len(along), alpha=alpha, ratio=1.2)
    yield neighbours_test(f"independence of neighbours: {where}", along, alpha=alpha, ratio=1.3)


def _moments(
    impl: Implementation, case: Case, x: Array, y: Array, s: oracle.Number
) -> Iterator[Comparison]:
    """E of a pair's term is 1, of its square cosh s, relative to exp(x.y); the latter times e^-s.

    Nodes on both sides of zero, out to where e^{2 w.z} has its mass.
    """
    number, u = case.arithmetic, case.u
    z = (x + y)[0].astype(np.float64)
    length = float(np.linalg.norm(z))
    reach = gaussian_nodes(2 * length)[0][-1]
    nodes = np.arange(-reach, reach + 0.5, 0.5)
    weights = np.exp(-(nodes**2) / 2) / (2 * math.sqrt(2 * math.pi))
    W = (nodes[:, None] * (z / length)).astype(x.dtype)
    at_nodes = impl.PositiveFeatures(np.concatenate([W, -W]))
    dot = float((x.astype(np.float64) @ y.astype(np.float64).T).item())
    relative = coupled.log_products(at_nodes, x, y)[0].reshape(2, -1) - dot
    # log T = w.z - s/2 in plain float64, to weigh the errors with; where T underflowed it is lost.
    plain = np.stack([nodes, -nodes]) * length - length**2 / 2
    rounded = coupled.exponent_error(np.concatenate([W, -W]), x, y, u).reshape(2, -1)
    rounded = rounded + 2 * u * (abs(plain) + abs(dot) + length**2)
    for power, what in ((1, "E (T + T')/2 = 1"), (2, "E (T + T')^2/4 = cosh s, times e^-s")):
        scale = math.exp(-(power - 1) * length**2 / 2)
        pair = scale * np.exp(relative).mean(axis=0)
        got = (weights * pair**power).sum()
        error = np.where(np.isneginf(relative), 1.0, np.expm1(power * rounded)).max(axis=0)
        terms = weights * (scale * np.exp(plain).mean(axis=0)) ** power
        bound = (terms * error).sum() + gamma(len(nodes) + 8, u) * terms.sum()
        one = number.number(1.0)
        want = one if power == 1 else (one + number.exp(-s - s)) / number.number(2.0)
        yield oracle.against(
            number,
            f"{what}, by quadrature along x + y",
            np.full((1, 1), got),
            [[want]],
            Budget(np.full((1, 1), bound + 4 * discretisation_error()), _BECAUSE, u),
        )


_BECAUSE = (
    "exponents err by gamma_(2d+8) |w|.(|x|+|y|) and 7u (max |w.x| + max |w.y| + |x|^2 + |y|^2); "
    "trapezoidal rule, 2 exp(-2 pi^2/h^2) and tails beyond 9 standard deviations, each exponential"
)


def _closed_form(
    impl: Implementation, case: Case, x: Array, y: Array, s: oracle.Number
) -> Iterator[Comparison]:
    number, d = case.arithmetic, x.shape[-1]
    t, zero = float(s), number.number(0.0)
    sizes = (1, 5)
    logs = [impl.log_relative_variance(x, y, 2 * n, antithetic=True) for n in sizes]
    budgets = [
        coupled.variance_budget(log, t, n, d, 0.0, case.u)
        for log, n in zip(logs, sizes, strict=True)
    ]
    budget = Budget(np.concatenate([b.bound for b in budgets]), budgets[0].because, case.u)
    got = [n * np.exp(log.astype(np.float64) - t) for log, n in zip(logs, sizes, strict=True)]
    want = coupled.exact_variance(number, s, 0.0, zero, pair=True)
    yield oracle.against(
        number,
        "n pairs have the relative variance (cosh s - 1)/n",
        np.concatenate(got),
        [[want]] * len(sizes),
        budget,
    )
    both = impl.log_relative_variance(x, y, 2)
    yield oracle.against(
        number,
        "a pair has 1 - e^-s of the variance of two independent draws",
        np.exp(logs[0].astype(np.float64) - both),
        [[number.number(1.0) - number.exp(-s)]],
        Budget(
            np.expm1(4 * case.u * (abs(both) + abs(logs[0]) + t) + gamma(d + 16, 2.0**-53) * 2),
            "both logarithms are rounded; s errs by gamma_(d+2)",
            case.u,
        ),
    )


def _independent(n: int, d: int, *, rng: np.random.Generator, **_: Any) -> Array:
    return sample_projections(n, d, rng=rng)


def _one_coordinate(n: int, d: int, **options: Any) -> Array:
    W = sample_projections(n, d, **options)
    W[n // 2 :] = W[: n // 2]
    W[n // 2 :, 0] *= -1
    return W


def _repeats(n: int, d: int, *, rng: np.random.Generator, **_: Any) -> Array:
    """Half of the pairs drawn, each one used twice."""
    W = np.repeat(sample_projections((n // 2 + 1) // 2, d, rng=rng), 2, axis=0)[: n // 2]
    return np.concatenate([W, -W])


def _half_normal(n: int, d: int, *, rng: np.random.Generator, **_: Any) -> Array:
    """Folded into the positive orthant, as if mirroring made that harmless."""
    W = abs(sample_projections(n // 2, d, rng=rng))
    return np.concatenate([W, -W])


def _float32_projections(n: int, d: int, **options: Any) -> Array:
    W = sample_projections(n, d, **options)
    W[n // 2 :] = W[n // 2 :].astype(np.float32)
    return W


class _Sum(PositiveFeatures):
    """A pair is summed, not averaged."""

    def __call__(self, x: npt.ArrayLike) -> Features:
        features, log_scale = super().__call__(x)
        return Features(features, log_scale + log_scale.dtype.type(math.log(2) / 2))


class _OneSided(PositiveFeatures):
    """|w.x| for w.x: both of a pair are the larger one."""

    def __call__(self, x: npt.ArrayLike) -> Features:
        X = np.asarray(x)
        exponent = abs(X @ self.projections.astype(X.dtype).T)
        largest = exponent.max(axis=-1)
        scale = largest - (X**2).sum(axis=-1) / 2 - math.log(len(self.projections)) / 2
        return Features(np.exp(exponent - largest[..., None]), scale.astype(X.dtype))


class _Float32(PositiveFeatures):
    def __call__(self, x: npt.ArrayLike) -> Features:
        X = np.asarray(x)
        features, log_scale = super().__call__(X.astype(np.float32))
        return Features(features.astype(X.dtype), log_scale.astype(X.dtype))


def _as_independent(x: Array, y: Array, n_terms: int, **_: Any) -> Array:
    return log_relative_variance(x, y, n_terms)


def _halved(x: Array, y: Array, n_terms: int, **kind: Any) -> Array:
    too_many = 2 * n_terms if kind.get("antithetic") else n_terms
    return log_relative_variance(x, y, too_many, **kind)


def _of_the_difference(x: Array, y: Array, n_terms: int, **kind: Any) -> Array:
    return log_relative_variance(x, -y, n_terms, **kind)


def _float32_variance(x: Array, y: Array, n_terms: int, **kind: Any) -> Array:
    single = log_relative_variance(x.astype(np.float32), y.astype(np.float32), n_terms, **kind)
    return single.astype(x.dtype)


def _mutant(part: str, name: str, defect: str, wrong: Any) -> Mutant:
    return Mutant(name, defect, {part: wrong})


_DRAW, _MAP, _VARIANCE = "sample_projections", "PositiveFeatures", "log_relative_variance"

claim = Claim(
    stem="antithetic_features",
    statement="A pair of positive features at w and -w has mean exp(x.y) and relative variance "
    "cosh(s) - 1, s = |x+y|^2: 1 - e^-s of that of two independent features.",
    kind=Kind.EXPECTATION,
    needs=("PositiveFeatures", "sample_projections", "log_relative_variance"),
    check=check,
    law=law,
    mutants=(
        _mutant(_DRAW, "independent", "independent draws, posing as pairs", _independent),
        _mutant(_DRAW, "one_coordinate", "only one coordinate is mirrored", _one_coordinate),
        _mutant(_DRAW, "repeats", "each pair is used twice", _repeats),
        _mutant(_DRAW, "half_normal", "w in the positive orthant only", _half_normal),
        _mutant(_DRAW, "float32_projections", "negatives in float32", _float32_projections),
        _mutant(_MAP, "sum", "the sum of a pair, not its mean", _Sum),
        _mutant(_MAP, "one_sided", "|w.x| for w.x", _OneSided),
        _mutant(_MAP, "float32_features", "computed in float32", _Float32),
        _mutant(_VARIANCE, "as_independent", "the variance of independent draws", _as_independent),
        _mutant(_VARIANCE, "halved", "a pair counts as two pairs", _halved),
        _mutant(_VARIANCE, "of_the_difference", "|x-y|^2 for |x+y|^2", _of_the_difference),
        _mutant(_VARIANCE, "float32_variance", "the variance in float32", _float32_variance),
    ),
    assumptions="w ~ N(0, I); n features are n/2 independent pairs.",
    budget="quadrature: 2 exp(-2 pi^2/h^2), h = 1/2, Gaussian tails beyond 9, and the exponents' "
    "rounding as in positive_features. Laws: alpha = 1e-9 each, 3 tests.",
    code="equivalence/features/couplings.py",
    on_heads=True,
)
