"""Prove the claims: all in one line each, some in full, or as JSON."""

import argparse
import json
import sys
import time
from collections.abc import Sequence

from . import load, stems
from .derivation import Proof
from .derivation.printing import render


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 if all proofs held, 1 if one failed, 2 for a wrong stem."""
    parser = argparse.ArgumentParser(prog="python -m proofs", description=__doc__)
    parser.add_argument("stems", nargs="*", metavar="stem", help="a claim to print in full")
    parser.add_argument("--json", action="store_true", help="print results as a JSON list")
    options = parser.parse_args(arguments)
    try:
        for stem in options.stems:
            load(stem)
    except ValueError as error:
        print(f"python -m proofs: {error} Without arguments all are proved.", file=sys.stderr)
        return 2
    results = [_prove(stem) for stem in options.stems or stems()]
    records = [record for record, _ in results]
    if options.json:
        print(json.dumps(records, indent=2))
    elif options.stems:
        print("\n\n\n".join(_in_full(*result) for result in results))
    else:
        print("\n".join(map(_in_one_line, records)))
    return 0 if all(record["held"] for record in records) else 1


def _prove(stem: str) -> tuple[dict, Proof | None]:
    derivation, started = load(stem), time.perf_counter()
    proof, failure = None, None
    try:
        proof = derivation.prove()
    except Exception as error:  # one broken proof must not hide the others
        failure = f"{type(error).__name__}: {error}"
    refused = len(proof.refusals) if proof else 0
    record = {
        "stem": stem,
        "scope": derivation.scope,
        "held": proof is not None,
        "steps": len(proof.steps) if proof else 0,
        "false_variants": {"refused": refused, "total": refused},
        "seconds": round(time.perf_counter() - started, 3),
        "failure": failure,
    }
    return record, proof


def _in_full(record: dict, proof: Proof | None) -> str:
    return render(load(record["stem"]), proof) if proof else _in_one_line(record)


def _in_one_line(record: dict) -> str:
    if not record["held"]:
        return f"FAILED {record['stem']}: {record['failure']}"
    return (
        f"proved {record['stem']} for {record['scope']}: {record['steps']} steps, "
        f"{record['false_variants']['refused']} false variants refused, {record['seconds']:.1f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
