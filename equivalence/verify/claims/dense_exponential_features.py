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
    PositiveFeatures,
    ReducedFeatures,
    Reduction,
)
from equivalence.verify import oracle
from equivalence.verify.budgets import Budget, gamma
from equivalence.verify.cases import Case
from equivalence.verify.claim import Claim, Kind, mutant
from equivalence.verify.compare import Comparison, compare
from equivalence.verify.coupled import log_products
from equivalence.verify.dual_case import scaled
from equivalence.verify.implementation import Implementation
from equivalence.verify.oracle import Number
from equivalence.verify.quadrature import discretisation_error, gaussian_nodes

_U = 2.0**-53
# At it the second moment of a single point is not singular.
_SHRINKAGE = 0.5


def check(impl: Implementation, case: Case) -> Iterator[Comparison]:
    """Axes and tilts, then one pair's moments axis by axis, then both reductions."""
    Q, K = scaled(case)
    yield from _fitted(impl, case, Q, K)
    pair = _Pair(impl, case, Q, K)
    yield pair.definition()
    yield pair.by_quadrature((1, 0), "E T = exp(x.y)")
    yield pair.by_quadrature((2, 0), "E T^2 = exp(2 x.y) prod G exp(rho z^2)")
    yield pair.by_quadrature((1, 1), "E T(w) T(-w) = exp(2 x.y - s) prod G")
    yield pair.variance(antithetic=False)
    yield pair.variance(antithetic=True)
    reduced = _Reduced(impl, case, Q, K)
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


