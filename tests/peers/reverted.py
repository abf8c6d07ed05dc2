"""A pytest plugin: `REVERT=stem:mutant pytest -p reverted` has the mutant in the real code."""

import os
import sys
from typing import Any

from equivalence.verify import implementation
from equivalence.verify.registry import load, load_all


def pytest_configure() -> None:
    """Replace the original wherever the package refers to it, but in the mutants that wrap it."""
    stem, name = os.environ["REVERT"].split(":")
    (mutant,) = (m for m in load(stem).mutants if m.name == name)
    load_all()
    ours = implementation.OURS
    swapped: list[tuple[Any, Any]] = [(ours, mutant.of(ours))]
    swapped += [(getattr(ours, part), wrong) for part, wrong in mutant.parts.items()]
    for module in list(sys.modules.values()):
        path = getattr(module, "__name__", "")
        if path.split(".")[0] == "equivalence" and ".claims" not in path:
            _replace(vars(module), swapped)


def _replace(names: dict[str, Any], swapped: list[tuple[Any, Any]]) -> None:
    for name, value in list(names.items()):
        for original, wrong in swapped:
            if value is original:
                names[name] = wrong
