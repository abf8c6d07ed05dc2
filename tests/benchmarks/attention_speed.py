"""Exact attention beside torch and beside the hardware: `tox -e speed`, or some sizes as arguments.

For d = 64, and 12 heads of 512 x 32: the time of torch's scaled_dot_product_attention, the share of
the roofline (the time of two matrix products and one exponential for each pair, on blocks that stay
in the cache), the peak of memory beyond the output, and the times of the causal form, of the
backward pass, and with two threads where there are two processors.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from statistics import median
from typing import Any

import interleaved
from interleaved import Case, Worker

D = 64
SIZES = [128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768]
HEADS = (12, 512, 32)
ROUNDS, AT_LEAST = 7, 0.05
# From here on a call takes so long that few are made; and the backward pass is left out.
LONG, LONGEST_BACKWARD = 8192, 8192


def about(library: str) -> str:
    """What is measured, and which kernels it uses."""
    import numpy as np

    if library == "torch":
        import torch

        torch.set_num_threads(1)
        capability = torch.backends.cpu.get_cpu_capability()
        return f"torch {torch.__version__}, {capability}, one thread"
    return f"NumPy {np.__version__}, {interleaved.kernels()}, one thread"


def prepare(library: str, case: Case) -> Callable[[], Any]:
    """The call to time, on normal numbers."""
    import numpy as np

    rng = np.random.default_rng(0)
    Q, K, V, G = (rng.standard_normal(case["shape"]).astype(case["dtype"]) for _ in range(4))
    if library == "torch":
        return _torch(Q, K, V, case["what"])
    if library == "parts":
        return _parts(Q, K, V)
    from equivalence import attention, attention_backward

    if case["what"] == "backward":
        return lambda: attention_backward(G, Q, K, V)
    if case["what"] == "threads":
        return lambda: attention(Q, K, V, n_threads=2)
    return lambda: attention(Q, K, V, causal=case["what"] == "causal")


def _torch(Q: Any, K: Any, V: Any, what: str) -> Callable[[], Any]:
    import torch

    # With four axes: the fast kernel takes no other number.
    q, k, v = (torch.from_numpy(x.reshape(1, -1, *x.shape[-2:])) for x in (Q, K, V))
    of = torch.nn.functional.scaled_dot_product_attention
    return lambda: of(q, k, v, is_causal=what == "causal")


def _tile(n: int, width: int, dtype: str) -> tuple[int, int]:
    """How many queries and keys are worked on at a time."""
    import numpy as np

    from equivalence.tiling import Tiles

    return Tiles.of(n, n, width, np.dtype(dtype), causal=False)[1:]


def _parts(Q: Any, K: Any, V: Any) -> Callable[[], Any]:
    """The two products and the exponential, for one tile: what no evaluation does without."""
    import numpy as np

    from equivalence.exponential import fast_exponential
    from equivalence.memory import scratch
    from equivalence.products import product

    exponential, _ = fast_exponential(Q.dtype)
    d, (rows, keys) = Q.shape[-1], _tile(*Q.shape[-2:], Q.dtype)
    of_pairs, operands = 2 * [(rows, keys)], [(d, keys), (keys, d)]
    with scratch(Q.dtype, (rows, d), *of_pairs, (rows, d), operands=operands) as arrays:
        K_T, values, queries, scores, P, output = arrays
    queries[...], K_T[...], values[...] = Q[:rows] / math.sqrt(d), K[:keys].T, V[:keys]
    products = np.matmul(queries, K_T)

    def call() -> None:
        product(queries, K_T, scores)
        exponential(products, out=P)
        product(P, values, output)

    return call


MEASURED = [
    ("ours", "full"),
    ("torch", "full"),
    ("parts", "block"),
    ("ours", "causal"),
    ("torch", "causal"),
    ("ours", "backward"),
    ("ours", "threads"),
]
Workers = dict[tuple[str, str], Worker]


def report() -> None:
    """Measure and print the table."""
    sizes = [int(word) for word in sys.argv[1:]] or SIZES
    with ExitStack() as stack:
        workers = {x: stack.enter_context(Worker(__file__, x[0])) for x in MEASURED}
        for x in MEASURED[:2]:
            print(f"{x[0]:6}{workers[x].about}")
        workers = {x: worker for x, worker in workers.items() if not worker.missing}
        if (os.cpu_count() or 1) < 2:
            del workers["ours", "threads"]
        for dtype in ("float64", "float32"):
            print(
                f"\n{dtype:>9}{'ours':>12}{'torch':>12}{'ours/torch':>12}{'of roofline':>13}"
                f"{'beyond output':>15}{'causal/full':>13}{'torch causal':>14}{'backward':>10}"
                f"{'2 threads':>11}"
            )
            times = [_row((n, D), dtype, workers) for n in sizes]
            _row(HEADS, dtype, workers)
            grown = [(n, t) for n, t in zip(sizes, times, strict=True) if n >= 1024]
            if len(grown) > 1:
                print(f"time grows like n^{interleaved.exponent(*zip(*grown, strict=True)):.2f}")


def _row(shape: tuple[int, ...], dtype: str, workers: Workers) -> float:
    n, pairs = shape[-2], math.prod(shape[:-2]) * shape[-2] ** 2
    asked = [x for x in workers if x[1] != "backward" or n <= LONGEST_BACKWARD]
    cases = [
        {"shape": shape[-2:] if what == "block" else shape, "dtype": dtype, "what": what}
        for _, what in asked
    ]
    number = ROUNDS if n < LONG else 3 if n < 2 * LONG else 1
    rounds = interleaved.rounds([workers[x] for x in asked], cases, number, AT_LEAST)
    times = dict(zip(asked, rounds, strict=True))
    beyond = workers["ours", "full"].peak_bytes() - math.prod(shape) * int(dtype[-2:]) // 8
    full = times["ours", "full"]
    tile = math.prod(_tile(*shape[-2:], dtype))
    roofline = [seconds * pairs / tile for seconds in times["parts", "block"]]

    def over(what: tuple[str, str], below: list[float]) -> str:
        return f"{interleaved.ratio(times[what], below):.2f}" if what in times else "-"

    reference = times.get(("torch", "full"))
    torch_time = f"{1e3 * median(reference):.3f} ms" if reference else "missing"
    print(
        f"{'x'.join(map(str, shape[:-1])):>9}{1e3 * median(full):>9.3f} ms{torch_time:>12}"
        f"{over(('ours', 'full'), reference) if reference else '-':>12}"
        f"{100 * interleaved.ratio(roofline, full):>11.0f} %{beyond / 2**20:>11.2f} MiB"
        f"{over(('ours', 'causal'), full):>13}"
        f"{over(('torch', 'causal'), reference) if reference else '-':>14}"
        f"{over(('ours', 'backward'), full):>10}{over(('ours', 'threads'), full):>11}",
        flush=True,
    )
    return median(full)


if __name__ == "__main__":
    interleaved.main(about, prepare, report)
