"""Least-squares and logistic steps are attention from W_0 = 0, and from elsewhere off by a sum."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from equivalence import dual, losses
from equivalence._arrays import Array
from equivalence.verify import oracle
from equivalence.verify.budgets import (
    Budget,
    attention_budget,
    dual_budget,
    gamma,
    unit_roundoff,
)
from equivalence.verify.cases import Case
from equivalence.verify.claim import Claim, Kind, Mutant
from equivalence.verify.compare import Comparison, Refutation, compare, refute
from equivalence.verify.dual_case import DualCase, exponent_error, on_one_scale, scaled
from equivalence.verify.forward_mode import Moving, forward
from equivalence.verify.implementation import Implementation

# Any positive eta and D give the same step; powers of two would hide their rounding.
_ETA, _D = 0.3, 0.7
# Outputs do not mix: these many of a real head's 32 are as good as all of them.
_OUTPUTS = 4
# A batch of any size has a loss; a derivative of its definition is dear.
_BATCH = 6


@dataclass(frozen=True)
class _Loss:
    """A loss of outputs f with values v, by definition; z(f) is what its residual v - z expects."""

    name: str
    of_output: Callable[[oracle.Arithmetic, oracle.Number, oracle.Number], oracle.Number]
    expected: Callable[[oracle.Arithmetic, oracle.Number], oracle.Number]
    near: Callable[[Array, Array, float], tuple[Array, Array]]
    """z in floats, and how far it may be off where f may be."""

    def loss(self, impl: Implementation) -> Callable[..., Array]:
        """The implementation's loss of that name."""
        return getattr(impl, f"{self.name}_loss")  # type: ignore[no-any-return]

    def gradient(self, impl: Implementation) -> Callable[..., Array]:
        """The implementation's gradient of that name."""
        return getattr(impl, f"{self.name}_gradient")  # type: ignore[no-any-return]


def _square(number: oracle.Arithmetic, f: oracle.Number, v: oracle.Number) -> oracle.Number:
    return (f - v) * (f - v) / number.number(2.0)


def _itself(number: oracle.Arithmetic, f: oracle.Number) -> oracle.Number:
    return f


def _near_itself(F: Array, error: Array, u: float) -> tuple[Array, Array]:
    return F, error


def _cross_entropy(number: oracle.Arithmetic, f: oracle.Number, v: oracle.Number) -> oracle.Number:
    """Twice -y log sigma(f) - (1 - y) log sigma(-f) with the label y = (1 + v)/2."""
    one = number.number(1.0)
    yes, no = one / (number.exp(-f) + one), one / (number.exp(f) + one)
    return -((one + v) * number.log(yes) + (one - v) * number.log(no))


def _tanh_of_half(number: oracle.Arithmetic, f: oracle.Number) -> oracle.Number:
    """tanh(f/2) = 2 sigma(f) - 1, by the exponential that does not overflow."""
    one, negative = number.number(1.0), float(f) < 0
    small = number.exp(f if negative else -f)
    return (small - one if negative else one - small) / (one + small)


def _near_tanh_of_half(F: Array, error: Array, u: float) -> tuple[Array, Array]:
    """The slope of tanh is largest at the end nearer to 0; np.tanh is assumed good to 4 ulp."""
    Z = np.tanh(F / 2)
    nearest = np.tanh(np.maximum(abs(F) - error, 0) / 2)
    return Z, error / 2 * (1 - nearest**2) + 8 * u * abs(Z)


_LOSSES = (
    _Loss("least_squares", _square, _itself, _near_itself),
    _Loss("logistic", _cross_entropy, _tanh_of_half, _near_tanh_of_half),
)


def check(impl: Implementation, case: Case) -> Iterator[Comparison | Refutation]:
    """The step from zero, the step from the query-side tokens' W_0, and what the losses are."""
    V = case.V[:, :_OUTPUTS]
    x = _one_map(impl, case, V)
    o = impl.attention(case.Q, case.K, V, scale=case.scale)
    budget = x.budget + attention_budget(case.Q, case.K, V, case.s, case.u)
    rows = case.rows
    exact = [_outputs_of_W_0(case.arithmetic, x, V, case.N, row) for row in rows]
    for loss in _LOSSES:
        name, gradient = loss.name.replace("_", "-"), loss.gradient(impl)
        W_0 = np.zeros((V.shape[1], x.Phi.shape[1]), V.dtype)
        slope = gradient(W_0, V, x.Phi, x.D, _ETA)
        prediction = impl.predict(impl.gradient_step(W_0, slope, _ETA), x.phi_q)
        yield compare(f"from W_0 = 0 a {name} step predicts o", prediction, o, budget)
        got, straight, off = _from_query_side(impl, case, x, V, loss)
        yield oracle.against(
            case.arithmetic,
            f"from W_0 a {name} step is off by -(1/D) sum_i z_i phi(k_i)^T",
            (got - straight)[rows],
            [_failure(case.arithmetic, loss, p, F, V.shape[1]) for p, F in exact],
            off[rows],
        )
        # In float32 a small case may, by chance, fail by less than a thousand budgets.
        if 0 < case.N < len(V) and case.u == unit_roundoff("float64"):
            yield refute(f"from any W_0 a {name} step predicts o", got, o, budget + off)
        if not case.real:
            yield _definition(impl, case, x.Phi, loss)


