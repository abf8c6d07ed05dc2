"""The shape of the house: names that match, layers that hold, tests that cannot pass by accident.

Each rule is a function of a source text or a folder, and is shown to refuse a bad example.
"""

from __future__ import annotations

import ast
import inspect
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType

import pytest

import equivalence
from equivalence import (
    ball,
    dual,
    features,
    gradients,
    kernels,
    layers,
    linear,
    losses,
    modifications,
    ratio,
    streaming,
)
from equivalence.verify.claim import Claim
from equivalence.verify.registry import STEMS, load_all

ROOT = Path(__file__).parents[1]
OURS = sorted(
    path
    for folder in ("equivalence", "proofs", "tests")
    for path in (ROOT / folder).rglob("*.py")
    if "__pycache__" not in path.parts
)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def under(*folders: str) -> list[Path]:
    return [path for path in OURS if relative(path).startswith(folders)]


def over(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=relative)


# Names: a stem is a claim, a proof and a test.


def missing(stems: Iterable[str], root: Path) -> list[str]:
    """Files that a stem should have and has not, and claims and proofs without a stem."""
    wanted = set(stems)
    problems = []
    for folder in ("equivalence/verify/claims", "proofs"):
        found = {path.stem for path in (root / folder).glob("*.py")} - {"__init__", "__main__"}
        problems += [f"{folder}/{stem}.py is missing" for stem in wanted - found]
        problems += [f"{folder}/{stem}.py has no stem" for stem in found - wanted]
    return sorted(
        problems
        + [
            f"tests/test_{stem}.py is missing"
            for stem in wanted
            if not (root / f"tests/test_{stem}.py").is_file()
        ]
    )


def test_every_stem_has_its_claim_its_proof_and_its_test() -> None:
    assert missing(STEMS, ROOT) == []
    assert [claim.stem for claim in load_all()] == list(STEMS)
    assert len(set(STEMS)) == len(STEMS)


def test_a_missing_or_a_stray_file_is_named(tmp_path: Path) -> None:
    for name in ("equivalence/verify/claims/one.py", "proofs/two.py", "tests/test_one.py"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    assert missing(["one"], tmp_path) == ["proofs/one.py is missing", "proofs/two.py has no stem"]
    assert missing(["one", "three"], tmp_path)[-1] == "tests/test_three.py is missing"


@pytest.mark.parametrize("claim", load_all(), ids=lambda claim: claim.stem)
def test_what_a_claim_says_of_its_files_is_true(claim: Claim) -> None:
    assert (ROOT / claim.code).is_file()


# Layers: who may import whom.


def imports(source: str) -> Iterator[tuple[str, bool]]:
    """The modules that a text imports, and whether it does so inside a function."""

    def walk(node: ast.AST, inside: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, inside) for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.level == 0:
                for alias in child.names:
                    yield f"{child.module}.{alias.name}", inside
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from walk(child, inside or function)

    yield from walk(ast.parse(source), False)


OPTIONAL = {
    "hypothesis", "flint", "sympy", "pytest", "threadpoolctl", "tokenizers", "torch", "jax",
}  # fmt: skip
STANDARD = set(sys.stdlib_module_names)


def forbidden_imports(path: str, source: str) -> list[str]:
    """What a file of equivalence/ or proofs/ may not import, or not when it is loaded."""
    problems = []
    for name, lazy in imports(source):
        top = name.partition(".")[0]
        if path.startswith("proofs/"):
            wrong = top not in STANDARD | {"sympy", "mpmath", "proofs"}  # mpmath is SymPy's
        elif top in OPTIONAL:
            wrong = not lazy and (top, path) != ("hypothesis", "equivalence/verify/strategies.py")
        elif f"{name}.".startswith("equivalence.verify.") and not path.startswith(
            ("equivalence/verify/", "equivalence/__main__.py")
        ):
            wrong = not (lazy and path == "equivalence/__init__.py")
        else:
            wrong = top not in STANDARD | {"numpy", "scipy", "equivalence"}
        if wrong:
            problems.append(name)
    return problems


@over(under("equivalence/", "proofs/"))
def test_the_layers_hold(path: Path) -> None:
    assert forbidden_imports(relative(path), path.read_text(encoding="utf-8")) == []


LAZY = "def f():\n    "


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("proofs/x.py", "import numpy as np"),
        ("proofs/x.py", "from equivalence.dual import loss"),
        ("proofs/x.py", f"{LAZY}import equivalence"),
        ("equivalence/dual.py", "from proofs import load"),
        ("equivalence/verify/symbolic.py", f"{LAZY}import proofs.gram_features"),
        ("equivalence/dual.py", "import equivalence.verify"),
        ("equivalence/dual.py", f"{LAZY}from equivalence.verify.budgets import gamma"),
        ("equivalence/features/gram.py", "from equivalence import verify"),
        ("equivalence/__init__.py", "from equivalence.verify import check_implementation"),
        ("equivalence/verify/runner.py", "import hypothesis"),
        ("equivalence/verify/runner.py", "if True:\n    from hypothesis import given"),
        ("equivalence/verify/strategies.py", "import pytest"),
        ("equivalence/verify/oracle.py", "try:\n    import flint\nexcept ImportError:\n    pass"),
        ("equivalence/verify/plugin.py", "class A:\n    import pytest"),
        ("equivalence/features/gram.py", f"{LAZY}import pandas"),
        ("equivalence/data/minilm.py", "import tokenizers"),
    ],
)
def test_an_import_against_the_layers_is_refused(path: str, source: str) -> None:
    assert forbidden_imports(path, source) != []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("proofs/x.py", "import sympy\nfrom . import load\nfrom math import pi"),
        ("equivalence/verify/runner.py", f"{LAZY}from hypothesis import given"),
        ("equivalence/verify/strategies.py", "from hypothesis import given"),
        ("equivalence/__init__.py", f"{LAZY}from equivalence import verify"),
        ("equivalence/__main__.py", "from equivalence.verify.runner import run"),
        ("equivalence/dual.py", "import numpy as np\nfrom scipy.linalg import solve"),
    ],
)
def test_an_import_along_the_layers_is_allowed(path: str, source: str) -> None:
    assert forbidden_imports(path, source) == []


