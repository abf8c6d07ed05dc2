"""How few features carry a real head: `python tests/benchmarks/head_features.py`.

For each head and map, the least number of features m whose estimate A_m of the attention matrix A
(n_q, n) has the relative Frobenius error |A_m - A|_F / |A|_F <= 10 % and 1 %, the rows of A_m
divided by their sums, as attention divides by D. No map of any kind can do with fewer than the
smallest such rank, which the truncated singular value decomposition attains (Eckart and Young
1936). "Outputs" asks for |A_m V - A V|_F / |A V|_F <= 10 % instead. Least m is by bisection, as if
the error fell with m.

Maps are fitted to the queries of one half of the tokens and judged on those of the other half, at
the same keys; or fitted to other texts and judged on all queries of this one, at its keys. What a
map needs: K the keys of the text it is judged on, Q the fit queries, V the values of that text, by
which with K the held-out queries are guessed (head_data.predicted).

With the model's weights installed (`tox -e heads`) the heads are those of a passage of 512 tokens;
without, the 72 shipped ones on 37 tokens.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import head_draws as draws
import head_maps as maps
import numpy as np
from head_data import (
    Array,
    Split,
    held_out,
    model_is_installed,
    other_text,
    passages,
    shipped,
    weights,
)
from head_estimates import Estimate, Head
from scipy.special import logsumexp

from equivalence.features import DenseFeatures, GeneralizedFeatures, PositiveFeatures


@dataclass(frozen=True)
class Map:
    """A construction, and what the table says of it."""

    name: str
    kind: str
    needs: str
    estimate: Callable[[Head], Estimate]


EXACT, FITTED, UNBIASED = "exact at full rank", "fitted", "unbiased"
MAIN = (
    Map("least squares, greedy, without guesses", FITTED, "K Q", maps.greedy_at_fit),
    Map("least squares, greedy", FITTED, "K Q V", maps.by(maps.by_greed)),
    Map("projection, n exponentials each", FITTED, "K Q V", maps.projected),
)
DETERMINISTIC = (
    Map("Gram features", EXACT, "K", maps.gram),
    Map("Gram, weights e^{|k|^2/2}", EXACT, "K", maps.interpolated(maps.by_exponential)),
    Map("Gram, weights attention mass", EXACT, "K Q V", maps.interpolated(maps.by_mass)),
    Map("Gram, greedy landmarks", EXACT, "K Q V", maps.interpolated(maps.by_greed)),
    Map("Taylor to degree 2, reduced", "exact in the limit", "K Q", maps.taylor),
    Map("least squares, Gram's landmarks", FITTED, "K Q V", maps.by(maps.by_keys)),
    Map("least squares, weighted Gram's", FITTED, "K Q V", maps.by(maps.by_mass)),
    Map("least squares, k-means centroids", FITTED, "K Q V", maps.centroids),
    Map("least squares, largest columns", FITTED, "K Q V", maps.by(maps.by_norms)),
    Map("least squares, leverage scores", FITTED, "K Q V", maps.by(maps.by_leverage)),
    Map("least squares, pivoted QR of A", FITTED, "K Q V", maps.by(maps.by_pivoted_qr)),
    Map("least squares, greedy for outputs", FITTED, "K Q V", maps.by(maps.by_outputs)),
    *MAIN,
)
RANDOM = (
    Map("FAVOR+", UNBIASED, "-", draws.favor),
    Map("shift, balance", UNBIASED, "K Q", draws.reduced(PositiveFeatures, antithetic=False)),
    Map("shift, balance, antithetic", UNBIASED, "K Q", draws.reduced(PositiveFeatures)),
    Map(
        "shift, balance, Sobol'", UNBIASED, "K Q", draws.reduced(PositiveFeatures, coupling="sobol")
    ),
    Map("shift, balance, radii by quadrature", "exact to degree 7", "K Q", draws.by_radii),
    Map("shift, balance, control variate", UNBIASED, "K Q", draws.controlled),
    Map("shift, balance, antithetic, OPRF", UNBIASED, "K Q", draws.reduced(GeneralizedFeatures)),
    Map("shift, antithetic, SDERF", UNBIASED, "K Q", draws.reduced(DenseFeatures, balance=False)),
    Map("shift, antithetic, ADERF", UNBIASED, "K Q", draws.reduced(DenseFeatures)),
    Map("importance, t = 0.3", UNBIASED, "K Q V", draws.importance(0.3)),
    Map("importance, t = 1", UNBIASED, "K Q V", draws.importance(1.0)),
    Map("importance, t = 3", UNBIASED, "K Q V", draws.importance(3.0)),
    Map("greedy half, random remainder", UNBIASED, "K Q V", draws.remainder),
    Map("least squares, uniform draws", FITTED, "K Q V", draws.landmarks(draws.uniform)),
    Map("least squares, leverage draws", FITTED, "K Q V", draws.landmarks(maps.ridge_leverage)),
    Map("least squares, column norm draws", FITTED, "K Q V", draws.landmarks(draws.squared_norms)),
)
AT = 64, 256, draws.MOST


def error(estimate: Array, A: Array) -> float:
    """Relative Frobenius error of the estimate."""
    ratio = float(np.linalg.norm(estimate - A) / np.linalg.norm(A))
    return ratio if math.isfinite(ratio) else math.inf


def normalised(estimate: Array) -> Array:
    """Rows divided by their sums."""
    with np.errstate(all="ignore"):
        return np.asarray(estimate / estimate.sum(axis=1, keepdims=True))


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


def errors(head: Head, estimate: Estimate) -> tuple[Callable[[int], float], ...]:
    """The error with m features: at the fit queries, at the held-out ones, and of their outputs."""
    V = head.split.V
    outputs = head.A_held @ V

    @cache
    def held(m: int) -> tuple[float, float]:
        A_m = normalised(estimate.held(m))
        return error(A_m, head.A_held), error(A_m @ V, outputs)

    return (
        lambda m: error(normalised(estimate.fit(m)), head.A_fit),
        lambda m: held(m)[0],
        lambda m: held(m)[1],
    )


def limits(head: Head) -> list[float]:
    """Eckart-Young ranks for the columns of `requirements`; there is none for the outputs."""
    fit, held = head.A_fit, head.A_held
    pairs = [(fit, 0.1), (fit, 0.01), (held, 0.1), (held, 0.01)]
    return [*(eckart_young(A, tolerance) for A, tolerance in pairs), math.nan]


def requirements(head: Head, estimate: Estimate) -> list[float]:
    """Features for 10 % and 1 % at the fit queries, the same held out, and 10 % of outputs."""
    fit, held, outputs = errors(head, estimate)
    wanted = [(fit, 0.1), (fit, 0.01), (held, 0.1), (held, 0.01), (outputs, 0.1)]
    return [least(error_of, estimate.largest, tolerance) for error_of, tolerance in wanted]


def reach(head: Head, estimate: Estimate, reference: float) -> list[float]:
    """Held-out errors with the numbers AT of features; features for the reference's, for 10 %."""
    held, top = errors(head, estimate)[1], estimate.largest
    at = [held(m) if m <= top else math.nan for m in AT]
    return [*at, least(held, top, reference), least(held, top, 0.1)]