def _one_map(impl: Implementation, case: Case, V: Array) -> DualCase:
    """Features of keys and queries on one scale, because here the query's does not cancel.

    W_0 phi(k_i) divides by D(q), so a scale of phi(q) alone would change what W_0 expects.
    """
    Q, K = scaled(case)
    phi = impl.GramFeatures().fit(K)
    at_keys, at_queries = phi(K), phi(Q)
    Phi = on_one_scale(at_keys)
    relative = np.exp(at_queries.log_scale - at_keys.log_scale.max())
    phi_q = at_queries.features * relative[:, None]
    budget = dual_budget(Phi, phi_q, V, exponent_error(case, case.u), case.u)
    return DualCase(Phi, phi_q, impl.normalizer(Phi, phi_q), budget)


def _from_query_side(
    impl: Implementation, case: Case, x: DualCase, V: Array, loss: _Loss
) -> tuple[Array, Array, Budget]:
    """Predictions of the loss's step and of the dual's, and the budget of their difference."""
    seen, given = slice(None, case.N), slice(case.N, None)
    W_0 = impl.initial_weights(V[given], x.Phi[given], x.D)
    slope = loss.gradient(impl)(W_0, V[seen], x.Phi[seen], x.D, _ETA)
    plain = impl.gradient(V[seen], x.Phi[seen], x.D, _ETA)
    got, straight = (
        impl.predict(impl.gradient_step(W_0, G, _ETA), x.phi_q) for G in (slope, plain)
    )
    return got, straight, _failure_budget(loss, x, V, case.N, case.u)


def _outputs_of_W_0(
    number: oracle.Arithmetic, x: DualCase, V: Array, N: int, row: int
) -> tuple[oracle.Vector, list[oracle.Vector]]:
    """p_i = phi(k_i).phi(q)/D, and f_i = W_0 phi(k_i) = (1/D) sum_t v_t phi(k_t).phi(k_i).

    D is taken as it was computed: the algebra is exact for any number.
    """
    if N == 0:
        return [], []
    v, phi, phi_q = (number.vectors(a) for a in (V, x.Phi, x.phi_q[row : row + 1]))
    D = number.number(float(x.D[row]))
    p = [kappa / D for (kappa,) in number.dots(phi[:N], phi_q)]
    if len(phi) == N:
        return p, [[number.number(0.0)] * V.shape[1]] * N
    columns = list(zip(*v[N:], strict=True))
    F = number.dots(number.dots(phi[:N], phi[N:]), columns)
    return p, [[f / D for f in fs] for fs in F]


def _failure(
    number: oracle.Arithmetic,
    loss: _Loss,
    p: oracle.Vector,
    F: list[oracle.Vector],
    n_outputs: int,
) -> list[oracle.Number]:
    """-sum_i p_i z(f_i) of each output: the values lose what W_0 expects of them."""
    return [
        -number.sum(a * loss.expected(number, f[r]) for a, f in zip(p, F, strict=True))
        for r in range(n_outputs)
    ]


def _failure_budget(loss: _Loss, x: DualCase, V: Array, N: int, u: float) -> Budget:
    """The error of a difference of two predictions, each a sum of the terms added up here."""
    n, m = x.Phi.shape
    V, Phi, phi_q, D = (np.asarray(a, np.float64) for a in (V, x.Phi, x.phi_q, x.D))
    p = abs(phi_q) @ abs(Phi).T / abs(D)[:, None]
    depth = gamma(n + 2 * m + 10, u)
    F = (Phi[:N] @ Phi[N:].T @ V[N:]) / D[:, None, None]
    size = (abs(Phi[:N]) @ abs(Phi[N:]).T @ abs(V[N:])) / abs(D)[:, None, None]
    Z, moved = loss.near(F, depth * size, u)
    expected, off = (np.einsum("qi,qic->qc", p[:, :N], a) for a in (abs(Z), moved))
    return Budget(
        2 * depth * (p @ abs(V) + expected) + off,
        f"W_0, what it expects and the step sum n={n} tokens over m={m} features, "
        "gamma_(n+2m) (Higham 2002, sec. 3.1), in both predictions",
        u,
    )


