"""Error budgets: how far a correct computation may be from the exact answer, and why.

All bounds are forward error bounds in the standard model fl(a op b) = (a op b)(1 + delta),
|delta| <= u (Higham 2002, ch. 2-3), elementwise and aware of magnitudes. They are themselves
evaluated in float64, and rounded up for that. `np.exp` is assumed good to 4 ulp, the slopes of gelu
and silu, which lie between 0 and 1, to 8 u.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from equivalence._arrays import Array

_ROUND_UP = 1 + 2.0**-20
_EXP_ULPS = 4
# Of the slopes Phi(z) and 1/(1 + exp(-z)), which lie between 0 and 1; that of relu is exact.
_SLOPE_ULPS = {"relu": 0, "gelu": 8, "silu": 8}
# max |sigma'|: gelu's is 1.1290 at z = sqrt(2), silu's 1.0998 at z = 2.3994.
_STEEPEST = {"relu": 1.0, "gelu": 1.13, "silu": 1.1}


@dataclass(frozen=True)
class Budget:
    """A bound (an array that broadcasts with what is compared), its reason, and its u."""

    bound: Array
    because: str
    u: float

    def __add__(self, other: Budget) -> Budget:
        """Two roundings in a row, or one on each side of a comparison."""
        because = (
            self.because if other.because in self.because else (f"{self.because}; {other.because}")
        )
        return Budget(self.bound + other.bound, because, max(self.u, other.u))

    def __getitem__(self, index: Any) -> Budget:
        """The budget of part of the entries."""
        return Budget(self.bound[index], self.because, self.u)

    def times(self, factor: float | Array, because: str = "") -> Budget:
        """The budget of something that moves `factor` times as much; the reason goes first."""
        return Budget(self.bound * factor, because + self.because, self.u)


def unit_roundoff(dtype: npt.DTypeLike) -> float:
    """u of a floating dtype: 2^-53 for float64, 2^-24 for float32.

    >>> unit_roundoff("float64") == 2.0**-53
    True
    """
    return float(np.finfo(np.dtype(dtype)).eps) / 2


def gamma(n: int, u: float) -> float:
    """gamma_n = n u / (1 - n u): the relative error of n roundings (Higham 2002, lemma 3.1).

    >>> gamma(1, 0.25)
    0.3333333333333333
    """
    if n * u >= 1:
        raise ValueError(f"n is {n} and u is {u}; expected n u < 1")
    return n * u / (1 - n * u)


def exact(because: str) -> Budget:
    """No error at all is allowed."""
    return Budget(np.zeros(()), because, 0.0)


def score_error(Q: Array, K: Array, scale: float, u: float) -> Array:
    """|computed - exact| of the scores scale q.k.

    A dot product has d roundings; 1/sqrt(d) has two, log2 e for exp2 one, and so have their product
    and the one with q. In float32 the first four, in float64, and a cast are less than that.
    """
    magnitude = abs(scale) * (_f64(abs(Q)) @ _f64(abs(K)).T)
    return gamma(Q.shape[-1] + 5, u) * magnitude


def weight_errors(
    Q: Array, K: Array, scale: float, u: float, bias: Array | None = None
) -> tuple[Array, Array]:
    """The weights p (n_q, n_k), and the relative error of each kappa_j as attention computes it."""
    S = scale * (_f64(Q) @ _f64(K).T)
    error = score_error(Q, K, scale, u)
    if bias is not None:
        S = S + bias
        error = error + u * np.where(np.isfinite(S), abs(S), 0)
    return softmax_errors(S, error, u)


def softmax_errors(S: Array, error: Array, u: float) -> tuple[Array, Array]:
    """The softmax of the scores S, and the relative error of each kappa_j from scores that err."""
    S = S - S.max(axis=-1, keepdims=True)
    kappa = np.exp(S)
    distance = np.where(kappa > 0, -S, 0.0)
    relative = np.expm1(error + u * distance) + 2 * _EXP_ULPS * u
    return kappa / kappa.sum(axis=-1, keepdims=True), relative


def attention_budget(
    Q: Array, K: Array, V: Array, scale: float, u: float, bias: Array | None = None
) -> Budget:
    """The error of sum_j kappa_j v_j / sum_j kappa_j, evaluated in any order of summation.

    Or with a running maximum, over blocks of 10 keys or more: see `mean_error`.
    """
    n = K.shape[-2]
    p, relative = weight_errors(Q, K, scale, u, bias)
    return Budget(
        mean_error(p, relative, V, u),
        f"scores err by gamma_(d+5) |q|.|k|, exp by {_EXP_ULPS} ulp, sums by gamma_(n+10) "
        f"(Higham 2002, sec. 3.1), n={n}, d={Q.shape[-1]}",
        u,
    )


def mean_error(p: Array, relative: Array, V: Array, u: float) -> Array:
    """The error of sum_j p_j v_j where each kappa_j behind p_j has that relative error.

    In blocks of b keys with a running maximum, a term has b roundings in its own block, and for
    each later one those of exp (8 u), of a product and of a sum. As the blocks but one have b >= 10
    keys, b + 10 (n_blocks - 1) <= n + 10. The differences of the maxima err by u times themselves,
    which add up to the distance of the score from the last maximum.
    """
    return _ratio_error(p, relative, _f64(V), V.shape[-2] + 9, u) + _underflow(V, u)


def smoother_budget(kappa: Array, relative: Array, V: Array, u: float) -> Budget:
    """The error of sum_j kappa_j v_j / sum_j kappa_j from kernel values with relative errors.

    The kernel values (n_q, n) are positive, and none of them underflows.
    """
    kappa, n = _f64(kappa), kappa.shape[-1]
    p = kappa / kappa.sum(axis=-1, keepdims=True)
    return Budget(
        _ratio_error(p, relative, _f64(V), n, u),
        f"kernel values err by their exponent and exp, sums by gamma_n (Higham 2002, sec. 3.1), "
        f"n={n}",
        u,
    )


def weights_budget(Q: Array, K: Array, scale: float, u: float, bias: Array | None = None) -> Budget:
    """The error of each weight kappa_j / sum_j kappa_j."""
    n = K.shape[-2]
    p, relative = weight_errors(Q, K, scale, u, bias)
    D_error = (p * relative).sum(axis=-1, keepdims=True) + gamma(n, u)
    bound = _beside(D_error, p * (relative + D_error + 2 * u))
    tiny = np.finfo(np.float32 if u > 2.0**-53 else np.float64).tiny
    return Budget(
        _ROUND_UP * bound + tiny,
        f"a weight errs by its own kappa and by D, gamma_n (Higham 2002, sec. 3.1), n={n}",
        u,
    )


def gaussian_exponent_error(X: Array, Z: Array, u: float) -> Array:
    """|computed - exact| of x.z - |x|^2/2 - |z|^2/2 - shift, the half norms taken as given.

    A dot product of vectors that carry the rounded root of the scale (4 roundings), then three
    differences and the sum with the log scale, of numbers no larger than the three terms together.
    """
    X, Z = _f64(X), _f64(Z)
    dot = abs(X) @ abs(Z).T
    half = ((X**2).sum(-1) / 2)[:, None] + (Z**2).sum(-1) / 2
    error: Array = gamma(X.shape[-1] + 4, u) * dot + gamma(5, u) * (dot + half)
    return error


def kernel_budget(Phi_x: Array, Phi_z: Array, exponent_error: Array, u: float) -> Budget:
    """The error of phi(x).phi(z) where L phi(x) = g is solved by substitution, then summed.

    The computed solution solves (L + dL) y = g with |dL| <= gamma_m |L| (Higham 2002, thm 8.5),
    so a row of |L| |y| bounds what is lost, whatever the condition of the Gram matrix.
    """
    m = Phi_x.shape[-1]
    terms = _f64(abs(Phi_x)) @ _f64(abs(Phi_z)).T
    relative = np.expm1(exponent_error) + 2 * _EXP_ULPS * u
    kernel = abs(_f64(Phi_x) @ _f64(Phi_z).T)
    return Budget(
        _ROUND_UP * (gamma(2 * m + 2, u) * terms + relative * kernel),
        f"substitution and sum err by gamma_2m |L||y| (Higham 2002, thm 8.5), m={m}; "
        f"the kernel by its exponent and {_EXP_ULPS} ulp",
        u,
    )


def dual_budget(
    Phi: Array,
    phi_q: Array,
    V: Array,
    exponent_error: Array,
    u: float,
    weight: Array | float = 1.0,
) -> Budget:
    """The error of W_1 phi(q) from key features Phi (n, m) that carry one common scale.

    exponent_error (n_q, n) is that of the exponent behind each kernel entry, scale included, and
    weight (n_q, n) what multiplies it: 0 where it is not attended. As |o| counts as
    sum_j p_j |v_j|, the bound holds for the part of o of any subset of the attended tokens.
    """
    kernel, error = (weight * x for x in _dual_kernel(Phi, phi_q, exponent_error, u))
    D, D_error = kernel.sum(-1)[:, None], error.sum(-1)[:, None]
    o = abs(kernel) @ abs(_f64(V)) / D
    bound = (error @ abs(_f64(V)) + o * D_error) / (D - D_error) + u * o
    return Budget(np.where(D_error < D, _ROUND_UP * bound, np.inf), _dual_reason(Phi), u)


def normalizer_budget(Phi: Array, phi_q: Array, exponent_error: Array, u: float) -> Budget:
    """The relative error of D(q) = sum_j phi(k_j).phi(q)."""
    kernel, error = _dual_kernel(Phi, phi_q, exponent_error, u)
    D, D_error = kernel.sum(-1), error.sum(-1)
    bound = np.where(D_error < D, _ROUND_UP * D_error / (D - D_error), np.inf)
    return Budget(bound, _dual_reason(Phi), u)


def _dual_kernel(Phi: Array, phi_q: Array, exponent_error: Array, u: float) -> tuple[Array, Array]:
    n, m = Phi.shape
    Phi, phi_q = _f64(Phi), _f64(phi_q)
    kernel = phi_q @ Phi.T
    relative = np.expm1(exponent_error) + 4 * _EXP_ULPS * u
    error = gamma(n + 3 * m + 6, u) * (abs(phi_q) @ abs(Phi).T) + relative * abs(kernel)
    return kernel, error


def _dual_reason(Phi: Array) -> str:
    n, m = Phi.shape
    return (
        f"W_1 and D are sums of n={n} terms |phi(k)||phi(q)| over m={m} features, "
        "gamma_(n+3m) (Higham 2002, sec. 3.1 and thm 8.5)"
    )


def sum_budget(terms: Array, n: int, u: float, axis: int | tuple[int, ...] = -1) -> Budget:
    """The error of a sum of products: gamma_n times the sum of the terms' magnitudes."""
    magnitude = _f64(abs(terms)).sum(axis=axis)
    return Budget(
        _ROUND_UP * gamma(n, u) * magnitude,
        f"gamma_{n} times the terms' magnitudes (Higham 2002, sec. 3.1)",
        u,
    )


