"""Every proof holds, every false variant is refused, and the framework notices what it must."""

import ast
import doctest
import importlib
import json
import pkgutil
import sys
from pathlib import Path

import pytest
from sympy import (
    BlockMatrix,
    IndexedBase,
    Integer,
    Integral,
    Inverse,
    MatrixSymbol,
    Sum,
    Trace,
    ZeroMatrix,
    cos,
    exp,
    oo,
    symbols,
)

import proofs
import proofs.__main__ as command_line
from proofs import load, stems
from proofs.derivation import (
    Derivation,
    Differentiate,
    EvaluateAt,
    Expand,
    Integrate,
    MultiplyBlocks,
    Proof,
    ProofError,
    Solve,
    Substitute,
)
from proofs.derivation.instances import Comparison, Instance
from proofs.derivation.normal_form import equal, normal
from proofs.derivation.printing import _formula

n, c, m = symbols("n c m", integer=True, positive=True)
i, j = symbols("i j", integer=True)
x, y, z = symbols("x y z", real=True)
W, H = MatrixSymbol("W", c, m), MatrixSymbol("H", c, m)
S = MatrixSymbol("S", m, m)
V, Phi = MatrixSymbol("V", n, c), MatrixSymbol("Phi", n, m)
k, v = IndexedBase("k", shape=(n,)), IndexedBase("v", shape=(n,))

SIZES = ({"n": 1, "c": 2, "m": 3}, {"n": 2, "c": 2, "m": 2}, {"n": 4, "c": 2, "m": 3})
INSTANCES = tuple(Instance(sizes) for sizes in SIZES)
WHY = {"because": "the test says so"}


def fresh() -> Proof:
    return Proof(INSTANCES)


# --- the proofs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("stem", stems())
def test_proof_holds(examined, stem):
    proof = examined(stem).proof
    assert proof.steps
    for step in proof.steps:
        assert len(step.confirmations) >= 3
        assert step.because


@pytest.mark.parametrize("stem", stems())
def test_every_false_variant_is_refused(examined, stem):
    """By the normal form, and by the values at an instance."""
    assert len(examined(stem).proof.refusals) >= 5
    assert not examined(stem).accepted


@pytest.mark.parametrize("stem", stems())
def test_a_flipped_sign_breaks_every_step(examined, stem):
    """The normal form tells the claim from its negation, and so does the instance on its own."""
    assert not examined(stem).unbroken


@pytest.mark.parametrize("stem", stems())
def test_module_documents_every_expression(stem):
    module = importlib.import_module(f"proofs.{stem}")
    for name in load(stem).expressions:
        assert f"`{name}`" in module.__doc__, f"{stem} does not document {name}"


def test_a_proof_is_the_same_every_time(examined):
    again, first = load("gram_features").prove(), examined("gram_features").proof
    assert (again.steps, again.refusals) == (first.steps, first.refusals)


def test_evaluate_rounds_once():
    one_step = load("one_gradient_step")
    values = {
        "V_N": [[1.0, 2.0], [3.0, -1.0]],
        "V_T": [[0.5, 0.25]],
        "Phi_N": [[1.0, 0.0, 2.0], [0.5, 1.0, 1.0]],
        "Phi_T": [[1.0, 1.0, 0.0]],
        "phi_q": [1.0, 2.0, 3.0],
    }
    assert one_step.arguments("o") == ("Phi_N", "Phi_T", "V_N", "V_T", "phi_q")
    assert one_step.evaluate("D", {key: values[key] for key in ("Phi_N", "Phi_T", "phi_q")}) == 15.5
    expected = [(7 * 1 + 5.5 * 3 + 3 * 0.5) / 15.5, (7 * 2 - 5.5 + 3 * 0.25) / 15.5]
    assert one_step.evaluate("o", values) == expected
    assert one_step.evaluate("prediction", values) == expected
    assert one_step.evaluate("o", {**values, "D": 31})[0] == expected[0] / 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"phi_q": [1.0, 2.0]}, "m = 3 was expected"),
        ({"phi_q": 1.0}, "phi_q has 0 axes; expected 2"),
        ({"V_N": [[1.0, 2.0], [1.0]]}, "V_N is ragged"),
        ({"V_N": [[float("nan")]]}, "V_N holds nan"),
        ({"query": [1.0]}, "takes no query"),
    ],
)
def test_evaluate_names_the_argument_at_fault(change, message):
    values = {"V_N": [[1.0]], "V_T": [[2.0]], "Phi_N": [[1, 2, 3]], "Phi_T": [[4, 5, 6]]}
    with pytest.raises(ValueError, match=message):
        load("one_gradient_step").evaluate("o", {**values, "phi_q": [1, 1, 1], **change})


