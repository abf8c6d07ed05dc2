"""Forward mode against derivatives known in closed form, and against wrong ones."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from equivalence.verify import oracle
from equivalence.verify.budgets import Budget
from equivalence.verify.compare import Disagreement
from equivalence.verify.forward_mode import Moving, forward, moving, slopes, still

BALLS = oracle.balls()
BOTH = pytest.mark.parametrize("number", [oracle.FLOATS, BALLS], ids=["fsum", "arb"])


@pytest.mark.parametrize(
    ("f", "slope"),
    [
        (lambda x: x + 3, 1),
        (lambda x: 3 + x, 1),
        (lambda x: x - 5, 1),
        (lambda x: 5 - x, -1),
        (lambda x: -x, -1),
        (lambda x: 3 * x, 3),
        (lambda x: x * 3, 3),
        (lambda x: x * x * x, 12),
        (lambda x: x / 4, Fraction(1, 4)),
        (lambda x: 1 / x, Fraction(-1, 4)),
        (lambda x: x / (x + 2), Fraction(1, 8)),
        (lambda x: (x * x - 1) / (3 * x), Fraction(5, 12)),
    ],
)
def test_the_rules_of_arithmetic_on_exact_rationals(f, slope) -> None:  # type: ignore[no-untyped-def]
    """At 2, in fractions, so that nothing is rounded."""
    x = Moving(Fraction(2), Fraction(1))
    assert f(x).slope == slope
    assert f(x).value == f(Fraction(2))


@BOTH
def test_an_exponential_moves_by_itself(number: oracle.Arithmetic) -> None:
    (x,) = moving(number, [number.number(1.5)], at=0)
    y = forward(number).exp(3 * x)
    assert number.distance(3 * math.exp(4.5), y.slope) <= 4 * math.ulp(3 * math.exp(4.5))
    assert number.distance(0.0, y.slope - 3 * y.value) <= math.ulp(3 * math.exp(4.5))


@BOTH
def test_a_sum_of_numbers_some_of_which_move(number: oracle.Arithmetic) -> None:
    ahead = forward(number)
    x, y = moving(number, [number.number(2.0), number.number(7.0)], at=0)
    total = ahead.sum([x, y, 3 * x])
    assert [float(total.value), float(total.slope)] == [15.0, 4.0]
    assert float(ahead.sum([y, y])) == 14.0
    assert still(ahead.sum([])) == 0
    assert float(ahead.exp(number.number(0.0))) == 1.0


@BOTH
def test_what_stands_still_has_no_slope(number: oracle.Arithmetic) -> None:
    x, y = moving(number, [number.number(2.0), number.number(7.0)], at=1)
    assert [float(s) for s in slopes(number, [x, y, still(y)])] == [0.0, 1.0, 0.0]
    assert float(y) == 7.0


def test_the_largest_score_taken_out_leaves_no_slope_behind() -> None:
    """Attention is the same whichever score is taken out, and so is its derivative."""
    keys = np.array([[3.0], [1.0]])
    k, v = BALLS.vectors(keys), BALLS.vectors(np.array([[1.0], [0.0]]))
    s = BALLS.number(1.0)
    (slope,) = slopes(BALLS, oracle.attention(forward(BALLS), moving(BALLS, [s], at=0), k, v, s))
    # p = 1 / (1 + e^{-2q}) has the slope 2 p (1 - p).
    p = 1 / (1 + BALLS.exp(BALLS.number(-2.0)))
    assert float(abs(slope - 2 * p * (1 - p)).upper()) < Fraction(1, 2**190)


@BOTH
@pytest.mark.parametrize("wrong", [0.0, -1.0, 0.5, 2.0, 1 + 2.0**-40])
def test_a_wrong_derivative_is_detected(number: oracle.Arithmetic, wrong: float) -> None:
    """The slope of attention by a query, times a factor that should be 1."""
    q, K, V = np.array([[0.3, -0.7]]), np.array([[1.0, 2.0], [-1.0, 0.5]]), np.eye(2)
    (x,), k, v = (number.vectors(a) for a in (q, K, V))
    s = number.number(1.0)
    want = [slopes(number, oracle.attention(forward(number), moving(number, x, 1), k, v, s))]
    right = np.array([[float(y) for y in want[0]]])
    budget = Budget(8 * 2.0**-53 * abs(right), "a slope is rounded", 2.0**-53)
    assert oracle.against(number, "do/dq", right, want, budget).require() <= 1
    with pytest.raises(Disagreement, match="where the theorem gives"):
        oracle.against(number, "do/dq", wrong * right, want, budget).require()
