"""Comparing what was computed with what the theorem gives, within a budget, readably."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from equivalence._arrays import Array
from equivalence.verify.budgets import Budget

# float32's unit roundoff for float64, float16's for float32.
_LOWER = {2.0**-53: 2.0**-24, 2.0**-24: 2.0**-11}


class Disagreement(AssertionError):
    """Two things that a claim says are equal are not, or a law was broken."""


@dataclass(frozen=True)
class NotRun:
    """A comparison that the target offers no way to make; it is counted and reported."""

    what: str
    why: str


@dataclass(frozen=True)
class Inconclusive:
    """A comparison whose interval is too wide to tell right from wrong; it is no evidence."""

    what: str
    why: str


@dataclass(frozen=True)
class Comparison:
    """`got` against `want`, entry by entry; `error` is |got - want|, or a certified bound of it."""

    what: str
    got: Array
    want: Array
    error: Array
    budget: Budget

    @property
    def share(self) -> float:
        """The largest part of the budget used: at most 1 if the comparison holds, NaN for NaN."""
        bound = np.broadcast_to(self.budget.bound, self.error.shape)
        with np.errstate(divide="ignore", invalid="ignore"):
            used = self.error / np.maximum(bound, 0)
        # No error uses nothing, unless the bound is none: NaN, or negative.
        share = np.where((self.error == 0) & (bound >= 0), 0.0, used)
        return float(np.max(share, initial=0.0))

    @property
    def width(self) -> float:
        """The budget relative to the largest number compared, or absolute if that is below 1.

        Cases have values of order 1, so a want near 0 is a sum that happens to cancel.
        """
        largest = float(np.max(abs(np.asarray(self.want, float)), initial=1.0))
        return float(np.max(self.budget.bound, initial=0.0)) / largest

    @property
    def limit(self) -> float:
        """The width that tells nothing: the unit roundoff of the next lower precision."""
        return _LOWER.get(self.budget.u, 0.0)

    def require(self) -> float:
        """Return the share used; raise Disagreement if it exceeds 1 or the budget is no test.

        A budget as wide as the unit roundoff of the next lower precision could let that precision
        pass for the stated one: the comparison proves nothing, and fails.
        """
        if not self.share <= 1:
            raise Disagreement(self._failure())
        if not self.width <= self.limit:
            raise Disagreement(
                f"{self.what}: the budget {self.width:.1e} is wider than {self.limit:.1e}, the "
                "unit roundoff of the next lower precision, and could not tell the two apart\n"
                f"  allowed  because {self.budget.because}"
            )
        return self.share

    def _failure(self) -> str:
        bound = np.broadcast_to(self.budget.bound, self.error.shape)
        excess = np.where(np.isnan(self.error), np.inf, self.error) - bound
        at = np.unravel_index(int(np.argmax(excess)), self.error.shape)
        error, allowed = float(self.error[at]), float(bound[at])
        times = error / allowed if allowed else math.inf
        place = ", ".join(str(int(i)) for i in at)
        return (
            f"{float(self.got[at]):.10g} where the theorem gives {float(self.want[at]):.10g} "
            f"at ({place}): {self.what}\n"
            f"  error    {error:.2g} = {times:.2g} x the allowed {allowed:.2g}\n"
            f"  allowed  because {self.budget.because}"
        )


def compare(what: str, got: npt.ArrayLike, want: npt.ArrayLike, budget: Budget) -> Comparison:
    """Compare two arrays of one shape; a shape that differs, or a NaN, is a failure, not an error.

    >>> from equivalence.verify.budgets import exact
    >>> compare("one is one", [1.0], [1.0], exact("nothing is rounded")).require()
    0.0
    """
    a, b = np.asarray(got), np.asarray(want)
    if a.shape != b.shape:
        raise Disagreement(f"{what}: shape {a.shape} where the theorem gives {b.shape}")
    if a.dtype.kind not in "fiub":
        raise Disagreement(f"{what}: dtype {a.dtype} where the theorem gives real numbers")
    with np.errstate(invalid="ignore"):
        error = abs(a.astype(np.float64) - b.astype(np.float64))
    return Comparison(what, a, b, error, budget)


def settle(comparison: Comparison) -> Comparison | Inconclusive:
    """A comparison with a limit that is known by an interval, unless the interval tells nothing.

    A difference beyond even a wide interval is a failure; agreement within one is no evidence.

    >>> from equivalence.verify.budgets import Budget
    >>> wide = Budget(np.array([0.5]), "the last step of the extrapolation", 2.0**-53)
    >>> settle(compare("the slope", [1.0], [1.25], wide)).why
    'its interval 4.0e-01 is wider than 6.0e-08'
    """
    if comparison.share > 1 or comparison.width <= comparison.limit:
        return comparison
    why = f"its interval {comparison.width:.1e} is wider than {comparison.limit:.1e}"
    return Inconclusive(comparison.what, why)


@dataclass(frozen=True)
class Refutation:
    """A tempting statement that must fail, by far more than rounding could explain."""

    comparison: Comparison

    def require(self) -> float:
        """Return 0; raise Disagreement if the tempting statement holds up to 1000 budgets."""
        if self.comparison.share <= 1000:
            raise Disagreement(
                f"{self.comparison.what}: the tempting statement is not refuted, it holds to "
                f"{self.comparison.share:.2g} x the budget\n"
                f"  allowed  because {self.comparison.budget.because}"
            )
        return 0.0


def refute(what: str, got: npt.ArrayLike, tempting: npt.ArrayLike, budget: Budget) -> Refutation:
    """Demand that `got` is not what the tempting statement gives.

    >>> from equivalence.verify.budgets import exact
    >>> refute("one is two", [1.0], [2.0], exact("nothing is rounded")).require()
    0.0
    """
    return Refutation(compare(what, got, tempting, budget))
