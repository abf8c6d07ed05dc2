"""exp(w.x + t), row by row, in as few passes over memory as its range allows."""

from __future__ import annotations

import numpy as np

from equivalence._arrays import Array
from equivalence.exponential import fast_exponential
from equivalence.memory import operand
from equivalence.products import product


def exponentials(X: Array, W: Array, tilt: Array | None = None) -> tuple[Array, Array]:
    """exp(w_r.x + t_r - c) for points (..., n, d) and projections (m, d), and each row's shift c.

    (..., n, m) and (..., n), in the points' dtype. The shift is 0 for a row that sums to between 1
    and the fourth root of the dtype's largest number: its largest entry is then at least 1/m, and
    products of two such rows, summed over many tokens, are far from overflow. It is the largest
    exponent in any other row, such as one that overflows; where that is no number, so is the row.

    >>> exponentials(np.array([[9.0], [-9.0]]), np.array([[1.0]]))[1]
    array([ 0., -9.])
    """
    exponential, base = fast_exponential(X.dtype)
    factor = X.dtype.type(base)
    W_T = np.multiply(W.T, factor, out=operand(W.shape[::-1], X.dtype))
    tilt = None if tilt is None else tilt * factor
    E = _exponents(X, W_T, tilt)
    exponential(E, out=E)
    # A product with ones is several times faster than a sum, or a maximum, of each row.
    total = E @ np.ones(len(W), E.dtype)
    shift = np.zeros_like(total)
    beyond = ~((total >= 1) & (total <= np.finfo(E.dtype).max ** 0.25))
    if beyond.any():
        again = _exponents(X[beyond], W_T, tilt)
        shift[beyond] = largest = again.max(axis=-1)
        E[beyond] = exponential(np.subtract(again, largest[:, None], out=again), out=again)
        shift /= factor
    return E, shift


def _exponents(X: Array, W_T: Array, tilt: Array | None) -> Array:
    exponents = product(X, W_T, np.empty((*X.shape[:-1], W_T.shape[1]), X.dtype))
    if tilt is not None:
        exponents += tilt
    return exponents
