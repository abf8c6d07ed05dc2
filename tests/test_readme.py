"""README.md shows what this repository prints, names commands that exist, and links to files."""

import importlib.util
import re
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _make_readme() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_readme", ROOT / "tests" / "make_readme.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make_readme = _make_readme()


def without_rounding(text: str) -> str:
    """The text with its rounding errors and shares of budgets blanked: they differ by machine."""
    return re.sub(r"error \S+|(?<= )0\.\d\d(?= )", "#", text)


def test_the_output_shown_is_what_the_command_prints() -> None:
    shown = make_readme.section(README, "check").strip()
    assert without_rounding(shown) == without_rounding(make_readme.check_output())


def test_the_table_of_claims_is_that_of_the_registry() -> None:
    assert make_readme.section(README, "claims").strip() == make_readme.claims_table()


def test_the_table_of_caveats_is_that_of_the_registry() -> None:
    assert make_readme.section(README, "caveats").strip() == make_readme.caveats_table()


def test_a_stale_section_would_be_noticed() -> None:
    stale = make_readme.replaced(README, "claims", "| nothing |")
    assert make_readme.section(stale, "claims").strip() != make_readme.claims_table()


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)", README))))
def test_links_lead_to_files(link: str) -> None:
    assert (ROOT / link).is_file()


def test_the_gate_runs_the_test_command_of_the_readme() -> None:
    """`.ci/run` finds the command by its marker, with the very expression that is in the script."""
    gate = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    extraction = re.search(r"command=\$\((.*)\)$", gate, re.MULTILINE)
    assert extraction is not None
    found = subprocess.run(["bash", "-c", extraction[1]], cwd=ROOT, capture_output=True, text=True)
    assert found.stdout.strip().endswith(".venv-tox/bin/tox -p auto")
    assert found.stdout.strip() in README
