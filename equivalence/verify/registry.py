"""All claims, in the order in which a reader meets them."""

from __future__ import annotations

import difflib
from importlib import import_module

from equivalence.verify.claim import Claim

STEMS = (
    "softmax_is_kernel_smoothing",
    "gram_features",
    "positive_features",
    "one_gradient_step",
    "demonstrations_as_steps",
    "orthogonal_features",
    "antithetic_features",
    "trigonometric_features",
    "taylor_features",
    "generalized_exponential_features",
    "simplex_features",
    "random_feature_attention",
)


def load(stem: str) -> Claim:
    """The claim of that stem; ValueError that names the nearest stems otherwise.

    >>> load("one_gradient_step").kind
    <Kind.EXACT: 'exact'>
    """
    if stem not in STEMS:
        near = difflib.get_close_matches(stem, STEMS) or STEMS
        raise ValueError(
            f"stem is {stem!r}; expected one of `equivalence list`, such as {', '.join(near[:3])}"
        )
    claim: Claim = import_module(f"equivalence.verify.claims.{stem}").claim
    return claim


def load_all() -> list[Claim]:
    """Every claim."""
    return [load(stem) for stem in STEMS]
