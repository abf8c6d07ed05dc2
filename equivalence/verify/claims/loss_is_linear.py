"""The loss is linear and unbounded below; in a ball it has a minimum, which one step reaches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from equivalence import dual
from equivalence._arrays import Array
from equivalence.ball import ball_optimum, step_length
from equivalence.verify import oracle
from equivalence.verify.budgets import Budget, sum_budget
from equivalence.verify.cases import Case
from equivalence.verify.claim import Claim, Kind, mutant
from equivalence.verify.compare import Comparison, compare
from equivalence.verify.dual_case import DualCase, see_dual
from equivalence.verify.implementation import Implementation

_ETA = 0.3
_STEPS = 3
_RADIUS = 1.7
# A bounded loss may look linear near 0; powers of two stretch the weights without rounding.
_STRETCHES = (1.0, 2.0**7, 2.0**20)


def check(impl: Implementation, case: Case) -> Iterator[Comparison]:
    """T full steps, linearity, the bound of Cauchy and Schwarz, and how it is attained."""
    x = see_dual(impl, case)
    yield from _many_steps(impl, case, x)
    problem = _Problem.of(case, x)
    optimum = impl.ball_optimum(problem.V, problem.Phi, _RADIUS)
    yield from _certificate(impl, case, problem, optimum)
    yield _gap(impl, case, problem, optimum)
    yield _one_step(impl, problem)
    if not case.real:
        yield _linear(impl, case, problem)


def _many_steps(impl: Implementation, case: Case, x: DualCase) -> Iterator[Comparison]:
    """T steps count the demonstrations T times: W_0 + (T/D) G, whatever the weights have become."""
    number, rows = case.arithmetic, case.rows[:1]
    seen, given = slice(None, case.N), slice(case.N, None)
    D, phi_q = x.D[rows], x.phi_q[rows]
    W_0 = impl.initial_weights(case.V[given], x.Phi[given], D)
    slope = impl.gradient(case.V[seen], x.Phi[seen], D, _ETA)
    W = W_0
    for _ in range(_STEPS):
        W = impl.gradient_step(W, slope, _ETA)
    predicted = impl.predict(W, phi_q)
    # The T additions round by 9u in all, less than the gamma_(n+3m+6) of one more step.
    budget = x.budget[rows].times(_STEPS + 1, f"T = {_STEPS} steps, and their additions: ")
    at_once = impl.predict(impl.gradient_step(W_0, slope, _STEPS * _ETA), phi_q)
    yield compare("T steps are one step of T eta", predicted, at_once, budget)
    s = oracle.scale_of(number, case.scale, case.Q.shape[-1])
    q, k, v = (number.vectors(a) for a in (case.Q[rows], case.K, case.V))
    p = oracle.weights(number, q[0], k, s)
    counted = [number.number(_STEPS) * p_i for p_i in p[: case.N]] + p[case.N :]
    want = [[number.dot(counted, column) for column in zip(*v, strict=True)]]
    yield oracle.against(
        number, "T steps give sum_t p_t v_t + T sum_i p_i v_i", predicted, want, budget
    )


@dataclass(frozen=True)
class _Problem:
    """All tokens as demonstrations (of a real head, two outputs), and D of the first query.

    G (c, m) may cancel: what is proportional to it is compared in units of `size`, the norm of the
    sums of the magnitudes of its terms, of which |G|_F is the `part`; `rounding` is in these units.
    """

    V: Array
    Phi: Array
    D: float
    terms: Array
    size: float
    part: float
    rounding: Budget

    @classmethod
    def of(cls, case: Case, x: DualCase) -> _Problem:
        V = case.V[:, : 2 if case.real else None]
        terms = abs(V).T.astype(np.float64) @ abs(x.Phi)
        size = float(np.linalg.norm(terms))
        part = float(np.linalg.norm(V.T.astype(np.float64) @ x.Phi)) / size
        # G sums n terms, a loss n, c and m of them, and a norm c m squares.
        depth = len(V) + sum(terms.shape) + terms.size + 8
        rounding = sum_budget(np.ones(1), depth, case.u)
        return cls(V, x.Phi, float(x.D[0]), terms, size, part, rounding)


def _linear(impl: Implementation, case: Case, x: _Problem) -> Comparison:
    """L(a W + b X) = a L(W) + b L(X), the right side from the definition; in units of its terms."""
    number, a, b = case.arithmetic, 0.7, -1.9
    W, X = case.rng("W").standard_normal((2, *x.terms.shape)).astype(x.V.dtype)
    size = float((x.terms * (abs(a * W) + abs(b * X))).sum()) / (_ETA * x.D)
    dtype = x.V.dtype.type
    got = impl.loss(dtype(a) * W + dtype(b) * X, x.V, x.Phi, x.D, _ETA) / size
    v, phi, w, y = (number.vectors(z) for z in (x.V, x.Phi, W, X))
    A, B, eta, D, unit = map(number.number, (a, b, _ETA, x.D, size))

    def agreement(weights: list[list[oracle.Number]]) -> oracle.Number:
        return number.sum(
            number.dot(v_i, [number.dot(row, phi_i) for row in weights])
            for v_i, phi_i in zip(v, phi, strict=True)
        )

    want = -(A * agreement(w) + B * agreement(y)) / (eta * D * unit)
    return oracle.against(
        number, "L(a W + b X) = a L(W) + b L(X)", np.reshape(got, (1, 1)), [[want]], x.rounding
    )


def _certificate(
    impl: Implementation, case: Case, x: _Problem, optimum: Array
) -> Iterator[Comparison]:
    """r G/|G|, and L = -t r |G|/(eta D) at t times it: Cauchy and Schwarz allow no less.

    As t has no bound, neither has the loss.
    """
    number = case.arithmetic
    v, phi = (list(zip(*number.vectors(a), strict=True)) for a in (x.V, x.Phi))
    G = [[number.dot(column, f) for f in phi] for column in v]
    norm = number.sqrt(number.sum(g * g for row in G for g in row))
    part, size = number.number(x.part), number.number(x.size)
    yield oracle.against(
        number,
        "the optimum is r G/|G|_F",
        optimum / _RADIUS * x.part,
        [[g / norm * part for g in row] for row in G],
        x.rounding.times(2, "an entry and the norm err by the terms of G: "),
    )
    t = np.array(_STRETCHES, x.V.dtype)
    at = impl.loss(t[:, None, None] * optimum, x.V, x.Phi, x.D, _ETA)
    yield oracle.against(
        number,
        "L = -t r |G|_F/(eta D) at t times the optimum",
        (at / t * (_ETA * x.D / (_RADIUS * x.size)))[:, None],
        [[-norm / size]] * len(t),
        x.rounding.times(3, "the loss errs by its terms, and by an optimum that errs by 2: "),
    )


def _gap(impl: Implementation, case: Case, x: _Problem, optimum: Array) -> Comparison:
    """L(X) - L(W*) = |G|/(2 r eta D) (|X - W*|^2 + r^2 - |X|^2) for random X, half on the sphere.

    In the ball neither part is negative: no X is lower, and none but W* is as low.
    """
    X = case.rng("X").standard_normal((6, *x.terms.shape))
    length = _RADIUS * np.array([1.0, 1.0, 1.0, 0.9, 0.5, 0.0])[:, None, None]
    X = (length * X / np.linalg.norm(X, axis=(-2, -1), keepdims=True)).astype(x.V.dtype)
    got = impl.loss(X, x.V, x.Phi, x.D, _ETA) - impl.loss(optimum, x.V, x.Phi, x.D, _ETA)
    X, W = X.astype(np.float64), optimum.astype(np.float64)
    squares = ((X - W) ** 2).sum(axis=(-2, -1)) + _RADIUS**2 - (X**2).sum(axis=(-2, -1))
    return compare(
        "L(X) - L(W*) = |G|/(2 r eta D) (|X - W*|^2 + r^2 - |X|^2)",
        got * (_ETA * x.D / (_RADIUS * x.size)),
        squares / (2 * _RADIUS**2) * x.part,
        # An error e of the optimum moves the loss by |G| e, and the square by 2 |X - W*| e.
        x.rounding.times(9, "two losses, and an optimum that errs by 2, on both sides: "),
    )


def _one_step(impl: Implementation, x: _Problem) -> Comparison:
    """The step from 0 is the optimum of the ball that it reaches."""
    zero = np.zeros(x.terms.shape, x.V.dtype)
    step = impl.gradient_step(zero, impl.gradient(x.V, x.Phi, x.D, _ETA), _ETA)
    optimum = impl.ball_optimum(x.V, x.Phi, impl.step_length(x.V, x.Phi, x.D))
    return compare(
        "the step from 0 is the optimum for r = |G|_F/D",
        step * (x.D / x.size),
        optimum * (x.D / x.size),
        x.rounding.times(4, "the step, the optimum, and its length err by the terms of G: "),
    )


def _squared_error(
    W: Array, values: Array, features: Array, D: npt.ArrayLike, learning_rate: float = 1.0
) -> Array:
    """The residual instead of the agreement: least squares."""
    residual = values - features @ np.swapaxes(W, -1, -2)
    squared: Array = (residual**2).sum(axis=(-2, -1)) / (2 * learning_rate * np.asarray(D))
    return squared


def _ridge(
    W: Array, values: Array, features: Array, D: npt.ArrayLike, learning_rate: float = 1.0
) -> Array:
    penalty: Array = 1e-6 * (W**2).sum(axis=(-2, -1))
    return dual.loss(W, values, features, D, learning_rate) + penalty


def _bounded(
    W: Array, values: Array, features: Array, D: npt.ArrayLike, learning_rate: float = 1.0
) -> Array:
    cut: Array = np.maximum(dual.loss(W, values, features, D, learning_rate), -1e3)
    return cut


def _with_offset(
    W: Array, values: Array, features: Array, D: npt.ArrayLike, learning_rate: float = 1.0
) -> Array:
    """The cosine loss 1 - v.f has an offset: affine, not linear."""
    return 1 + dual.loss(W, values, features, D, learning_rate)


def _log_loss(
    W: Array, values: Array, features: Array, D: npt.ArrayLike, learning_rate: float = 1.0
) -> Array:
    """log(1 + e^L): linear far up, flat far down."""
    softplus: Array = np.logaddexp(0, dual.loss(W, values, features, D, learning_rate))
    return softplus


def _projects(W: Array, gradient: Array, learning_rate: float = 1.0) -> Array:
    stepped = dual.gradient_step(W, gradient, learning_rate)
    step = np.linalg.norm(learning_rate * gradient, axis=(-2, -1), keepdims=True)
    norm = np.linalg.norm(stepped, axis=(-2, -1), keepdims=True)
    projected: Array = stepped * np.minimum(1, 2 * step / np.where(norm > 0, norm, 1))
    return projected


def _decays(W: Array, gradient: Array, learning_rate: float = 1.0) -> Array:
    return dual.gradient_step(W * (1 - 1e-6), gradient, learning_rate)


def _not_normalized(values: Array, features: Array, radius: npt.ArrayLike) -> Array:
    return np.asarray(radius) * dual.initial_weights(values, features, 1.0)


def _largest_loss(values: Array, features: Array, radius: npt.ArrayLike) -> Array:
    return -ball_optimum(values, features, radius)


def _spectral_norm(values: Array, features: Array, radius: npt.ArrayLike) -> Array:
    W = ball_optimum(values, features, radius)
    longer: Array = np.asarray(radius) * W / np.linalg.norm(W, 2)
    return longer


def _sum_of_norms(values: Array, features: Array, radius: npt.ArrayLike) -> Array:
    """|G| <= sum_i |v_i||phi_i|, with which W stays inside the ball."""
    norms = np.linalg.norm(values, axis=-1) @ np.linalg.norm(features, axis=-1)
    shorter: Array = _not_normalized(values, features, radius) / norms
    return shorter


def _each_output(values: Array, features: Array, radius: npt.ArrayLike) -> Array:
    """Each row of W in a ball of its own."""
    G = dual.initial_weights(values, features, 1.0)
    unit = G / np.linalg.norm(G, axis=-1, keepdims=True)
    rows: Array = np.asarray(radius) * unit / np.sqrt(len(G))
    return rows


def _orthogonal(values: Array, features: Array, radius: npt.ArrayLike) -> Array:
    """The optimum of the ball of the spectral norm, U V^T, with the length of the other."""
    G = dual.initial_weights(values, features, 1.0)
    U, _, Vt = np.linalg.svd(G, full_matrices=False)
    polar: Array = np.asarray(radius) * (U @ Vt) / np.sqrt(min(G.shape))
    return polar


def _length_of_G(values: Array, features: Array, D: npt.ArrayLike) -> Array:
    return step_length(values, features, 1.0)


def _float32(values: Array, features: Array, radius: npt.ArrayLike) -> Array:
    single = ball_optimum(values.astype(np.float32), features.astype(np.float32), radius)
    return single.astype(values.dtype)


claim = Claim(
    stem="loss_is_linear",
    statement="L is linear in W and unbounded below: T full steps give W_0 + (T/D) G, "
    "G = sum_i v_i phi(k_i)^T. In the ball |W|_F <= r its minimum is r G/|G|_F, so the step from 0 "
    "is the optimum of the ball of radius |G|_F/D.",
    kind=Kind.EXACT,
    needs=(
        "GramFeatures",
        "normalizer",
        "initial_weights",
        "loss",
        "gradient",
        "gradient_step",
        "predict",
        "ball_optimum",
        "step_length",
    ),
    check=check,
    mutants=(
        mutant("least_squares", "the loss is the squared error", loss=_squared_error),
        mutant("ridge", "the loss has a penalty 1e-6 |W|^2", loss=_ridge),
        mutant("bounded_loss", "the loss is cut off at -1000", loss=_bounded),
        mutant("offset", "the loss is 1 - agreement", loss=_with_offset),
        mutant("log_loss", "the loss is log(1 + e^L)", loss=_log_loss),
        mutant(
            "projects_weights", "steps stay in a ball of two steps' radius", gradient_step=_projects
        ),
        mutant("decays_weights", "weights decay by 1e-6 a step", gradient_step=_decays),
        mutant("not_normalized", "r G, whatever its length", ball_optimum=_not_normalized),
        mutant("largest_loss", "the optimum has the wrong sign", ball_optimum=_largest_loss),
        mutant("spectral_norm", "G over its largest singular value", ball_optimum=_spectral_norm),
        mutant("sum_of_norms", "G over sum_i |v_i||phi(k_i)|", ball_optimum=_sum_of_norms),
        mutant("each_output", "each output has a ball of its own", ball_optimum=_each_output),
        mutant(
            "orthogonal_optimum", "all singular values are made equal", ball_optimum=_orthogonal
        ),
        mutant("radius_without_D", "the step is taken to be |G|_F long", step_length=_length_of_G),
        mutant("float32_optimum", "the optimum is found in float32", ball_optimum=_float32),
    ),
    assumptions="D > 0, eta > 0, G != 0; D is a number, fixed while W moves.",
    budget="gamma_k sum_i |v_i||phi(k_i)|, k = n + c + m + c m + 8, times 1 to 9; the dual's "
    "budget times T + 1 for T steps.",
    code="equivalence/ball.py",
    on_heads=True,
)
