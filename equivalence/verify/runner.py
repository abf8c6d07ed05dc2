"""Running claims: every rung, every mutant, and an account of what ran and what did not."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from equivalence.verify import oracle
from equivalence.verify.cases import Case, generated_cases, head_cases
from equivalence.verify.claim import Claim, Mutant, Rung
from equivalence.verify.compare import Disagreement, Inconclusive, NotRun
from equivalence.verify.heads import HeadResult, measure_heads
from equivalence.verify.implementation import OURS, Implementation
from equivalence.verify.profiles import Profile
from equivalence.verify.symbolic import Proofs

HELD, FAILED, NOT_RUN, KNOWN = "held", "failed", "did not run", "known failure"
INCONCLUSIVE = "inconclusive"


@dataclass
class RungResult:
    """What one rung showed: how many comparisons, the largest share of a budget, or why not."""

    outcome: str = NOT_RUN
    comparisons: int = 0
    budget_used: float = 0.0
    note: str = ""
    not_run: set[str] = field(default_factory=set)

    @property
    def why_not(self) -> str:
        """Why the rung did not run, if it did not."""
        return self.note or "the run was interrupted"

    def finish(self) -> None:
        """Nothing disagreed: the rung held, unless there was nothing to compare, or to tell."""
        if self.outcome == INCONCLUSIVE:
            return
        self.outcome = HELD if self.comparisons else NOT_RUN
        if not self.comparisons:
            self.note = "there was nothing to compare"


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
        """held, failed, did not run, inconclusive, or known failure."""
        if self.survived:
            return FAILED
        if self.failure:
            return KNOWN if self.known else FAILED
        if any(rung.outcome == INCONCLUSIVE for rung in self.rungs.values()):
            return INCONCLUSIVE
        if self.rungs[Rung.FLOAT].outcome != HELD or len(self.killed) < len(self.claim.mutants):
            return NOT_RUN
        return FAILED if self.known else HELD

    @property
    def complaints(self) -> list[str]:
        """What is wrong, for a person: the failure, and the reasons why the claim is no test."""
        stem, texts = self.claim.stem, [self.failure] if self.failure else []
        if self.survived:
            texts.append(
                f"claim {stem} is no test: its check does not reject {', '.join(self.survived)}"
            )
        if self.known and self.outcome == FAILED and not texts:
            texts.append(f"claim {stem} holds, but is declared a known failure ({self.known})")
        return texts

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
    part: str = "",
    known_failures: Mapping[str, str] | None = None,
) -> Run:
    """Check every claim on every rung; Ctrl-C ends the run, and what ran is still reported."""
    known = known_failures or {}
    results = [
        ClaimResult(
            claim,
            seed,
            _redo(claim.stem, profile, seed, target, part, implementation),
            rungs={rung: RungResult() for rung in claim.rungs},
            known=known.get(claim.stem, ""),
        )
        for claim in claims
    ]
    outcome = Run(profile, seed, target, results)
    proofs = Proofs.start([r.claim.stem for r in results])
    try:
        with _one_thread():
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


def _one_thread() -> AbstractContextManager[Any]:
    """One BLAS thread if threadpoolctl is there: on small problems the others only wait."""
    if importlib.util.find_spec("threadpoolctl") is None:
        return nullcontext()
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[Any] = threadpool_limits(1, user_api="blas")
    return limits


@contextmanager
def disagreeing() -> Iterator[None]:
    """Whatever goes wrong in an implementation is a Disagreement, and NumPy does not warn."""
    try:
        with np.errstate(all="ignore"):
            yield
    except Disagreement:
        raise
    except (Exception, SystemExit) as error:
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
                    if not isinstance(item, NotRun | Inconclusive):
                        item.require()
            if claim.law:
                for test in claim.law(implementation, np.random.default_rng(seed)):
                    test.require()
    except Disagreement as disagreement:
        return str(disagreement)
    return ""


def _heads(implementation: Implementation, results: Iterable[ClaimResult]) -> list[HeadResult]:
    """The table of heads, unless what it measures has already been found wrong on them."""
    on_heads = [result for result in results if result.claim.on_heads]
    if not on_heads or any(result.rungs[Rung.REAL].outcome == FAILED for result in on_heads):
        return []
    try:
        with disagreeing():
            return measure_heads(implementation)
    except Disagreement as disagreement:
        _fail(on_heads[0], Rung.REAL, str(disagreement), "the table of real heads")
        return []


def _climb(result: ClaimResult, implementation: Implementation, profile: Profile) -> None:
    claim, seed = result.claim, result.seed
    best = oracle.balls() if oracle.has_balls() else oracle.FLOATS
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
        _try(result, mutant)


def _try(result: ClaimResult, mutant: Mutant) -> None:
    try:
        rejected = bool(rejects(result.claim, mutant, result.seed))
    except Exception as error:
        rejected = False
        what = f"the mutant {mutant.name} crashes, {type(error).__name__}: {error}"
        result.failure = result.failure or failure_text(
            result, what, "generated cases", result.seed
        )
    (result.killed if rejected else result.survived).append(mutant.name)


def _fail(result: ClaimResult, rung: Rung, what: str, given: str) -> None:
    result.rungs[rung].outcome = FAILED
    result.failure = result.failure or failure_text(result, what, given, result.seed)


def _require_all(
    result: ClaimResult, rung: Rung, implementation: Implementation, cases: Iterable[Case]
) -> None:
    try:
        for case in cases:
            _require(result, rung, implementation, case)
        result.rungs[rung].finish()
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
                if isinstance(item, Inconclusive):
                    account.outcome = INCONCLUSIVE
                    account.note = f"{item.what}: {item.why}"
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
    alarms = 0.0
    try:
        with disagreeing():
            for test in result.claim.law(implementation, np.random.default_rng(result.seed)):
                account.comparisons += 1
                alarms += test.alpha
                test.require()
        account.note = f"false alarms below {alarms:.0e}"
        account.finish()
    except Disagreement as disagreement:
        _fail(result, Rung.STATISTICAL, str(disagreement), "projections drawn")


def _property(result: ClaimResult, implementation: Implementation, profile: Profile) -> None:
    account = result.rungs[Rung.PROPERTY]
    if importlib.util.find_spec("hypothesis") is None:
        account.note = "hypothesis is not installed"
        return
    from hypothesis import Phase, given, settings
    from hypothesis import seed as seeded

    from equivalence.verify.strategies import cases, settings_of

    told = bool(result.failure)
    # A smaller example is worth the search only where it is the one that is shown.
    phases = (Phase.generate,) if told else (Phase.generate, Phase.shrink)

    @seeded(result.seed)
    @settings(settings_of(profile), phases=phases)
    @given(case=cases())
    def holds(case: Case) -> None:
        if not told:
            result.failure = ""
        _require(result, Rung.PROPERTY, implementation, case)

    try:
        with disagreeing():  # Hypothesis has complaints of its own, about a target that wavers
            holds()
        account.finish()
    except Disagreement as disagreement:
        _fail(result, Rung.PROPERTY, str(disagreement), "generated cases")


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


def _redo(
    stem: str, profile: Profile, seed: int, target: str, part: str, implementation: Implementation
) -> str:
    """The command that does it again; a target without an importable name is redone in Python."""
    if implementation is not OURS and not target:
        told = f"part={part!r}, " if part else ""
        return (
            f"check_implementation(target, {told}only=[{stem!r}], profile={profile.name!r}, "
            f"seed={seed})"
        )
    words = ["equivalence check", target, f"--part {part}" if part else ""]
    words.append(f"--only {stem} --seed {seed}")
    if profile.name != "quick":
        words.append(f"--profile {profile.name}")
    return " ".join(word for word in words if word)
