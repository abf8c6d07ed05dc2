"""Kernels that are not exp(q.k): defined in scalars, and what a rounded value of one may be off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from equivalence._arrays import Array
from equivalence.kernels import (
    Kernel,
    elu_kernel,
    gaussian_kernel,
    laplace_kernel,
    quadratic_kernel,
)
from equivalence.verify.budgets import gamma
from equivalence.verify.oracle import Arithmetic, Number, Vector


@dataclass(frozen=True)
class OtherKernel:
    """A kernel, its definition in scalars, and the exponent that its roundings multiply."""

    kernel: Kernel
    scalar: Callable[[Arithmetic, Vector, Vector], Number]
    exponent: Callable[[Array, Array], Array]

    @property
    def name(self) -> str:
        """Its name without the word kernel."""
        return self.kernel.__name__.removesuffix("_kernel")

    def relative_error(self, Q: Array, K: Array, u: float) -> Array:
        """Of a kernel value: exp(t) with t off by gamma_d t, and 4 ulp; 1 + t^2 moves by less."""
        d = K.shape[-1]
        t = self.exponent(Q.astype(np.float64), K.astype(np.float64))
        error: Array = np.expm1(2 * gamma(d + 4, u) * t) + gamma(d + 24, u)
        return error


def _elu(number: Arithmetic, x: Vector, y: Vector) -> Number:
    def f(t: Number) -> Number:
        return t + 1 if float(t) > 0 else number.exp(t)

    return number.dot([f(a) for a in x], [f(b) for b in y])


def _quadratic(number: Arithmetic, x: Vector, y: Vector) -> Number:
    t = number.dot(x, y)
    return 1 + t * t


def _gaussian(number: Arithmetic, x: Vector, y: Vector) -> Number:
    difference = [a - b for a, b in zip(x, y, strict=True)]
    return number.exp(-number.dot(difference, difference) / 2)


def _laplace(number: Arithmetic, x: Vector, y: Vector) -> Number:
    return number.exp(-number.sum(abs(a - b) for a, b in zip(x, y, strict=True)))


def _squared_distance(Q: Array, K: Array) -> Array:
    half: Array = ((Q[:, None] - K) ** 2).sum(axis=-1) / 2
    return half


OTHERS = (
    OtherKernel(quadratic_kernel, _quadratic, lambda Q, K: abs(Q) @ abs(K).T),
    OtherKernel(elu_kernel, _elu, lambda Q, K: np.zeros((len(Q), len(K)))),
    OtherKernel(gaussian_kernel, _gaussian, _squared_distance),
    OtherKernel(laplace_kernel, _laplace, lambda Q, K: abs(Q[:, None] - K).sum(axis=-1)),
)
