"""Linear attention beside JAX and performer-pytorch, feature map included: `tox -e speed`.

    python tests/benchmarks/linear_speed.py [float32] [float64]

Each peer computes the same attention from the same projections, and is compared with ours within a
rounding budget before it is timed. JAX's compiler is sensitive to how sums are laid out, so there
are two layouts of the same mathematics, and the faster counts. The floor is what no evaluation in
NumPy can do without, into memory that is there: four products of matrices and 2nm exponentials.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import interleaved
import numpy as np

from equivalence._arrays import Array
from equivalence.exponential import fast_exponential
from equivalence.features import Features, PositiveFeatures
from equivalence.linear import linear_attention
from equivalence.memory import as_operand
from equivalence.products import product
from equivalence.streaming import AttentionState
from equivalence.verify.budgets import Budget, dual_budget, gamma, unit_roundoff
from equivalence.verify.compare import compare

FEATURES, DIM = 256, 64
# The largest first: what an allocator keeps after it is what a process that runs has.
SIZES = (32768, 8192, 2048, 512, 128)
LIBRARIES = ("equivalence", "floor", "jax rows", "jax columns", "performer-pytorch")
ROUNDS, SECONDS = 5, 0.1
CHECKED_TOKENS, CHECKED_QUERIES = 64, 8


def head(n: int, dtype: str) -> tuple[Array, Array, Array, Array]:
    """Queries, keys and values (n, 64), and projections (256, 64), all standard normal."""
    rng = np.random.default_rng(0)
    Q, K, V = (rng.standard_normal((n, DIM)).astype(dtype) for _ in "qkv")
    return Q, K, V, rng.standard_normal((FEATURES, DIM)).astype(dtype)


def one_core() -> None:
    """Keep this process on one core: XLA has threads that no setting takes away."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def about(library: str) -> str:
    """The library's version, and what it computes with."""
    one_core()
    if library.startswith("jax"):
        import jax

        return f"jax {jax.__version__}"
    if library == "performer-pytorch":
        from importlib.metadata import version

        import performer_pytorch  # noqa: F401
        import torch

        return f"performer-pytorch {version(library)}, torch {torch.__version__}"
    return f"NumPy {np.__version__}, {interleaved.kernels()}"


def prepare(library: str, case: interleaved.Case) -> Callable[[], Any]:
    """The call to time; a peer's has been found to compute what ours does."""
    if library == "floor":
        return floor(*head(case["n"], case["dtype"]))
    if library == "equivalence":
        Q, K, V, W = head(case["n"], case["dtype"])
        phi = PositiveFeatures(W)
        return lambda: linear_attention(Q, K, V, phi, causal=case["causal"])
    peer = in_performer if library == "performer-pytorch" else in_jax(library)
    eps = 1e-4 if library == "performer-pytorch" else 0.0
    require_agreement(library, peer, eps, case["dtype"])
    return peer(*head(case["n"], case["dtype"]))


def floor(Q: Array, K: Array, V: Array, W: Array) -> Callable[[], Any]:
    """The products of linear attention and its exponentials, a cacheful of tokens at a time."""
    n, (exponential, _) = len(Q), fast_exponential(Q.dtype)
    rows = [slice(start, start + 1024) for start in range(0, n, 1024)]
    E, o = (np.zeros((min(n, 1024), width), Q.dtype) for width in (FEATURES, DIM))
    W_T, V, S_T = (as_operand(X) for X in (W.T, V, np.zeros((FEATURES, DIM), Q.dtype)))

    def call() -> None:
        for X in (Q, K):
            for r in rows:
                product(X[r], W_T, E)
                exponential(E, out=E)
                if X is Q:
                    product(E, S_T, o)
                else:
                    product(E.T, V[r], S_T)

    return call