def test_evaluate_refuses_what_is_missing_or_unknown():
    derivation = load("one_gradient_step")
    with pytest.raises(ValueError, match="W_0 needs Phi_N, Phi_T, phi_q"):
        derivation.evaluate("W_0", {"V_T": [[1.0]]})
    with pytest.raises(ValueError, match="no expression 'W_2'"):
        derivation.evaluate("W_2", {})
    with pytest.raises(TypeError, match="eta holds 'one'"):
        derivation.evaluate("gradient", {"eta": "one"})


# --- what the framework must notice ---------------------------------------------------------------


def test_a_wrong_step_raises():
    with pytest.raises(ProofError, match=r"wrong: .* gives"):
        fresh().step("wrong", (x + y) ** 2, Expand(), x**2 + y**2, **WHY)


def test_a_wrong_number_raises_even_when_the_normal_forms_agree():
    class Blind(Expand):
        def apply(self, start):
            return x + 2 * y

    with pytest.raises(ProofError, match="the value is"):
        fresh().step("blind", x + y, Blind(), x + 2 * y, **WHY)


@pytest.mark.parametrize(
    "loss",
    [Sum(S[i, i], (i, 0, m - 1)), Sum(2 * S[i, i], (i, 0, m - 1))],
)
def test_a_derivative_that_is_silently_zero_raises(loss):
    """SymPy differentiates these sums of entries to zero; the difference quotient does not."""
    with pytest.raises(ProofError):
        fresh().step("silent", loss, Differentiate(S), ZeroMatrix(m, m), **WHY)
    with pytest.raises(ProofError):
        fresh().step("silent", loss, Differentiate(S), Integer(0), **WHY)


def test_a_sum_of_traces_is_differentiated_term_by_term():
    loss = Trace(V * W * Phi.T) + Trace(W * W.T) / 2
    fresh().step("sum", loss, Differentiate(W), V.T * Phi + W, **WHY)


def test_a_derivative_that_is_zero_everywhere_raises():
    with pytest.raises(ProofError, match="could not fail"):
        fresh().step("zero", Trace(V * V.T) + 0 * x, Differentiate(x), Integer(0), **WHY)


def test_a_transposed_derivative_raises_for_square_sizes_too():
    gradient = Differentiate(W).confirm(Trace(V * W * Phi.T), Phi.T * V, INSTANCES[1])
    assert gradient.same_shape
    assert not gradient.agrees


def test_an_operation_that_changes_nothing_raises():
    with pytest.raises(ProofError, match="changed nothing"):
        fresh().step("idle", x + y, Substitute({z: 2}), x + y, **WHY)


def test_a_check_of_zero_against_zero_raises():
    with pytest.raises(ProofError, match="both sides are zero"):
        fresh().step("zero", (x + y) ** 2 - x**2 - 2 * x * y - y**2, Expand(), Integer(0), **WHY)


class Doit(Expand):
    def apply(self, start):
        return start.doit()


def test_a_check_without_symbols_raises():
    with pytest.raises(ProofError, match="no symbol"):
        fresh().step("constant", Sum(j, (j, 1, 3)), Doit(), Integer(6), **WHY)


def test_a_check_that_ignores_a_symbol_raises():
    """With a single token the weight is one, whatever the kernel value is."""
    mean = Sum(k[j] * v[j], (j, 1, n)) / Sum(k[j], (j, 1, n))
    doubled = Substitute({v[j]: 2 * v[j]})
    fresh().step("three sizes", mean, doubled, 2 * mean, **WHY)
    with pytest.raises(ProofError, match="k has no effect"):
        Proof([Instance({"n": 1})]).step("one token", mean, doubled, 2 * mean, **WHY)


