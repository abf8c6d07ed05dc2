"""Positive random features of exp(x.y): phi_w(x) = exp(w.x - |x|^2/2)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from equivalence._arrays import as_integer, as_points, as_tokens, common_dtype, compute_dtype
from equivalence.features.base import Features


class PositiveFeatures:
    """Positive features at given projections w_1..w_m, exact in expectation over w ~ N(0, I).

    phi(x)_r = exp(w_r.x - |x|^2/2) / sqrt(m), so that E phi(x).phi(y) = exp(x.y) with variance
    exp(2 x.y) (exp(|x+y|^2) - 1) / m. The map is deterministic; `sample` draws projections.

    Parameters
    ----------
    projections : array (m, d)
        One projection a row; float64, float32, float16 or integers.

    Raises
    ------
    ValueError
        Projections that are not (m, d) with m and d at least 1, or not finite.
    TypeError
        Projections that are not real numbers.

    Notes
    -----
    Source: Choromanski et al. 2021 (FAVOR+), lemma 1; proofs/positive_features.py.

    Examples
    --------
    >>> phi = PositiveFeatures([[0.0], [1.0]])
    >>> phi([[0.0]]).phi()
    array([[0.70710678, 0.70710678]])
    """

    def __init__(self, projections: npt.ArrayLike) -> None:
        W = as_points("projections", projections)
        if W.ndim != 2 or W.shape[0] == 0:
            raise ValueError(
                f"projections has shape {W.shape}; expected (n_features, dim), both at least 1"
            )
        if not np.isfinite(W).all():
            raise ValueError(
                "projections has entries that are NaN or infinite; expected finite ones"
            )
        self.projections = W

    @classmethod
    def sample(cls, dim: int, n_features: int, *, rng: np.random.Generator) -> PositiveFeatures:
        """Draw n_features independent projections from N(0, I_dim), in float64.

        Raises ValueError for sizes below 1, and TypeError for sizes that are not integers or an
        `rng` that is not a numpy Generator.

        Examples
        --------
        >>> PositiveFeatures.sample(3, 5, rng=np.random.default_rng(0)).projections.shape
        (5, 3)
        """
        for name, size in (("dim", dim), ("n_features", n_features)):
            if as_integer(name, size) < 1:
                raise ValueError(f"{name} is {size!r}; expected at least 1")
        if not isinstance(rng, np.random.Generator):
            raise TypeError(f"rng is {rng!r}; expected a numpy.random.Generator")
        return cls(rng.standard_normal((n_features, dim)))

    def __call__(self, x: npt.ArrayLike) -> Features:
        """phi(x) for points (..., n, d): features (..., n, m), log_scale (..., n), in x's dtype.

        A point with NaN or inf, or so large that its largest w.x overflows, has real features that
        are NaN.

        Raises ValueError if d is not the projections' dimension.
        """
        m, d = self.projections.shape
        X = as_tokens("x", x, dim=d)
        dtype = common_dtype(X)
        X = X.astype(compute_dtype(dtype), copy=False)
        with np.errstate(all="ignore"):
            exponent = X @ self.projections.astype(X.dtype, copy=False).T
            largest = exponent.max(axis=-1)
            features = np.exp(exponent - largest[..., None])
            half_norm = np.einsum("...d,...d->...", X, X) / 2
            log_scale = largest - half_norm - math.log(m) / 2
            return Features(features.astype(dtype, copy=False), log_scale.astype(dtype, copy=False))
