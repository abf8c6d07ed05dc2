"""The negative control: the one-step identity holds for every kernel and for any values.

It is (V^T Phi) phi(q) = V^T (Phi phi(q)), so that both sides agree shows nothing about the kernel.
What a check shows, it shows by what it rejects: the mutants below, one of which is the same on both
sides and is caught by the definition alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from equivalence import dual
from equivalence._arrays import Array
from equivalence.kernels import Kernel, gaussian_kernel, kernel_attention, kernel_features
from equivalence.verify import oracle
from equivalence.verify.budgets import (
    Budget,
    attention_budget,
    dual_budget,
    gamma,
    smoother_budget,
)
from equivalence.verify.cases import Case, make_case
from equivalence.verify.claim import Claim, Kind, mutant
from equivalence.verify.compare import Comparison, Refutation, compare, refute
from equivalence.verify.dual_case import scaled, see_dual
from equivalence.verify.implementation import Implementation
from equivalence.verify.oracle import Number, Vector
from equivalence.verify.other_kernels import OTHERS, OtherKernel

_ETA = 0.3


def check(impl: Implementation, case: Case) -> Iterator[Comparison | Refutation]:
    """One step on every other kernel, on values that nobody trained, and what tells them apart."""
    if case.real:  # queries do not mix, and some of them keep the check fast
        case = replace(case, Q=case.Q[::6])
    for other in OTHERS:
        seen = _see(impl, case, other)
        yield compare(
            f"{other.name}: one step predicts the kernel's own smoother",
            seen.prediction,
            seen.smoother,
            seen.budget + seen.smoother_budget,
        )
        if not case.real:
            yield _one_map(seen)
            yield _by_definition(seen)
            seen = _see(impl, _elsewhere(case), other)
        yield from _apart(impl, seen)
    yield from _any_values(impl, case)


def _elsewhere(case: Case) -> Case:
    """Few or nearly equal tokens have one output under every kernel; these keys have not.

    One-hot values make the output the weights themselves.
    """
    x = make_case(
        0,
        n=6,
        d=case.K.shape[-1],
        c=6,
        dtype=case.Q.dtype.name,
        arithmetic=case.arithmetic,
    )
    return replace(x, V=np.eye(6, dtype=x.V.dtype))


@dataclass(frozen=True)
class _Seen:
    """A case through another kernel: what the step predicts and what the kernel smooths."""

    case: Case
    other: OtherKernel
    Phi: Array
    prediction: Array
    budget: Budget
    smoother: Array
    smoother_budget: Budget


def _see(impl: Implementation, case: Case, other: OtherKernel) -> _Seen:
    (Q, K), u = scaled(case), case.u
    Phi, phi_q = impl.kernel_features(K, Q, other.kernel)
    D = impl.normalizer(Phi, phi_q)
    error = other.relative_error(Q, K, u)
    kappa = other.kernel(Q.astype(np.float64), K.astype(np.float64))
    return _Seen(
        case,
        other,
        Phi,
        _one_step(impl, case, Phi, phi_q, D),
        dual_budget(Phi, phi_q, case.V, error, u),
        impl.kernel_attention(Q, K, case.V, other.kernel),
        smoother_budget(kappa, error, case.V, u),
    )


def _one_step(impl: Implementation, case: Case, Phi: Array, phi_q: Array, D: Array) -> Array:
    seen, given = slice(None, case.N), slice(case.N, None)
    W_0 = impl.initial_weights(case.V[given], Phi[given], D)
    slope = impl.gradient(case.V[seen], Phi[seen], D, _ETA)
    prediction: Array = impl.predict(impl.gradient_step(W_0, slope, _ETA), phi_q)
    return prediction


def _one_map(seen: _Seen) -> Comparison:
    """phi(k_i).phi(k_j) = kappa(k_i, k_j): keys have the features that a query in their place has.

    The prediction does not see this: any invertible matrix of key features would do.
    """
    (_, K), Phi, other, u = scaled(seen.case), seen.Phi, seen.other, seen.case.u
    n, d = K.shape
    G = other.kernel(K.astype(np.float64), K.astype(np.float64))
    norms = np.sqrt(np.diagonal(G))
    rank = 4 * n * u * (d + 8) * norms * norms[:, None]
    bound = gamma(n + 8, u) * abs(Phi) @ abs(Phi).T + other.relative_error(K, K, u) * G + rank
    because = (
        "Cholesky errs by gamma_(n+1) |L||L|^T (Higham 2002, thm 10.3), the kernel by its "
        "exponent; below the numerical rank 2n u (d+8) is left out, and as much put in its place"
    )
    what = f"{other.name}: phi(k_i).phi(k_j) = kappa(k_i, k_j)"
    return compare(what, Phi @ Phi.T, G, Budget(bound, because, u))


def _kernel_values(case: Case, other: OtherKernel, rows: npt.NDArray[np.intp]) -> list[Vector]:
    number = case.arithmetic
    q, k = (number.vectors(x) for x in (scaled(case)[0][rows], scaled(case)[1]))
    return [[other.scalar(number, x, y) for y in k] for x in q]


def _by_definition(seen: _Seen) -> Comparison:
    number, case = seen.case.arithmetic, seen.case
    v = number.vectors(case.V)
    want = [
        [number.dot(kappa, column) / number.sum(kappa) for column in zip(*v, strict=True)]
        for kappa in _kernel_values(case, seen.other, case.rows)
    ]
    what = f"{seen.other.name}: one step predicts sum_j kappa_j v_j / D"
    return oracle.against(number, what, seen.prediction[case.rows], want, seen.budget[case.rows])


def _apart(impl: Implementation, seen: _Seen) -> Iterator[Comparison | Refutation]:
    """Another kernel's step is not softmax attention: it misses by a covariance."""
    case, other, u = seen.case, seen.other, seen.case.u
    o = impl.attention(case.Q, case.K, case.V, scale=case.scale)
    budget = seen.budget + attention_budget(case.Q, case.K, case.V, case.s, u)
    what = f"{other.name}: what one step predicts is softmax attention"
    yield refute(what, seen.prediction, o, budget)
    if case.real and other is not OTHERS[0]:
        return
    some = case.rng("outputs").permutation(case.V.shape[1])[:2]
    entries = np.ix_(case.rows[:1] if case.real else case.rows, some)
    misses = (seen.prediction - o)[entries]
    yield oracle.against(
        case.arithmetic,
        f"{other.name}: it misses softmax attention by Cov_p(r, v) / E_p r",
        misses,
        _covariances(case, other, *(x.ravel() for x in entries)),
        budget[entries] + Budget(u * abs(misses), "the difference is rounded", u),
    )


