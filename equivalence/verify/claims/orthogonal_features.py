"""Orthogonal blocks of projections lower the variance of random features, by a known amount."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np

from equivalence._arrays import Array
from equivalence.features import couplings, variance
from equivalence.features.couplings import sample_projections
from equivalence.features.variance import correlation, log_relative_variance
from equivalence.verify import coupled, oracle
from equivalence.verify.budgets import Budget
from equivalence.verify.cases import Case
from equivalence.verify.claim import Claim, Kind, mutant
from equivalence.verify.compare import Comparison, compare
from equivalence.verify.implementation import Implementation
from equivalence.verify.laws import LawTest

# What is estimated: positive features, pairs of them at w and -w, cosines.
_MAPS: tuple[tuple[int, dict[str, bool]], ...] = (
    (1, {}),
    (1, {"antithetic": True}),
    (-1, {"trigonometric": True}),
)


def check(impl: Implementation, case: Case) -> Iterator[Comparison]:
    """The angles, and the variance against 1F1 and against quadrature over norms and angles."""
    d = case.Q.shape[-1]
    W = impl.sample_projections(2 * d + 1, d, rng=case.rng("W"), coupling="orthogonal")
    found = coupled.cosines(W)
    yield compare(
        "projections of a block are orthogonal",
        found,
        np.zeros_like(found),
        coupled.cosine_budget(d),
    )
    for sign, kind in _MAPS:
        for index, (x, y, t) in enumerate(islice(coupled.pairs(case, sign), 2)):
            yield _closed_form(impl, case, x, y, t, sign, kind)
            # Waves at the distances of real heads would take some 500 nodes in each direction.
            if kind and index == 0 and d > 1 and not case.real:
                yield _by_quadrature(impl, case, x, y, float(t), sign, kind)


def law(impl: Implementation, rng: np.random.Generator) -> Iterator[LawTest]:
    """Every projection is N(0, I), whatever its block."""
    yield from coupled.projection_laws(
        impl.sample_projections, rng, "orthogonal", coupling="orthogonal"
    )


def _scaled(
    impl: Implementation, x: Array, y: Array, t: float, n: int, kind: dict[str, bool]
) -> tuple[Array, Array]:
    """n e^{-t} Var / exp(2 x.y) of n terms, and the logarithm that the code gives for it."""
    doubled = 2 if kind.get("antithetic") else 1
    log_variance = impl.log_relative_variance(x, y, doubled * n, coupling="orthogonal", **kind)
    return n * np.exp(np.asarray(log_variance, np.float64) - t), np.asarray(log_variance)


def _closed_form(
    impl: Implementation,
    case: Case,
    x: Array,
    y: Array,
    t: oracle.Number,
    sign: int,
    kind: dict[str, bool],
) -> Comparison:
    """One projection, one block, and two with a remainder: (1/n) [E T^2 - 1 + p c]."""
    number, d = case.arithmetic, x.shape[-1]
    c = coupled.orthogonal_c(number, t, d, sign)
    sizes = (1, d, 2 * d + 1)
    got, want, budget = [], [], []
    for n in sizes:
        p = coupled.partners(n, d)
        scaled, log_variance = _scaled(impl, x, y, float(t), n, kind)
        got.append(scaled)
        want.append([coupled.exact_variance(number, t, p, c, pair=bool(kind))])
        budget.append(coupled.variance_budget(log_variance, float(t), n, d, p, case.u))
    return oracle.against(
        number,
        "the variance of n terms is (1/n) [E T^2 - 1 + p c], c from 1F1(d; d/2; t/2)",
        np.concatenate(got),
        want,
        Budget(np.concatenate([b.bound for b in budget]), budget[0].because, case.u),
    )


def _by_quadrature(
    impl: Implementation, case: Case, x: Array, y: Array, t: float, sign: int, kind: dict[str, bool]
) -> Comparison:
    """Two pairs, or two waves: E T_1 T_2 over chi norms and a uniform direction."""
    d = x.shape[-1]
    N, left = coupled.quadrature_degree(t, math.exp(-2 * t) if sign > 0 else 1.0)
    if sign > 0:
        joint = coupled.orthogonal_mean(t, d, lambda h: np.exp(-t) * np.cosh(h), N)
    else:
        joint = coupled.orthogonal_mean(t, d, np.cos, N)
    own = math.expm1(-t) ** 2 / 2
    got, log_variance = _scaled(impl, x, y, t, 2, kind)
    budget = coupled.variance_budget(log_variance, t, 2, d, 1.0, case.u)
    return compare(
        "the variance of two terms is that of quadrature over norms and angles",
        got,
        [[own + float(joint) - math.exp(-t)]],
        budget + coupled.quadrature_budget(t, N, left, 1.0),
    )


def _no_sign_fix(n: int, d: int, *, rng: np.random.Generator, **_: Any) -> Array:
    Q = np.linalg.qr(rng.standard_normal((-(-n // d), d, d)))[0]
    return _with_norms(Q, n, np.sqrt(rng.chisquare(d, size=(n, 1))))


def _norms_of_the_block(n: int, d: int, *, rng: np.random.Generator, **_: Any) -> Array:
    G = rng.standard_normal((-(-n // d), d, d))
    Q, R = np.linalg.qr(G)
    Q = Q * np.copysign(1.0, np.diagonal(R, axis1=-2, axis2=-1))[:, None]
    return _with_norms(Q, n, np.linalg.norm(G, axis=2).reshape(-1, 1)[:n])


def _fixed_norm(n: int, d: int, *, rng: np.random.Generator, **_: Any) -> Array:
    return _with_norms(couplings.haar(-(-n // d), d, rng), n, np.full((n, 1), math.sqrt(d)))


def _one_norm_a_block(n: int, d: int, *, rng: np.random.Generator, **_: Any) -> Array:
    blocks = -(-n // d)
    norms = np.repeat(np.sqrt(rng.chisquare(d, size=(blocks, 1))), d, axis=0)
    return _with_norms(couplings.haar(blocks, d, rng), n, norms[:n])


def _with_norms(Q: Array, n: int, norms: Array) -> Array:
    W: Array = Q.reshape(-1, Q.shape[-1])[:n] * norms
    return W


def _one_rotation(n: int, d: int, *, rng: np.random.Generator, **_: Any) -> Array:
    """Q drawn once: all blocks have the same directions."""
    Q = np.repeat(couplings.haar(1, d, rng), -(-n // d), axis=0)
    return _with_norms(Q, n, np.sqrt(rng.chisquare(d, size=(n, 1))))


def _independent(n: int, d: int, *, rng: np.random.Generator, **_: Any) -> Array:
    return sample_projections(n, d, rng=rng)


def _float32_projections(n: int, d: int, **options: Any) -> Array:
    return sample_projections(n, d, **options).astype(np.float32).astype(np.float64)


def _with_c(factor: float, p: Any = variance.partners) -> Any:
    """The variance with c times a factor, or with another number of partners."""

    def log_variance(x: Array, y: Array, n_terms: int, **kind: Any) -> Array:
        coupling = kind.pop("coupling", "iid")
        trigonometric = kind.get("trigonometric", False)
        pair = trigonometric or kind.get("antithetic", False)
        t = variance.squared_distances(x, y, -1 if trigonometric else 1)
        n, d = n_terms // 2 if kind.get("antithetic") else n_terms, x.shape[-1]
        own = np.expm1(-t) ** 2 / 2 if pair else -np.expm1(-t)
        c = factor * p(n, d, coupling) * correlation(t, d, coupling, **kind)
        logs: Array = t - math.log(n) + np.log(own + c)
        return logs.astype(x.dtype)

    return log_variance


def _all_are_partners(n: int, d: int, coupling: str) -> float:
    return n - 1.0


def _float32_variance(x: Array, y: Array, n_terms: int, **kind: Any) -> Array:
    single = log_relative_variance(x.astype(np.float32), y.astype(np.float32), n_terms, **kind)
    return single.astype(x.dtype)


claim = Claim(
    stem="orthogonal_features",
    statement="Haar blocks of d orthogonal projections with independent chi_d norms leave the mean "
    "of random features as it is; a block of m <= d has relative variance (1/m) [(E T^2 - 1) + "
    "(m-1) c], c = e^{-s} 1F1(d; d/2; s/2) - 1 <= 0, and -|x-y|^2 for s with cosines.",
    kind=Kind.EXPECTATION,
    needs=("sample_projections", "log_relative_variance"),
    check=check,
    law=law,
    mutants=(
        mutant(
            "no_sign_fix",
            "Q of the QR without sign(diag R): not Haar",
            sample_projections=_no_sign_fix,
        ),
        mutant(
            "norms_of_the_block",
            "row norms of the matrix that was factored",
            sample_projections=_norms_of_the_block,
        ),
        mutant("fixed_norm", "norm sqrt(d), not chi_d", sample_projections=_fixed_norm),
        mutant(
            "one_norm_a_block",
            "one chi_d norm for all of a block",
            sample_projections=_one_norm_a_block,
        ),
        mutant(
            "one_rotation", "all blocks have the same directions", sample_projections=_one_rotation
        ),
        mutant(
            "independent",
            "independent draws, posing as orthogonal",
            sample_projections=_independent,
        ),
        mutant("float32_projections", "drawn in float32", sample_projections=_float32_projections),
        mutant(
            "no_correlation",
            "the variance of independent draws",
            log_relative_variance=_with_c(0.0),
        ),
        mutant("opposite_correlation", "-c for c", log_relative_variance=_with_c(-1.0)),
        mutant(
            "all_are_partners",
            "c for projections of other blocks",
            log_relative_variance=_with_c(1.0, _all_are_partners),
        ),
        mutant(
            "float32_variance", "the variance in float32", log_relative_variance=_float32_variance
        ),
    ),
    assumptions="The mean over a sample is unbiased because each projection is N(0, I); blocks are "
    "independent. A remainder of r projections is a block of r.",
    budget="cosines: Householder, sqrt(d) gamma_(10 d^2). Variances times n e^{-t}: the log's "
    "rounding and 6 k log k u a Poisson probability. Quadrature: its series' tail, nodes' errors. "
    "Laws: alpha = 1e-9 each, 6 tests.",
    code="equivalence/features/couplings.py",
    on_heads=True,
)
