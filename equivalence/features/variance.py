"""The variance of random features in closed form, for each coupling of their projections.

A feature map's estimate of exp(x.y) is the mean of n terms. Divided by exp(x.y), a term is

    T = exp(w.z - t/2), z = x + y, t = |z|^2              positive,
    T = e^{t/2} cos(w.z), z = x - y, t = |z|^2            trigonometric,

so all moments depend on t alone. With c = E T_i T_j - 1 for two projections of one block,

    Var(mean) = (1/n) [E T^2 - 1 + p c],  p = the mean number of others in a projection's block.

For orthogonal projections c = g(t), or g(-t) for trigonometric features, where

    g(t) = e^{-t} 1F1(d; d/2; t/2) - 1;

for directions at cosine rho, with B = sin(a), a of density proportional to sin(a)^(d-1) on (0, pi),

    c = E exp(rho B t) (g(t (1 + rho B)) + 1) - 1,

and for terms that are even in w, antithetic pairs and cosines, the mean of this at rho and -rho.

Everything is computed times e^{-t}, which stays between -1 and 1: nothing overflows.
Source: proofs/orthogonal_features.py, proofs/simplex_features.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import numpy.typing as npt

from equivalence._arrays import Array, as_points, as_tokens, broadcast_axes, common_dtype
from equivalence.features.couplings import check_draw

# Below, the power series of g, which does not cancel; beyond, the mean over a Poisson number.
_SERIES_BELOW = 2.0
_SERIES_TERMS = 40
# Beyond, e^{-t} is no float64 beside 1; and 1F1(d; d/2; -t/2) is its leading asymptotic term.
_NEGLIGIBLE = 700.0
_ASYMPTOTIC = 2e4
_ANGLES = 96
_CHUNK = 1 << 18


def squared_distances(x: npt.ArrayLike, y: npt.ArrayLike, sign: int) -> Array:
    """|x + sign y|^2 of each x (..., n, d) with each y (..., k, d), in float64.

    Raises ValueError for shapes that do not fit, TypeError for what is not real, by name.

    >>> squared_distances([[1.0, 2.0]], [[1.0, 0.0]], 1)
    array([[8.]])
    """
    X = as_points("x", x)
    Y = as_tokens("y", y, dim=X.shape[-1])
    broadcast_axes("y", X.shape[:-2], Y.shape[:-2])
    X, Y = X.astype(np.float64), sign * Y.astype(np.float64)
    with np.errstate(all="ignore"):
        # One coordinate at a time: sums of squares lose nothing, and no (n, k, d) array is made.
        parts = ((X[..., :, None, k] + Y[..., None, :, k]) ** 2 for k in range(X.shape[-1]))
        total: Array = sum(parts, np.zeros(()))
    return total


def log_relative_variance(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    n_terms: int,
    *,
    coupling: str = "iid",
    antithetic: bool = False,
    trigonometric: bool = False,
) -> Array:
    """log(Var / exp(2 x.y)) of the mean of n_terms terms, one a projection, for each pair of rows.

    Parameters
    ----------
    x, y : arrays (..., n, d), (..., k, d)
        Points; leading batch axes broadcast.
    n_terms : int
        The number of projections: of positive features, or half that of trigonometric ones.
    coupling, antithetic
        As in `couplings.sample_projections`.
    trigonometric : bool
        Trigonometric features, for which w and -w are the same; positive ones otherwise.

    Returns
    -------
    array (..., n, k) in the points' dtype, computed in float64; -inf where there is no variance.

    Raises
    ------
    ValueError
        Points or numbers that do not fit, or 'sobol', for which no closed form is known.
    TypeError
        What is not a number where one is expected.

    Examples
    --------
    >>> log_variance = log_relative_variance([[1.0, 0.0]], [[0.0, 0.0]], 1)
    >>> bool(np.isclose(np.exp(log_variance), np.e - 1).all())
    True
    """
    t = squared_distances(x, y, -1 if trigonometric else 1)
    d = np.shape(x)[-1]
    check_draw(n_terms, d, coupling, antithetic)
    n = n_terms // 2 if antithetic else n_terms
    with np.errstate(all="ignore"):
        one = -np.expm1(-t)
        own = one**2 / 2 if antithetic or trigonometric else one
        p = partners(n, d, coupling)
        pairs = p * correlation(t, d, coupling, antithetic, trigonometric) if p else 0.0
        log_variance: Array = t - math.log(n) + np.log(own + pairs)
    dtype = common_dtype(as_points("x", x), as_points("y", y))
    return log_variance.astype(dtype, copy=False)


def partners(n: int, d: int, coupling: str) -> float:
    """How many others share a projection's block, on average over n projections.

    >>> partners(5, 3, "orthogonal")
    1.6
    """
    if coupling == "iid":
        return 0.0
    if coupling == "sobol":
        raise ValueError(
            "coupling is 'sobol'; expected 'iid', 'orthogonal' or 'simplex': all points of a "
            "scrambled Sobol' sequence depend on one another, and no closed form is known"
        )
    full, rest = divmod(n, d)
    return (full * d * (d - 1) + rest * (rest - 1)) / n


def correlation(
    t: Array, d: int, coupling: str, antithetic: bool = False, trigonometric: bool = False
) -> Array:
    """e^{-t} c of two projections of one block (antithetic: of two pairs), elementwise in t.

    Generalised positive features have the c of plain ones: their tilt only stretches the norms.

    >>> bool(correlation(np.array([1.0]), 4, "orthogonal") < 0)
    True
    """
    flat = np.asarray(t, np.float64).ravel()
    if coupling == "simplex" and d > 1:
        angles, weights = _angles(d)
        b = -np.sin(angles) / (d - 1)
    else:
        b, weights = np.zeros(1), np.ones(1)
    with np.errstate(all="ignore"):
        if trigonometric:
            at_angles = _trigonometric(flat, d, b)
        elif antithetic and b.any():
            at_angles = _antithetic(flat, d, b)
        else:
            at_angles = _positive(flat, d, b)
    mean: Array = (at_angles @ weights).reshape(np.shape(t))
    return mean


@cache
def _angles(d: int) -> tuple[Array, Array]:
    """Nodes on (0, pi/2), and weights of the density proportional to sin^(d-1)."""
    nodes, weights = np.polynomial.legendre.leggauss(_ANGLES)
    angles = (nodes + 1) * (math.pi / 4)
    weights = weights * np.sin(angles) ** (d - 1)
    return angles, weights / weights.sum()


def _positive(t: Array, d: int, b: Array) -> Array:
    """e^{-t} [(e^{bt} - 1) + e^{bt} g(t (1 + b))] for each t and each b."""
    t = np.minimum(t, _NEGLIGIBLE)[:, None]
    return _scaled_expm1(b * t, t) + np.exp(b * t - t) * _g(t * (1 + b), d)


def _antithetic(t: Array, d: int, b: Array) -> Array:
    """The mean of `_positive` at b and -b: w and -w meet the other pair at both cosines."""
    t = np.minimum(t, _NEGLIGIBLE)[:, None]
    tilted = [np.exp(y * t - t) * _g(t * (1 + y), d) for y in (b, -b)]
    both: Array = _scaled_cosh_minus_one(b * t, t) + (tilted[0] + tilted[1]) / 2
    return both


def _trigonometric(t: Array, d: int, b: Array) -> Array:
    """The mean of e^{-t} [(e^{bt} - 1) + e^{bt} g(-t (1 - b))] at b and -b.

    A cosine is even, so it too meets the other one at both cosines.
    """
    t = t[:, None]
    tilted = [_scaled_g_of_minus(t * (1 + y), d) for y in ((b, -b) if b.any() else (b,))]
    both: Array = _scaled_cosh_minus_one(b * t, t) + sum(tilted, np.zeros(())) / len(tilted)
    return both


def _scaled_cosh_minus_one(y: Array, t: Array) -> Array:
    """e^{-t} (cosh y - 1), for |y| <= t."""
    scaled: Array = np.exp(abs(y) - t) * np.expm1(-abs(y)) ** 2 / 2
    return scaled


def _scaled_expm1(y: Array, t: Array) -> Array:
    """e^{-t} (e^y - 1), for y <= t."""
    scaled: Array = -np.sign(y) * np.exp(np.maximum(y, 0) - t) * np.expm1(-abs(y))
    return scaled


def _g(t: Array, d: int) -> Array:
    """g(t), t >= 0: e^{-t/2} E (d)_K / (d/2)_K - 1 for a Poisson K of mean t/2."""
    return _chunked(t, d, 1.0, _g_beyond)


def _scaled_g_of_minus(t: Array, d: int) -> Array:
    """e^{-t} g(-t), t >= 0: E (-d/2)_K / (d/2)_K - e^{-t} for a Poisson K of mean t/2.

    The ratios lie between -1 and 1, where 1F1(d; d/2; -t/2) as it stands would cancel.
    """
    return _chunked(t, d, -1.0, _scaled_g_of_minus_beyond)


def _chunked(t: Array, d: int, sign: float, beyond: Callable[[Array, int], Array]) -> Array:
    """g(t), or e^{-t} g(-t): from the power series below, and a cacheful at a time beyond."""
    flat = t.ravel()
    values = np.where(flat == np.inf, -np.inf if sign > 0 else 0.0, np.nan)
    small = flat <= _SERIES_BELOW
    values[small] = _series(sign * flat[small], d)
    if sign < 0:
        values[small] *= np.exp(-flat[small])
        far = (flat > _ASYMPTOTIC) & (flat < np.inf)
        values[far] = _leading_term(flat[far], d)
    rest = np.flatnonzero(~small & (flat <= _ASYMPTOTIC))
    rest = rest[np.argsort(flat[rest])]
    start = 0
    while start < len(rest):
        step = max(1, _CHUNK // _terms(float(flat[rest[start]])))
        some = rest[start : start + step]
        values[some] = beyond(flat[some], d)
        start += step
    return values.reshape(t.shape)


def _series(t: Array, d: int) -> Array:
    """g = sum_{k>=2} g_k (t/2)^k, (k+1)(k + d/2) g_{k+1} = -3k g_k - 2 g_{k-1}, g_0 = 1, g_1 = 0.

    From Kummer's equation for 1F1(d; d/2; t/2) = e^t (1 + g).
    """
    g = [1.0, 0.0]
    for k in range(1, _SERIES_TERMS):
        g.append(-(3 * k * g[k] + 2 * g[k - 1]) / ((k + 1) * (k + d / 2)))
    total: Array = np.polynomial.polynomial.polyval(t / 2, [0.0, 0.0, *g[2:]])
    return total


def _g_beyond(t: Array, d: int) -> Array:
    k = np.arange(_terms(float(t.max())))
    ratios = np.concatenate([[0.0], np.cumsum(np.log((d + k[:-1]) / (d / 2 + k[:-1])))])
    total: Array = np.exp(_log_poisson(k, t / 2) + ratios - t[:, None] / 2).sum(axis=-1) - 1
    return total


def _scaled_g_of_minus_beyond(t: Array, d: int) -> Array:
    k = np.arange(_terms(float(t.max())))
    ratios = np.concatenate([[1.0], np.cumprod((k[:-1] - d / 2) / (k[:-1] + d / 2))])
    total: Array = np.exp(_log_poisson(k, t / 2)) @ ratios - np.exp(-t)
    return total


def _terms(t: float) -> int:
    """How many k hold all of a Poisson law of mean t/2, tilted by at most 2^k, to rounding."""
    return math.ceil(t + 12 * math.sqrt(t) + 60)


def _leading_term(t: Array, d: int) -> Array:
    """1F1(d; d/2; -t/2) ~ Gamma(d/2) / Gamma(-d/2) (t/2)^-d for large t: 0 for even d."""
    from scipy import special

    # The reflection of Gamma(-d/2), whose sine is 0, 1, 0, -1 in turn.
    sine = (0, 1, 0, -1)[d % 4]
    logs = special.gammaln(d / 2) + special.gammaln(d / 2 + 1) - d * np.log(t / 2)
    term: Array = -sine / math.pi * np.exp(logs)
    return term


def _log_poisson(k: npt.NDArray[np.intp], mean: Array) -> Array:
    from scipy import special

    log_p: Array = special.xlogy(k, mean[:, None]) - mean[:, None] - special.gammaln(k + 1)
    return log_p
