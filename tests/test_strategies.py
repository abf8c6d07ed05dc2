"""The strategies draw what the claims need, all of it, and nothing malformed."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st

from equivalence.verify.cases import Case, generated_cases, head_cases, make_case
from equivalence.verify.oracle import FLOATS
from equivalence.verify.profiles import PROFILES, Profile
from equivalence.verify.strategies import cases, settings_of

LABEL = re.compile(
    r"n_q=(\d+) n=(\d+) d=(\d+) c=(\d+) N=(\d+) dtype=(float64|float32) spread=(\S+)"
    r"( scale=\S+)?( twins)?"
)


def check_well_formed(case: Case) -> None:
    found = LABEL.fullmatch(case.label)
    assert found, case.label
    n_q, n, d, c, N = map(int, found.groups()[:5])
    assert (case.Q.shape, case.K.shape, case.V.shape) == ((n_q, d), (n, d), (n, c))
    assert case.N == N
    assert 0 <= N <= n
    assert {x.dtype.name for x in (case.Q, case.K, case.V)} == {found[6]}
    assert all(np.isfinite(x).all() for x in (case.Q, case.K, case.V))
    assert (case.scale is not None) is bool(found[8])
    assert (len(np.unique(case.K, axis=0)) < n) is bool(found[9])
    assert case.s > 0
    np.testing.assert_array_equal(case.rows, np.arange(n_q))


@given(cases())
@settings(max_examples=100, deadline=None, database=None, derandomize=True)
def test_every_drawn_case_is_well_formed_and_labelled(case: Case) -> None:
    check_well_formed(case)


@pytest.mark.parametrize("seed", [0, 7])
def test_every_case_of_the_fixed_list_is_well_formed_and_labelled(seed: int) -> None:
    for case in generated_cases(seed, 2):
        check_well_formed(case)


CORNERS: dict[str, Callable[[Case], bool]] = {
    "one key": lambda case: len(case.K) == 1,
    "one query": lambda case: len(case.Q) == 1,
    "one dimension": lambda case: case.K.shape[1] == 1,
    "no demonstrations": lambda case: case.N == 0,
    "only demonstrations": lambda case: len(case.K) == case.N,
    "both kinds of token": lambda case: 0 < case.N < len(case.K),
    "twins": lambda case: "twins" in case.label,
    "float32": lambda case: case.K.dtype == np.float32,
    "float64": lambda case: case.K.dtype == np.float64,
    "a scale of its own": lambda case: case.scale is not None,
    "the default scale": lambda case: case.scale is None,
    "more keys than dimensions": lambda case: len(case.K) > case.K.shape[1],
}


def has_more_dimensions_than_keys(case: Case) -> bool:
    return len(case.K) < case.K.shape[1]


@pytest.mark.parametrize(
    "corner",
    [*CORNERS.values(), has_more_dimensions_than_keys],
    ids=[*CORNERS, "more dimensions than keys"],
)
def test_the_strategy_reaches_every_corner(corner: Callable[[Case], bool]) -> None:
    assert corner(find(cases(), corner, settings=settings(max_examples=500, database=None)))


@pytest.mark.parametrize("corner", CORNERS)
def test_the_fixed_list_reaches_every_corner(corner: str) -> None:
    assert any(CORNERS[corner](case) for case in generated_cases(0, 1))


def test_twins_are_one_equal_pair_and_one_nearly_equal_pair() -> None:
    K = make_case(3, n=6, d=2, twins=True).K
    np.testing.assert_array_equal(K[0], K[1])
    assert 0 < abs(K[2] - K[3]).max() < 2.0**-28


@pytest.mark.parametrize("twins", [False, True])
def test_a_case_is_made_again_from_its_label_and_seed(twins: bool) -> None:
    one, other = (make_case(5, n_q=2, n=6, d=3, c=1, N=4, twins=twins) for _ in range(2))
    for x, y in ((one.Q, other.Q), (one.K, other.K), (one.V, other.V)):
        np.testing.assert_array_equal(x, y)
    assert make_case(6).K.tobytes() != make_case(5).K.tobytes()


def test_each_purpose_has_random_numbers_of_its_own() -> None:
    case = make_case(5)
    draws = [case.rng(purpose).random() for purpose in ("masks", "h", "masks")]
    assert draws[0] == draws[2] != draws[1]


def test_repeats_of_the_fixed_list_have_new_numbers() -> None:
    once = len(list(generated_cases(0, 1)))
    keys = [case.K.tobytes() for case in generated_cases(0, 3)]
    assert len(keys) == len(set(keys)) == 3 * once


def test_a_case_cannot_be_changed_by_what_it_is_given_to() -> None:
    case = make_case(0)
    for array in (case.Q, case.K, case.V):
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 0


def test_the_heads_are_all_there_and_one_query_of_each_is_answered() -> None:
    cases_ = list(head_cases(4, FLOATS))
    assert len(cases_) == 72
    assert len({case.label for case in cases_}) == 72
    for case in cases_:
        assert case.real
        assert case.K.dtype == np.float64
        assert len(case.K) - 1 == case.N
        assert case.rows.shape == (1,)
        assert case.rows.max() < len(case.Q)
    # Together they reach most of the 37 positions, and another seed chooses anew.
    chosen = [int(case.rows[0]) for case in cases_]
    assert len(set(chosen)) > 20
    assert chosen != [int(case.rows[0]) for case in head_cases(5, FLOATS)]


@pytest.mark.parametrize("profile", PROFILES.values(), ids=list(PROFILES))
def test_the_profiles_set_the_examples_and_nothing_that_varies(profile: Profile) -> None:
    chosen = settings_of(profile)
    assert chosen.max_examples == profile.examples
    assert (chosen.deadline, chosen.database) == (None, None)


@given(st.data())
@settings(max_examples=20, deadline=None, database=None, derandomize=True)
def test_only_the_dtypes_asked_for_are_drawn(data: st.DataObject) -> None:
    assert data.draw(cases(dtypes=("float32",))).K.dtype == np.float32
