"""A run as text, JSON and JUnit; files are written whole or not at all."""

from __future__ import annotations

import json
import os
import platform
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from equivalence.verify.claim import Rung
from equivalence.verify.heads import WIDEST_BUDGET, HeadResult
from equivalence.verify.runner import (
    FAILED,
    HELD,
    INCONCLUSIVE,
    KNOWN,
    NOT_RUN,
    ClaimResult,
    Run,
)

SCHEMA = 1


@dataclass(frozen=True)
class Report:
    """What a run showed; `text()`, `json()` and `junit()` say the same.

    >>> from equivalence.verify.profiles import PROFILES
    >>> Report(Run(PROFILES["quick"], 0, "", [])).verdict
    'INCOMPLETE'
    """

    run: Run

    @property
    def verdict(self) -> str:
        """HOLDS, FAILED, or INCOMPLETE if a claim did not run or what it measured tells nothing."""
        outcomes = [claim.outcome for claim in self.run.claims]
        if FAILED in outcomes or not all(head.held for head in self.run.heads):
            return "FAILED"
        if self.run.interrupted or not outcomes or {NOT_RUN, INCONCLUSIVE} & set(outcomes):
            return "INCOMPLETE"
        return "HOLDS"

    @property
    def exit_code(self) -> int:
        """0 if every claim held or is a declared known failure, else 1."""
        return 0 if self.verdict == "HOLDS" else 1

    def json(self) -> str:
        """The report's fields, schema 1."""
        document = {
            "schema": SCHEMA,
            "verdict": self.verdict,
            "profile": self.run.profile.name,
            "target": self.run.target,
            "environment": _environment(),
            "claims": [_claim_fields(claim) for claim in self.run.claims],
            "heads": [{**asdict(head), "held": head.held} for head in self.run.heads],
        }
        return json.dumps(document, indent=2)

    def junit(self) -> str:
        """One test case for each rung and for the mutants of each claim."""
        suite = ET.Element("testsuite", name="equivalence")
        for claim in self.run.claims:
            _junit_cases(suite, claim)
        for head in self.run.heads:
            case = ET.SubElement(
                suite,
                "testcase",
                classname="real_heads",
                name=f"layer {head.layer} head {head.head}",
            )
            if not head.held:
                ET.SubElement(case, "failure", message=_head_line(head))
        cases = suite.findall("testcase")
        suite.set("tests", str(len(cases)))
        suite.set("failures", str(len(suite.findall("testcase/failure"))))
        suite.set("skipped", str(len(suite.findall("testcase/skipped"))))
        ET.indent(suite)
        return ET.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"

    def text(self) -> str:
        """The report for a person: a table, the real heads, the failures, the verdict."""
        parts = [_table(self.run.claims)]
        if self.run.heads:
            parts.append(heads_summary(self.run.heads))
        parts += [complaint for claim in self.run.claims for complaint in claim.complaints]
        if notes := self._notes():
            parts.append(notes)
        return "\n\n".join([*parts, self._verdict_line()]) + "\n"

    def _notes(self) -> str:
        """Every reason for which something did not run or told nothing, each with its rungs."""
        reasons: dict[tuple[str, str], list[str]] = {}
        for claim in self.run.claims:
            for rung, result in claim.rungs.items():
                whys = [("did not run: some comparisons on ", why) for why in result.not_run]
                if result.outcome == NOT_RUN:
                    whys.append(("did not run: ", result.why_not))
                if result.outcome == INCONCLUSIVE:
                    whys.append(("inconclusive: ", result.note))
                for why in whys:
                    reasons.setdefault(why, []).append(f"{claim.claim.stem}/{rung}")
        return "\n".join(
            f"{part}{len(where)} rung{'s' if len(where) > 1 else ''}, because {why} "
            f"({', '.join(where[:2])}{', ...' if len(where) > 2 else ''})"
            for (part, why), where in sorted(reasons.items())
        )

    def _verdict_line(self) -> str:
        claims = self.run.claims
        held = sum(claim.outcome in (HELD, KNOWN) for claim in claims)
        rungs = [rung for claim in claims for rung in claim.rungs.values()]
        available = sum(len(claim.claim.rungs) for claim in claims)
        climbed = sum(rung.outcome == HELD for rung in rungs)
        killed = sum(len(claim.killed) for claim in claims)
        mutants = sum(len(claim.claim.mutants) for claim in claims)
        line = (
            f"{self.verdict}: {held} of {len(claims)} claims, {climbed} of {available} rungs, "
            f"{killed} of {mutants} mutants rejected"
        )
        known = [f"{c.claim.stem} ({c.known})" for c in claims if c.outcome == KNOWN]
        line += f"; known failures: {', '.join(known)}" if known else ""
        return line + (" (interrupted)" if self.run.interrupted else "")


