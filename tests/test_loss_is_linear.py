"""The proof's own expressions against the code, the ball, and the corners of a direction."""

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from equivalence import dual
from equivalence.ball import ball_optimum, step_length
from equivalence.features import GramFeatures
from equivalence.verify.budgets import (
    Budget,
    gaussian_exponent_error,
    kernel_budget,
    sum_budget,
    unit_roundoff,
)
from equivalence.verify.cases import Case, make_case
from equivalence.verify.compare import compare
from equivalence.verify.dual_case import scaled, see_dual
from equivalence.verify.implementation import OURS
from equivalence.verify.strategies import cases
from proofs import load

U = 2.0**-53
PROOF = load("loss_is_linear")


def drawn(seed: int, N: int, c: int, m: int) -> dict[str, Any]:
    """Values and features whose correlation G does not cancel."""
    rng = np.random.default_rng([seed, N, c, m])
    return {
        "V": rng.random((N, c)) + 0.5,
        "Phi": rng.random((N, m)) + 0.5,
        "W": rng.standard_normal((c, m)),
        "X": rng.standard_normal((c, m)),
        "W_0": rng.standard_normal((c, m)),
        "phi_q": rng.random(m),
        "eta": 0.3, "D": 1.9, "r": 1.7, "s": 0.6, "T": 3,
    }  # fmt: skip


def evaluated(name: str, given: dict[str, Any]) -> Any:
    values = {key: x.tolist() if isinstance(x, np.ndarray) else x for key, x in given.items()}
    return PROOF.evaluate(name, {k: values[k] for k in PROOF.arguments(name) if k in values})


@pytest.mark.parametrize(("N", "c", "m"), [(1, 2, 3), (4, 2, 3), (5, 3, 2)])
def test_the_code_computes_the_expressions_of_the_proof(N: int, c: int, m: int) -> None:
    x = drawn(0, N, c, m)
    V, Phi, D, eta, r = (x[name] for name in ("V", "Phi", "D", "eta", "r"))
    G = dual.initial_weights(V, Phi, 1.0)
    slope = dual.gradient(V, Phi, D, eta)
    W_T = x["W_0"]
    for _ in range(x["T"]):
        W_T = dual.gradient_step(W_T, slope, eta)
    optimum = ball_optimum(V, Phi, r)
    norm = float(step_length(V, Phi, 1.0))

    def L(W: np.ndarray) -> np.ndarray:
        return dual.loss(W, V, Phi, D, eta)

    # All terms of G are positive here: every sum loses a few u of itself, at most.
    depth = 4 * (N + c + m + c * m) + 12
    moved = abs(x["W_0"]) + x["T"] * G / D
    for name, got, size in (
        ("L", L(x["W"]), (G * abs(x["W"])).sum() / (eta * D)),
        ("L_at_G", L(x["s"] * G), x["s"] * (G**2).sum() / (eta * D)),
        ("W_T", W_T, moved),
        ("prediction", dual.predict(W_T, x["phi_q"]), moved @ x["phi_q"]),
        ("squared_norm", norm**2, norm**2),
        ("optimum", optimum, optimum),
        ("least", L(optimum), r * norm / (eta * D)),
        ("gap", L(x["X"]) - L(optimum), (G * (abs(x["X"]) + optimum)).sum() / (eta * D)),
    ):
        budget = sum_budget(np.asarray(size)[..., None], depth, U)
        compare(name, got, evaluated(name, x), budget).require()
    kernels = {"U": V @ V.T, "Kappa": Phi @ Phi.T}
    budget = sum_budget(np.array([norm**2]), depth, U)
    compare("from_kernels", norm**2, evaluated("from_kernels", kernels), budget).require()


def test_the_length_of_the_step_follows_from_the_kernel_of_the_keys() -> None:
    """|G|_F^2 = sum_ij (v_i.v_j) exp(s k_i.k_j): no feature is needed."""
    case = make_case(3, n=6, d=3, c=2)
    _, K = scaled(case)
    Phi = GramFeatures().fit(K)(K).phi()
    kernel = np.exp(K @ K.T)
    want = evaluated("from_kernels", {"U": case.V @ case.V.T, "Kappa": kernel})
    got = step_length(case.V, Phi, 1.0) ** 2
    own = kernel_budget(Phi, Phi, gaussian_exponent_error(K, K, U), U)
    agreement = abs(case.V) @ abs(case.V).T
    terms = sum_budget(agreement * (abs(Phi) @ abs(Phi).T), 64, U, axis=(0, 1))
    bound = (agreement * own.bound).sum() + terms.bound
    compare("|G|_F^2", got, want, Budget(bound, own.because, U)).require()


@given(case=cases())
def test_a_long_gradient_step_projected_onto_the_ball_is_the_optimum(case: Case) -> None:
    """From 0 every step points to the optimum: beyond the sphere, its projection is the optimum."""
    x = see_dual(OURS, case)
    c, m = case.V.shape[1], x.Phi.shape[1]
    zero = np.zeros((c, m), case.V.dtype)
    step = dual.gradient_step(zero, dual.gradient(case.V, x.Phi, 1.0)).astype(np.float64)
    projected = 2.5 * step / np.linalg.norm(step)
    terms = np.linalg.norm(abs(case.V).T.astype(np.float64) @ abs(x.Phi))
    rounding = sum_budget(np.full(1, 2.5 * terms), len(case.K) + c * m + 8, case.u).times(2)
    # In units of |G|, which may cancel.
    compare(
        "the projection",
        ball_optimum(case.V, x.Phi, 2.5) * np.linalg.norm(step),
        projected * np.linalg.norm(step),
        rounding,
    ).require()


