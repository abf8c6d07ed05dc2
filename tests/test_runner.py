"""A run says HOLDS only if everything held, and accounts for whatever did not run."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import pytest
import threadpoolctl

from equivalence.verify import runner
from equivalence.verify.budgets import Budget
from equivalence.verify.cases import Case
from equivalence.verify.claim import Claim, Kind, Mutant, Rung
from equivalence.verify.compare import Comparison, Inconclusive, NotRun, compare
from equivalence.verify.heads import HeadResult
from equivalence.verify.implementation import OURS, Implementation
from equivalence.verify.laws import LawTest, mean_test
from equivalence.verify.profiles import Profile
from equivalence.verify.report import Report
from equivalence.verify.runner import FAILED, HELD, INCONCLUSIVE, KNOWN, NOT_RUN, Run, run

PROFILE = Profile("tiny", repeats=1, examples=3)


class ProofsOfAnything:
    """In place of `python -m proofs`, which takes a second: every proof says the same."""

    verdict_of_all: ClassVar[dict[str, Any] | None] = {
        "held": True,
        "scope": "every n",
        "steps": 3,
        "false_variants": {"refused": 2, "total": 2},
        "failure": None,
    }
    why_not = ""
    stopped = False

    @classmethod
    def start(cls, stems: list[str]) -> ProofsOfAnything:
        return cls()

    def verdict(self, stem: str) -> dict[str, Any] | None:
        return self.verdict_of_all

    def stop(self) -> None:
        type(self).stopped = True


@pytest.fixture(autouse=True)
def _quick_proofs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "Proofs", ProofsOfAnything)


def check(impl: Implementation, case: Case) -> Iterator[Comparison | NotRun]:
    """gradient_step is used as "the output", twice V."""
    got = impl.gradient_step(case.V, -case.V)
    yield compare("V + V = 2 V", got, 2 * case.V, Budget(0 * case.V, "doubling is exact", 0.0))


def law(impl: Implementation, rng: np.random.Generator) -> Iterator[LawTest]:
    for alpha in (1e-9, 3e-9):
        z = rng.standard_normal((400, 1))
        z = impl.gradient_step(z, 0 * z)
        yield mean_test("mean", z, 0.0, 1.0, alpha=alpha, shift=1.0)


def off(W: Any, gradient: Any, learning_rate: float = 1.0) -> Any:
    return W - gradient + 1e-3


def crash(W: Any, gradient: Any, learning_rate: float = 1.0) -> Any:
    raise RuntimeError("no such thing")


def harmless(W: Any, gradient: Any, learning_rate: float = 1.0) -> Any:
    return W - gradient


OFF = Mutant("off", "adds 1e-3", {"gradient_step": off})
HARMLESS = Mutant("harmless", "is right", {"gradient_step": harmless})
CRASH = Mutant("crash", "raises", {"gradient_step": crash})
TINY = Claim(
    stem="tiny",
    statement="V + V = 2 V",
    kind=Kind.EXACT,
    needs=("gradient_step",),
    check=check,
    mutants=(OFF,),
    assumptions="none",
    budget="0",
    code="nowhere",
)


def climb(*claims: Claim, implementation: Implementation = OURS, **options: Any) -> Run:
    return run(claims, PROFILE, 0, implementation=implementation, **options)


def stepping(step: Callable[..., Any]) -> Implementation:
    return replace(OURS, gradient_step=step)


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in packages else find(name)
    )


def test_a_claim_that_holds_holds_on_every_rung() -> None:
    outcome = climb(TINY, replace(TINY, stem="with_law", law=law))
    assert Report(outcome).verdict == "HOLDS"
    one, other = outcome.claims
    assert [r.outcome for r in one.rungs.values()] == [HELD] * 4
    assert list(one.rungs) == [Rung.SYMBOLIC, Rung.BALL, Rung.FLOAT, Rung.PROPERTY]
    assert other.rungs[Rung.STATISTICAL].comparisons == 2
    assert (one.killed, one.survived, one.budget_used) == (["off"], [], 0.0)


def test_each_rung_counts_its_comparisons() -> None:
    (result,) = climb(TINY).claims
    counts = {rung: r.comparisons for rung, r in result.rungs.items()}
    assert counts == {Rung.SYMBOLIC: 5, Rung.BALL: 8, Rung.FLOAT: 8, Rung.PROPERTY: 3}


def test_the_false_alarms_of_a_law_are_added() -> None:
    (result,) = climb(replace(TINY, law=law)).claims
    assert result.rungs[Rung.STATISTICAL].note == "false alarms below 4e-09"


def test_the_largest_share_of_a_budget_is_kept() -> None:
    def half(impl: Implementation, case: Case) -> Iterator[Comparison]:
        part = 0.5 if case.K.shape == (24, 16) else 0.25
        bound = Budget(np.full(1, 2.0**-40), "made up", 2.0**-53)
        yield compare("half", [1 + part * 2.0**-40], [1.0], bound)

    (result,) = climb(replace(TINY, check=half, mutants=())).claims
    assert result.budget_used == result.rungs[Rung.FLOAT].budget_used == 0.5


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (off, "where the theorem gives"),
        (crash, "RuntimeError: no such thing"),
        (lambda W, g, eta=1.0: W[:1], "shape (1, 2) where the theorem gives (5, 2)"),
        (lambda W, g, eta=1.0: W * np.nan, "nan where the theorem gives"),
        (lambda W, g, eta=1.0: None, "theorem gives"),
        (lambda W, g, eta=1.0: exit(0), "SystemExit: 0"),
        (lambda W, g, eta=1.0: W.__setitem__(0, 0), "read-only"),
    ],
)
def test_whatever_goes_wrong_is_a_failure_on_every_numerical_rung(
    step: Callable[..., Any], message: str
) -> None:
    outcome = climb(replace(TINY, law=law), implementation=stepping(step))
    (result,) = outcome.claims
    assert Report(outcome).verdict == "FAILED"
    assert result.outcome == FAILED
    assert message in result.failure
    numerical = [Rung.BALL, Rung.FLOAT, Rung.PROPERTY]
    assert [result.rungs[rung].outcome for rung in numerical] == [FAILED] * 3
    assert result.killed == ["off"]


def test_a_target_that_fails_does_not_hide_the_next_claim() -> None:
    def refuses(impl: Implementation, case: Case) -> Iterator[Comparison]:
        raise RuntimeError("nothing to see")
        yield

    outcome = climb(replace(TINY, check=refuses, mutants=()), TINY)
    assert [claim.outcome for claim in outcome.claims] == [FAILED, HELD]


def test_the_failure_is_the_first_one_and_reads_as_in_the_design() -> None:
    (result,) = climb(TINY, implementation=stepping(off), target="mymodel:step").claims
    lines = result.failure.splitlines()
    assert lines[0].startswith("claim tiny fails: ")
    assert lines[0].endswith(": V + V = 2 V")
    assert [line[:11] for line in lines[1:]] == [
        "  error    ",
        "  allowed  ",
        "  given    ",
        "  redo     ",
    ]
    assert lines[2] == "  allowed  because doubling is exact"
    assert lines[3] == (
        "  given    n_q=3 n=5 d=3 c=2 N=4 dtype=float64 spread=1 seed=0"
        "          read  proofs/tiny.py"
    )
    assert lines[4] == (
        "  redo     equivalence check mymodel:step --only tiny --seed 0 --profile tiny"
    )


def test_a_law_that_is_broken_is_a_failure() -> None:
    def noisy(W: Any, gradient: Any, learning_rate: float = 1.0) -> Any:
        return W - gradient + 0.5 * (len(W) == 400)

    outcome = climb(replace(TINY, law=law), implementation=stepping(noisy))
    (result,) = outcome.claims
    assert result.rungs[Rung.FLOAT].outcome == HELD
    assert result.rungs[Rung.STATISTICAL].outcome == FAILED
    assert "mean: statistic" in result.failure
    assert Report(outcome).verdict == "FAILED"


def test_what_only_the_drawn_cases_show_is_a_failure() -> None:
    def small(W: Any, gradient: Any, learning_rate: float = 1.0) -> Any:
        return W - gradient + 1e-3 * (len(W) in (2, 3, 4))

    profile = Profile("drawn", repeats=1, examples=20)
    (result,) = run([TINY], profile, 0, implementation=stepping(small)).claims
    assert [rung for rung, r in result.rungs.items() if r.outcome == FAILED] == [Rung.PROPERTY]
    assert result.outcome == FAILED
    # The smallest such case is the one that is shown.
    assert "given    n_q=1 n=2 d=1 c=1 N=0 dtype=float64 spread=0.1 seed=0 " in result.failure


def test_a_target_that_wavers_is_a_failure_and_no_crash() -> None:
    calls = iter(range(10**6))

    def wavering(W: Any, gradient: Any, learning_rate: float = 1.0) -> Any:
        # Wrong once, in the middle of the drawn cases: Hypothesis cannot repeat it.
        return W - gradient + (next(calls) == 17)

    (result,) = climb(TINY, implementation=stepping(wavering)).claims
    assert result.rungs[Rung.FLOAT].outcome == HELD
    assert result.rungs[Rung.PROPERTY].outcome == FAILED
    assert result.outcome == FAILED


@pytest.mark.parametrize("after", [0, 3, 9, 17])
def test_an_interrupted_run_reports_what_ran(after: int) -> None:
    calls = iter(range(10**6))

    def interrupted(W: Any, gradient: Any, learning_rate: float = 1.0) -> Any:
        if next(calls) == after:
            raise KeyboardInterrupt
        return W - gradient

    outcome = climb(TINY, replace(TINY, stem="later"), implementation=stepping(interrupted))
    first, later = outcome.claims
    assert outcome.interrupted
    assert Report(outcome).verdict == "INCOMPLETE"
    assert [first.outcome, later.outcome] == [NOT_RUN, NOT_RUN]
    assert sum(r.comparisons for r in first.rungs.values()) >= after
    assert first.rungs[Rung.FLOAT].outcome == (HELD if after >= 8 else NOT_RUN)
    assert {r.why_not for r in later.rungs.values()} == {"the run was interrupted"}
    assert ProofsOfAnything.stopped


def test_a_failure_before_the_interruption_stays_a_failure() -> None:
    def interrupted(impl: Implementation, case: Case) -> Iterator[Comparison]:
        raise KeyboardInterrupt
        yield

    outcome = climb(TINY, replace(TINY, check=interrupted), implementation=stepping(off))
    assert outcome.interrupted
    assert Report(outcome).verdict == "FAILED"


def test_a_surviving_mutant_is_a_failure_and_is_named() -> None:
    outcome = climb(replace(TINY, mutants=(OFF, HARMLESS)))
    (result,) = outcome.claims
    assert (result.killed, result.survived, result.outcome) == (["off"], ["harmless"], FAILED)
    assert "is no test: its check does not reject harmless" in Report(outcome).text()


def test_a_mutant_that_crashes_is_not_rejected() -> None:
    outcome = climb(replace(TINY, mutants=(CRASH, OFF)))
    (result,) = outcome.claims
    assert (result.killed, result.survived, result.outcome) == (["off"], ["crash"], FAILED)
    assert "the mutant crash crashes, RuntimeError: no such thing" in result.failure


def test_a_mutant_that_only_the_law_rejects_is_rejected() -> None:
    def shifted(W: Any, gradient: Any, learning_rate: float = 1.0) -> Any:
        return W - gradient + 0.5 * (len(W) == 400)

    mutant = Mutant("shifted", "a mean of 0.5", {"gradient_step": shifted})
    assert "mean: statistic" in runner.rejects(replace(TINY, law=law), mutant, 0)
    assert runner.rejects(TINY, mutant, 0) == ""


def test_mutants_are_held_against_our_implementation_not_the_target() -> None:
    (result,) = climb(TINY, implementation=stepping(crash)).claims
    assert result.killed == ["off"]


@pytest.mark.parametrize(("package", "rung"), [("flint", Rung.BALL), ("hypothesis", Rung.PROPERTY)])
def test_a_missing_package_is_a_rung_that_did_not_run(
    monkeypatch: pytest.MonkeyPatch, package: str, rung: Rung
) -> None:
    without(monkeypatch, package)
    outcome = climb(TINY)
    (result,) = outcome.claims
    assert result.rungs[rung].outcome == NOT_RUN
    assert "not installed" in result.rungs[rung].why_not
    assert package in result.rungs[rung].why_not
    assert sum(r.outcome == HELD for r in result.rungs.values()) == 3
    assert Report(outcome).verdict == "HOLDS"


def test_a_run_uses_one_blas_thread_and_gives_the_others_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def blas_threads() -> set[int]:
        pools = threadpoolctl.threadpool_info()
        return {pool["num_threads"] for pool in pools if pool["user_api"] == "blas"}

    seen: list[set[int]] = []

    def looks(impl: Implementation, case: Case) -> Iterator[Comparison]:
        seen.append(blas_threads())
        yield from check(impl, case)

    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        climb(replace(TINY, check=looks))
        assert seen
        assert set().union(*seen) == {1}
        assert blas_threads() == before
        seen.clear()
        without(monkeypatch, "threadpoolctl")
        assert climb(replace(TINY, check=looks)).claims[0].outcome == HELD
        assert set().union(*seen) == before


def test_a_proof_that_could_not_run_did_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ProofsOfAnything, "verdict_of_all", None)
    monkeypatch.setattr(ProofsOfAnything, "why_not", "sympy is not installed")
    (result,) = climb(TINY).claims
    symbolic = result.rungs[Rung.SYMBOLIC]
    assert (symbolic.outcome, symbolic.why_not) == (NOT_RUN, "sympy is not installed")
    assert result.outcome == HELD


def test_a_proof_that_fails_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {**(ProofsOfAnything.verdict_of_all or {}), "held": False, "failure": "step 2 is wrong"}
    monkeypatch.setattr(ProofsOfAnything, "verdict_of_all", wrong)
    outcome = climb(TINY)
    (result,) = outcome.claims
    assert result.rungs[Rung.SYMBOLIC].outcome == FAILED
    assert "the proof fails: step 2 is wrong" in result.failure
    assert Report(outcome).verdict == "FAILED"


def nothing(impl: Implementation, case: Case) -> Iterator[Comparison | NotRun]:
    yield from ()


def only_excuses(impl: Implementation, case: Case) -> Iterator[Comparison | NotRun]:
    yield NotRun("everything", "the target takes no `mask`")


@pytest.mark.parametrize("empty", [nothing, only_excuses])
@pytest.mark.parametrize("mutants", [(), (OFF,)])
def test_a_check_that_compares_nothing_does_not_hold(
    empty: Callable[..., Any], mutants: tuple[Mutant, ...]
) -> None:
    outcome = climb(replace(TINY, check=empty, mutants=mutants))
    (result,) = outcome.claims
    assert result.rungs[Rung.FLOAT].why_not == "there was nothing to compare"
    assert result.outcome == (FAILED if mutants else NOT_RUN)
    assert Report(outcome).exit_code == 1


def test_a_law_without_tests_does_not_hold() -> None:
    (result,) = climb(replace(TINY, law=lambda impl, rng: iter(()))).claims
    assert result.rungs[Rung.STATISTICAL].outcome == NOT_RUN


def test_comparisons_that_a_target_cannot_make_are_kept_with_their_reason() -> None:
    def partly(impl: Implementation, case: Case) -> Iterator[Comparison | NotRun]:
        yield NotRun("masks", "the target takes no `mask`")
        yield from check(impl, case)

    (result,) = climb(replace(TINY, check=partly)).claims
    assert result.outcome == HELD
    assert result.rungs[Rung.FLOAT].not_run == {"the target takes no `mask`"}
    assert result.rungs[Rung.FLOAT].comparisons == 8


def unclear(impl: Implementation, case: Case) -> Iterator[Comparison | Inconclusive]:
    yield Inconclusive("the slope", "its interval is wide")
    yield from check(impl, case)


def test_an_inconclusive_comparison_is_no_evidence_however_much_else_holds() -> None:
    outcome = climb(replace(TINY, check=unclear))
    (result,) = outcome.claims
    assert result.outcome == result.rungs[Rung.FLOAT].outcome == INCONCLUSIVE
    assert result.rungs[Rung.FLOAT].note == "the slope: its interval is wide"
    assert (Report(outcome).verdict, Report(outcome).exit_code) == ("INCOMPLETE", 1)


def test_an_inconclusive_comparison_excuses_no_failure_and_rejects_no_mutant() -> None:
    (result,) = climb(replace(TINY, check=unclear), implementation=stepping(off)).claims
    assert result.outcome == result.rungs[Rung.FLOAT].outcome == FAILED
    assert runner.rejects(replace(TINY, check=unclear, law=None), HARMLESS, seed=0) == ""


def test_no_claims_are_not_a_success() -> None:
    assert Report(climb()).verdict == "INCOMPLETE"


def test_a_known_failure_that_fails_is_no_failure() -> None:
    outcome = climb(TINY, implementation=stepping(off), known_failures={"tiny": "bug 7"})
    assert outcome.claims[0].outcome == KNOWN
    assert (Report(outcome).verdict, Report(outcome).exit_code) == ("HOLDS", 0)
    assert "known failures: tiny (bug 7)" in Report(outcome).text()


def test_a_known_failure_that_holds_is_a_failure_that_says_so() -> None:
    outcome = climb(TINY, known_failures={"tiny": "bug 7"})
    assert (Report(outcome).verdict, Report(outcome).exit_code) == ("FAILED", 1)
    assert "tiny holds, but is declared a known failure (bug 7)" in Report(outcome).text()


def test_a_known_failure_excuses_no_surviving_mutant() -> None:
    outcome = climb(
        replace(TINY, mutants=(HARMLESS,)),
        implementation=stepping(off),
        known_failures={"tiny": "bug 7"},
    )
    assert Report(outcome).verdict == "FAILED"


def test_a_known_failure_that_did_not_run_is_incomplete() -> None:
    def interrupted(impl: Implementation, case: Case) -> Iterator[Comparison]:
        raise KeyboardInterrupt
        yield

    outcome = climb(replace(TINY, check=interrupted), known_failures={"tiny": "bug 7"})
    assert Report(outcome).verdict == "INCOMPLETE"


def test_another_claims_known_failure_excuses_nothing() -> None:
    outcome = climb(TINY, implementation=stepping(off), known_failures={"other": "bug 7"})
    assert Report(outcome).verdict == "FAILED"


@pytest.fixture
def two_heads(monkeypatch: pytest.MonkeyPatch) -> list[Implementation]:
    """Two real heads, and the implementations for which their table was asked."""
    heads, asked = runner.head_cases, []
    monkeypatch.setattr(runner, "head_cases", lambda *a: islice(heads(*a), 2))

    def table(implementation: Implementation) -> list[HeadResult]:
        asked.append(implementation)
        return [HeadResult(0, 0, 1e-16, 1e-15, 0.1, 1.0, 2.0, 3.0)]

    monkeypatch.setattr(runner, "measure_heads", table)
    return asked


def test_the_table_of_heads_is_made_where_a_claim_is_checked_on_them(
    two_heads: list[Implementation],
) -> None:
    outcome = climb(replace(TINY, on_heads=True))
    assert outcome.claims[0].rungs[Rung.REAL].comparisons == 2
    assert (len(outcome.heads), len(two_heads)) == (1, 1)
    assert climb(TINY).heads == []


def test_the_table_of_heads_is_left_out_where_they_failed(two_heads: list[Implementation]) -> None:
    outcome = climb(replace(TINY, on_heads=True), implementation=stepping(off))
    assert outcome.claims[0].rungs[Rung.REAL].outcome == FAILED
    assert (outcome.heads, two_heads) == ([], [])


@pytest.mark.usefixtures("two_heads")
def test_a_table_of_heads_that_cannot_be_made_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(implementation: Implementation) -> list[HeadResult]:
        raise TypeError("needs a learning rate")

    monkeypatch.setattr(runner, "measure_heads", breaks)
    outcome = climb(replace(TINY, on_heads=True))
    assert Report(outcome).verdict == "FAILED"
    assert "TypeError: needs a learning rate" in outcome.claims[0].failure


@pytest.mark.usefixtures("two_heads")
def test_a_head_whose_budget_is_too_wide_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = HeadResult(0, 0, 1e-16, 1e-11, 0.1, 1.0, 2.0, 3.0)
    monkeypatch.setattr(runner, "measure_heads", lambda implementation: [wide])
    assert Report(climb(replace(TINY, on_heads=True))).verdict == "FAILED"


def test_the_same_seed_gives_the_same_run_and_another_one_does_not() -> None:
    seen: list[float] = []

    def remembers(impl: Implementation, case: Case) -> Iterator[Comparison]:
        seen.append(float(case.V[0, 0]))
        yield compare("itself", case.V, case.V, Budget(0 * case.V, "equal", 0.0))

    runs = []
    for seed in (4, 4, 5):
        seen.clear()
        run([replace(TINY, check=remembers, mutants=())], PROFILE, seed)
        runs.append(tuple(seen))
    assert runs[0] == runs[1] != runs[2]


def test_more_repeats_and_examples_make_more_comparisons() -> None:
    (result,) = run([TINY], Profile("more", repeats=3, examples=9), 0).claims
    assert result.rungs[Rung.FLOAT].comparisons == 24
    assert result.rungs[Rung.PROPERTY].comparisons == 9


@pytest.mark.parametrize(
    ("target", "implementation", "redo"),
    [
        ("", OURS, "equivalence check --only tiny --seed 0 --profile tiny"),
        ("m:f", stepping(off), "equivalence check m:f --only tiny --seed 0 --profile tiny"),
        (
            "",
            stepping(off),
            "check_implementation(target, only=['tiny'], profile='tiny', seed=0)",
        ),
    ],
)
def test_the_redo_names_what_was_checked(
    target: str, implementation: Implementation, redo: str
) -> None:
    assert climb(TINY, implementation=implementation, target=target).claims[0].redo == redo
