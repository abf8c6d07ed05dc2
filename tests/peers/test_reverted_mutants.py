"""With any one mutant in the place of the real code, pytest turns red: `tox -e reverted`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from equivalence.verify.registry import load_all

ROOT = Path(__file__).parents[2]
EVERY = [(claim.stem, mutant.name) for claim in load_all() for mutant in claim.mutants]


def run(stem: str, revert: str) -> subprocess.CompletedProcess[str]:
    """The tests of one claim with a mutant in the real code; no plugin where `revert` is empty."""
    plugin = ["-p", "reverted"] if revert else []
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "peers")])
    chosen = ["-k", f"{stem} and not proof and not test_mutant_is_rejected"]
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "tests",
            "-qx",
            "-p",
            "no:cacheprovider",
            *plugin,
            *chosen,
        ],
        cwd=ROOT,
        env={**os.environ, "REVERT": revert, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(("stem", "name"), EVERY)
def test_a_mutant_in_the_real_code_turns_pytest_red(stem: str, name: str) -> None:
    outcome = run(stem, f"{stem}:{name}")
    assert outcome.returncode == 1, outcome.stdout[-2000:] + outcome.stderr[-2000:]
    assert " failed" in outcome.stdout
    assert "RecursionError" not in outcome.stdout, "the mutant met itself, not a check"


@pytest.mark.parametrize("stem", sorted({stem for stem, _ in EVERY}))
def test_without_a_mutant_it_is_green(stem: str) -> None:
    outcome = run(stem, "")
    assert outcome.returncode == 0, outcome.stdout[-2000:] + outcome.stderr[-2000:]
