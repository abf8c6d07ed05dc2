"""What the public functions accept as arrays, and how they refuse the rest."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]

_COMPUTE: dict[type[Any], type[np.floating[Any]]] = {
    np.float16: np.float32,
    np.float32: np.float32,
    np.float64: np.float64,
}


def as_array(name: str, value: npt.ArrayLike) -> npt.NDArray[Any]:
    """Return `value` as an array; ValueError, naming the argument, for rows of several lengths."""
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} is no array: {error}; expected rows of one length") from None


def as_real(name: str, value: npt.ArrayLike) -> Array:
    """Return `value` as a float16, float32 or float64 array; integers and booleans become float64.

    Raises TypeError for every other dtype, naming the argument.
    """
    array = as_array(name, value)
    if array.dtype.kind in "iub":
        return array.astype(np.float64)
    if array.dtype.type not in _COMPUTE:
        raise TypeError(
            f"{name} has dtype {array.dtype}; expected float16, float32, float64 or integers"
        )
    return array


def as_tokens(name: str, value: npt.ArrayLike, *, dim: int | None = None) -> Array:
    """Return `value` as a (..., n, d) array with d = `dim` if given.

    Raises ValueError for fewer than two axes or a wrong last axis, naming the argument.
    """
    array = as_real(name, value)
    if array.ndim < 2:
        raise ValueError(f"{name} has shape {array.shape}; expected (..., n_tokens, dim)")
    if dim is not None and array.shape[-1] != dim:
        raise ValueError(f"{name} has shape {array.shape}; expected (..., n_tokens, {dim})")
    return array


def as_points(name: str, value: npt.ArrayLike) -> Array:
    """Like `as_tokens`, but d = 0 is refused: a kernel needs at least one coordinate."""
    array = as_tokens(name, value)
    if array.shape[-1] == 0:
        raise ValueError(f"{name} has shape {array.shape}; expected a last axis of at least 1")
    return array


def as_shaped(name: str, value: npt.ArrayLike, *shape: int | str) -> Array:
    """Return `value` as an array (..., *shape), where a word is a size that may be any.

    Raises ValueError for other last axes, naming the argument and, by its words, what they mean.
    """
    array = as_real(name, value)
    last = array.shape[-len(shape) :]
    if len(last) < len(shape) or any(
        size != want and not isinstance(want, str) for size, want in zip(last, shape, strict=True)
    ):
        raise ValueError(
            f"{name} has shape {array.shape}; expected (..., {', '.join(map(str, shape))})"
        )
    return array


def broadcast_axes(name: str, axes: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    """The leading axes that both arguments have together; `other` are those of the one named."""
    if axes == other:
        return axes
    try:
        return np.broadcast_shapes(axes, other)
    except ValueError:
        raise ValueError(
            f"{name} has leading axes {other}; expected axes that broadcast with {axes}"
        ) from None


def as_integer(name: str, value: int) -> int:
    """Return `value` as an int; TypeError, naming the argument, for anything else, and booleans."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} is {value!r}; expected an integer")
    return int(value)


def as_count(name: str, value: int, largest: int, of: str) -> int:
    """Like `as_integer`, but ValueError unless it is 0 to `largest`, the number of `of`."""
    count = as_integer(name, value)
    if not 0 <= count <= largest:
        raise ValueError(f"{name} is {count}; expected 0 to {largest}, the number of {of}")
    return count


def as_demonstrations(n_demonstrations: int | None, n: int, of: str) -> int:
    """How many of the `n` first tokens demonstrate: all by default."""
    return n if n_demonstrations is None else as_count("n_demonstrations", n_demonstrations, n, of)


def as_number(name: str, value: float) -> float:
    """Return `value` as a float; TypeError unless it is a real number, ValueError unless finite."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating | np.integer):
        raise TypeError(f"{name} is {value!r}; expected a finite number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} is {value!r}; expected a finite number")
    return number


def as_positive(name: str, value: float) -> float:
    """Like `as_number`, but ValueError unless it is positive."""
    number = as_number(name, value)
    if number <= 0:
        raise ValueError(f"{name} is {value!r}; expected a positive number")
    return number


def as_scale(scale: float | None, dim: int) -> float:
    """Return the score scale, 1/sqrt(dim) by default; ValueError unless it is a finite number."""
    return 1.0 / math.sqrt(dim) if scale is None else as_number("scale", scale)


def as_positive_scale(scale: float | None, dim: int) -> float:
    """Like `as_scale`, but a scale that makes exp(scale x.y) no kernel (<= 0) is refused."""
    number = as_scale(scale, dim)
    if number <= 0:
        raise ValueError(
            f"scale is {scale!r}; expected a positive number: exp(scale x.y) is a kernel only then"
        )
    return number


def common_dtype(*arrays: Array) -> np.dtype[Any]:
    """The dtype of the result: NumPy's promotion of the arguments' dtypes."""
    return np.result_type(*arrays)


def compute_dtype(dtype: np.dtype[Any]) -> type[np.floating[Any]]:
    """The dtype to compute in: float16 is computed in float32, the others in themselves."""
    return _COMPUTE[dtype.type]
