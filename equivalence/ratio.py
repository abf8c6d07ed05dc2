"""A dual of attention with one set of weights for every query: a ratio of two read-outs.

The weights W_1 of one gradient step carry 1/D(q), so they answer the query q alone: read at q',
they give (D(q')/D(q)) o(q'). With targets [v_i; 1] and without D,

    L(W) = -(1/eta) sum_i [v_i; 1]^T W phi(k_i),   W_1 phi(q) = [sum_j kappa_j v_j; D(q)],

the last read-out is D(q) itself, and the ratio of the others to it is o, at every q. The targets
are homogeneous coordinates of the values, and attention is a linear model in them. The proof is in
proofs/query_dependent_rate.py.

The functions of equivalence.dual train it, with D = 1:

>>> from equivalence import attention, dual
>>> from equivalence.features import GramFeatures
>>> K, V, Q = np.eye(3), np.array([[1.0], [2.0], [4.0]]), np.array([[3.0, 1.0, 0.0], [0, 0, 2]])
>>> phi = GramFeatures().fit(K)
>>> Y, Phi = to_homogeneous(V), phi(K).phi()
>>> W_0 = dual.initial_weights(Y[2:], Phi[2:], 1.0)
>>> W = dual.gradient_step(W_0, dual.gradient(Y[:2], Phi[:2], 1.0))
>>> o = from_homogeneous(dual.predict(W, phi(Q).features))
>>> bool(np.allclose(o, attention(Q, K, V, scale=1.0), rtol=1e-13, atol=0))
True

`OneStepRegressor` keeps these weights in two parts, the rows of the values and the last row:

>>> model = dual.OneStepRegressor(scale=1.0).fit(K, V, n_demonstrations=2)
>>> rows = np.concatenate([model.coef_, model.normalizer_[None]])
>>> bool(np.allclose(rows * np.exp(model.log_scale_), W, rtol=1e-13, atol=0))
True
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from equivalence._arrays import Array, as_real, as_tokens, compute_dtype


def to_homogeneous(values: npt.ArrayLike) -> Array:
    """[v; 1], the targets of the dual without D: values (..., n, c) give (..., n, c + 1).

    Parameters
    ----------
    values : array (..., n, c)

    Returns
    -------
    array (..., n, c + 1) of the same dtype

    Raises
    ------
    ValueError
        Fewer than two axes.
    TypeError
        A dtype that is not a real number.

    Notes
    -----
    Source: proofs/query_dependent_rate.py.

    Examples
    --------
    >>> to_homogeneous([[2.0], [3.0]])
    array([[2., 1.],
           [3., 1.]])
    """
    V = as_tokens("values", values)
    return np.concatenate([V, np.ones_like(V, shape=(*V.shape[:-1], 1))], axis=-1)


def from_homogeneous(readouts: npt.ArrayLike) -> Array:
    """The first c read-outs over the last one: (..., c + 1) give (..., c).

    Parameters
    ----------
    readouts : array (..., c + 1)
        W phi(q), of weights trained on the targets [v; 1].

    Returns
    -------
    array (..., c) of the same dtype
        NaN or inf where the last read-out, D(q), is 0.

    Raises
    ------
    ValueError
        No axis, or a last axis of length 0.
    TypeError
        A dtype that is not a real number.

    Notes
    -----
    Source: proofs/query_dependent_rate.py.

    Examples
    --------
    >>> from_homogeneous([6.0, 9.0, 3.0])
    array([2., 3.])
    """
    x = as_real("readouts", readouts)
    if x.shape[-1:] in ((), (0,)):
        raise ValueError(f"readouts has shape {x.shape}; expected (..., n_outputs + 1)")
    y = x.astype(compute_dtype(x.dtype), copy=False)
    with np.errstate(all="ignore"):
        return (y[..., :-1] / y[..., -1:]).astype(x.dtype, copy=False)
