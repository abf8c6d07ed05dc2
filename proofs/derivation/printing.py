"""A proof as a person reads it."""

from textwrap import fill, indent

from sympy import Expr, pretty

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


def _formula(expr: Expr) -> str:
    return indent(pretty(expr, use_unicode=True, wrap_line=False), " " * 7)


def _paragraph(text: str) -> str:
    return fill(text, WIDTH, initial_indent="   ", subsequent_indent="   ")