def _covariances(
    case: Case, other: OtherKernel, rows: npt.NDArray[np.intp], outputs: npt.NDArray[np.intp]
) -> list[list[Number]]:
    """Cov_p(r, v) / E_p r with r_j = kappa'_j / kappa_j, in scalar arithmetic."""
    number = case.arithmetic
    q, k, v = (number.vectors(x) for x in (case.Q[rows], case.K, case.V[:, outputs]))
    s = oracle.scale_of(number, case.scale, case.Q.shape[-1])
    want = []
    for x, kappa in zip(q, _kernel_values(case, other, rows), strict=True):
        p = oracle.weights(number, x, k, s)
        r = [b / a for a, b in zip(p, kappa, strict=True)]
        mean = number.dot(p, r)
        weights = [a * (b - mean) / mean for a, b in zip(p, r, strict=True)]
        want.append([number.dot(weights, column) for column in zip(*v, strict=True)])
    return want


def _any_values(impl: Implementation, case: Case) -> Iterator[Comparison | Refutation]:
    """With softmax's own features, values that nobody trained satisfy the identity as well."""
    # At least 1 above the given ones, so that no output is the same by accident.
    above = 1 + abs(case.rng("values").standard_normal(case.V.shape))
    other = replace(case, V=(case.V + above).astype(case.V.dtype))
    x = see_dual(impl, other)
    o, theirs = (impl.attention(y.Q, y.K, y.V, scale=y.scale) for y in (case, other))
    own = attention_budget(case.Q, case.K, case.V, case.s, case.u)
    budget = attention_budget(other.Q, other.K, other.V, other.s, other.u)
    yield compare(
        "values that nobody trained: one step predicts their attention",
        _one_step(impl, other, x.Phi, x.phi_q, x.D),
        theirs,
        budget + x.budget,
    )
    yield refute("the values are the trained ones", theirs, o, budget + own)
    change = other.V.astype(np.float64) - case.V
    yield compare(
        "other values move the output by the attention of their difference",
        theirs.astype(np.float64) - o,
        impl.attention(*(a.astype(np.float64) for a in (case.Q, case.K)), change, scale=case.s),
        budget + own + attention_budget(case.Q, case.K, change, case.s, case.u),
    )


def _always_gaussian(keys: Array, queries: Array, kernel: Kernel) -> tuple[Array, Array]:
    return kernel_features(keys, queries, gaussian_kernel)


def _two_maps(keys: Array, queries: Array, kernel: Kernel) -> tuple[Array, Array]:
    return np.eye(len(keys), dtype=keys.dtype), kernel(queries, keys)