def slope_error(activation: str, u: float) -> float:
    """|computed - exact| of a unit's slope sigma(z)/z at the z that was computed.

    >>> slope_error("relu", 2.0**-53)
    0.0
    """
    return _SLOPE_ULPS[activation] * u


def feed_forward_budget(
    size: Array, error: Array, layer: tuple[Array, ...], activation: str, u: float
) -> Budget:
    """The error of W_2 sigma(W_1 x + b_1) + b_2 at x with |x| <= size, known up to error.

    As slopes lie between 0 and 1, |sigma(z)| <= |z|.
    """
    W_1, b_1, W_2, b_2 = (abs(_f64(array)) for array in layer)
    h, c = W_1.shape
    z = (_f64(size) + error) @ W_1.T + b_1
    z_error = error @ W_1.T + gamma(c + 2, u) * z
    sigma_error = _STEEPEST[activation] * z_error + (slope_error(activation, u) + u) * z
    return Budget(
        _ROUND_UP * (sigma_error @ W_2.T + gamma(h + 2, u) * (z @ W_2.T + b_2)),
        f"z errs by gamma_(c+2) and by its token, sigma by max |sigma'| times that and "
        f"{_SLOPE_ULPS[activation]} u, the sum by gamma_(h+2) (Higham 2002, sec. 3.1), h={h}",
        u,
    )


