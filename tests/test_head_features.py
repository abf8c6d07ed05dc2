"""The benchmark of features a head: that it runs, and that its figures are what it says."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from equivalence.features import LandmarkFeatures

Array = np.ndarray[Any, Any]
MODULES = ("head_data", "head_estimates", "head_maps", "head_draws", "head_features")
# Layer 2, head 5, and layer 5, head 1: two of the shipped heads.
SOME = (29, 61)


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    """The script as its own folder sees it, and nothing of it afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent / "benchmarks")
        import head_features

        yield head_features
    for name in MODULES:
        sys.modules.pop(name)


@pytest.fixture(scope="module")
def heads(script: Any) -> list[Any]:
    odd = np.arange(37) % 2 == 1
    splits = script.held_out(*(x[list(SOME)] for x in script.shipped()), odd)
    return list(script.heads_of(splits))


def distance(A: Array, B: Array) -> float:
    return float(np.linalg.norm(A - B) / np.linalg.norm(A))


@pytest.mark.parametrize("tolerance", [0.1, 0.01])
def test_the_limit_meets_the_tolerance_and_one_rank_less_does_not(
    script: Any, heads: list[Any], tolerance: float
) -> None:
    for head in heads:
        A = head.A_held
        U, s, Vt = np.linalg.svd(A)
        r = script.eckart_young(A, tolerance)
        truncated = [(U[:, :m] * s[:m]) @ Vt[:m] for m in (r, r - 1)]
        assert distance(A, truncated[0]) <= tolerance < distance(A, truncated[1])


def test_a_requirement_meets_the_tolerance_and_one_feature_less_does_not(
    script: Any, heads: list[Any]
) -> None:
    for head in heads:
        estimate = script.maps.by(script.maps.by_greed)(head)
        m = script.requirements(head, estimate)[2]
        exact, tolerance = head.A_held, 0.1
        enough, fewer = (script.normalised(estimate.held(int(k))) for k in (m, m - 1))
        assert distance(exact, enough) <= tolerance < distance(exact, fewer)


def test_the_greedy_row_is_what_landmark_features_give(script: Any, heads: list[Any]) -> None:
    """An error within the tolerance of the class, with the number of features of the table."""
    for head in heads:
        s = head.split
        estimate = script.maps.by(script.maps.by_greed)(head)
        m = int(script.requirements(head, estimate)[2])
        phi = LandmarkFeatures(m).fit(s.K, s.likely)
        A = script.normalised(phi.queries(s.held).features @ phi.keys(s.K).phi().T)
        assert phi.indices_.tolist() == head.greedy[:m].tolist()
        # One is solved by QR, the other from A^T A: half of the digits.
        assert distance(A, script.normalised(estimate.held(m))) <= np.sqrt(np.finfo(float).eps)


def test_gram_features_are_exact_with_all_keys(script: Any, heads: list[Any]) -> None:
    for head in heads:
        found = script.normalised(script.maps.gram(head).held(37))
        # Relative errors of the kernel, amplified by |L^{-1}|; the rank is told apart from 36.
        assert distance(head.A_held, found) <= np.sqrt(np.finfo(float).eps)


def test_what_a_map_is_judged_on_is_not_what_it_is_fitted_to(script: Any, heads: list[Any]) -> None:
    """Other held-out queries, and nothing that the maps were fitted to changes."""
    for head in heads:
        other = script.Head(replace(head.split, held=head.split.held[::-1] / 2), head.seed)
        for row in (*script.DETERMINISTIC, *script.RANDOM):
            first, second = row.estimate(head), row.estimate(other)
            assert np.array_equal(first.fit(7), second.fit(7)), row.name
            assert not np.array_equal(first.held(7), second.held(7)), row.name


def test_the_tables_have_a_line_for_each_map(script: Any, heads: list[Any]) -> None:
    rows = (*script.DETERMINISTIC, *script.RANDOM)
    lines = [
        *script.table("two heads", heads, script.DETERMINISTIC),
        *script.random_table("two heads", heads),
    ]
    assert [sum(line.startswith(row.name) for line in lines) for row in rows] == [
        sum(other.name.startswith(row.name) for other in rows) for row in rows
    ]
