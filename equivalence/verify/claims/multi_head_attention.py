"""Multi-head attention is one gradient step of one linear model with block-diagonal features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from equivalence import layers
from equivalence._arrays import Array
from equivalence.data import load_heads
from equivalence.verify import oracle
from equivalence.verify.budgets import Budget, attention_budget, dual_budget, gamma, sum_budget
from equivalence.verify.cases import Case, head_case
from equivalence.verify.claim import Claim, Kind, mutant
from equivalence.verify.compare import Comparison, compare
from equivalence.verify.dual_case import DualCase, exponent_error, see_dual
from equivalence.verify.implementation import Implementation

_ETA = 0.3
_N_HEADS, _N_OUTPUTS = 3, 3


def check(impl: Implementation, case: Case) -> Iterator[Comparison]:
    """The case as the first of several heads: two of a real layer, three otherwise."""
    yield from check_heads(impl, [case, *_beside(case)])


def _beside(case: Case) -> list[Case]:
    """The next head of the same layer; of a case that is not real, heads of its shape and size."""
    if case.place is not None:
        layer, head = case.place
        after = (head + 1) % load_heads().query.shape[1]
        return [head_case(case.seed, layer, after, case.arithmetic)]
    return [_drawn(case, f"head {h}") for h in range(1, _N_HEADS)]


def _drawn(case: Case, purpose: str) -> Case:
    rng = case.rng(purpose)
    Q, K, V = (
        (np.sqrt(np.mean(x**2)) * rng.standard_normal(x.shape)).astype(x.dtype)
        for x in (case.Q, case.K, case.V)
    )
    return replace(case, Q=Q, K=K, V=V)


def check_heads(impl: Implementation, heads: Sequence[Case]) -> Iterator[Comparison]:
    """The layer by its definition, and its joint dual against both."""
    case, W_O = heads[0], _output_matrix(heads)
    number, rows = case.arithmetic, case.rows[: 1 if case.real else None]
    exact_heads = [_side_by_side(heads, int(row)) for row in rows]
    matrix = number.vectors(W_O)
    exact_y = [[number.dot(row, o) for row in matrix] for o in exact_heads]

    alone = [attention_budget(x.Q, x.K, x.V, x.s, x.u) for x in heads]
    concatenated = Budget(np.concatenate([x.bound for x in alone], -1), alone[0].because, case.u)
    layer = _layer_budget(heads, W_O, concatenated)
    Q, K, V = (np.stack([getattr(head, name) for head in heads]) for name in "QKV")
    y = impl.multi_head_attention(Q, K, V, W_O, scale=case.scale)
    yield oracle.against(number, "y = sum_h W_O^h o^h", y[rows], exact_y, layer[rows])

    duals = [see_dual(impl, head) for head in heads]
    joint = _joint_budget(heads, duals, W_O)
    W_1 = _one_step(impl, case, V, [x.Phi for x in duals], W_O)
    phi_q = impl.joint_query_features([x.phi_q for x in duals], [x.D for x in duals])
    predicted = impl.predict(W_1, phi_q)
    yield compare("W_1 phi_joint(q) = y", predicted, y, layer + joint)
    yield oracle.against(
        number, "W_1 phi_joint(q) = sum_h W_O^h o^h", predicted[rows], exact_y, joint[rows]
    )
    if not case.real:
        beside = impl.multi_head_attention(Q, K, V, scale=case.scale)[rows]
        yield oracle.against(number, "heads side by side", beside, exact_heads, concatenated[rows])
        yield _blocks(impl, heads, duals, W_O, W_1)


def _output_matrix(heads: Sequence[Case]) -> Array:
    V = heads[0].V
    size = len(heads) * V.shape[1]
    W_O: Array = heads[0].rng("W_O").standard_normal((_N_OUTPUTS, size)) / np.sqrt(size)
    return W_O.astype(V.dtype)


def _side_by_side(heads: Sequence[Case], row: int) -> list[oracle.Number]:
    """[o^1; ...; o^h] at one query, by the definition."""
    o: list[oracle.Number] = []
    for head in heads:
        number = head.arithmetic
        (q,), k, v = (number.vectors(x) for x in (head.Q[row : row + 1], head.K, head.V))
        s = oracle.scale_of(number, head.scale, head.Q.shape[-1])
        o += oracle.attention(number, q, k, v, s)
    return o


def _one_step(impl: Implementation, case: Case, V: Array, Phi: list[Array], W_O: Array) -> Array:
    """From the query-side tokens' W_0, a step on the demonstrations of all heads together.

    D is 1 here: each head's own is in the read-out.
    """
    seen, given = slice(None, case.N), slice(case.N, None)

    def pairs(tokens: slice) -> tuple[Array, Array]:
        features = impl.joint_key_features([features[tokens] for features in Phi])
        return impl.joint_labels(V[:, tokens], W_O), features

    W_0 = impl.initial_weights(*pairs(given), 1.0)
    W_1: Array = impl.gradient_step(W_0, impl.gradient(*pairs(seen), 1.0, _ETA), _ETA)
    return W_1


def _blocks(
    impl: Implementation,
    heads: Sequence[Case],
    duals: Sequence[DualCase],
    W_O: Array,
    W_1: Array,
) -> Comparison:
    """W_1 = [W_O^1 W_1^1, ..., W_O^h W_1^h], with each head's own dual weights times its D."""
    blocks = np.split(W_O, len(heads), axis=1)
    each = list(zip(blocks, heads, duals, strict=True))
    size = [abs(W) @ abs(head.V).T @ abs(x.Phi) for W, head, x in each]
    n, c = heads[0].V.shape
    return compare(
        "W_1 = [W_O^1 W_1^1, ..., W_O^h W_1^h]",
        W_1,
        np.concatenate([W @ impl.initial_weights(head.V, x.Phi, 1.0) for W, head, x in each], -1),
        sum_budget(np.concatenate(size, -1)[..., None], 2 * (n + c) + 6, heads[0].u),
    )