# Comparisons whose result nobody looks at.

RETURNS_ITS_VERDICT = {
    "allclose", "array_equal", "array_equiv", "isclose", "all", "any", "isfinite", "isinstance",
    "compare", "against", "approx",
}  # fmt: skip


def called(node: ast.AST) -> str:
    """The last name of what is called, if the node is a call."""
    if not isinstance(node, ast.Call):
        return ""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def dropped_comparisons(source: str) -> list[str]:
    """Comparisons made as statements of their own, and asserts of a tuple, which always hold."""
    tree = ast.parse(source)
    # What is expected to raise need not be looked at.
    expected = {
        id(inner)
        for block in ast.walk(tree)
        if isinstance(block, ast.With)
        and any(called(item.context_expr) == "raises" for item in block.items)
        for inner in ast.walk(block)
    }
    return [
        ast.unparse(node)
        for node in ast.walk(tree)
        if (
            isinstance(node, ast.Expr)
            and id(node) not in expected
            and (
                isinstance(node.value, ast.Compare | ast.BoolOp | ast.UnaryOp)
                or called(node.value) in RETURNS_ITS_VERDICT
            )
        )
        or (isinstance(node, ast.Assert) and isinstance(node.test, ast.Tuple))
    ]


@over(OURS)
def test_no_comparison_is_dropped(path: Path) -> None:
    assert dropped_comparisons(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "statement",
    [
        "np.allclose(a, b)",
        "np.array_equal(a, b)",
        "a == b",
        "abs(a - b) <= bound",
        "not wrong",
        "a and b",
        "(a == b).all()",
        "compare('x', a, b, budget)",
        "oracle.against(number, 'x', a, b, budget)",
        "assert (a == b, 'they differ')",
    ],
)
def test_a_dropped_comparison_is_found(statement: str) -> None:
    assert dropped_comparisons(f"def test():\n    for x in y:\n        {statement}\n") != []


def test_a_comparison_that_somebody_looks_at_is_not_dropped() -> None:
    source = """
assert np.allclose(a, b), "they differ"
same = a == b
np.testing.assert_array_equal(a, b)
compare("x", a, b, budget).require()
with pytest.raises(Disagreement):
    compare("x", a, b, budget)
"""
    assert dropped_comparisons(source) == []


# Tolerances: derived, not written.

TOLERANCES = {"rtol", "atol", "rel", "abs", "tol", "rel_tol", "abs_tol", "decimal", "places"}
HIDDEN = {"allclose", "isclose", "assert_allclose", "approx", "assert_almost_equal"}
# A literal bound above this is a size, a count or a share, and nothing that rounding explains.
SMALL = 1e-2


def number(node: ast.AST) -> float | None:
    """The value of an expression made of numbers alone."""
    parts = ast.Constant, ast.UnaryOp, ast.BinOp, ast.operator, ast.unaryop
    if not all(isinstance(inner, parts) for inner in ast.walk(node)):
        return None
    value = eval(compile(ast.Expression(body=node), "", "eval"))  # type: ignore[arg-type]
    return float(value) if isinstance(value, int | float) else None


