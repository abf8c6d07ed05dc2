"""The framework of the proofs: derivations, the operations of their steps, and the false variants.

A claim's module builds one `Derivation`. Its argument calls `proof.step(title, start, operation,
claim, because=...)`: the operation is applied to the start, its result must have the normal form of
the claim, and what the operation means is evaluated at exact rational instances of several sizes.
`proof.refuse(...)` takes the same arguments for a wrong statement, which the same procedure must
reject with a counterexample.
"""

from .core import Derivation, Proof, ProofError, Refusal, Step
from .instances import Comparison, Instance
from .operations import (
    Differentiate,
    EvaluateAt,
    Expand,
    Integrate,
    LogarithmOfProduct,
    MultiplyBlocks,
    Operation,
    Solve,
    Substitute,
)

__all__ = [
    "Comparison",
    "Derivation",
    "Differentiate",
    "EvaluateAt",
    "Expand",
    "Instance",
    "Integrate",
    "LogarithmOfProduct",
    "MultiplyBlocks",
    "Operation",
    "Proof",
    "ProofError",
    "Refusal",
    "Solve",
    "Step",
    "Substitute",
]
