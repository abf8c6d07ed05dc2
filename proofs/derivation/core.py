"""A derivation: steps that are produced by operations, and false variants that are refused."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from sympy import Basic, Expr, preorder_traversal

from .evaluation import (
    Unknown,
    Value,
    infer_sizes,
    is_vector,
    name_of,
    read,
    to_floats,
    unknowns,
    value,
)
from .instances import Comparison, Instance, show
from .normal_form import equal, normal
from .operations import Operation

MINIMUM_VARIANTS = 5


class ProofError(AssertionError):
    """A step does not hold, a check could not have failed, or a false variant is true."""


@dataclass(frozen=True)
class Step:
    """One proved step: `operation` applied to `start` gives `claim`."""

    title: str
    start: Expr
    operation: Operation
    claim: Expr
    because: str
    confirmations: tuple[str, ...]


@dataclass(frozen=True)
class Refusal:
    """A false variant, with the instance that refutes it."""

    name: str
    start: Expr
    operation: Operation
    claim: Expr
    because: str
    instance: str
    true_value: str
    claimed_value: str


@dataclass
class Proof:
    """The record that an argument writes; every call either adds to it or raises `ProofError`."""

    instances: Sequence[Instance]
    steps: list[Step] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)

    def step(
        self, title: str, start: Expr, operation: Operation, claim: Expr, *, because: str
    ) -> Expr:
        """Prove that `operation` applied to `start` gives `claim`; return the claim.

        The result of the operation must equal the claim in normal form, and the numerical meaning
        of the operation must agree with the claim, with values that are not zero, at every
        instance.

        Raises:
            ProofError: the step does not hold, or its checks could not have failed.
        """
        produced = operation.apply(start)
        if produced == start:
            raise ProofError(f"{title}: '{operation}' changed nothing in {start}")
        if not equal(produced, claim):
            raise ProofError(
                f"{title}: '{operation}' gives\n  {normal(produced)}\nbut the claim is\n"
                f"  {normal(claim)}"
            )
        comparisons = [(at, operation.confirm(start, claim, at)) for at in self.instances]
        for at, compared in comparisons:
            _demand_agreement(title, at, compared)
        _demand_sensitivity(title, start, claim, self.instances[-1])
        confirmations = tuple(f"{at}: {compared.how}" for at, compared in comparisons)
        self.steps.append(Step(title, start, operation, claim, because, confirmations))
        return claim

    def refuse(
        self, name: str, start: Expr, operation: Operation, claim: Expr, *, because: str
    ) -> None:
        """Refute the false variant that `operation` applied to `start` gives `claim`.

        Raises:
            ProofError: the variant is true, or no instance refutes it.
        """
        if equal(operation.apply(start), claim):
            raise ProofError(f"the false variant '{name}' is true: its normal forms are equal")
        refuting = list(self._disagreements(start, operation, claim))
        if not refuting:
            raise ProofError(f"the false variant '{name}' is refuted by no instance")
        at, found = refuting[-1]
        self.refusals.append(
            Refusal(
                name, start, operation, claim, because, str(at), show(found.left), show(found.right)
            )
        )

    def _disagreements(
        self, start: Expr, operation: Operation, claim: Expr
    ) -> Iterator[tuple[Instance, Comparison]]:
        """Yield refuting instances up to the first whose values have the same shape."""
        for at in self.instances:
            found = operation.confirm(start, claim, at)
            if not found.agrees:
                yield at, found
                if found.same_shape:
                    return


def _demand_agreement(title: str, at: Instance, compared: Comparison) -> None:
    if not compared.agrees:
        raise ProofError(
            f"{title}: at {at} the value is {show(compared.left)}, the claim gives "
            f"{show(compared.right)}"
        )
    if compared.is_zero:
        raise ProofError(f"{title}: at {at} both sides are zero, so the check could not fail")


def _demand_sensitivity(title: str, start: Expr, claim: Expr, at: Instance) -> None:
    """Raise unless every symbol left in the claim changes its value, so the check can fail."""
    if not unknowns(start, at.definitions):
        raise ProofError(f"{title}: the start contains no symbol, so the check could not fail")
    here = at.value(claim)
    for name, unknown in unknowns(normal(claim), at.definitions).items():
        if name not in at.sizes and at.value(claim, {name: _nudged(at.draw(unknown))}) == here:
            raise ProofError(f"{title}: {name} has no effect on the claim, so its check is void")


def _nudged(data: Value, by: int = 1) -> Value:
    # by different amounts, since attention does not see a common change of all keys
    if isinstance(data, list):
        return [_nudged(entry, by + k) for k, entry in enumerate(data)]
    return data + by


@dataclass(frozen=True)
class Derivation:
    """A claim, its argument, and the named expressions the argument is about.

    Args:
        title: the claim in a few words.
        statement: the claim in one paragraph.
        scope: "every ..." for symbolic sizes, or "instance: ...".
        assumptions: what is assumed, one line each.
        sizes: for each instance a value for every integer symbol, and for any other symbol whose
            value shall not be random; three instances at least, one with a size 1, one whose sizes
            all differ.
        argument: writes the steps and the false variants into a `Proof`.
        expressions: the named expressions that `evaluate` offers; each must occur in a step.
        definitions: symbols that stand for expressions, such as D for a sum over tokens.

    Raises:
        ValueError: the scope or the sizes are not as described.
    """

    title: str
    statement: str
    scope: str
    assumptions: Sequence[str]
    sizes: Sequence[Mapping[str, int]]
    argument: Callable[[Proof], None]
    expressions: Mapping[str, Expr]
    definitions: Mapping[Unknown, Expr] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.scope.startswith(("every ", "instance: ")):
            raise ValueError(f"scope is {self.scope!r}; expected 'every ...' or 'instance: ...'")
        if len({tuple(sizes.items()) for sizes in self.sizes}) < 3:
            raise ValueError(f"sizes has {len(self.sizes)} instances; expected three different")
        if not any(1 in sizes.values() for sizes in self.sizes):
            raise ValueError("sizes has no instance with a size 1; expected one")
        if not any(len(set(sizes.values())) == len(sizes) for sizes in self.sizes):
            raise ValueError("sizes has no instance whose sizes all differ; expected one")

    @cached_property
    def instances(self) -> tuple[Instance, ...]:
        """The instances at which every step is confirmed."""
        return tuple(Instance(sizes, self.definitions) for sizes in self.sizes)

    def prove(self) -> Proof:
        """Run the argument and return the complete proof.

        Raises:
            ProofError: a step fails, a false variant is true, there are fewer than five false
                variants, a name occurs twice, or a named expression occurs in no step.
        """
        proof = Proof(self.instances)
        self.argument(proof)
        if not proof.steps:
            raise ProofError("the argument has no step")
        if len(proof.refusals) < MINIMUM_VARIANTS:
            raise ProofError(
                f"{len(proof.refusals)} false variants; expected {MINIMUM_VARIANTS} at least"
            )
        _demand_unique([step.title for step in proof.steps])
        _demand_unique([refusal.name for refusal in proof.refusals])
        proved = {part for step in proof.steps for part in _parts(step.start, step.claim)}
        proved |= {part for expr in self.definitions.values() for part in _parts(expr)}
        for name, expr in self.expressions.items():
            if expr not in proved:
                raise ProofError(f"the expression '{name}' is exposed but occurs in no step")
        return proof

    def arguments(self, name: str) -> tuple[str, ...]:
        """Return the names of the values that `evaluate` needs for a named expression.

        Raises:
            ValueError: there is no such expression.
        """
        return _without_sizes(unknowns(self._expression(name), self.definitions))

    def evaluate(self, name: str, values: Mapping[str, Any]) -> Any:
        """Evaluate a named expression exactly, and round the result once, to Python floats.

        Args:
            name: one of `expressions`.
            values: for each of `arguments(name)` a number or nested lists of numbers; floats are
                taken as the rationals they are, and sizes are read off the lists. A value may also
                be given for a defined symbol such as D, whose definition it replaces.

        Returns:
            A float, a list of rows, or a flat list for a matrix that has one column.

        Raises:
            ValueError: the name is unknown, or values are missing, unknown or of wrong shape.
            TypeError: a value is not a number.
        """
        expr = self._expression(name)
        expected = unknowns(expr) | unknowns(expr, self.definitions)
        given = {key: read(data, expected[key]) for key, data in values.items() if key in expected}
        unknown = sorted(set(values) - set(expected))
        if unknown:
            raise ValueError(f"{name} takes no {', '.join(unknown)}; it takes {sorted(expected)}")
        undefined = {s: e for s, e in self.definitions.items() if name_of(s) not in given}
        missing = set(_without_sizes(unknowns(expr, undefined))) - set(given)
        if missing:
            raise ValueError(f"{name} needs {', '.join(sorted(missing))}; given: {sorted(given)}")
        sizes = infer_sizes(given, expected)
        result = to_floats(value(expr, {**sizes, **given}, self.definitions))
        return [row[0] for row in result] if is_vector(expr) else result

    def _expression(self, name: str) -> Expr:
        if name not in self.expressions:
            raise ValueError(f"no expression {name!r}; expected one of {list(self.expressions)}")
        return self.expressions[name]


def _without_sizes(needed: Mapping[str, Unknown]) -> tuple[str, ...]:
    sizes = {str(size) for u in needed.values() for size in getattr(u, "shape", None) or ()}
    return tuple(name for name in needed if name not in sizes)


def _parts(*expressions: Basic) -> set[Basic]:
    return {part for expr in expressions for part in preorder_traversal(expr)}


def _demand_unique(names: list[str]) -> None:
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise ProofError(f"used twice: {', '.join(sorted(repeated))}")
