"""Every claim on every rung: generated inputs, balls, properties, laws, real heads, mutants.

`-k stem` runs these for one claim, together with its proof and its own test file.
"""

import numpy as np
import pytest
from hypothesis import given

from equivalence.verify import oracle
from equivalence.verify.cases import Case, generated_cases, head_cases
from equivalence.verify.claim import Claim, Mutant
from equivalence.verify.compare import Inconclusive, NotRun
from equivalence.verify.implementation import OURS
from equivalence.verify.profiles import PROFILES
from equivalence.verify.registry import load_all
from equivalence.verify.runner import rejects
from equivalence.verify.strategies import cases

CLAIMS = load_all()
MUTANTS = [
    pytest.param(claim, mutant, id=f"{claim.stem}-{mutant.name}")
    for claim in CLAIMS
    for mutant in claim.mutants
]

each_claim = pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.stem)


def require(claim: Claim, case: Case) -> int:
    """Require every comparison of the case on our own code; return how many there were."""
    items = list(claim.check(OURS, case))
    for item in items:
        assert not isinstance(item, NotRun | Inconclusive), f"{item}: no evidence on our own code"
        item.require()
    return len(items)


@each_claim
def test_holds_on_generated_inputs(claim: Claim) -> None:
    for case in generated_cases(0, PROFILES["quick"].repeats):
        assert require(claim, case) > 0


@each_claim
def test_holds_against_certified_balls(claim: Claim) -> None:
    for case in generated_cases(1, 1, oracle.balls()):
        assert require(claim, case) > 0


@each_claim
@given(case=cases())
def test_holds_as_a_property(claim: Claim, case: Case) -> None:
    assert require(claim, case) > 0


@pytest.mark.parametrize(
    "claim", [claim for claim in CLAIMS if claim.on_heads], ids=lambda claim: claim.stem
)
def test_holds_on_every_real_head(claim: Claim) -> None:
    checked = [require(claim, case) for case in head_cases(0, oracle.balls())]
    assert len(checked) == 72
    assert min(checked) > 0


@pytest.mark.parametrize(
    "claim", [claim for claim in CLAIMS if claim.law], ids=lambda claim: claim.stem
)
def test_the_exact_law_holds(claim: Claim) -> None:
    assert claim.law is not None
    for test in claim.law(OURS, np.random.default_rng(0)):
        test.require()
        assert test.power > 0.999, f"{test.what} has power {test.power} against {test.alternative}"


@pytest.mark.parametrize(("claim", "mutant"), MUTANTS)
def test_mutant_is_rejected(claim: Claim, mutant: Mutant) -> None:
    assert rejects(claim, mutant, seed=0), f"{claim.stem} lets pass: {mutant.defect}"


@each_claim
def test_lower_precision_is_among_the_mutants(claim: Claim) -> None:
    """The budgets must tell float64 from float32 posing as it."""
    assert any(mutant.name.startswith("float32") for mutant in claim.mutants)
