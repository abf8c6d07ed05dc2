"""Negative samples in the dual's loss take a multiple of their mean from each value."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from equivalence import attention, attention_weights
from equivalence._arrays import Array
from equivalence.modifications import lowest_score_tokens, negative_attention, negative_labels
from equivalence.verify import oracle
from equivalence.verify.budgets import Budget, attention_budget, exact, score_error, sum_budget
from equivalence.verify.cases import Case
from equivalence.verify.claim import Claim, Kind, mutant
from equivalence.verify.compare import Comparison, compare
from equivalence.verify.dual_case import DualCase
from equivalence.verify.implementation import Implementation
from equivalence.verify.modified_case import modify

# Neither is a power of two, which would hide a rounding.
_BETA, _ETA = 0.3, 0.7

Sets = npt.NDArray[np.bool_]


def check(impl: Implementation, case: Case) -> Iterator[Comparison]:
    """Given sets and lowest scores: by definition and by the dual; the loss; the limits."""
    # The mean of some values is no larger than the largest of them.
    x = modify(impl, case, abs(case.V) + _BETA * abs(case.V).max(axis=0))
    given = _given_sets(case)
    layer = _layer(impl, case, negatives=given)
    step = _one_step(impl, case, x.dual, given)
    yield compare("one step gives the layer", step, layer, x.both)
    # With the lowest scores there is one set of labels for each query.
    lowest, rows = _lowest(impl, case), case.rows
    piecewise = _layer(impl, case, n_negatives=_r(case))
    step = _one_step(impl, case, x.dual.at(rows), lowest[rows, None, : case.N])
    what = "one step with the lowest scores gives the layer"
    yield compare(what, step, piecewise[rows], x.both[rows])
    yield from _by_definition(case, layer, piecewise, given, lowest, x.layer)
    yield from _selection(impl, case, lowest)
    o = impl.attention(case.Q, case.K, case.V, scale=case.scale)
    own = attention_budget(case.Q, case.K, case.V, case.s, case.u)
    nothing = _layer(impl, case, n_negatives=_r(case), beta=0.0)
    yield compare("beta = 0 is attention", nothing, o, own + own)
    if not case.real:
        yield _centred(impl, case, o, own)
        yield _loss(impl, case, x.dual, given)


def _given_sets(case: Case) -> Sets:
    """Sets of three on average, the first of them empty."""
    sets = case.rng("negatives").random((case.N, case.N)) < 3 / max(case.N, 6)
    sets[:1] = False
    return sets


def _r(case: Case) -> int:
    return (case.N + 1) // 2


def _layer(impl: Implementation, case: Case, **sets: Any) -> Array:
    options = {"beta": _BETA, "n_demonstrations": case.N, "scale": case.scale} | sets
    output: Array = impl.negative_attention(case.Q, case.K, case.V, **options)
    return output


def _lowest(impl: Implementation, case: Case) -> Sets:
    lowest: Sets = impl.lowest_score_tokens(
        case.Q, case.K, _r(case), n_demonstrations=case.N, scale=case.scale
    )
    return lowest


def _one_step(impl: Implementation, case: Case, x: DualCase, sets: Sets) -> Array:
    N = case.N
    W_0 = impl.initial_weights(case.V[N:], x.Phi[N:], x.D)
    labels = impl.negative_labels(case.V[:N], beta=_BETA, negatives=sets)
    slope = impl.gradient(labels, x.Phi[:N], x.D, _ETA)
    prediction: Array = impl.predict(impl.gradient_step(W_0, slope, _ETA), x.phi_q)
    return prediction


def _by_definition(
    case: Case, layer: Array, piecewise: Array, given: Sets, lowest: Sets, budget: Budget
) -> Iterator[Comparison]:
    """Demonstrations less beta times the mean of N(i), query-side tokens as they are."""
    number, rows = case.arithmetic, case.rows
    s = oracle.scale_of(number, case.scale, case.Q.shape[-1])
    q, k, v = (number.vectors(a) for a in (case.Q[rows], case.K, case.V))
    P = [oracle.weights(number, x, k, s) for x in q]
    # One set for all i, another one for each query.
    by_query = [_labels(case, v, np.tile(lowest[row, : case.N], (case.N, 1))) for row in rows]
    kinds = [("o = sum_i p_i (v_i - beta mean_{N(q)} v) + sum_t p_t v_t", piecewise, by_query)]
    if not case.real:
        labels = [_labels(case, v, given)] * len(rows)
        kinds += [("o = sum_i p_i (v_i - beta mean_{N(i)} v) + sum_t p_t v_t", layer, labels)]
    for what, got, values in kinds:
        want = [number.dots([p], _columns(w))[0] for p, w in zip(P, values, strict=True)]
        yield oracle.against(number, what, got[rows], want, budget[rows])


def _columns(rows: list[list[oracle.Number]]) -> list[list[oracle.Number]]:
    """The columns of a matrix."""
    return [list(column) for column in zip(*rows, strict=True)]


def _labels(case: Case, v: list[list[oracle.Number]], sets: Sets) -> list[list[oracle.Number]]:
    """v_i - (beta/|N(i)|) sum_{j in N(i)} v_j of the demonstrations; the others as they are."""
    number, beta = case.arithmetic, case.arithmetic.number(_BETA)
    distinct, which = np.unique(sets, axis=0, return_inverse=True)
    sums = (
        number.dots(number.vectors(distinct.astype(np.float64)), _columns(v[: case.N]))
        if case.N
        else []
    )
    labels = list(v)
    for i, chosen in enumerate(which.reshape(-1)):
        share = beta / number.number(float(max(1, distinct[chosen].sum())))
        labels[i] = [x - share * y for x, y in zip(v[i], sums[chosen], strict=True)]
    return labels


def _selection(impl: Implementation, case: Case, lowest: Sets) -> Iterator[Comparison]:
    """r demonstrations whose scores are, but for rounding, the lowest; of equal ones the first."""
    number, rows, r = case.arithmetic, case.rows, _r(case)
    counts = np.stack([lowest.sum(axis=-1), lowest[:, : case.N].sum(axis=-1)], axis=-1)
    wanted = np.full(counts.shape, r)
    yield compare("N(q) has r tokens, all of them demonstrations", counts, wanted, exact("a count"))
    s = oracle.scale_of(number, case.scale, case.Q.shape[-1])
    q, k = number.vectors(case.Q[rows]), number.vectors(case.K)
    excess = []
    for scores, chosen in zip(number.dots(q, k), lowest[rows], strict=True):
        within = [s * scores[j] for j in range(case.N) if chosen[j]]
        beyond = [s * scores[j] for j in range(case.N) if not chosen[j]]
        ordered = not (within and beyond) or float(max(within)) <= float(min(beyond))
        excess.append([number.number(0.0) if ordered else max(within) - min(beyond)])
    error = 2 * score_error(case.Q[rows], case.K, case.s, case.u).max(axis=-1, keepdims=True)
    yield oracle.against(
        number,
        "no score in N(q) is above one outside",
        np.zeros((len(rows), 1)),
        excess,
        Budget(error, "two scores that err by gamma_(d+5) |q|.|k| each can change places", case.u),
    )
    same = np.repeat(case.K[:1], len(case.K), axis=0)
    ties = impl.lowest_score_tokens(case.Q, same, r, n_demonstrations=case.N, scale=case.scale)
    first = np.tile(np.arange(len(same)) < r, (len(case.Q), 1))
    yield compare("of equal scores the first are the lowest", ties, first, exact("a choice"))


def _centred(impl: Implementation, case: Case, o: Array, own: Budget) -> Comparison:
    n = len(case.K)
    centred = modify(impl, case, abs(case.V) + abs(case.V).max(axis=0)).layer
    mean = sum_budget(case.V, n + 1, case.u, axis=0).times(1 / n)
    layers = [
        _layer(impl, case, n_demonstrations=n, beta=1.0, n_negatives=n),
        _layer(impl, case, n_demonstrations=n, beta=1.0, negatives=np.ones((1, n), bool)),
    ]
    return compare(
        "beta = 1 with all tokens as negatives is o - vbar",
        np.stack(layers),
        np.stack([o - case.V.mean(axis=0)] * 2),
        centred + own + mean,
    )


def _loss(impl: Implementation, case: Case, x: DualCase, given: Sets) -> Comparison:
    """The labels put the negative samples into the loss as they are written in it.

    Both sides are divided by the magnitude of the terms of the loss, which may cancel.
    """
    V, Phi, D = case.V[: case.N], x.Phi[: case.N], x.D[0]
    W = case.rng("W").standard_normal((V.shape[1], Phi.shape[1])).astype(V.dtype)
    number = case.arithmetic
    v, phi, w = (number.vectors(a) for a in (V, Phi, W))
    beta, eta_D = number.number(_BETA), number.number(_ETA) * number.number(float(D))
    terms = []
    for i, f in enumerate(phi):
        prediction = number.dots([f], w)[0]
        terms.append(-number.dot(v[i], prediction) / eta_D)
        chosen = np.flatnonzero(given[i])
        share = beta / (number.number(float(max(1, len(chosen)))) * eta_D)
        terms += [share * number.dot(v[j], prediction) for j in chosen]
    largest = abs(V) + _BETA * abs(V).max(axis=0, initial=0)
    size = float((largest @ abs(W) * abs(Phi)).sum() / (_ETA * abs(D))) or 1.0
    labels = impl.negative_labels(V, beta=_BETA, negatives=given)
    got = impl.loss(W, labels, Phi, D, _ETA)
    return oracle.against(
        number,
        "L = -(1/(eta D)) sum_i (v_i^T W phi_i - (beta/|N(i)|) sum_{j in N(i)} v_j^T W phi_i)",
        np.reshape(got / size, (1, 1)),
        [[number.sum(terms) / number.number(size)]],
        sum_budget(np.ones((1, 1, 1)), 2 * (case.N + sum(W.shape)) + 16, case.u),
    )


def _sets(lowest: Any) -> Any:
    """A layer whose sets are those of another function."""

    def layer(
        query: Array, key: Array, value: Array, *, beta: float, n_demonstrations: int, **o: Any
    ) -> Array:
        if "n_negatives" not in o:
            return negative_attention(
                query, key, value, beta=beta, n_demonstrations=n_demonstrations, **o
            )
        r = o.pop("n_negatives")
        chosen = lowest(query, key, r, n_demonstrations=n_demonstrations, **o)
        N = n_demonstrations
        rows = [
            negative_attention(
                query[i : i + 1], key, value, beta=beta, n_demonstrations=N,
                negatives=chosen[i : i + 1, :N], **o,
            )
            for i in range(len(query))
        ]  # fmt: skip
        return np.concatenate(rows)

    return layer


def _highest(query: Array, key: Array, r: int, **o: Any) -> Sets:
    return lowest_score_tokens(-query, key, r, **o)


def _one_too_few(query: Array, key: Array, r: int, **o: Any) -> Sets:
    return lowest_score_tokens(query, key, max(r - 1, 0), **o)


def _one_set_for_all(query: Array, key: Array, r: int, **o: Any) -> Sets:
    lowest = lowest_score_tokens(query.mean(axis=0, keepdims=True), key, r, **o)
    return lowest.repeat(len(query), axis=0)


def _last_of_equal(query: Array, key: Array, r: int, *, n_demonstrations: int, **o: Any) -> Sets:
    """The demonstrations are ranked from the last to the first."""
    N = n_demonstrations
    lowest = lowest_score_tokens(query, key[:N][::-1], r, **o)[:, ::-1]
    return np.pad(lowest, ((0, 0), (0, len(key) - N)))


def _adds(query: Array, key: Array, value: Array, *, beta: float, **o: Any) -> Array:
    return negative_attention(query, key, value, beta=-beta, **o)


def _from_query_side_too(
    query: Array, key: Array, value: Array, *, beta: float, n_demonstrations: int, **o: Any
) -> Array:
    """o - beta mean, where it should be o - beta p_D mean."""
    output = negative_attention(
        query, key, value, beta=beta, n_demonstrations=n_demonstrations, **o
    )
    if "n_negatives" not in o or n_demonstrations == 0:
        return output
    o_plain: Array = attention(query, key, value, scale=o["scale"])
    p: Array = attention_weights(query, key, scale=o["scale"])[:, :n_demonstrations]
    p_D: Array = p.sum(axis=-1, keepdims=True)
    return o_plain + (output - o_plain) / p_D


def _float32(query: Array, key: Array, value: Array, **o: Any) -> Array:
    single = (x.astype(np.float32) for x in (query, key, value))
    return negative_attention(*single, **o).astype(value.dtype)


def _sums(values: Array, *, beta: float, negatives: Sets) -> Array:
    size = np.broadcast_to(negatives, (*negatives.shape[:-2], len(values), len(values))).sum(-1)
    mean = values - negative_labels(values, beta=beta, negatives=negatives)
    labels: Array = (values - size[..., None] * mean).astype(values.dtype)
    return labels


def _mean_over_all(values: Array, *, beta: float, negatives: Sets) -> Array:
    share = negatives.mean(axis=-1)[..., None] if negatives.size else 0.0
    mean = values - negative_labels(values, beta=beta, negatives=negatives)
    labels: Array = (values - share * mean).astype(values.dtype)
    return labels


def _transposed(values: Array, *, beta: float, negatives: Sets) -> Array:
    if negatives.shape[-2] == negatives.shape[-1]:
        negatives = np.swapaxes(negatives, -1, -2)
    return negative_labels(values, beta=beta, negatives=negatives)


def _forgets_empty(values: Array, *, beta: float, negatives: Sets) -> Array:
    """A token without negatives is dropped, value and all."""
    labels = negative_labels(values, beta=beta, negatives=negatives)
    return labels * negatives.any(axis=-1, keepdims=True)


claim = Claim(
    stem="negative_attention",
    statement="One step on the loss whose labels are v_i - (beta/|N(i)|) sum_{j in N(i)} v_j gives "
    "attention with these values of the demonstrations, for given sets N(i) and for the r lowest "
    "scores; beta = 1 with all tokens as negatives gives centred attention, o - vbar.",
    kind=Kind.EXACT,
    needs=("attention", "negative_attention", "negative_labels", "lowest_score_tokens"),
    check=check,
    mutants=(
        mutant("adds", "the mean of the negatives is added", negative_attention=_adds),
        mutant(
            "highest_scores",
            "the negatives are the tokens with the highest scores",
            negative_attention=_sets(_highest),
        ),
        mutant(
            "one_set_for_all_queries",
            "the lowest scores are those of the mean query",
            negative_attention=_sets(_one_set_for_all),
        ),
        mutant(
            "from_query_side_too",
            "the query-side tokens lose the mean of the negatives as well",
            negative_attention=_from_query_side_too,
        ),
        mutant("one_too_few", "N(q) has r - 1 tokens", lowest_score_tokens=_one_too_few),
        mutant(
            "last_of_equal_scores",
            "of equal scores the last is the lowest",
            lowest_score_tokens=_last_of_equal,
        ),
        mutant("sums", "the negatives are summed, not averaged", negative_labels=_sums),
        mutant(
            "mean_over_all_tokens",
            "the sum of the negatives is divided by N, not by |N(i)|",
            negative_labels=_mean_over_all,
        ),
        mutant(
            "transposed_sets",
            "j is a negative of i where i is one of j",
            negative_labels=_transposed,
        ),
        mutant(
            "forgets_empty_sets",
            "a token without negatives loses its label",
            negative_labels=_forgets_empty,
        ),
        mutant("float32_layer", "the layer is computed in float32", negative_attention=_float32),
    ),
    assumptions="As one_gradient_step. A token with an empty N(i) keeps its value; query-side "
    "tokens keep theirs. The r lowest scores depend on q: the output is piecewise smooth in q and "
    "jumps at ties, where of equal scores the earlier token counts as the lower.",
    budget="those of attention and of the dual's step, and gamma_(5n/4+7) p_j, for values of "
    "the magnitude |v_i| + beta max_j |v_j|.",
    code="equivalence/modifications/negative.py",
    on_heads=True,
)
