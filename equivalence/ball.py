"""The loss of the dual model over a ball of weights, where it has a minimum.

L(W) = -(1/(eta D)) sum_i v_i^T W phi(k_i) is linear in W, so over all W it is unbounded below, and
T full gradient steps only go T times as far. With G = sum_i v_i phi(k_i)^T and |.| the Frobenius
norm, and for D > 0,

    argmin_{|W| <= r} L(W) = r G/|G|,   and the step from 0 is this optimum for r = |G|/D.

The proof is in proofs/loss_is_linear.py.

Arguments and results are those of equivalence.dual.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from equivalence._arrays import Array, as_real, broadcast_axes
from equivalence.dual import initial_weights


def ball_optimum(values: npt.ArrayLike, features: npt.ArrayLike, radius: npt.ArrayLike) -> Array:
    """The W of least loss with |W|_F <= radius, r G/|G|_F: (..., c, m), for any eta and D > 0.

    Parameters
    ----------
    values, features : arrays (..., n, c), (..., n, m)
        The demonstrations.
    radius : number, or array that broadcasts with the leading axes
        Not negative.

    Returns
    -------
    array (..., c, m)
        Zero where G = 0: the loss is then zero everywhere, and no W is better than another.

    Raises
    ------
    ValueError
        A shape that does not fit, or a negative radius.
    TypeError
        A dtype that is not a real number.

    Notes
    -----
    Source: proofs/loss_is_linear.py.

    Examples
    --------
    >>> ball_optimum(np.array([[3.0], [4.0]]), np.eye(2), radius=10.0)
    array([[6., 8.]])
    """
    G = initial_weights(values, features, 1.0)
    r = as_real("radius", radius)
    if (r < 0).any():
        raise ValueError(f"radius is {radius!r}; expected no negative number")
    broadcast_axes("radius", G.shape[:-2], r.shape)
    with np.errstate(all="ignore"):
        direction, _ = _polar(G)
        optimum: Array = r.astype(G.dtype)[..., None, None] * direction
    return optimum


def step_length(values: npt.ArrayLike, features: npt.ArrayLike, D: npt.ArrayLike) -> Array:
    """|G|_F/D, how far one gradient step goes: the radius whose optimum is the step from 0.

    Parameters
    ----------
    values, features : arrays (..., n, c), (..., n, m)
        The demonstrations.
    D : number, or array that broadcasts with the leading axes
        Positive.

    Returns
    -------
    array of the leading axes

    Raises
    ------
    ValueError, TypeError
        As in `equivalence.dual`.

    Notes
    -----
    Source: proofs/loss_is_linear.py.

    Examples
    --------
    >>> float(step_length(np.array([[3.0], [4.0]]), np.eye(2), D=2.0))
    2.5
    """
    with np.errstate(all="ignore"):
        _, length = _polar(initial_weights(values, features, D))
    return length[..., 0, 0]


def _polar(G: Array) -> tuple[Array, Array]:
    """G/|G| and |G| (..., 1, 1); the squares are those of G over its largest entry, lest they
    overflow or vanish.
    """
    largest = abs(G).max(axis=(-2, -1), keepdims=True, initial=0)
    unit = np.divide(G, largest, out=np.zeros_like(G), where=largest != 0)
    norm = np.sqrt((unit * unit).sum(axis=(-2, -1), keepdims=True))
    direction = np.divide(unit, norm, out=np.zeros_like(G), where=norm != 0)
    return direction, largest * norm
