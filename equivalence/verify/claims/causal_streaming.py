"""A stream of tokens updates one state; states merge by addition; each is one position's dual."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from equivalence._arrays import Array
from equivalence.features import Features
from equivalence.streaming import AttentionState, causal_attention_by_chunks
from equivalence.verify import oracle
from equivalence.verify.budgets import Budget, attention_budget, dual_budget, exact, gamma
from equivalence.verify.cases import Case
from equivalence.verify.claim import Claim, Kind, mutant
from equivalence.verify.compare import Comparison, compare
from equivalence.verify.dual_case import exponent_error, on_one_scale, scaled
from equivalence.verify.implementation import Implementation

# Several chunks in a real head and in the longer contexts, the last one short.
_CHUNK = 7
# exp by 4 ulp, its argument, and the product: what one change of the scale costs.
_RESCALE = 10


def check(impl: Implementation, case: Case) -> Iterator[Comparison]:
    """By chunks, token by token, and merged: causal attention at every position."""
    case = _one_query_a_token(case)
    Q, K = scaled(case)
    phi = impl.GramFeatures().fit(K)
    keys, queries = phi(K), phi(Q)
    exponent, causal = exponent_error(case, case.u), np.tri(len(K))
    own = streaming_budget(case, keys, queries, exponent, causal)
    o = impl.causal_attention_by_chunks(queries, keys, case.V, chunk_size=_CHUNK)
    yield _by_definition(case, o, own)
    bias = np.where(causal, 0.0, -np.inf)
    both = own + attention_budget(case.Q, case.K, case.V, case.s, case.u, bias)
    want = _causal_attention(impl, case)
    yield compare("prefix state and triangle make causal attention", o, want, both)
    # Real heads are streamed by chunks: their every prefix has been seen above.
    final, ends, streamed = _stream(impl, keys, queries, case.V, _CHUNK if case.real else 1)
    both = own[ends] + own[ends]
    yield compare("the state of tokens 0..t reads o_t at query t", streamed, o[ends], both)
    yield _one_dual_a_position(impl, case, phi, o, own)
    yield from _monoid(impl, case, keys, queries, final, exponent)
    if not case.real:
        yield _any_feature_map(impl, case)


def _one_query_a_token(case: Case) -> Case:
    """The case with as many queries as keys: a real head has them.

    A generated query lies near its own key, so that no prefix is all but invisible to its query:
    D_t would be what is left of large terms, which float32 cannot tell from nothing.
    """
    if case.real:
        return case
    return replace(case, Q=case.K + np.resize(case.Q, case.K.shape) / 2)


def _causal_attention(impl: Implementation, case: Case) -> Array:
    """With the keyword, or for a target that has none by one prefix after the other."""
    Q, K, V, scale = case.Q, case.K, case.V, case.scale
    if "causal" in impl.keywords:
        output: Array = impl.attention(Q, K, V, scale=scale, causal=True)
        return output
    ends = range(1, len(K) + 1)
    return np.concatenate([impl.attention(Q[t - 1 : t], K[:t], V[:t], scale=scale) for t in ends])


def _rows(features: Features, rows: Any) -> Features:
    return Features(features.features[rows], features.log_scale[rows])


def _stream(
    impl: Implementation, keys: Features, queries: Features, V: Array, step: int
) -> tuple[Any, list[int], Array]:
    """The final state; the last of every `step` tokens, and what its query reads then."""
    state = impl.AttentionState.empty(V.shape[1], keys.features.shape[1], dtype=V.dtype)
    ends, outputs = [], []
    for start in range(0, len(V), step):
        new = slice(start, start + step)
        state = state.update(_rows(keys, new), V[new])
        ends.append(min(start + step, len(V)) - 1)
        outputs.append(state.read(_rows(queries, ends[-1:])))
    return state, ends, np.concatenate(outputs)


def streaming_budget(
    case: Case, keys: Features, queries: Features, exponent: Array, attended: Array | float
) -> Budget:
    """The dual's budget over the attended tokens, in any grouping.

    Whatever the grouping, a token is added and rescaled at most n times, the log scales of all
    these factors together falling by no more than their range.
    """
    n, u = len(case.V), case.u
    rescaled = gamma(_RESCALE * n, u) + 2 * u * float(np.ptp(keys.log_scale))
    Phi, error = on_one_scale(keys), exponent + rescaled
    budget = dual_budget(Phi, queries.features, case.V, error, u, attended)
    return Budget(budget.bound, f"{budget.because}; at most n changes of the scale", u)


def _by_definition(case: Case, o: Array, own: Budget) -> Comparison:
    number = case.arithmetic
    rows = case.rows[:1] if case.real else np.arange(len(o))
    s = oracle.scale_of(number, case.scale, case.Q.shape[-1])
    q, k, v = (number.vectors(x) for x in (case.Q[rows], case.K, case.V))
    want = [
        oracle.attention(number, x, k[: t + 1], v[: t + 1], s) for t, x in zip(rows, q, strict=True)
    ]
    what = "o_t = sum_{j<=t} kappa_j v_j / sum_{j<=t} kappa_j"
    return oracle.against(number, what, o[rows], want, own[rows])


def _one_dual_a_position(
    impl: Implementation, case: Case, phi: Any, o: Array, own: Budget
) -> Comparison:
    """One gradient step on the tokens 0..t predicts o_t, at one position of the case."""
    t = int(case.rows[-1]) % len(o)
    # A map that the regressor cannot fit to the prefix keeps the landmarks of the whole context.
    model = impl.OneStepRegressor(lambda x: phi(x), scale=case.scale)
    model.fit(case.K[: t + 1], case.V[: t + 1])
    here, both = slice(t, t + 1), own[t : t + 1] + own[t : t + 1]
    return compare(
        "one dual a position: W_1 phi(q_t) = o_t", model.predict(case.Q[here]), o[here], both
    )


def _monoid(
    impl: Implementation,
    case: Case,
    keys: Features,
    queries: Features,
    final: Any,
    exponent: Array,
) -> Iterator[Comparison]:
    """Shards of a shuffled context, merged neighbour by neighbour in a random order."""
    rng, V = case.rng("shards"), case.V
    shards = [
        impl.AttentionState.of(_rows(keys, tokens), V[tokens])
        for tokens in np.array_split(rng.permutation(len(V)), 4)
    ]
    first = shards[0]
    while len(shards) > 1:
        i = int(rng.integers(len(shards) - 1))
        shards[i : i + 2] = [shards[i] + shards[i + 1]]
    whole = streaming_budget(case, keys, queries, exponent, 1.0)
    merged, read = shards[0].read(queries), final.read(queries)
    yield compare("any grouping and order of a split context", merged, read, whole + whole)
    empty = impl.AttentionState.empty(V.shape[1], keys.features.shape[1], dtype=V.dtype)
    restored = impl.AttentionState.from_arrays(final.to_arrays())
    nothing = exact("a sum of two is symmetric; adding zero, or saving, rounds nothing")
    yield compare("a + b = b + a", _sums(first + final), _sums(final + first), nothing)
    yield compare("0 + a = a", _sums(empty + final), _sums(final), nothing)
    yield compare(
        "a restored state is the state", _sums(restored + first), _sums(final + first), nothing
    )


def _sums(state: Any) -> Array:
    return np.append(state.S, state.n)


def _any_feature_map(impl: Implementation, case: Case) -> Comparison:
    """With random features too, the state reads the causal attention built from them."""
    Q, K = scaled(case)
    phi = impl.PositiveFeatures.sample(K.shape[1], 7, rng=case.rng("projections"))
    keys, queries = phi(K), phi(Q)
    number = case.arithmetic
    f_k, f_q, v = (number.vectors(x) for x in (on_one_scale(keys), queries.features, case.V))
    want = []
    for t, f in enumerate(f_q):
        kappa = [number.dot(f, g) for g in f_k[: t + 1]]
        D = number.sum(kappa)
        want.append([number.dot(kappa, column[: t + 1]) / D for column in zip(*v, strict=True)])
    shift = np.full((len(Q), len(K)), 8 * case.u * (1 + abs(keys.log_scale).max()))
    return oracle.against(
        number,
        "with any feature map, the state reads the attention built from it",
        _stream(impl, keys, queries, case.V, 1)[2],
        want,
        streaming_budget(case, keys, queries, shift, np.tri(len(K))),
    )


class _ForgetsNormalizer(AttentionState):
    def read(self, query_features: Features) -> Array:
        numerator: Array = query_features.features @ self.S.T
        return numerator


class _NormalizerOfFeatures(AttentionState):
    def read(self, query_features: Features) -> Array:
        mean: Array = query_features.features @ (self.S / self.n.sum()).T
        return mean


class _ForgetsScales(AttentionState):
    def merge(self, other: AttentionState) -> _ForgetsScales:
        least = np.minimum(self.least_log_scale, other.least_log_scale)
        largest = np.maximum(self.log_scale, other.log_scale)
        return _ForgetsScales(self.S + other.S, self.n + other.n, largest, least)

    __add__ = merge


class _Decays(AttentionState):
    def merge(self, other: AttentionState) -> _Decays:
        older = _Decays(0.99 * self.S, 0.99 * self.n, self.log_scale, self.least_log_scale)
        return AttentionState.merge(older, other)

    __add__ = merge


class _KeepsFirst(AttentionState):
    """A chunk of one token is new; a shard that is merged is taken for an update of one token."""

    def merge(self, other: AttentionState) -> _KeepsFirst:
        merged = super().merge(other)
        if np.isfinite(self.log_scale) and np.isfinite(other.log_scale):
            return _KeepsFirst(merged.S, merged.n, self.log_scale, merged.least_log_scale)
        return merged

    __add__ = merge


class _EmptyCountsOne(AttentionState):
    """The empty state has n = 1, to keep D from being zero."""

    @classmethod
    def empty(cls, n_outputs: int, n_features: int, *, dtype: Any = np.float64) -> _EmptyCountsOne:
        zero = np.zeros((), dtype)
        return cls(np.zeros((n_outputs, n_features), dtype), np.ones(n_features, dtype), zero, zero)


class _RestoresWithoutScale(AttentionState):
    @classmethod
    def from_arrays(cls, arrays: Any) -> _RestoresWithoutScale:
        return super().from_arrays({**arrays, "log_scale": 1 + 0 * arrays["log_scale"]})


class _Float32(AttentionState):
    def update(self, key_features: Features, values: npt.ArrayLike) -> _Float32:
        state = super().update(key_features, values)
        S = state.S.astype(np.float32).astype(state.S.dtype)
        return _Float32(S, state.n, state.log_scale, state.least_log_scale)


def _chunks(queries: Features, keys: Features, V: Array, size: int) -> Iterator[tuple[Any, ...]]:
    """Each chunk's queries, keys and values, and the state before it."""
    state = AttentionState.empty(V.shape[1], keys.features.shape[1], dtype=V.dtype)
    for start in range(0, len(V), size):
        here = slice(start, start + size)
        yield _rows(queries, here), _rows(keys, here), V[here], state
        state = state.update(_rows(keys, here), V[here])