def literal_tolerances(source: str) -> list[str]:
    """Calls with a tolerance written in, or left to a default, and asserts with a tiny bound."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            given = {word.arg: number(word.value) for word in node.keywords}
            written = [name for name in TOLERANCES & set(given) if given[name]]
            if written or (called(node) in HIDDEN and not TOLERANCES & set(given)):
                found.append(ast.unparse(node))
        elif isinstance(node, ast.Assert):
            for compared in ast.walk(node.test):
                if isinstance(compared, ast.Compare) and any(map(is_tiny_bound, bounds(compared))):
                    found.append(ast.unparse(compared))
    return found


def bounds(comparison: ast.Compare) -> Iterator[ast.AST]:
    """The larger sides of a chain of comparisons: each could be a tolerance."""
    sides = [comparison.left, *comparison.comparators]
    for left, sign, right in zip(sides, comparison.ops, sides[1:], strict=False):
        if isinstance(sign, ast.Lt | ast.LtE):
            yield right
        elif isinstance(sign, ast.Gt | ast.GtE):
            yield left


def is_tiny_bound(node: ast.AST) -> bool:
    value = number(node)
    return value is not None and 0 < value < SMALL


ALLOWED = {
    ("tests/test_data.py", "np.testing.assert_allclose(measured, pinned, rtol=0, atol=0.005)"):
        "figures pinned as printed, with two decimals",
    ("tests/test_laws.py", "sum((test.alpha for test in tests)) + 14 * BETA < 1e-06"):
        "a probability of false alarm, declared and not measured",
    ("tests/test_oracle.py", "abs(third * third * 3 - 1) < 2.0 ** (-190)"):
        "the precision of a ball, 200 bits less what one root loses",
    ("tests/test_oracle.py", "float(ball.rad()) < 2.0 ** (-180)"):
        "the precision of a ball, 200 bits less what a short sum loses",
    ("tests/test_strategies.py", "0 < abs(K[2] - K[3]).max() < 2.0 ** (-28)"):
        "the distance that the case was made with, 2^-30 of a number below 4",
}  # fmt: skip


@over(under("equivalence/verify/claims/", "tests/"))
def test_no_tolerance_is_written_as_a_number(path: Path) -> None:
    name = relative(path)
    found = literal_tolerances(path.read_text(encoding="utf-8"))
    assert [text for text in found if (name, text) not in ALLOWED] == []


def test_every_exception_is_still_there() -> None:
    for name, text in ALLOWED:
        assert text in literal_tolerances((ROOT / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "source",
    [
        "np.testing.assert_allclose(a, b, rtol=1e-9)",
        "np.testing.assert_allclose(a, b)",
        "assert a == pytest.approx(b)",
        "assert a == pytest.approx(b, rel=2 * 1e-9)",
        "assert np.allclose(a, b, rtol=0, atol=1e-12)",
        "assert math.isclose(a, b, rel_tol=1e-9)",
        "assert abs(a - b) < 1e-9",
        "assert abs(a - b) <= 10 * 2.0 ** -53",
        "assert 1e-9 > abs(a - b)",
        "assert 0 < abs(a - b).max() < 1e-9",
        "assert all(x < 1e-9 for x in errors)",
    ],
)
def test_a_tolerance_written_as_a_number_is_found(source: str) -> None:
    assert literal_tolerances(source) != []


@pytest.mark.parametrize(
    "source",
    [
        "np.testing.assert_allclose(a, b, rtol=0, atol=gamma(n, u) * size)",
        "assert abs(a - b) < budget.bound",
        "assert abs(a - b) > 1e-9",
        "assert share < 0.5",
        "assert len(x) < 3",
    ],
)
def test_a_derived_tolerance_and_a_lower_bound_are_allowed(source: str) -> None:
    assert literal_tolerances(source) == []


# Documentation: a purpose everywhere, an example for what people call.


def undocumented(source: str) -> list[str]:
    """The module, and its public functions, classes and methods, that have no docstring."""
    problems = [] if ast.get_docstring(ast.parse(source)) else ["the module"]

    def walk(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.FunctionDef | ast.ClassDef) or child.name.startswith("_"):
                continue
            if not ast.get_docstring(child):
                problems.append(prefix + child.name)
            if isinstance(child, ast.ClassDef):
                walk(child, f"{child.name}.")

    walk(ast.parse(source), "")
    return problems


@over(under("equivalence/"))
def test_every_public_name_says_what_it_is_for(path: Path) -> None:
    assert undocumented(path.read_text(encoding="utf-8")) == []


@over(under("proofs/", "tests/"))
def test_every_module_says_what_it_is_for(path: Path) -> None:
    assert "the module" not in undocumented(path.read_text(encoding="utf-8"))


def test_a_name_without_a_docstring_is_named() -> None:
    source = '''
def f(): ...
def _private(): ...
class A:
    def method(self):
        """It has one."""
    def other(self):
        def inner(): ...
class _Hidden:
    def method(self): ...
'''
    assert undocumented(source) == ["the module", "f", "A", "A.other"]


def without_example(objects: dict[str, object]) -> list[str]:
    """Functions and classes whose docstrings show no example that doctest runs."""
    return [
        name
        for name, thing in objects.items()
        if not inspect.ismodule(thing) and ">>> " not in (inspect.getdoc(thing) or "")
    ]


def public(module: object) -> dict[str, object]:
    return {name: getattr(module, name) for name in getattr(module, "__all__")}  # noqa: B009


def defined_in(module: ModuleType) -> dict[str, object]:
    return {
        name: thing
        for name, thing in inspect.getmembers(module, inspect.isfunction)
        if thing.__module__ == module.__name__ and not name.startswith("_")
    }


@pytest.mark.parametrize(
    "objects",
    [
        *map(public, (equivalence, features, layers, modifications)),
        *map(defined_in, (ball, dual, gradients, kernels, linear, losses, ratio, streaming)),
    ],
    ids=[
        *("equivalence", "features", "layers", "modifications"),
        *("ball", "dual", "gradients", "kernels", "linear", "losses", "ratio", "streaming"),
    ],
)
def test_what_people_call_has_an_example(objects: dict[str, object]) -> None:
    assert objects
    assert without_example(objects) == []


def test_a_function_without_an_example_is_named() -> None:
    assert without_example({"undocumented": undocumented, "ast": ast}) == ["undocumented"]


# Mutants: enough of them, and told apart.

ENOUGH = 5


def mutant_problems(claim: Claim) -> list[str]:
    """What is wrong with a claim's list of mutants."""
    problems = []
    if len(claim.mutants) < ENOUGH:
        problems.append(f"only {len(claim.mutants)} mutants")
    for what in ("name", "defect"):
        texts = [getattr(mutant, what) for mutant in claim.mutants]
        problems += [
            f"{what} {text!r} twice" for text in texts if texts.count(text) > 1 or not text
        ]
    problems += [f"{mutant.name} replaces nothing" for mutant in claim.mutants if not mutant.parts]
    return problems


