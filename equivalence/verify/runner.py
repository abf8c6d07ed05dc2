"""Running claims: every rung, every mutant, and an account of what ran and what did not."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from equivalence.verify import oracle
from equivalence.verify.cases import Case, generated_cases, head_cases
from equivalence.verify.claim import Claim, Mutant, Rung
from equivalence.verify.compare import Disagreement, NotRun
from equivalence.verify.heads import HeadResult, measure_heads
from equivalence.verify.implementation import OURS, Implementation
from equivalence.verify.profiles import Profile
from equivalence.verify.symbolic import Proofs

HELD, FAILED, NOT_RUN, KNOWN = "held", "failed", "did not run", "known failure"


@dataclass
class RungResult:
    """What one rung showed: how many comparisons, the largest share of a budget, or why not."""

    outcome: str = NOT_RUN
    comparisons: int = 0
    budget_used: float = 0.0
    note: str = ""
    not_run: set[str] = field(default_factory=set)


@dataclass
class ClaimResult:
    """What a claim's rungs and mutants showed."""

    claim: Claim
    seed: int
    redo: str
    rungs: dict[Rung, RungResult] = field(default_factory=dict)
    killed: list[str] = field(default_factory=list)
    survived: list[str] = field(default_factory=list)
    failure: str = ""
    known: str = ""

    @property
    def outcome(self) -> str:
        """held, failed, did not run, or known failure."""
        if self.known:
            return KNOWN if self.failure else FAILED
        if self.failure or self.survived:
            return FAILED
        ran = [r for r in self.rungs.values() if r.outcome == HELD and r.comparisons]
        finished = len(self.killed) == len(self.claim.mutants)
        return HELD if ran and finished else NOT_RUN

    @property
    def budget_used(self) -> float:
        """The largest share of a rounding budget that any rung used."""
        return max((r.budget_used for r in self.rungs.values()), default=0.0)


@dataclass
class Run:
    """One run of the instrument."""

    profile: Profile
    seed: int
    target: str
    claims: list[ClaimResult]
    heads: list[HeadResult] = field(default_factory=list)
    interrupted: bool = False


def run(
    claims: Iterable[Claim],
    profile: Profile,
    seed: int,
    *,
    implementation: Implementation = OURS,
    target: str = "",
    known_failures: Mapping[str, str] | None = None,
) -> Run:
    """Check every claim on every rung; Ctrl-C ends the run, and what ran is still reported."""
    known = known_failures or {}
    results = [
        ClaimResult(c, seed, _redo(target, c.stem, profile, seed), known=known.get(c.stem, ""))
        for c in claims
    ]
    outcome = Run(profile, seed, target, results)
    proofs = Proofs.start([r.claim.stem for r in results])
    try:
        for result in results:
            _climb(result, implementation, profile)
        outcome.heads = _heads(implementation, results)
        for result in results:
            result.rungs[Rung.SYMBOLIC] = _symbolic(proofs, result)
    except KeyboardInterrupt:
        outcome.interrupted = True
    finally:
        proofs.stop()
    return outcome


@contextmanager
def disagreeing() -> Iterator[None]:
    """Whatever goes wrong in an implementation is a Disagreement, and NumPy does not warn."""
    try:
        with np.errstate(all="ignore"):
            yield
    except Disagreement:
        raise
    except Exception as error:
        raise Disagreement(f"{type(error).__name__}: {error}") from error


def rejects(claim: Claim, mutant: Mutant, seed: int) -> str:
    """What the claim's check says against the mutant; an empty string if it lets it pass.

    A mutant has to be found wrong: one that merely crashes is no test of the check, and raises.
    """
    implementation = mutant.of(OURS)
    try:
        with np.errstate(all="ignore"):
            for case in generated_cases(seed, repeats=1):
                for item in claim.check(implementation, case):
                    if not isinstance(item, NotRun):
                        item.require()
            if claim.law:
                for test in claim.law(implementation, np.random.default_rng(seed)):
                    test.require()
    except Disagreement as disagreement:
        return str(disagreement)
    return ""


def _heads(implementation: Implementation, results: Iterable[ClaimResult]) -> list[HeadResult]:
    """The table of heads, unless what it measures has already been found wrong on them."""
    if any(
        result.rungs[Rung.REAL].outcome == FAILED for result in results if result.claim.on_heads
    ):
        return []
    return measure_heads(implementation)