def _definition(impl: Implementation, case: Case, Phi: Array, loss: _Loss) -> Comparison:
    """The loss at W, and <grad L(W), E>: both by the definition of the loss, as W + t E moves."""
    batch = case.rng("batch").permutation(len(Phi))[:_BATCH]
    V, Phi, u, number = case.V[batch], Phi[batch], case.u, case.arithmetic
    W, E = case.rng("W").standard_normal((2, V.shape[1], Phi.shape[1])).astype(V.dtype)
    at_W = loss.loss(impl)(W, V, Phi, _D, _ETA)
    slope = (loss.gradient(impl)(W, V, Phi, _D, _ETA) * E).sum()
    w, e, v, phi = (number.vectors(a) for a in (W, E, V, Phi))
    total = forward(number).sum(
        loss.of_output(forward(number), Moving(number.dot(a, f), number.dot(b, f)), y)
        for f, labels in zip(phi, v, strict=True)
        for a, b, y in zip(w, e, labels, strict=True)
    )
    bounds, sizes = _definition_errors(loss, W, E, V, Phi, u)
    eta_D = number.number(_ETA) * number.number(_D)
    return oracle.against(
        number,
        f"the {loss.name.replace('_', '-')} loss and its slope along E",
        np.array([at_W, slope])[:, None] / sizes,
        [
            [part / (eta_D * number.number(size))]
            for part, size in zip((total.value, total.slope), sizes[:, 0].tolist(), strict=True)
        ],
        Budget(bounds / sizes, "f errs by gamma_m |W||phi|, sums by gamma_n", u),
    )


def _definition_errors(
    loss: _Loss, W: Array, E: Array, V: Array, Phi: Array, u: float
) -> tuple[Array, Array]:
    """How far loss and slope may be off, and the sizes of their terms: (2, 1) each.

    An output's loss has slope z - v and a curvature of at most 1; it is below (1 + |v| + |f|)^2,
    twice, and its exponentials and logarithms are good to 4 ulp.
    """
    W, E, V, Phi = (a.astype(np.float64) for a in (W, E, V, Phi))
    error = gamma(Phi.shape[1], u) * (abs(Phi) @ abs(W).T)
    F, reach = Phi @ W.T, abs(Phi) @ abs(E).T
    Z, moved = loss.near(F, error, u)
    residual, size = abs(V) + abs(Z), 2 * (1 + abs(V) + abs(F)) ** 2
    depth = gamma(F.size + W.size + Phi.shape[1] + 24, u)
    errors = (residual * error + error**2 + depth * size, moved * reach + depth * residual * reach)
    terms = size, residual * reach
    bounds, sizes = (np.array([[a.sum()] for a in pair]) / (_ETA * _D) for pair in (errors, terms))
    return bounds, np.where(sizes > 0, sizes, 1.0)


def _with_values(values: Callable[[Array, Array], Array]) -> Callable[..., Array]:
    """The dual's gradient with values that depend on the outputs F and the values V."""

    def gradient(W: Array, V: Array, Phi: Array, D: npt.ArrayLike, eta: float = 1.0) -> Array:
        F = Phi @ np.swapaxes(W, -1, -2)
        return dual.gradient(values(F, V), Phi, D, eta)

    return gradient


def _margin(F: Array, V: Array) -> Array:
    """The gradient of 2 log(1 + e^(-v f)): that of cross-entropy where v is 1 or -1."""
    values: Array = V * (1 - np.tanh(V * F / 2))
    return values


def _softmax_of_outputs(F: Array, V: Array) -> Array:
    """Cross-entropy of one softmax over the outputs, its mean taken out to agree at 0."""
    kappa = np.exp(F - F.max(axis=-1, keepdims=True))
    values: Array = V - kappa / kappa.sum(axis=-1, keepdims=True) + 1 / F.dtype.type(F.shape[-1])
    return values


def _doubled(W: Array, V: Array, Phi: Array, D: npt.ArrayLike, eta: float = 1.0) -> Array:
    return 2 * losses.least_squares_gradient(W, V, Phi, D, eta)


