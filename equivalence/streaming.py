"""Causal attention as a stream: the state that every token updates, one dual model a position.

    S_t = S_{t-1} + v_t phi(k_t)^T,   n_t = n_{t-1} + phi(k_t),
    o_t = S_t phi(q_t) / (n_t.phi(q_t))

States add, so a context can be split in any way, each part summed where it lies, and the parts
merged in any grouping and order. The proof is in proofs/causal_streaming.py.

The functions take the features that a feature map returns, of keys and queries that are already
multiplied by the square root of attention's scale: `phi(math.sqrt(scale) * K)`. The result is
softmax attention exactly with GramFeatures whose landmarks contain every key of the context, and in
the limit of many features with random ones; with any features it is exactly the attention that is
built from them. Float16 is computed, and returned, in float32, integers in float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from equivalence._arrays import (
    Array,
    as_integer,
    as_real,
    as_tokens,
    broadcast_axes,
    compute_dtype,
)
from equivalence.chunks import by_chunks, homogeneous, largest_so_far, scaled, sum_of_products
from equivalence.features.base import Features, range_of, require_one_scale
from equivalence.memory import as_operand, operand
from equivalence.products import product

# For fewer queries a copy of S costs more than it gains.
_MANY = 64


@dataclass(frozen=True, eq=False)
class AttentionState:
    """The sums over a context that answer every query: a commutative monoid under `+`.

    The sums are kept as S e^log_scale and n e^log_scale, so that they do not overflow where the
    answer is representable: keys may have |k|^2/2 far beyond the range of exp. The state is
    immutable; `update` and `merge` return a new one. Its size does not depend on the context's.

    Parameters
    ----------
    S : array (..., c, m)
        sum_j v_j phi(k_j)^T * exp(-log_scale): D times the weights of the dual model, the `coef_`
        of OneStepRegressor.
    n : array (..., m)
        sum_j phi(k_j) * exp(-log_scale): its `normalizer_`.
    log_scale, least_log_scale : arrays (...)
        The largest and the least log scale of the keys' features; -inf and inf of no keys.

    Raises
    ------
    ValueError
        Shapes that do not fit; or keys, of one state or of two that are merged, whose norms differ
        so much that one scale cannot carry them all.
    TypeError
        Dtypes that are no real numbers, and what are no features.

    Notes
    -----
    Source: Katharopoulos et al. 2020, sec. 3.3; proofs/causal_streaming.py.

    Examples
    --------
    >>> from equivalence import attention
    >>> from equivalence.features import GramFeatures
    >>> K, V, q = np.array([[0.0], [1.0], [-1.0]]), np.array([[1.0], [2.0], [4.0]]), [[2.0]]
    >>> phi = GramFeatures().fit(K)
    >>> state = AttentionState.of(phi(K[:2]), V[:2]) + AttentionState.of(phi(K[2:]), V[2:])
    >>> bool(np.allclose(state.read(phi(q)), attention(q, K, V), rtol=1e-14, atol=0))
    True
    """

    S: Array
    n: Array
    log_scale: Array
    least_log_scale: Array

    def __post_init__(self) -> None:
        """Check the shapes, and keep read-only copies."""
        for field in fields(self):
            array = as_real(field.name, getattr(self, field.name))
            array = np.array(array, compute_dtype(array.dtype))
            array.setflags(write=False)
            object.__setattr__(self, field.name, array)
        S, n = self.S, self.n
        if S.ndim < 2:
            raise ValueError(f"S has shape {S.shape}; expected (..., n_outputs, n_features)")
        if n.shape[-1:] != S.shape[-1:]:
            raise ValueError(f"n has shape {n.shape}; expected (..., {S.shape[-1]})")
        broadcast_axes("n", S.shape[:-2], n.shape[:-1])
        for name in ("log_scale", "least_log_scale"):
            shape = getattr(self, name).shape
            if shape != n.shape[:-1]:
                raise ValueError(f"{name} has shape {shape}; expected {n.shape[:-1]}, as n has")

    @classmethod
    def empty(cls, n_outputs: int, n_features: int, *, dtype: npt.DTypeLike = np.float64) -> Self:
        """The state of no tokens: merging it changes nothing, reading it gives NaN.

        >>> float(AttentionState.empty(1, 2).log_scale)
        -inf
        """
        no_keys = Features(np.empty((0, n_features), dtype), np.empty(0, dtype))
        return cls.of(no_keys, np.empty((0, n_outputs), dtype))

    @classmethod
    def of(cls, key_features: Features, values: npt.ArrayLike) -> Self:
        """The state of some tokens: features (..., n, m) of their keys, and values (..., n, c).

        >>> AttentionState.of(Features(np.ones((2, 1)), np.zeros(2)), [[1.0], [2.0]]).S
        array([[3.]])
        """
        keys = _checked("key_features", key_features)
        V = _values(values, keys)
        least, largest = range_of(keys.log_scale)
        with np.errstate(all="ignore"):
            # A token's scale multiplies its c values rather than its m features.
            factor = np.exp(keys.log_scale - _finite(largest)[..., None])
            S = np.swapaxes(sum_of_products(keys.features, scaled(V, factor)), -1, -2)
            n = (factor[..., None, :] @ keys.features)[..., 0, :]
        return cls(S, n, largest, least)

    def update(self, key_features: Features, values: npt.ArrayLike) -> Self:
        """The state with more tokens, one or a chunk: features (..., n, m) and values (..., n, c).

        >>> token = Features(np.ones((1, 1)), np.zeros(1))
        >>> AttentionState.empty(1, 1).update(token, [[5.0]]).update(token, [[7.0]]).S
        array([[12.]])
        """
        return self.merge(type(self).of(key_features, values))

    def merge(self, other: AttentionState) -> Self:
        """The state of both contexts; also `self + other`. Both must use one feature map.

        >>> token = AttentionState.of(Features(np.ones((1, 1)), np.log([3.0])), [[5.0]])
        >>> (token + token).S
        array([[10.]])
        """
        if not isinstance(other, AttentionState):
            raise TypeError(f"other is {other!r}; expected an AttentionState")
        if other.S.shape[-2:] != self.S.shape[-2:]:
            c, m = self.S.shape[-2:]
            raise ValueError(f"other has S of shape {other.S.shape}; expected (..., {c}, {m})")
        broadcast_axes("other", self.S.shape[:-2], other.S.shape[:-2])
        least = np.minimum(self.least_log_scale, other.least_log_scale)
        largest = np.maximum(self.log_scale, other.log_scale)
        require_one_scale(least, largest)
        (S, n), (S_other, n_other) = self._sums(largest), other._sums(largest)
        with np.errstate(all="ignore"):
            return type(self)(S + S_other, n + n_other, largest, least)

    __add__ = merge

    def read(self, query_features: Features) -> Array:
        """The attention output S phi(q) / (n.phi(q)): (..., n_q, m) gives (..., n_q, c).

        Without tokens it is a mean over nothing: NaN. A NaN or inf of a token gives NaN or inf.

        >>> one = Features(np.ones((1, 1)), np.zeros(1))
        >>> AttentionState.of(one, [[5.0]]).read(one)
        array([[5.]])
        """
        phi_q = _checked("query_features", query_features, self.S.shape[-1]).features
        batch = broadcast_axes("query_features", self.S.shape[:-2], phi_q.shape[:-2])
        with np.errstate(all="ignore"):
            S_T, n_q = np.swapaxes(self.S, -1, -2), phi_q.shape[-2]
            S_T = as_operand(S_T) if n_q >= _MANY else S_T
            shape = (*batch, n_q, S_T.shape[-1])
            numerator = product(phi_q, S_T, np.empty(shape, np.result_type(phi_q, S_T)))
            output: Array = np.divide(numerator, phi_q @ self.n[..., None], out=numerator)
        return output

    def extend(
        self,
        query_features: Features,
        key_features: Features,
        values: npt.ArrayLike,
        *,
        chunk_size: int = 64,
    ) -> tuple[Array, Self]:
        """The causal outputs of more tokens, and the state after them.

        Query i attends to the state's tokens and to the new ones 0..i: features (..., n, m) and
        values (..., n, c) give (..., n, c), what `update` and `read` give token by token.

        >>> ones = Features(np.ones((2, 1)), np.zeros(2))
        >>> output, state = AttentionState.of(ones, [[1.0], [3.0]]).extend(ones, ones, [[8], [0]])
        >>> output, state.S
        (array([[4.],
               [3.]]), array([[12.]]))
        """
        c, m = self.S.shape[-2:]
        keys = _checked("key_features", key_features, m)
        V = _values(values, keys)
        if V.shape[-1] != c:
            raise ValueError(f"values has shape {V.shape}; expected (..., {c}), as the state has")
        phi_q = _checked("query_features", query_features, m).features
        n = keys.features.shape[-2]
        if phi_q.shape[-2] != n:
            raise ValueError(
                f"query_features has features of shape {phi_q.shape}; expected (..., {n}, {m}), "
                "one query for each key"
            )
        if as_integer("chunk_size", chunk_size) < 1:
            raise ValueError(f"chunk_size is {chunk_size}; expected at least 1")
        batch = broadcast_axes("key_features", self.S.shape[:-2], keys.features.shape[:-2])
        broadcast_axes("query_features", batch, phi_q.shape[:-2])
        batch = broadcast_axes("values", batch, V.shape[:-2])
        least = np.minimum(self.least_log_scale, range_of(keys.log_scale)[0])
        tops = largest_so_far(self.log_scale, keys.log_scale, chunk_size)
        require_one_scale(least, tops[..., -1])
        own_top = np.repeat(tops[..., 1:], chunk_size, axis=-1)[..., :n]
        with np.errstate(all="ignore"):
            Y = homogeneous(V, np.exp(keys.log_scale - _finite(own_top)))
            falls = np.exp(tops[..., :-1] - _finite(tops[..., 1:]))
            dtype = np.result_type(self.S, keys.features, Y)
            S_T, normalizer = operand((*batch, m, c), dtype), np.empty((*batch, m, 1), dtype)
            S_T[...], normalizer[...] = np.swapaxes(self.S, -1, -2), self.n[..., None]
            output = by_chunks(S_T, normalizer, phi_q, keys.features, Y, falls, chunk_size)
        scales = (np.broadcast_to(scale, batch) for scale in (tops[..., -1], least))
        state = type(self)(np.swapaxes(S_T, -1, -2), normalizer[..., 0], *scales)
        return output, state

    def to_arrays(self) -> dict[str, Array]:
        """The state as arrays by name, which `np.savez(file, **arrays)` saves.

        >>> sorted(AttentionState.empty(1, 1).to_arrays())
        ['S', 'least_log_scale', 'log_scale', 'n']
        """
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.ArrayLike]) -> Self:
        """The state that `to_arrays` gave; `np.load` returns such a mapping.

        Raises ValueError for names that are missing or unknown.

        >>> AttentionState.from_arrays(AttentionState.empty(1, 2).to_arrays()).n
        array([0., 0.])
        """
        names = [field.name for field in fields(cls)]
        if set(arrays) != set(names):
            raise ValueError(f"arrays has {sorted(arrays)}; expected {', '.join(names)}")
        return cls(**{name: arrays[name] for name in names})  # type: ignore[arg-type]

    def __reduce__(self) -> tuple[Any, ...]:
        # Through the constructor: an unpickled array would be writable.
        return type(self), tuple(self.to_arrays().values())

    def _sums(self, log_scale: Array) -> tuple[Array, Array]:
        """S and n as multiples of exp(log_scale)."""
        with np.errstate(all="ignore"):
            factor = np.exp(self.log_scale - _finite(log_scale))
            return self.S * factor[..., None, None], self.n * factor[..., None]


def causal_attention_by_chunks(
    query_features: Features,
    key_features: Features,
    values: npt.ArrayLike,
    *,
    chunk_size: int = 64,
) -> Array:
    """Causal attention of a whole context: a state of what came before, a triangle in each chunk.

    Parameters
    ----------
    query_features, key_features : Features (..., n, m)
        Query i attends to keys 0..i.
    values : array (..., n, c)
    chunk_size : int
        How many tokens at a time: time and memory grow as n (chunk_size + m).

    Returns
    -------
    array (..., n, c): position i is what the state of tokens 0..i reads at query i.
        A NaN or inf of a token gives NaN from its position on, and nothing before it.

    Raises
    ------
    ValueError, TypeError
        As AttentionState, and for a chunk size that is no positive integer.

    Notes
    -----
    Source: Hua et al. 2022, sec. 3.2; proofs/causal_streaming.py.

    Examples
    --------
    >>> ones = Features(np.ones((3, 1)), np.zeros(3))
    >>> causal_attention_by_chunks(ones, ones, [[1.0], [3.0], [8.0]], chunk_size=2)
    array([[1.],
           [2.],
           [4.]])
    """
    V, keys = as_tokens("values", values), _checked("key_features", key_features)
    empty = AttentionState.empty(V.shape[-1], keys.features.shape[-1], dtype=keys.features.dtype)
    return empty.extend(query_features, keys, V, chunk_size=chunk_size)[0]


def _finite(log_scale: Array) -> Array:
    """The scale, and any number where it is -inf, as nothing is scaled by it."""
    return np.where(np.isfinite(log_scale), log_scale, log_scale.dtype.type(0))


def _checked(name: str, value: Features, n_features: int | None = None) -> Features:
    if not isinstance(value, Features):
        raise TypeError(f"{name} is {type(value).__name__}; expected Features, from a feature map")
    features = as_tokens(name, value.features, dim=n_features)
    log_scale = as_real(name, value.log_scale)
    if log_scale.shape != features.shape[:-1]:
        raise ValueError(
            f"{name} has log scales of shape {log_scale.shape}; expected {features.shape[:-1]}, "
            "one for each row of features"
        )
    return Features(*(x.astype(compute_dtype(x.dtype), copy=False) for x in (features, log_scale)))


def _values(values: npt.ArrayLike, keys: Features) -> Array:
    V = as_tokens("values", values)
    n = keys.features.shape[-2]
    if V.shape[-2] != n:
        raise ValueError(
            f"values has shape {V.shape}; expected (..., {n}, n_outputs), one row for each key"
        )
    broadcast_axes("values", keys.features.shape[:-2], V.shape[:-2])
    return V.astype(compute_dtype(V.dtype), copy=False)
