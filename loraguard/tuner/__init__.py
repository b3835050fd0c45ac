"""GATED_LORA, gated low-rank adaptation (arXiv 2510.03747), as a tuner of PEFT. Importing this registers it."""

from .authors import AuthorsPatch, convert_checkpoint
from .config import GatedLoraConfig
from .conv import GatedLoraConv, GatedLoraConvTranspose
from .export import to_lora
from .folding import folded
from .gates import Gate, parameter_groups
from .layer import GatedLoraLayer
from .linear import GatedLoraLinear
from .model import GatedLoraModel
from .registration import register

__all__ = [
    "AuthorsPatch",
    "Gate",
    "GatedLoraConfig",
    "GatedLoraConv",
    "GatedLoraConvTranspose",
    "GatedLoraLayer",
    "GatedLoraLinear",
    "GatedLoraModel",
    "convert_checkpoint",
    "folded",
    "parameter_groups",
    "register",
    "to_lora",
]

register()
