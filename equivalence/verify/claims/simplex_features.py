"""Simplex blocks: projections at pairwise cosine -1/(d-1) repel more than orthogonal ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from equivalence._arrays import Array
from equivalence.features import couplings
from equivalence.features.couplings import sample_projections
from equivalence.features.variance import log_relative_variance
from equivalence.verify import coupled, oracle
from equivalence.verify.budgets import Budget
from equivalence.verify.cases import Case
from equivalence.verify.claim import Claim, Kind, mutant
from equivalence.verify.compare import Comparison, compare
from equivalence.verify.implementation import Implementation
from equivalence.verify.laws import LawTest

_MAPS: tuple[tuple[int, dict[str, bool]], ...] = (
    (1, {}),
    (1, {"antithetic": True}),
    (-1, {"trigonometric": True}),
)
# In floats the oracle's series cancels like e^{|rho| t}, |rho| = 1 for d = 2.
_NEAR = 4.0


def check(impl: Implementation, case: Case) -> Iterator[Comparison]:
    """The angles, and the variance against a series in the cosine."""
    d = case.Q.shape[-1]
    W = impl.sample_projections(2 * d + 1, d, rng=case.rng("W"), coupling="simplex")
    found = coupled.cosines(W)
    yield compare(
        "projections of a block have the cosine -1/(d-1)",
        found,
        np.full_like(found, -1 / max(d - 1, 1)),
        coupled.cosine_budget(d).times(4, "both sides of a product with the corners: "),
    )
    for sign, kind in _MAPS:
        x, y, t = next(coupled.pairs(case, sign))
        yield _closed_form(impl, case, x, y, t, sign, kind)


def law(impl: Implementation, rng: np.random.Generator) -> Iterator[LawTest]:
    """Every projection is N(0, I), whatever its block."""
    yield from coupled.projection_laws(impl.sample_projections, rng, "simplex", coupling="simplex")


def _closed_form(
    impl: Implementation,
    case: Case,
    x: Array,
    y: Array,
    t: oracle.Number,
    sign: int,
    kind: dict[str, bool],
) -> Comparison:
    """One projection, one block, and two with a remainder; halving points brings them near."""
    number, d = case.arithmetic, x.shape[-1]
    while sign < 0 and float(t) > _NEAR:
        x, y, t = x / 2, y / 2, t / number.number(4.0)
    pair = kind.get("antithetic", False)
    c = coupled.simplex_c(number, t, d, sign, pair=bool(kind)) if d > 1 else number.number(0.0)
    got, want, budget = [], [], []
    for n in (1, d, 2 * d + 1):
        p = coupled.partners(n, d)
        log_variance = np.asarray(
            impl.log_relative_variance(x, y, n * (1 + pair), coupling="simplex", **kind)
        )
        got.append(n * np.exp(log_variance.astype(np.float64) - float(t)))
        want.append([coupled.exact_variance(number, t, p, c, pair=bool(kind))])
        budget.append(coupled.variance_budget(log_variance, float(t), n, d, p, case.u))
    return oracle.against(
        number,
        "the variance of n terms is (1/n) [E T^2 - 1 + p c], c a mean over norms and 0F1",
        np.concatenate(got),
        want,
        Budget(np.concatenate([b.bound for b in budget]), budget[0].because, case.u),
    )


def _corners(d: int) -> Array:
    corners: Array = np.eye(d) if d == 1 else (np.eye(d) - 1 / d) * math.sqrt(d / (d - 1))
    return corners


def _no_sign_fix(n: int, d: int, *, rng: np.random.Generator, **_: Any) -> Array:
    Q = np.linalg.qr(rng.standard_normal((-(-n // d), d, d)))[0]
    return _with_norms(_corners(d) @ Q, n, np.sqrt(rng.chisquare(d, size=(n, 1))))


def _not_rotated(n: int, d: int, *, rng: np.random.Generator, **_: Any) -> Array:
    directions = np.repeat(_corners(d)[None], -(-n // d), axis=0)
    return _with_norms(directions, n, np.sqrt(rng.chisquare(d, size=(n, 1))))


def _fixed_norm(n: int, d: int, *, rng: np.random.Generator, **_: Any) -> Array:
    directions = _corners(d) @ couplings.haar(-(-n // d), d, rng)
    return _with_norms(directions, n, np.full((n, 1), math.sqrt(d)))


def _one_norm_a_block(n: int, d: int, *, rng: np.random.Generator, **_: Any) -> Array:
    blocks = -(-n // d)
    norms = np.repeat(np.sqrt(rng.chisquare(d, size=(blocks, 1))), d, axis=0)
    return _with_norms(_corners(d) @ couplings.haar(blocks, d, rng), n, norms[:n])


def _short_corners(n: int, d: int, *, rng: np.random.Generator, **_: Any) -> Array:
    """Corners at the distance 1 - 1/d from 0, not 1: their norms are forgotten."""
    directions = (_corners(d) * math.sqrt((d - 1) / d if d > 1 else 1)) @ couplings.haar(
        -(-n // d), d, rng
    )
    return _with_norms(directions, n, np.sqrt(rng.chisquare(d, size=(n, 1))))


def _with_norms(directions: Array, n: int, norms: Array) -> Array:
    W: Array = directions.reshape(-1, directions.shape[-1])[:n] * norms
    return W


def _orthogonal(n: int, d: int, **options: Any) -> Array:
    return sample_projections(n, d, **{**options, "coupling": "orthogonal"})


def _float32_projections(n: int, d: int, **options: Any) -> Array:
    return sample_projections(n, d, **options).astype(np.float32).astype(np.float64)


def _orthogonal_variance(x: Array, y: Array, n_terms: int, **kind: Any) -> Array:
    return log_relative_variance(x, y, n_terms, **{**kind, "coupling": "orthogonal"})


def _independent_variance(x: Array, y: Array, n_terms: int, **kind: Any) -> Array:
    return log_relative_variance(x, y, n_terms, **{**kind, "coupling": "iid"})


def _one_cosine(x: Array, y: Array, n_terms: int, **kind: Any) -> Array:
    """Waves as if e^{i w.z} were one: what the mean over norms and 0F1 gives at -|x-y|^2."""
    if not kind.get("trigonometric") or x.shape[-1] == 1:
        return log_relative_variance(x, y, n_terms, **kind)
    t, d = float(((x - y).astype(np.float64) ** 2).sum()), x.shape[-1]
    c = coupled.simplex_c(oracle.FLOATS, t, d, -1, pair=False)
    scaled = math.expm1(-t) ** 2 / 2 + coupled.partners(n_terms, d) * c
    return np.full((1, 1), t + math.log(scaled / n_terms), x.dtype)


def _one_block(x: Array, y: Array, n_terms: int, **kind: Any) -> Array:
    """A remainder counts as a full block."""
    d, each = x.shape[-1], 2 if kind.get("antithetic") else 1
    full = each * d * -(-n_terms // (each * d))
    return log_relative_variance(x, y, full, **kind) + x.dtype.type(math.log(full / n_terms))


def _float32_variance(x: Array, y: Array, n_terms: int, **kind: Any) -> Array:
    single = log_relative_variance(x.astype(np.float32), y.astype(np.float32), n_terms, **kind)
    return single.astype(x.dtype)


claim = Claim(
    stem="simplex_features",
    statement="Blocks of d directions at pairwise cosine -1/(d-1), rotated by Haar, with "
    "independent chi_d norms leave the mean as it is; two of them have "
    "c = e^{-s} E 0F1(; d/2; s (R1^2 + R2^2 - 2 R1 R2/(d-1))/4) - 1, R chi_d norms.",
    kind=Kind.EXPECTATION,
    needs=("sample_projections", "log_relative_variance"),
    check=check,
    law=law,
    mutants=(
        mutant(
            "no_sign_fix",
            "rotated by Q without sign(diag R): not Haar",
            sample_projections=_no_sign_fix,
        ),
        mutant("not_rotated", "the same corners for all blocks", sample_projections=_not_rotated),
        mutant("fixed_norm", "norm sqrt(d), not chi_d", sample_projections=_fixed_norm),
        mutant(
            "one_norm_a_block",
            "one chi_d norm for all of a block",
            sample_projections=_one_norm_a_block,
        ),
        mutant(
            "short_corners",
            "corners of norm sqrt(1 - 1/d), not 1",
            sample_projections=_short_corners,
        ),
        mutant(
            "orthogonal",
            "orthogonal projections, posing as a simplex",
            sample_projections=_orthogonal,
        ),
        mutant("float32_projections", "drawn in float32", sample_projections=_float32_projections),
        mutant(
            "orthogonal_variance", "c at right angles", log_relative_variance=_orthogonal_variance
        ),
        mutant("independent_variance", "no c at all", log_relative_variance=_independent_variance),
        mutant("one_cosine", "c of a cosine at -1/(d-1) alone", log_relative_variance=_one_cosine),
        mutant("full_blocks", "a remainder counts as a block", log_relative_variance=_one_block),
        mutant(
            "float32_variance", "the variance in float32", log_relative_variance=_float32_variance
        ),
    ),
    assumptions="As orthogonal_features. In one dimension a block is one draw. What is even in "
    "w, antithetic pairs and cosines, has the mean of c at both cosines, 1/(d-1) and -1/(d-1).",
    budget="cosines: Householder, 4 sqrt(d) gamma_(10 d^2). Variances times n e^{-t}: the log's "
    "rounding and 6 k log k u a Poisson probability. Laws: alpha = 1e-9 each, 6 tests.",
    code="equivalence/features/couplings.py",
)
