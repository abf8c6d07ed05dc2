"""A case seen from the dual side: features of keys and queries, D, and what rounding allows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from equivalence._arrays import Array
from equivalence.features import Features
from equivalence.verify.budgets import (
    Budget,
    dual_budget,
    gaussian_exponent_error,
)
from equivalence.verify.cases import Case
from equivalence.verify.implementation import Implementation


@dataclass(frozen=True)
class DualCase:
    """Key features Phi (n, m) on one scale, query features phi_q (n_q, m), D (n_q,)."""

    Phi: Array
    phi_q: Array
    D: Array
    budget: Budget

    def at(self, rows: npt.NDArray[np.intp]) -> DualCase:
        """The same keys with some of the queries."""
        return DualCase(self.Phi, self.phi_q[rows], self.D[rows], self.budget[rows])


def scaled(case: Case) -> tuple[Array, Array]:
    """Queries and keys times the square root of the scale, in the case's dtype, read-only."""
    root = case.Q.dtype.type(math.sqrt(case.s))
    Q, K = case.Q * root, case.K * root
    Q.setflags(write=False)
    K.setflags(write=False)
    return Q, K


def see_dual(impl: Implementation, case: Case) -> DualCase:
    """Gram features of the case's keys, and the budget of a prediction made from them."""
    Q, K = scaled(case)
    phi = impl.GramFeatures().fit(K)
    Phi, phi_q = on_one_scale(phi(K)), phi(Q).features
    budget = dual_budget(Phi, phi_q, case.V, exponent_error(case, case.u), case.u)
    return DualCase(Phi, phi_q, impl.normalizer(Phi, phi_q), budget)


def on_one_scale(features: Features) -> Array:
    """The features times exp(log scale - the largest log scale)."""
    shift: Array = (
        features.features * np.exp(features.log_scale - features.log_scale.max())[:, None]
    )
    return shift


def exponent_error(case: Case, u: float) -> Array:
    """The error of the exponent behind phi(k).phi(q): the Gaussian's, and the keys' log scales'."""
    Q, K = scaled(case)
    half_norms = (K.astype(np.float64) ** 2).sum(axis=-1) / 2
    error: Array = gaussian_exponent_error(Q, K, u) + 2 * u * half_norms.max()
    return error