def _sees_the_whole_chunk(q: Features, k: Features, values: Array, *, chunk_size: int) -> Array:
    return np.concatenate(
        [before.update(f, V).read(g) for g, f, V, before in _chunks(q, k, values, chunk_size)]
    )


def _forgets_the_chunks_before(
    q: Features, k: Features, values: Array, *, chunk_size: int
) -> Array:
    return np.concatenate(
        [causal_attention_by_chunks(g, f, V) for g, f, V, _ in _chunks(q, k, values, chunk_size)]
    )


def _reads_before_it_updates(q: Features, k: Features, values: Array, *, chunk_size: int) -> Array:
    """A query does not see its own token; the first one, which would see none, does."""
    later = causal_attention_by_chunks(
        _rows(q, slice(1, None)), _rows(k, slice(-1)), values[:-1], chunk_size=chunk_size
    )
    return np.concatenate([values[:1], later])


def _drops_last_chunk(q: Features, k: Features, values: Array, *, chunk_size: int) -> Array:
    """The last chunk, shorter than the others, reads the state before it."""
    o = causal_attention_by_chunks(q, k, values, chunk_size=chunk_size)
    *_, (g, _, V, before) = _chunks(q, k, values, chunk_size)
    if len(o) > len(V) and len(V) < chunk_size:
        o[-len(V) :] = before.read(g)
    return o


