"""The derivatives of attention, and what the dual's derivative needs: D differentiated too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from equivalence._arrays import Array
from equivalence.attention import attention, attention_weights
from equivalence.backward import AttentionGradients, attention_backward
from equivalence.dual import OneStepRegressor
from equivalence.gradients import AttentionJacobians, attention_jacobians, dual_jacobian
from equivalence.verify import oracle
from equivalence.verify.budgets import Budget, attention_budget, gamma, sum_budget
from equivalence.verify.cases import Case
from equivalence.verify.claim import Claim, Kind, Mutant
from equivalence.verify.compare import Comparison, compare
from equivalence.verify.dual_case import exponent_error, on_one_scale, scaled
from equivalence.verify.forward_mode import forward, moving, slopes, still
from equivalence.verify.gradient_budgets import (
    JacobianBudgets,
    backward_budgets,
    dual_jacobian_budgets,
    jacobian_budgets,
)
from equivalence.verify.implementation import Implementation
from equivalence.verify.oracle import Arithmetic, Number, Vector


def check(impl: Implementation, case: Case) -> Iterator[Comparison]:
    """The definition differentiated, the dual differentiated, and the identities between them."""
    if case.real:  # queries do not mix, and a third of them keeps the check fast
        case = replace(case, Q=case.Q[::3])
    by = impl.attention_jacobians(case.Q, case.K, case.V, scale=case.scale)
    budgets = jacobian_budgets(case.Q, case.K, case.V, case.s, case.u)
    model = OneStepRegressor(scale=case.scale).fit(case.K, case.V, n_demonstrations=case.N)
    dual = impl.dual_jacobian(model, case.Q)
    frozen = impl.dual_jacobian(model, case.Q, freeze_normalizer=True)
    dual_budget, frozen_budget = _dual_budgets(case, model.feature_map_)
    unit = _unit(case, case.K)
    yield compare(
        "the dual's derivative is do/dq",
        dual / unit,
        by.query / unit,
        (dual_budget + budgets.query).times(1 / unit),
    )
    yield from _outputs(impl, case, by, frozen - dual, dual_budget + frozen_budget)
    yield from _by_definition(case, by, budgets, frozen, frozen_budget)
    yield from _identities(case, by, budgets)
    yield from _reverse_mode(impl, case, by, budgets)


def _unit(case: Case, moved: Array) -> float:
    """The size of s p_j v_j times what moves the scores: sums of such terms cancel."""
    return max(1.0, abs(case.s) * float(abs(moved).max()) * float(abs(case.V).max()))


def _dual_budgets(case: Case, phi: Any) -> tuple[Budget, Budget]:
    Q, K = scaled(case)
    whole, frozen = dual_jacobian_budgets(
        on_one_scale(phi(K)),
        phi(Q).features,
        phi.jacobian(Q),
        K,
        case.V,
        exponent_error(case, case.u),
        case.u,
    )
    # The derivative by q is the root of the scale times that by the scaled query.
    return whole.times(np.sqrt(case.s)), frozen.times(np.sqrt(case.s))


def _outputs(
    impl: Implementation, case: Case, by: AttentionJacobians, excess: Array, budget: Budget
) -> Iterator[Comparison]:
    """What is said about o and kbar, the attention outputs of the values and of the keys."""
    K, V, s, u, c = case.K, case.V, case.s, case.u, case.V.shape[-1]
    both = np.concatenate([V, K], axis=-1)
    output = impl.attention(case.Q, K, both, scale=case.scale)
    error = attention_budget(case.Q, K, both, s, u)
    o, kbar = output[:, :c, None], output[:, None, c:]
    o_error, kbar_error = error.bound[:, :c, None], error.bound[:, None, c:]
    unit = _unit(case, K)
    product = abs(o) * kbar_error + o_error * (abs(kbar) + kbar_error) + gamma(6, u) * abs(o * kbar)
    yield compare(
        "with D frozen, s o kbar^T is too much",
        excess / unit,
        s * o.astype(np.float64) * kbar / unit,
        (budget + Budget(abs(s) * product, "o and kbar err as attention does", u)).times(1 / unit),
    )
    yield compare(
        "sum_j (do/dv_j) v_j = o", by.value @ V, output[:, :c], error[:, :c] + error[:, :c]
    )


def _by_definition(
    case: Case,
    by: AttentionJacobians,
    budgets: JacobianBudgets,
    frozen: Array,
    frozen_budget: Budget,
) -> Iterator[Comparison]:
    """Entries of every derivative, against the definition differentiated in scalar arithmetic."""
    i, j, a, r, outputs = _entries(case)
    number, ahead = case.arithmetic, forward(case.arithmetic)
    q, k, v = (number.vectors(x) for x in (case.Q[i], case.K, case.V[:, outputs]))
    s = oracle.scale_of(number, case.scale, case.Q.shape[-1])

    def one_moving(rows: list[list[Number]], row: int, entry: int) -> list[Vector]:
        return [moving(number, x, entry) if at == row else x for at, x in enumerate(rows)]

    def slope(x: Vector, keys: Sequence[Vector], values: Sequence[Vector]) -> list[Number]:
        return slopes(number, oracle.attention(ahead, x, keys, values, s))

    moved_q = [moving(number, x, at) for x, at in zip(q, a, strict=True)]
    moved_k = [one_moving(k, *at) for at in zip(j, a, strict=True)]
    moved_v = [one_moving(v, *at) for at in zip(j, r, strict=True)]
    q_a, unit = case.Q[i, a][:, None], np.eye(len(outputs), dtype=case.V.dtype)[r]
    column = (i[:, None], outputs, a[:, None])
    factor = (i[:, None], j[:, None], outputs)
    for what, got, want, budget in (
        ("do/dq", by.query[column], [slope(x, k, v) for x in moved_q], budgets.query[column]),
        (
            "do/dk_j = key_j q^T",
            by.key[factor] * q_a,
            [slope(*x, v) for x in zip(q, moved_k, strict=True)],
            budgets.key[factor].times(abs(q_a)),
        ),
        (
            "do/dv_j = p_j I",
            by.value[i, j][:, None] * unit,
            [slope(x, k, y) for x, y in zip(q, moved_v, strict=True)],
            budgets.value[i, j][:, None].times(unit),
        ),
        (
            "W_1 phi'(q), of which D stands still",
            frozen[column],
            [slopes(number, _frozen(ahead, x, k, v, s)) for x in moved_q],
            frozen_budget[column],
        ),
    ):
        yield oracle.against(number, what, got, want, budget)


def _entries(case: Case) -> tuple[npt.NDArray[np.intp], ...]:
    """Queries i, keys or values j, coordinates a, and outputs, the r-th of which moves."""
    rng, (n, c), d = case.rng("entries"), case.V.shape, case.Q.shape[-1]
    outputs = np.sort(rng.permutation(c)[:2]) if case.real else np.arange(c)
    i = case.rows[:1] if case.real else np.tile(case.rows, 2)
    j, a, r = (rng.integers(0, size, len(i)) for size in (n, d, len(outputs)))
    return i, j, a, r, outputs


def _frozen(
    ahead: Arithmetic, q: Vector, K: Sequence[Vector], V: Sequence[Vector], scale: Number
) -> list[Number]:
    """sum_j kappa_j v_j / D, of which D stands still."""
    scores = [scale * ahead.dot(q, k) for k in K]
    top = still(max(scores, key=float))
    kappa = [ahead.exp(x - top) for x in scores]
    D = still(ahead.sum(kappa))
    return [ahead.dot(kappa, column) / D for column in zip(*V, strict=True)]


def _identities(
    case: Case, by: AttentionJacobians, budgets: JacobianBudgets
) -> Iterator[Comparison]:
    """What one vector added to all keys, and a factor of the scores or of the values, do to o."""
    Q, K, V, u = case.Q, case.K, case.V, case.u
    n, d = K.shape
    p, key = by.value, by.key.astype(np.float64)
    yield compare("sum_j do/dv_j = I", p.sum(-1), np.ones(len(Q)), sum_budget(p, 2 * n + 2, u))
    in_all = Budget(budgets.key.bound.sum(axis=1), "of each key: " + budgets.key.because, u)
    yield compare(
        "sum_j do/dk_j = 0: one vector added to all keys changes nothing",
        key.sum(axis=1),
        np.zeros((len(Q), V.shape[-1])),
        in_all + sum_budget(key, n, u, axis=1),
    )
    scores = abs(Q).astype(np.float64) @ abs(K).T
    by_q, by_k = abs(by.query) @ abs(Q)[..., None], scores[:, None] @ abs(key)
    moved = budgets.query.bound @ abs(Q)[..., None] + np.swapaxes(
        scores[:, None] @ budgets.key.bound, -1, -2
    )
    rounding = gamma(n + d + 2, u) * (by_q + np.swapaxes(by_k, -1, -2))
    unit = _unit(case, scores)
    yield compare(
        "(do/dq) q = sum_j (do/dk_j) k_j: both scale the scores",
        np.einsum("qcd,qd->qc", by.query, Q) / unit,
        np.einsum("qnc,qn->qc", key, Q.astype(np.float64) @ K.T) / unit,
        Budget((moved + rounding)[..., 0] / unit, budgets.query.because, u),
    )


def _reverse_mode(
    impl: Implementation, case: Case, by: AttentionJacobians, budgets: JacobianBudgets
) -> Iterator[Comparison]:
    """The gradients from that by the output, g, are the Jacobians times g."""
    Q, K, V, u = case.Q, case.K, case.V, case.u
    g = case.rng("g").standard_normal((len(Q), V.shape[-1])).astype(Q.dtype)
    got = impl.attention_backward(g, Q, K, V, scale=case.scale)
    own = backward_budgets(g, Q, K, V, case.s, u)
    for part, formula, others, moved in (
        ("query", "qc,qcd->qd", (), K),
        ("key", "qc,qnc,qd->nd", (Q,), Q),
        ("value", "qc,qn->nc", (), np.ones(1)),
    ):
        jacobian, error, budget = (getattr(x, part) for x in (by, budgets, own))
        operands = [x.astype(np.float64) for x in (g, jacobian, *others)]
        sizes = [abs(x) for x in operands]
        want, terms = np.einsum(formula, *operands), np.einsum(formula, *sizes)
        theirs = np.einsum(formula, sizes[0], error.bound, *sizes[2:])
        theirs += gamma(g.size + 2, 2.0**-53) * terms
        unit = _unit(case, moved) * max(1.0, float(abs(g).sum()))
        both = budget + Budget(theirs, "the Jacobian's own; " + error.because, u)
        result = getattr(got, part)
        yield compare(f"g do/d{part}", result / unit, want / unit, both.times(1 / unit))


def _wrong(part: str, formula: Callable[[Array, Array, Array], Array]) -> Any:
    """Right but for one part, which is s times a formula of p, the keys and the values."""

    def jacobians(
        query: Array, key: Array, value: Array, *, scale: float | None = None
    ) -> AttentionJacobians:
        by = attention_jacobians(query, key, value, scale=scale)
        s = query.dtype.type(query.shape[-1] ** -0.5 if scale is None else scale)
        return by._replace(**{part: s * formula(by.value, key, value)})

    return {"attention_jacobians": jacobians}


def _outer_products(p: Array, K: Array, V: Array) -> Array:
    products: Array = np.swapaxes(p[..., None] * V, -1, -2) @ K
    return products


def _about_plain_mean(p: Array, K: Array, V: Array) -> Array:
    return _outer_products(p, K - K.mean(axis=0), V)


def _transposed(p: Array, K: Array, V: Array) -> Array:
    right = _outer_products(p, K, V) - (p @ V)[..., None] * (p @ K)[:, None]
    return np.swapaxes(right, -1, -2).reshape(right.shape)


def _without_output(p: Array, K: Array, V: Array) -> Array:
    return p[..., None] * V


def _diagonal_of_softmax(p: Array, K: Array, V: Array) -> Array:
    factor: Array = (p * (1 - p))[..., None] * V
    return factor


def _about_plain_mean_value(p: Array, K: Array, V: Array) -> Array:
    factor: Array = p[..., None] * (V - V.mean(axis=0))
    return factor


def _unscaled(query: Array, key: Array, value: Array, **options: Any) -> AttentionJacobians:
    by = attention_jacobians(query, key, value, **options)
    s = query.dtype.type(options["scale"] or query.shape[-1] ** -0.5)
    return AttentionJacobians(by.query / s, by.key / s, by.value)


def _slope_for_weight(query: Array, key: Array, value: Array, **options: Any) -> AttentionJacobians:
    by = attention_jacobians(query, key, value, **options)
    return by._replace(value=by.value * (1 - by.value))


def _float32(query: Array, key: Array, value: Array, **options: Any) -> AttentionJacobians:
    single = (x.astype(np.float32) for x in (query, key, value))
    by = attention_jacobians(*single, **options)
    return AttentionJacobians(*(x.astype(value.dtype) for x in by))


def _backward_with_frozen_D(
    gradient: Array, query: Array, key: Array, value: Array, **options: Any
) -> AttentionGradients:
    """Moved by g.v_j, not by g.v_j - g.o: the values are taken relative to no output."""
    right = attention_backward(gradient, query, key, value, **options)
    s = query.dtype.type(options["scale"] or query.shape[-1] ** -0.5)
    p = attention_weights(query, key, **options)
    o = attention(query, key, value, **options)
    excess = p * (gradient * o).sum(axis=-1, keepdims=True)
    return right._replace(
        query=right.query + s * excess @ key, key=right.key + s * excess.T @ query
    )


def _backward_without_scale_of_key(
    gradient: Array, query: Array, key: Array, value: Array, **options: Any
) -> AttentionGradients:
    right = attention_backward(gradient, query, key, value, **options)
    s = query.dtype.type(options["scale"] or query.shape[-1] ** -0.5)
    return right._replace(key=right.key / s)


def _float32_backward(*arrays: Array, **options: Any) -> AttentionGradients:
    by = attention_backward(*(x.astype(np.float32) for x in arrays), **options)
    return AttentionGradients(*(x.astype(arrays[0].dtype) for x in by))


def _always_frozen(model: Any, queries: Array, *, freeze_normalizer: bool = False) -> Array:
    return dual_jacobian(model, queries, freeze_normalizer=True)


def _never_frozen(model: Any, queries: Array, *, freeze_normalizer: bool = False) -> Array:
    return dual_jacobian(model, queries)


def _adds_slope_of_D(model: Any, queries: Array, *, freeze_normalizer: bool = False) -> Array:
    right, frozen = dual_jacobian(model, queries), _always_frozen(model, queries)
    return frozen if freeze_normalizer else 2 * frozen - right


def _by_scaled_query(model: Any, queries: Array, *, freeze_normalizer: bool = False) -> Array:
    right = dual_jacobian(model, queries, freeze_normalizer=freeze_normalizer)
    return right * right.dtype.type(queries.shape[-1] ** 0.25)


claim = Claim(
    stem="attention_gradients",
    statement="do/dq = s sum_j p_j v_j (k_j - kbar)^T, do/dk_j = s p_j (v_j - o) q^T and "
    "do/dv_j = p_j I; the dual has the same derivative by q only if D(q) is differentiated too: "
    "with D frozen, exactly s o kbar^T is too much.",
    kind=Kind.EXACT,
    needs=("attention", "attention_jacobians", "dual_jacobian", "attention_backward"),
    check=check,
    mutants=(
        Mutant(
            "forgets_kbar",
            "keys are not centred: softmax's denominator is a constant",
            _wrong("query", _outer_products),
        ),
        Mutant(
            "plain_mean_key",
            "keys are centred at their plain mean",
            _wrong("query", _about_plain_mean),
        ),
        Mutant("transposed", "v k^T read as k v^T", _wrong("query", _transposed)),
        Mutant(
            "key_without_output",
            "do/dk_j without o: the other weights do not move",
            _wrong("key", _without_output),
        ),
        Mutant(
            "diagonal_of_softmax",
            "do/dk_j from p_j (1 - p_j), the diagonal of softmax's Jacobian",
            _wrong("key", _diagonal_of_softmax),
        ),
        Mutant(
            "plain_mean_value",
            "values are centred at their plain mean",
            _wrong("key", _about_plain_mean_value),
        ),
        Mutant(
            "slope_for_weight",
            "do/dv_j = p_j (1 - p_j) I",
            {"attention_jacobians": _slope_for_weight},
        ),
        Mutant(
            "unscaled", "the scale of the scores is left out", {"attention_jacobians": _unscaled}
        ),
        Mutant("dual_with_frozen_D", "D is taken as a constant", {"dual_jacobian": _always_frozen}),
        Mutant(
            "dual_never_frozen",
            "D is differentiated where it should be a constant",
            {"dual_jacobian": _never_frozen},
        ),
        Mutant(
            "adds_slope_of_D", "the quotient rule with a plus", {"dual_jacobian": _adds_slope_of_D}
        ),
        Mutant(
            "by_scaled_query",
            "the dual is differentiated by what its features see, q s^(1/2)",
            {"dual_jacobian": _by_scaled_query},
        ),
        Mutant("float32_jacobians", "computed in float32", {"attention_jacobians": _float32}),
        Mutant(
            "backward_with_frozen_D",
            "reverse mode without its term g.o: D is taken as a constant",
            {"attention_backward": _backward_with_frozen_D},
        ),
        Mutant(
            "backward_without_scale_of_key",
            "the scale is left out of the gradient by the keys",
            {"attention_backward": _backward_without_scale_of_key},
        ),
        Mutant(
            "float32_backward",
            "reverse mode computed in float32",
            {"attention_backward": _float32_backward},
        ),
    ),
    assumptions="At least one key; inputs are finite; every key is attended. The features are "
    "exact at the keys for every query, as gram_features are.",
    budget="|do/dk^ - do/dk| <= s |q| (P_j |v_j - o| + p_j (O + 8u |v_j - o|)), P and O the "
    "budgets of weights and output; do/dq sums them with |k_j|, gamma_(n+2). The dual: "
    "gamma_(n+3m+8) sum_j (|v_j| + |o|) |phi(k_j)|.|phi'(q)| / D. Reverse mode: P_j |g.v_j - g.o| "
    "and p_j times what dot products and P_j move g.v_j and g.o by, summed with |k_j| or |q|.",
    code="equivalence/gradients.py",
    on_heads=True,
)