def table(title: str, heads: Iterable[Head], rows: tuple[Map, ...]) -> Iterator[str]:
    """The lines of a table of requirements."""
    found: list[list[list[float]]] = []
    for head in heads:
        needed = [limits(head), *(requirements(head, row.estimate(head)) for row in rows)]
        found.append(needed)
    m = np.array(found)
    yield f"\n{title}: {len(m)} heads; medians of m and of its ratio to the limit; heads reached"
    yield f"{'':68}{'fit':>11}{'held out':>14}{'outputs':>9}{'ratio':>12}{'heads':>8}"
    yield (
        f"{'map':40}{'kind':20}{'needs':8}{'10 %':>6}{'1 %':>5}{'10 %':>8}{'1 %':>6}{'10 %':>9}"
        f"{'10 %':>7}{'1 %':>5}{'10 %':>5}{'1 %':>4}"
    )
    for column, row in enumerate((Map("Eckart-Young", "the limit", "A", maps.gram), *rows)):
        mine = m[:, column]
        middle = np.median(mine, axis=0)
        ratio = np.median(mine / m[:, 0], axis=0)
        reached = np.isfinite(mine).sum(axis=0)
        yield (
            f"{row.name:40}{row.kind:20}{row.needs:8}{shown(middle[0]):>6}{shown(middle[1]):>5}"
            f"{shown(middle[2]):>8}{shown(middle[3]):>6}{shown(middle[4]):>9}"
            f"{shown(ratio[2], 2):>7}{shown(ratio[3], 2):>5}{reached[2]:>5}{reached[3]:>4}"
        )


