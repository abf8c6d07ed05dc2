"""Symbolic proofs of the claims, one module a claim; `python -m proofs` runs them.

They rest on SymPy and the standard library alone, and share no code with the numerical package:
the two meet in the tests only.
"""

from difflib import get_close_matches
from importlib import import_module
from pkgutil import iter_modules

from .derivation import Derivation

__all__ = ["Derivation", "load", "stems"]


def stems() -> list[str]:
    """List the stems of all proofs.

    >>> "one_gradient_step" in stems()
    True
    """
    return sorted(m.name for m in iter_modules(__path__) if not m.ispkg and m.name != "__main__")


def load(stem: str) -> Derivation:
    """Return the derivation of one claim.

    Args:
        stem: the name of the claim, one of `stems()`.

    Raises:
        ValueError: there is no such proof; the message names similar stems.

    >>> load("one_gradient_step").scope
    'every N, T, c, m'
    """
    if stem not in stems():
        near = get_close_matches(stem, stems(), cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"expected one of {stems()}"
        raise ValueError(f"there is no proof {stem!r}: {hint}")
    return import_module(f"{__name__}.{stem}").derivation
