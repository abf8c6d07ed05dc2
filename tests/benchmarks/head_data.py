"""Real heads for head_features.py: queries to fit to, queries held out, and the keys of a text."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from equivalence import attention_weights
from equivalence.data import load_heads, minilm
from equivalence.data.make_heads import tokenize

Array = np.ndarray[Any, np.dtype[np.float64]]
ROOT = Path(__file__).parents[2]
LICENCE = ROOT / "equivalence" / "data" / "LICENSE-Apache-2.0.txt"
OTHERS = (
    ROOT / "README.md",
    ROOT / "proofs" / "gram_features.py",
    ROOT / "proofs" / "one_gradient_step.py",
    ROOT / "proofs" / "positive_features.py",
)
LONGEST = 512

COPIES = 8
RIDGE = 10.0


@dataclass(frozen=True, eq=False)
class Split:
    """One head: the keys and values of a text, and queries, all with the score scale absorbed.

    Attributes
    ----------
    K, V : every key and value of the text
    fit : queries that a map may be fitted to
    likely : the fit queries, and draws of what the held-out ones may be, from `predicted`
    held : queries on which it is judged
    """

    K: Array
    V: Array
    fit: Array
    likely: Array
    held: Array


def weights(queries: Array, keys: Array) -> Array:
    """The attention matrix A."""
    A: Array = attention_weights(queries, keys, scale=1.0)
    return A


def predicted(queries: Array, tokens: Array, others: Array, seed: int) -> Array:
    """Draws of the queries of other tokens, (COPIES * n, d), by what is known of those.

    A token's query, key and value are affine in one hidden state, so that key and value, rows of
    `tokens` (n_fit, 2d), tell much of the query: by a ridge regression, whose leave-one-out
    residuals are drawn from and added.
    """
    mean, deviation = tokens.mean(0), tokens.std(0)
    X, Y = (np.c_[(x - mean) / deviation, np.ones(len(x))] for x in (tokens, others))
    B = np.linalg.inv(X.T @ X + RIDGE * np.eye(X.shape[1]))
    leverage = np.einsum("ni,ij,nj->n", X, B, X)
    W = B @ (X.T @ queries)
    residuals = (queries - X @ W) / (1 - leverage)[:, None]
    rng = np.random.default_rng(seed)
    drawn = residuals[rng.integers(len(X), size=COPIES * len(Y))]
    return np.tile(Y @ W, (COPIES, 1)) + drawn


def held_out(Q: Array, K: Array, V: Array, held: np.ndarray[Any, Any]) -> Iterator[Split]:
    """Each head of (heads, n, d) arrays with the tokens of the mask `held` as held-out queries."""
    for seed, (q, k, v) in enumerate(zip(Q, K, V, strict=True)):
        x = np.c_[k, v]
        drawn = predicted(q[~held], x[~held], x[held], seed)
        yield Split(k, v, q[~held], np.concatenate([q[~held], drawn]), q[held])


def other_text(here: list[Array], there: list[Array]) -> Iterator[Split]:
    """Each head with all queries of one text held out, fitted to queries of other texts."""
    for seed, (q, k, v, *fit) in enumerate(zip(*here, *there, strict=True)):
        drawn = predicted(fit[0], np.c_[fit[1], fit[2]], np.c_[k, v], seed)
        yield Split(k, v, fit[0], np.concatenate([fit[0], drawn]), q)


def shipped() -> list[Array]:
    """Queries, keys and values of the 72 shipped heads on 37 tokens, (72, 37, 32) each."""
    heads = load_heads()
    return _scaled([heads.query, heads.key, heads.value])


def model_is_installed() -> bool:
    """Whether the package with the model's weights is there."""
    return importlib.util.find_spec(minilm.PACKAGE.replace("-", "_")) is not None


def passages() -> tuple[list[Array], list[Array]]:
    """All heads on the first 512 tokens of the Apache licence, and on four other texts together.

    A text is cut after 510 word pieces; [CLS] and [SEP] are put around it.
    """
    folder = minilm.installed_model()
    model = minilm.load_model(folder)
    texts = [_run(model, folder, path) for path in (LICENCE, *OTHERS)]
    others = [np.concatenate(x, axis=1) for x in zip(*texts[1:], strict=True)]
    return texts[0], others


def _run(model: minilm.Model, folder: Path, path: Path) -> list[Array]:
    ids = tokenize(folder, path.read_text(encoding="utf-8"))[0]
    records = minilm.forward(model, [*ids[: LONGEST - 1], ids[-1]] if len(ids) > LONGEST else ids)
    return _scaled([np.stack([getattr(x, name) for x in records]) for name in NAMES])


NAMES = ("query", "key", "value")


def _scaled(arrays: list[np.ndarray[Any, Any]]) -> list[Array]:
    """(layers, heads, n, d) to (layers * heads, n, d), queries and keys over d^(1/4)."""
    Q, K, V = (x.astype(np.float64).reshape(-1, *x.shape[2:]) for x in arrays)
    root = Q.shape[-1] ** 0.25
    return [Q / root, K / root, V]