def mean_row_error(head: Head) -> float:
    """The error of one feature, the same for all queries: the fit queries' mean attention."""
    return error(np.tile(head.A_fit.mean(axis=0), (len(head.A_held), 1)), head.A_held)


def features_by_variance(head: Head) -> float:
    """log10 of the positive iid features whose root mean square error is 10 %, D taken as known."""
    variance = PositiveFeatures.log_relative_variance(head.split.held, head.split.K, 1)
    with np.errstate(divide="ignore"):
        energy = 2 * np.log(head.A_held)
    return float((logsumexp(energy + variance) - logsumexp(energy)) / math.log(10) + 2)


def random_table(title: str, heads: Iterable[Head]) -> Iterator[str]:
    """The lines of the table of random maps."""
    found: list[list[list[float]]] = []
    notes = []
    for head in heads:
        estimates = [row.estimate(head) for row in RANDOM]
        reference = errors(head, estimates[0])[1](draws.MOST)
        found.append([reach(head, x, reference) for x in estimates])
        notes.append([mean_row_error(head), features_by_variance(head)])
    m, note = np.array(found), np.median(notes, axis=0)
    yield f"\n{title}: {len(m)} heads, random maps; medians of the held-out error, and of m"
    yield (
        f"one feature, the mean attention, has the error {note[0]:.3f}; FAVOR+'s variance is that "
        f"of 10 % with 10^{note[1]:.1f} features"
    )
    names = [f"m = {n}" for n in AT]
    yield (
        f"{'map':40}{'kind':20}{'needs':8}"
        + "".join(f"{n:>10}" for n in names)
        + (f"{'as FAVOR+':>11}{'gain':>8}{'10 %':>6}{'heads':>7}")
    )
    for column, row in enumerate(RANDOM):
        mine = m[:, column]
        middle = np.median(mine, axis=0)
        gain = np.median(m[:, 0, 3] / mine[:, 3])
        yield (
            f"{row.name:40}{row.kind:20}{row.needs:8}"
            + "".join(f"{shown(x, 3):>10}" for x in middle[:3])
            + f"{shown(middle[3]):>11}{shown(gain, 1):>8}{shown(middle[4]):>6}"
            + f"{np.isfinite(mine[:, 4]).sum():>7}"
        )


def shown(x: float, digits: int = 0) -> str:
    """A number; a dash where there is none."""
    return f"{x:.{digits}f}" if math.isfinite(x) else "-"


def heads_of(splits: Iterable[Split]) -> Iterator[Head]:
    """The heads, with a seed each."""
    return (Head(split, seed) for seed, split in enumerate(splits))


def report() -> Iterator[str]:
    """Every line, as it is computed."""
    here, there = passages() if model_is_installed() else (shipped(), None)
    n = here[0].shape[1]
    odd, late = np.arange(n) % 2 == 1, np.arange(n) >= n // 2
    whole = [[eckart_young(A, t) for t in (0.1, 0.01)] for A in map(weights, *here[:2])]
    middle = np.median(whole, axis=0)
    yield f"{n} tokens; median Eckart-Young rank of A {middle[0]:.1f} (10 %), {middle[1]:.1f} (1 %)"
    yield from table("every second token held out", heads_of(held_out(*here, odd)), DETERMINISTIC)
    yield from random_table("every second token held out", heads_of(held_out(*here, odd)))
    yield from table("second half held out", heads_of(held_out(*here, late)), MAIN)
    if there:
        title = "fitted to other texts"
        yield from table(title, heads_of(other_text(here, there)), MAIN)
        yield from table(
            f"the shipped 37 tokens, {title}", heads_of(other_text(shipped(), there)), MAIN
        )


def main() -> int:
    """Print the report."""
    start = time.perf_counter()
    for line in report():
        print(line, flush=True)
    print(f"\n{time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
