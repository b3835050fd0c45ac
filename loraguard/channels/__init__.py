"""What happens to a photo between its publication and its misuse."""

from loraguard.registry import Registry

from .base import Channel, Through
from .jpeg import JPEG, DifferentiableJPEG
from .quantize import Quantize
from .rounding import published, quantize

CHANNELS = Registry(
    "loraguard.channels",
    {
        "jpeg": "loraguard.channels.jpeg:JPEG",
        "quantize": "loraguard.channels.quantize:Quantize",
    },
)
"""Channels by the name that the command line takes."""

__all__ = ["CHANNELS", "JPEG", "Channel", "DifferentiableJPEG", "Quantize", "Through", "published", "quantize"]
