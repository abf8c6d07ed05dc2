"""A claim: its statement, its kind, its check, and the wrong implementations its check rejects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np

from equivalence.verify.cases import Case
from equivalence.verify.compare import Comparison, Inconclusive, NotRun, Refutation
from equivalence.verify.implementation import Implementation
from equivalence.verify.laws import LawTest


class Kind(StrEnum):
    """In which sense a claim is true."""

    EXACT = "exact"
    EXPECTATION = "expectation"
    ASYMPTOTIC = "asymptotic"
    CAVEAT = "caveat"


class Rung(StrEnum):
    """The kinds of evidence, from a proof for all sizes to real weights."""

    SYMBOLIC = "symbolic"
    BALL = "ball"
    FLOAT = "float"
    PROPERTY = "property"
    STATISTICAL = "statistical"
    REAL = "real"


Item = Comparison | Refutation | NotRun | Inconclusive
Check = Callable[[Implementation, Case], Iterator[Item]]
Law = Callable[[Implementation, np.random.Generator], Iterator[LawTest]]


@dataclass(frozen=True)
class Mutant:
    """A plausible wrong implementation: what is wrong, and which parts it replaces."""

    name: str
    defect: str
    parts: Mapping[str, Any]

    def of(self, implementation: Implementation) -> Implementation:
        """The implementation with the defect in it."""
        return replace(implementation, **self.parts)


def mutant(name: str, defect: str, **parts: Any) -> Mutant:
    """The mutant whose parts, by the names of `Implementation`, are given as keywords."""
    return Mutant(name, defect, parts)


@dataclass(frozen=True)
class Claim:
    """One claim of the catalogue; its stem names its proof, code, tests and command line."""

    stem: str
    statement: str
    kind: Kind
    needs: tuple[str, ...]
    check: Check
    mutants: tuple[Mutant, ...]
    assumptions: str
    budget: str
    code: str
    law: Law | None = None
    on_heads: bool = False
    tempting: str = ""
    """Of a caveat: the statement as it is told, which the check refutes."""

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """The rungs that this claim can climb."""
        return tuple(
            rung
            for rung in Rung
            if (rung is not Rung.STATISTICAL or self.law)
            and (rung is not Rung.REAL or self.on_heads)
        )