@pytest.mark.parametrize("claim", load_all(), ids=lambda claim: claim.stem)
def test_every_claim_has_mutants_enough_and_told_apart(claim: Claim) -> None:
    assert mutant_problems(claim) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda mutants: mutants[:4],
        lambda mutants: (*mutants, mutants[0]),
        lambda mutants: (replace(mutants[0], name=mutants[1].name), *mutants[1:]),
        lambda mutants: (replace(mutants[0], defect=""), replace(mutants[1], defect="")),
        lambda mutants: (replace(mutants[0], parts={}), *mutants[1:]),
    ],
)
def test_a_bad_list_of_mutants_is_refused(damage: Callable[..., tuple[object, ...]]) -> None:
    claim = load_all()[0]
    assert mutant_problems(replace(claim, mutants=damage(claim.mutants))) != []


# The top level, which is fixed.

TOP = {
    "pyproject.toml", "equivalence", "proofs", "tests", "README.md", "tox.ini", "LICENSE",
    "CHANGELOG.md",
}  # fmt: skip
ARTEFACTS = ("build", "dist", "mutants", "*.egg-info", "__pycache__", "PKG-INFO")


def strangers(names: Iterable[str]) -> list[str]:
    """Names at the top level that do not belong there; dot-files do."""
    return sorted(name for name in set(names) - TOP if not name.startswith("."))


def top_level(root: Path) -> list[str]:
    """What git tracks, or without git what lies there and was not built."""
    if (root / ".git").exists() and shutil.which("git"):
        command = ["git", "ls-files", "--cached"]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return [line.partition("/")[0] for line in done.stdout.splitlines()]
    names = [path.name for path in root.iterdir()]
    return [name for name in names if not any(fnmatch(name, pattern) for pattern in ARTEFACTS)]


def test_nothing_else_is_at_the_top_level() -> None:
    assert strangers(top_level(ROOT)) == []


def test_a_stranger_at_the_top_level_is_named(tmp_path: Path) -> None:
    for name in ("setup.py", ".gitignore", "README.md", "build", "x.egg-info", "docs"):
        (tmp_path / name).touch()
    assert strangers(top_level(tmp_path)) == ["docs", "setup.py"]