def _layer_budget(heads: Sequence[Case], W_O: Array, concatenated: Budget) -> Budget:
    largest = np.concatenate([abs(head.V).max(axis=0) for head in heads])
    product = gamma(len(largest) + 2, heads[0].u) * (abs(W_O) @ largest)
    return Budget(
        concatenated.bound @ abs(W_O).T + product,
        f"|W_O| times the heads' own, and gamma_(hc) |W_O| max |v|: {concatenated.because}",
        heads[0].u,
    )


def _joint_budget(heads: Sequence[Case], duals: Sequence[DualCase], W_O: Array) -> Budget:
    """Each head's dual on its labels, and the longer sum of the read-out over all features."""
    u, M = heads[0].u, sum(x.Phi.shape[1] for x in duals)
    total = Budget(np.zeros(()), "", u)
    for block, head, x in zip(np.split(W_O, len(heads), axis=1), heads, duals, strict=True):
        labels = abs(head.V) @ abs(block).T
        own = dual_budget(x.Phi, x.phi_q, labels, exponent_error(head, u), u)
        D = (x.phi_q @ x.Phi.T).sum(axis=-1)[:, None]
        terms = abs(x.phi_q) @ abs(x.Phi).T @ labels / abs(D)
        more = gamma(M + head.V.shape[1] + 8, u) * terms
        total = Budget(
            total.bound + own.bound + more,
            f"summed over the heads: {own.because}; gamma of all {M} features",
            u,
        )
    return total


def _reversed_heads(query: Any, key: Any, value: Any, *W_O: Any, **o: Any) -> Array:
    Q, K, V = (x[..., ::-1, :, :] for x in (query, key, value))
    return layers.multi_head_attention(Q, K, V, *W_O, **o)


def _concatenated(arrange: Any) -> Any:
    """A layer that puts its heads side by side in another way."""

    def wrong(query: Any, key: Any, value: Any, *W_O: Any, **o: Any) -> Array:
        n, c = query.shape[-2], value.shape[-1]
        heads = layers.multi_head_attention(query, key, value, **o).reshape(n, -1, c)
        y: Array = arrange(heads).reshape(n, -1)
        return y @ W_O[0].T if W_O else y

    return wrong