def _squared(kernel: Kernel) -> Kernel:
    """Another kernel, positive semidefinite as well (Schur): a bandwidth off by a factor."""

    def squared(x: Array, y: Array) -> Array:
        values: Array = kernel(x, y) ** 2
        return values

    return squared


def _squared_features(keys: Array, queries: Array, kernel: Kernel) -> tuple[Array, Array]:
    return kernel_features(keys, queries, _squared(kernel))


def _squared_attention(query: Array, key: Array, value: Array, kernel: Kernel) -> Array:
    return kernel_attention(query, key, value, _squared(kernel))


def _unnormalized(query: Array, key: Array, value: Array, kernel: Kernel) -> Array:
    mean: Array = kernel(query, key) @ value / len(key)
    return mean


def _sum_of_demonstrations(key_features: Array, query_features: Array) -> Array:
    return dual.normalizer(key_features[: max(1, len(key_features) - 1)], query_features)


def _norm_of_query(key_features: Array, query_features: Array) -> Array:
    D: Array = (query_features**2).sum(axis=-1)
    return D


def _transposed(values: Array, features: Array, D: npt.ArrayLike, eta: float = 1.0) -> Array:
    G = dual.gradient(values, features, D, eta)
    return np.swapaxes(G, -1, -2).reshape(G.shape)


def _no_query_side(values: Array, features: Array, D: npt.ArrayLike) -> Array:
    return 0 * dual.initial_weights(values, features, D)


def _ascends(W: Array, gradient: Array, learning_rate: float = 1.0) -> Array:
    return W + learning_rate * gradient


def _eta_twice(W: Array, gradient: Array, learning_rate: float = 1.0) -> Array:
    return W - learning_rate**2 * gradient


def _float32(W: Array, query_features: Array) -> Array:
    single = dual.predict(W.astype(np.float32), query_features.astype(np.float32))
    return single.astype(W.dtype)


claim = Claim(
    stem="identity_is_bilinearity",
    statement="For every positive semidefinite kernel and any values, one step predicts that "
    "kernel's own smoother: (V^T Phi) phi(q) = V^T (Phi phi(q)). Against softmax attention it "
    "misses by Cov_p(r, v) / E_p r, r_j = kappa'_j / kappa_j, which is 0 for all values only if r "
    "is the same for every key.",
    tempting="That one gradient step predicts the layer's output shows that the layer's kernel is "
    "exp(q.k) and that its values are the trained ones.",
    kind=Kind.CAVEAT,
    needs=(
        "attention",
        "GramFeatures",
        "kernel_attention",
        "kernel_features",
        "normalizer",
        "initial_weights",
        "gradient",
        "gradient_step",
        "predict",
    ),
    check=check,
    mutants=(
        mutant(
            "wrong_kernel_on_one_side",
            "the dual has Gaussian features whatever the kernel",
            kernel_features=_always_gaussian,
        ),
        mutant(
            "wrong_kernel_on_both_sides",
            "the same wrong kernel in features and smoother: the identity holds",
            kernel_features=_squared_features,
            kernel_attention=_squared_attention,
        ),
        mutant(
            "two_maps",
            "keys are one-hot and queries kernel values: no feature map, but the identity holds",
            kernel_features=_two_maps,
        ),
        mutant(
            "D_of_demonstrations", "D leaves out the last token", normalizer=_sum_of_demonstrations
        ),
        mutant("D_of_the_query", "D is |phi(q)|^2", normalizer=_norm_of_query),
        mutant(
            "smoother_without_D",
            "the kernel's weighted values are averaged over n",
            kernel_attention=_unnormalized,
        ),
        mutant("transposed_outer_product", "phi v^T read as v phi^T", gradient=_transposed),
        mutant("no_query_side_tokens", "W_0 = 0", initial_weights=_no_query_side),
        mutant("ascends", "the step has the wrong sign", gradient_step=_ascends),
        mutant("eta_twice", "the step is scaled by eta twice", gradient_step=_eta_twice),
        mutant("float32_prediction", "the read-out is computed in float32", predict=_float32),
    ),
    assumptions="D(q) > 0; the kernels shown are linear attention's (elu + 1), 1 + (x.y)^2, the "
    "Gaussian and the Laplacian. Two kernels that are proportional at the keys, by a factor of the "
    "query, are one to attention.",
    budget="the dual's of one_gradient_step and the smoother's gamma_(n+1), with kernel values "
    "that err by exp(2 gamma_(d+4) t) - 1 + gamma_(d+24), t the exponent, or |x|.|y|.",
    code="equivalence/kernels.py",
    on_heads=True,
)
