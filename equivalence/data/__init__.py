"""Queries, keys and values of every head of a real pretrained model, on one short passage."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib import resources

import numpy as np
from numpy.typing import NDArray

__all__ = ["Heads", "load_heads"]

Head = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Heads:
    """Queries, keys and values of all heads of all layers, as the model computes them.

    They are the affine projections of the hidden states, bias included and *before* the scale
    ``1/sqrt(d)``: ``attention(query, key, value)`` with its default scale is what the model does.

    Attributes
    ----------
    query, key, value : float32 array, shape (layers, heads, tokens, d), read-only
    tokens : the word pieces, one for each token
    text : the passage
    model, licence : the name of the model, and the SPDX name of its licence
    """

    query: NDArray[np.float32]
    key: NDArray[np.float32]
    value: NDArray[np.float32]
    tokens: tuple[str, ...]
    text: str
    model: str
    licence: str

    def head(self, layer: int, head: int) -> Head:
        """Queries, keys and values of one head.

        Parameters
        ----------
        layer, head : counted from 0

        Returns
        -------
        query, key, value : float32 arrays, shape (tokens, d), read-only views

        Raises
        ------
        ValueError : no such layer or head

        Examples
        --------
        >>> query, key, value = load_heads().head(layer=0, head=3)
        >>> query.shape
        (37, 32)
        """
        layers, heads = self.query.shape[:2]
        _check_index("layer", layer, layers)
        _check_index("head", head, heads)
        return self.query[layer, head], self.key[layer, head], self.value[layer, head]


def _check_index(name: str, index: int, size: int) -> None:
    if not 0 <= index < size:
        raise ValueError(f"{name} is {index}, expected 0 to {size - 1}")


@functools.cache
def load_heads() -> Heads:
    """Load the sample that is shipped with the package; it is read once.

    Returns
    -------
    Heads : 6 layers of 12 heads, 37 tokens, d = 32, float32

    Raises
    ------
    FileNotFoundError : the package was installed without its data file

    Notes
    -----
    The model is sentence-transformers/all-MiniLM-L6-v2, Apache-2.0; ``README.md`` beside this file
    gives the attribution, and ``make_heads.py`` makes the sample again from the model's weights.

    Examples
    --------
    >>> heads = load_heads()
    >>> heads.query.shape
    (6, 12, 37, 32)
    >>> heads.tokens[:4]
    ('[CLS]', 'every', 'evening', 'the')
    """
    source = resources.files(__name__).joinpath("minilm_heads.npz")
    with source.open("rb") as file, np.load(file, allow_pickle=False) as sample:
        return Heads(
            query=_frozen(sample["query"]),
            key=_frozen(sample["key"]),
            value=_frozen(sample["value"]),
            tokens=tuple(sample["tokens"].tolist()),
            text=str(sample["text"]),
            model=str(sample["model"]),
            licence=str(sample["licence"]),
        )


def _frozen(x: NDArray[np.float32]) -> NDArray[np.float32]:
    x.setflags(write=False)
    return x