def _curvature_without_D(
    W: Array, V: Array, Phi: Array, D: npt.ArrayLike, eta: float = 1.0
) -> Array:
    curvature = dual.gradient(Phi @ np.swapaxes(W, -1, -2), Phi, np.ones_like(D), eta)
    return dual.gradient(V, Phi, D, eta) - curvature


def _whole_square(W: Array, V: Array, Phi: Array, D: npt.ArrayLike, eta: float = 1.0) -> Array:
    total: Array = 2 * losses.least_squares_loss(W, V, Phi, D, eta)
    return total


def _single_cross_entropy(
    W: Array, V: Array, Phi: Array, D: npt.ArrayLike, eta: float = 1.0
) -> Array:
    total: Array = losses.logistic_loss(W, V, Phi, D, eta) / 2
    return total


def _float32(W: Array, V: Array, Phi: Array, D: npt.ArrayLike, eta: float = 1.0) -> Array:
    W_32, V_32, Phi_32, D_32 = (np.asarray(a, np.float32) for a in (W, V, Phi, D))
    return losses.least_squares_gradient(W_32, V_32, Phi_32, D_32, eta).astype(W.dtype)


def _float32_sigmoid(F: Array, V: Array) -> Array:
    return V - np.tanh(F.astype(np.float32) / 2).astype(F.dtype)


def _least_squares(name: str, defect: str, gradient: Any) -> Mutant:
    return Mutant(name, defect, {"least_squares_gradient": gradient})


def _logistic(name: str, defect: str, values: Callable[[Array, Array], Array]) -> Mutant:
    return Mutant(name, defect, {"logistic_gradient": _with_values(values)})


claim = Claim(
    stem="losses_agree_only_at_zero",
    statement="From W_0 = 0 a least-squares or logistic step is the dual's step, and predicts o. "
    "From another W_0 it differs by exactly -(1/D) sum_i z_i phi(k_i)^T, z_i = W_0 phi(k_i) for "
    "least squares and tanh(W_0 phi(k_i)/2) for logistic.",
    kind=Kind.CAVEAT,
    tempting="A least-squares or a logistic step from any W_0 gives attention's output too.",
    needs=(
        "attention",
        "GramFeatures",
        "gradient",
        "gradient_step",
        "initial_weights",
        "least_squares_gradient",
        "least_squares_loss",
        "logistic_gradient",
        "logistic_loss",
        "normalizer",
        "predict",
    ),
    check=check,
    mutants=(
        _least_squares("no_residual", "the gradient at 0 at every W", _with_values(lambda F, V: V)),
        _least_squares(
            "added_outputs", "the residual is v + W phi", _with_values(lambda F, V: V + F)
        ),
        _least_squares("doubled", "the loss's 1/2 is left out of its gradient", _doubled),
        _least_squares(
            "curvature_without_D", "1/D is missing before W phi phi^T", _curvature_without_D
        ),
        _logistic("whole_output", "tanh(f) for tanh(f/2)", lambda F, V: V - np.tanh(F)),
        _logistic(
            "labels_of_0_and_1",
            "the residual is v - sigma(f), as if v were a label 0 or 1",
            lambda F, V: V - (1 + np.tanh(F / 2)) / 2,
        ),
        _logistic("margin", "values that are no labels scale the output, too", _margin),
        _logistic("softmax_of_outputs", "the outputs share one softmax", _softmax_of_outputs),
        _logistic("linearised", "tanh(f/2) is replaced by f/2", lambda F, V: V - F / 2),
        Mutant("whole_square", "the loss has no 1/2", {"least_squares_loss": _whole_square}),
        Mutant("half_logistic", "the loss has no 2", {"logistic_loss": _single_cross_entropy}),
        _least_squares("float32_least_squares", "the gradient is computed in float32", _float32),
        _logistic("float32_sigmoid", "tanh is computed in float32", _float32_sigmoid),
    ),
    assumptions="phi(x).phi(y) is the kernel that attention uses, with one phi for keys and "
    "queries; both losses carry 1/(eta D), the logistic one twice the cross-entropy with labels "
    "(1 + v)/2 in each output. Any loss with output-gradient -v_i/(eta D) at W_0 gives the dual's "
    "step.",
    budget="attention's and the dual's of one_gradient_step, and gamma_(n+2m) of what the step and "
    "W_0 add up; through tanh with its slope.",
    code="equivalence/losses.py",
    on_heads=True,
)
