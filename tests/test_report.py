"""The report says the same as text, JSON and JUnit, and its files are whole or absent."""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from equivalence.verify.claim import Claim, Kind, Mutant, Rung
from equivalence.verify.heads import HeadResult
from equivalence.verify.profiles import PROFILES
from equivalence.verify.report import Report, heads_table, write_atomically
from equivalence.verify.runner import FAILED, HELD, INCONCLUSIVE, ClaimResult, Run, RungResult

CLAIM = Claim(
    stem="tiny",
    statement="1 = 1",
    kind=Kind.EXACT,
    needs=("attention",),
    check=lambda impl, case: iter(()),
    mutants=(Mutant("one", "is two", {}), Mutant("two", "is three", {})),
    assumptions="none",
    budget="0",
    code="nowhere",
)
HEAD = HeadResult(2, 5, 1e-16, 1e-14, 0.125, 1.0, 4.0, 9.0)
FAILURE = "claim tiny fails: 1 where the theorem gives 2 at (0): x\n  error    1"


def rungs(**changed: RungResult) -> dict[Rung, RungResult]:
    held = {rung: RungResult(HELD, 7, 0.25) for rung in CLAIM.rungs}
    return held | {Rung(name): result for name, result in changed.items()}


def result(**fields: Any) -> ClaimResult:
    given = {"rungs": rungs(), "killed": ["one", "two"]} | fields
    return ClaimResult(CLAIM, 3, "equivalence check --only tiny --seed 3", **given)


def report(*claims: ClaimResult, **fields: Any) -> Report:
    return Report(Run(PROFILES["quick"], 3, "m:f", list(claims), **fields))


HOLDS = report(result(), heads=[HEAD])
FAILS = report(
    result(
        rungs=rungs(float=RungResult(FAILED, 2), ball=RungResult(note="python-flint is missing")),
        killed=["one"],
        survived=["two"],
        failure=FAILURE,
    ),
    heads=[replace(HEAD, budget_used=2.0)],
)
KNOWN_FAILURE = report(
    result(rungs=rungs(float=RungResult(FAILED, 2)), failure=FAILURE, known="bug 7")
)
HOLDS_THOUGH_KNOWN = report(result(known="bug 7"))
INTERRUPTED = report(result(rungs=rungs(property=RungResult()), killed=["one"]), interrupted=True)
INTERRUPTED_LATE = report(result(), interrupted=True)
NEVER_STARTED = report(
    result(rungs={rung: RungResult() for rung in CLAIM.rungs}, killed=[]), interrupted=True
)
ALL = {
    "holds": (HOLDS, "HOLDS"),
    "fails": (FAILS, "FAILED"),
    "known failure": (KNOWN_FAILURE, "HOLDS"),
    "holds though known": (HOLDS_THOUGH_KNOWN, "FAILED"),
    "interrupted": (INTERRUPTED, "INCOMPLETE"),
    "interrupted late": (INTERRUPTED_LATE, "INCOMPLETE"),
    "never started": (NEVER_STARTED, "INCOMPLETE"),
    "empty": (report(), "INCOMPLETE"),
}
over_all = pytest.mark.parametrize(("shown", "verdict"), ALL.values(), ids=list(ALL))


@over_all
def test_the_verdict_and_the_exit_code(shown: Report, verdict: str) -> None:
    assert shown.verdict == verdict
    assert shown.exit_code == (0 if verdict == "HOLDS" else 1)
    assert shown.text().splitlines()[-1].startswith(f"{verdict}: ")
    assert json.loads(shown.json())["verdict"] == verdict


@over_all
def test_junit_parses_its_counts_agree_and_it_is_red_only_for_a_failure(
    shown: Report, verdict: str
) -> None:
    suite = ET.fromstring(shown.junit())
    cases = suite.findall("testcase")
    assert suite.tag == "testsuite"
    assert int(suite.attrib["tests"]) == len(cases)
    assert int(suite.attrib["failures"]) == len(suite.findall("testcase/failure"))
    assert int(suite.attrib["skipped"]) == len(suite.findall("testcase/skipped"))
    assert (suite.find("testcase/failure") is not None) is (verdict == "FAILED")
    names = [(case.attrib["classname"], case.attrib["name"]) for case in cases]
    assert len(set(names)) == len(names)
    for outcome in suite.findall("testcase/*"):
        assert outcome.attrib["message"]


