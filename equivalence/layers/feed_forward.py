"""The feed-forward layer, and the affine map that it is at one point.

    FFN(x) = W_2 sigma(z) + b_2 with z = W_1 x + b_1.

A unit at z multiplies by its secant slope g = sigma(z)/z, so at x itself the layer is

    W_F x + b_F,   W_F = W_2 diag(g) W_1,   b_F = W_2 diag(g) b_1 + b_2,

and attention with labels W_F v_i in the place of the values v_i gives FFN(o) - b_F:
proofs/feed_forward_layer.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from equivalence._arrays import (
    Array,
    as_shaped,
    as_tokens,
    broadcast_axes,
    common_dtype,
    compute_dtype,
)

_ACTIVATIONS = ("relu", "gelu", "silu")


def feed_forward(
    x: npt.ArrayLike,
    W_1: npt.ArrayLike,
    b_1: npt.ArrayLike,
    W_2: npt.ArrayLike,
    b_2: npt.ArrayLike,
    *,
    activation: str = "relu",
) -> Array:
    """FFN(x) = W_2 sigma(W_1 x + b_1) + b_2 of each token.

    Parameters
    ----------
    x : array (..., n, c)
        float64, float32, float16 (computed in float32) or integers (computed in float64).
    W_1, b_1, W_2, b_2 : arrays (..., h, c), (..., h), (..., c_out, h), (..., c_out)
        Weights and biases of h hidden units. Leading axes broadcast.
    activation : "relu", "gelu" or "silu"
        sigma(z) = max(z, 0), z Phi(z) with Phi the standard normal distribution function (the
        exact form, not the one with tanh), or z / (1 + exp(-z)).

    Returns
    -------
    array (..., n, c_out) of the common dtype of all arguments.
        A NaN in a token gives NaN. A unit whose z is -inf gives 0, as its limit.

    Raises
    ------
    ValueError
        A shape that does not fit, or another activation; the message names the argument.
    TypeError
        A dtype that is not a real number.

    Notes
    -----
    Source: Vaswani et al. 2017, eq. 2; Hendrycks & Gimpel 2016 for gelu and silu.

    Examples
    --------
    >>> feed_forward([[2.0]], [[1.0], [-1.0]], [0.0, 0.0], [[3.0, 5.0]], [1.0])
    array([[7.]])
    """
    layer = _Layer.of(x, W_1, b_1, W_2, b_2, activation)
    with np.errstate(all="ignore"):
        z = layer.z()
        g = _slopes(z, activation)
        # A unit that is off at z = -inf is 0, not 0 times infinity.
        sigma = np.where(g == 0, g, g * z)
        y: Array = sigma @ np.swapaxes(layer.W_2, -1, -2) + layer.b_2[..., None, :]
        return y.astype(layer.dtype, copy=False)


def feed_forward_dual(
    x: npt.ArrayLike,
    W_1: npt.ArrayLike,
    b_1: npt.ArrayLike,
    W_2: npt.ArrayLike,
    b_2: npt.ArrayLike,
    *,
    activation: str = "relu",
) -> tuple[Array, Array]:
    """W_F and b_F with FFN(x) = W_F x + b_F at each token: its own pair, exact there only.

    W_F = W_2 diag(g) W_1 and b_F = W_2 diag(g) b_1 + b_2 with the slopes g = sigma(z)/z at
    z = W_1 x + b_1: 1[z > 0] for relu, Phi(z) for gelu, 1/(1 + exp(-z)) for silu. At z = 0 that
    is the limit sigma'(0) of the smooth ones, and 0 for relu. Nothing is divided by z.

    Parameters
    ----------
    x, W_1, b_1, W_2, b_2, activation
        As in `feed_forward`.

    Returns
    -------
    W_F, b_F : arrays (..., n, c_out, c), (..., n, c_out) of the common dtype of all arguments.
        A NaN in a token gives NaN in both.

    Raises
    ------
    ValueError, TypeError
        As in `feed_forward`.

    Notes
    -----
    Needs memory for n c_out (h + c) numbers.
    Source: Ren & Liu (arXiv 2310.13220) for relu; proofs/feed_forward_layer.py.

    Examples
    --------
    >>> W_F, b_F = feed_forward_dual([[2.0]], [[1.0], [-1.0]], [0.0, 0.0], [[3.0, 5.0]], [1.0])
    >>> W_F, b_F
    (array([[[3.]]]), array([[1.]]))
    """
    layer = _Layer.of(x, W_1, b_1, W_2, b_2, activation)
    with np.errstate(all="ignore"):
        g = _slopes(layer.z(), activation)
        W_F = (layer.W_2[..., None, :, :] * g[..., None, :]) @ layer.W_1[..., None, :, :]
        offset = (g * layer.b_1[..., None, :]) @ np.swapaxes(layer.W_2, -1, -2)
        b_F = offset + layer.b_2[..., None, :]
        return W_F.astype(layer.dtype, copy=False), b_F.astype(layer.dtype, copy=False)


class _Layer(NamedTuple):
    """A validated layer and its tokens, in the dtype that is computed in."""

    x: Array
    W_1: Array
    b_1: Array
    W_2: Array
    b_2: Array
    dtype: np.dtype[Any]

    @classmethod
    def of(
        cls,
        x: npt.ArrayLike,
        W_1: npt.ArrayLike,
        b_1: npt.ArrayLike,
        W_2: npt.ArrayLike,
        b_2: npt.ArrayLike,
        activation: str,
    ) -> _Layer:
        if not isinstance(activation, str) or activation not in _ACTIVATIONS:
            raise ValueError(
                f"activation is {activation!r}; expected one of {', '.join(_ACTIVATIONS)}"
            )
        X = as_tokens("x", x)
        into = as_shaped("W_1", W_1, "n_hidden", X.shape[-1])
        h = into.shape[-2]
        out = as_shaped("W_2", W_2, "n_outputs", h)
        into_bias, out_bias = as_shaped("b_1", b_1, h), as_shaped("b_2", b_2, out.shape[-2])
        axes = X.shape[:-2]
        for name, other in (
            ("W_1", into.shape[:-2]),
            ("b_1", into_bias.shape[:-1]),
            ("W_2", out.shape[:-2]),
            ("b_2", out_bias.shape[:-1]),
        ):
            axes = broadcast_axes(name, axes, other)
        dtype = common_dtype(X, into, into_bias, out, out_bias)

        def computable(array: Array) -> Array:
            return array.astype(compute_dtype(dtype), copy=False)

        return cls(
            computable(X),
            computable(into),
            computable(into_bias),
            computable(out),
            computable(out_bias),
            dtype,
        )

    def z(self) -> Array:
        """W_1 x + b_1: (..., n, h)."""
        z: Array = self.x @ np.swapaxes(self.W_1, -1, -2) + self.b_1[..., None, :]
        return z


def _slopes(z: Array, activation: str) -> Array:
    """sigma(z)/z by a formula of its own, which has no 0/0."""
    if activation == "relu":
        return np.heaviside(z, z.dtype.type(0))
    from scipy.special import expit, ndtr

    slopes: Array = ndtr(z) if activation == "gelu" else expit(z)
    return slopes
