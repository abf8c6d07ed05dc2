"""Dense exponential features: a tilt an axis, the best axes, and what shift and balance change."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from equivalence._arrays import Array
from equivalence.features import (
    DenseFeatures,
    Features,
    GeneralizedFeatures,
    ReducedFeatures,
    Reduction,
)
from equivalence.verify.budgets import Budget, gamma
from equivalence.verify.cases import Case
from equivalence.verify.claim import Claim, Kind, mutant
from equivalence.verify.compare import Comparison, compare
from equivalence.verify.dense_case import Pair, Reduced, shrunk
from equivalence.verify.dual_case import scaled
from equivalence.verify.implementation import Implementation

_U = 2.0**-53


def check(impl: Implementation, case: Case) -> Iterator[Comparison]:
    """Axes and tilts, then one pair's moments axis by axis, then both reductions."""
    Q, K = scaled(case)
    yield from _fitted(impl, case, Q, K)
    pair = Pair(impl, case, Q, K)
    yield pair.definition()
    yield pair.by_quadrature((1, 0), "E T = x.y")
    yield pair.by_quadrature((2, 0), "E T^2 = 2 x.y + sum log G + rho z^2")
    yield pair.by_quadrature((1, 1), "E T(w) T(-w) = 2 x.y - s + sum log G")
    yield pair.variance(antithetic=False)
    yield pair.variance(antithetic=True)
    reduced = Reduced(impl, case, Q, K)
    yield reduced.means()
    yield from reduced.balanced()
    yield from reduced.kernel()


def _fitted(impl: Implementation, case: Case, Q: Array, K: Array) -> Iterator[Comparison]:
    """Orthonormal axes that make M = E z z^T diagonal, and on each the best rho at m = E z_l^2.

    1 - rho = 2 m rho (1 + rho) sigma, with sigma = 1, or w's part of an antithetic pair's moment.
    """
    d = K.shape[1]
    z = (Q.astype(np.float64)[:, None] + K).reshape(-1, d)
    M = z.T @ z / len(z)
    spectral = gamma(10 * d * d, _U)
    error = (spectral + gamma(len(z) + 2, _U)) * float(np.linalg.norm(abs(z).T @ abs(z) / len(z)))
    for antithetic in (False, True):
        phi = impl.DenseFeatures.sample(d, 2, rng=case.rng("fit"), antithetic=antithetic).fit(K, Q)
        D = phi.axes.T @ M @ phi.axes
        m, rho = np.maximum(np.diag(D), 0.0), 1 / (1 - 8 * phi.tilts)
        sigma = 1 / (1 + math.exp(-float(((1 + rho) * m).sum()))) if antithetic else 1.0
        pull = 2 * rho * (1 + rho) * sigma
        total = float(m.sum())
        yield compare(
            f"1 - rho = 2 m rho (1 + rho) sigma on each axis, {antithetic=}",
            1 - rho,
            m * pull,
            Budget(
                error * pull * (1 + 2 * d * m * (1 - sigma))
                + 16 * _U * (1 + (1 + total) * m * pull),
                "m errs by the eigenvectors' gamma_(10 d^2) |M|, rho and sigma by 8u",
                _U,
            ),
        )
    if d > 1:
        yield compare(
            "the axes are orthonormal",
            phi.axes.T @ phi.axes,
            np.eye(d),
            Budget(np.array(spectral), "Householder's eigenvectors (Higham 2002, thm 19.4)", _U),
        )
        yield compare(
            "the axes make E z z^T diagonal",
            D - np.diag(np.diag(D)),
            np.zeros((d, d)),
            Budget(np.array(error), "backward error gamma_(10 d^2) |M| of the eigenvectors", _U),
        )


