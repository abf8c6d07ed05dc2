"""Softmax attention is the Nadaraya-Watson smoother of the exponential kernel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from equivalence import attention, attention_weights
from equivalence._arrays import Array
from equivalence.verify import oracle
from equivalence.verify.budgets import Budget, attention_budget, exact, sum_budget, weights_budget
from equivalence.verify.cases import Case
from equivalence.verify.claim import Claim, Kind, Mutant
from equivalence.verify.compare import Comparison, NotRun, compare
from equivalence.verify.implementation import Implementation


def check(impl: Implementation, case: Case) -> Iterator[Comparison | NotRun]:
    """The definition, the minimiser, the simplex, and the symmetries."""
    yield from _by_definition(impl, case)
    yield from _minimiser(impl, case)
    yield from _symmetries(impl, case)
    yield from _masks(impl, case)


def _by_definition(impl: Implementation, case: Case) -> Iterator[Comparison]:
    Q, K, V = case.Q, case.K, case.V
    o = impl.attention(Q, K, V, scale=case.scale)
    p = impl.attention_weights(Q, K, scale=case.scale)
    number, rows = case.arithmetic, case.rows
    q, k, v = (number.vectors(x) for x in (Q[rows], K, V))
    s = oracle.scale_of(number, case.scale, Q.shape[-1])
    yield oracle.against(
        number,
        "o = sum_j kappa_j v_j / sum_j kappa_j",
        o[rows],
        [oracle.attention(number, x, k, v, s) for x in q],
        attention_budget(Q, K, V, case.s, case.u)[rows],
    )
    yield oracle.against(
        number,
        "p_j = kappa_j / sum_j kappa_j",
        p[rows],
        [oracle.weights(number, x, k, s) for x in q],
        weights_budget(Q, K, case.s, case.u)[rows],
    )
    yield compare("weights are not negative", p, abs(p), exact("a sign is not rounded"))
    yield compare(
        "weights sum to 1", p.sum(axis=-1), np.ones(len(Q)), sum_budget(p, 2 * len(K) + 2, case.u)
    )


def _minimiser(impl: Implementation, case: Case) -> Iterator[Comparison]:
    """o minimises J(a) = sum_j p_j |v_j - a|^2: J(o + h) - J(o) = |h|^2 for every h."""
    Q, K, V = (x.astype(np.float64) for x in (case.Q, case.K, case.V))
    o = impl.attention(case.Q, case.K, case.V, scale=case.scale).astype(np.float64)
    p = _plain_weights(Q, K, case.s)
    bound = attention_budget(case.Q, case.K, case.V, case.s, case.u)
    h = case.rng("h").standard_normal(o.shape)
    terms = p[:, :, None] * (abs(V)[None] + abs(o)[:, None] + abs(h)[:, None]) ** 2
    # J is a quadratic with Hessian 2 I, so an error e of o changes the difference by 2 e.h.
    off = Budget(
        2 * (bound.bound * abs(h)).sum(-1), "2 e.h for an error e of o: " + bound.because, bound.u
    )
    yield compare(
        "o = argmin_a sum_j kappa_j |v_j - a|^2: J(o + h) - J(o) = |h|^2",
        _objective(p, V, o + h) - _objective(p, V, o),
        (h**2).sum(axis=-1),
        off
        + sum_budget(terms, 4 * terms[0].size + 16, 2.0**-53, axis=(-1, -2))
        + _budget_of_plain_weights(Q, K, V, o, h, case.s),
    )
    low, high = V.min(axis=0), V.max(axis=0)
    yield compare("o lies between the least and the largest value", o, np.clip(o, low, high), bound)


def _symmetries(impl: Implementation, case: Case) -> Iterator[Comparison]:
    Q, K, V, s, u = case.Q, case.K, case.V, case.s, case.u
    rng = case.rng("symmetries")
    o = impl.attention(Q, K, V, scale=case.scale)
    own = attention_budget(Q, K, V, s, u)

    b = rng.standard_normal((K.shape[-1],)).astype(K.dtype)
    shifted = K + b
    moved = own + attention_budget(Q, shifted, V, s, u) + _rounded_keys(Q, shifted, V, s, u)
    yield compare(
        "one vector added to all keys changes nothing",
        impl.attention(Q, shifted, V, scale=case.scale),
        o,
        moved,
    )

    order = rng.permutation(len(K))
    yield compare(
        "the order of the tokens does not matter",
        impl.attention(Q, K[order], V[order], scale=case.scale),
        o,
        own + own,
    )

    A = rng.standard_normal((3, V.shape[-1])).astype(V.dtype)
    a = rng.standard_normal(3).astype(V.dtype)
    mapped = abs(V) @ abs(A).T + abs(a)
    yield compare(
        "an affine map of the values maps the output",
        impl.attention(Q, K, V @ A.T + a, scale=case.scale),
        o @ A.T + a,
        Budget(2 * own.bound @ abs(A).T, own.because, u)
        + attention_budget(Q, K, mapped, s, u)
        + sum_budget(mapped.max(axis=0)[:, None], 2 * V.shape[-1] + 4, u),
    )

    p: Array = impl.attention_weights(Q, K, scale=case.scale)
    twice = impl.attention_weights(Q, np.concatenate([K, K[:1]]), scale=case.scale)
    merged = np.concatenate([2 * p[:, :1], p[:, 1:]], axis=1) / (1 + p[:, :1])
    yield compare(
        "a duplicate token counts as one of twice the kernel",
        np.concatenate([twice[:, :1] + twice[:, -1:], twice[:, 1:-1]], axis=1),
        merged,
        weights_budget(Q, K, s, u).times(
            5, "both sides rounded, 2p/(1+p) doubles an error at most: "
        ),
    )

    batch = impl.attention(np.stack([Q, Q[::-1]]), K, V, scale=case.scale)
    yield compare(
        "batch entries do not mix",
        batch,
        np.stack([o, o[::-1]]),
        Budget(2 * np.stack([own.bound, own.bound[::-1]]), own.because, u),
    )


def _masks(impl: Implementation, case: Case) -> Iterator[Comparison | NotRun]:
    n_q, n = len(case.Q), len(case.K)
    rng = case.rng("masks")
    kept = rng.random((n_q, n)) < 0.7
    kept[np.arange(n_q), rng.integers(0, n, n_q)] = True
    added = rng.standard_normal((n_q, n)).astype(case.Q.dtype)
    none = np.zeros((n_q, n))
    questions: list[tuple[str, dict[str, Any], npt.NDArray[np.bool_], Array]] = [
        ("mask", {"mask": kept}, kept, none),
        ("mask", {"mask": np.where(kept, added, -np.inf)}, kept, added),
        ("causal", {"causal": True}, np.tri(n_q, n, dtype=bool), none),
    ]
    for keyword, arguments, attended, bias in questions:
        what = f"with {keyword}, only the attended keys count"
        if keyword not in impl.keywords:
            yield NotRun(what, f"the target takes no `{keyword}`")
            continue
        o = impl.attention(case.Q, case.K, case.V, scale=case.scale, **arguments)
        yield _attended(case, what, o, attended, bias)


def _attended(
    case: Case, what: str, o: Array, attended: npt.NDArray[np.bool_], bias: Array
) -> Comparison:
    number, rows = case.arithmetic, case.rows
    s = oracle.scale_of(number, case.scale, case.Q.shape[-1])
    want, bounds = [], []
    for i in rows:
        own, Q = attended[i], case.Q[i : i + 1]
        q, k, v, b = (
            number.vectors(x) for x in (Q, case.K[own], case.V[own], bias[i : i + 1, own])
        )
        want.append(oracle.attention(number, q[0], k, v, s, b[0]))
        bounds.append(
            attention_budget(Q, case.K[own], case.V[own], case.s, case.u, bias[i : i + 1, own])
        )
    budget = Budget(np.concatenate([x.bound for x in bounds]), bounds[0].because, case.u)
    return oracle.against(number, what, o[rows], want, budget)


def _plain_weights(Q: Array, K: Array, scale: float) -> Array:
    kappa = np.exp(scale * (Q @ K.T) - (scale * (Q @ K.T)).max(axis=-1, keepdims=True))
    weights: Array = kappa / kappa.sum(axis=-1, keepdims=True)
    return weights


def _objective(p: Array, V: Array, a: Array) -> Array:
    J: Array = (p * ((V[None] - a[:, None]) ** 2).sum(axis=-1)).sum(axis=-1)
    return J


def _budget_of_plain_weights(
    Q: Array, K: Array, V: Array, o: Array, h: Array, scale: float
) -> Budget:
    """J(o+h) - J(o) sees the error of p itself, by the change of |v - a|^2 from o to o + h."""
    p_error = weights_budget(Q, K, scale, 2.0**-53).bound
    change = abs(
        ((V[None] - (o + h)[:, None]) ** 2).sum(-1) - ((V[None] - o[:, None]) ** 2).sum(-1)
    )
    return Budget((p_error * change).sum(axis=-1), "the weights of J are rounded too", 2.0**-53)


def _rounded_keys(Q: Array, shifted: Array, V: Array, scale: float, u: float) -> Budget:
    """Adding b rounds each key by u |k + b|: scores move by up to that times |q|."""
    moved: Array = np.expm1(2 * u * scale * (abs(Q) @ abs(shifted).T).max(axis=-1, keepdims=True))
    return Budget(2 * moved * abs(V).max(axis=0), "the shifted keys are rounded", u)


def _drops_last_token(query: Any, key: Any, value: Any, **options: Any) -> Array:
    if np.shape(key)[-2] == 1:
        return attention(query, key, value, **options)
    options["mask"] = _without_last(options.get("mask"), np.shape(key)[-2])
    return attention(query, key, value, **options)


def _without_last(mask: Any, n: int) -> Any:
    keep = np.arange(n) < n - 1
    if mask is None:
        return keep
    return mask & keep if np.asarray(mask).dtype == bool else np.where(keep, mask, -np.inf)


def _unscaled(query: Any, key: Any, value: Any, *, scale: float | None = None, **o: Any) -> Array:
    return attention(query, key, value, scale=1.0 if scale is None else scale, **o)


def _one_more_in_denominator(query: Any, key: Any, value: Any, **options: Any) -> Array:
    def with_zero(x: Any) -> Array:
        x = np.asarray(x)
        return np.concatenate([x, np.zeros((*x.shape[:-2], 1, x.shape[-1]), x.dtype)], axis=-2)

    mask = options.pop("mask", None)
    if mask is not None:
        M = np.asarray(mask)
        options["mask"] = np.concatenate([M, np.ones((*M.shape[:-1], 1), M.dtype)], axis=-1)
    return attention(query, with_zero(key), with_zero(value), **options)


def _gaussian_kernel(
    query: Any, key: Any, value: Any, *, scale: float | None = None, mask: Any = None, **o: Any
) -> Array:
    K = np.asarray(key)
    s = K.shape[-1] ** -0.5 if scale is None else scale
    damping = -s * (K**2).sum(axis=-1)[..., None, :] / 2
    if mask is not None:
        M = np.asarray(mask)
        damping = np.where(M, damping, -np.inf) if M.dtype == bool else damping + M
    return attention(query, key, value, scale=scale, mask=damping.astype(K.dtype), **o)


def _shift_per_key(
    query: Any, key: Any, value: Any, *, scale: float | None = None, **o: Any
) -> Array:
    Q, K = np.asarray(query), np.asarray(key)
    s = K.shape[-1] ** -0.5 if scale is None else scale
    scores = s * (Q @ np.swapaxes(K, -1, -2))
    kappa = np.exp(scores - scores.max(axis=-2, keepdims=True))
    output: Array = kappa @ np.asarray(value) / kappa.sum(axis=-1, keepdims=True)
    return output


def _float32(query: Any, key: Any, value: Any, **options: Any) -> Array:
    single = (np.asarray(x, np.float32) for x in (query, key, value))
    if np.asarray(options.get("mask")).dtype == np.float64:
        options["mask"] = options["mask"].astype(np.float32)
    return attention(*single, **options).astype(np.asarray(value).dtype)


def _mask_inverted(query: Any, key: Any, value: Any, *, mask: Any = None, **o: Any) -> Array:
    inverted = ~mask if mask is not None and np.asarray(mask).dtype == bool else mask
    return attention(query, key, value, mask=inverted, **o)


def _causal_without_itself(
    query: Any, key: Any, value: Any, *, causal: bool = False, **o: Any
) -> Array:
    if not causal:
        return attention(query, key, value, **o)
    earlier = np.tri(np.shape(query)[-2], np.shape(key)[-2], -1, dtype=bool)
    earlier[0, 0] = True
    return attention(query, key, value, mask=earlier, **o)


def _weights_with_row_maximum_one(query: Any, key: Any, **options: Any) -> Array:
    p = attention_weights(query, key, **options)
    scaled: Array = p / p.max(axis=-1, keepdims=True)
    return scaled


claim = Claim(
    stem="softmax_is_kernel_smoothing",
    statement="Softmax attention is the Nadaraya-Watson smoother of the exponential kernel: "
    "o = argmin_a sum_j kappa(k_j, q) |v_j - a|^2 = sum_j kappa(k_j, q) v_j / D(q).",
    kind=Kind.EXACT,
    needs=("attention", "attention_weights"),
    check=check,
    mutants=(
        Mutant("unscaled", "the default scale is 1, not 1/sqrt(d)", {"attention": _unscaled}),
        Mutant(
            "drops_last_token", "the last key is never attended", {"attention": _drops_last_token}
        ),
        Mutant(
            "one_more_in_denominator",
            "D has an extra exp(0), as in 'softmax plus one'",
            {"attention": _one_more_in_denominator},
        ),
        Mutant("gaussian_kernel", "the kernel is exp(-|q-k|^2/2)", {"attention": _gaussian_kernel}),
        Mutant(
            "shift_per_key",
            "the shift before exp is one a key, not one a query",
            {"attention": _shift_per_key},
        ),
        Mutant(
            "float32_arithmetic", "float64 inputs are computed in float32", {"attention": _float32}
        ),
        Mutant(
            "mask_inverted",
            "True in a boolean mask excludes the key",
            {"attention": _mask_inverted},
        ),
        Mutant(
            "causal_without_itself",
            "a causal query does not see its own token",
            {"attention": _causal_without_itself},
        ),
        Mutant(
            "weights_with_row_maximum_one",
            "weights are divided by the largest, not by the sum",
            {"attention_weights": _weights_with_row_maximum_one},
        ),
    ),
    assumptions="At least one key is attended; inputs are finite.",
    budget="|o^ - o| <= sum_j p_j ((e_j + g)|v_j| + |o| (e_j + g)) with e_j = exp(gamma_(d+5) "
    "|q|.|k_j| s + u |s_j - max s|) - 1 + 8u and g = gamma_(n+10).",
    code="equivalence/attention.py",
    on_heads=True,
)
