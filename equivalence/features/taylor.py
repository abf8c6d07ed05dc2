"""Taylor features of exp(x.y): all monomials up to a degree, deterministic, with an error bound."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from equivalence._arrays import (
    Array,
    as_integer,
    as_points,
    as_tokens,
    broadcast_axes,
    common_dtype,
    compute_dtype,
)
from equivalence.features.base import Features


class TaylorFeatures:
    """Features with phi(x).phi(y) = sum_{k<=n} (x.y)^k / k!, the series of exp(x.y) up to degree n.

    One feature x^alpha / sqrt(alpha!) for each multi-index alpha with |alpha| <= n, ordered by
    degree: the tensor powers x^{(x)k} / sqrt(k!), each of whose equal entries are kept once. So
    there are C(d+n, n) of them and not sum_k d^k. What is left out is at most
    |t|^{n+1}/(n+1)! max(1, e^t), t = x.y: see `log_error_bound`.

    Parameters
    ----------
    degree : int
        n, at least 0.

    Raises
    ------
    ValueError
        A negative degree.
    TypeError
        A degree that is not an integer.

    Notes
    -----
    With r = |x|, the features of degree k have norm c_k = r^k / sqrt(k!), which overflows where the
    kernel does; the log scale is the largest log c_k. A feature below it by more than the range of
    the dtype is 0. Source: proofs/taylor_features.py; Cotter, Keshet and Srebro 2011.

    Examples
    --------
    >>> TaylorFeatures(2)([[3.0]]).phi().round(12)
    array([[1.        , 3.        , 6.36396103]])
    >>> TaylorFeatures(4).n_features(3)
    35
    """

    def __init__(self, degree: int) -> None:
        self.degree = as_integer("degree", degree)
        if self.degree < 0:
            raise ValueError(f"degree is {degree!r}; expected at least 0")

    def n_features(self, dim: int) -> int:
        """C(d+n, n), the number of features of points of that dimension.

        Raises ValueError for a dimension below 1, TypeError for one that is not an integer.

        Examples
        --------
        >>> TaylorFeatures(2).n_features(64)
        2145
        """
        if as_integer("dim", dim) < 1:
            raise ValueError(f"dim is {dim!r}; expected at least 1")
        return math.comb(dim + self.degree, self.degree)

    def __call__(self, x: npt.ArrayLike) -> Features:
        """phi(x) for points (..., n, d): features (..., n, m), log_scale (..., n), in x's dtype.

        A point with NaN or inf, or whose squared norm overflows, has real features that are NaN.

        Raises ValueError for points of fewer than two axes or without coordinates, TypeError for
        points that are not real numbers.
        """
        X = as_points("x", x)
        dtype = common_dtype(X)
        X = X.astype(compute_dtype(dtype), copy=False)
        with np.errstate(all="ignore"):
            r = np.linalg.norm(X, axis=-1)
            sizes, log_scale = _degree_sizes(r, self.degree)
            direction = X / np.where(r == 0, 1, r)[..., None]
            parts = _monomials(direction, self.degree)
            features = np.concatenate(
                [part * sizes[..., k, None] for k, part in enumerate(parts)], axis=-1
            )
            return Features(features.astype(dtype, copy=False), log_scale.astype(dtype, copy=False))

    def log_error_bound(self, x: npt.ArrayLike, y: npt.ArrayLike) -> Array:
        """log of |t|^{n+1}/(n+1)! max(1, e^t), t = x.y: no error of the series is larger.

        x (..., n, d) and y (..., k, d) give (..., n, k) in their dtype; -inf where t is 0. Subtract
        t for the error relative to exp(x.y). Rounding comes on top.

        Raises ValueError for shapes that do not fit, TypeError for what is not real, by name.

        Examples
        --------
        >>> bound = np.exp(TaylorFeatures(2).log_error_bound([[1.0]], [[1.0]]))
        >>> bool(np.isclose(bound, np.e / 6).all())
        True
        """
        X = as_points("x", x)
        Y = as_tokens("y", y, dim=X.shape[-1])
        broadcast_axes("y", X.shape[:-2], Y.shape[:-2])
        n = self.degree
        with np.errstate(all="ignore"):
            t = X.astype(np.float64) @ np.swapaxes(Y.astype(np.float64), -1, -2)
            bound: Array = (n + 1) * np.log(abs(t)) - math.lgamma(n + 2) + np.maximum(t, 0)
        return bound.astype(common_dtype(X, Y), copy=False)


def _degree_sizes(r: Array, n: int) -> tuple[Array, Array]:
    """c_k / max c_k for k = 0..n, and log max c_k, where c_k = prod_{j<=k} r / sqrt(j).

    The factors fall with j, so c_k climbs while they exceed 1 and falls after: from the largest,
    every c_k is a product of factors below 1, and nothing overflows or cancels.
    """
    root = np.sqrt(np.arange(1, n + 1)).astype(r.dtype)
    factor = r[..., None] / root
    falling = np.cumprod(_from_one(np.minimum(factor, 1)), axis=-1)
    # A factor of 0 or below 1 has an inverse above 1, which the minimum turns into 1.
    climbing = np.cumprod(_from_one(np.minimum(1 / factor, 1)[..., ::-1]), axis=-1)[..., ::-1]
    log_largest: Array = np.log(np.maximum(factor, 1)).sum(axis=-1)
    return falling * climbing, log_largest


def _from_one(factors: Array) -> Array:
    return np.concatenate([np.ones_like(factors[..., :1], shape=(*factors.shape[:-1], 1)), factors],
                          axis=-1)  # fmt: skip


def _monomials(x: Array, n: int) -> list[Array]:
    """sqrt(k!/alpha!) x^alpha for all |alpha| = k, one array a degree k = 0..n.

    Each monomial is its parent's times its last coordinate l, which occurs `run` times in it:
    k!/alpha! grows by k/run. For |x| = 1 those of a degree have norm 1: none overflows.
    """
    d = x.shape[-1]
    parts = [np.ones_like(x[..., :1])]
    last, run = np.zeros(1, np.intp), np.zeros(1, np.intp)
    for k in range(1, n + 1):
        children = d - last
        parent = np.repeat(np.arange(len(last)), children)
        first = np.repeat(np.cumsum(children) - children, children)
        coordinate = last[parent] + np.arange(len(parent)) - first
        run = np.where(coordinate == last[parent], run[parent], 0) + 1
        growth = np.sqrt(k / run).astype(x.dtype)
        parts.append(parts[-1][..., parent] * (x[..., coordinate] * growth))
        last = coordinate
    return parts