class _Altered(DenseFeatures):
    """One thing wrong in a feature: the constant's power of det, the tilt's sign, or the axes."""

    power, sign = 0.25, 1.0

    def along(self, X: Array) -> Array:
        return X @ self.axes

    def __call__(self, x: npt.ArrayLike) -> Features:
        X = np.asarray(x)
        W, A, x64 = self.projections.astype(np.float64), self.tilts, X.astype(np.float64)
        exponent = (self.along(x64) * np.sqrt(1 - 4 * A)) @ W.T + self.sign * (W**2 @ A)
        largest = exponent.max(axis=-1)
        log_scale = largest - (x64**2).sum(axis=-1) / 2 - math.log(len(W)) / 2
        log_scale += self.power * np.log1p(-4 * A).sum()
        features = np.exp(exponent - largest[:, None])
        return Features(features.astype(X.dtype), log_scale.astype(X.dtype))


class _NoNormaliser(_Altered):
    power = 0.0


class _TiltSign(_Altered):
    sign = -1.0


class _AxesTransposed(_Altered):
    def along(self, X: Array) -> Array:
        return X @ self.axes.T


class _ForgetsTilts(DenseFeatures):
    def __init__(self, projections: npt.ArrayLike, tilts: Any = None, axes: Any = None) -> None:
        super().__init__(projections, None, axes)


class _RowsAsAxes(DenseFeatures):
    def fit(self, keys: npt.ArrayLike, queries: npt.ArrayLike | None = None) -> Any:
        super().fit(keys, queries)
        self.axes = self.axes.T
        return self


class _OfCovariance(DenseFeatures):
    def fit(self, keys: npt.ArrayLike, queries: npt.ArrayLike | None = None) -> Any:
        K, Q = np.asarray(keys), np.asarray(queries)
        return super().fit(K - K.mean(axis=0), Q - Q.mean(axis=0))


class _OneTilt(DenseFeatures):
    def fit(self, keys: npt.ArrayLike, queries: npt.ArrayLike | None = None) -> Any:
        super().fit(keys, queries)
        d = len(self.tilts)
        one = GeneralizedFeatures(self.projections).fit(keys, queries)
        # Of one axis it is the best.
        self.tilts = np.full(d, one.A if d > 1 else one.A / 2)
        return self


class _TiltsOfIndependent(DenseFeatures):
    def fit(self, keys: npt.ArrayLike, queries: npt.ArrayLike | None = None) -> Any:
        other = DenseFeatures(self.projections[:1]).fit(keys, queries)
        self.axes, self.tilts = other.axes, other.tilts
        return self


class _Float32(DenseFeatures):
    def __call__(self, x: npt.ArrayLike) -> Features:
        X = np.asarray(x)
        features, log_scale = super().__call__(X.astype(np.float32))
        return Features(features.astype(X.dtype), log_scale.astype(X.dtype))


class _PlainVariance(DenseFeatures):
    @staticmethod
    def log_relative_variance(
        *args: Any, tilts: Any = None, axes: Any = None, **options: Any
    ) -> Array:
        return DenseFeatures.log_relative_variance(*args, **options)


class _SOnBothSides(Reduction):
    @classmethod
    def fit(cls, *args: Any, **options: Any) -> Any:
        right = Reduction.fit(*args, **options)
        return cls(right.a, right.b, right.S, right.S)


class _NotTransposed(Reduction):
    @classmethod
    def fit(cls, *args: Any, **options: Any) -> Any:
        right = Reduction.fit(*args, **options)
        return cls(right.a, right.b, right.S, right.inverse.T)


class _ArithmeticMean(Reduction):
    """Exact, but S^T S is the mean of M_x^{-1} and M_y."""

    @classmethod
    def fit(cls, *args: Any, **options: Any) -> Any:
        right = Reduction.fit(*args, **options)
        M_x, M_y = (
            shrunk(np.asarray(P, np.float64) - c)
            for P, c in zip(args, (right.a, right.b), strict=True)
        )
        S = np.linalg.cholesky((np.linalg.inv(M_x) + M_y) / 2).T
        return cls(right.a, right.b, S, np.linalg.inv(S).T)


