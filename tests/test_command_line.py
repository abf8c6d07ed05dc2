"""The command line: what it prints, where it fails, and with which exit code."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest

from equivalence.__main__ import _parser, main
from equivalence.verify import heads, runner, symbolic
from equivalence.verify.profiles import PROFILES, Profile
from equivalence.verify.registry import STEMS, load_all
from equivalence.verify.symbolic import Proofs

ATTENTION = "softmax_is_kernel_smoothing"
POSITIVE = "positive_features"
SECONDS = 60
WRONG = """
from equivalence import attention as right

def attention(query, key, value):
    return 1.001 * right(query, key, value)

def correct(query, key, value):
    return right(query, key, value)

class Neither:
    pass
"""


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A current directory of one's own; less of what takes long and is tested elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.setitem(PROFILES, "quick", Profile("quick", repeats=1, examples=2))
    monkeypatch.setattr(runner, "rejects", lambda *_: "tested elsewhere")
    monkeypatch.setattr(Proofs, "start", classmethod(lambda cls, stems: cls(None, "not here")))
    real = runner.head_cases
    for module in (runner, heads):
        monkeypatch.setattr(module, "head_cases", lambda *a: islice(real(*a), 2))
    loaded = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - loaded:
        if getattr(sys.modules[name], "__file__", None) and not name.startswith("equivalence"):
            del sys.modules[name]


def write(name: str, source: str) -> None:
    Path(name).write_text(source, encoding="utf-8")
    importlib.invalidate_caches()


def call(*arguments: str) -> int:
    """The exit code, whether it is returned or raised by the parser."""
    try:
        return main(arguments)
    except SystemExit as leaving:
        return int(leaving.code or 0)


def test_a_check_of_one_claim_prints_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("check", "--only", POSITIVE) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines()[-1].startswith("HOLDS: 1 of 1 claims, 5 of 6 rungs, ")
    assert "did not run: 1 rung, because not here (positive_features/symbolic)" in out


def test_several_claims_are_checked_in_the_order_given(folder: Path) -> None:
    assert call("check", "--only", POSITIVE, "--only", ATTENTION, "--json", "r.json") == 0
    document = json.loads((folder / "r.json").read_text())
    assert [claim["stem"] for claim in document["claims"]] == [POSITIVE, ATTENTION]


def test_without_only_every_claim_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def run(claims: list[object], *options: object) -> runner.Run:
        asked.extend(claims)
        return runner.Run(PROFILES["quick"], 0, "", [])

    monkeypatch.setattr("equivalence.__main__.run", run)
    assert call("check") == 1
    assert asked == load_all()


def test_a_target_in_the_current_directory_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    write("here_it_is.py", WRONG)
    assert call("check", "here_it_is:correct", "--only", ATTENTION) == 0
    assert capsys.readouterr().err == ""


def test_a_failure_is_printed_written_and_exits_with_one(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("wrong.py", WRONG)
    files = ("--json", "r.json", "--junit", "r.xml")
    assert call("check", "wrong:attention", "--only", ATTENTION, "--seed", "5", *files) == 1
    out, err = capsys.readouterr()
    document = json.loads((folder / "r.json").read_text())
    (claim,) = document["claims"]
    assert err == ""
    assert (document["verdict"], document["target"]) == ("FAILED", "wrong:attention")
    assert (claim["outcome"], claim["seed"]) == ("failed", 5)
    assert claim["failure"] in out
    assert int(ET.parse(folder / "r.xml").getroot().attrib["failures"]) == 4
    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == [
        "r.json",
        "r.xml",
        "wrong.py",
    ]


@pytest.mark.parametrize("profile", ["quick", "full"])
def test_the_redo_command_reproduces_the_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], profile: str
) -> None:
    monkeypatch.setitem(PROFILES, "full", Profile("full", repeats=2, examples=2))
    write("wrong.py", WRONG)
    main(["check", "wrong:attention", "--only", ATTENTION, "--seed", "5", "--profile", profile])
    first = capsys.readouterr().out
    (line,) = [line for line in first.splitlines() if line.startswith("  redo     ")]
    program, *arguments = shlex.split(line.removeprefix("  redo     "))
    assert program == "equivalence"
    options = _parser().parse_args(arguments)
    assert (options.target, options.only) == ("wrong:attention", [ATTENTION])
    assert (options.seed, options.profile) == (5, profile)
    assert main(arguments) == 1
    assert capsys.readouterr().out == first


def test_what_the_target_stands_for_can_be_said(capsys: pytest.CaptureFixture[str]) -> None:
    write("maps.py", "from equivalence.features import TrigonometricFeatures as Mine")
    arguments = ["check", "maps:Mine", "--only", "trigonometric_features"]
    assert main([*arguments, "--part", "TrigonometricFeatures"]) == 0
    assert main(arguments) == 2  # guessed: PositiveFeatures
    assert main(["check", "--part", "rotary"]) == 2
    assert "--part is 'rotary'; expected a TARGET" in capsys.readouterr().err


def test_an_interrupted_check_still_writes_what_ran(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("slow.py", WRONG + "\ndef slow(query, key, value):\n    raise KeyboardInterrupt\n")
    files = ("--json", "r.json", "--junit", "r.xml")
    assert call("check", "slow:slow", "--only", ATTENTION, *files) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].startswith("INCOMPLETE: ")
    assert err == ""
    assert json.loads((folder / "r.json").read_text())["verdict"] == "INCOMPLETE"
    assert int(ET.parse(folder / "r.xml").getroot().attrib["skipped"]) > 0


USAGE: dict[str, tuple[list[str], str]] = {
    "no command": ([], "COMMAND"),
    "unknown command": (["chekc"], "invalid choice: 'chekc'"),
    "unknown option": (["check", "--sead", "3"], "unrecognized arguments: --sead"),
    "two targets": (["check", "a:b", "c:d"], "unrecognized arguments: c:d"),
    "module that does not exist": (
        ["check", "nosuch.module:f"],
        "TARGET 'nosuch.module:f' cannot be imported (ModuleNotFoundError: No module named "
        "'nosuch'); expected module:name, importable from the current directory or PYTHONPATH",
    ),
    "target without a name": (["check", "wrong"], "TARGET is 'wrong'; expected module:name"),
    "target without a module": (["check", ":f"], "TARGET is ':f'; expected module:name"),
    "empty target": (["check", ""], "TARGET is ''; expected module:name"),
    "relative module": (["check", ".wrong:f"], "TARGET '.wrong:f' cannot be imported"),
    "no such attribute": (
        ["check", "wrong:atention"],
        "TARGET 'wrong:atention': module wrong has no atention; expected a name that it defines",
    ),
    "no such method": (["check", "wrong:Neither.f"], "module wrong has no Neither.f"),
    "target of no kind": (["check", "wrong:Neither"], "expected an attention function"),
    "target of another claim": (
        ["check", "wrong:attention", "--only", POSITIVE],
        "target stands for attention; expected a part that positive_features is about",
    ),
    "module with a syntax error": (["check", "broken:f"], "(SyntaxError: "),
    "module that fails in many lines": (["check", "verbose:f"], "(ImportError: one two three)"),
    "module that exits": (["check", "exits:f"], "(SystemExit: 0)"),
    "mistyped stem": (["check", "--only", "one_gradent_step"], "such as one_gradient_step"),
    "mistyped stem to explain": (["explain", "gram_featurs"], "such as gram_features"),
    "stem like no other": (["explain", "xyz"], "expected one of `equivalence list`"),
    "bad profile": (["check", "--profile", "slow"], "invalid choice: 'slow'"),
    "negative seed": (
        ["check", "--seed", "-1"],
        "seed is '-1'; expected an integer of at least 0",
    ),
    "seed that is no number": (["check", "--seed", "x"], "seed is 'x'; expected an integer"),
    "folder of the JSON that does not exist": (
        ["check", "--json", "nowhere/r.json"],
        "nowhere/r.json: its folder does not exist; expected a folder to write into",
    ),
    "folder of the JUnit that does not exist": (
        ["check", "--junit", "nowhere/r.xml"],
        "its folder does not exist",
    ),
    "file that is a folder": (["check", "--json", "."], "is a folder; expected the name of a file"),
}


@pytest.mark.parametrize(("arguments", "said"), USAGE.values(), ids=list(USAGE))
def test_a_usage_error_exits_with_two_and_one_line_that_says_what_to_do(
    arguments: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def no_run(*_: object, **__: object) -> None:
        raise AssertionError("a usage error is found before anything runs")

    monkeypatch.setattr("equivalence.__main__.run", no_run)
    monkeypatch.setattr("equivalence.verify.protocol.run", no_run)
    write("wrong.py", WRONG)
    write("broken.py", "def f(:\n")
    write("verbose.py", "raise ImportError('one\\n\\n  two\\nthree')\n")
    write("exits.py", "import sys\nsys.exit(0)\n")
    assert call(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("equivalence")
    assert (err.count("\n"), err[-1]) == (1, "\n")
    assert said in err
    assert "expected" in err or "try `equivalence" in err


def test_list_names_every_claim_with_its_kind_and_statement(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call("list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [[c.stem, c.kind] for c in load_all()]
    assert all(c.statement in line for c, line in zip(load_all(), lines, strict=True))


def test_list_as_json_has_the_rungs_and_the_mutants(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("list", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["stem"] for row in rows] == list(STEMS)
    assert set(rows[0]) == {"stem", "kind", "statement", "rungs", "mutants"}
    assert rows[0]["rungs"] == ["symbolic", "ball", "float", "property", "real"]
    assert all(len(row["mutants"]) >= 5 for row in rows)


@pytest.mark.parametrize("stem", STEMS)
def test_explain_says_what_is_stated_checked_and_rejected(
    stem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("explain", stem) == 0
    out = capsys.readouterr().out
    (claim,) = [claim for claim in load_all() if claim.stem == stem]
    for text in (claim.statement, claim.assumptions, claim.budget, *claim.rungs):
        assert text in out
    for mutant in claim.mutants:
        assert mutant.name in out
        assert mutant.defect in out
    assert "proof      not here" in out
    assert (
        f"read       proofs/{stem}.py, {claim.code}, equivalence/verify/claims/{stem}.py, " in out
    )


PROOF = {
    "scope": "every n",
    "steps": 3,
    "false_variants": {"refused": 2, "total": 2},
    "held": True,
    "failure": None,
}


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        (PROOF, "proof      every n (3 steps, refuses 2 false variants)\n"),
        (PROOF | {"held": False, "failure": "step 2"}, "proof      FAILED: step 2\n"),
    ],
)
def test_explain_shows_the_verdict_of_the_proof(
    verdict: dict[str, object],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Proofs, "verdict", lambda self, stem: verdict)
    assert call("explain", POSITIVE) == 0
    assert said in capsys.readouterr().out


def test_heads_shows_every_head(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("heads") == 0
    title, *lines = capsys.readouterr().out.splitlines()
    assert title.startswith("layer head ")
    assert [line.split()[:2] for line in lines] == [["0", "0"], ["0", "1"]]


def test_heads_fails_if_one_head_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = heads.HeadResult(0, 0, 1e-3, 1e-15, 1e12, 1.0, 2.0, 3.0)
    monkeypatch.setattr("equivalence.__main__.measure_heads", lambda implementation: [bad])
    assert call("heads") == 1


@pytest.fixture
def real_start(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], Proofs]:
    monkeypatch.undo()
    return Proofs.start


def test_missing_proofs_and_a_missing_sympy_are_reasons(
    real_start: Callable[[list[str]], Proofs], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "sympy" else find(name)
    )
    proofs = real_start([POSITIVE])
    assert (proofs.verdict(POSITIVE), proofs.why_not) == (None, "sympy is not installed")
    monkeypatch.setattr(symbolic, "proofs_root", lambda: None)
    proofs = real_start([POSITIVE])
    assert proofs.verdict(POSITIVE) is None
    assert proofs.why_not == "proofs/ is in the repository and the sdist, not in the wheel"


def test_proofs_that_cannot_run_say_why(
    real_start: Callable[[list[str]], Proofs], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "proofs").mkdir()
    (tmp_path / "proofs" / "__init__.py").touch()
    (tmp_path / "proofs" / "__main__.py").write_text("raise SystemExit('out of paper')\n")
    monkeypatch.setattr(symbolic, "proofs_root", lambda: tmp_path)
    proofs = real_start([POSITIVE])
    assert proofs.verdict(POSITIVE) is None
    assert proofs.why_not == "python -m proofs failed: out of paper"


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A process of its own, far from the repository."""
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=SECONDS, check=False
    )