def _without_last_block(query: Any, key: Any, value: Any, *W_O: Any, **o: Any) -> Array:
    kept = (
        np.concatenate([W[:, : -value.shape[-1]], 0 * W[:, -value.shape[-1] :]], 1) for W in W_O
    )
    return layers.multi_head_attention(query, key, value, *kept, **o)


def _mean_of_heads(query: Any, key: Any, value: Any, *W_O: Any, **o: Any) -> Array:
    return layers.multi_head_attention(query, key, value, *(W / len(query) for W in W_O), **o)


def _float32(query: Any, key: Any, value: Any, *W_O: Any, **o: Any) -> Array:
    single = (x.astype(np.float32) for x in (query, key, value, *W_O))
    return layers.multi_head_attention(*single, **o).astype(value.dtype)


def _one_D(features: Any, D: Any) -> Array:
    return layers.joint_query_features(features, [D[0]] * len(D))


def _sum_of_D(features: Any, D: Any) -> Array:
    return layers.joint_query_features(features, [sum(D)] * len(D))


def _shared_features(features: Any) -> Array:
    """The first head's features in every head, as far as the shapes allow."""
    shared = []
    for own in features:
        m = min(own.shape[1], features[0].shape[1])
        shared.append(np.concatenate([features[0][:, :m], own[:, m:]], axis=1))
    return layers.joint_key_features(shared)


def _mixed_features(features: Any) -> Array:
    return np.concatenate([np.concatenate(features, axis=1)] * len(features))


def _first_block_for_all(value: Any, W_O: Any) -> Array:
    return layers.joint_labels(value, np.tile(W_O[:, : value.shape[-1]], len(value)))


def _transposed_W_O(value: Any, W_O: Any) -> Array:
    return layers.joint_labels(value, W_O.T.reshape(W_O.shape))


claim = Claim(
    stem="multi_head_attention",
    statement="Concatenated heads times W_O are one linear model after one gradient step: labels "
    "W_O^h v_j, key features block by block, W_1 = [W_O^1 W_1^1, ..., W_O^h W_1^h], read out at "
    "[phi_1(q)/D_1(q); ...; phi_h(q)/D_h(q)], with one normaliser a head.",
    kind=Kind.EXACT,
    needs=(
        "GramFeatures",
        "multi_head_attention",
        "joint_labels",
        "joint_key_features",
        "joint_query_features",
    ),
    check=check,
    mutants=(
        mutant("one_D", "every head has the D of the first", joint_query_features=_one_D),
        mutant("sum_of_D", "the heads share the sum of their D", joint_query_features=_sum_of_D),
        mutant(
            "shared_features",
            "all heads have the first one's features",
            joint_key_features=_shared_features,
        ),
        mutant(
            "mixed_features",
            "a token's features are those of all heads",
            joint_key_features=_mixed_features,
        ),
        mutant(
            "first_block_for_all",
            "W_O^1 in the labels of all heads",
            joint_labels=_first_block_for_all,
        ),
        mutant("transposed_W_O", "W_O^T read as W_O", joint_labels=_transposed_W_O),
        mutant(
            "reversed_heads", "the last head is the first", multi_head_attention=_reversed_heads
        ),
        mutant(
            "heads_before_tokens",
            "(h, n, c) read as (n, h c) without moving the axis",
            multi_head_attention=_concatenated(lambda heads: heads.swapaxes(0, 1)),
        ),
        mutant(
            "interleaved",
            "the first coordinates of all heads come first",
            multi_head_attention=_concatenated(lambda heads: heads.swapaxes(1, 2)),
        ),
        mutant(
            "without_last_block",
            "W_O is zero for the last head",
            multi_head_attention=_without_last_block,
        ),
        mutant(
            "mean_of_heads", "heads are averaged, not summed", multi_head_attention=_mean_of_heads
        ),
        mutant("float32_heads", "computed in float32", multi_head_attention=_float32),
    ),
    assumptions="As one_gradient_step, for each head: its features are exact for its own kernel. "
    "The layer's weights sum to 1 in each head, so to h in all: jointly no kernel smoother.",
    budget="sum over the heads of |W_O^h| times attention's budget and of the dual's on the labels "
    "|W_O^h| |v_j|, and gamma of the sum over all features.",
    code="equivalence/layers/heads.py",
    on_heads=True,
)