class _HalfOfTheShift(Reduction):
    @classmethod
    def fit(cls, *args: Any, **options: Any) -> Any:
        right = Reduction.fit(*args, **options)
        return cls(right.a, right.b / 2, right.S, right.inverse)


class _DropsKeyFactor(ReducedFeatures):
    def keys(self, x: npt.ArrayLike) -> Features:
        features, log_scale = super().keys(x)
        factor = self.reduction_.keys(x)[1]
        return Features(features, (log_scale - factor).astype(log_scale.dtype))


class _Float32Reduced(ReducedFeatures):
    def keys(self, x: npt.ArrayLike) -> Features:
        X = np.asarray(x)
        features, log_scale = super().keys(X.astype(np.float32))
        return Features(features.astype(X.dtype), log_scale.astype(X.dtype))


claim = Claim(
    stem="dense_exponential_features",
    statement="With u = axes^T x, E f(x) f(y) = exp(x.y) for f(x) = prod_l (1-4A_l)^(1/4) "
    "exp(A_l w_l^2 + sqrt(1-4A_l) w_l u_l) e^(-|x|^2/2), with relative second moment prod_l "
    "G(rho_l) exp(rho_l z_l^2); the best axes are the eigenvectors of E z z^T, z = x+y, each with "
    "the best tilt of one dimension. Shift and balance, x.y = (S(x-a)).(S^-T(y-b)) + (x-a).b + "
    "a.y, are exact: the geometric mean of the second moments makes both equal.",
    kind=Kind.EXPECTATION,
    needs=("DenseFeatures", "Reduction", "ReducedFeatures"),
    check=check,
    mutants=(
        mutant("no_normaliser", "no det(1-4A)^(1/4)", DenseFeatures=_NoNormaliser),
        mutant("tilt_sign", "exp(-A_l w_l^2)", DenseFeatures=_TiltSign),
        mutant("axes_transposed", "u = axes x: right mean, other second moment",
               DenseFeatures=_AxesTransposed),
        mutant("forgets_tilts", "the tilts are ignored: right mean, larger variance",
               DenseFeatures=_ForgetsTilts),
        mutant("rows_as_axes", "the eigenvectors are taken as rows", DenseFeatures=_RowsAsAxes),
        mutant("of_covariance", "fitted to the covariance of z instead of its second moment",
               DenseFeatures=_OfCovariance),
        mutant("one_tilt", "one tilt for all axes posing as the best of each",
               DenseFeatures=_OneTilt),
        mutant("tilts_of_independent", "antithetic features get the tilts of independent ones",
               DenseFeatures=_TiltsOfIndependent),
        mutant("plain_variance", "the variance without tilts", DenseFeatures=_PlainVariance),
        mutant("s_on_both_sides", "S x and S y", Reduction=_SOnBothSides),
        mutant("not_transposed", "S x and S^-1 y", Reduction=_NotTransposed),
        mutant("arithmetic_mean", "balanced by the arithmetic mean of M_x^-1 and M_y",
               Reduction=_ArithmeticMean),
        mutant("half_of_the_shift", "b is half of the mean: exact, but less reduced",
               Reduction=_HalfOfTheShift),
        mutant("drops_key_factor", "the keys' exp((x-a).b) is dropped, as if it cancelled",
               ReducedFeatures=_DropsKeyFactor),
        mutant("float32_features", "computed in float32", DenseFeatures=_Float32),
        mutant("float32_reduction", "keys reduced in float32", ReducedFeatures=_Float32Reduced),
    ),
    assumptions="w ~ N(0, I), A_l < 1/8; the sampler is tested apart from the map, and the "
    "shrinkage of the second moments in tests/.",
    budget="quadrature on each axis: 2 exp(-2 pi^2/h^2), h = 1/2, and Gaussian tails beyond 9; "
    "exponents err by gamma_(2d+11) of their terms; eigenvectors by gamma_(10 d^2), singular "
    "values by gamma_(40 d^2), backward.",
    code="equivalence/features/dense.py",
    on_heads=True,
)  # fmt: skip