def test_python_m_equivalence_is_the_command_line() -> None:
    done = python("-m", "equivalence", "check", "nosuch.module:f")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("equivalence: TARGET 'nosuch.module:f' cannot be imported")
    assert done.stderr.count("\n") == 1


def test_a_reader_that_leaves_early_is_no_error() -> None:
    # What is still buffered when the pipe breaks is what the interpreter flushes again at its end.
    buffered = {name: text for name, text in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(
        [sys.executable, "-m", "equivalence", "list"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=buffered,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    process.wait(SECONDS)


# What NumPy and SciPy put into sys.modules under names that are not theirs.
COMPILED = ("_cython", "cython_runtime")


def test_the_import_is_light() -> None:
    code = """
import sys
before = set(sys.modules)
import equivalence
print(*sorted(set(sys.modules) - before))
"""
    loaded = python("-c", code).stdout.split()
    tops = {name.split(".")[0] for name in loaded if not name.startswith(COMPILED)}
    assert "equivalence" in tops
    assert tops - sys.stdlib_module_names <= {"equivalence", "numpy", "scipy"}
    assert not [name for name in loaded if name.startswith("equivalence.verify")]


def test_the_instrument_is_loaded_when_it_is_asked_for_without_what_is_optional() -> None:
    code = "import sys, equivalence; equivalence.check_implementation; print(*sys.modules)"
    loaded = set(python("-c", code).stdout.split())
    assert "equivalence.verify.runner" in loaded
    assert not loaded & {"hypothesis", "sympy", "flint", "pytest", "torch", "jax", "proofs"}


def test_another_name_is_an_attribute_error_and_no_import() -> None:
    done = python("-c", "import equivalence; equivalence.atention")
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("AttributeError: module 'equivalence' has no attribute 'atention'")