def in_jax(layout: str) -> Callable[..., Callable[[], Any]]:
    """Jitted; float64 as such. The features of a key are a row, or a column."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)

    def linear(Q: Any, K: Any, V: Any, W: Any) -> Any:
        Q, K = Q * DIM**-0.25, K * DIM**-0.25
        x = Q @ W.T
        phi_q = jnp.exp(x - x.max(axis=1, keepdims=True))
        if layout == "jax rows":
            x = K @ W.T
            largest = x.max(axis=1)
            log_scale = largest - (K * K).sum(axis=1) / 2
            Phi, factor = jnp.exp(x - largest[:, None]), jnp.exp(log_scale - log_scale.max())
            S, n = (V * factor[:, None]).T @ Phi, factor @ Phi
            return (phi_q @ S.T) / (phi_q @ n)[:, None]
        x = W @ K.T
        largest = x.max(axis=0)
        log_scale = largest - (K * K).sum(axis=1) / 2
        Phi, factor = jnp.exp(x - largest), jnp.exp(log_scale - log_scale.max())
        S, n = Phi @ (V * factor[:, None]), Phi @ factor
        return (phi_q @ S) / (phi_q @ n)[:, None]

    jitted = jax.jit(linear)

    def peer(*arrays: Array) -> Callable[[], Any]:
        moved = [jnp.asarray(array) for array in arrays]
        return lambda: jitted(*moved).block_until_ready()

    return peer


def in_performer(Q: Array, K: Array, V: Array, W: Array) -> Callable[[], Any]:
    """Its module with our projections, in place of its own draw."""
    import torch
    from performer_pytorch import FastAttention

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    module = FastAttention(dim_heads=DIM, nb_features=FEATURES)
    module.projection_matrix = torch.from_numpy(W)
    q, k, v = (torch.from_numpy(x)[None, None] for x in (Q, K, V))
    return lambda: module(q, k, v)


def require_agreement(
    library: str, peer: Callable[..., Callable[[], Any]], eps: float, dtype: str
) -> None:
    """Raise Disagreement unless the peer's output is ours, to rounding, at some queries."""
    Q, K, V, W = head(CHECKED_TOKENS, dtype)
    # Small enough that the budget of float32 would not let float16 pass.
    Q, K = Q / 4, K / 4
    got = np.asarray(peer(Q, K, V, W)()).reshape(V.shape)[:CHECKED_QUERIES]
    arrays = (Q[:CHECKED_QUERIES], K, V, W)
    phi_q, Phi = (
        with_epsilon(x * DIM**-0.25, W, axis, eps)
        for x, axis in ((Q[:CHECKED_QUERIES], 1), (K, None))
    )
    want = AttentionState.of(plain(Phi), V.astype(np.float64)).read(plain(phi_q))
    exact_enough = agreement_budget(*(x.astype(np.float64) for x in arrays), phi_q, Phi)
    budget = agreement_budget(*arrays, phi_q, Phi) + exact_enough
    compare(f"{library}'s linear attention is ours", got, want, budget).require()
    if not eps:
        ours = linear_attention(Q[:CHECKED_QUERIES], K, V, PositiveFeatures(W))
        compare("ours is what is checked", ours, want, budget).require()


def with_epsilon(x: Array, W: Array, axis: int | None, eps: float) -> Array:
    """The features of queries (axis 1) or keys (None) in float64, of unit size, plus eps each."""
    x, W = x.astype(np.float64), W.astype(np.float64)
    f, log_scale = PositiveFeatures(W)(x)
    largest = (x @ W.T).max(axis=axis, keepdims=True) - np.log(FEATURES) / 2
    E: Array = f * np.exp(log_scale[:, None] - largest)
    return E + eps


def plain(features: Array) -> Features:
    """Features as they are, without a log scale."""
    return Features(features, np.zeros(len(features)))


def agreement_budget(Q: Array, K: Array, V: Array, W: Array, phi_q: Array, Phi: Array) -> Budget:
    """Rounding in Q's dtype of linear attention with these features, of keys and of queries."""
    u = unit_roundoff(Q.dtype)
    dots, half = [], []
    for x in (Q, K):
        x = abs(x.astype(np.float64)) * DIM**-0.25
        dots.append((x @ abs(W.astype(np.float64)).T).max(axis=1))
        half.append((x**2).sum(axis=1) / 2)
    # A dot product with scaled points, |x|^2/2, and differences with the largest.
    size = (2 * dots[0] + half[0])[:, None] + 2 * dots[1] + half[1] + half[1].max()
    return dual_budget(Phi, phi_q, V, gamma(DIM + 6, u) * size, u)


def report() -> None:
    """Print the table, a line a size, and how time grows."""
    dtypes = sys.argv[1:] or ["float64", "float32"]
    workers = [interleaved.Worker(__file__, library) for library in ("equivalence", *LIBRARIES)]
    for worker in workers[1:]:
        print(f"{worker.library:>18}: {worker.about}")
    print(f"d = {DIM}, m = {FEATURES}, feature map included, one core, {ROUNDS} rounds")
    for dtype in dtypes:
        table(dtype, [worker for worker in workers if not worker.missing])


def table(dtype: str, workers: Sequence[interleaved.Worker]) -> None:
    """The first of the workers measures ours with a causal mask, the others without."""
    print(
        f"\n{dtype}\n      n      ours    causal    / JAX / performer  floor /  causal /  peak MiB"
    )
    ours: list[float] = []
    for n in SIZES:
        cases = [{"n": n, "dtype": dtype, "causal": place == 0} for place in range(len(workers))]
        causal, *times = interleaved.rounds(workers, cases, ROUNDS, SECONDS)
        by = {worker.library: t for worker, t in zip(workers[1:], times, strict=True)}
        own = by["equivalence"]
        jax = zip(by.get("jax rows", ()), by.get("jax columns", ()), strict=True)
        output = n * DIM * np.dtype(dtype).itemsize
        print(
            f"{n:7d}{1e3 * median(own):8.2f}ms{1e3 * median(causal):8.2f}ms"
            f"{against(own, list(map(min, jax)))}"
            f"{against(own, by.get('performer-pytorch', []))}"
            f"{against(by['floor'], own)}{against(causal, own)}"
            f"{(workers[1].peak_bytes() - output) / 2**20:10.1f}"
            f"{(workers[0].peak_bytes() - output) / 2**20:6.1f}"
        )
        ours.append(median(own))
    print(f"time grows as n^{interleaved.exponent(SIZES, ours):.2f}")


def against(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """The ratio of two libraries' rounds, if both were measured."""
    return f"{interleaved.ratio(ours, theirs):9.2f}x" if theirs else f"{'-':>10}"


if __name__ == "__main__":
    interleaved.main(about, prepare, report)
