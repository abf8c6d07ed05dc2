"""A pytest plugin: `REVERT=stem:mutant pytest -p reverted` has the mutant in the real code."""

import os
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

from equivalence.verify import implementation
from equivalence.verify.registry import load, load_all


def pytest_configure() -> None:
    """Replace the original wherever the package refers to it, but in the mutants that wrap it.

    Those call the original through its module, of which they get the copy from before.
    """
    stem, name = os.environ["REVERT"].split(":")
    (mutant,) = (m for m in load(stem).mutants if m.name == name)
    load_all()
    ours = implementation.OURS
    swapped: list[tuple[Any, Any]] = [(ours, mutant.of(ours))]
    swapped += [(getattr(ours, part), wrong) for part, wrong in mutant.parts.items()]
    modules = [
        module for path, module in sys.modules.items() if path.split(".")[0] == "equivalence"
    ]
    claims = [module for module in modules if ".claims." in module.__name__]
    for module in claims:
        for alias, inner in list(vars(module).items()):
            if isinstance(inner, ModuleType) and inner in modules:
                setattr(module, alias, SimpleNamespace(**vars(inner)))
    for module in modules:
        if module not in claims:
            _replace(vars(module), swapped)


def _replace(names: dict[str, Any], swapped: list[tuple[Any, Any]]) -> None:
    for name, value in list(names.items()):
        for original, wrong in swapped:
            if value is original:
                names[name] = wrong
