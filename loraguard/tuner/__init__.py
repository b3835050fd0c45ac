"""GATED_LORA, gated low-rank adaptation (arXiv 2510.03747), as a tuner of PEFT. Importing this registers it."""

from .config import GatedLoraConfig
from .conv import GatedLoraConv, GatedLoraConvTranspose
from .folding import folded
from .gates import Gate, parameter_groups
from .layer import GatedLoraLayer
from .linear import GatedLoraLinear
from .model import GatedLoraModel
from .registration import register

__all__ = [
    "Gate",
    "GatedLoraConfig",
    "GatedLoraConv",
    "GatedLoraConvTranspose",
    "GatedLoraLayer",
    "GatedLoraLinear",
    "GatedLoraModel",
    "folded",
    "parameter_groups",
    "register",
]

register()