def _climb(result: ClaimResult, implementation: Implementation, profile: Profile) -> None:
    claim, seed = result.claim, result.seed
    best = oracle.balls() if oracle.has_balls() else oracle.FLOATS
    for rung in claim.rungs:
        result.rungs[rung] = RungResult()
    by_cases = {Rung.FLOAT: generated_cases(seed, profile.repeats)}
    if oracle.has_balls():
        by_cases[Rung.BALL] = generated_cases(seed, 1, oracle.balls())
    else:
        result.rungs[Rung.BALL].note = "python-flint is not installed"
    if claim.on_heads:
        by_cases[Rung.REAL] = head_cases(seed, best)
    for rung, cases in by_cases.items():
        _require_all(result, rung, implementation, cases)
    if claim.law:
        _statistical(result, implementation)
    _property(result, implementation, profile)
    for mutant in claim.mutants:
        (result.killed if rejects(claim, mutant, seed) else result.survived).append(mutant.name)


def _require_all(
    result: ClaimResult, rung: Rung, implementation: Implementation, cases: Iterable[Case]
) -> None:
    try:
        for case in cases:
            _require(result, rung, implementation, case)
        result.rungs[rung].outcome = HELD
    except Disagreement:
        result.rungs[rung].outcome = FAILED


def _require(result: ClaimResult, rung: Rung, implementation: Implementation, case: Case) -> None:
    """Require every comparison of a case; keep the claim's first failure as a person reads it."""
    account = result.rungs[rung]
    try:
        with disagreeing():
            for item in result.claim.check(implementation, case):
                if isinstance(item, NotRun):
                    account.not_run.add(item.why)
                    continue
                account.comparisons += 1
                account.budget_used = max(account.budget_used, item.require())
    except Disagreement as disagreement:
        result.failure = result.failure or failure_text(
            result, str(disagreement), case.label, case.seed
        )
        raise


def failure_text(result: ClaimResult, what: str, given: str, seed: int) -> str:
    """What failed and how far, on which input, where to read, and how to redo it."""
    return (
        f"claim {result.claim.stem} fails: {what}\n"
        f"  given    {given} seed={seed}          read  proofs/{result.claim.stem}.py\n"
        f"  redo     {result.redo}"
    )


def _statistical(result: ClaimResult, implementation: Implementation) -> None:
    account = result.rungs[Rung.STATISTICAL]
    assert result.claim.law is not None
    try:
        with disagreeing():
            for test in result.claim.law(implementation, np.random.default_rng(result.seed)):
                account.comparisons += 1
                test.require()
                account.note = f"false alarms below {account.comparisons * test.alpha:.0e}"
        account.outcome = HELD
    except Disagreement as disagreement:
        account.outcome = FAILED
        result.failure = result.failure or failure_text(
            result, str(disagreement), "projections drawn", result.seed
        )


def _property(result: ClaimResult, implementation: Implementation, profile: Profile) -> None:
    account = result.rungs[Rung.PROPERTY]
    if importlib.util.find_spec("hypothesis") is None:
        account.note = "hypothesis is not installed"
        return
    from hypothesis import given
    from hypothesis import seed as seeded

    from equivalence.verify.strategies import cases, settings_of

    @seeded(result.seed)
    @settings_of(profile)
    @given(case=cases())
    def holds(case: Case) -> None:
        _require(result, Rung.PROPERTY, implementation, case)

    try:
        holds()
        account.outcome = HELD
    except Disagreement:
        account.outcome = FAILED


def _symbolic(proofs: Proofs, result: ClaimResult) -> RungResult:
    verdict = proofs.verdict(result.claim.stem)
    if verdict is None:
        return RungResult(note=proofs.why_not)
    if not verdict["held"]:
        result.failure = result.failure or failure_text(
            result, f"the proof fails: {verdict['failure']}", "symbolic sizes", result.seed
        )
        return RungResult(FAILED, note=verdict["scope"])
    return RungResult(
        HELD, verdict["steps"] + verdict["false_variants"]["refused"], note=verdict["scope"]
    )


def _redo(target: str, stem: str, profile: Profile, seed: int) -> str:
    words = ["equivalence check", target, f"--only {stem} --seed {seed}"]
    if profile.name != "quick":
        words.append(f"--profile {profile.name}")
    return " ".join(word for word in words if word)
