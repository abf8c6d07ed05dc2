"""What is under test: the public functions by name, each of which a mutant or a target replaces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equivalence
from equivalence import dual
from equivalence.features import (
    GeneralizedFeatures,
    GramFeatures,
    PositiveFeatures,
    TaylorFeatures,
    TrigonometricFeatures,
    prediction,
    sample_projections,
)
from equivalence.features.generalized import optimal_tilt
from equivalence.features.variance import log_relative_variance


@dataclass(frozen=True)
class Implementation:
    """The functions a claim's check calls; `dataclasses.replace` swaps one for another."""

    attention: Callable[..., Any] = equivalence.attention
    attention_weights: Callable[..., Any] = equivalence.attention_weights
    GramFeatures: Any = GramFeatures
    PositiveFeatures: Any = PositiveFeatures
    GeneralizedFeatures: Any = GeneralizedFeatures
    optimal_tilt: Callable[..., Any] = optimal_tilt
    attention_bias: Callable[..., Any] = prediction.attention_bias
    attention_mean_square_error: Callable[..., Any] = prediction.attention_mean_square_error
    required_features: Callable[..., Any] = prediction.required_features
    log_lower_tail: Callable[..., Any] = prediction.log_lower_tail
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
    keywords: frozenset[str] = frozenset({"scale", "mask", "causal"})
    """What `attention` accepts beside query, key and value."""


OURS = Implementation()
