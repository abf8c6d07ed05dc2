"""The dual of attention: a linear model f_W(x) = W phi(x) and one step of gradient descent on it.

Demonstrations i = 1..N are the training pairs (phi(k_i), v_i); the query-side tokens t give the
initial weights W_0. All of them share the normaliser D(q) of one query q:

    W_0  = (1/D) sum_t v_t phi(k_t)^T
    L(W) = -(1/(eta D)) sum_i v_i^T W phi(k_i)
    W_1  = W_0 - eta grad L(W_0),   and   W_1 phi(q) = o, the attention output.

The proof is in proofs/one_gradient_step.py.

The functions take features (..., n, m) and values (..., n, c); float16 is computed, and returned,
in float32, integers in float64. D is a number, or an array that broadcasts with the leading axes:
one number for each query gives one weight matrix (c, m) for each query. D = 0 and overflow give NaN
or inf. A shape that does not fit raises ValueError, any other dtype TypeError.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from equivalence._arrays import (
    Array,
    as_demonstrations,
    as_number,
    as_points,
    as_positive,
    as_positive_scale,
    as_real,
    as_shaped,
    as_tokens,
    broadcast_axes,
    compute_dtype,
)
from equivalence.features.base import FeatureMap, Features, biased, range_of
from equivalence.features.gram import GramFeatures


def normalizer(key_features: npt.ArrayLike, query_features: npt.ArrayLike) -> Array:
    """D(q) = sum_j phi(k_j).phi(q): features (..., n_k, m) and (..., n_q, m) give (..., n_q).

    >>> normalizer(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 0.0]]))
    array([4.])
    """
    Phi = _computable(as_tokens("key_features", key_features))
    phi_q = _computable(as_tokens("query_features", query_features, dim=Phi.shape[-1]))
    broadcast_axes("query_features", Phi.shape[:-2], phi_q.shape[:-2])
    with np.errstate(all="ignore"):
        D: Array = (phi_q @ Phi.sum(axis=-2)[..., None])[..., 0]
    return D


def initial_weights(values: npt.ArrayLike, features: npt.ArrayLike, D: npt.ArrayLike) -> Array:
    """W_0 = (1/D) sum_t v_t phi(k_t)^T of the query-side tokens: (..., c, m).

    >>> initial_weights(np.array([[2.0]]), np.array([[1.0, 3.0]]), 2.0)
    array([[1., 3.]])
    """
    return _quotient(_correlation(values, features), D)


def loss(
    W: npt.ArrayLike,
    values: npt.ArrayLike,
    features: npt.ArrayLike,
    D: npt.ArrayLike,
    learning_rate: float = 1.0,
) -> Array:
    """L(W) = -(1/(eta D)) sum_i v_i^T W phi(k_i) over the demonstrations: one number for each D.

    >>> float(loss(np.array([[1.0]]), np.array([[2.0]]), np.array([[3.0]]), 2.0))
    -3.0
    """
    V, Phi = _pairs(values, features)
    W = _matrices("W", W, V.shape[-1], Phi.shape[-1])
    with np.errstate(all="ignore"):
        agreement = ((V @ W) * Phi).sum(axis=(-2, -1), keepdims=True)
    total: Array = -_quotient(agreement, D, learning_rate)[..., 0, 0]
    return total


def gradient(
    values: npt.ArrayLike, features: npt.ArrayLike, D: npt.ArrayLike, learning_rate: float = 1.0
) -> Array:
    """grad L(W) = -(1/(eta D)) sum_i v_i phi(k_i)^T: (..., c, m), the same at every W.

    >>> gradient(np.array([[2.0]]), np.array([[3.0]]), 2.0)
    array([[-3.]])
    """
    return -_quotient(_correlation(values, features), D, learning_rate)


def gradient_step(W: npt.ArrayLike, gradient: npt.ArrayLike, learning_rate: float = 1.0) -> Array:
    """W - eta grad L(W).

    >>> gradient_step(np.array([[1.0]]), np.array([[4.0]]), learning_rate=0.5)
    array([[-1.]])
    """
    W = _matrices("W", W)
    G = _matrices("gradient", gradient, *W.shape[-2:])
    broadcast_axes("gradient", W.shape[:-2], G.shape[:-2])
    rate = as_number("learning_rate", learning_rate)
    with np.errstate(all="ignore"):
        return W - G.dtype.type(rate) * G


def gradient_steps(
    W: npt.ArrayLike,
    values: npt.ArrayLike,
    features: npt.ArrayLike,
    D: npt.ArrayLike,
    learning_rate: float = 1.0,
) -> Iterator[Array]:
    """Yield the weights after each of N steps that see one demonstration (v_i, phi(k_i)) each.

    The last one is the weights after one step on all (proofs/demonstrations_as_steps.py).

    >>> V, Phi = np.array([[1.0], [2.0]]), np.array([[1.0], [1.0]])
    >>> [W.item() for W in gradient_steps(np.zeros((1, 1)), V, Phi, 1.0)]
    [1.0, 3.0]
    """
    V, Phi = _pairs(values, features)
    for i in range(V.shape[-2]):
        one = np.s_[..., i : i + 1, :]
        slope = gradient(V[one], Phi[one], D, learning_rate)
        W = gradient_step(W, slope, learning_rate)
        yield W


def predict(W: npt.ArrayLike, query_features: npt.ArrayLike) -> Array:
    """f_W(q) = W phi(q): weights (..., c, m) at features (..., m) give (..., c).

    >>> predict(np.array([[1.0, 2.0]]), np.array([3.0, 4.0]))
    array([11.])
    """
    W, phi_q = _matrices("W", W), _computable(as_real("query_features", query_features))
    m = W.shape[-1]
    if phi_q.shape[-1:] != (m,):
        raise ValueError(f"query_features has shape {phi_q.shape}; expected (..., {m})")
    broadcast_axes("query_features", W.shape[:-2], phi_q.shape[:-1])
    with np.errstate(all="ignore"):
        prediction: Array = np.einsum("...cm,...m->...c", W, phi_q)
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
    query_map : feature map, optional
        The map of queries where it is not that of keys, as of ReducedFeatures: W_1 is made from one
        and read at the other.
    learning_rate : float
        eta > 0; it cancels, as the loss carries 1/eta (unless 1/eta times the gradient overflows).
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
    n_features_in_ : int
        d, the dimension of keys and queries.

    Raises
    ------
    ValueError
        A learning rate or, from `fit`, a scale that is not positive and finite.
    TypeError
        One that is not a number, or a feature map that is none.

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
    n_features_in_: int

    def __init__(
        self,
        feature_map: FeatureMap | None = None,
        *,
        query_map: FeatureMap | None = None,
        learning_rate: float = 1.0,
        scale: float | None = None,
    ) -> None:
        for name, given in (("feature_map", feature_map), ("query_map", query_map)):
            if isinstance(given, type) or not (given is None or callable(given)):
                raise TypeError(
                    f"{name} is {given!r}; expected a feature map, such as GramFeatures()"
                )
        self.feature_map, self.query_map = feature_map, query_map
        self.learning_rate = as_positive("learning_rate", learning_rate)
        self.scale = scale

    def fit(
        self,
        keys: npt.ArrayLike,
        values: npt.ArrayLike,
        *,
        n_demonstrations: int | None = None,
        bias: npt.ArrayLike | None = None,
    ) -> OneStepRegressor:
        """Take W_0 from the query-side tokens, and one gradient step on the demonstrations.

        Parameters
        ----------
        keys, values : arrays (..., n, d), (..., n, c)
            GramFeatures take one set of keys, (n, d), and finite ones.
        n_demonstrations : int, optional
            The first tokens are demonstrations, the rest are query-side; all are demonstrations
            by default (then W_0 = 0).
        bias : array (..., n), optional
            Added to the scores, as attention's `mask` row: token j counts e^bias_j times in the
            loss, in W_0 and in D; -inf takes it out. Of one query: with a bias (n_q, n) there are
            n_q models, and `predict(queries[:, None])` reads each at its own query
            (proofs/positions.py).

        Raises ValueError for shapes that do not fit, no keys at all, an `n_demonstrations` outside
        0..n, or keys whose norms differ so much that one scale cannot carry them all; TypeError for
        an `n_demonstrations` that is no integer. The model is then what it was before.
        """
        K, V = as_points("keys", keys), as_tokens("values", values)
        _check_rows(V, "keys", K)
        n, d = K.shape[-2:]
        if n == 0:
            raise ValueError(f"keys has shape {K.shape}; expected at least one key")
        N = as_demonstrations(n_demonstrations, n, "keys")
        root_scale = math.sqrt(as_positive_scale(self.scale, d))
        X = _scaled(K, root_scale)
        phi = GramFeatures() if self.feature_map is None else self.feature_map
        feature_map = copy.copy(phi).fit(X) if hasattr(phi, "fit") else phi
        features = feature_map(X) if bias is None else biased(feature_map(X), bias)
        Phi, log_scale = _on_one_scale(features)
        seen, given = np.s_[..., :N, :], np.s_[..., N:, :]
        W_0 = initial_weights(V[given], Phi[given], 1.0)
        slope = gradient(V[seen], Phi[seen], 1.0, self.learning_rate)
        self.initial_coef_, self.coef_ = W_0, gradient_step(W_0, slope, self.learning_rate)
        with np.errstate(all="ignore"):
            self.normalizer_, self.log_scale_ = Phi.sum(axis=-2), log_scale
        self.feature_map_, self.n_features_in_ = feature_map, d
        self._root_scale, self._dtypes = root_scale, (K.dtype, V.dtype)
        return self

    def predict(self, queries: npt.ArrayLike) -> Array:
        """W_1(q) phi(q) for queries (..., n_q, d): (..., n_q, c), the attention output.

        The dtype is that of keys, values and queries together. A query with NaN or inf gives NaN.

        Raises ValueError for queries of another dimension, or before `fit`.
        """
        Q = self._queries(queries)
        broadcast_axes("queries", self.coef_.shape[:-2], Q.shape[:-2])
        phi = self._query_features(Q).features
        with np.errstate(all="ignore"):
            prediction: Array = phi @ np.swapaxes(self.coef_, -1, -2)
            prediction /= phi @ self.normalizer_[..., None]
            return prediction.astype(np.result_type(*self._dtypes, Q.dtype), copy=False)

    def log_normalizer(self, queries: npt.ArrayLike) -> Array:
        """log D(q), the logarithm of the query's normaliser, for queries (..., n_q, d): (..., n_q).

        The dtype is that of keys and queries together.

        Raises ValueError for queries of another dimension, or before `fit`.
        """
        Q = self._queries(queries)
        broadcast_axes("queries", self.normalizer_.shape[:-1], Q.shape[:-2])
        phi, log_scale = self._query_features(Q)
        with np.errstate(all="ignore"):
            D = (phi @ self.normalizer_[..., None])[..., 0]
            log_D: Array = np.log(D) + log_scale + self.log_scale_[..., None]
            return log_D.astype(np.result_type(self._dtypes[0], Q.dtype), copy=False)

    def _query_features(self, Q: Array) -> Features:
        phi = self.feature_map_ if self.query_map is None else self.query_map
        return phi(_scaled(Q, self._root_scale))

    def _queries(self, queries: npt.ArrayLike) -> Array:
        if not hasattr(self, "coef_"):
            raise ValueError(
                "OneStepRegressor has no weights yet; expected fit(keys, values) to come first"
            )
        return as_tokens("queries", queries, dim=self.n_features_in_)


def _computable(array: Array) -> Array:
    return array.astype(compute_dtype(array.dtype), copy=False)


def _scaled(points: Array, root_scale: float) -> Array:
    """The points times the root of the scale, in the dtype that is computed in."""
    x = _computable(points)
    with np.errstate(all="ignore"):
        return x * x.dtype.type(root_scale)


def _check_rows(values: Array, name: str, tokens: Array) -> None:
    if values.shape[-2] != tokens.shape[-2]:
        raise ValueError(
            f"values has shape {values.shape}; expected (..., {tokens.shape[-2]}, n_outputs), one "
            f"row for each row of {name}, which has shape {tokens.shape}"
        )
    broadcast_axes("values", tokens.shape[:-2], values.shape[:-2])


def _pairs(values: npt.ArrayLike, features: npt.ArrayLike) -> tuple[Array, Array]:
    """Values (..., n, c) and features (..., n, m) of the same tokens."""
    V, Phi = as_tokens("values", values), as_tokens("features", features)
    _check_rows(V, "features", Phi)
    return _computable(V), _computable(Phi)


def _matrices(name: str, value: npt.ArrayLike, *shape: int) -> Array:
    """Matrices (..., c, m), of the given shape if there is one."""
    return _computable(as_shaped(name, value, *(shape or ("n_outputs", "n_features"))))


def _correlation(values: npt.ArrayLike, features: npt.ArrayLike) -> Array:
    """sum_i v_i phi(k_i)^T: (..., c, m)."""
    V, Phi = _pairs(values, features)
    with np.errstate(all="ignore"):
        total: Array = np.swapaxes(V, -1, -2) @ Phi
    return total


def _quotient(total: Array, D: npt.ArrayLike, learning_rate: float = 1.0) -> Array:
    """total / (eta D) of matrices (..., c, m), in their dtype: D in float64 would widen it.

    Divided one by one, as an eta D that overflows would make it zero, and lose the demonstrations.
    """
    rate = as_positive("learning_rate", learning_rate)
    divisor = as_real("D", D)
    broadcast_axes("D", total.shape[:-2], divisor.shape)
    with np.errstate(all="ignore"):
        quotient: Array = total / divisor.astype(total.dtype)[..., None, None]
        return quotient / total.dtype.type(rate)


def _on_one_scale(features: Features) -> tuple[Array, Array]:
    """The features of all keys times exp(-c), and c: their largest log scale."""
    _, largest = range_of(features.log_scale)
    with np.errstate(all="ignore"):
        return Features(features.features, features.log_scale - largest[..., None]).phi(), largest