class _Pair:
    """One query and one key at the fitted axes and tilts, and the exact law of their features."""

    def __init__(self, impl: Implementation, case: Case, Q: Array, K: Array) -> None:
        self.impl, self.case, self.number = impl, case, case.arithmetic
        row = int(case.rows[0])
        self.x, self.y = Q[row : row + 1], K[:1]
        d = self.d = K.shape[1]
        rng = case.rng("pair")
        fitted = impl.DenseFeatures.sample(d, 1, rng=rng).fit(K, Q)
        self.axes, self.tilts = fitted.axes, fitted.tilts
        self.W = rng.standard_normal((2, d)).astype(Q.dtype)
        number, A = self.number, self.tilts
        p, q = number.vectors(self.x)[0], number.vectors(self.y)[0]
        z = [a + b for a, b in zip(p, q, strict=True)]
        self.along = number.dots([z], number.vectors(self.axes.T))[0]
        one, eight, four, two = (number.number(c) for c in (1.0, 8.0, 4.0, 2.0))
        tilts = [number.number(float(a)) for a in A]
        self.exact_tilts = tilts
        rho = [one / (one - eight * a) for a in tilts]
        self.roots = [number.sqrt(one - four * a) for a in tilts]
        self.dot, self.s = number.dot(p, q), number.dot(z, z)
        self.t = number.sum(r * a * a for r, a in zip(rho, self.along, strict=True))
        self.log_G = number.sum(number.log((one + r) / (two * number.sqrt(r))) for r in rho)
        self.log_constant = number.sum(number.log(root) for root in self.roots)
        # Magnitudes, in floats.
        self.reach = abs(self.axes).T @ (abs(self.x) + abs(self.y))[0].astype(np.float64)
        self.norms = float((self.x.astype(np.float64) ** 2 + self.y.astype(np.float64) ** 2).sum())
        # |z^T (axes axes^T - 1) z|, as |z|^2 <= 2 (|x|^2 + |y|^2)
        self.defect = 2 * self.norms * gamma(10 * d * d, _U)
        self.constant = self.norms + float(abs(np.log1p(-4 * A)).sum()) + 4

    def logs(self, W: Array) -> Array:
        """log T at each projection, from the map."""
        phi = self.impl.DenseFeatures(W.astype(self.x.dtype), self.tilts, self.axes)
        logs: Array = log_products(phi, self.x, self.y)[0]
        return logs

    def size(self, W: Array) -> Array:
        """The terms of the exponents, added up."""
        W = abs(W.astype(np.float64))
        stretched = self.reach * np.sqrt(1 - 4 * self.tilts)
        size: Array = W @ stretched + 2 * W**2 @ abs(self.tilts)
        return size

    def definition(self) -> Comparison:
        """log T(w) = sum_l log sqrt(1-4A_l) + 2 A_l w_l^2 + sqrt(1-4A_l) w_l z_l - ..."""
        number, two = self.number, self.number.number(2.0)
        want = []
        for w in number.vectors(self.W):
            terms = (
                two * A * w_l * w_l + root * w_l * z_l
                for A, root, w_l, z_l in zip(
                    self.exact_tilts, self.roots, w, self.along, strict=True
                )
            )
            # |x|^2 + |y|^2 = s - 2 x.y
            half_norms = self.s / two - self.dot
            want.append(number.sum(terms) + self.log_constant - half_norms)
        size = self.size(self.W)
        u = self.case.u
        bound = gamma(3 * self.d + 16, u) * (size + size.max() + self.constant)
        budget = Budget(bound[None], "log T errs by gamma_(3d+16) of its terms", u)
        return oracle.against(number, "log T(w) at two w", self.logs(self.W)[None], [want], budget)

    def by_quadrature(self, powers: tuple[int, int], what: str) -> Comparison:
        """E T(w)^a T(-w)^b, one axis at a time: log T(w) - log T(0) is a sum over the axes.

        The tilts add up to exp(2 p A_l w_l^2), p = a + b: at w_l = v/sqrt(beta), beta = 1 - 4pA_l,
        they cancel what the density of v lacks.
        """
        d, u, p, net = self.d, self.case.u, sum(powers), powers[0] - powers[1]
        beta = 1 - 4 * p * self.tilts
        z = np.array([float(a) for a in self.along])
        slope = net * np.sqrt((1 - 4 * self.tilts) / beta) * z
        nodes, weights = zip(*map(gaussian_nodes, slope), strict=True)
        lengths = [len(v) for v in nodes]
        axis, starts = np.repeat(np.arange(d), lengths), np.cumsum([0, *lengths[:-1]])
        v, weight = np.concatenate(nodes), np.concatenate(weights)
        W = np.zeros((len(v) + 1, d))
        W[np.arange(len(v)), axis] = v / np.sqrt(beta)[axis]
        logs = self.logs(W)
        exponent = powers[0] * (logs[:-1] - logs[-1])
        if powers[1]:
            mirrored = self.logs(-W)
            exponent = exponent + powers[1] * (mirrored[:-1] - mirrored[-1])
        # Divided by the exact integral along the axis.
        missing = v**2 * (1 - 1 / beta)[axis] / 2 - (slope**2 / 2)[axis]
        ideal = weight * np.exp((slope[axis] * v) - (slope**2 / 2)[axis])
        along = np.add.reduceat(weight * np.exp(exponent + missing), starts)
        closed = float((slope**2 / 2 - np.log(beta) / 2).sum())
        log_exact, log_got = self._moment(powers), p * logs[-1] + closed + np.log(along).sum()
        size = self.size(W)
        own = 2 * gamma(2 * d + 12, u) * size[:-1] + 6 * u * size.max() + 64 * u
        ours = gamma(12, _U) * (
            v**2 * (1 + 1 / beta[axis]) + abs(slope[axis] * v) + slope[axis] ** 2
        )
        error = np.where(np.isneginf(exponent), 1.0, np.expm1(p * own + ours))
        per_axis = (
            np.add.reduceat(ideal * error, starts) + gamma(64, _U) + 2 * discretisation_error()
        )
        base = gamma(d + 16, u) * (size.max() + self.constant) + self.defect
        total = (
            per_axis.sum()
            + p * base
            + gamma(d + 16, _U) * (abs(closed) + float((slope**2).sum()) + self.constant)
        )
        number = self.number
        shift = number.number(float(log_exact))
        return oracle.against(
            number,
            f"{what} by quadrature",
            np.array([[math.exp(log_got - float(log_exact))]]),
            [[number.exp(log_exact - shift)]],
            Budget(
                np.array([[math.expm1(total)]]),
                "on each axis exponents err by gamma_(2d+12) of their terms and 6u of the largest; "
                "trapezoidal rule, 2 exp(-2 pi^2/h^2), and tails beyond 9 standard deviations; "
                "axes orthonormal to gamma_(10 d^2)",
                u,
            ),
        )

    def _moment(self, powers: tuple[int, int]) -> Number:
        if powers == (1, 0):
            return self.dot
        two = self.number.number(2.0)
        return two * self.dot + self.log_G + (self.t if powers == (2, 0) else -self.s)

    def variance(self, *, antithetic: bool) -> Comparison:
        """n e^{-s} times the relative variance of n terms: e^{-s} (E T^2 - 1)."""
        number, u, d, n = self.number, self.case.u, self.d, 3
        log_variance = self.impl.DenseFeatures.log_relative_variance(
            self.x, self.y, 2 * n if antithetic else n,
            tilts=self.tilts, axes=self.axes, antithetic=antithetic,
        ).astype(np.float64)  # fmt: skip
        s = self.s
        want = number.exp(self.log_G + self.t - s)
        if antithetic:
            want = (want + number.exp(self.log_G - s - s)) / number.number(2.0)
        want -= number.exp(-s)
        got = n * np.exp(log_variance - float(s))
        terms = float(self.reach @ self.reach) + abs(float(self.log_G)) + 4
        size = np.nan_to_num(abs(log_variance), posinf=0.0) + float(s) + math.log(n) + 1
        budget = Budget(
            got * np.expm1(4 * u * size) + gamma(3 * d + 32, _U) * terms * (float(want) + 1),
            "s, t and log G err by gamma_(3d+32) of their terms, the logarithm by u times its size",
            u,
        )
        what = f"the variance is the closed form, {antithetic=}"
        return oracle.against(number, what, got, [[want]], budget)


