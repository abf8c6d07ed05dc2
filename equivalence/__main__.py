"""The command line: equivalence check, list, explain, heads."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from equivalence.verify.heads import measure_heads
from equivalence.verify.implementation import OURS
from equivalence.verify.profiles import PROFILES
from equivalence.verify.protocol import check_implementation
from equivalence.verify.registry import load, load_all
from equivalence.verify.report import Report, heads_table, write_atomically
from equivalence.verify.runner import run
from equivalence.verify.symbolic import Proofs

OK, FAILED, USAGE = 0, 1, 2


class _Parser(argparse.ArgumentParser):
    """Usage errors in one line that says what to do."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: {message}; try `{self.prog} --help`\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 0 held, 1 failed or did not run, 2 usage."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.command(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has seen enough; keep the interpreter from flushing into the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (ValueError, TypeError, OSError) as error:
        # A target's own error may span lines; one line is what a script can read.
        print(f"equivalence: {' '.join(str(error).split())}", file=sys.stderr)
        return USAGE
    return code


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="equivalence", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    check = commands.add_parser("check", help="check every claim, or a target of yours")
    check.add_argument("target", nargs="?", metavar="TARGET", help="module:name of your own code")
    check.add_argument(
        "--part", metavar="NAME", help="our name that TARGET stands for, such as PositiveFeatures"
    )
    check.add_argument(
        "--only", action="append", default=[], metavar="STEM", help="this claim only"
    )
    check.add_argument("--profile", choices=PROFILES, default="quick", help="how much is tried")
    check.add_argument("--seed", type=_seed, default=0, help="of the generated inputs")
    check.add_argument("--json", metavar="FILE", help="also write the report as JSON")
    check.add_argument("--junit", metavar="FILE", help="also write the report as JUnit XML")
    check.set_defaults(command=_check)

    listing = commands.add_parser("list", help="list the claims")
    listing.add_argument("--json", action="store_true", help="as JSON")
    listing.set_defaults(command=_list)

    explain = commands.add_parser("explain", help="say what a claim states and how it is checked")
    explain.add_argument("stem", metavar="STEM")
    explain.set_defaults(command=_explain)

    heads = commands.add_parser("heads", help="the theorem on each real head of the sample")
    heads.set_defaults(command=_heads)
    return parser


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"seed is {text!r}; expected an integer of at least 0")
    return int(text)


def _check(options: argparse.Namespace) -> int:
    for name in (options.json, options.junit):
        if name is not None and not Path(name).resolve().parent.is_dir():
            raise ValueError(f"{name}: its folder does not exist; expected a folder to write into")
        if name is not None and Path(name).is_dir():
            raise ValueError(f"{name} is a folder; expected the name of a file")
    if options.target is None and options.part is not None:
        raise ValueError(f"--part is {options.part!r}; expected a TARGET that stands for it")
    if options.target is None:
        claims = [load(stem) for stem in options.only] or load_all()
        report = Report(run(claims, PROFILES[options.profile], options.seed))
    else:
        report = check_implementation(
            options.target,
            part=options.part,
            only=options.only,
            profile=options.profile,
            seed=options.seed,
        )
    if options.json is not None:
        write_atomically(options.json, report.json())
    if options.junit is not None:
        write_atomically(options.junit, report.junit())
    print(report.text(), end="")
    return report.exit_code


def _list(options: argparse.Namespace) -> int:
    claims = load_all()
    if options.json:
        rows = [
            {
                "stem": c.stem,
                "kind": str(c.kind),
                "statement": c.statement,
                "rungs": [str(rung) for rung in c.rungs],
                "mutants": [m.name for m in c.mutants],
            }
            for c in claims
        ]
        print(json.dumps(rows, indent=2))
    else:
        for c in claims:
            print(f"{c.stem:30} {c.kind:11} {c.statement}")
    return OK


def _explain(options: argparse.Namespace) -> int:
    claim = load(options.stem)
    proofs = Proofs.start([claim.stem])
    proof = proofs.verdict(claim.stem)
    scope = (
        proofs.why_not
        if proof is None
        else f"FAILED: {proof['failure']}"
        if not proof["held"]
        else (
            f"{proof['scope']} ({proof['steps']} steps, refuses "
            f"{proof['false_variants']['refused']} false variants)"
        )
    )
    print(f"{claim.stem} ({claim.kind})\n")
    for title, text in (
        ("statement", claim.statement),
        *([("tempting", claim.tempting)] if claim.tempting else []),
        ("assumes", claim.assumptions),
        ("proof", scope),
        ("budget", claim.budget),
        ("rungs", ", ".join(claim.rungs)),
        (
            "read",
            f"proofs/{claim.stem}.py, {claim.code}, equivalence/verify/claims/{claim.stem}.py, "
            f"tests/test_{claim.stem}.py",
        ),
    ):
        print(f"{title:10} {text}")
    print("mutants    rejected by the check:")
    for mutant in claim.mutants:
        print(f"  {mutant.name:28} {mutant.defect}")
    return OK


def _heads(options: argparse.Namespace) -> int:
    heads = measure_heads(OURS)
    print(heads_table(heads))
    return OK if all(head.held for head in heads) else FAILED


if __name__ == "__main__":
    sys.exit(main())
