"""A proof as a person reads it."""

from textwrap import fill, indent

from sympy import Expr, MatAdd
from sympy.printing.pretty.pretty import PrettyPrinter, pretty_use_unicode, prettyForm

from .core import Derivation, Proof, Refusal, Step

WIDTH = 96


def render(derivation: Derivation, proof: Proof) -> str:
    """Write out a complete proof: statement, numbered steps, refused variants and scope."""
    parts = [
        derivation.title,
        "=" * len(derivation.title),
        fill(derivation.statement, WIDTH),
        "",
        "Assumed:",
        *(_paragraph(f"- {assumption}") for assumption in derivation.assumptions),
        *(
            f"\nwith\n\n{_formula(symbol)}\n  =\n{_formula(expr)}"
            for symbol, expr in derivation.definitions.items()
        ),
    ]
    for number, step in enumerate(proof.steps, start=1):
        parts += ["", _step(number, step)]
    parts += ["", "False variants, each refused by the same procedure", "-" * 50]
    for letter, refusal in enumerate(proof.refusals, start=1):
        parts += ["", _refusal(letter, refusal)]
    parts += ["", f"Proved for {derivation.scope}. QED"]
    return "\n".join(parts)


def _step(number: int, step: Step) -> str:
    return "\n".join(
        [
            f"{number}. {step.title}",
            "",
            _formula(step.start),
            "",
            _paragraph(f"{step.operation}:"),
            "",
            _formula(step.claim),
            "",
            _paragraph(f"Because {step.because}."),
            _paragraph(f"Confirmed at {'; '.join(step.confirmations)}."),
        ]
    )


def _refusal(number: int, refusal: Refusal) -> str:
    return "\n".join(
        [
            f"{number}. {refusal.name}: {refusal.operation} would turn",
            "",
            _formula(refusal.start),
            "",
            "   into",
            "",
            _formula(refusal.claim),
            "",
            _paragraph(f"Refused: {refusal.because}."),
            _paragraph(
                f"At {refusal.instance} the value is {refusal.true_value}, "
                f"the variant gives {refusal.claimed_value}."
            ),
        ]
    )


class _Printer(PrettyPrinter):
    """SymPy leaves out the sign before a matrix with a coefficient such as 1 - alpha."""

    def _print_MatAdd(self, expr: MatAdd) -> prettyForm:
        total = self._print(expr.args[0])
        for term in expr.args[1:]:
            coefficient, _ = term.as_coeff_mmul()
            negative = not coefficient.is_Add and coefficient.could_extract_minus_sign()
            sign, term = (" - ", -term) if negative else (" + ", term)
            total = prettyForm(*total.right(sign, self._print(term)))
        return total


def _formula(expr: Expr) -> str:
    # As sympy.pretty does: the setting of one printer is also a global one.
    before = pretty_use_unicode(True)
    try:
        return indent(_Printer({"use_unicode": True, "wrap_line": False}).doprint(expr), " " * 7)
    finally:
        pretty_use_unicode(before)


def _paragraph(text: str) -> str:
    return fill(text, WIDTH, initial_indent="   ", subsequent_indent="   ")
