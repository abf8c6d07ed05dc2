"""One gradient step on the dual model predicts what softmax attention computes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from equivalence import OneStepRegressor, dual
from equivalence._arrays import Array
from equivalence.features import Features, GramFeatures
from equivalence.verify import oracle
from equivalence.verify.budgets import (
    Budget,
    attention_budget,
    dual_budget,
    normalizer_budget,
    sum_budget,
)
from equivalence.verify.cases import Case
from equivalence.verify.claim import Claim, Kind, mutant
from equivalence.verify.compare import Comparison, compare
from equivalence.verify.dual_case import DualCase, exponent_error, on_one_scale, scaled, see_dual
from equivalence.verify.implementation import Implementation

# Any positive learning rate gives the same step; a power of two would hide its rounding.
_ETA = 0.3


def check(impl: Implementation, case: Case) -> Iterator[Comparison]:
    """The step written out, the regressor, the loss it descends, and another feature map."""
    dual_case = see_dual(impl, case)
    o = impl.attention(case.Q, case.K, case.V, scale=case.scale)
    both = attention_budget(case.Q, case.K, case.V, case.s, case.u) + dual_case.budget
    prediction = _one_step(impl, case, dual_case)
    yield compare("W_1 phi(q) = o, step by step", prediction, o, both)
    yield _by_definition(case, prediction, dual_case.budget)
    model = impl.OneStepRegressor(scale=case.scale, learning_rate=_ETA)
    model.fit(case.K, case.V, n_demonstrations=case.N)
    yield compare("OneStepRegressor predicts o", model.predict(case.Q), o, both)
    yield _normalizer(case, model.log_normalizer(case.Q), dual_case)
    yield from _descent(impl, case, dual_case)
    if not case.real:
        yield _any_feature_map(impl, case)


def _one_step(impl: Implementation, case: Case, x: DualCase) -> Array:
    seen, given = slice(None, case.N), slice(case.N, None)
    W_0 = impl.initial_weights(case.V[given], x.Phi[given], x.D)
    slope = impl.gradient(case.V[seen], x.Phi[seen], x.D, _ETA)
    W_1 = impl.gradient_step(W_0, slope, _ETA)
    prediction: Array = impl.predict(W_1, x.phi_q)
    return prediction


def _by_definition(case: Case, prediction: Array, budget: Budget) -> Comparison:
    number, rows = case.arithmetic, case.rows
    s = oracle.scale_of(number, case.scale, case.Q.shape[-1])
    q, k, v = (number.vectors(x) for x in (case.Q[rows], case.K, case.V))
    want = [oracle.attention(number, x, k, v, s) for x in q]
    return oracle.against(
        number, "W_1 phi(q) = sum_j kappa_j v_j / D", prediction[rows], want, budget[rows]
    )


def _normalizer(case: Case, log_D: Array, x: DualCase) -> Comparison:
    """D(q) = sum_j exp(s q.k_j), as the sum of exp(s q.k_j - log D) = 1."""
    number, rows, u = case.arithmetic, case.rows, case.u
    s = oracle.scale_of(number, case.scale, case.Q.shape[-1])
    q, k, L = (number.vectors(a) for a in (case.Q[rows], case.K, log_D[rows][:, None]))
    want = [
        [number.sum(number.exp(s * number.dot(a, b) - log[0]) for b in k)]
        for a, log in zip(q, L, strict=True)
    ]
    D = normalizer_budget(x.Phi, x.phi_q, exponent_error(case, u), u)
    norms = sum((a.astype(np.float64) ** 2).sum(axis=-1).max() for a in scaled(case))
    bound = np.expm1(D.bound + 8 * u * (1 + abs(log_D) + norms))
    budget = Budget(bound[:, None], D.because + "; log D by 8u (1 + |log D| + |q|^2 + |k|^2)", u)
    one = np.ones((len(rows), 1), case.Q.dtype)
    return oracle.against(number, "D(q) = sum_j exp(s q.k_j)", one, want, budget[rows])


def _descent(impl: Implementation, case: Case, x: DualCase) -> Iterator[Comparison]:
    """The loss is what it is said to be, and the gradient is its gradient.

    Both sides are divided by the magnitude of the terms of the loss, which may cancel.
    """
    N, u = case.N, case.u
    Phi, V, D = x.Phi[:N], case.V[:N], x.D[0]
    W, E = case.rng("W").standard_normal((2, V.shape[1], Phi.shape[1])).astype(V.dtype)
    terms = abs(V).T @ abs(Phi) / (_ETA * abs(D))
    size = float((terms * (abs(W) + abs(E))).sum()) or 1.0
    depth = N + V.shape[1] + Phi.shape[1]
    budget = sum_budget(np.ones((1, 1, 1)), 2 * depth + 8, u)
    number = case.arithmetic
    v, phi, w, (eta_D,) = (number.vectors(a) for a in (V, Phi, W, np.array([[_ETA, D]])))
    total = number.sum(
        number.dot(a, W_f) for a, W_f in zip(v, number.dots(phi, w) if v else [], strict=True)
    )
    at_W = impl.loss(W, V, Phi, D, _ETA)
    yield oracle.against(
        number,
        "L(W) = -(1/(eta D)) sum_i v_i^T W phi(k_i)",
        np.reshape(at_W / size, (1, 1)),
        [[-total / (eta_D[0] * eta_D[1] * number.number(size))]],
        budget,
    )
    slope = impl.gradient(V, Phi, D, _ETA)
    difference = (impl.loss(W + E, V, Phi, D, _ETA) - at_W) / size
    yield compare(
        "L(W + E) - L(W) = <grad L, E>",
        np.reshape(difference, (1, 1)),
        np.reshape((slope * E).sum() / size, (1, 1)),
        budget.times(3),
    )


def _any_feature_map(impl: Implementation, case: Case) -> Comparison:
    """With random features too, the step predicts the attention built from the same features."""
    Q, K = scaled(case)
    phi = impl.PositiveFeatures.sample(K.shape[1], 7, rng=case.rng("projections"))
    Phi, phi_q = on_one_scale(phi(K)), phi(Q).features
    model = impl.OneStepRegressor(phi, scale=case.scale, learning_rate=_ETA)
    model.fit(case.K, case.V, n_demonstrations=case.N)
    number = case.arithmetic
    f_k, f_q, v = (number.vectors(a) for a in (Phi, phi_q, case.V))
    want = []
    for f in f_q:
        kappa = [number.dot(f, g) for g in f_k]
        D = number.sum(kappa)
        want.append([number.dot(kappa, column) / D for column in zip(*v, strict=True)])
    shift = np.full((len(Q), len(K)), 8 * case.u * (1 + abs(phi(K).log_scale).max()))
    return oracle.against(
        number,
        "with any feature map, W_1 phi(q) is the attention built from it",
        model.predict(case.Q),
        want,
        dual_budget(Phi, phi_q, case.V, shift, case.u),
    )


class _Squeezed(GramFeatures):
    """Features of exp(-|x-y|^2/2): the Gaussian kernel, its weights lost."""

    def __call__(self, x: npt.ArrayLike) -> Features:
        features, log_scale = super().__call__(x)
        return Features(features, np.zeros_like(log_scale))


def _only_demonstrations(key_features: Array, query_features: Array) -> Array:
    return dual.normalizer(key_features[: max(1, len(key_features) - 1)], query_features)


def _first_query(key_features: Array, query_features: Array) -> Array:
    return dual.normalizer(key_features, query_features)[:1].repeat(len(query_features))


def _reshaped_outer_product(
    values: Array, features: Array, D: npt.ArrayLike, learning_rate: float = 1.0
) -> Array:
    G = dual.gradient(values, features, D, learning_rate)
    return np.swapaxes(G, -1, -2).reshape(G.shape)


def _no_query_side(values: Array, features: Array, D: npt.ArrayLike) -> Array:
    return 0 * dual.initial_weights(values, features, D)


def _ascends(W: Array, gradient: Array, learning_rate: float = 1.0) -> Array:
    return W + learning_rate * gradient


def _eta_twice(W: Array, gradient: Array, learning_rate: float = 1.0) -> Array:
    return W - learning_rate**2 * gradient


def _loss_without_eta(
    values: Array, features: Array, D: npt.ArrayLike, learning_rate: float = 1.0
) -> Array:
    return dual.gradient(values, features, D)


def _mean_over_demonstrations(
    values: Array, features: Array, D: npt.ArrayLike, learning_rate: float = 1.0
) -> Array:
    slope: Array = dual.gradient(values, features, D, learning_rate) / max(1, values.shape[-2])
    return slope


def _half_loss(
    W: Array, values: Array, features: Array, D: npt.ArrayLike, learning_rate: float = 1.0
) -> Array:
    return dual.loss(W, values, features, D, learning_rate) / 2


def _float32(W: Array, query_features: Array) -> Array:
    single = dual.predict(W.astype(np.float32), query_features.astype(np.float32))
    return single.astype(W.dtype)


class _ForgetsInitialWeights(OneStepRegressor):
    def fit(
        self, keys: npt.ArrayLike, values: npt.ArrayLike, **options: Any
    ) -> _ForgetsInitialWeights:
        super().fit(keys, values, **options)
        self.coef_ = self.coef_ - self.initial_coef_
        return self


claim = Claim(
    stem="one_gradient_step",
    statement="From W_0 = (1/D) sum_t v_t phi(k_t)^T, one gradient step on "
    "L(W) = -(1/(eta D)) sum_i v_i^T W phi(k_i) gives W_1 phi(q) = o, the attention output.",
    kind=Kind.EXACT,
    needs=("attention", "GramFeatures", "OneStepRegressor"),
    check=check,
    mutants=(
        mutant(
            "wrong_kernel",
            "features of the Gaussian kernel instead of exp(x.y)",
            GramFeatures=_Squeezed,
        ),
        mutant(
            "D_of_demonstrations",
            "D leaves out the query's own token",
            normalizer=_only_demonstrations,
        ),
        mutant("D_of_first_query", "one D for all queries", normalizer=_first_query),
        mutant(
            "transposed_outer_product", "phi v^T read as v phi^T", gradient=_reshaped_outer_product
        ),
        mutant(
            "no_query_side_tokens",
            "W_0 = 0 whatever the query-side tokens",
            initial_weights=_no_query_side,
        ),
        mutant(
            "regressor_without_W_0",
            "the fitted regressor drops W_0",
            OneStepRegressor=_ForgetsInitialWeights,
        ),
        mutant("ascends", "the step has the wrong sign", gradient_step=_ascends),
        mutant("eta_twice", "the step is scaled by eta twice", gradient_step=_eta_twice),
        mutant(
            "gradient_without_eta",
            "the loss's 1/eta is left out of its gradient",
            gradient=_loss_without_eta,
        ),
        mutant(
            "mean_over_demonstrations",
            "the gradient is averaged over N",
            gradient=_mean_over_demonstrations,
        ),
        mutant("half_loss", "the loss has a factor 1/2", loss=_half_loss),
        mutant("float32_prediction", "the read-out is computed in float32", predict=_float32),
    ),
    assumptions="phi(x).phi(y) is the kernel that attention uses, D(q) > 0, eta > 0; softmax "
    "itself with gram_features; in the limit of many features with random ones.",
    budget="attention's budget plus gamma_(n+3m) sum_j |phi(k_j)|.|phi(q)| "
    "(|v_j| + sum_i p_i |v_i|) / D.",
    code="equivalence/dual.py",
    on_heads=True,
)
