"""The dual of attention: a linear model f_W(x) = W phi(x) and one step of gradient descent on it.

Demonstrations i = 1..N are the training pairs (phi(k_i), v_i); the query-side tokens t give the
initial weights W_0. All of them share the normaliser D(q) of one query q:

    W_0  = (1/D) sum_t v_t phi(k_t)^T
    L(W) = -(1/(eta D)) sum_i v_i^T W phi(k_i)
    W_1  = W_0 - eta grad L(W_0),   and   W_1 phi(q) = o, the attention output.

The proof is in proofs/one_gradient_step.py.

The functions take features (..., n, m) and values (..., n, c). D is a number, or an array of one
number for each query; then there is one weight matrix (c, m) for each query.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from equivalence._arrays import Array, as_points, as_positive_scale, as_tokens
from equivalence.features.base import FeatureMap, Features
from equivalence.features.gram import GramFeatures


def normalizer(key_features: Array, query_features: Array) -> Array:
    """D(q) = sum_j phi(k_j).phi(q): features (..., n_k, m) and (..., n_q, m) give (..., n_q).

    >>> normalizer(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 0.0]]))
    array([4.])
    """
    D: Array = np.einsum("...m,...qm->...q", key_features.sum(axis=-2), query_features)
    return D


def initial_weights(values: Array, features: Array, D: npt.ArrayLike) -> Array:
    """W_0 = (1/D) sum_t v_t phi(k_t)^T of the query-side tokens: (..., c, m).

    >>> initial_weights(np.array([[2.0]]), np.array([[1.0, 3.0]]), 2.0)
    array([[1., 3.]])
    """
    total = _correlation(values, features)
    return total / _for_matrices(D, total.dtype)


def loss(
    W: Array, values: Array, features: Array, D: npt.ArrayLike, learning_rate: float = 1.0
) -> Array:
    """L(W) = -(1/(eta D)) sum_i v_i^T W phi(k_i) over the demonstrations: shape of D.

    >>> float(loss(np.array([[1.0]]), np.array([[2.0]]), np.array([[3.0]]), 2.0))
    -3.0
    """
    agreement = ((values @ W) * features).sum(axis=-1).sum(axis=-1)
    total: Array = -agreement / (learning_rate * np.asarray(D, agreement.dtype))
    return total


def gradient(values: Array, features: Array, D: npt.ArrayLike, learning_rate: float = 1.0) -> Array:
    """grad L(W) = -(1/(eta D)) sum_i v_i phi(k_i)^T: (..., c, m), the same at every W.

    >>> gradient(np.array([[2.0]]), np.array([[3.0]]), 2.0)
    array([[-3.]])
    """
    total = _correlation(values, features)
    return -total / (learning_rate * _for_matrices(D, total.dtype))


def gradient_step(W: Array, gradient: Array, learning_rate: float = 1.0) -> Array:
    """W - eta grad L(W).

    >>> gradient_step(np.array([[1.0]]), np.array([[4.0]]), learning_rate=0.5)
    array([[-1.]])
    """
    return W - learning_rate * gradient


def gradient_steps(
    W: Array, values: Array, features: Array, D: npt.ArrayLike, learning_rate: float = 1.0
) -> Iterator[Array]:
    """Yield the weights after each of N steps that see one demonstration (v_i, phi(k_i)) each.

    The last one is the weights after one step on all (proofs/demonstrations_as_steps.py).

    >>> V, Phi = np.array([[1.0], [2.0]]), np.array([[1.0], [1.0]])
    >>> [W.item() for W in gradient_steps(np.zeros((1, 1)), V, Phi, 1.0)]
    [1.0, 3.0]
    """
    for i in range(values.shape[-2]):
        one = slice(i, i + 1)
        slope = gradient(values[..., one, :], features[..., one, :], D, learning_rate)
        W = gradient_step(W, slope, learning_rate)
        yield W


def predict(W: Array, query_features: Array) -> Array:
    """f_W(q) = W phi(q): weights (..., c, m) at features (..., m) give (..., c).

    >>> predict(np.array([[1.0, 2.0]]), np.array([3.0, 4.0]))
    array([11.])
    """
    prediction: Array = np.einsum("...cm,...m->...c", W, query_features)
    return prediction


class OneStepRegressor:
    """The dual model of softmax attention, trained by one gradient step from W_0.

    `fit(keys, values).predict(queries)` equals `attention(queries, keys, values)`: exactly with
    GramFeatures, in the limit of many features with random ones.

    The normaliser D(q) depends on the query, so W_1 does too: W_1(q) = coef_ / D(q) with coef_
    independent of q. Both are kept, `coef_` and `normalizer_`, and `predict` divides.

    Parameters
    ----------
    feature_map : feature map, optional
        GramFeatures() by default. One with a `fit` method is copied and fitted to the keys.
    learning_rate : float
        eta > 0; it cancels, as the loss carries 1/eta.
    scale : float, optional
        Scale of the scores, positive, 1/sqrt(d) by default; keys and queries are multiplied by its
        square root before the feature map sees them.

    Attributes
    ----------
    coef_ : array (..., n_outputs, n_features)
        D(q) W_1(q) * exp(-log_scale_), as in scikit-learn's linear models.
    initial_coef_ : array (..., n_outputs, n_features)
        D(q) W_0(q) * exp(-log_scale_).
    normalizer_ : array (..., n_features)
        sum_j phi(k_j) * exp(-log_scale_) over every token.
    log_scale_ : array (...)
        The largest log scale of a key's features: one shift keeps all of them representable.
    feature_map_ : feature map
        The fitted feature map.

    Raises
    ------
    ValueError
        A learning rate or a scale that is not positive and finite.

    Notes
    -----
    Source: Ren & Liu (arXiv 2310.13220); proofs/one_gradient_step.py.

    Examples
    --------
    >>> from equivalence import attention
    >>> rng = np.random.default_rng(0)
    >>> Q, K, V = rng.normal(size=(2, 3)), rng.normal(size=(5, 3)), rng.normal(size=(5, 2))
    >>> model = OneStepRegressor().fit(K, V, n_demonstrations=4)
    >>> bool(np.allclose(model.predict(Q), attention(Q, K, V), rtol=1e-13, atol=0))
    True
    """

    feature_map_: FeatureMap
    coef_: Array
    initial_coef_: Array
    normalizer_: Array
    log_scale_: Array

    def __init__(
        self,
        feature_map: FeatureMap | None = None,
        *,
        learning_rate: float = 1.0,
        scale: float | None = None,
    ) -> None:
        if not (math.isfinite(learning_rate) and learning_rate > 0):
            raise ValueError(f"learning_rate is {learning_rate!r}; expected a positive number")
        self.feature_map = feature_map
        self.learning_rate = learning_rate
        self.scale = scale

    def fit(
        self, keys: npt.ArrayLike, values: npt.ArrayLike, *, n_demonstrations: int | None = None
    ) -> OneStepRegressor:
        """Take W_0 from the query-side tokens, and one gradient step on the demonstrations.

        Parameters
        ----------
        keys, values : arrays (..., n, d), (..., n, c)
            GramFeatures take one set of keys, (n, d), and finite ones.
        n_demonstrations : int, optional
            The first tokens are demonstrations, the rest are query-side; all are demonstrations
            by default (then W_0 = 0).

        Raises ValueError for shapes that do not fit, an `n_demonstrations` outside 0..n, or keys
        whose norms differ so much that one scale cannot carry them all.
        """
        K = as_points("keys", keys)
        n, d = K.shape[-2:]
        V = as_tokens("values", values)
        if V.shape[-2] != n:
            raise ValueError(
                f"values has shape {V.shape}; expected (..., {n}, n_outputs), one row "
                f"for each key of shape {K.shape}"
            )
        N = n if n_demonstrations is None else n_demonstrations
        if not 0 <= N <= n:
            raise ValueError(f"n_demonstrations is {N}; expected 0 to {n}, the number of keys")
        self._root_scale = math.sqrt(as_positive_scale(self.scale, d))
        K = K * K.dtype.type(self._root_scale)
        phi = GramFeatures() if self.feature_map is None else self.feature_map
        self.feature_map_ = copy.copy(phi).fit(K) if hasattr(phi, "fit") else phi
        Phi, self.log_scale_ = _on_one_scale(self.feature_map_(K))
        seen, given = np.s_[..., :N, :], np.s_[..., N:, :]
        self.normalizer_ = Phi.sum(axis=-2)
        self.initial_coef_ = initial_weights(V[given], Phi[given], 1.0)
        slope = gradient(V[seen], Phi[seen], 1.0, self.learning_rate)
        self.coef_ = gradient_step(self.initial_coef_, slope, self.learning_rate)
        return self

    def predict(self, queries: npt.ArrayLike) -> Array:
        """W_1(q) phi(q) for queries (..., n_q, d): (..., n_q, c), the attention output.

        Raises ValueError for queries of another dimension, or before `fit`.
        """
        phi = self._features(queries).features
        numerator = np.einsum("...cm,...qm->...qc", self.coef_, phi)
        D = np.einsum("...m,...qm->...q", self.normalizer_, phi)
        with np.errstate(all="ignore"):
            prediction: Array = numerator / D[..., None]
        return prediction

    def log_normalizer(self, queries: npt.ArrayLike) -> Array:
        """log D(q), the logarithm of the query's normaliser, for queries (..., n_q, d): (..., n_q).

        Raises ValueError for queries of another dimension, or before `fit`.
        """
        phi, log_scale = self._features(queries)
        D = np.einsum("...m,...qm->...q", self.normalizer_, phi)
        with np.errstate(all="ignore"):
            log_D: Array = np.log(D) + log_scale + self.log_scale_[..., None]
        return log_D

    def _features(self, queries: npt.ArrayLike) -> Features:
        if not hasattr(self, "coef_"):
            raise ValueError(
                "OneStepRegressor has no weights yet; expected fit(keys, values) to come first"
            )
        Q = as_points("queries", queries)
        return self.feature_map_(Q * Q.dtype.type(self._root_scale))


def _correlation(values: Array, features: Array) -> Array:
    """sum_i v_i phi(k_i)^T: (..., c, m)."""
    total: Array = np.swapaxes(values, -1, -2) @ features
    return total


def _for_matrices(D: npt.ArrayLike, dtype: npt.DTypeLike) -> Array:
    """D with two axes more, in the features' dtype: a number would widen it."""
    axes: Array = np.asarray(D, dtype)[..., None, None]
    return axes


def _on_one_scale(features: Features) -> tuple[Array, Array]:
    """The features of all keys times exp(-c), and c: their largest log scale."""
    log_scale = features.log_scale
    largest = log_scale.max(axis=-1)
    carried = -math.log(np.finfo(log_scale.dtype).tiny)
    spread = float(np.max(largest - log_scale.min(axis=-1), initial=0.0))
    if spread > carried:
        raise ValueError(
            f"keys have log scales that differ by {spread:.0f}; expected at most "
            f"{carried:.0f}, what {log_scale.dtype} carries"
        )
    return Features(features.features, log_scale - largest[..., None]).phi(), largest