@over_all
def test_every_rung_and_every_mutant_is_accounted_for_in_junit(shown: Report, verdict: str) -> None:
    names = {case.attrib["name"] for case in ET.fromstring(shown.junit())}
    if shown.run.claims:
        assert {*map(str, CLAIM.rungs), "mutant one", "mutant two"} <= names


def test_the_json_has_the_fields_that_other_tools_rely_on() -> None:
    document = json.loads(HOLDS.json())
    assert document["schema"] == 1
    assert set(document) == {
        "schema", "verdict", "claims", "profile", "target", "environment", "heads"
    }  # fmt: skip
    (claim,) = document["claims"]
    assert set(claim) == {
        "stem", "kind", "outcome", "rungs", "budget_used", "mutants", "seed", "redo",
        "failure", "known_failure",
    }  # fmt: skip
    assert claim["mutants"] == {"killed": 2, "total": 2, "survived": []}
    assert (claim["stem"], claim["kind"], claim["outcome"]) == ("tiny", "exact", "held")
    assert (claim["budget_used"], claim["seed"]) == (0.25, 3)
    assert claim["redo"] == "equivalence check --only tiny --seed 3"
    assert set(claim["rungs"]) == {"symbolic", "ball", "float", "property"}
    assert claim["rungs"]["ball"] == {
        "outcome": "held", "comparisons": 7, "budget_used": 0.25, "note": "", "not_run": []
    }  # fmt: skip
    assert set(document["environment"]) == {"python", "numpy", "scipy", "machine"}
    assert document["heads"][0]["held"] is True


def test_the_json_of_a_failure_has_the_failure_and_the_survivor() -> None:
    (claim,) = json.loads(FAILS.json())["claims"]
    assert (claim["outcome"], claim["failure"]) == ("failed", FAILURE)
    assert claim["mutants"] == {"killed": 1, "total": 2, "survived": ["two"]}
    assert json.loads(FAILS.json())["heads"][0]["held"] is False


@pytest.mark.parametrize(
    ("shown", "rung", "why"),
    [
        (FAILS, "ball", "python-flint is missing"),
        (INTERRUPTED, "property", "the run was interrupted"),
        (NEVER_STARTED, "symbolic", "the run was interrupted"),
    ],
)
def test_a_rung_that_did_not_run_says_why_in_every_form(shown: Report, rung: str, why: str) -> None:
    assert f"because {why} (" in shown.text()
    entry = json.loads(shown.json())["claims"][0]["rungs"][rung]
    assert (entry["outcome"], entry["note"]) == ("did not run", why)
    skipped = ET.fromstring(shown.junit()).find(f"testcase[@name='{rung}']/skipped")
    assert skipped is not None
    assert skipped.attrib["message"] == why


def test_the_text_of_a_run_that_holds_ends_with_its_counts() -> None:
    assert HOLDS.text().splitlines()[-1] == (
        "HOLDS: 1 of 1 claims, 4 of 4 rungs, 2 of 2 mutants rejected"
    )
    row = HOLDS.text().splitlines()[3].split()
    assert row == ["tiny", "exact", "7", "7", "7", "7", "-", "-", "0.25", "2/2"]
    assert "  layer 2: 1 of 1 heads held   error 1.0e-16   budget 1.0e-14" in HOLDS.text()


def test_the_text_of_a_run_that_fails_shows_the_failure_and_the_survivor() -> None:
    text = FAILS.text()
    assert FAILURE in text
    assert "claim tiny is no test: its check does not reject two" in text
    assert "layer 2: 0 of 1 heads held" in text
    row = text.splitlines()[3].split()
    assert row == ["tiny", "exact", "7", "not", "run", "FAILED", "7", "-", "-", "0.25", "1/2"]
    assert text.splitlines()[-1] == "FAILED: 0 of 1 claims, 2 of 4 rungs, 1 of 2 mutants rejected"


def test_an_interrupted_run_says_so() -> None:
    assert INTERRUPTED.text().splitlines()[-1] == (
        "INCOMPLETE: 0 of 1 claims, 3 of 4 rungs, 1 of 2 mutants rejected (interrupted)"
    )


