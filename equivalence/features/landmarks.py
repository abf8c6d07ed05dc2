"""Few features of exp(k.q): landmarks among the keys, and each key's coefficients by least squares.

A few landmarks Z give a query m numbers, phi(q) = kappa(Z, q), and a key the coefficients c(k) with
phi(q).c(k) ~ kappa(k, q). They are the best for a sample of queries in the sense that counts in
attention: with D(q) the normaliser over all keys,

    c(k) = argmin_c sum_q |kappa(k, q) - phi(q).c|^2 / D(q)^2.

A landmark's own coefficients are a unit vector, and exact at every query.
"""

from __future__ import annotations

from typing import Self

import numpy as np
import numpy.typing as npt

from equivalence._arrays import (
    Array,
    as_integer,
    as_points,
    as_tokens,
    common_dtype,
    compute_dtype,
)
from equivalence.features.base import Features


def greedy_columns(G: Array, H: Array, n_columns: int) -> npt.NDArray[np.intp]:
    """The columns of X that span a target T best, chosen one by one: at most n_columns of them.

    G = X^T X (n, n) and H = X^T T (n, c). Each choice lowers the squared Frobenius error of the
    projection of T on the chosen columns by the most that one column can. It ends early when every
    other column lies in their span, up to rounding.

    Source: Farahat, Ghodsi and Kamel 2011, "An efficient greedy method for unsupervised feature
    selection".

    >>> X = np.array([[1.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
    >>> greedy_columns(X.T @ X, X.T @ X, 3).tolist()
    [1, 2]
    """
    G, H = G.astype(np.float64), H.astype(np.float64)
    spanned = len(G) * np.finfo(np.float64).eps * np.diagonal(G)
    chosen: list[int] = []
    while len(chosen) < n_columns:
        left = np.diagonal(G)
        free = left > spanned
        free[chosen] = False
        if not free.any():
            break
        gain = np.einsum("nc,nc->n", H, H) / np.where(free, left, 1.0)
        j = int(np.where(free, gain, -1.0).argmax())
        chosen.append(j)
        g, h = G[:, j] / np.sqrt(G[j, j]), H[j] / np.sqrt(G[j, j])
        G -= np.outer(g, g)
        H -= np.outer(g, h)
    return np.array(chosen, dtype=np.intp)
