"""All claims, in the order in which a reader meets them."""

from __future__ import annotations

import difflib
from importlib import import_module

from equivalence.verify.claim import Claim

STEMS = (
    "softmax_is_kernel_smoothing",
    "gram_features",
    "taylor_features",
    "positive_features",
    "orthogonal_features",
    "antithetic_features",
    "trigonometric_features",
    "simplex_features",
    "generalized_exponential_features",
    "random_feature_attention",
    "one_gradient_step",
    "demonstrations_as_steps",
    "learning_rate_cancels",
    "loss_is_linear",
    "query_dependent_rate",
    "attention_gradients",
    "contrastive_first_step",
    "losses_agree_only_at_zero",
    "identity_is_bilinearity",
    "regularized_attention",
    "augmented_attention",
    "negative_attention",
    "causal_streaming",
    "multi_head_attention",
    "feed_forward_layer",
    "stacked_layers",
    "positions",
    "dense_exponential_features",
    "importance_features",
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
