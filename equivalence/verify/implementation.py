"""What is under test: the public functions by name, each of which a mutant or a target replaces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equivalence
from equivalence import (
    backward,
    ball,
    dual,
    gradients,
    kernels,
    layers,
    losses,
    modifications,
    ratio,
    streaming,
)
from equivalence.features import (
    DenseFeatures,
    GeneralizedFeatures,
    GramFeatures,
    ImportanceFeatures,
    PositiveFeatures,
    ReducedFeatures,
    Reduction,
    TaylorFeatures,
    TrigonometricFeatures,
    optimal_tilt,
    prediction,
    sample_projections,
)
from equivalence.features.importance import log_importance_weights
from equivalence.features.variance import log_relative_variance


@dataclass(frozen=True)
class Implementation:
    """The functions a claim's check calls; `dataclasses.replace` swaps one for another."""

    attention: Callable[..., Any] = equivalence.attention
    attention_weights: Callable[..., Any] = equivalence.attention_weights
    GramFeatures: Any = GramFeatures
    PositiveFeatures: Any = PositiveFeatures
    GeneralizedFeatures: Any = GeneralizedFeatures
    DenseFeatures: Any = DenseFeatures
    Reduction: Any = Reduction
    ReducedFeatures: Any = ReducedFeatures
    optimal_tilt: Callable[..., Any] = optimal_tilt
    attention_bias: Callable[..., Any] = prediction.attention_bias
    attention_mean_square_error: Callable[..., Any] = prediction.attention_mean_square_error
    required_features: Callable[..., Any] = prediction.required_features
    log_lower_tail: Callable[..., Any] = prediction.log_lower_tail
    ImportanceFeatures: Any = ImportanceFeatures
    log_importance_weights: Callable[..., Any] = log_importance_weights
    TaylorFeatures: Any = TaylorFeatures
    TrigonometricFeatures: Any = TrigonometricFeatures
    sample_projections: Callable[..., Any] = sample_projections
    log_relative_variance: Callable[..., Any] = log_relative_variance
    OneStepRegressor: Any = equivalence.OneStepRegressor
    normalizer: Callable[..., Any] = dual.normalizer
    initial_weights: Callable[..., Any] = dual.initial_weights
    loss: Callable[..., Any] = dual.loss
    gradient: Callable[..., Any] = dual.gradient
    gradient_step: Callable[..., Any] = dual.gradient_step
    gradient_steps: Callable[..., Any] = dual.gradient_steps
    predict: Callable[..., Any] = dual.predict
    ball_optimum: Callable[..., Any] = ball.ball_optimum
    step_length: Callable[..., Any] = ball.step_length
    to_homogeneous: Callable[..., Any] = ratio.to_homogeneous
    from_homogeneous: Callable[..., Any] = ratio.from_homogeneous
    least_squares_loss: Callable[..., Any] = losses.least_squares_loss
    least_squares_gradient: Callable[..., Any] = losses.least_squares_gradient
    logistic_loss: Callable[..., Any] = losses.logistic_loss
    logistic_gradient: Callable[..., Any] = losses.logistic_gradient
    info_nce_loss: Callable[..., Any] = losses.info_nce_loss
    info_nce_gradient: Callable[..., Any] = losses.info_nce_gradient
    regularized_attention: Callable[..., Any] = modifications.regularized_attention
    regularized_loss: Callable[..., Any] = modifications.regularized_loss
    regularized_gradient: Callable[..., Any] = modifications.regularized_gradient
    negative_attention: Callable[..., Any] = modifications.negative_attention
    negative_labels: Callable[..., Any] = modifications.negative_labels
    lowest_score_tokens: Callable[..., Any] = modifications.lowest_score_tokens
    augmented_attention: Callable[..., Any] = modifications.augmented_attention
    augmented_pairs: Callable[..., Any] = modifications.augmented_pairs
    attention_jacobians: Callable[..., Any] = gradients.attention_jacobians
    dual_jacobian: Callable[..., Any] = gradients.dual_jacobian
    attention_backward: Callable[..., Any] = backward.attention_backward
    kernel_attention: Callable[..., Any] = kernels.kernel_attention
    kernel_features: Callable[..., Any] = kernels.kernel_features
    feed_forward: Callable[..., Any] = layers.feed_forward
    feed_forward_dual: Callable[..., Any] = layers.feed_forward_dual
    multi_head_attention: Callable[..., Any] = layers.multi_head_attention
    joint_labels: Callable[..., Any] = layers.joint_labels
    joint_key_features: Callable[..., Any] = layers.joint_key_features
    joint_query_features: Callable[..., Any] = layers.joint_query_features
    stack: Callable[..., Any] = layers.stack
    stack_duals: Callable[..., Any] = layers.stack_duals
    AttentionState: Any = streaming.AttentionState
    causal_attention_by_chunks: Callable[..., Any] = streaming.causal_attention_by_chunks
    rotary: Callable[..., Any] = layers.rotary
    rotary_attention: Callable[..., Any] = layers.rotary_attention
    keywords: frozenset[str] = frozenset({"scale", "mask", "causal"})
    """What `attention` accepts beside query, key and value."""


OURS = Implementation()
