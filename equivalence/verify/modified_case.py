"""What rounding allows an attention layer that modifies its values, and its dual."""

from __future__ import annotations

from dataclasses import dataclass, replace

from equivalence._arrays import Array
from equivalence.verify.budgets import Budget, attention_budget, sum_budget, weight_errors
from equivalence.verify.cases import Case
from equivalence.verify.dual_case import DualCase, see_dual
from equivalence.verify.implementation import Implementation


@dataclass(frozen=True)
class ModifiedCase:
    """The case as the dual sees it, and the budgets of the layer, of the dual's step, and both."""

    dual: DualCase
    layer: Budget
    step: Budget

    @property
    def both(self) -> Budget:
        """The budget of the layer beside the dual."""
        return self.layer + self.step


def modify(impl: Implementation, case: Case, magnitude: Array) -> ModifiedCase:
    """The budgets where the terms of each modified value have that magnitude (n, c) together.

    Modifying a value takes at most n + 5 roundings: the mean of n others, its factor, and the sum.
    """
    n, u = len(case.K), case.u
    x = see_dual(impl, replace(case, V=magnitude))
    layer = attention_budget(case.Q, case.K, magnitude, case.s, u)
    p, _ = weight_errors(case.Q, case.K, case.s, u)
    # A quarter more than n + 5 and the rounding of p itself, which is of second order.
    values = sum_budget(p[:, :, None] * magnitude, n + n // 4 + 7, u, axis=1)
    return ModifiedCase(x, layer + values, x.budget + values)
