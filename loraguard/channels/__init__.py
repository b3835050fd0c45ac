"""What happens to a photo between its publication and its misuse."""

import re

from loraguard.registry import Registry, build

from .base import Channel, Through
from .blur import AverageBlur, GaussianBlur, MedianBlur
from .chain import Chain
from .crop import CropResize
from .denoiser import Denoiser
from .grey import Grey
from .identity import Identity
from .jpeg import JPEG, DifferentiableJPEG
from .noise import GaussianNoise
from .quantize import Quantize
from .resize import Resize
from .rounding import published, quantize
from .tv import TotalVariation
from .webp import WebP

CHANNELS = Registry(
    "loraguard.channels",
    {
        "identity": "loraguard.channels.identity:Identity",
        "jpeg": "loraguard.channels.jpeg:JPEG",
        "webp": "loraguard.channels.webp:WebP",
        "quantize": "loraguard.channels.quantize:Quantize",
        "resize": "loraguard.channels.resize:Resize",
        "crop": "loraguard.channels.crop:CropResize",
        "blur": "loraguard.channels.blur:GaussianBlur",
        "average": "loraguard.channels.blur:AverageBlur",
        "median": "loraguard.channels.blur:MedianBlur",
        "noise": "loraguard.channels.noise:GaussianNoise",
        "grey": "loraguard.channels.grey:Grey",
        "tv": "loraguard.channels.tv:TotalVariation",
        "denoiser": "loraguard.channels.denoiser:Denoiser",
    },
)
"""Channels by the name that the command line takes."""


def parse_channel(spec: str) -> Channel:
    """The channel that a spec on the command line names: `NAME[:SETTINGS]`, or several joined by plus signs.

    Settings are those of the channel's class, in order or by name (:func:`loraguard.registry.build`). A plus sign joins
    where a letter follows it; a channel that needs one in its settings is made in Python.

    Raises:
        ValueError: for a name that is not in :data:`CHANNELS`, or settings that the channel does not take.

    Example:
        >>> parse_channel("jpeg:75+resize:scale=0.5")
        Chain(channels=(JPEG(quality=75, highest=None), Resize(scale=0.5)))
    """
    channels = [build(CHANNELS, part.strip()) for part in re.split(r"\+(?=\s*[A-Za-z])", spec)]
    return channels[0] if len(channels) == 1 else Chain(tuple(channels))


__all__ = [
    "CHANNELS",
    "JPEG",
    "AverageBlur",
    "Chain",
    "Channel",
    "CropResize",
    "Denoiser",
    "DifferentiableJPEG",
    "GaussianBlur",
    "GaussianNoise",
    "Grey",
    "Identity",
    "MedianBlur",
    "Quantize",
    "Resize",
    "Through",
    "TotalVariation",
    "WebP",
    "parse_channel",
    "published",
    "quantize",
]
