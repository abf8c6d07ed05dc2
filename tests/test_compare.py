"""A comparison that should fail does fail, and says why in words that people and tests rely on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from equivalence.verify.budgets import Budget, exact
from equivalence.verify.compare import Comparison, Disagreement, compare

U = 2.0**-53


def budget(bound: npt.ArrayLike, u: float = U) -> Budget:
    return Budget(np.asarray(bound, float), "of rounding", u)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("size", [0.0, 1.0, 1e3])
def test_the_budget_is_the_border(sign: int, size: float) -> None:
    # Bound and errors are exact in binary, so the border is met exactly.
    allowed = 2.0**-30
    for error, holds in ((allowed, True), (allowed * (1 + 2.0**-10), False)):
        comparison = compare("x", [size + sign * error], [size], budget([allowed]))
        assert (comparison.share <= 1) is holds
        if holds:
            assert comparison.require() == 1
        else:
            with pytest.raises(Disagreement):
                comparison.require()


def test_one_wrong_entry_among_many_is_seen() -> None:
    want = np.zeros((30, 40))
    got = want.copy()
    got[17, 23] = 1e-9
    with pytest.raises(Disagreement, match=r"at \(17, 23\)"):
        compare("x", got, want, budget(1e-10)).require()


def test_each_entry_has_its_own_bound() -> None:
    got, bounds = [1e-9, 1e-9], [1e-8, 1e-10]
    assert compare("x", got[:1], [0.0], budget(bounds[:1])).require() < 1
    with pytest.raises(Disagreement, match=r"at \(1\)"):
        compare("x", got, [0.0, 0.0], budget(bounds)).require()


def test_the_share_is_the_largest_one() -> None:
    got, want = [1.0, 2.0 + 2.0**-40], [1.0 + 2.0**-42, 2.0]
    assert compare("x", got, want, budget(2.0**-39)).require() == 0.5


@pytest.mark.parametrize(
    ("got", "want"),
    [
        (np.nan, 1.0),
        (1.0, np.nan),
        (np.nan, np.nan),
        (np.inf, 1.0),
        (np.inf, np.inf),
        (-np.inf, np.inf),
    ],
)
@pytest.mark.parametrize("bound", [1e-12, 0.0])
def test_what_is_not_a_number_is_a_failure(got: float, want: float, bound: float) -> None:
    with pytest.raises(Disagreement):
        compare("x", [1.0, got], [1.0, want], budget(bound)).require()


@pytest.mark.parametrize("bound", [np.nan, np.inf, -1.0, -np.inf])
@pytest.mark.parametrize("got", [1.0, 1 + 1e-15, 2.0])
def test_a_bound_that_is_no_bound_is_a_failure(bound: float, got: float) -> None:
    with pytest.raises(Disagreement):
        compare("x", [got], [1.0], budget(bound)).require()


@pytest.mark.parametrize(
    ("got", "want"),
    [((2, 3), (3, 2)), ((2, 1), (2,)), ((1, 3), (2, 3)), ((), (1,)), ((0, 2), (2, 0))],
)
def test_another_shape_is_a_failure_and_is_never_broadcast(
    got: tuple[int, ...], want: tuple[int, ...]
) -> None:
    with pytest.raises(Disagreement) as failure:
        compare("the output", np.zeros(got), np.zeros(want), budget(1.0))
    assert str(failure.value) == f"the output: shape {got} where the theorem gives {want}"


@pytest.mark.parametrize("got", [np.array([1 + 1e-3j]), np.array(["1"]), np.array([1.0], object)])
def test_an_array_that_is_not_real_is_a_failure(got: npt.NDArray[np.generic]) -> None:
    with pytest.raises(Disagreement, match=r"^x: dtype .* where the theorem gives real numbers$"):
        compare("x", got, [1.0], budget(1e-10))


def test_a_budget_with_another_shape_is_an_error() -> None:
    with pytest.raises(ValueError, match="broadcast"):
        compare("x", [1.0], [1.0], budget([1e-12, 1e-12])).require()


@pytest.mark.parametrize(("u", "lower"), [(2.0**-53, 2.0**-24), (2.0**-24, 2.0**-11)])
@pytest.mark.parametrize("size", [0.0, 1.0, 100.0])
def test_a_budget_as_wide_as_the_next_lower_precision_proves_nothing(
    u: float, lower: float, size: float
) -> None:
    widest = lower * max(1.0, size)
    assert compare("x", [size], [size], budget(widest, u)).require() == 0
    with pytest.raises(Disagreement) as failure:
        compare("x", [size], [size], budget(1.01 * widest, u)).require()
    assert str(failure.value) == (
        f"x: the budget {1.01 * lower:.1e} is wider than {lower:.1e}, the unit roundoff of the "
        "next lower precision, and could not tell the two apart\n"
        "  allowed  because of rounding"
    )


@pytest.mark.parametrize("u", [0.0, 2.0**-11])
def test_without_a_lower_precision_only_an_exact_comparison_holds(u: float) -> None:
    assert compare("x", [1.0], [1.0], budget(0.0, u)).require() == 0
    with pytest.raises(Disagreement):
        compare("x", [1.0], [1.0], budget(1e-300, u)).require()


def test_float32_is_compared_in_float64() -> None:
    got, want = np.float32([1.0]), np.float64([1 + 2.0**-40])
    assert compare("x", got, want, budget(1.0)).error.item() == 2.0**-40


def test_the_failure_reads_as_in_the_design() -> None:
    got, want = np.zeros((2, 3)), np.zeros((2, 3))
    got[0, 2], want[0, 2] = -0.010637147, -0.010637145
    bounds = np.full((2, 3), 4.7e-18)
    with pytest.raises(Disagreement) as failure:
        compare("W_1 phi(q) = o", got, want, Budget(bounds, "gamma_(n+d), n=3, d=2", U)).require()
    assert str(failure.value).splitlines() == [
        "-0.010637147 where the theorem gives -0.010637145 at (0, 2): W_1 phi(q) = o",
        "  error    2e-09 = 4.3e+08 x the allowed 4.7e-18",
        "  allowed  because gamma_(n+d), n=3, d=2",
    ]


def test_the_failure_shows_the_entry_that_exceeds_its_bound_most() -> None:
    comparison = compare("x", [1.0, 2e-9, 3e-9], [0.0, 0.0, 0.0], budget([2.0, 0.0, 1e-9]))
    with pytest.raises(Disagreement, match=r"^2e-09 where the theorem gives 0 at \(1\): x\n"):
        comparison.require()


def test_the_failure_shows_a_nan_before_any_error() -> None:
    with pytest.raises(Disagreement) as failure:
        compare("x", [5.0, np.nan], [0.0, 1.0], budget(1e-9)).require()
    assert str(failure.value).splitlines() == [
        "nan where the theorem gives 1 at (1): x",
        "  error    nan = nan x the allowed 1e-09",
        "  allowed  because of rounding",
    ]


def test_where_nothing_is_allowed_the_failure_divides_by_nothing() -> None:
    with pytest.raises(Disagreement, match="error    1 = inf x the allowed 0"):
        compare("x", [3], [2], exact("a count")).require()


def test_a_certified_error_decides_not_the_numbers_shown() -> None:
    one = np.ones(1)
    with pytest.raises(Disagreement):
        Comparison("x", one, one, np.array([1e-9]), budget(1e-10)).require()


def test_nothing_compared_uses_nothing() -> None:
    empty = np.zeros((0, 2))
    assert compare("x", empty, empty, budget(1e-12)).require() == 0
