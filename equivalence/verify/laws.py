"""Exact laws for what is random: a bound alpha on the false alarms, and the power of the test.

No asymptotics: the thresholds come from finite-sample laws (normal, chi-square, and the
Dvoretzky-Kiefer-Wolfowitz inequality with Massart's constant), so alpha is a bound, not a hope.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import special

from equivalence._arrays import Array
from equivalence.verify.compare import Disagreement


@dataclass(frozen=True)
class LawTest:
    """A statistic against its threshold, with what the test can and cannot see."""

    what: str
    statistic: float
    lower: float
    upper: float
    alpha: float
    power: float
    alternative: str

    @property
    def share(self) -> float:
        """How far the statistic is from the middle of its interval, as a part of the half width."""
        middle, half = (self.lower + self.upper) / 2, (self.upper - self.lower) / 2
        return abs(self.statistic - middle) / half

    def require(self) -> float:
        """Return the share of the interval used; raise Disagreement outside it."""
        if not self.lower <= self.statistic <= self.upper:
            raise Disagreement(
                f"{self.what}: statistic {self.statistic:.6g} outside [{self.lower:.6g}, "
                f"{self.upper:.6g}]\n"
                f"  false alarm probability {self.alpha:.0e}; the power is {self.power:.4f} "
                f"against {self.alternative}"
            )
        return self.share


def mean_test(
    what: str, sample: Array, mean: float, sigma: float, *, alpha: float, shift: float
) -> LawTest:
    """The mean of n draws of N(mean, sigma^2): exactly normal. Power: a mean off by `shift`.

    >>> test = mean_test("zero mean", np.zeros(100), 0.0, 1.0, alpha=1e-9, shift=1.0)
    >>> test.require(), round(test.power, 3)
    (0.0, 1.0)
    """
    half = -float(special.ndtri(alpha / 2)) * sigma / math.sqrt(len(sample))
    power = float(special.ndtr((shift - half) / (sigma / math.sqrt(len(sample)))))
    return LawTest(
        what,
        float(np.mean(sample)),
        mean - half,
        mean + half,
        alpha,
        power,
        f"a mean off by {shift:g}",
    )


def variance_test(
    what: str, squares: Array, freedom: int, *, alpha: float, ratio: float
) -> LawTest:
    """The sum of squares of standard normals: exactly chi-square. Power: variance `ratio`.

    >>> variance_test("unit", np.ones(1000), 1000, alpha=1e-9, ratio=2.0).power > 0.999
    True
    """
    lower = float(special.gammaincinv(freedom / 2, alpha / 2)) * 2
    upper = float(special.gammainccinv(freedom / 2, alpha / 2)) * 2
    caught = float(
        special.gammaincc(freedom / 2, upper / ratio / 2)
        + special.gammainc(freedom / 2, lower / ratio / 2)
    )
    return LawTest(
        what,
        float(np.sum(squares)),
        lower,
        upper,
        alpha,
        caught,
        f"a variance {ratio:g} times as large",
    )


def neighbours_test(what: str, sample: Array, *, alpha: float, ratio: float) -> LawTest:
    """Independence of neighbours: (z_1 + z_2)/sqrt(2) of standard normals is one, if they are.

    >>> twice = np.repeat(np.tile([-1.0, 1.0], 2000), 2)
    >>> test = neighbours_test("neighbours", twice, alpha=1e-9, ratio=1.3)
    >>> round(test.statistic), test.statistic > test.upper
    (8000, True)
    """
    sums = (sample[0::2] + sample[1::2]) / math.sqrt(2)
    return variance_test(what, sums**2, len(sums), alpha=alpha, ratio=ratio)


def distribution_test(
    what: str, sample: Array, cdf: Callable[[Array], Array], *, alpha: float, gap: float
) -> LawTest:
    """sup |F_n - F| of n independent draws: P(> eps) <= 2 exp(-2 n eps^2) (Massart 1990).

    Power against any law whose distribution function is `gap` away somewhere:
    at least 1 - 2 exp(-2 n (gap - eps)^2).

    >>> middle = (np.arange(4000) + 0.5) / 4000
    >>> distribution_test("uniform", middle, lambda x: x, alpha=1e-9, gap=0.1).power > 0.99
    True
    """
    n = len(sample)
    eps = math.sqrt(math.log(2 / alpha) / (2 * n))
    F = cdf(np.sort(sample))
    above, below = np.arange(1, n + 1) / n - F, F - np.arange(n) / n
    statistic = float(max(above.max(), below.max()))
    power = 1 - 2 * math.exp(-2 * n * (gap - eps) ** 2) if gap > eps else 0.0
    return LawTest(
        what, statistic, -eps, eps, alpha, max(power, 0.0), f"a distribution function {gap:g} away"
    )
