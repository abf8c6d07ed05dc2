"""Weights trained for one query answer another with the wrong D; a ratio of read-outs does not."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from equivalence import dual
from equivalence._arrays import Array
from equivalence.features import Features
from equivalence.ratio import from_homogeneous, to_homogeneous
from equivalence.verify import oracle
from equivalence.verify.budgets import Budget, attention_budget, dual_budget, normalizer_budget
from equivalence.verify.cases import Case
from equivalence.verify.claim import Claim, Kind, mutant
from equivalence.verify.compare import Comparison, Refutation, compare, refute
from equivalence.verify.dual_case import exponent_error, on_one_scale, scaled, see_dual
from equivalence.verify.implementation import Implementation

_ETA = 0.3


def check(impl: Implementation, case: Case) -> Iterator[Comparison | Refutation]:
    """One query's weights read at all others, by how much they fail, and what does not fail."""
    yield from _one_for_all(impl, case if case.real else _apart(case))
    yield from _ratio(impl, case)


def _apart(case: Case) -> Case:
    """The case with two more queries that are far apart: q = 0, where D(q) = n, and q' with 2n.

    The longest key is made of length 1, and q' goes along it, to the score log(2n).
    """
    norms = np.linalg.norm(case.K, axis=-1)
    K = case.K / norms.max()
    along = math.log(2 * len(K)) / case.s * K[norms.argmax()]
    Q = np.concatenate([[0 * along, along], case.Q]).astype(K.dtype)
    return replace(case, Q=Q, K=K)


def _one_for_all(impl: Implementation, case: Case) -> Iterator[Comparison | Refutation]:
    """The weights of the first query, read at every query.

    The values get a column of ones, which attention maps to 1, and these weights to D(q')/D(q).
    """
    case = replace(case, V=np.concatenate([case.V, np.ones_like(case.V[:, :1])], axis=1))
    Q, K = scaled(case)
    phi = impl.GramFeatures().fit(K)
    Phi, at_queries = on_one_scale(phi(K)), phi(Q)
    phi_q = on_one_scale(at_queries)
    D = impl.normalizer(Phi, phi_q)
    seen, given = slice(None, case.N), slice(case.N, None)
    W_0 = impl.initial_weights(case.V[given], Phi[given], D[0])
    W_1 = impl.gradient_step(W_0, impl.gradient(case.V[seen], Phi[seen], D[0], _ETA), _ETA)
    predicted = impl.predict(W_1, phi_q)
    o = impl.attention(case.Q, case.K, case.V, scale=case.scale)
    budget = _budget(case, Phi, at_queries)
    yield refute("W_1(q) phi(q') = o(q')", predicted, o, budget)
    yield compare("W_1(q) phi(q') = (D(q')/D(q)) o(q')", predicted, D[:, None] / D[0] * o, budget)
    yield _by_definition(case, predicted, budget)


def _by_definition(case: Case, predicted: Array, budget: Budget) -> Comparison:
    number, rows = case.arithmetic, case.rows[-1:] if case.real else case.rows
    outputs = slice(-2 if case.real else 0, None)
    s = oracle.scale_of(number, case.scale, case.Q.shape[-1])
    (trained, *read), k, v = (
        number.vectors(x) for x in (case.Q[[0, *rows]], case.K, case.V[:, outputs])
    )

    def kernels(q: oracle.Vector) -> list[oracle.Number]:
        return [number.exp(s * number.dot(q, key)) for key in k]

    D = number.sum(kernels(trained))
    want = []
    for q in read:
        kappa = kernels(q)
        want.append([number.dot(kappa, column) / D for column in zip(*v, strict=True)])
    return oracle.against(
        number,
        "W_1(q) phi(q') = sum_j kappa(k_j, q') v_j / D(q)",
        predicted[rows, outputs],
        want,
        budget[rows, outputs],
    )


def _budget(case: Case, Phi: Array, at_queries: Features) -> Budget:
    """The error of (D(q')/D(q)) o(q'), by W_1(q) phi(q') and by attention, together."""
    u, phi_q, logs = case.u, on_one_scale(at_queries), at_queries.log_scale.astype(np.float64)
    # Here the queries' log scales count as well: they are brought to one, by an exp more.
    exponent = exponent_error(case, u) + u * (10 + logs.max() - logs)[:, None]
    prediction = dual_budget(Phi, phi_q, case.V, exponent, u)
    output = attention_budget(case.Q, case.K, case.V, case.s, u)
    kernel = phi_q.astype(np.float64) @ Phi.T.astype(np.float64)
    D = kernel.sum(axis=-1)[:, None]
    size = kernel @ abs(case.V) / D
    D_error = normalizer_budget(Phi, phi_q, exponent, u).bound[:, None]
    both = D_error + D_error[0]
    ratio_error = both * (1 + both) + 4 * u
    moved = (prediction.bound + output.bound) * (1 + ratio_error) + 2 * size * ratio_error
    return Budget(
        D / D[0] * moved,
        f"D(q')/D(q) times: {prediction.because}; {output.because}; and both D err",
        u,
    )


