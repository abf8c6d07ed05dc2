"""Attention layers that a change of the dual's loss, or of its training pairs, gives."""

from equivalence.modifications.augmented import (
    augmented_attention,
    augmented_pairs,
    linear,
    mlp,
    residual,
)
from equivalence.modifications.negative import (
    lowest_score_tokens,
    negative_attention,
    negative_labels,
)
from equivalence.modifications.regularized import (
    regularized_attention,
    regularized_gradient,
    regularized_loss,
)

__all__ = [
    "augmented_attention",
    "augmented_pairs",
    "linear",
    "lowest_score_tokens",
    "mlp",
    "negative_attention",
    "negative_labels",
    "regularized_attention",
    "regularized_gradient",
    "regularized_loss",
    "residual",
]
