"""What the modified layers have in common with attention: dtypes, batches, masks, inputs, NaN."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from equivalence.modifications import (
    augmented_attention,
    linear,
    negative_attention,
    regularized_attention,
)
from equivalence.verify.budgets import attention_budget, unit_roundoff
from equivalence.verify.compare import compare

Layer = Callable[..., np.ndarray]
N = 3
LAYERS: dict[str, Layer] = {
    "regularized_attention": partial(regularized_attention, alpha=0.3, n_demonstrations=N),
    "negative_attention-given": partial(
        negative_attention, beta=0.3, negatives=np.eye(N, k=1, dtype=bool), n_demonstrations=N
    ),
    "negative_attention-lowest": partial(
        negative_attention, beta=0.3, n_negatives=2, n_demonstrations=N
    ),
    "augmented_attention": partial(
        augmented_attention, key_map=np.tanh, value_map=linear(np.eye(2) + 1)
    ),
}
each_layer = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)


def tokens(*batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal((*batch, n, d)) for n, d in ((4, 3), (5, 3), (5, 2)))


@each_layer
@pytest.mark.parametrize(
    ("dtypes", "returned"),
    [
        (("float64",) * 3, "float64"),
        (("float32",) * 3, "float32"),
        (("float16",) * 3, "float16"),
        (("int64",) * 3, "float64"),
        (("float16", "float32", "float16"), "float32"),
        (("float32", "float32", "float64"), "float64"),
    ],
)
def test_dtype_in_is_dtype_out(layer: Layer, dtypes: tuple[str, ...], returned: str) -> None:
    given = [(2 * x).astype(dtype) for x, dtype in zip(tokens(), dtypes, strict=True)]
    output = layer(*given)
    assert output.dtype == returned
    Q, K, V = (x.astype("float64") for x in given)
    wide = layer(Q, K, V)
    u = unit_roundoff("float64" if returned == "float64" else "float32")
    # No layer has values of more than four times the size, nor longer keys.
    allowed = attention_budget(Q, K, np.full_like(V, 4 * abs(V).max()), 3**-0.5, u).bound
    assert (abs(output - wide) <= 2 * allowed + np.finfo(returned).eps * abs(wide)).all()


@each_layer
def test_batch_entries_are_layers_of_their_own(layer: Layer) -> None:
    Q, K, V = tokens(2, 1)
    values = np.stack([V[:, 0], -V[:, 0], 3 * V[:, 0]], axis=1)
    output = layer(Q, K, values)
    assert output.shape == (2, 3, 4, 2)
    for i in range(2):
        for j in range(3):
            one = Q[i, 0], K[i, 0], np.full((5, 2), 4 * abs(values).max())
            budget = attention_budget(*one, 3**-0.5, unit_roundoff("float64")).times(2)
            alone = layer(Q[i, 0], K[i, 0], values[i, j])
            compare("an entry alone", output[i, j], alone, budget).require()


@each_layer
def test_a_masked_token_has_no_effect_whatever_it_holds(layer: Layer) -> None:
    """The last token is query-side, and in nobody's set of negatives."""
    Q, K, V = tokens()
    attends = np.arange(5) < 4
    before = layer(Q, K, V, mask=attends)
    for poison in (100.0, np.inf, np.nan):
        K[4] = V[4] = poison
        assert np.array_equal(layer(Q, K, V, mask=attends), before)


@each_layer
def test_a_row_that_attends_to_nothing_is_nan_and_no_tokens_are_allowed(layer: Layer) -> None:
    Q, K, V = tokens()
    assert np.isnan(layer(Q, K, V, mask=np.zeros(5, bool))).all()
    assert np.isnan(layer(Q, K[:N] * np.nan, V[:N])).all()
    assert layer(Q[:0], K, V).shape == (0, 2)


@each_layer
def test_the_last_query_of_a_causal_layer_sees_what_one_without_mask_sees(layer: Layer) -> None:
    Q, K, V = tokens()
    Q = np.concatenate([Q, Q[:1]])
    causal, full = layer(Q, K, V, causal=True), layer(Q, K, V)
    assert np.array_equal(causal[-1], full[-1])
    assert (causal[:2] != full[:2]).any(axis=-1).all()


@each_layer
def test_the_inputs_are_not_modified(layer: Layer) -> None:
    given = tokens()
    copies = [x.copy() for x in given]
    for x in given:
        x.setflags(write=False)
    layer(*given, mask=np.ones((4, 5), bool))
    assert all(map(np.array_equal, given, copies))


@each_layer
def test_the_scale_is_that_of_attention(layer: Layer) -> None:
    Q, K, V = tokens()
    assert np.array_equal(layer(Q, K, V), layer(Q, K, V, scale=1 / math.sqrt(3)))
    assert not np.array_equal(layer(Q, K, V), layer(Q, K, V, scale=1.0))


def test_without_tokens_the_output_is_nan() -> None:
    Q, none = np.ones((2, 1)), np.ones((0, 1))
    for output in (
        regularized_attention(Q, none, none, alpha=0.5),
        negative_attention(Q, none, none, beta=0.5, n_negatives=0),
        negative_attention(Q, none, none, beta=0.5, negatives=np.ones((0, 0), bool)),
        augmented_attention(Q, none, none, key_map=np.tanh),
    ):
        assert output.shape == (2, 1)
        assert np.isnan(output).all()
