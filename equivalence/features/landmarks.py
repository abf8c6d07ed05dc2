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
from equivalence.features.base import Features, as_sample
from equivalence.features.gram import as_bytes


def greedy_columns(G: Array, H: Array, n_columns: int) -> npt.NDArray[np.intp]:
    """The columns of X that span a target T best, chosen one by one: at most n_columns of them.

    G = X^T X (n, n) and H = X^T T (n, c). Each choice lowers the squared Frobenius error of the
    projection of T on the chosen columns by the most that one column can. It ends early when every
    other column lies in their span, up to rounding.

    Source: Farahat, Ghodsi and Kamel 2011, "An efficient greedy method for unsupervised feature
    selection".

    >>> X = np.array([[1.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
    >>> greedy_columns(X.T @ X, X.T @ X, 3).tolist()
    [0, 2]
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


class LandmarkFeatures:
    """At most m features: one map of queries, kappa(Z, q), and one of keys, fitted to a sample.

    `phi.queries(q)` are the kernel values of the landmarks and `phi.keys(k)` the coefficients of
    the key, so that phi.keys(k).phi.queries(q) ~ exp(k.q) in least squares over the sample of
    queries, each divided by its D. At a landmark it is exp(k.q) for *every* query; so with all
    distinct keys as landmarks the attention is exact, as with GramFeatures. For a few landmarks
    the error is far below theirs: those interpolate at the landmarks, these fit the queries.

    Parameters
    ----------
    n_landmarks : int
        m, at least 1. There are fewer where the sample's attention has a smaller rank.

    Attributes
    ----------
    landmarks_ : array (m, d)
        Keys in the order in which `greedy_columns` chose them: the first k of them are what
        n_landmarks = k gives.
    indices_ : array (m,)
        Their rows among the keys, the first of equal ones.

    Raises
    ------
    ValueError
        n_landmarks below 1.
    TypeError
        n_landmarks that is not an integer.

    Notes
    -----
    Neither unbiased nor positive: a normaliser can be zero or negative where the sample says
    nothing of a query. The error at the sample's own queries, which the landmarks were chosen for,
    is below that at others; `tests/benchmarks/head_features.py` measures both. Where a token's own
    query is not known, draws of a regression on its key and value serve.

    Where one feature map is expected twice, give these:
    `OneStepRegressor(phi.keys, query_map=phi.queries)`.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> K, Q = rng.normal(size=(9, 2)), rng.normal(size=(40, 2))
    >>> phi = LandmarkFeatures(9).fit(K, Q)
    >>> kernel = phi.keys(K).phi() @ phi.queries([[0.3, -0.5]]).phi().T
    >>> bool(np.allclose(kernel[phi.indices_], np.exp(K[phi.indices_] @ [[0.3], [-0.5]])))
    True
    """

    landmarks_: Array
    indices_: npt.NDArray[np.intp]

    def __init__(self, n_landmarks: int) -> None:
        self.n_landmarks = as_integer("n_landmarks", n_landmarks)
        if self.n_landmarks < 1:
            raise ValueError(f"n_landmarks is {n_landmarks!r}; expected at least 1")

    def fit(self, keys: npt.ArrayLike, queries: npt.ArrayLike | None = None) -> Self:
        """Choose landmarks among the keys (n, d) for a sample of queries (n_q, d).

        Without queries the keys are the sample, which suits queries that are like them.

        Raises ValueError for shapes that do not fit, no rows, entries that are not finite, and
        scores that overflow.
        """
        given = as_points("keys", keys)
        K = as_sample("keys", given, given.shape[-1])
        Q = K if queries is None else as_sample("queries", queries, K.shape[1])
        with np.errstate(all="ignore"):
            scores = Q @ K.T
        if not np.isfinite(scores).all():
            raise ValueError("queries has rows whose scores overflow; expected finite scores")
        largest = scores.max(axis=1)
        log_D = largest + np.log(np.exp(scores - largest[:, None]).sum(axis=1))
        A = np.exp(scores - log_D[:, None])
        G = A.T @ A
        chosen = greedy_columns(G, G, self.n_landmarks)
        norms = np.linalg.norm(A[:, chosen], axis=0)
        self._basis, self._triangle = np.linalg.qr(A[:, chosen] / norms)
        self._sample, self._log_D, self._log_norms = Q, log_D, np.log(norms)
        self.indices_ = chosen
        self.landmarks_ = given[self.indices_].astype(compute_dtype(given.dtype))
        self._row_of = {point: row for row, point in enumerate(as_bytes(self.landmarks_))}
        return self

    def queries(self, x: npt.ArrayLike) -> Features:
        """exp(z.x) of each landmark over its norm in the sample: points (..., n, d), (..., n, m).

        In the dtype of x and the landmarks together. A point with NaN or inf, or so large that x.z
        overflows, has real features that are NaN. Raises ValueError if d is not the landmarks'
        dimension, or before `fit`.
        """
        X = self._points(x)
        with np.errstate(all="ignore"):
            exponent = X @ self.landmarks_.T.astype(X.dtype) - self._log_norms.astype(X.dtype)
            largest = exponent.max(axis=-1)
            return Features(np.exp(exponent - largest[..., None]), largest)

    def keys(self, x: npt.ArrayLike) -> Features:
        """The coefficients c of keys (..., n, d), also of others than those of `fit`: (..., n, m).

        A landmark has a unit vector. dtype, NaN and errors as for `queries`; computed in float64.
        """
        from scipy.linalg import solve_triangular

        X = self._points(x)
        points = X.reshape(-1, X.shape[-1]).astype(np.float64)
        with np.errstate(all="ignore"):
            exponent = self._sample @ points.T - self._log_D[:, None]
            log_scale = exponent.max(axis=0)
            columns = self._basis.T @ np.exp(exponent - log_scale)
            solved = solve_triangular(self._triangle, columns, check_finite=False)
        coefficients = np.ascontiguousarray(solved.T)
        for i, point in enumerate(as_bytes(points)):
            row = self._row_of.get(point)
            if row is not None:
                coefficients[i] = np.eye(1, len(self._log_norms), row)
                log_scale[i] = self._log_norms[row]
        shape = X.shape[:-1]
        return Features(
            coefficients.reshape(*shape, -1).astype(X.dtype, copy=False),
            log_scale.reshape(shape).astype(X.dtype, copy=False),
        )

    def _points(self, x: npt.ArrayLike) -> Array:
        if not hasattr(self, "landmarks_"):
            raise ValueError(
                "LandmarkFeatures has no landmarks yet; expected fit(keys, queries) to come first"
            )
        X = as_tokens("x", x, dim=self.landmarks_.shape[1])
        return X.astype(common_dtype(X, self.landmarks_), copy=False)