@given(case=cases())
def test_no_vertex_of_the_ball_is_lower(case: Case) -> None:
    """All r e_a e_b^T and their opposites, exhaustively, and the optimum among them."""
    x = see_dual(OURS, case)
    c, m = case.V.shape[1], x.Phi.shape[1]
    r = 1.5
    units = np.eye(c * m, dtype=case.V.dtype).reshape(c * m, c, m)
    vertices = r * np.concatenate([units, -units])
    least = dual.loss(ball_optimum(case.V, x.Phi, r), case.V, x.Phi, 1.0)
    others = dual.loss(vertices, case.V, x.Phi, 1.0)
    terms = r * np.linalg.norm(abs(case.V).T.astype(np.float64) @ abs(x.Phi))
    rounding = sum_budget(np.full(1, terms), len(case.K) + 2 * c * m + 8, case.u).times(4)
    compare(
        "no vertex is lower", np.minimum(others, least), np.full_like(others, least), rounding
    ).require()


@pytest.mark.parametrize("exponent", [-500, -40, 40, 500])
def test_squares_that_overflow_or_vanish_do_not_matter(exponent: int) -> None:
    """Powers of two scale exactly, so the optimum has the same bits."""
    x = drawn(1, 4, 2, 3)
    V, Phi, power = x["V"], x["Phi"], 2.0**exponent
    assert np.array_equal(ball_optimum(power * V, power * Phi, 1.7), ball_optimum(V, Phi, 1.7))
    assert step_length(power * V, Phi, 2.0) == power * step_length(V, Phi, 2.0)


@pytest.mark.parametrize("n", [0, 1, 4])
def test_where_the_correlation_vanishes_the_optimum_is_zero(n: int) -> None:
    V, Phi = np.zeros((n, 2)), np.ones((n, 3))
    assert np.array_equal(ball_optimum(V, Phi, 2.0), np.zeros((2, 3)))
    assert step_length(V, Phi, 2.0) == 0


def test_a_ball_of_radius_zero_holds_zero_only() -> None:
    x = drawn(2, 3, 2, 2)
    assert np.array_equal(ball_optimum(x["V"], x["Phi"], 0), np.zeros((2, 2)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_does_not_give_a_finite_optimum(bad: float) -> None:
    x = drawn(3, 3, 2, 2)
    V = x["V"].copy()
    V[1, 0] = bad
    assert np.isnan(ball_optimum(V, x["Phi"], 1.0)).all()
    assert not np.isfinite(step_length(V, x["Phi"], 1.0))
    assert np.isnan(ball_optimum(x["V"], x["Phi"], np.nan)).all()


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_leading_axes_broadcast_and_the_dtype_is_kept(dtype: str) -> None:
    rng = np.random.default_rng(4)
    V = rng.random((3, 1, 4, 2)).astype(dtype)
    Phi = rng.random((2, 4, 5)).astype(dtype)
    r = np.array([[0.5], [1.0], [2.0]])
    for array in (V, Phi, r):
        array.setflags(write=False)
    W, length = ball_optimum(V, Phi, r), step_length(V, Phi, r + 1)
    computed = np.result_type(dtype, "float32")  # float16 is computed, and returned, in float32
    assert (W.shape, length.shape) == ((3, 2, 2, 5), (3, 2))
    assert W.dtype == length.dtype == computed
    for i, j in np.ndindex(3, 2):
        u = unit_roundoff(computed)
        one = ball_optimum(V[i, 0], Phi[j], r[i, 0])
        step = step_length(V[i, 0], Phi[j], r[i, 0] + 1)
        compare("batch", W[i, j], one, sum_budget(one[..., None], 32, u)).require()
        compare("batch", length[i, j], step, sum_budget(step[None], 32, u)).require()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"radius": -1.0}, ValueError, "radius is -1.0; expected no negative number"),
        ({"radius": np.ones(3)}, ValueError, "radius has leading axes (3,); expected axes that"),
        ({"radius": 1j}, TypeError, "radius has dtype complex128; expected float16"),
        ({"values": np.ones(4)}, ValueError, "values has shape (4,); expected (..., n_tokens"),
        ({"values": np.ones((3, 2))}, ValueError, "values has shape (3, 2); expected (..., 4,"),
        ({"features": np.ones((4, 3), "U1")}, TypeError, "features has dtype <U1; expected"),
    ],
)
def test_bad_input_is_refused_by_name(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    given = {"values": np.ones((2, 4, 2)), "features": np.ones((4, 3)), "radius": 1.0}
    with pytest.raises(error, match=re.escape(message)):
        ball_optimum(**given | arguments)


def test_a_D_that_does_not_broadcast_is_refused() -> None:
    with pytest.raises(ValueError, match=r"D has leading axes \(3,\)"):
        step_length(np.ones((2, 4, 2)), np.ones((4, 3)), np.ones(3))
