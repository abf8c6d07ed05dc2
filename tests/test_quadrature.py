"""The trapezoidal rule against the closed form, and against the error that it states."""

from __future__ import annotations

import math

import numpy as np
import pytest

from equivalence.verify.budgets import gamma
from equivalence.verify.quadrature import discretisation_error, gaussian_nodes

U = 2.0**-53
CENTRES = [*np.linspace(-28, 28, 225), 0.25, 1 / 3, math.pi, -math.e]


def test_the_mean_of_an_exponential_is_its_closed_form_within_the_stated_error() -> None:
    # E e^{at} = e^{a^2/2}: the terms are of one sign, each with an exponent of a few roundings.
    for a in CENTRES:
        t, weights = gaussian_nodes(a)
        ratio = float((weights * np.exp(a * t - a * a / 2)).sum())
        exponent = (abs(a * t) + a * a / 2 + t * t / 2).max()
        rounding = math.expm1(3 * U * exponent) + gamma(len(t) + 16, U)
        assert abs(ratio - 1) <= discretisation_error() + rounding, a


@pytest.mark.parametrize(("power", "moment"), [(0, 1), (1, 0), (2, 1), (3, 0), (4, 3), (6, 15)])
def test_the_moments_of_the_normal_law(power: int, moment: int) -> None:
    t, weights = gaussian_nodes(0.0)
    terms = weights * t**power
    allowed = gamma(len(t) + 16, U) * abs(terms).sum() + 100**power * discretisation_error()
    assert abs(terms.sum() - moment) <= allowed


@pytest.mark.parametrize("a", [0.0, 0.1, -7.3, 25.0])
def test_the_nodes_are_exact_multiples_of_one_step_around_the_centre(a: float) -> None:
    t, _ = gaussian_nodes(a)
    np.testing.assert_array_equal(np.diff(t), np.full(len(t) - 1, 0.5))
    np.testing.assert_array_equal(t * 2, np.round(t * 2))
    assert t[0] <= a - 9 < a + 9 <= t[-1]


def test_the_nodes_are_the_same_in_float32() -> None:
    t, _ = gaussian_nodes(3.7)
    np.testing.assert_array_equal(t.astype(np.float32).astype(np.float64), t)


@pytest.mark.parametrize("a", [0.0, 5.0])
def test_a_step_four_times_as_wide_is_seen(a: float) -> None:
    t, weights = gaussian_nodes(a)
    coarse = 4 * (weights * np.exp(a * t - a * a / 2))[::4].sum()
    assert abs(coarse - 1) > 1000 * discretisation_error()


def test_nodes_that_reach_half_as_far_are_seen() -> None:
    t, weights = gaussian_nodes(0.0)
    assert abs(weights[abs(t) <= 4.5].sum() - 1) > 1000 * discretisation_error()


def test_the_stated_error_is_that_of_the_aliases_and_the_tails() -> None:
    # The step is 1/2 and the reach 9; P(|t| > 8.5) is what may lie beyond the last node.
    aliases = 4 * math.exp(-2 * math.pi**2 * 4)
    assert aliases <= discretisation_error() <= 2 * aliases + 2 * math.erfc(8.5 / math.sqrt(2))
    assert discretisation_error() > math.erfc(9 / math.sqrt(2))
