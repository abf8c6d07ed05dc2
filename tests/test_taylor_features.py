"""The proof's own expressions against the code, degrees beyond the range of exp, and bad input."""

import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equivalence.features import TaylorFeatures
from equivalence.verify.budgets import Budget, gamma, sum_budget
from equivalence.verify.compare import compare
from proofs import load

U = 2.0**-53
PROOF = load("taylor_features")


def product(n: int, x: list[float], y: list[float]) -> float:
    """phi(x).phi(y), without a log scale."""
    (f, a), (g, b) = (TaylorFeatures(n)([p]) for p in (x, y))
    return float((f @ g.T).item() * math.exp((a + b).item()))


def rounding(n: int, d: int, x: list[float], y: list[float], more: float = 0.0) -> Budget:
    """3d+24 roundings a degree on both sides, of terms that are at most exp(|x||y|) together."""
    size = math.exp(math.hypot(*x) * math.hypot(*y)) + more
    count = TaylorFeatures(n).n_features(d) + 2 * n * (3 * d + 24) + 64
    return sum_budget(np.array([[size]]), count, U)


PAIRS = [([0.5], [-1.5]), ([0.5, -0.25], [1.0, 0.75]), ([1.0, -0.5, 0.25], [0.5, 1.5, -1.0])]


@pytest.mark.parametrize(("x", "y"), PAIRS)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_code_computes_the_expressions_of_the_proof(
    n: int, x: list[float], y: list[float]
) -> None:
    t = math.fsum(a * b for a, b in zip(x, y, strict=True))
    got = product(n, x, y)
    remainder = PROOF.evaluate("remainder", {"t": t, "n": n})
    budget = rounding(n, len(x), x, y, math.exp(t))
    compare("the remainder", [math.exp(t) - got], [remainder], budget).require()
    given = {"size": abs(t), "n": n, "largest": max(1.0, math.exp(t))}
    bound = PROOF.evaluate("bound", given)
    log_bound = TaylorFeatures(n).log_error_bound([x], [y]).item()
    compare("the bound", [math.exp(log_bound)], [bound], sum_budget(np.array([[bound]]), 64, U)
            ).require()  # fmt: skip
    assert abs(remainder) <= bound
    dimension = PROOF.evaluate("dimension", {"d": len(x), "n": n})
    assert TaylorFeatures(n).n_features(len(x)) == dimension


def test_one_more_coordinate_is_the_binomial_step_of_the_proof() -> None:
    for k in (1, 3):
        value = PROOF.evaluate("monomials", {"t": 0.75, "b": -0.5, "k": k})
        x, y = [1.5, 1.0], [0.5, -0.5]
        got = product(k, x, y) - (product(k - 1, x, y))
        compare("degree k", [got], [value], rounding(k, 2, x, y).times(2)).require()
    got = product(3, x, y) - product(2, x, y)
    tuples = PROOF.evaluate("tuples", {"x": x, "y": y})
    compare("tuples", [6 * got], [tuples], rounding(3, 2, x, y).times(12)).require()


def test_features_are_the_monomials_in_the_order_of_their_degree() -> None:
    x, y = 1.5, -0.5
    want = [1, x, y, x * x / math.sqrt(2), x * y, y * y / math.sqrt(2)]
    got = TaylorFeatures(2)([[x, y]]).phi()[0]
    budget = Budget(gamma(64, U) * abs(np.array(want)), "two degrees and one exp", U)
    compare("1, x, y, x^2/sqrt 2, xy, y^2/sqrt 2", got, want, budget).require()


def test_a_high_degree_reaches_the_kernel_where_exp_overflows() -> None:
    # The rest is below t^(n+1)/(n+1)! e^t, relative to the kernel e^-1400 here.
    n, x = 2500, [[27.0]]
    (f, a), bound = TaylorFeatures(n)(x), TaylorFeatures(n).log_error_bound(x, x).item() - 729
    assert bound < math.log(U)
    got = math.log((f**2).sum()) + 2 * a.item()
    budget = Budget(np.array(gamma(7 * n, U) + gamma(n + 8, U) * 729), "n factors and logs", U)
    compare("log phi(x).phi(x) = |x|^2", got, 729.0, budget).require()


