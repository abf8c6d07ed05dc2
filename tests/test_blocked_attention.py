"""The blocked evaluation: any tiles, both of its ways, at the edge between them, and at size."""

from __future__ import annotations

import math
import threading
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equivalence import attention, blocked, exponential, tiling
from equivalence.scores import Problem
from equivalence.tiling import Tiles, even_parts, in_threads
from equivalence.verify import oracle
from equivalence.verify.budgets import attention_budget, unit_roundoff
from equivalence.verify.compare import compare

Array = np.ndarray[Any, Any]
# A running maximum over blocks of fewer keys rounds more often than the budget has it.
FEWEST_KEYS = 10
# Queries and keys so many times as large have scores that cannot do without a shift.
FAR = {"float64": 14.0, "float32": 4.0}


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which ways were tried, block by block of the queries."""
    taken: list[str] = []
    kernel_of, with_running_maximum = blocked.kernel_of, blocked._with_running_maximum

    def spy(question: Problem, scores: Array, queries: slice, keys: slice) -> Array:
        taken.extend(["without shift"] * (keys.start == 0))
        return kernel_of(question, scores, queries, keys)

    def other_spy(*arguments: Any) -> None:
        taken.append("with running maximum")
        with_running_maximum(*arguments)

    monkeypatch.setattr(blocked, "kernel_of", spy)
    monkeypatch.setattr(blocked, "_with_running_maximum", other_spy)
    return taken


def problem(
    seed: int, n_q: int, n_k: int, d: int = 4, c: int = 3, dtype: str = "float64", spread: float = 1
) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng([seed, n_q, n_k])
    shapes = (n_q, d), (n_k, d), (n_k, c)
    Q, K, V = (rng.standard_normal(shape) for shape in shapes)
    return (spread * Q).astype(dtype), (spread * K).astype(dtype), V.astype(dtype)


def evaluated(
    Q: Array, K: Array, V: Array, tiles: tuple[int, int, int] | None, **options: Any
) -> Array:
    """Attention in blocks of these sizes: heads, queries, keys."""
    asked = {"scale": None, "mask": None, "causal": False, "n_threads": 1} | options
    n_threads = asked.pop("n_threads")
    question = Problem.of(Q, K, **asked)
    output = np.empty((*question.batch, Q.shape[-2], V.shape[-1]), V.dtype)
    sizes = None if tiles is None else Tiles(*tiles)
    blocked.evaluate(question, V, output, n_threads=n_threads, tiles=sizes)
    return output


def require(
    got: Array,
    Q: Array,
    K: Array,
    V: Array,
    *,
    scale: float = 0.5,
    attended: Array | None = None,
) -> None:
    """Within the budget of the definition, evaluated at once in float64."""
    b = np.zeros((len(Q), len(K))) if attended is None else np.where(attended, 0.0, -np.inf)
    rows = np.isfinite(b).any(axis=1)
    assert np.isnan(got[~rows]).all()
    got, Q, b = got[rows], Q[rows], b[rows]
    S = scale * (Q.astype(float) @ K.T.astype(float)) + b
    kappa = np.exp(S - S.max(axis=-1, keepdims=True))
    want = (kappa / kappa.sum(axis=-1, keepdims=True)) @ V.astype(float)
    budget = attention_budget(Q, K, V, scale, unit_roundoff(got.dtype), b)
    compare(
        "attention", got, want, budget + attention_budget(Q, K, V, scale, 2.0**-53, b)
    ).require()


@st.composite
def tiles(draw: st.DrawFn) -> tuple[int, int, int]:
    heads, queries = draw(st.integers(1, 3)), draw(st.integers(1, 40))
    return heads, queries, draw(st.integers(FEWEST_KEYS, 60))


@given(
    st.integers(0, 2**32 - 1),
    st.lists(tiles(), min_size=2, max_size=2),
    st.tuples(st.integers(1, 40), st.integers(1, 90)),
    st.sampled_from(["float64", "float32"]),
    st.booleans(),
    st.sampled_from(["all", "causal", "boolean", "additive"]),
)
def test_any_tiles_are_within_the_budget_of_any_other(
    seed: int,
    both: list[tuple[int, int, int]],
    sizes: tuple[int, int],
    dtype: str,
    far: bool,
    kind: str,
) -> None:
    Q, K, V = problem(seed, *sizes, dtype=dtype, spread=FAR[dtype] if far else 1.0)
    mask = np.random.default_rng(seed).random(sizes) < 0.7
    attended, options = {
        "all": (None, {}),
        "causal": (np.tri(*sizes, dtype=bool), {"causal": True}),
        "boolean": (mask, {"mask": mask}),
        "additive": (mask, {"mask": np.where(mask, 0.0, -np.inf)}),
    }[kind]
    one, other = (evaluated(Q, K, V, sizes, **options) for sizes in both)
    require(one, Q, K, V, attended=attended)
    bias = np.zeros(sizes) if attended is None else np.where(attended, 0.0, -np.inf)
    rows = np.isfinite(bias).any(axis=1)
    own = attention_budget(Q[rows], K, V, 0.5, unit_roundoff(dtype), bias[rows])
    compare("other tiles", one[rows], other[rows], own + own).require()


@pytest.mark.parametrize("spread", [1.0, FAR["float64"]])
@pytest.mark.parametrize("sizes", [(1, 8, 12), (1, 12, 10), (1, 5, 30), (1, 25, 10), (1, 7, 50)])
def test_tiles_may_cut_the_diagonal_anywhere(sizes: tuple[int, int, int], spread: float) -> None:
    Q, K, V = problem(18, 25, 50, spread=spread)
    got = evaluated(Q, K, V, sizes, causal=True)
    require(got, Q, K, V, attended=np.tri(25, 50, dtype=bool))


@given(st.integers(0, 2**32 - 1), tiles(), st.sampled_from(["none", "causal", "mask"]))
def test_what_is_not_finite_spoils_what_it_does_in_the_definition(
    seed: int, sizes: tuple[int, int, int], kind: str
) -> None:
    """The small problem is evaluated at once, by another text."""
    Q, K, V = problem(seed, 25, 50)
    rng = np.random.default_rng(seed)
    for x, often in ((Q, 0.02), (K, 0.02), (V, 0.05)):
        x[rng.random(x.shape) < often] = rng.choice([np.nan, np.inf, -np.inf])
    mask = rng.random((25, 50)) < rng.choice([0.02, 0.5])
    options = {"none": {}, "causal": {"causal": True}, "mask": {"mask": mask}}[kind]
    got, want = evaluated(Q, K, V, sizes, **options), attention(Q, K, V, **options)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    seen = {"none": np.ones_like(mask), "causal": np.tri(25, 50, dtype=bool), "mask": mask}[kind]
    whole = ~np.isnan(want).all(axis=1)
    Q, K, V = (np.where(np.isfinite(x), x, 0) for x in (Q, K, V))
    budget = attention_budget(Q[whole], K, V, 0.5, 2.0**-53, np.where(seen[whole], 0.0, -np.inf))
    error = np.where(np.isnan(want[whole]), 0.0, got[whole] - want[whole])
    compare("the rest", error, np.zeros_like(error), budget + budget).require()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("exponent", [0, 60, -60])
def test_at_the_edge_of_the_range_both_ways_hold(
    monkeypatch: pytest.MonkeyPatch, ways: list[str], dtype: str, sign: float, exponent: int
) -> None:
    """Scores that all are t, from far inside to far outside of what exp can take."""
    monkeypatch.setattr(blocked, "sample_of", lambda scores: scores[..., :0])
    n, info = 300, np.finfo(dtype)
    u = float(info.eps) / 2
    _, K, V = problem(1, 1, n, d=2, dtype=dtype)
    K[:] = [sign, 0.0]
    unit = V.dtype.type(2.0**exponent)
    V = abs(V) * unit
    size = abs(V.astype(float)).sum(axis=0)
    least = u if size.min() >= n * u else 1.0
    reach = math.log(info.max) - math.log(max(n, size.max())) if sign > 0 else math.log(n / least)
    # Scores and sums may be rounded: within this of the edge either way may be taken.
    margin = 8 * n * float(info.eps) * (1 + reach)
    for t in (0.5 * reach, reach - margin, reach + margin, reach + 2, 2 * reach):
        ways.clear()
        Q = np.array([[t, 0.0]] * 3, dtype)
        output = evaluated(Q, K, V, (1, 2, 100), scale=1.0)
        require(output / unit, Q, K, V / unit, scale=1.0)
        tried = ["without shift"] + ["with running maximum"] * (t > reach)
        assert ways == 2 * tried


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_what_overflows_at_the_first_keys_is_not_gone_on_with(
    monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    _, K, V = problem(9, 5, 390, d=1, dtype=dtype)
    Q, K[1] = np.ones((5, 1), dtype), 1.1 * math.log(np.finfo(dtype).max)  # not in the sample
    added: list[int] = []
    add = blocked._Rows.add

    def spy(block: Any, kappa: Array, part: slice, keys: slice) -> None:
        added.append(keys.start)
        add(block, kappa, part, keys)

    monkeypatch.setattr(blocked._Rows, "add", spy)
    require(evaluated(Q, K, V, (1, 5, 130), scale=1.0), Q, K, V, scale=1.0)
    assert added == [0, 0, 130, 260]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_kernel_values_that_underflow_beside_a_small_sum_are_in_the_budget(
    ways: list[str], dtype: str
) -> None:
    """D is little more than u, and keys below the range have the largest values."""
    lowest, u = math.log(np.finfo(dtype).tiny), unit_roundoff(dtype)
    K = np.full((260, 1), math.log(u / 200), dtype)
    K[[1, 2], 0] = lowest - 2, lowest - 9  # not in the sample
    Q, V = np.ones((2, 1), dtype), problem(15, 1, 260, c=1, dtype=dtype)[2]
    V[[1, 2]] = [[3.0], [9.0]]
    require(evaluated(Q, K, V, (1, 2, 130), scale=1.0), Q, K, V, scale=1.0)
    assert ways == ["without shift"]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_nothing_is_tried_where_a_sample_tells_that_it_fails(ways: list[str], dtype: str) -> None:
    Q, K, V = problem(16, 20, 200, dtype=dtype)
    reach = math.log(np.finfo(dtype).max)
    for size in (0.4, -0.4, 0.6, -0.6, math.nan, math.inf, -math.inf):
        Q[:, :], K[:, :] = [1, 0, 0, 0], [size * reach / 4, 0, 0, 0]
        ways.clear()
        evaluated(Q, K, V, (1, 20, 100), scale=4.0)
        assert (ways[0] == "without shift") == (abs(size) < 0.5)


def test_the_scores_that_tell_it_are_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    Q, K, V = problem(16, 20, 200)
    products: list[tuple[int, ...]] = []

    def spy(A: Array, B: Array, out: Array) -> Array:
        products.append(B.shape)
        return np.matmul(A, B, out=out)

    monkeypatch.setattr(blocked, "product", spy)
    for factor in (1, 1000):
        products.clear()
        evaluated(Q, K * factor, V, (1, 20, 100))
        assert products == 2 * [(4, 100), (100, 3)]


def test_a_sample_has_some_of_all_queries_and_keys() -> None:
    i, j = np.divmod(exponential.sample_of(np.arange(520.0 * 700).reshape(520, 700)), 700)
    assert i[:, 0].tolist() == list(range(0, 520, 65))
    assert j[0].tolist() == list(range(0, 700, 11))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_each_column_of_values_says_how_small_the_sum_may_be(ways: list[str], dtype: str) -> None:
    n, u = 300, unit_roundoff(dtype)
    _, K, _ = problem(19, 1, n, d=1, dtype=dtype)
    Q, K[:] = np.ones((2, 1), dtype), math.log(0.1 / n)
    for others, last, enough in ((1, 1, True), (u / 2, u / 2, False), (0, 1, True), (0, 0, True)):
        V = np.ones((n, 2), dtype)
        V[:, 1], V[-1, 1] = others, last  # which is not one of the few that mostly tell
        ways.clear()
        require(evaluated(Q, K, V, (1, 2, 100), scale=1.0), Q, K, V, scale=1.0)
        assert ways == ["without shift"] + ["with running maximum"] * (not enough)


def test_a_value_of_zero_needs_no_shift(ways: list[str]) -> None:
    """Nor a column of them, where D is small."""
    Q, K, V = problem(8, 6, 40)
    Q[:, 0], K[:, 0] = 8.0, -3.0
    V[::3], V[:, 1] = 0, 0
    require(evaluated(Q, K, V, (1, 6, 20)), Q, K, V)
    assert ways == ["without shift"]


@pytest.mark.parametrize(
    ("n_q", "n_k", "width", "dtype", "causal", "sizes"),
    [
        (8192, 8192, 64, "d", False, (1, 256, 512)),
        (8192, 8192, 64, "f", False, (1, 512, 512)),
        (8192, 8192, 64, "d", True, (1, 1024, 128)),
        (600, 900, 64, "f", False, (1, 320, 512)),  # nearly equal, not 512 and some
        (512, 512, 32, "f", True, (4, 512, 128)),  # the fewer, the less above the diagonal
        (8192, 8192, 256, "d", False, (1, 512, 256)),  # more would not be cut for small kernels
        (1, 32768, 64, "d", False, (4, 1, 32768)),
        (4096, 16, 64, "d", False, (1, 2048, 16)),
        (16, 16, 16, "d", False, (512, 16, 16)),
        (7, 9, 200_000, "d", False, (1, 1, 9)),  # a tile of one token
        (0, 0, 1, "d", False, (131072, 1, 1)),
    ],
)
def test_tiles_fit_the_caches(
    n_q: int, n_k: int, width: int, dtype: str, causal: bool, sizes: tuple[int, int, int]
) -> None:
    assert Tiles.of(n_q, n_k, width, np.dtype(dtype), causal=causal) == sizes


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_parts_are_few_and_nearly_equal(n: int, most: int) -> None:
    size, fewest = even_parts(n, most), -(-n // most)
    assert size <= min(n, most)
    assert size * fewest >= n > (size - 64) * fewest


def test_each_block_of_queries_goes_its_own_way(ways: list[str]) -> None:
    Q, K, V = problem(2, 6, 40, dtype="float32")
    Q[2:4] *= 100
    require(evaluated(Q, K, V, (1, 2, 20)), Q, K, V)
    assert ways == ["without shift", "with running maximum", "without shift"]


@pytest.mark.parametrize(
    ("q", "k", "scale"),
    [
        ([1.0, 0.0], [0.0, 1e200], 1.0),  # a huge key, of which no query sees anything
        ([1e-200, 0.0], [1e200, 0.0], 1.0),  # the norm of one overflows, that of the other is 0
        ([1e-165, 0.0], [1e153, 0.0], 1e16),  # the query's squares vanish, and its scores are huge
        ([1e300, 0.0], [0.0, 1e300], 1e-300),
        ([1.0, 0.0], [0.0, 1.0], 0.0),
    ],
)
def test_adversarial_norms_do_not_get_past_the_bound(
    q: list[float], k: list[float], scale: float
) -> None:
    Q, K = np.array([q] * 3), np.array([k] * 20)
    K[7] *= -1
    V = problem(3, 1, 20, c=2)[2]
    require(evaluated(Q, K, V, (1, 2, 10), scale=scale), Q, K, V, scale=scale)


@pytest.mark.parametrize("exponent", [1023, 1000, -1000, -1022])
def test_values_at_the_ends_of_the_range_have_their_mean(exponent: int) -> None:
    """A column of them, beside one of ordinary values, which loses nothing."""
    Q, K, V = problem(4, 5, 200, c=2)
    V /= 1.01 * abs(V).max()
    extreme = V * [1.0, 2.0**exponent]
    output = evaluated(Q, K, extreme, (1, 2, 40)) / [1.0, 2.0**exponent]
    require(output, Q, K, extreme / [1.0, 2.0**exponent])


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("far", [False, True])
def test_at_size_the_budget_holds_at_every_block_size(
    ways: list[str], dtype: str, far: bool
) -> None:
    """n = 4096: rows against balls; all queries in the tiles of our choice, then some in others."""
    n, rows = 4096, [0, 2500]
    Q, K, V = problem(5, n, n, d=8, c=2, dtype=dtype, spread=FAR[dtype] if far else 1.0)
    number = oracle.balls()
    q, k, v = (number.vectors(x) for x in (Q[rows], K, V))
    scale = oracle.scale_of(number, 8**-0.5, 8)
    want = [oracle.attention(number, x, k, v, scale) for x in q]
    budget = attention_budget(Q[rows], K, V, 8**-0.5, unit_roundoff(dtype))
    oracle.against(number, "our tiles", attention(Q, K, V)[rows], want, budget).require()
    for sizes in ((1, 1, 4096), (1, 2, 10), (1, 1, 511), (1, 2, 2049)):
        got = evaluated(Q[rows], K, V, sizes)
        oracle.against(number, f"tiles {sizes}", got, want, budget).require()
    assert far == ("with running maximum" in ways)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_threads_give_the_same_bits(batch: tuple[int, ...], causal: bool) -> None:
    Q, K, V = (np.random.default_rng(i).standard_normal((*batch, 1200, 8)) for i in range(3))
    Q[..., 600:, :] *= 100  # both ways
    alone = attention(Q, K, V, causal=causal)
    for n_threads in (2, 5):
        assert np.array_equal(attention(Q, K, V, causal=causal, n_threads=n_threads), alone)


@pytest.mark.parametrize(("batch", "n"), [((), 725), ((200,), 60)])
def test_threads_work_at_the_same_time(
    monkeypatch: pytest.MonkeyPatch, batch: tuple[int, ...], n: int
) -> None:
    function, together = blocked._by_tiles, threading.Barrier(2)

    def meeting(*arguments: Any) -> None:
        together.wait(timeout=10)
        function(*arguments)

    x = np.ones((*batch, n, 64))
    alone = attention(x, x, x)
    monkeypatch.setattr(blocked, "_by_tiles", meeting)
    assert np.array_equal(attention(x, x, x, n_threads=2), alone)


def test_a_thread_that_costs_more_than_it_gains_is_not_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tiling, "ThreadPoolExecutor", None)
    x = np.ones((724, 64))
    attention(x, x, x, n_threads=2)


@pytest.mark.parametrize("n_threads", [1, 2, 3, 9])
def test_each_task_is_done_once_and_what_goes_wrong_is_raised(n_threads: int) -> None:
    done: list[int] = []
    in_threads(done.append, range(7), n_threads)
    assert sorted(done) == list(range(7))

    def refuse(task: int) -> None:
        if task == 5:
            raise ValueError("five")

    with pytest.raises(ValueError, match="five"):
        in_threads(refuse, range(7), n_threads)


@pytest.mark.parametrize("spread", [1.0, 30.0])
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"n_threads": 2}])
def test_memory_beyond_the_result_is_that_of_a_block(
    spread: float, options: dict[str, Any]
) -> None:
    Q, K, V = problem(6, 1024, 1024, d=64, c=64, spread=spread)
    # In a thread of its own, for which nothing is kept from an earlier call.
    thread = threading.Thread(target=attention, args=(Q, K, V), kwargs=options)
    tracemalloc.start()
    thread.start()
    thread.join()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # A block of scores, as much for scaled queries, sums and masks, and copies of keys and values.
    block = 1 << 20
    one = 2 * block + K.nbytes + V.nbytes
    assert block < peak - V.nbytes < options.get("n_threads", 1) * one + block // 4


def test_the_fast_exponential_is_as_good_as_the_budget_has_it() -> None:
    for dtype, wide in ((np.float32, np.float64), (np.float64, np.longdouble)):
        function, factor = exponential.fast_exponential(np.dtype(dtype))
        x = np.linspace(-80, 80, 9999, dtype=dtype)
        base = wide(2) if function is np.exp2 else np.exp(wide(1))
        error = abs(function(x) / base ** x.astype(wide) - 1)
        assert error.max() <= 8 * unit_roundoff(dtype) + 200 * float(np.finfo(wide).eps)
        assert factor == (1 / math.log(2) if function is np.exp2 else 1.0)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_shift_takes_no_exponential_that_is_slow_where_exp_is_not(dtype: str) -> None:
    Q, K, _ = problem(7, 4, 60, dtype=dtype)
    question = Problem.of(Q, K, None, None, False)
    fast, base = exponential.fast_exponential(np.dtype(dtype))
    scores = np.full((4, 60), 8 * base, dtype)
    function = exponential.exponential_of_shifted(question, scores)
    assert function is (np.exp if dtype == "float32" else fast)
    want = 8 if function is np.exp else 8 * base
    assert abs(scores - want).max() <= 32 * np.finfo(dtype).eps


def test_without_a_vector_loop_for_exp2_exp_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exponential, "fast_exponential", lambda dtype: (np.exp, 1.0))
    Q, K, V = problem(7, 4, 60)
    require(evaluated(Q, K, V, (1, 2, 20)), Q, K, V)
