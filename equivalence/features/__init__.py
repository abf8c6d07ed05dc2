"""Feature maps of the exponential kernel: phi(x).phi(y) = exp(x.y), exactly or in expectation."""

from equivalence.features.base import Features, biased
from equivalence.features.couplings import sample_projections
from equivalence.features.dense import DenseFeatures
from equivalence.features.generalized import GeneralizedFeatures
from equivalence.features.gram import GramFeatures
from equivalence.features.importance import ImportanceFeatures
from equivalence.features.landmarks import LandmarkFeatures
from equivalence.features.positive import PositiveFeatures
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
    "biased",
    "sample_projections",
]
