"""Positive random features of exp(x.y): phi_w(x) = exp(w.x - |x|^2/2)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from equivalence._arrays import Array, as_tokens, common_dtype, compute_dtype
from equivalence.features import variance
from equivalence.features.base import Features, as_projections
from equivalence.features.couplings import sample_projections
from equivalence.features.exponentials import exponentials
from equivalence.features.moments import Moments


class PositiveFeatures(Moments):
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
        self.projections = as_projections(projections)

    @classmethod
    def sample(
        cls,
        dim: int,
        n_features: int,
        *,
        rng: np.random.Generator,
        coupling: str = "iid",
        antithetic: bool = False,
    ) -> PositiveFeatures:
        """Draw n_features projections of N(0, I_dim) in float64: `couplings.sample_projections`.

        Raises ValueError for sizes below 1, an unknown coupling or an odd number of antithetic
        features, and TypeError for sizes that are not integers or an `rng` that is not a numpy
        Generator.

        Examples
        --------
        >>> PositiveFeatures.sample(3, 5, rng=np.random.default_rng(0)).projections.shape
        (5, 3)
        """
        W = sample_projections(n_features, dim, rng=rng, coupling=coupling, antithetic=antithetic)
        return cls(W)._drawn(coupling, antithetic)

    @staticmethod
    def log_relative_variance(
        x: npt.ArrayLike,
        y: npt.ArrayLike,
        n_features: int,
        *,
        coupling: str = "iid",
        antithetic: bool = False,
    ) -> Array:
        """log(Var / exp(2 x.y)) of phi(x).phi(y) over such a `sample`, for each pair of rows.

        x (..., n, d) and y (..., k, d) give (..., n, k) in their dtype, computed in float64; -inf
        where there is no variance. The standard deviation relative to the kernel is exp of its
        half; the logarithm is finite where that overflows.

        Raises ValueError for what `sample` refuses and for 'sobol', which has no closed form.

        Examples
        --------
        One feature at |x+y| = 1 has the relative variance e - 1:

        >>> log_variance = PositiveFeatures.log_relative_variance([[0.25]], [[0.75]], 1)
        >>> bool(np.isclose(np.exp(log_variance), np.e - 1).all())
        True
        """
        return variance.log_relative_variance(
            x, y, n_features, coupling=coupling, antithetic=antithetic
        )

    def _log_relative_variance(self, x: Array, y: Array, **how: Any) -> Array:
        return self.log_relative_variance(x, y, len(self.projections), **how)

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
            features, shift = exponentials(X, self.projections.astype(X.dtype, copy=False))
            half_norm = np.einsum("...d,...d->...", X, X) / 2
            log_scale = shift - half_norm - math.log(m) / 2
            return Features(features.astype(dtype, copy=False), log_scale.astype(dtype, copy=False))