def write_atomically(path: str | Path, text: str) -> None:
    """Write the whole text or leave what was there: a temporary file beside it, then a rename."""
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def heads_summary(heads: Sequence[HeadResult]) -> str:
    """One line for each layer: its worst head."""
    lines = [
        f"real heads: Gram dual against softmax attention, budget below {WIDEST_BUDGET:.0e}, "
        "worst of each layer"
    ]
    for layer in sorted({head.layer for head in heads}):
        mine = [head for head in heads if head.layer == layer]
        lines.append(
            f"  layer {layer}: {sum(h.held for h in mine)} of {len(mine)} heads held   "
            f"error {max(h.error for h in mine):.1e}   "
            f"budget {max(h.budget for h in mine):.1e}   "
            f"|q+k|^2 {min(h.s_min for h in mine):.0f} to {max(h.s_max for h in mine):.0f}, "
            f"median {np.median([h.s_median for h in mine]):.0f}"
        )
    return "\n".join(lines)


def heads_table(heads: Sequence[HeadResult]) -> str:
    """Every head: error, budget, share used, the spread of |q+k|^2, and what it means."""
    title = (
        "layer head    error   budget  used   |q+k|^2  min  median     max   "
        "positive features for 10 % at the median pair"
    )
    return "\n".join([title, *map(_head_line, heads)])


def _head_line(head: HeadResult) -> str:
    return (
        f"{head.layer:5d} {head.head:4d} {head.error:8.1e} {head.budget:8.1e} "
        f"{head.budget_used:5.3f}"
        f"   {head.s_min:13.2f} {head.s_median:7.2f} {head.s_max:7.2f}   "
        f"{head.features_for_10_percent:.0e}"
    )


def _table(claims: Sequence[ClaimResult]) -> str:
    width = max((len(claim.claim.stem) for claim in claims), default=5)
    head = f"{'claim':{width}}  {'kind':11}  " + "  ".join(f"{rung:>8}" for rung in Rung)
    lines = ["comparisons that held, on each rung", "", f"{head}  {'budget':>6}  {'mutants':>7}"]
    for claim in claims:
        cells = "  ".join(f"{_cell(claim, rung):>{max(8, len(rung))}}" for rung in Rung)
        mutants = f"{len(claim.killed)}/{len(claim.claim.mutants)}"
        lines.append(
            f"{claim.claim.stem:{width}}  {claim.claim.kind:11}  {cells}  "
            f"{claim.budget_used:6.2f}  {mutants:>7}"
        )
    return "\n".join(lines)


def _cell(claim: ClaimResult, rung: Rung) -> str:
    if rung not in claim.claim.rungs:
        return "-"
    result = claim.rungs[rung]
    if result.outcome == NOT_RUN:
        return "not run"
    if result.outcome == INCONCLUSIVE:
        return "unclear"
    return str(result.comparisons) if result.outcome == HELD else "FAILED"


def _claim_fields(claim: ClaimResult) -> dict[str, Any]:
    return {
        "stem": claim.claim.stem,
        "kind": str(claim.claim.kind),
        "outcome": claim.outcome,
        "rungs": {
            str(rung): {
                "outcome": result.outcome,
                "comparisons": result.comparisons,
                "budget_used": result.budget_used,
                "note": result.why_not if result.outcome == NOT_RUN else result.note,
                "not_run": sorted(result.not_run),
            }
            for rung, result in claim.rungs.items()
        },
        "budget_used": claim.budget_used,
        "mutants": {
            "killed": len(claim.killed),
            "total": len(claim.claim.mutants),
            "survived": claim.survived,
        },
        "seed": claim.seed,
        "redo": claim.redo,
        "failure": claim.failure,
        "known_failure": claim.known,
    }


def _junit_cases(suite: ET.Element, claim: ClaimResult) -> None:
    stem = claim.claim.stem
    for rung, result in claim.rungs.items():
        case = ET.SubElement(suite, "testcase", classname=stem, name=str(rung))
        if result.outcome == NOT_RUN:
            ET.SubElement(case, "skipped", message=result.why_not)
        elif result.outcome == INCONCLUSIVE:
            ET.SubElement(case, "skipped", message=f"inconclusive: {result.note}")
        elif result.outcome == FAILED and claim.outcome == KNOWN:
            ET.SubElement(case, "skipped", message=f"known failure: {claim.known}")
        elif result.outcome == FAILED:
            failure = _printable(claim.failure)
            ET.SubElement(case, "failure", message=failure.partition("\n")[0]).text = failure
    for mutant in claim.claim.mutants:
        case = ET.SubElement(suite, "testcase", classname=stem, name=f"mutant {mutant.name}")
        if mutant.name in claim.survived:
            ET.SubElement(case, "failure", message=f"the check does not reject {mutant.name}")
        elif mutant.name not in claim.killed:
            ET.SubElement(case, "skipped", message="the run was interrupted")
    if claim.known and claim.outcome == FAILED:
        case = ET.SubElement(suite, "testcase", classname=stem, name="known failure")
        ET.SubElement(case, "failure", message=_printable(claim.complaints[-1]))


def _printable(text: str) -> str:
    """The text without what XML cannot carry: control characters and lone surrogates."""
    return "".join(c if c in "\n\t" or c.isprintable() else "?" for c in text)


def _environment() -> dict[str, str]:
    import scipy

    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "machine": platform.machine(),
    }