def test_a_false_variant_that_is_true_raises():
    with pytest.raises(ProofError, match="'a square' is true"):
        fresh().refuse("a square", (x + y) ** 2, Expand(), x**2 + 2 * x * y + y**2, **WHY)


def test_a_false_variant_without_counterexample_raises():
    class Cautious(Expand):
        def confirm(self, start, claim, at):
            return Comparison(1, 1)

    with pytest.raises(ProofError, match="refuted by no instance"):
        fresh().refuse("unrefuted", x, Cautious(), y, **WHY)


def complete(proof: Proof) -> None:
    proof.step("square", (x + y) ** 2, Expand(), x**2 + 2 * x * y + y**2, **WHY)
    for factor in range(3, 8):
        proof.refuse(str(factor), (x + y) ** 2, Expand(), x**2 + factor * x * y + y**2, **WHY)


def derivation(argument=complete, **changes) -> Derivation:
    fields = {
        "title": "title",
        "statement": "statement",
        "scope": "every n",
        "assumptions": (),
        "sizes": SIZES,
        "argument": argument,
        "expressions": {"square": (x + y) ** 2},
    }
    return Derivation(**{**fields, **changes})


def test_a_complete_derivation_is_proved():
    assert len(derivation().prove().refusals) == 5


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (lambda proof: None, "no step"),
        (lambda proof: proof.step("s", (x + 1) ** 2, Expand(), x**2 + 2 * x + 1, **WHY), "0 false"),
        (lambda proof: (complete(proof), complete(proof)), "used twice"),
    ],
)
def test_an_incomplete_argument_raises(argument, message):
    with pytest.raises(ProofError, match=message):
        derivation(argument).prove()


def test_an_expression_without_a_step_raises():
    with pytest.raises(ProofError, match="'cube' is exposed but occurs in no step"):
        derivation(expressions={"cube": x**3}).prove()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scope": "all"}, "scope is 'all'"),
        ({"sizes": SIZES[:2]}, "expected three different"),
        ({"sizes": SIZES[:1] * 3}, "expected three different"),
        ({"sizes": [{"n": 2, "c": a, "m": 9} for a in (3, 4, 5)]}, "no instance with a size 1"),
        ({"sizes": [{"n": 1, "c": a, "m": a} for a in (3, 4, 5)]}, "whose sizes all differ"),
    ],
)
def test_a_derivation_refuses_weak_instances(changes, message):
    with pytest.raises(ValueError, match=message):
        derivation(**changes)


# --- the normal form and the operations -----------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (Trace(V * W * Phi.T), Trace(Phi * W.T * V.T)),
        (Trace((W + H) * (W - H).T), Trace(W * W.T) - Trace(H.T * H)),
        (S * Inverse(2 * S * S.T) * S, S * Inverse(S.T) / 2 * Inverse(S) * S),
        (Sum(k[j] * x + x * y, (j, 1, n)), x * Sum(k[i], (i, 1, n)) + n * x * y),
        (Sum(k[i] * v[j], (i, 1, n), (j, 1, n)), Sum(k[j], (j, 1, n)) * Sum(v[i], (i, 1, n))),
        (exp(x + 2 * y) / exp(y), exp(x) * exp(y)),
        ((exp(2 * x) - 1) / (exp(x) + 1), exp(x) - 1),
        (exp(-x / 2) * exp(x), exp(x / 2)),
        (cos(2 * x), 2 * cos(x) ** 2 - 1),
        (BlockMatrix([[V], [V]]).T * BlockMatrix([[Phi], [2 * Phi]]), 3 * V.T * Phi),
    ],
)
def test_equal_expressions_have_equal_normal_forms(left, right):
    assert equal(left, right)
    assert equal(normal(left), right)
    assert not equal(2 * left, right)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (V.T * Phi, Phi.T * V),
        (S, S.T),
        (S * Inverse(S.T), S.T * Inverse(S)),
        (Trace(S * S), Trace(S * S.T)),
        (Sum(k[j] * v[j], (j, 1, n)), Sum(k[j], (j, 1, n)) * Sum(v[j], (j, 1, n))),
        (Sum(k[j], (j, 1, n)), Sum(k[j], (j, 2, n))),
        (Sum(k[i] * v[j], (i, 1, n), (j, 1, i)), Sum(k[i] * v[j], (i, 1, n), (j, 1, n))),
        (x, S),
    ],
)
def test_different_expressions_have_different_normal_forms(left, right):
    assert not equal(left, right)