def test_known_failures_are_named_with_their_reason() -> None:
    assert KNOWN_FAILURE.text().splitlines()[-1].endswith("; known failures: tiny (bug 7)")
    skipped = ET.fromstring(KNOWN_FAILURE.junit()).find("testcase[@name='float']/skipped")
    assert skipped is not None
    assert skipped.attrib["message"] == "known failure: bug 7"


def test_a_known_failure_that_holds_is_explained_in_text_and_junit() -> None:
    why = "claim tiny holds, but is declared a known failure (bug 7)"
    assert why in HOLDS_THOUGH_KNOWN.text()
    failed = ET.fromstring(HOLDS_THOUGH_KNOWN.junit()).find("testcase/failure")
    assert failed is not None
    assert failed.attrib["message"] == why


def test_comparisons_and_whole_rungs_that_did_not_run_are_told_apart() -> None:
    partly = RungResult(HELD, 7, not_run={"the target takes no `mask`"})
    shown = report(
        result(rungs=rungs(float=partly, ball=partly, property=partly)),
        result(rungs=rungs(ball=RungResult(note="python-flint is missing"))),
    )
    assert shown.text().splitlines()[-4:-2] == [
        "did not run: 1 rung, because python-flint is missing (tiny/ball)",
        "did not run: some comparisons on 3 rungs, because the target takes no `mask` "
        "(tiny/ball, tiny/float, ...)",
    ]
    assert shown.verdict == "HOLDS"


def test_an_inconclusive_rung_says_so_in_every_form() -> None:
    unclear = RungResult(INCONCLUSIVE, 7, note="the slope: its interval is wide")
    shown = report(result(rungs=rungs(float=unclear)))
    assert shown.text().splitlines()[3].split()[2:6] == ["7", "7", "unclear", "7"]
    why = "inconclusive: 1 rung, because the slope: its interval is wide (tiny/float)"
    assert why in shown.text()
    assert shown.text().splitlines()[-1].startswith("INCOMPLETE: 0 of 1 claims, 3 of 4 rungs")
    (claim,) = json.loads(shown.json())["claims"]
    assert claim["outcome"] == claim["rungs"]["float"]["outcome"] == "inconclusive"
    assert claim["rungs"]["float"]["note"] == unclear.note
    skipped = ET.fromstring(shown.junit()).find("testcase[@name='float']/skipped")
    assert skipped is not None
    assert skipped.attrib["message"] == f"inconclusive: {unclear.note}"


def test_one_head_that_does_not_hold_fails_the_run() -> None:
    for wrong in ({"budget_used": 1.01}, {"budget": 1e-12}, {"budget_used": float("nan")}):
        assert report(result(), heads=[HEAD, replace(HEAD, **wrong)]).verdict == "FAILED"


def test_the_table_of_heads_has_a_line_a_head() -> None:
    title, line = heads_table([HEAD]).splitlines()
    assert title.split()[:5] == ["layer", "head", "error", "budget", "used"]
    assert line.split() == [
        "2",
        "5",
        "1.0e-16",
        "1.0e-14",
        "0.125",
        "1.00",
        "4.00",
        "9.00",
        "5e+03",
    ]


def test_junit_carries_a_failure_that_xml_cannot() -> None:
    failure = "claim tiny fails: \x1b[31mred\x00 <&> \ud800 ∑\n  given    x"
    shown = report(result(rungs=rungs(float=RungResult(FAILED, 1)), failure=failure))
    element = ET.fromstring(shown.junit().encode()).find("testcase/failure")
    assert element is not None
    assert element.text == "claim tiny fails: ?[31mred? <&> ? ∑\n  given    x"


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    for text in ("one\n", "two π\n"):
        write_atomically(tmp_path / "report.json", text)
        assert (tmp_path / "report.json").read_text(encoding="utf-8") == text
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize("when", ["the text cannot be encoded", "the disk is full"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    target = tmp_path / "report.json"
    target.write_text("old")
    text = "\ud800" if "encoded" in when else "new"
    if when == "the disk is full":
        monkeypatch.setattr(os, "replace", full)
    with pytest.raises((OSError, UnicodeEncodeError)):
        write_atomically(target, text)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
