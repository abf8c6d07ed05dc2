"""A case seen by dense features: one pair's exact law, axis by axis, and both reductions of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from equivalence._arrays import Array
from equivalence.features import PositiveFeatures
from equivalence.verify import oracle
from equivalence.verify.budgets import Budget, gamma
from equivalence.verify.cases import Case
from equivalence.verify.compare import Comparison, compare
from equivalence.verify.coupled import log_products
from equivalence.verify.implementation import Implementation
from equivalence.verify.oracle import Number
from equivalence.verify.quadrature import discretisation_error, gaussian_nodes

_U = 2.0**-53
# At it the second moment of a single point is not singular.
_SHRINKAGE = 0.5


class Pair:
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

    def largest(self, W: Array) -> float:
        """The largest exponents of the key's and of the query's row, added up."""
        rows = np.concatenate([self.x, self.y]).astype(np.float64) @ self.axes
        first = abs(rows * np.sqrt(1 - 4 * self.tilts)) @ abs(W).T
        largest: float = (first + W**2 @ self.tilts).max(axis=1).sum()
        return largest

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
        bound = gamma(3 * self.d + 18, u) * (size + size.max() + self.constant)
        budget = Budget(bound[None], "log T errs by gamma_(3d+18) of its terms", u)
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
        # At w = 0 the exponent is exact, and the row's largest one is all that a feature carries.
        # log2 e, where exp2 stands for exp, is two roundings of every exponent, the largest too.
        size, largest = self.size(W)[:-1], self.largest(W)
        own = gamma(2 * d + 11, u) * size + 2 * u * largest + 40 * u
        ours = gamma(12, _U) * (
            v**2 * (1 + 1 / beta[axis]) + abs(slope[axis] * v) + slope[axis] ** 2
        )
        error = np.where(np.isneginf(exponent), 1.0, np.expm1(p * own + ours))
        per_axis = np.add.reduceat(ideal * error, starts)
        base = gamma(d + 8, u) * self.constant + 9 * u * largest + self.defect
        rounding = gamma(d + 64, _U) * (abs(closed) + float((slope**2).sum()) + self.constant)
        total = per_axis.sum() + 2 * d * discretisation_error() + p * base + rounding
        return oracle.against(
            self.number,
            f"log {what} by quadrature",
            np.array([[p * logs[-1] + closed + np.log(along).sum()]]),
            [[self._log_moment(powers)]],
            Budget(
                np.array([[total / (1 - total) if total < 1 else math.inf]]),
                "on each axis exponents err by gamma_(2d+11) of their terms and 2u of the largest; "
                "trapezoidal rule, 2 exp(-2 pi^2/h^2), and tails beyond 9 standard deviations; "
                "axes orthonormal to gamma_(10 d^2)",
                u,
            ),
        )

    def _log_moment(self, powers: tuple[int, int]) -> Number:
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


class Reduced:
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
        self.M_x, self.M_y = shrunk(self.X - self.a), shrunk(self.Y - self.b)
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


def shrunk(points: Array) -> Array:
    """The second moment of points, halfway to its multiple of the identity.

    >>> shrunk(np.array([[2.0, 0.0]]))
    array([[3., 0.],
           [0., 1.]])
    """
    M = points.T @ points / len(points)
    moment: Array = (1 - _SHRINKAGE) * M + _SHRINKAGE * np.trace(M) / len(M) * np.eye(len(M))
    return moment


def _log_feature(features: Any) -> Array:
    """The logarithm of each row's only feature."""
    log_feature: Array = np.log(
        features.features.astype(np.float64)[:, 0]
    ) + features.log_scale.astype(np.float64)
    return log_feature