claim = Claim(
    stem="causal_streaming",
    statement="The state S_t = S_{t-1} + v_t phi(k_t)^T, n_t = n_{t-1} + phi(k_t) reads causal "
    "attention S_t phi(q_t) / (n_t.phi(q_t)): one dual a position. States merge by addition, in "
    "any grouping.",
    kind=Kind.EXACT,
    needs=(
        "attention",
        "GramFeatures",
        "OneStepRegressor",
        "AttentionState",
        "causal_attention_by_chunks",
    ),
    check=check,
    mutants=(
        mutant("forgets_normalizer", "reads S phi(q) alone", AttentionState=_ForgetsNormalizer),
        mutant(
            "normalizer_of_features",
            "divides by the sum of n, whatever the query",
            AttentionState=_NormalizerOfFeatures,
        ),
        mutant(
            "merges_without_rescaling",
            "adds sums of different log scales",
            AttentionState=_ForgetsScales,
        ),
        mutant("decays", "the older state decays by 1 % a merge", AttentionState=_Decays),
        mutant(
            "keeps_first_scale",
            "a merged state has the log scale of its first part",
            AttentionState=_KeepsFirst,
        ),
        mutant("empty_counts_one", "the empty state has n = 1", AttentionState=_EmptyCountsOne),
        mutant(
            "restores_without_scale",
            "a restored state has lost its log scale",
            AttentionState=_RestoresWithoutScale,
        ),
        mutant(
            "sees_the_whole_chunk",
            "no triangle within a chunk",
            causal_attention_by_chunks=_sees_the_whole_chunk,
        ),
        mutant(
            "forgets_the_chunks_before",
            "each chunk starts from the empty state",
            causal_attention_by_chunks=_forgets_the_chunks_before,
        ),
        mutant(
            "reads_before_it_updates",
            "a query does not see its own token",
            causal_attention_by_chunks=_reads_before_it_updates,
        ),
        mutant(
            "drops_last_chunk",
            "a last chunk that is not full is not added",
            causal_attention_by_chunks=_drops_last_chunk,
        ),
        mutant("float32_state", "S is kept in float32", AttentionState=_Float32),
    ),
    assumptions="phi(x).phi(y) is the kernel that attention uses: softmax itself with "
    "gram_features whose landmarks contain every key, in the limit of many with random features; "
    "D_t(q) > 0; the keys' log scales lie within what the dtype carries.",
    budget="one_gradient_step's dual budget over the tokens 0..t, with gamma_(10n) + 2u range of "
    "the log scales for at most n changes of scale.",
    code="equivalence/streaming.py",
    on_heads=True,
)
