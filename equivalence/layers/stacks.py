"""L attention layers, and the L duals that they are: layer l + 1 is trained on layer l's outputs.

Token states are the rows of x (n, m). One layer, with z = x or z = norm(x):

    q_t = W_Q z_t,   k_i = W_K z_i,   v_i = W_O W_V z_i
    x'_t = x_t + sum_i p_ti v_i = [W_1(q_t), I] [phi(q_t); x_t]

The training pairs of its dual are (phi(k_i), v_i); the residual adds the identity to the read-out,
and a norm before the projections only changes which keys, queries and values there are. A norm
after the residual is not part of a layer here: it divides by a number that depends on the values,
and no linear read-out does. The proof is in proofs/stacked_layers.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from equivalence._arrays import Array, as_positive, as_real, as_scale, as_tokens, compute_dtype
from equivalence.attention import attention
from equivalence.dual import OneStepRegressor


@dataclass(frozen=True, eq=False)
class LayerNorm:
    """x -> gain (x - mean) / sqrt(variance + eps) + offset, over the last axis.

    Parameters
    ----------
    gain, offset : arrays (m,)
    eps : float
        Positive; 1e-5 by default.

    Raises
    ------
    ValueError
        A gain or offset that is not (m,), or an eps that is not positive and finite.
    TypeError
        A dtype that is not a real number.

    Notes
    -----
    Source: Ba, Kiros & Hinton 2016, eq. 4.

    Examples
    --------
    >>> LayerNorm([1.0, 1.0], [0.0, 5.0], eps=1e-300)([[2.0, 4.0]])
    array([[-1.,  6.]])
    """

    gain: Array
    offset: Array
    eps: float = 1e-5

    def __post_init__(self) -> None:
        gain, offset = as_real("gain", self.gain), as_real("offset", self.offset)
        if gain.ndim != 1 or not gain.size:
            raise ValueError(f"gain has shape {gain.shape}; expected (width,), at least 1")
        if offset.shape != gain.shape:
            raise ValueError(f"offset has shape {offset.shape}; expected {gain.shape}, as gain")
        object.__setattr__(self, "gain", gain)
        object.__setattr__(self, "offset", offset)
        object.__setattr__(self, "eps", as_positive("eps", self.eps))

    def __call__(self, x: npt.ArrayLike) -> Array:
        """The rows of x (..., n, m) normalised; float16 is computed in float32.

        Raises ValueError for another width.
        """
        X = as_tokens("x", x, dim=len(self.gain))
        dtype = np.result_type(X, self.gain, self.offset)
        compute = compute_dtype(dtype)
        return self._of(X.astype(compute, copy=False)).astype(dtype, copy=False)

    def _of(self, x: Array) -> Array:
        gain, offset = self.gain.astype(x.dtype), self.offset.astype(x.dtype)
        with np.errstate(all="ignore"):
            centred = x - x.mean(axis=-1, keepdims=True)
            variance = np.mean(centred**2, axis=-1, keepdims=True)
            normed: Array = gain * (centred / np.sqrt(variance + x.dtype.type(self.eps))) + offset
        return normed


@dataclass(frozen=True, eq=False)
class AttentionLayer:
    """The parameters of one attention layer on states of width m.

    Parameters
    ----------
    W_Q, W_K : arrays (d, m)
    W_V : array (c, m)
    W_O : array (m_out, c), optional
        Output projection; without it the output has the width c.
    residual : bool
        Whether the state is added to the output, which then has its width m.
    norm : LayerNorm, optional
        Applied to the states *before* the projections; the residual adds the state itself.
    scale : float, optional
        Factor of the scores, 1/sqrt(d) by default.

    Biases need no fields: give the states a coordinate that is 1.

    Raises
    ------
    ValueError
        Shapes that do not fit each other, or a scale that is not finite; the message names the
        argument.
    TypeError
        A dtype that is not a real number, a `residual` that is no boolean, a `norm` that is none.

    Examples
    --------
    >>> one = np.eye(1)
    >>> AttentionLayer(one, one, one).width_out
    1
    """

    W_Q: Array
    W_K: Array
    W_V: Array
    W_O: Array | None = None
    residual: bool = True
    norm: LayerNorm | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        W_Q = _matrix("W_Q", self.W_Q)
        d, m = W_Q.shape
        W_V = _matrix("W_V", self.W_V, columns=m)
        fitted = {"W_Q": W_Q, "W_K": _matrix("W_K", self.W_K, d, m), "W_V": W_V}
        if self.W_O is not None:
            fitted["W_O"] = _matrix("W_O", self.W_O, columns=len(W_V))
        for name, W in fitted.items():
            object.__setattr__(self, name, W)
        if not isinstance(self.residual, bool | np.bool_):
            raise TypeError(f"residual is {self.residual!r}; expected True or False")
        if self.residual and self.width_out != m:
            raise ValueError(
                f"residual is True where states of width {m} give outputs of width "
                f"{self.width_out}; expected one width"
            )
        if not (self.norm is None or isinstance(self.norm, LayerNorm)):
            raise TypeError(f"norm is {self.norm!r}; expected a LayerNorm or None")
        if self.norm is not None and len(self.norm.gain) != m:
            raise ValueError(f"norm has width {len(self.norm.gain)}; expected {m}, as W_Q")
        as_scale(self.scale, d)

    @property
    def width_in(self) -> int:
        """m, the width of the states that the layer takes."""
        return int(self.W_Q.shape[1])

    @property
    def width_out(self) -> int:
        """The width of the states that the layer gives."""
        return len(self.W_V if self.W_O is None else self.W_O)


@dataclass(frozen=True, eq=False)
class LayerDual:
    """The dual models of one layer, what they were trained on, and what they predict.

    Attributes
    ----------
    keys, values : arrays (n, d), (n, m_out)
        The training pairs, values with the output projection in them.
    queries : array (n, d)
    models : tuple of OneStepRegressor
        One for all positions, or one a position where the mask is causal: model t was trained on
        pairs 0..t. The last token trained on gives W_0, those before it the gradient step.
    output : array (n, m_out)
        The states that the layer gives: predictions, and the residual.

    Examples
    --------
    >>> one = np.eye(1)
    >>> (dual,) = stack_duals([[1.0], [3.0]], [AttentionLayer(0 * one, one, 5 * one)])
    >>> dual.keys[:, 0], dual.values[:, 0], dual.output[:, 0]
    (array([1., 3.]), array([ 5., 15.]), array([11., 13.]))
    """

    keys: Array
    values: Array
    queries: Array
    models: tuple[OneStepRegressor, ...]
    output: Array


def stack(x: npt.ArrayLike, layers: Sequence[AttentionLayer], *, causal: bool = False) -> Array:
    """The states after L attention layers, each fed with the outputs of the one before.

    Parameters
    ----------
    x : array (..., n, m)
        float64, float32, float16 (computed in float32 throughout) or integers (in float64).
        Leading batch axes are kept.
    layers : sequence of AttentionLayer
        From the first to the last; without any, x is returned.
    causal : bool
        Token t attends to tokens 0..t only, in every layer.

    Returns
    -------
    array (..., n, m_out) of the common dtype of x and all parameters.
        NaN and inf as in `attention`.

    Raises
    ------
    ValueError
        A width that does not fit; the message names the layer.
    TypeError
        Something in `layers` that is no AttentionLayer, or a `causal` that is no boolean.

    Notes
    -----
    Source: Vaswani et al. 2017, sec. 3; norm before the projections, Xiong et al. 2020;
    proofs/stacked_layers.py.

    Examples
    --------
    >>> one = np.eye(1)
    >>> stack([[1.0], [3.0]], [AttentionLayer(0 * one, one, one)] * 2)
    array([[7.],
           [9.]])
    """
    x, dtype = _checked(x, layers, causal)
    for layer in layers:
        x = _attention_layer(x, layer, causal)
    return x.astype(dtype, copy=False)


def stack_duals(
    x: npt.ArrayLike, layers: Sequence[AttentionLayer], *, causal: bool = False
) -> list[LayerDual]:
    """The L duals of `stack`: each is trained on, and read at, the outputs of the one before.

    Parameters
    ----------
    x : array (n, m)
        At least one token. float16 is computed, and returned, in float32.
    layers, causal
        As in `stack`; scales must be positive.

    Returns
    -------
    list of LayerDual, one a layer; the last one's output equals `stack(x, layers)`.

    Raises
    ------
    ValueError, TypeError
        As `stack`; and ValueError for batch axes, no tokens, or states that are not finite.

    Notes
    -----
    With a causal mask the training pairs of every layer at positions 0..t do not depend on later
    tokens: a layer's models can be kept when tokens are appended. Without it every token's state
    after layer 1 depends on the query token, and so do all training pairs of layers 2 to L.
    Source: proofs/stacked_layers.py.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x, W = rng.normal(size=(4, 3)), rng.normal(size=(2, 3, 3, 3))
    >>> layers = [AttentionLayer(*Ws) for Ws in W]
    >>> duals = stack_duals(x, layers, causal=True)
    >>> [len(dual.models) for dual in duals]
    [4, 4]
    >>> bool(np.allclose(duals[-1].output, stack(x, layers, causal=True), rtol=1e-12, atol=0))
    True
    """
    x, _ = _checked(x, layers, causal)
    if x.ndim != 2 or not len(x):
        raise ValueError(f"x has shape {x.shape}; expected (n_tokens, width), at least one token")
    duals: list[LayerDual] = []
    for layer in layers:
        duals.append(_layer_dual(x, layer, causal))
        x = duals[-1].output
    return duals


def _attention_layer(x: Array, layer: AttentionLayer, causal: bool) -> Array:
    z = _normed(x, layer)
    Q, K, V = (_mapped(z, W) for W in (layer.W_Q, layer.W_K, layer.W_V))
    o = attention(Q, K, V, scale=layer.scale, causal=causal)
    return _with_residual(x, layer, o if layer.W_O is None else _mapped(o, layer.W_O))


def _layer_dual(x: Array, layer: AttentionLayer, causal: bool) -> LayerDual:
    z = _normed(x, layer)
    Q, K, V = (_mapped(z, W) for W in (layer.W_Q, layer.W_K, layer.W_V))
    V = V if layer.W_O is None else _mapped(V, layer.W_O)
    models = tuple(
        OneStepRegressor(scale=layer.scale).fit(K[:n], V[:n], n_demonstrations=n - 1)
        for n in (range(1, len(K) + 1) if causal else [len(K)])
    )
    # Model t answers for position t; a single model answers for all.
    questions = [Q[t : t + 1] for t in range(len(Q))] if causal else [Q]
    answers = [model.predict(q) for model, q in zip(models, questions, strict=True)]
    return LayerDual(K, V, Q, models, _with_residual(x, layer, np.concatenate(answers)))


def _normed(x: Array, layer: AttentionLayer) -> Array:
    return x if layer.norm is None else layer.norm._of(x)


def _mapped(x: Array, W: Array) -> Array:
    with np.errstate(all="ignore"):
        mapped: Array = x @ W.T.astype(x.dtype, copy=False)
    return mapped


def _with_residual(x: Array, layer: AttentionLayer, update: Array) -> Array:
    with np.errstate(all="ignore"):
        return x + update if layer.residual else update


def _checked(
    x: npt.ArrayLike, layers: Sequence[AttentionLayer], causal: bool
) -> tuple[Array, np.dtype[np.floating]]:
    """The states in the dtype that is computed in, and the dtype of the result."""
    X = as_tokens("x", x)
    if not isinstance(causal, bool | np.bool_):
        raise TypeError(f"causal is {causal!r}; expected True or False")
    arrays, width = [X], X.shape[-1]
    for at, layer in enumerate(layers):
        if not isinstance(layer, AttentionLayer):
            raise TypeError(f"layers[{at}] is {layer!r}; expected an AttentionLayer")
        if layer.width_in != width:
            raise ValueError(
                f"layers[{at}] takes states of width {layer.width_in}; expected {width}, "
                f"the width of {f'the output of layers[{at - 1}]' if at else 'x'}"
            )
        width = layer.width_out
        arrays += [W for W in (layer.W_Q, layer.W_K, layer.W_V, layer.W_O) if W is not None]
        arrays += [] if layer.norm is None else [layer.norm.gain, layer.norm.offset]
    dtype = np.result_type(*arrays)
    return X.astype(compute_dtype(dtype), copy=False), dtype


def _matrix(
    name: str, value: npt.ArrayLike, rows: int | None = None, columns: int | None = None
) -> Array:
    W = as_real(name, value)
    expected = f"({rows or 'n_out'}, {columns or 'width'})"
    fits = W.ndim == 2 and W.size
    if not fits or rows not in (None, len(W)) or columns not in (None, W.shape[1]):
        raise ValueError(f"{name} has shape {W.shape}; expected {expected}, no axis of 0")
    return W