def test_operations_on_small_examples():
    proof = fresh()
    proof.step("root", 2 * x - 6 * y, Solve(x), 3 * y, **WHY)
    proof.step(
        "tail", Integral(exp(-(x**2) + z), (x, -oo, oo)) ** 2, Integrate(), PI * exp(2 * z), **WHY
    )
    proof.step("shift", Sum(k[j], (j, 1, n)), Substitute({k[i]: k[i] + x}), SHIFTED, **WHY)
    proof.step(
        "instance",
        Sum(k[j] * x, (j, 1, n)),
        EvaluateAt({n: 2, k: [1, 2], x: 3}),
        Integer(9),
        **WHY,
    )
    proof.step("blocks", BlockMatrix([[V], [V]]).T * STACK, MultiplyBlocks(), 3 * V.T * Phi, **WHY)
    assert len(proof.steps) == 5


PI = Integral(exp(-(y**2)), (y, -oo, oo)).doit() ** 2
SHIFTED = Sum(k[j], (j, 1, n)) + n * x
STACK = BlockMatrix([[Phi], [2 * Phi]])


# --- the command line -----------------------------------------------------------------------------

RESULT_KEYS = {"stem", "scope", "held", "steps", "false_variants", "seconds", "failure"}


def test_command_line_lists_all(monkeypatch, capsys):
    monkeypatch.setattr(command_line, "load", lambda stem: derivation())
    assert command_line.main([]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(stems())


def test_command_line_prints_a_proof(capsys):
    assert command_line.main(["one_gradient_step"]) == 0
    printed = capsys.readouterr().out
    for part in ("1. ", "Because", "Confirmed at", "Refused", "QED"):
        assert part in printed


@pytest.mark.parametrize(
    ("total", "texts"),
    [
        (W + (1 - x) * H, {"W + (1 - x)⋅H", "(1 - x)⋅H + W"}),
        (W - x * H, {"W - x⋅H", "-x⋅H + W"}),
    ],
)
def test_every_sign_between_matrices_is_printed(total, texts):
    """SymPy leaves out the one before (1 - x) V."""
    assert " ".join(_formula(total).split()) in texts


def test_command_line_json(capsys):
    assert command_line.main(["--json", "gram_features"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert set(record) == RESULT_KEYS
    assert record["held"]
    assert record["failure"] is None
    assert record["false_variants"]["refused"] == record["false_variants"]["total"] >= 5


def test_command_line_reports_a_failure(monkeypatch, capsys):
    def broken(proof):
        proof.step("wrong", (x + y) ** 2, Expand(), x**2, **WHY)

    monkeypatch.setattr(command_line, "load", lambda stem: derivation(broken))
    assert command_line.main(["--json", "gram_features"]) == 1
    (record,) = json.loads(capsys.readouterr().out)
    assert not record["held"]
    assert "wrong" in record["failure"]
    assert command_line.main(["gram_features"]) == 1
    assert capsys.readouterr().out.startswith("FAILED gram_features")


def test_command_line_names_near_matches(capsys):
    assert command_line.main(["one_gradient_stp"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert "did you mean one_gradient_step" in captured.err


# --- the package ----------------------------------------------------------------------------------

ROOT = Path(proofs.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_proofs_import_sympy_and_the_standard_library_only(path):
    assert imported(path) <= {"sympy", "mpmath", *sys.stdlib_module_names}


def test_every_module_beside_the_framework_is_a_proof():
    assert stems()
    for stem in stems():
        assert isinstance(load(stem), Derivation)


def test_doctests():
    names = [info.name for info in pkgutil.walk_packages(proofs.__path__, "proofs.")]
    modules = [importlib.import_module(name) for name in names if not name.endswith("__main__")]
    results = [doctest.testmod(module) for module in [proofs, *modules]]
    assert sum(result.attempted for result in results) >= 5
    assert not any(result.failed for result in results)
