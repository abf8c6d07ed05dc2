"""The statistical tests raise false alarms as rarely, and find faults as surely, as they say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from equivalence._arrays import Array
from equivalence.verify.compare import Disagreement
from equivalence.verify.implementation import OURS
from equivalence.verify.laws import LawTest, distribution_test, mean_test, variance_test
from equivalence.verify.registry import load_all

# Each count of alarms below is compared with binomial quantiles of this probability.
BETA = 1e-10
TRIALS = 3000
LARGE_ALPHA = 0.2
TINY_ALPHAS = [1e-3, 1e-9, 1e-12, 1e-20]
# Inverting a distribution function loses digits; a wrong quantile is wrong in the second one.
DIGITS = 2.0**-26
Test = Callable[[Array, float], LawTest]


def close_to(value: float) -> Any:
    return pytest.approx(value, rel=DIGITS, abs=0)


def mean(x: Array, alpha: float) -> LawTest:
    return mean_test("mean", x, 0.0, 1.0, alpha=alpha, shift=0.35)


def variance(x: Array, alpha: float) -> LawTest:
    return variance_test("variance", x**2, len(x), alpha=alpha, ratio=1.5)


def distribution(x: Array, alpha: float) -> LawTest:
    return distribution_test("law", x, lambda t: np.clip(t, 0, 1), alpha=alpha, gap=0.35)


def normal(rng: np.random.Generator) -> Array:
    return rng.standard_normal(40)


def uniform(rng: np.random.Generator) -> Array:
    return rng.random(40)


def alarms(test: Test, draw: Callable[[np.random.Generator], Array]) -> int:
    rng = np.random.default_rng(0)
    return sum(raises(test(draw(rng), LARGE_ALPHA)) for _ in range(TRIALS))


def raises(test: LawTest) -> bool:
    try:
        test.require()
    except Disagreement:
        return True
    return False


@pytest.mark.parametrize(
    ("test", "draw"), [(mean, normal), (variance, normal), (distribution, uniform)]
)
def test_false_alarms_are_at_most_alpha_and_not_much_fewer(
    test: Test, draw: Callable[[np.random.Generator], Array]
) -> None:
    counted = alarms(test, draw)
    assert counted <= stats.binom.isf(BETA, TRIALS, LARGE_ALPHA)
    # DKW's inequality gives away a little; the other two laws are exact.
    least = LARGE_ALPHA / 2 if test is distribution else LARGE_ALPHA
    assert counted >= stats.binom.ppf(BETA, TRIALS, least)


@pytest.mark.parametrize(
    ("test", "draw", "exactly"),
    [
        (mean, lambda rng: normal(rng) + 0.35, True),
        (mean, lambda rng: normal(rng) - 0.35, True),
        (variance, lambda rng: normal(rng) * np.sqrt(1.5), True),
        (distribution, lambda rng: uniform(rng) + 0.35, False),
        (distribution, lambda rng: uniform(rng) - 0.35, False),
    ],
)
def test_the_stated_power_is_reached_against_the_stated_alternative(
    test: Test, draw: Callable[[np.random.Generator], Array], exactly: bool
) -> None:
    power = test(draw(np.random.default_rng(1)), LARGE_ALPHA).power
    assert 0.5 < power < 1
    counted = alarms(test, draw)
    assert counted >= stats.binom.ppf(BETA, TRIALS, power)
    if exactly:
        # The mean test's power leaves out alarms on the wrong side, which are rarer than 0.1 %.
        assert counted <= stats.binom.isf(BETA, TRIALS, power + 1e-3)


@pytest.mark.parametrize("alpha", TINY_ALPHAS)
@pytest.mark.parametrize("n", [1, 20, 20000])
def test_the_thresholds_of_the_mean_are_normal_quantiles(alpha: float, n: int) -> None:
    test = mean_test("mean", np.zeros(n), 5.0, 2.0, alpha=alpha, shift=1.0)
    law = stats.norm(5.0, 2.0 / np.sqrt(n))
    # Above the median, quantiles of tiny upper tails keep their digits.
    assert test.upper == close_to(law.isf(alpha / 2))
    assert test.lower == close_to(law.ppf(alpha / 2))
    assert test.power == close_to(stats.norm(6.0, 2.0 / np.sqrt(n)).sf(test.upper))


@pytest.mark.parametrize("alpha", TINY_ALPHAS)
@pytest.mark.parametrize("freedom", [1, 20, 20000])
@pytest.mark.parametrize("ratio", [0.5, 1.5])
def test_the_thresholds_of_the_variance_are_chi_square_quantiles(
    alpha: float, freedom: int, ratio: float
) -> None:
    test = variance_test("variance", np.ones(3), freedom, alpha=alpha, ratio=ratio)
    law = stats.chi2(freedom)
    assert test.lower == close_to(law.ppf(alpha / 2))
    assert test.upper == close_to(law.isf(alpha / 2))
    other = stats.chi2(freedom, scale=ratio)
    assert test.power == close_to(other.sf(test.upper) + other.cdf(test.lower))


@pytest.mark.parametrize("alpha", TINY_ALPHAS)
@pytest.mark.parametrize("n", [50, 2000])
def test_the_threshold_of_the_distribution_bounds_the_exact_law_closely(
    alpha: float, n: int
) -> None:
    middle = (np.arange(n) + 0.5) / n
    eps = distribution_test("law", middle, lambda t: t, alpha=alpha, gap=0.5).upper
    # With few draws the exact tail beyond a distance near 1 is far below the bound.
    assert alpha * (0.1 if n > 1000 else 1e-12) < stats.kstwo.sf(eps, n) <= alpha


def test_the_statistics_are_those_of_scipy() -> None:
    x = np.random.default_rng(0).random(100)
    assert distribution(x, 0.1).statistic == close_to(stats.kstest(x, "uniform").statistic)
    assert mean(x, 0.1).statistic == close_to(np.mean(x))
    assert variance(x, 0.1).statistic == close_to(np.sum(x**2))


@pytest.mark.parametrize("test", [mean, variance, distribution])
def test_a_sample_with_nan_is_an_alarm(test: Test) -> None:
    x = np.random.default_rng(0).random(40)
    x[3] = np.nan
    assert raises(test(x, 1e-9))


@pytest.mark.parametrize("test", [mean, variance, distribution])
def test_no_alpha_is_so_small_that_nothing_can_fail(test: Test) -> None:
    assert np.isfinite(test(np.zeros(40), 1e-300).upper)


@pytest.mark.parametrize("gap", [0.2, 0.25, 0.3])
def test_the_power_against_a_gap_is_that_of_what_is_left_beyond_the_threshold(gap: float) -> None:
    test = distribution_test("law", np.full(50, 0.5), lambda t: t, alpha=0.2, gap=gap)
    missed = 2 * np.exp(-2 * 50 * (gap - test.upper) ** 2)
    assert test.power == close_to(max(0.0, 1 - missed))


def test_a_gap_that_so_few_draws_cannot_show_has_no_power() -> None:
    few = np.full(4, 0.5)
    assert distribution_test("law", few, lambda t: t, alpha=1e-9, gap=0.1).power == 0


def test_the_share_is_one_at_either_end() -> None:
    for statistic, share in ((-2.0, 1.0), (-1.0, 0.5), (0.0, 0.0), (2.0, 1.0)):
        test = LawTest("x", statistic, -2.0, 2.0, 1e-9, 1.0, "nothing")
        assert test.require() == test.share == share


def test_the_failure_names_threshold_false_alarms_and_power() -> None:
    test = LawTest("mean of z", 3.0, -2.0, 2.5, 1e-9, 0.98765, "a mean off by 1")
    with pytest.raises(Disagreement) as failure:
        test.require()
    assert str(failure.value).splitlines() == [
        "mean of z: statistic 3 outside [-2, 2.5]",
        "  false alarm probability 1e-09; the power is 0.9877 against a mean off by 1",
    ]


def laws_of_the_default_run() -> list[LawTest]:
    rng = np.random.default_rng(0)
    return [test for claim in load_all() if claim.law for test in claim.law(OURS, rng)]


def test_all_false_alarms_together_are_below_one_in_a_million() -> None:
    tests = laws_of_the_default_run()
    # This module compares 3 + 5 counts with a lower quantile, and 3 + 3 with an upper one.
    assert tests
    assert sum(test.alpha for test in tests) + 14 * BETA < 1e-6


def test_no_law_of_the_default_run_is_without_power() -> None:
    assert min(test.power for test in laws_of_the_default_run()) > 0.99
