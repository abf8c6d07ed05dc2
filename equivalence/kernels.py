"""Attention with any kernel, and the features of its dual: the identity does not ask for exp(q.k).

A kernel takes points (..., n, d) and (..., m, d) to its values (..., n, m). The ones here are
positive semidefinite and positive, so that D(q) = sum_j kappa(k_j, q) > 0:

    elu_kernel        f(x).f(y), f(t) = t + 1 for t > 0 and exp(t) otherwise (linear attention)
    quadratic_kernel  1 + (x.y)^2
    gaussian_kernel   exp(-|x - y|^2 / 2)
    laplace_kernel    exp(-|x - y|_1)

They compute float16 in float32 and return that, and integers in float64. A shape that does not fit
raises ValueError, any other dtype TypeError; NaN gives NaN.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from equivalence._arrays import (
    Array,
    as_points,
    as_tokens,
    broadcast_axes,
    common_dtype,
    compute_dtype,
)
from equivalence.features.gram import pivoted_cholesky

Kernel = Callable[[Array, Array], Array]


def elu_kernel(x: npt.ArrayLike, y: npt.ArrayLike) -> Array:
    """f(x).f(y) with f = elu + 1, the kernel of linear attention (Katharopoulos et al. 2020).

    >>> elu_kernel([[1.0]], [[0.0], [2.0]])
    array([[2., 6.]])
    """
    X, Y = _points(x, y)
    values: Array = _elu_plus_one(X) @ np.swapaxes(_elu_plus_one(Y), -1, -2)
    return values


def quadratic_kernel(x: npt.ArrayLike, y: npt.ArrayLike) -> Array:
    """1 + (x.y)^2.

    >>> quadratic_kernel([[1.0, 2.0]], [[1.0, 1.0]])
    array([[10.]])
    """
    X, Y = _points(x, y)
    values: Array = 1 + (X @ np.swapaxes(Y, -1, -2)) ** 2
    return values


def gaussian_kernel(x: npt.ArrayLike, y: npt.ArrayLike) -> Array:
    """exp(-|x - y|^2 / 2).

    >>> gaussian_kernel([[1.0]], [[1.0]])
    array([[1.]])
    """
    distance = _differences(x, y)
    values: Array = np.exp(-(distance**2).sum(axis=-1) / 2)
    return values


def laplace_kernel(x: npt.ArrayLike, y: npt.ArrayLike) -> Array:
    """exp(-|x - y|_1), the sum of absolute differences in the exponent.

    >>> laplace_kernel([[1.0]], [[1.0]])
    array([[1.]])
    """
    values: Array = np.exp(-abs(_differences(x, y)).sum(axis=-1))
    return values


def kernel_attention(
    query: npt.ArrayLike, key: npt.ArrayLike, value: npt.ArrayLike, kernel: Kernel
) -> Array:
    """The Nadaraya-Watson smoother of any kernel: sum_j kappa(k_j, q) v_j / D(q).

    Parameters
    ----------
    query, key, value : arrays (..., n_q, d), (..., n_k, d), (..., n_k, c)
        float64, float32, float16 (computed in float32) or integers (computed in float64).
        Leading batch axes broadcast.
    kernel : callable
        Takes queries and keys to kernel values (..., n_q, n_k). A scale of the points is the
        kernel's own affair.

    Returns
    -------
    array (..., n_q, c) of the common dtype of query, key and value.
        Where D(q) = 0, as without keys, it is NaN or inf.

    Raises
    ------
    ValueError
        A shape that does not fit, also that of the kernel's values; the message names it.
    TypeError
        A dtype that is not a real number, or a kernel that cannot be called.

    Notes
    -----
    With exp(q.k) it is softmax attention at scale 1, but for the shift that keeps exp from
    overflowing. Source: proofs/identity_is_bilinearity.py.

    Examples
    --------
    >>> kernel_attention([[0.0]], [[1.0], [-1.0]], [[2.0], [4.0]], gaussian_kernel)
    array([[3.]])
    """
    Q = as_points("query", query)
    K, V = as_tokens("key", key, dim=Q.shape[-1]), as_tokens("value", value)
    if V.shape[-2] != K.shape[-2]:
        raise ValueError(
            f"value has shape {V.shape}; expected (..., {K.shape[-2]}, c), one row for each key of "
            f"shape {K.shape}"
        )
    broadcast_axes("value", broadcast_axes("key", Q.shape[:-2], K.shape[:-2]), V.shape[:-2])
    dtype = common_dtype(Q, K, V)
    Q, K, V = (x.astype(compute_dtype(dtype), copy=False) for x in (Q, K, V))
    with np.errstate(all="ignore"):
        kappa = _values(kernel, Q, K)
        output: Array = kappa @ V / kappa.sum(axis=-1, keepdims=True)
        return output.astype(dtype, copy=False)


def kernel_features(
    keys: npt.ArrayLike, queries: npt.ArrayLike, kernel: Kernel
) -> tuple[Array, Array]:
    """Features of keys and queries with phi(k_i).phi(q) = kappa(k_i, q), for any PSD kernel.

    Parameters
    ----------
    keys, queries : arrays (n, d), (n_q, d)
    kernel : callable
        Positive semidefinite at the keys, and positive on each of them.

    Returns
    -------
    Phi : array (n, n)
        The rows of a factor of the keys' Gram matrix: phi(k_i).phi(k_j) = kappa(k_i, k_j).
    phi_q : array (n_q, n)
        L^{-1} kappa(K, q), whatever the query: the features of a new point.

    Raises
    ------
    ValueError
        Shapes that do not fit, keys that are not finite, or a kernel that is not positive
        semidefinite at the keys.
    TypeError
        A dtype that is not a real number, or a kernel that cannot be called.

    Notes
    -----
    GramFeatures do this for exp(x.y), whose values overflow, in the log domain. Keys that the
    kernel cannot tell apart share the trailing block of a pivoted factor, as they do there.
    Source: proofs/identity_is_bilinearity.py and proofs/gram_features.py.

    Examples
    --------
    >>> Phi, phi_q = kernel_features([[0.0], [1.0]], [[3.0]], quadratic_kernel)
    >>> (Phi @ phi_q.T).round(12)
    array([[ 1.],
           [10.]])
    """
    from scipy.linalg import solve_triangular

    K = as_points("keys", keys)
    Q = as_tokens("queries", queries, dim=K.shape[-1])
    if K.ndim != 2 or Q.ndim != 2 or len(K) == 0:
        raise ValueError(
            f"keys and queries have shapes {K.shape} and {Q.shape}; expected (n, d) and (n_q, d), "
            "n at least 1"
        )
    if not np.isfinite(K).all():
        raise ValueError("keys has entries that are NaN or infinite; expected finite keys")
    dtype = compute_dtype(common_dtype(K, Q))
    K, Q = K.astype(dtype, copy=False), Q.astype(dtype, copy=False)
    with np.errstate(all="ignore"):
        G = _values(kernel, K, K)
        norms = np.sqrt(np.diagonal(G))
        if not (np.isfinite(norms) & (norms > 0)).all():
            raise ValueError(
                f"kernel has values {np.diagonal(G)} on the diagonal; expected positive ones"
            )
        cosines = G / norms / norms[:, None]
        # Each entry has the roundings of a dot product or a distance, and those of the kernel.
        noise = len(K) * float(np.finfo(dtype).eps) * (K.shape[-1] + 8)
        L, pivots, _ = pivoted_cholesky(cosines, noise)
        left = abs(L @ L.T - cosines[np.ix_(pivots, pivots)]).max()
        # What the factor leaves out of a semidefinite matrix, and the block that replaces it, are
        # no larger than the tolerance of the rank.
        if not left <= 4 * noise:
            raise ValueError(
                f"kernel leaves {left:.1e} of its Gram matrix without a factor; expected one that "
                "is symmetric and positive semidefinite at the keys"
            )
        factor = norms[pivots, None] * L
        Phi = np.empty_like(factor)
        Phi[pivots] = factor
        kappa = _values(kernel, K[pivots], Q)
        return Phi, solve_triangular(factor, kappa, lower=True, check_finite=False).T


def _values(kernel: Kernel, X: Array, Y: Array) -> Array:
    if not callable(kernel):
        raise TypeError(f"kernel is {kernel!r}; expected a callable, such as gaussian_kernel")
    values = np.asarray(kernel(X, Y))
    batch = np.broadcast_shapes(X.shape[:-2], Y.shape[:-2])
    if values.shape != (*batch, X.shape[-2], Y.shape[-2]):
        raise ValueError(
            f"kernel has values of shape {values.shape} for points of shapes {X.shape} and "
            f"{Y.shape}; expected {(*batch, X.shape[-2], Y.shape[-2])}"
        )
    return values


def _points(x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[Array, Array]:
    X = as_points("x", x)
    Y = as_tokens("y", y, dim=X.shape[-1])
    broadcast_axes("y", X.shape[:-2], Y.shape[:-2])
    dtype = compute_dtype(common_dtype(X, Y))
    return X.astype(dtype, copy=False), Y.astype(dtype, copy=False)


def _differences(x: npt.ArrayLike, y: npt.ArrayLike) -> Array:
    X, Y = _points(x, y)
    return X[..., :, None, :] - Y[..., None, :, :]


def _elu_plus_one(x: Array) -> Array:
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))