@given(
    st.integers(0, 6),
    st.integers(1, 4),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1e-160, 1.0, 30.0]),
)
def test_a_point_and_a_sign_change_even_and_odd_degrees(
    n: int, d: int, seed: int, size: float
) -> None:
    x = size * np.random.default_rng(seed).standard_normal((2, d))
    (f, a), (g, b) = TaylorFeatures(n)(x), TaylorFeatures(n)(-x)
    degrees = np.repeat(np.arange(n + 1), [math.comb(d + k - 1, k) for k in range(n + 1)])
    assert np.array_equal(g, f * np.where(degrees % 2, -1, 1))
    assert np.array_equal(a, b)
    assert np.isfinite(f).all()
    assert f.shape[-1] == TaylorFeatures(n).n_features(d)


def test_the_origin_has_the_constant_feature_alone() -> None:
    assert TaylorFeatures(3)(np.zeros((1, 2))).phi().tolist() == [[1.0] + 9 * [0.0]]
    assert TaylorFeatures(0)([[7.0, 8.0]]).phi().tolist() == [[1.0]]
    assert TaylorFeatures(2).log_error_bound([[0.0]], [[1.0]]).item() == -math.inf


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e200])
def test_a_bad_point_is_nan_and_spoils_no_other(bad: float) -> None:
    x = np.array([[1.0, 2.0], [bad, 1.0]])
    phi = TaylorFeatures(2)(x).phi()
    assert np.isnan(phi[1]).all()
    assert np.array_equal(phi[0], TaylorFeatures(2)(x[:1]).phi()[0])


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_dtypes_and_leading_axes_are_kept(dtype: str) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 2)).astype(dtype)
    phi, bound = TaylorFeatures(3)(x), TaylorFeatures(3).log_error_bound(x, x[:, :, :1])
    assert {phi.features.dtype, phi.log_scale.dtype, bound.dtype} == {np.dtype(dtype)}
    assert (phi.features.shape, phi.log_scale.shape) == ((2, 3, 4, 10), (2, 3, 4))
    assert bound.shape == (2, 3, 4, 1)
    single = x.astype(np.float32) if dtype == "float16" else x
    one = TaylorFeatures(3)(single[1, 2]).features.astype(dtype)
    assert np.array_equal(phi.features[1, 2], one)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: TaylorFeatures(-1), ValueError, "degree is -1; expected at least 0"),
        (lambda: TaylorFeatures(2.0), TypeError, "degree is 2.0; expected an integer"),
        (lambda: TaylorFeatures(True), TypeError, "degree is True; expected an integer"),
        (lambda: TaylorFeatures(2).n_features(0), ValueError, "dim is 0; expected at least 1"),
        (lambda: TaylorFeatures(2).n_features(1.5), TypeError, "dim is 1.5; expected an integer"),
        (lambda: TaylorFeatures(2)([1.0]), ValueError, "x has shape (1,); expected (..., n_tok"),
        (lambda: TaylorFeatures(2)(np.ones((2, 0))), ValueError, "x has shape (2, 0); expected a"),
        (lambda: TaylorFeatures(2)([["a"]]), TypeError, "x has dtype <U1; expected float16"),
        (
            lambda: TaylorFeatures(2).log_error_bound([[1.0]], [[1.0, 2.0]]),
            ValueError,
            "y has shape (1, 2); expected (..., n_tokens, 1)",
        ),
        (
            lambda: TaylorFeatures(2).log_error_bound(np.ones((2, 1, 1)), np.ones((3, 1, 1))),
            ValueError,
            "y has leading axes (3,)",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_refused_by_name(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()
