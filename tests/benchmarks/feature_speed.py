"""Features per second beside scikit-learn and performer-pytorch: `tox -e speed`.

    python tests/benchmarks/feature_speed.py [float32] [float64]

Positive features beside performer-pytorch's `softmax_kernel` at the same projections, and
trigonometric ones beside scikit-learn's RBFSampler, as many features of each. A peer's features are
found to be ours before they are timed: performer's but for the 1e-4 that it adds to each;
scikit-learn's cos(w.x + b) as cos w.x cos b - sin w.x sin b, so that it has twice the projections.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import interleaved
import numpy as np
from linear_speed import DIM, FEATURES, ROUNDS, SECONDS, against, one_core

from equivalence._arrays import Array
from equivalence.features import GeneralizedFeatures, PositiveFeatures, TrigonometricFeatures
from equivalence.verify.budgets import Budget, gamma, unit_roundoff
from equivalence.verify.compare import compare

SIZES = (32768, 2048, 512)
OURS = ("positive", "generalized", "trigonometric")
PEERS = {"performer-pytorch": "positive", "scikit-learn": "trigonometric"}
CHECKED = 64


def points(n: int, dtype: str) -> tuple[Array, Array]:
    """Points (n, 64) at which the kernel is that of attention, and projections (256, 64)."""
    rng = np.random.default_rng(0)
    X = (rng.standard_normal((n, DIM)) * DIM**-0.25).astype(dtype)
    return X, rng.standard_normal((FEATURES, DIM)).astype(dtype)


def about(library: str) -> str:
    """The library's version, and what it computes with."""
    one_core()
    if library == "performer-pytorch":
        from importlib.metadata import version

        import performer_pytorch  # noqa: F401
        import torch

        return f"performer-pytorch {version(library)}, torch {torch.__version__}"
    if library == "scikit-learn":
        import sklearn

        return f"scikit-learn {sklearn.__version__}"
    return f"NumPy {np.__version__}, {interleaved.kernels()}"


def prepare(library: str, case: interleaved.Case) -> Callable[[], Any]:
    """The call to time; a peer's has been found to give our features."""
    X, W = points(case["n"], case["dtype"])
    if library in PEERS:
        peer = in_performer if library == "performer-pytorch" else in_scikit_learn
        peer(X[:CHECKED], W, check=True)
        return peer(X, W, check=False)
    phi = {
        "positive": lambda: PositiveFeatures(W),
        "generalized": lambda: GeneralizedFeatures(W, A=-0.02),
        "trigonometric": lambda: TrigonometricFeatures(W[: FEATURES // 2]),
    }[library]()
    return lambda: phi(X)


def in_performer(X: Array, W: Array, check: bool) -> Callable[[], Any]:
    """Its features of queries; Disagreement if asked to check and they are not ours plus 1e-4."""
    import torch
    from performer_pytorch.performer_pytorch import softmax_kernel

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    x, w, eps = torch.from_numpy(X)[None, None], torch.from_numpy(W), 1e-4

    def call() -> Any:
        return softmax_kernel(x, projection_matrix=w, is_query=True, normalize_data=False, eps=eps)

    if check:
        f, log_scale = PositiveFeatures(W.astype(np.float64))(X.astype(np.float64))
        exponent = X.astype(np.float64) @ W.astype(np.float64).T
        want = f * np.exp(log_scale - exponent.max(axis=1))[:, None]
        # The exponents' terms, and the sum with eps.
        size = 2 * dots(X, W) + (X.astype(np.float64) ** 2).sum(axis=1)[:, None]
        bound = (np.expm1(gamma(DIM + 6, unit_roundoff(X.dtype)) * size)) * (want + eps)
        require("performer-pytorch", call()[0, 0].numpy(), want + eps / FEATURES**0.5, bound)
    return call


def in_scikit_learn(X: Array, W: Array, check: bool) -> Callable[[], Any]:
    """RBFSampler's transform; Disagreement if asked to check and its cosines are not ours."""
    from sklearn.kernel_approximation import RBFSampler

    sampler = RBFSampler(gamma=0.5, n_components=FEATURES, random_state=0).fit(X)
    sampler.random_weights_ = np.asfortranarray(W.T)
    if check:
        b = sampler.random_offset_
        phi = TrigonometricFeatures(W.astype(np.float64))
        cosines, sines = np.split(phi(X.astype(np.float64)).features, 2, axis=1)
        want = (cosines * np.cos(b) - sines * np.sin(b)) * (2 / FEATURES) ** 0.5
        bound = gamma(DIM + 6, unit_roundoff(X.dtype)) * (dots(X, W) + b + 1)
        require("scikit-learn", sampler.transform(X), want, bound)
    return lambda: sampler.transform(X)


def dots(X: Array, W: Array) -> Array:
    """|x|.|w| of each pair, the magnitudes behind an exponent, in float64."""
    size: Array = abs(X.astype(np.float64)) @ abs(W.astype(np.float64)).T
    return size


def require(library: str, got: Array, want: Array, bound: Array) -> None:
    """Raise Disagreement unless the peer's features are those wanted, to rounding."""
    u = unit_roundoff(got.dtype)
    budget = Budget(bound, f"exponents and phases err by gamma_(d+6) |w|.|x|, d={DIM}", u)
    compare(f"{library}'s features are ours", got, want, budget).require()


def report() -> None:
    """Print features per second, and the ratios of time to the peers'."""
    dtypes = sys.argv[1:] or ["float64", "float32"]
    workers = [interleaved.Worker(__file__, library) for library in (*OURS, *PEERS)]
    for worker in workers:
        if worker.library not in OURS[1:]:
            print(f"{worker.library:>18}: {worker.about}")
    print(f"d = {DIM}, m = {FEATURES}, one core; millions of features a second, time / a peer's")
    for dtype in dtypes:
        table(dtype, [worker for worker in workers if not worker.missing])


def table(dtype: str, workers: Sequence[interleaved.Worker]) -> None:
    """A line a size, a column a library."""
    print(f"\n{dtype}\n      n" + "".join(f"{worker.library:>19}" for worker in workers))
    for n in SIZES:
        cases = [{"n": n, "dtype": dtype}] * len(workers)
        times = interleaved.rounds(workers, cases, ROUNDS, SECONDS)
        by = {worker.library: t for worker, t in zip(workers, times, strict=True)}
        rates = "".join(f"{n * FEATURES / median(t) / 1e6:19.0f}" for t in times)
        ratios = "".join(
            f"{against(by[ours], by.get(peer, []))} {peer}" for peer, ours in PEERS.items()
        )
        print(f"{n:7d}{rates}{ratios}")


if __name__ == "__main__":
    interleaved.main(about, prepare, report)
