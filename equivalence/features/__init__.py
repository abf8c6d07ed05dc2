"""Feature maps of the exponential kernel: phi(x).phi(y) = exp(x.y), exactly or in expectation."""

from equivalence.features.base import Features, biased
from equivalence.features.couplings import sample_projections
from equivalence.features.dense import DenseFeatures, optimal_tilts
from equivalence.features.generalized import GeneralizedFeatures, optimal_tilt
from equivalence.features.gram import GramFeatures
from equivalence.features.importance import ImportanceFeatures
from equivalence.features.landmarks import LandmarkFeatures
from equivalence.features.positive import PositiveFeatures
from equivalence.features.prediction import (
    attention_bias,
    attention_mean_square_error,
    log_lower_tail,
    required_features,
)
from equivalence.features.reductions import ReducedFeatures, Reduction
from equivalence.features.taylor import TaylorFeatures
from equivalence.features.trigonometric import TrigonometricFeatures

__all__ = [
    "DenseFeatures",
    "Features",
    "GeneralizedFeatures",
    "GramFeatures",
    "ImportanceFeatures",
    "LandmarkFeatures",
    "PositiveFeatures",
    "ReducedFeatures",
    "Reduction",
    "TaylorFeatures",
    "TrigonometricFeatures",
    "attention_bias",
    "attention_mean_square_error",
    "biased",
    "log_lower_tail",
    "optimal_tilt",
    "optimal_tilts",
    "required_features",
    "sample_projections",
]