def _ratio(impl: Implementation, case: Case) -> Iterator[Comparison]:
    """One set of weights, trained without D on the targets [v; 1], at every query."""
    x = see_dual(impl, case)
    Y, seen, given = impl.to_homogeneous(case.V), slice(None, case.N), slice(case.N, None)
    W_0 = impl.initial_weights(Y[given], x.Phi[given], 1.0)
    W_1 = impl.gradient_step(W_0, impl.gradient(Y[seen], x.Phi[seen], 1.0, _ETA), _ETA)
    readouts = impl.predict(W_1, x.phi_q)
    answers = impl.from_homogeneous(readouts)
    D_budget = normalizer_budget(x.Phi, x.phi_q, exponent_error(case, case.u), case.u)
    yield compare(
        "the last read-out is D(q)",
        readouts[..., -1] / x.D,
        np.ones_like(x.D),
        D_budget.times(3, "both D rounded, and their quotient: "),
    )
    o = impl.attention(case.Q, case.K, case.V, scale=case.scale)
    yield compare(
        "the ratio of the read-outs is o at every query",
        answers,
        o,
        attention_budget(case.Q, case.K, case.V, case.s, case.u) + x.budget,
    )
    number, rows = case.arithmetic, case.rows[:1] if case.real else case.rows
    s = oracle.scale_of(number, case.scale, case.Q.shape[-1])
    q, k, v = (number.vectors(a) for a in (case.Q[rows], case.K, case.V))
    yield oracle.against(
        number,
        "the ratio of the read-outs is sum_j kappa_j v_j / D",
        answers[rows],
        [oracle.attention(number, point, k, v, s) for point in q],
        x.budget[rows],
    )


def _first_query(key_features: Array, query_features: Array) -> Array:
    return dual.normalizer(key_features, query_features)[:1].repeat(len(query_features))


def _gradient_without_D(
    values: Array, features: Array, D: npt.ArrayLike, learning_rate: float = 1.0
) -> Array:
    return dual.gradient(values, features, np.ones_like(D), learning_rate)


def _initial_without_D(values: Array, features: Array, D: npt.ArrayLike) -> Array:
    return dual.initial_weights(values, features, np.ones_like(D))


def _unit_read_out(W: Array, query_features: Array) -> Array:
    """Query features of length 1, as linear attention has them."""
    norm = np.linalg.norm(query_features, axis=-1, keepdims=True)
    return dual.predict(W, query_features / norm)


def _zeros(values: Array) -> Array:
    return to_homogeneous(values) * np.append(np.ones(values.shape[-1]), 0).astype(values.dtype)


def _ones_first(values: Array) -> Array:
    return np.roll(to_homogeneous(values), 1, axis=-1)


def _mean(values: Array) -> Array:
    Y = to_homogeneous(values)
    Y[..., -1] /= max(1, values.shape[-2])
    return Y


def _unit_targets(values: Array) -> Array:
    """Targets of length 1: the ratio of a target is kept, that of a sum is not."""
    Y = to_homogeneous(values)
    unit: Array = Y / np.linalg.norm(Y, axis=-1, keepdims=True)
    return unit


def _not_divided(readouts: Array) -> Array:
    return readouts[..., :-1]


def _by_the_first(readouts: Array) -> Array:
    return readouts[..., :-1] / readouts[..., :1]


def _adds_epsilon(readouts: Array) -> Array:
    """The epsilon that keeps implementations of linear attention from dividing by zero."""
    return readouts[..., :-1] / (readouts[..., -1:] + 1e-6)


def _at_least_1(readouts: Array) -> Array:
    """The denominator is kept from falling below 1, as mLSTM has it."""
    bounded: Array = readouts[..., :-1] / np.maximum(abs(readouts[..., -1:]), 1)
    return bounded


def _one_denominator(readouts: Array) -> Array:
    return readouts[..., :-1] / readouts[:1, -1:]


def _float32(readouts: Array) -> Array:
    return from_homogeneous(readouts.astype(np.float32)).astype(readouts.dtype)


claim = Claim(
    stem="query_dependent_rate",
    statement="W_1(q) carries 1/D(q): read at q' it gives (D(q')/D(q)) o(q'). Trained without D on "
    "the targets [v; 1], one set of weights serves every query: the ratio of its read-outs is o.",
    kind=Kind.CAVEAT,
    tempting="The W_1 trained for one query answers every other query as attention does.",
    needs=(
        "attention",
        "GramFeatures",
        "normalizer",
        "initial_weights",
        "gradient",
        "gradient_step",
        "predict",
        "to_homogeneous",
        "from_homogeneous",
    ),
    check=check,
    mutants=(
        mutant("one_D", "D of the first query is that of all queries", normalizer=_first_query),
        mutant("no_D", "the step is taken without D", gradient=_gradient_without_D),
        mutant("W_0_without_D", "W_0 is built without D", initial_weights=_initial_without_D),
        mutant("unit_read_out", "query features have length 1", predict=_unit_read_out),
        mutant("targets_with_0", "the targets are [v; 0]", to_homogeneous=_zeros),
        mutant("ones_first", "the targets are [1; v]", to_homogeneous=_ones_first),
        mutant("mean_of_ones", "the targets are [v; 1/n]", to_homogeneous=_mean),
        mutant("unit_targets", "the targets have length 1", to_homogeneous=_unit_targets),
        mutant("not_divided", "the values' read-outs alone", from_homogeneous=_not_divided),
        mutant(
            "divides_by_the_first",
            "by the first read-out, not the last",
            from_homogeneous=_by_the_first,
        ),
        mutant("adds_epsilon", "1e-6 is added to D", from_homogeneous=_adds_epsilon),
        mutant("D_at_least_1", "D is kept from falling below 1", from_homogeneous=_at_least_1),
        mutant(
            "one_denominator",
            "all are divided by the first query's D",
            from_homogeneous=_one_denominator,
        ),
        mutant("float32_ratio", "the ratio is taken in float32", from_homogeneous=_float32),
    ),
    assumptions="Both queries attend to the same tokens, those behind W_0 included; phi's query "
    "scale does not cancel between two queries.",
    budget="the ratio has the dual's budget; W_1(q) phi(q') has D(q')/D(q) times it, and 2 |o| "
    "times the relative errors of D(q) and D(q').",
    code="equivalence/ratio.py",
    on_heads=True,
)
