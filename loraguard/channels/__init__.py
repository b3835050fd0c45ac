"""What happens to a photo between its publication and its misuse."""

from loraguard.registry import Registry

from .base import Channel, Through
from .quantize import Quantize
from .rounding import published, quantize

CHANNELS = Registry(
    "loraguard.channels",
    {
        "quantize": "loraguard.channels.quantize:Quantize",
    },
)
"""Channels by the name that the command line takes."""

__all__ = ["CHANNELS", "Channel", "Quantize", "Through", "published", "quantize"]
