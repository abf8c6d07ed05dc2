"""The step does not depend on the learning rate, because the loss carries its inverse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from equivalence import OneStepRegressor, dual
from equivalence._arrays import Array
from equivalence.verify import oracle
from equivalence.verify.budgets import attention_budget, sum_budget
from equivalence.verify.cases import Case
from equivalence.verify.claim import Claim, Kind, mutant
from equivalence.verify.compare import Comparison, compare
from equivalence.verify.dual_case import DualCase, see_dual
from equivalence.verify.implementation import Implementation

_ETAS = (1e-8, 0.3, 7.0, 1e8)
# Of the loss and of the step, where they are not the same; no powers of two, which do not round.
_ETA_L, _ETA_S = 0.7, 0.3


def check(impl: Implementation, case: Case) -> Iterator[Comparison]:
    """Every learning rate against 1 and against the definition, and two that do not cancel."""
    x = see_dual(impl, case)
    yield _every_rate(impl, case, x)
    yield _regressor(impl, case, x)
    yield _two_rates(impl, case, x)
    if not case.real:
        yield _loss(impl, case, x)


def _W_1(
    impl: Implementation,
    case: Case,
    x: DualCase,
    rows: npt.NDArray[np.intp],
    eta_L: float,
    eta_S: float,
) -> Array:
    """A step of eta_S on the loss of eta_L, for some of the queries."""
    D = x.D[rows]
    W_0 = impl.initial_weights(case.V[case.N :], x.Phi[case.N :], D)
    slope = impl.gradient(case.V[: case.N], x.Phi[: case.N], D, eta_L)
    stepped: Array = impl.gradient_step(W_0, slope, eta_S)
    return stepped


def _every_rate(impl: Implementation, case: Case, x: DualCase) -> Comparison:
    """Entry by entry of the weights, each matrix in units of its own largest terms."""
    rows = case.rows
    W = np.stack([_W_1(impl, case, x, rows, eta, eta) for eta in _ETAS])
    one = _W_1(impl, case, x, rows, 1.0, 1.0)
    terms = abs(case.V).T @ abs(x.Phi) / abs(x.D[rows])[:, None, None]
    size = terms.max(axis=(-2, -1), keepdims=True)
    budget = sum_budget((terms / size)[..., None], len(case.K) + 8, case.u)
    return compare(
        "W_1 is the same for every eta",
        W / size,
        np.broadcast_to(one / size, W.shape),
        budget.times(2, "both steps rounded: "),
    )


def _regressor(impl: Implementation, case: Case, x: DualCase) -> Comparison:
    """The prediction is the attention output at the smallest and at the largest learning rate."""
    predicted = []
    for eta in (_ETAS[0],) if case.real else (_ETAS[0], _ETAS[-1]):
        model = impl.OneStepRegressor(scale=case.scale, learning_rate=eta)
        model.fit(case.K, case.V, n_demonstrations=case.N)
        predicted.append(model.predict(case.Q))
    o = impl.attention(case.Q, case.K, case.V, scale=case.scale)
    return compare(
        "the regressor predicts o at every eta",
        np.stack(predicted),
        np.stack([o] * len(predicted)),
        attention_budget(case.Q, case.K, case.V, case.s, case.u) + x.budget,
    )


def _loss(impl: Implementation, case: Case, x: DualCase) -> Comparison:
    """eta L(W) knows no eta. In units of the magnitude of its terms, as the loss may cancel."""
    N, number = case.N, case.arithmetic
    V, Phi, D = case.V[:N], x.Phi[:N], x.D[0]
    W = case.rng("W").standard_normal((V.shape[1], Phi.shape[1])).astype(V.dtype)
    size = float((abs(V).T @ abs(Phi) * abs(W)).sum() / abs(D)) or 1.0
    got = np.array([eta * impl.loss(W, V, Phi, D, eta) for eta in _ETAS]) / size
    v, phi, w = (number.vectors(a) for a in (V, Phi, W))
    agreement = number.sum(
        number.dot(a, [number.dot(row, f) for row in w]) for a, f in zip(v, phi, strict=True)
    )
    eta_L = -agreement / (number.number(float(D)) * number.number(size))
    depth = N + V.shape[1] + Phi.shape[1]
    return oracle.against(
        number,
        "eta L(W) = -(1/D) sum_i v_i^T W phi(k_i)",
        got[:, None],
        [[eta_L]] * len(_ETAS),
        sum_budget(np.ones((1, 1, 1)), depth + 8, case.u),
    )


def _two_rates(impl: Implementation, case: Case, x: DualCase) -> Comparison:
    """With eta_L in the loss and eta_S in the step, demonstrations count eta_S/eta_L times."""
    number, rows = case.arithmetic, case.rows[:1]
    s = oracle.scale_of(number, case.scale, case.Q.shape[-1])
    ratio = number.number(_ETA_S) / number.number(_ETA_L)
    q, k, v = (number.vectors(a) for a in (case.Q[rows], case.K, case.V))
    want = []
    for point in q:
        p = oracle.weights(number, point, k, s)
        counted = [ratio * p_i for p_i in p[: case.N]] + p[case.N :]
        want.append([number.dot(counted, column) for column in zip(*v, strict=True)])
    predicted = impl.predict(_W_1(impl, case, x, rows, _ETA_L, _ETA_S), x.phi_q[rows])
    return oracle.against(
        number,
        "W_1 phi(q) = sum_t p_t v_t + (eta_S/eta_L) sum_i p_i v_i",
        predicted,
        want,
        x.budget[rows],
    )


def _loss_without_eta(
    W: Array, values: Array, features: Array, D: npt.ArrayLike, learning_rate: float = 1.0
) -> Array:
    return dual.loss(W, values, features, D)


def _without_eta(
    values: Array, features: Array, D: npt.ArrayLike, learning_rate: float = 1.0
) -> Array:
    return dual.gradient(values, features, D)


def _with_eta(
    values: Array, features: Array, D: npt.ArrayLike, learning_rate: float = 1.0
) -> Array:
    return learning_rate * dual.gradient(values, features, D)


def _adds_epsilon(
    values: Array, features: Array, D: npt.ArrayLike, learning_rate: float = 1.0
) -> Array:
    """1/(eta + 1e-12): harmless until eta is small."""
    return dual.gradient(values, features, D, learning_rate + 1e-12)


def _clips_gradient(
    values: Array, features: Array, D: npt.ArrayLike, learning_rate: float = 1.0
) -> Array:
    """The gradient is 1/eta long: a limit on its length bites when eta is small."""
    G = dual.gradient(values, features, D, learning_rate)
    clipped: Array = G / np.maximum(1, np.linalg.norm(G, axis=(-2, -1), keepdims=True) / 1e3)
    return clipped


def _normalizes_gradient(W: Array, gradient: Array, learning_rate: float = 1.0) -> Array:
    norm = np.linalg.norm(gradient, axis=(-2, -1), keepdims=True)
    return dual.gradient_step(W, gradient / np.where(norm > 0, norm, 1), learning_rate)


def _sign_step(W: Array, gradient: Array, learning_rate: float = 1.0) -> Array:
    """The first step of Adam."""
    return dual.gradient_step(W, np.sign(gradient), learning_rate)


def _decoupled_weight_decay(W: Array, gradient: Array, learning_rate: float = 1.0) -> Array:
    return dual.gradient_step((1 - 1e-3 * learning_rate) * W, gradient, learning_rate)


def _step_without_eta(W: Array, gradient: Array, learning_rate: float = 1.0) -> Array:
    return dual.gradient_step(W, gradient)


def _float32_rate(W: Array, gradient: Array, learning_rate: float = 1.0) -> Array:
    return dual.gradient_step(W, gradient, float(np.float32(learning_rate)))


class _CapsLearningRate(OneStepRegressor):
    """The learning rate is capped at 1 where the step is taken."""

    def fit(self, keys: npt.ArrayLike, values: npt.ArrayLike, **options: Any) -> _CapsLearningRate:
        super().fit(keys, values, **options)
        step = self.coef_ - self.initial_coef_
        self.coef_ = self.initial_coef_ + step * min(1.0, 1 / self.learning_rate)
        return self


claim = Claim(
    stem="learning_rate_cancels",
    statement="L(W) = -(1/(eta D)) sum_i v_i^T W phi(k_i) carries 1/eta, so W_0 - eta grad L(W_0) "
    "is the same for every eta > 0; with eta_L in the loss and eta_S in the step, the "
    "demonstrations count eta_S/eta_L times.",
    kind=Kind.EXACT,
    needs=(
        "attention",
        "GramFeatures",
        "OneStepRegressor",
        "normalizer",
        "initial_weights",
        "loss",
        "gradient",
        "gradient_step",
        "predict",
    ),
    check=check,
    mutants=(
        mutant("loss_without_eta", "the loss carries no 1/eta", loss=_loss_without_eta),
        mutant("gradient_without_eta", "nor does the gradient", gradient=_without_eta),
        mutant("gradient_with_eta", "the gradient carries eta, not 1/eta", gradient=_with_eta),
        mutant(
            "no_eta_anywhere",
            "loss and step both ignore eta: it seems to cancel",
            gradient=_without_eta,
            gradient_step=_step_without_eta,
        ),
        mutant("adds_epsilon", "1e-12 is added to eta in the loss", gradient=_adds_epsilon),
        mutant("clips_gradient", "the gradient is cut to a length", gradient=_clips_gradient),
        mutant(
            "normalizes_gradient",
            "the step has length eta, whatever the gradient",
            gradient_step=_normalizes_gradient,
        ),
        mutant("sign_step", "each entry moves by eta", gradient_step=_sign_step),
        mutant(
            "decoupled_weight_decay",
            "weights also decay by 1e-3 eta",
            gradient_step=_decoupled_weight_decay,
        ),
        mutant(
            "caps_learning_rate",
            "the regressor steps by at most 1",
            OneStepRegressor=_CapsLearningRate,
        ),
        mutant(
            "float32_learning_rate",
            "the step's eta is rounded to float32, the loss's is not",
            gradient_step=_float32_rate,
        ),
    ),
    assumptions="As one_gradient_step. A weight decay that carries no 1/eta brings eta back.",
    budget="entry by entry 2 gamma_(n+8) sum_j |v_j||phi(k_j)| / D for the weights; the dual's "
    "budget for what they predict.",
    code="equivalence/dual.py",
    on_heads=True,
)
