"""Timing libraries side by side: a worker process each, and rounds that take turns.

Thread pools of several libraries in one process stall one another, and a machine's speed drifts
from minute to minute: so each library has a process of its own, with one thread, and a ratio is one
of measurements made right after each other.

A script that measures is also its workers. With `about(library)` giving a line on what is measured
(ImportError if it is not installed) and `prepare(library, case)` the call to time,

    if __name__ == "__main__":
        interleaved.main(about, prepare, report)

runs `report()`, or, in a process started by `Worker(script, library)`, answers its questions.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

Case = Mapping[str, Any]
"""What to measure, in numbers and words that JSON carries."""
About = Callable[[str], str]
Prepare = Callable[[str, Case], Callable[[], Any]]

ONE_THREAD = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}


def main(about: About, prepare: Prepare, report: Callable[[], None]) -> None:
    """Report, or serve as the worker that the command line names."""
    if sys.argv[1:2] == ["--worker"]:
        _serve(about, prepare, sys.argv[2])
    else:
        report()


class Worker:
    """A process in which one library is measured; a context that ends it."""

    def __init__(self, script: str, library: str) -> None:
        self.library = library
        self._process = subprocess.Popen(
            [sys.executable, script, "--worker", library],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **ONE_THREAD},
        )
        answer = self._answer()
        self.missing: bool = answer["missing"]
        """Whether the library is not installed."""
        self.about: str = answer["about"]
        """Versions and instruction sets, or what is missing."""

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def prepare(self, case: Case) -> None:
        """Make the inputs, and call once, which compiles what is to be compiled."""
        self._ask({"do": "prepare", "case": case})

    def seconds(self, at_least: float) -> float:
        """The fastest of as many calls, one or more, as take `at_least` seconds."""
        answer: float = self._ask({"do": "seconds", "at_least": at_least})
        return answer

    def peak_bytes(self) -> int:
        """The most that one call holds, its result included, as far as tracemalloc sees it."""
        answer: int = self._ask({"do": "peak_bytes"})
        return answer

    def _ask(self, question: Mapping[str, Any]) -> Any:
        assert self._process.stdin is not None
        print(json.dumps(question), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker of {self.library} ended; its error is above")
        return json.loads(line)


def rounds(
    workers: Sequence[Worker], cases: Sequence[Case], number: int, at_least: float
) -> list[list[float]]:
    """Seconds per call, a list of rounds for each worker with its case, that take turns."""
    for worker, case in zip(workers, cases, strict=True):
        worker.prepare(case)
    times = [[worker.seconds(at_least) for worker in workers] for _ in range(number)]
    return [list(column) for column in zip(*times, strict=True)]


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the rounds' ratios."""
    return median(x / y for x, y in zip(ours, theirs, strict=True))


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The slope of log seconds by log size, of least squares.

    >>> round(exponent([1, 2, 4], [3, 12, 48]), 12)
    2.0
    """
    x, y = [math.log(n) for n in sizes], [math.log(t) for t in seconds]
    x_mean, y_mean = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - x_mean) ** 2 for a in x)


def kernels() -> str:
    """Which instruction sets the BLAS that is loaded uses, with the setting that chooses them."""
    coretype = f"OPENBLAS_CORETYPE={os.environ.get('OPENBLAS_CORETYPE', 'unset')}"
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return f"{coretype} (threadpoolctl, which would tell the architecture, is missing)"
    pools = {
        f"{pool['internal_api']} {pool['version']} {pool.get('architecture', '')}".rstrip()
        for pool in threadpool_info()
        if pool["user_api"] == "blas"
    }
    return f"{coretype}, {', '.join(sorted(pools)) or 'no BLAS that threadpoolctl knows'}"


def _serve(about: About, prepare: Prepare, library: str) -> None:
    try:
        print(json.dumps({"missing": False, "about": about(library)}), flush=True)
    except ImportError as error:
        print(json.dumps({"missing": True, "about": f"not measured: {error}"}), flush=True)
        return
    call: Callable[[], Any]
    for line in sys.stdin:
        question, answer = json.loads(line), None
        if question["do"] == "prepare":
            call = prepare(library, question["case"])
            call()
        elif question["do"] == "seconds":
            answer = _seconds(call, question["at_least"])
        else:
            answer = _peak_bytes(call)
        print(json.dumps(answer), flush=True)


def _seconds(call: Callable[[], Any], at_least: float) -> float:
    best, spent = math.inf, 0.0
    while not spent or spent < at_least:
        start = time.perf_counter()
        call()
        seconds = time.perf_counter() - start
        best, spent = min(best, seconds), spent + seconds
    return best


def _peak_bytes(call: Callable[[], Any]) -> int:
    """Of a call in a thread of its own, for which no memory is kept from earlier calls."""
    thread = threading.Thread(target=call)
    tracemalloc.start()
    thread.start()
    thread.join()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak
