"""What is found out of a proof where it is made, in a second process: see conftest.py."""

from typing import NamedTuple

from proofs import load
from proofs.derivation import Proof
from proofs.derivation.normal_form import equal


class Examined(NamedTuple):
    """A proof; the false variants, and the steps with a flipped sign, that would pass for true."""

    proof: Proof
    accepted: list[str]
    unbroken: list[str]


def examine(stem: str) -> Examined:
    """Prove it, and try what is false, which the normal forms of the proof make quick."""
    derivation = load(stem)
    proof, first = derivation.prove(), derivation.instances[0]
    accepted = [
        refusal.name
        for refusal in proof.refusals
        if equal(refusal.operation.apply(refusal.start), refusal.claim)
        or refusal.true_value == refusal.claimed_value
    ]
    unbroken = [
        step.title
        for step in proof.steps
        if equal(step.claim, -step.claim)
        or step.operation.confirm(step.start, -step.claim, first).agrees
    ]
    return Examined(proof, accepted, unbroken)