def feed_forward_dual_budget(
    size: Array, error: Array, layer: tuple[Array, ...], activation: str, u: float
) -> Budget:
    """The error of W_F o + b_F, for slopes taken at a computed x and any o, both as far as `error`.

    At a z off by e the slope g, the exact sigma(z)/z of another z, is right to (1 + max |sigma'|) e
    where it meets the exact z: a unit of relu that has flipped has |z| <= e.
    """
    W_1, b_1, W_2, b_2 = (abs(_f64(array)) for array in layer)
    h, c = W_1.shape
    z = (_f64(size) + error) @ W_1.T + b_1
    z_error = error @ W_1.T + gamma(c + 2, u) * z
    moved = (1 + _STEEPEST[activation]) * z_error + slope_error(activation, u) * z
    return Budget(
        _ROUND_UP * (moved @ W_2.T + gamma(h + c + 4, u) * (z @ W_2.T + b_2)),
        f"the slopes by (1 + max |sigma'|) times the error of z, the labels by gamma_(h+c), h={h}",
        u,
    )


def _ratio_error(p: Array, relative: Array, V: Array, n: int, u: float) -> Array:
    rounding = gamma(n + 1, u)
    N_error = (p * (relative + rounding + relative * rounding)) @ abs(V)
    D_error = (p * relative).sum(axis=-1, keepdims=True) + rounding
    o = abs(p @ V)
    bound: Array = _ROUND_UP * (_beside(D_error, N_error + o * D_error) + u * o)
    return bound


def _beside(D_error: Array, error: Array) -> Array:
    """error / (1 - D_error), and infinite where D may err by all of itself."""
    with np.errstate(all="ignore"):
        quotient: Array = np.where(D_error < 1, error / (1 - D_error), np.inf)
    return quotient


def _underflow(V: Array, u: float) -> Array:
    """A kappa below the smallest normal number loses all of it, while D is at least u."""
    tiny = np.finfo(np.float32 if u > 2.0**-53 else np.float64).tiny
    lost: Array = float(tiny) / u * _f64(abs(V)).sum(axis=-2)
    return lost


def _f64(x: Array) -> Array:
    return np.asarray(x, np.float64)
