"""The oracle against what is known without it: closed forms, exact rationals, decimals."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest

from equivalence.verify import oracle
from equivalence.verify.budgets import Budget
from equivalence.verify.compare import Disagreement

BALLS = oracle.balls()
BOTH = pytest.mark.parametrize("number", [oracle.FLOATS, BALLS], ids=["fsum", "arb"])
Rows = list[list[float]]


def near(number: oracle.Arithmetic, value: oracle.Number, want: float, ulps: int = 0) -> bool:
    """Equal up to so many units of the last place, in floats; in balls up to their radius."""
    distance = number.distance(want, value)
    return distance <= (ulps + 1) * math.ulp(want) if ulps else distance <= math.ulp(want) / 2


def answer(
    number: oracle.Arithmetic, q: list[float], K: Rows, V: Rows, scale: float = 1.0
) -> list[oracle.Number]:
    k, v = (number.vectors(np.array(x, float)) for x in (K, V))
    return oracle.attention(number, number.vectors(np.array([q]))[0], k, v, number.number(scale))


@BOTH
def test_one_key_has_all_the_weight(number: oracle.Arithmetic) -> None:
    o = answer(number, [3.0, -50.0], [[7.0, 11.0]], [[0.1, -2.5]])
    assert [number.distance(x, y) for x, y in zip([0.1, -2.5], o, strict=True)] == [0, 0]


@BOTH
@pytest.mark.parametrize("n", [2, 3, 7])
def test_equal_keys_share_the_weight_equally(number: oracle.Arithmetic, n: int) -> None:
    values = [[float(2**j)] for j in range(n)]
    o = answer(number, [1.5], [[0.3]] * n, values)
    assert near(number, o[0], (2**n - 1) / n, ulps=1)


@BOTH
@pytest.mark.parametrize("score", [0.0, 1.0, -3.0, 30.0])
def test_two_keys_give_the_logistic_function(number: oracle.Arithmetic, score: float) -> None:
    o = answer(number, [1.0], [[score], [0.0]], [[1.0], [0.0]])
    assert near(number, o[0], 1 / (1 + math.exp(-score)), ulps=3)


@BOTH
def test_logarithms_as_scores_give_rational_weights(number: oracle.Arithmetic) -> None:
    p = oracle.weights(
        number,
        [number.number(1.0)],
        number.vectors(np.zeros((3, 1))),
        number.number(1.0),
        [number.number(math.log(x)) for x in (1, 2, 5)],
    )
    # The logarithms are rounded: weights move by as much, relatively.
    assert [near(number, x, w, ulps=8) for x, w in zip(p, (1 / 8, 2 / 8, 5 / 8), strict=True)]


@BOTH
def test_the_largest_score_is_taken_out_so_that_nothing_overflows(
    number: oracle.Arithmetic,
) -> None:
    o = answer(number, [1.0], [[5000.0], [5000.0], [-5000.0]], [[1.0], [2.0], [9.0]])
    assert near(number, o[0], 1.5)


@BOTH
def test_an_excluded_key_counts_for_nothing(number: oracle.Arithmetic) -> None:
    q, K, V = [1.0, 2.0], [[0.5, 0.25], [1.0, 0.0]], [[3.0], [5.0]]
    k, v = number.vectors(np.array(K)), number.vectors(np.array(V))
    bias = [number.number(0.0), number.number(-1e5)]
    o = oracle.attention(number, number.vectors(np.array([q]))[0], k, v, number.number(1.0), bias)
    assert near(number, o[0], 3.0)


@BOTH
def test_the_default_scale_is_the_root_and_not_its_rounding(number: oracle.Arithmetic) -> None:
    assert near(number, oracle.scale_of(number, None, 4), 0.5)
    assert number.distance(0.7, oracle.scale_of(number, 0.7, 4)) == 0
    third = oracle.scale_of(BALLS, None, 3)
    assert abs(third * third * 3 - 1) < 2.0**-190


def random_problem(seed: int) -> tuple[list[float], Rows, Rows]:
    rng = np.random.default_rng(seed)
    q, K, V = rng.normal(size=4), rng.normal(size=(6, 4)), rng.normal(size=(6, 3))
    return q.tolist(), K.tolist(), V.tolist()


def decimal_attention(q: list[float], K: Rows, V: Rows) -> list[Decimal]:
    """The definition in 60 decimal digits; floats are exact decimals."""
    with localcontext() as context:
        context.prec = 60
        x = [Decimal(a) for a in q]
        scores = [sum((a * Decimal(b) for a, b in zip(x, k, strict=True)), Decimal(0)) for k in K]
        kappa = [s.exp() for s in scores]
        columns = zip(*V, strict=True)
        return [
            sum((a * Decimal(v) for a, v in zip(kappa, column, strict=True)), Decimal(0))
            / sum(kappa)
            for column in columns
        ]


@pytest.mark.parametrize("seed", range(5))
def test_balls_and_decimals_agree_to_fifty_digits(seed: int) -> None:
    q, K, V = random_problem(seed)
    for ball, decimal in zip(answer(BALLS, q, K, V), decimal_attention(q, K, V), strict=True):
        middle = Decimal(ball.mid().str(58, radius=False))
        assert abs(middle - decimal) < Decimal("1e-50")
        assert float(ball.rad()) < 2.0**-180


@pytest.mark.parametrize("seed", range(5))
def test_floats_and_balls_agree_to_rounding(seed: int) -> None:
    q, K, V = random_problem(seed)
    floats, balls = answer(oracle.FLOATS, q, K, V), answer(BALLS, q, K, V)
    size = max(abs(v[0]) for v in V) + max(abs(x) for k in K for x in k) * 4
    for x, ball in zip(floats, balls, strict=True):
        assert BALLS.distance(x, ball) < 16 * size * 2.0**-53


@pytest.mark.parametrize("seed", range(200))
def test_the_distance_to_a_ball_is_an_upper_bound(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p, q = (int(x) for x in rng.integers(1, 1000, 2))
    got = float(np.float64(p / q) * (1 + rng.integers(-3, 4) * 2.0**-52))
    distance = BALLS.distance(got, BALLS.number(float(p)) / BALLS.number(float(q)))
    error = abs(Fraction(got) - Fraction(p, q))
    assert Fraction(distance) >= error
    # Two more roundings than the best upper bound, and the radius of the ball.
    assert Fraction(distance) <= error * (1 + Fraction(1, 2**50)) + Fraction(1, 2**150)


def test_a_ball_of_known_radius_counts_from_its_far_end() -> None:
    from flint import arb

    assert BALLS.distance(1.0, arb(1.0, 0.25)) >= 0.25
    assert BALLS.distance(2.0, arb(1.0, 0.25)) >= 1.25
    assert BALLS.distance(2.0, arb(1.0, 0.25)) < 1.26


@BOTH
def test_equal_numbers_have_no_distance(number: oracle.Arithmetic) -> None:
    assert number.distance(0.1, number.number(0.1)) == 0


@BOTH
@pytest.mark.parametrize("got", [math.nan, math.inf, -math.inf])
def test_what_is_not_a_number_is_rejected(number: oracle.Arithmetic, got: float) -> None:
    with pytest.raises(Disagreement), np.errstate(invalid="ignore"):
        oracle.against(
            number, "x", np.array([[got]]), [[number.number(1.0)]], allowed(1e-9)
        ).require()


def allowed(bound: float) -> Budget:
    return Budget(np.full((1, 1), bound), "of rounding", 2.0**-53)


@BOTH
def test_a_wrong_value_is_rejected_and_the_arithmetic_is_named(number: oracle.Arithmetic) -> None:
    want = [[number.number(1.0)]]
    right, wrong = np.array([[1.0]]), np.array([[1.0 + 2.0**-40]])
    assert oracle.against(number, "x", right, want, allowed(2.0**-41)).require() == 0
    with pytest.raises(Disagreement, match=rf": x \[{number.name}\]\n"):
        oracle.against(number, "x", wrong, want, allowed(2.0**-41)).require()


@BOTH
@pytest.mark.parametrize("shape", [(1,), (1, 2), (2, 1), (0, 1)])
def test_another_shape_is_rejected(number: oracle.Arithmetic, shape: tuple[int, ...]) -> None:
    with pytest.raises(Disagreement, match=r"^x: shape .* where the theorem gives \(1, 1\)$"):
        oracle.against(number, "x", np.ones(shape), [[number.number(1.0)]], allowed(1.0))


@BOTH
def test_no_rows_are_as_no_rows_should_be(number: oracle.Arithmetic) -> None:
    assert oracle.against(number, "x", np.empty((0, 2)), [], allowed(1.0)).share == 0


def test_a_ball_too_wide_to_decide_is_rejected() -> None:
    from flint import arb

    with pytest.raises(Disagreement):
        oracle.against(BALLS, "x", np.ones((1, 1)), [[arb(1.0, 1e-6)]], allowed(1e-9)).require()


def test_a_sum_of_floats_is_rounded_once() -> None:
    x = [1e16, 1.0, -1e16, 2.0**-60]
    assert oracle.FLOATS.dot(x, [1.0] * 4) == 1.0
    assert BALLS.distance(1.0, BALLS.dot([BALLS.number(a) for a in x], [1] * 4)) > 0


def test_vectors_of_different_length_are_not_cut_short() -> None:
    with pytest.raises(ValueError, match="shorter"):
        oracle.FLOATS.dot([1.0, 2.0], [1.0])


def test_only_balls_are_certified() -> None:
    assert (oracle.FLOATS.certified, BALLS.certified) == (False, True)
