"""The theorem on every real head: its error and budget, and the reach of random features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from equivalence.verify.budgets import attention_budget
from equivalence.verify.cases import Case, head_cases
from equivalence.verify.compare import compare
from equivalence.verify.dual_case import scaled, see_dual
from equivalence.verify.implementation import Implementation
from equivalence.verify.oracle import FLOATS

# A budget above this would no longer show that the dual is exact to rounding on a real head.
WIDEST_BUDGET = 1e-12


@dataclass(frozen=True)
class HeadResult:
    """One head: errors relative to the largest output, and s = |q+k|^2 over its pairs.

    A positive random feature has relative variance e^s - 1 (positive_features): s decides whether
    random features can work; the Gram features do not depend on it.
    """

    layer: int
    head: int
    error: float
    budget: float
    budget_used: float
    s_min: float
    s_median: float
    s_max: float

    @property
    def held(self) -> bool:
        """Whether the error lies in the budget, and the budget is narrow."""
        return self.budget_used <= 1 and self.budget < WIDEST_BUDGET

    @property
    def features_for_10_percent(self) -> float:
        """How many positive features bring the median pair's standard deviation to 10 %."""
        return 100 * float(np.expm1(self.s_median))


def measure_heads(implementation: Implementation) -> list[HeadResult]:
    """Every head of the shipped sample."""
    return [_measure(implementation, case, at) for at, case in enumerate(head_cases(0, FLOATS))]


def _measure(implementation: Implementation, case: Case, at: int) -> HeadResult:
    dual = see_dual(implementation, case)
    model = implementation.OneStepRegressor(scale=case.scale)
    predicted = model.fit(case.K, case.V, n_demonstrations=case.N).predict(case.Q)
    o = implementation.attention(case.Q, case.K, case.V)
    budget = attention_budget(case.Q, case.K, case.V, case.s, case.u) + dual.budget
    comparison = compare("the dual predicts o", predicted, o, budget)
    Q, K = scaled(case)
    s = ((Q[:, None] + K) ** 2).sum(axis=-1)
    size = float(abs(o).max())
    return HeadResult(
        *divmod(at, 12),
        error=float(comparison.error.max()) / size,
        budget=float(np.max(budget.bound)) / size,
        budget_used=comparison.share,
        s_min=float(s.min()),
        s_median=float(np.median(s)),
        s_max=float(s.max()),
    )
