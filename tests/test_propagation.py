"""The bounds of moved inputs hold for errors of any size, and are not vacuous."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equivalence import attention
from equivalence.layers import AttentionLayer, LayerNorm, stack, stack_duals
from equivalence.verify import propagation
from equivalence.verify.propagation import Near

U = 2.0**-53
seeds = st.integers(0, 2**32 - 1)
sizes = st.sampled_from([1e-9, 1e-4, 1e-2, 0.1])


def moved(rng: np.random.Generator, x: np.ndarray, size: float) -> tuple[Near, np.ndarray]:
    """An array with errors of that size, and one at their very ends."""
    error = size * rng.random(x.shape)
    return Near(x, error), x + error * rng.choice((-1.0, 1.0), x.shape)


@given(seed=seeds, size=sizes)
def test_a_product_moves_by_the_bound_and_attains_it(seed: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    W, x = rng.standard_normal((3, 4)), rng.standard_normal((2, 4))
    near, elsewhere = moved(rng, x, size)
    bound = propagation.product(near, W, U).error
    assert (abs(elsewhere @ W.T - x @ W.T) <= bound).all()
    worst = (x + near.error * np.sign(W[0])) @ W[0] - x @ W[0]
    assert (worst > 0.99 * (bound[:, 0] - 16 * U * (abs(x) @ abs(W[0])))).all()


@given(seed=seeds, size=sizes, eps=st.sampled_from([1e-12, 1e-5, 1.0]))
def test_a_norm_moves_by_no_more_than_the_bound(seed: int, size: float, eps: float) -> None:
    rng = np.random.default_rng(seed)
    norm = LayerNorm(rng.standard_normal(5), rng.standard_normal(5), eps)
    near, elsewhere = moved(rng, rng.standard_normal((3, 5)), size)
    bound = propagation.normed(near, norm, U).error
    assert (abs(norm(elsewhere) - norm(near.at)) <= bound).all()


def test_a_norm_that_may_lose_all_its_variance_has_no_bound() -> None:
    norm = LayerNorm(np.ones(3), np.zeros(3), 1e-12)
    near = Near(np.array([[1.0, 2.0, 3.0]]), np.ones((1, 3)))
    assert np.isinf(propagation.normed(near, norm, U).error).all()


@given(seed=seeds, size=sizes, causal=...)
def test_attention_moves_by_no_more_than_the_bound(seed: int, size: float, causal: bool) -> None:
    rng = np.random.default_rng(seed)
    arrays = rng.standard_normal((3, 4, 3))
    (Q, q), (K, k), (V, v) = (moved(rng, x, size) for x in arrays)
    bias = np.where(np.tri(4, dtype=bool), 0.0, -np.inf) if causal else None
    bound = propagation.moved_attention(Q, K, V, 0.5, bias)
    off = attention(q, k, v, scale=0.5, causal=causal) - attention(
        *arrays, scale=0.5, causal=causal
    )
    rounded = 64 * U * (1 + abs(arrays[2]).max())
    assert (abs(off) <= bound + rounded).all()


def test_the_bound_of_attention_is_attained() -> None:
    """Two tokens, v = 1 and -1: o = tanh(s), whose slope is the bound's; and values alone."""
    Q, K = Near(np.ones((1, 1)), np.full((1, 1), 1e-6)), np.array([[0.5], [-0.5]])
    V = np.array([[1.0], [-1.0]])
    exactly = Near.exactly
    bound = propagation.moved_attention(Q, exactly(K), exactly(V), 1.0)
    attained = np.tanh(0.5 + 0.5e-6) - np.tanh(0.5)
    assert attained <= bound.item() < 1.01 * attained
    values = propagation.moved_attention(
        exactly(Q.at), exactly(K), Near(V, np.array([[0.1], [0.1]])), 1.0
    )
    assert abs(values.item() - 0.1) <= 4 * U


def test_scores_that_may_be_anything_leave_no_bound() -> None:
    Q, K = Near(np.ones((1, 1)), np.full((1, 1), 9.0)), Near.exactly(np.ones((2, 1)))
    assert np.isinf(propagation.moved_attention(Q, K, Near.exactly(np.ones((2, 1))), 1.0)).all()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("normed", [False, True])
@given(seed=seeds, size=st.sampled_from([1e-9, 1e-4]))
def test_a_layer_moves_by_no_more_than_the_bound(
    causal: bool, normed: bool, seed: int, size: float
) -> None:
    rng = np.random.default_rng(seed)
    W_Q, W_K, W_V, W_O = rng.standard_normal((4, 4, 4)) / 2
    norm = LayerNorm(rng.standard_normal(4), rng.standard_normal(4)) if normed else None
    layer = AttentionLayer(W_Q, W_K, W_V, W_O, norm=norm)
    near, elsewhere = moved(rng, rng.standard_normal((5, 4)), size)
    off = abs(stack(elsewhere, [layer], causal=causal) - stack(near.at, [layer], causal=causal))
    assert (off <= propagation.attention_layer(near, layer, causal, U).error).all()
    (dual,) = stack_duals(near.at, [layer], causal=causal)
    *_, states = propagation.layer_dual(near, layer, dual, causal, U)
    assert (off <= states.error).all()
    # A bound that is far from what happens would hide an error as large.
    assert (states.error.max(axis=0) <= 300 * off.max()).all()
