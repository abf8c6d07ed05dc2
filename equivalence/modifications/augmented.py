"""Attention whose dual is trained on augmented pairs: values and keys go through maps of their own.

The pairs (phi(g2(k_i)), g1(v_i)) in the place of (phi(k_i), v_i), and so the kernel of g2(k_j) in
the place of that of k_j, in the numerator and in D: proofs/augmented_attention.py.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from equivalence._arrays import Array, as_array, as_real, as_tokens, compute_dtype
from equivalence.attention import attention
from equivalence.modifications.base import modifiable

Map = Callable[[Array], npt.ArrayLike]
"""A map of tokens, row by row: (..., n, a) to (..., n, b)."""


def augmented_attention(
    query: npt.ArrayLike,
    key: npt.ArrayLike,
    value: npt.ArrayLike,
    *,
    value_map: Map | None = None,
    key_map: Map | None = None,
    scale: float | None = None,
    mask: npt.ArrayLike | None = None,
    causal: bool = False,
) -> Array:
    """Attention of the augmented tokens: sum_j kappa(g2(k_j), q) g1(v_j) / sum_j kappa(g2(k_j), q).

    Parameters
    ----------
    query, key, value : arrays (..., n_q, d), (..., n, d'), (..., n, c')
        As in `attention`, and so are `scale` (1/sqrt(d) by default), `mask` and `causal`.
    value_map, key_map : callables, optional
        g1, of (..., n, c') to (..., n, c), and g2, of (..., n, d') to (..., n, d); the identity by
        default. They see all tokens at once, read-only, and are meant to map each row by itself;
        `linear`, `mlp` and `residual` make such maps.

    Returns
    -------
    array (..., n_q, c) of the common dtype of query, key and value, whatever the maps return.

    Raises
    ------
    ValueError
        As in `attention`; a map that does not return one row for each token.
    TypeError
        As in `attention`; a map that is not callable.

    Notes
    -----
    Source: Ren & Liu (arXiv 2310.13220); proofs/augmented_attention.py.

    Examples
    --------
    >>> Q, K, V = [[0.0]], [[1.0], [1.0]], [[1.0], [3.0]]
    >>> augmented_attention(Q, K, V, value_map=lambda v: v**2)
    array([[5.]])
    """
    V, dtype = modifiable(query, key, value)
    K = as_tokens("key", key).astype(V.dtype, copy=False)
    K, V = augmented_pairs(K, V, key_map=key_map, value_map=value_map)
    output = attention(query, K, V, scale=scale, mask=mask, causal=causal)
    return output.astype(dtype, copy=False)


def augmented_pairs(
    key: npt.ArrayLike,
    value: npt.ArrayLike,
    *,
    key_map: Map | None = None,
    value_map: Map | None = None,
) -> tuple[Array, Array]:
    """The tokens (g2(k_j), g1(v_j)) on which the dual of `augmented_attention` is trained.

    Its loss is `dual.loss` of these values and of the features of these keys, and D sums over these
    keys: `OneStepRegressor().fit(*augmented_pairs(...))` predicts what `augmented_attention` does.

    Parameters, errors and source as in `augmented_attention`; the maps see float16 as float32, and
    integers as float64.

    >>> augmented_pairs([[1.0]], [[3.0]], key_map=lambda k: -k, value_map=lambda v: v**2)
    (array([[-1.]]), array([[9.]]))
    """
    return _mapped("key", key, key_map), _mapped("value", value, value_map)


def linear(A: npt.ArrayLike, a: npt.ArrayLike = 0.0) -> Map:
    """The map x -> A x + a, with A (c, d) and a (c); ValueError for shapes that do not fit.

    It computes in the dtype of x.

    >>> linear([[1.0, 1.0]], [0.5])(np.array([[2.0, 3.0]]))
    array([[5.5]])
    """
    weights, offset = as_tokens("A", A), as_real("a", a)
    if offset.ndim > 1 or (offset.ndim == 1 and len(offset) != weights.shape[-2]):
        raise ValueError(f"a has shape {offset.shape}; expected ({weights.shape[-2]},)")

    def mapped(x: Array) -> Array:
        X = as_tokens("x", x, dim=weights.shape[-1])
        dtype = compute_dtype(X.dtype)
        with np.errstate(all="ignore"):
            y: Array = X.astype(dtype) @ weights.astype(dtype).swapaxes(-1, -2)
            return y + offset.astype(dtype)

    return mapped


def mlp(A: npt.ArrayLike, a: npt.ArrayLike, B: npt.ArrayLike, b: npt.ArrayLike = 0.0) -> Map:
    """The map x -> B relu(A x + a) + b: a perceptron with one hidden layer.

    >>> mlp([[1.0], [-1.0]], [0.0, 0.0], [[1.0, 1.0]])(np.array([[-3.0]]))
    array([[3.]])
    """
    inner, outer = linear(A, a), linear(B, b)
    return lambda x: outer(np.maximum(inner(x), 0))


def residual(inner: Map) -> Map:
    """The map x -> x + inner(x).

    >>> residual(lambda x: x**2)(np.array([[3.0]]))
    array([[12.]])
    """
    return lambda x: x + np.asarray(inner(x))


def _mapped(name: str, tokens: npt.ArrayLike, g: Map | None) -> Array:
    X = as_tokens(name, tokens)
    X = X.astype(compute_dtype(X.dtype), copy=False)
    if g is None:
        return X
    if not callable(g):
        raise TypeError(f"{name}_map is {g!r}; expected a callable, or None for the identity")
    view = X.view()
    view.flags.writeable = False
    Y = as_real(f"{name}_map({name})", as_array(f"{name}_map({name})", g(view)))
    if Y.ndim < 2 or Y.shape[:-1] != X.shape[:-1]:
        expected = ", ".join(map(str, X.shape[:-1]))
        raise ValueError(
            f"{name}_map({name}) has shape {Y.shape}; expected ({expected}, dim), one row for each "
            f"row of {name}"
        )
    return Y
