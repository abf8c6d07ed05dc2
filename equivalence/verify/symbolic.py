"""The symbolic rung: the proofs run as a program of their own, and only their verdict comes here.

No code of proofs/ is imported: two derivations that meet in their results are evidence, one that
feeds the other is an echo.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import equivalence


@dataclass
class Proofs:
    """The proofs of some claims, being run beside the numerical checks."""

    process: subprocess.Popen[str] | None
    why_not: str
    verdicts: dict[str, dict[str, Any]] | None = None

    @classmethod
    def start(cls, stems: Sequence[str]) -> Proofs:
        """Start proving; a missing SymPy or a missing proofs/ is a reason, not an error."""
        root = proofs_root()
        if root is None:
            return cls(None, "proofs/ is in the repository and the sdist, not in the wheel")
        if importlib.util.find_spec("sympy") is None:
            return cls(None, "sympy is not installed")
        command = [sys.executable, "-m", "proofs", "--json", *stems]
        process = subprocess.Popen(
            command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        return cls(process, "")

    def verdict(self, stem: str) -> dict[str, Any] | None:
        """What the proof of that stem says of itself; None if it could not be run."""
        if self.process is None:
            return None
        if self.verdicts is None:
            output, errors = self.process.communicate()
            try:
                self.verdicts = {verdict["stem"]: verdict for verdict in json.loads(output)}
            except json.JSONDecodeError:
                last = (errors.strip().splitlines() or ["no output"])[-1]
                self.process, self.why_not = None, f"python -m proofs failed: {last}"
                return None
        return self.verdicts.get(stem)

    def stop(self) -> None:
        """End a run that nobody waits for any more."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


def proofs_root() -> Path | None:
    """The folder that holds proofs/: the current one, or the one that holds this package."""
    for root in (Path.cwd(), Path(equivalence.__file__).parent.parent):
        if (root / "proofs" / "__main__.py").is_file() and (root / "equivalence").is_dir():
            return root
    return None
