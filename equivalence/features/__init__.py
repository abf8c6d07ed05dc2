"""Feature maps of the exponential kernel: phi(x).phi(y) = exp(x.y), exactly or in expectation."""

from equivalence.features.base import Features, biased
from equivalence.features.gram import GramFeatures
from equivalence.features.positive import PositiveFeatures

__all__ = ["Features", "GramFeatures", "PositiveFeatures", "biased"]
