"""Paste real output and the table of claims into README.md: `python tests/make_readme.py`."""

import re
import subprocess
import sys
from pathlib import Path

from equivalence.verify.registry import load_all

README = Path(__file__).parent.parent / "README.md"
SHOWN = "one_gradient_step"


def check_output() -> str:
    """What the first command prints for one claim."""
    command = [sys.executable, "-m", "equivalence", "check", "--only", SHOWN]
    run = subprocess.run(command, cwd=README.parent, capture_output=True, text=True, check=True)
    return f"```text\n$ equivalence check --only {SHOWN}\n{run.stdout}```"


def claims_table() -> str:
    """Statement, kind and links of every claim of the registry."""
    lines = ["| claim | kind | statement | files |", "|---|---|---|---|"]
    for claim in load_all():
        stem = claim.stem
        links = (
            f"[proof](proofs/{stem}.py) [code]({claim.code}) "
            f"[check](equivalence/verify/claims/{stem}.py) [test](tests/test_{stem}.py)"
        )
        statement = claim.statement.replace("|", "\\|")
        lines.append(f"| `{stem}` | {claim.kind} | {statement} | {links} |")
    return "\n".join(lines)


def caveats_table() -> str:
    """What is told of a caveat, and what holds in its place."""
    lines = ["| as told | what holds | claim |", "|---|---|---|"]
    for claim in load_all():
        if claim.tempting:
            told, holds = (text.replace("|", "\\|") for text in (claim.tempting, claim.statement))
            lines.append(f"| {told} | {holds} | `{claim.stem}` |")
    return "\n".join(lines)


def section(text: str, name: str) -> str:
    """What stands between the markers of a section."""
    match = re.search(rf"<!-- begin {name} -->\n(.*?)<!-- end {name} -->", text, re.DOTALL)
    if match is None:
        raise ValueError(f"README.md has no section {name!r} between begin and end markers")
    return match[1]


def replaced(text: str, name: str, content: str) -> str:
    """The text with a new content between the markers of a section."""
    old = section(text, name)
    return text.replace(f"<!-- begin {name} -->\n{old}", f"<!-- begin {name} -->\n{content}\n")


if __name__ == "__main__":
    text = README.read_text(encoding="utf-8")
    text = replaced(text, "check", check_output())
    text = replaced(text, "claims", claims_table())
    README.write_text(replaced(text, "caveats", caveats_table()), encoding="utf-8")