class _Reduced:
    """The case's keys and queries after both reductions, and what rounding may do to them.

    About its mean, a single token has no extent to balance: then there is no shift.
    """

    def __init__(self, impl: Implementation, case: Case, Q: Array, K: Array) -> None:
        self.case, self.K, self.Q = case, K, Q
        options = {"shift": min(len(Q), len(K)) > 1, "shrinkage": _SHRINKAGE}
        phi = impl.ReducedFeatures(PositiveFeatures(np.zeros((1, K.shape[1]))), **options)
        self.phi, self.reduction = phi.fit(K, Q), impl.Reduction.fit(K, Q, **options)
        self.X, self.Y = K.astype(np.float64), Q.astype(np.float64)
        zero = np.zeros(K.shape[1])
        self.a, self.b = (P.mean(axis=0) if options["shift"] else zero for P in (self.X, self.Y))
        self.M_x, self.M_y = _shrunk(self.X - self.a), _shrunk(self.Y - self.b)
        eigenvalues = np.linalg.eigvals(self.M_x @ self.M_y).real
        self.s = np.sort(np.sqrt(np.maximum(eigenvalues, 0)))[::-1]
        d = len(self.s)
        # The backward error of the singular values, of size |L_x||L_y|.
        self.tau = math.sqrt(float(np.trace(self.M_x) * np.trace(self.M_y)))
        self.spectral = gamma(40 * d * d, _U)

    def means(self) -> Comparison:
        """The shift takes the mean of both out."""
        d = len(self.s)
        left, lost = [], []
        for P, c, T, points in (
            (self.X, self.a, self.reduction.S, self.reduction.keys(self.K)[0]),
            (self.Y, self.b, self.reduction.inverse, self.reduction.queries(self.Q)[0]),
        ):
            left.append(points.mean(axis=0) - T @ (P.mean(axis=0) - c))
            lost.append(abs(T) @ (gamma(len(P) + 2 * d + 8, _U) * (2 * abs(P).mean(axis=0))))
        budget = Budget(np.array(lost), "means err by gamma_(n+2d) of their terms", _U)
        return compare("the reduced means are zero", left, np.zeros((2, d)), budget)

    def balanced(self) -> Iterator[Comparison]:
        """S M_x S^T = S^{-T} M_y S^{-1}, with the roots of the eigenvalues of M_x M_y."""
        s, reason = self.s, "factors and singular values err by gamma_(40 d^2) |L_x||L_y| backward"
        for name, T, M in (
            ("keys", self.reduction.S, self.M_x),
            ("queries", self.reduction.inverse, self.M_y),
        ):
            lengths = np.linalg.norm(T, axis=1)
            own = self.spectral * np.trace(M) * np.multiply.outer(lengths, lengths)
            beside = np.add.outer(s, s) / np.sqrt(np.multiply.outer(s, s))
            bound = own + self.spectral * self.tau * beside
            yield compare(
                f"the balanced second moment of the {name} is diag(s)",
                T @ M @ T.T,
                np.diag(s),
                Budget(bound, reason, _U),
            )

    def kernel(self) -> Iterator[Comparison]:
        """x.y = x'.y' + (x-a).b + a.y, in numbers and through the features of a map."""
        number, u, rows, d = self.case.arithmetic, self.case.u, self.case.rows, len(self.s)
        X, Y = self.X[:2], self.Y[rows]
        want = number.dots(number.vectors(Y), number.vectors(X))
        (x, f), (y, g) = self.reduction.keys(X), self.reduction.queries(Y)
        S, inverse, a, b = (abs(part) for part in (self.reduction.S, self.reduction.inverse,
                                                   self.reduction.a, self.reduction.b))  # fmt: skip
        terms = ((abs(Y) + b) @ inverse.T) @ ((abs(X) + a) @ S.T).T
        factors = (abs(X) + a) @ b + (abs(Y) @ a)[:, None]
        # S^T S^{-T} - 1 is s^{-1/2} F s^{-1/2} of the error F of the singular values.
        y_norm, x_norm = (np.linalg.norm(side / np.sqrt(self.s), axis=1) for side in (y, x))
        bound = gamma(3 * d + 12, _U) * (terms + factors)
        bound += self.spectral * self.tau * np.multiply.outer(y_norm, x_norm)
        reason = "products err by gamma_(3d) of their terms, S^T S^{-T} by gamma_(40 d^2) |L||L|/s"
        yield oracle.against(
            number, "x.y = x'.y' + (x-a).b + a.y", y @ x.T + f + g[:, None], want,
            Budget(bound, reason, _U),
        )  # fmt: skip
        queries, keys = self.phi.queries(self.Q[rows]), self.phi.keys(self.K[:2])
        got = np.add.outer(*map(_log_feature, (queries, keys)))
        squares = ((y[:, None] + x) ** 2).sum(axis=-1)
        sizes = (y**2).sum(axis=-1)[:, None] + (x**2).sum(axis=-1) + abs(f) + abs(g)[:, None] + 1
        yield oracle.against(
            number, "the features of keys and queries have the kernel", got + squares / 2, want,
            Budget(2 * bound + gamma(2 * d + 16, u) * sizes,
                   f"{reason}; features by gamma_(2d+16) of their norms and factors", u),
        )  # fmt: skip


def _shrunk(points: Array) -> Array:
    M = points.T @ points / len(points)
    shrunk: Array = (1 - _SHRINKAGE) * M + _SHRINKAGE * np.trace(M) / len(M) * np.eye(len(M))
    return shrunk


def _log_feature(features: Any) -> Array:
    """The logarithm of each row's only feature."""
    log_feature: Array = np.log(
        features.features.astype(np.float64)[:, 0]
    ) + features.log_scale.astype(np.float64)
    return log_feature


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
            _shrunk(np.asarray(P, np.float64) - c)
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
    "exponents err by gamma_(2d+12) of their terms; eigenvectors by gamma_(10 d^2), singular "
    "values by gamma_(40 d^2), backward.",
    code="equivalence/features/dense.py, equivalence/features/reductions.py",
    on_heads=True,
)  # fmt: skip
