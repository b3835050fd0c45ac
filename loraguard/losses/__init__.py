"""Losses between images: multi-modal feature alignment, and the frozen encoders that it sees through."""

from .cache import FeatureCache
from .encoders import FeatureEncoder
from .functional import FeaturePair, feature_cosine, feature_mse, mmfa_loss, mmfa_terms
from .mmfa import MMFALoss, PreparedTarget

__all__ = [
    "FeatureCache",
    "FeatureEncoder",
    "FeaturePair",
    "MMFALoss",
    "PreparedTarget",
    "feature_cosine",
    "feature_mse",
    "mmfa_loss",
    "mmfa_terms",
]
