"""Other losses of the dual model f_W(x) = W phi(x), beside the one whose step is attention.

Each gradient is the dual's (equivalence/dual.py), with what the model already expects, z_i at
f_i = W phi(k_i), taken from the values:

    grad L(W) = -(1/(eta D)) sum_i (v_i - z_i) phi(k_i)^T,

    the dual's own loss   z_i = 0
    least squares         z_i = f_i
    logistic              z_i = tanh(f_i/2), in each output
    InfoNCE               z_i = sum_j P_ij v_j, the attention of f_i over the values (eta D = tau)

At W = 0 the first three are the same and InfoNCE takes the mean of the values: see
proofs/losses_agree_only_at_zero.py and proofs/contrastive_first_step.py. Any other loss with
output-gradient -v_i/(eta D) at W_0 gives the same step from W_0.

Arrays, dtypes and D are as in equivalence/dual.py: W (..., c, m), values (..., n, c), features
(..., n, m), leading axes broadcast, float16 computed and returned in float32, NaN or inf where
numbers overflow. A shape that does not fit raises ValueError, and so does a learning rate or a
temperature that is not positive and finite; another dtype, or no number, raises TypeError.

Sources: Ren & Liu (arXiv 2310.13220) for the dual; InfoNCE is van den Oord et al. 2018, eq. 4.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from equivalence import dual
from equivalence._arrays import Array, as_points, as_positive, broadcast_axes
from equivalence.attention import attention
from equivalence.dual import _matrices, _pairs, _quotient


def least_squares_loss(
    W: npt.ArrayLike,
    values: npt.ArrayLike,
    features: npt.ArrayLike,
    D: npt.ArrayLike,
    learning_rate: float = 1.0,
) -> Array:
    """L(W) = (1/(2 eta D)) sum_i |v_i - W phi(k_i)|^2: one number for each D.

    >>> float(least_squares_loss([[1.0]], [[5.0]], [[3.0]], 2.0))
    1.0
    """
    F, V, _ = _outputs(W, values, features)
    with np.errstate(all="ignore"):
        return _total((V - F) ** 2 / 2, D, learning_rate)


def least_squares_gradient(
    W: npt.ArrayLike,
    values: npt.ArrayLike,
    features: npt.ArrayLike,
    D: npt.ArrayLike,
    learning_rate: float = 1.0,
) -> Array:
    """grad L(W) = -(1/(eta D)) sum_i (v_i - W phi(k_i)) phi(k_i)^T: (..., c, m).

    >>> least_squares_gradient([[1.0]], [[5.0]], [[3.0]], 2.0)
    array([[-3.]])
    """
    F, V, Phi = _outputs(W, values, features)
    with np.errstate(all="ignore"):
        return dual.gradient(V - F, Phi, D, learning_rate)


def logistic_loss(
    W: npt.ArrayLike,
    values: npt.ArrayLike,
    features: npt.ArrayLike,
    D: npt.ArrayLike,
    learning_rate: float = 1.0,
) -> Array:
    """L(W) = (2/(eta D)) times the cross-entropy of sigmoid(W phi(k_i)) with labels (1 + v_i)/2.

    Summed over tokens and outputs, one number for each D. Values between -1 and 1 are labels that
    are probabilities; others are taken as they are, and the loss is then unbounded below.

    >>> round(float(logistic_loss([[0.0]], [[1.0]], [[3.0]], 1.0)) / 2, 6)  # log 2
    0.693147
    """
    F, V, _ = _outputs(W, values, features)
    with np.errstate(all="ignore"):
        # Two positive terms where v is a label: the small loss of a good fit does not cancel.
        zero = F.dtype.type(0)
        crossed = (1 + V) * np.logaddexp(zero, -F) + (1 - V) * np.logaddexp(zero, F)
        return _total(crossed, D, learning_rate)


def logistic_gradient(
    W: npt.ArrayLike,
    values: npt.ArrayLike,
    features: npt.ArrayLike,
    D: npt.ArrayLike,
    learning_rate: float = 1.0,
) -> Array:
    """grad L(W) = -(1/(eta D)) sum_i (v_i - tanh(W phi(k_i)/2)) phi(k_i)^T: (..., c, m).

    >>> logistic_gradient([[0.0]], [[1.0]], [[3.0]], 2.0)
    array([[-1.5]])
    """
    F, V, Phi = _outputs(W, values, features)
    with np.errstate(all="ignore"):
        return dual.gradient(V - np.tanh(F / 2), Phi, D, learning_rate)


def info_nce_loss(
    W: npt.ArrayLike,
    values: npt.ArrayLike,
    features: npt.ArrayLike,
    temperature: float = 1.0,
) -> Array:
    """L(W) = -sum_i log P_ii, P_ij = softmax over j of v_j^T W phi(k_i) / tau: one number.

    Token i is to pick its own value among those of all tokens: in-batch negatives. It is a sum over
    the tokens, not their mean, and never negative.

    >>> round(float(info_nce_loss([[0.0]], [[1.0], [2.0]], [[3.0], [4.0]])) / 2, 6)  # log 2
    0.693147
    """
    tau = as_positive("temperature", temperature)
    F, V, _ = _outputs(W, as_points("values", values), features)
    with np.errstate(all="ignore"):
        Z = F / F.dtype.type(tau) @ np.swapaxes(V, -1, -2)
        own = np.diagonal(Z, axis1=-2, axis2=-1)
        top = Z.max(axis=-1, initial=-np.inf)
        # -log P_ii as a sum of two numbers that are not negative.
        surplus = np.log(np.exp(Z - top[..., None]).sum(axis=-1))
        total: Array = ((top - own) + surplus).sum(axis=-1)
    return total


def info_nce_gradient(
    W: npt.ArrayLike,
    values: npt.ArrayLike,
    features: npt.ArrayLike,
    temperature: float = 1.0,
) -> Array:
    """grad L(W) = -(1/tau) sum_i (v_i - sum_j P_ij v_j) phi(k_i)^T of `info_nce_loss`: (..., c, m).

    The negatives are an attention: W phi(k_i)/tau is the query, the values are keys and values.

    >>> info_nce_gradient([[0.0]], [[1.0], [2.0]], [[3.0], [5.0]])
    array([[-1.]])
    """
    tau = as_positive("temperature", temperature)
    F, V, Phi = _outputs(W, as_points("values", values), features)
    with np.errstate(all="ignore"):
        expected = attention(F / F.dtype.type(tau), V, V, scale=1.0)
        return dual.gradient(V - expected, Phi, 1.0, tau)


def _outputs(
    W: npt.ArrayLike, values: npt.ArrayLike, features: npt.ArrayLike
) -> tuple[Array, Array, Array]:
    """F (..., n, c), rows f_i = W phi(k_i), with the values and features that belong to them."""
    V, Phi = _pairs(values, features)
    W = _matrices("W", W, V.shape[-1], Phi.shape[-1])
    broadcast_axes("W", np.broadcast_shapes(V.shape[:-2], Phi.shape[:-2]), W.shape[:-2])
    with np.errstate(all="ignore"):
        F: Array = Phi @ np.swapaxes(W, -1, -2)
    return F, V, Phi


def _total(losses: Array, D: npt.ArrayLike, learning_rate: float) -> Array:
    """The sum over tokens and outputs, divided by eta D."""
    summed = losses.sum(axis=(-2, -1), keepdims=True)
    total: Array = _quotient(summed, D, learning_rate)[..., 0, 0]
    return total
