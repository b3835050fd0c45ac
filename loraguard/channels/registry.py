"""Channels by the name that the command line takes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from loraguard.registry import Registry, build

if TYPE_CHECKING:
    from .base import Channel

CHANNELS = Registry(
    "loraguard.channels",
    {
        "identity": "loraguard.channels.identity:Identity",
        "jpeg": "loraguard.channels.jpeg:JPEG",
        "webp": "loraguard.channels.webp:WebP",
        "quantize": "loraguard.channels.levels:Quantize",
        "resize": "loraguard.channels.resize:Resize",
        "crop": "loraguard.channels.crop:CropResize",
        "blur": "loraguard.channels.blur:GaussianBlur",
        "average": "loraguard.channels.blur:AverageBlur",
        "median": "loraguard.channels.blur:MedianBlur",
        "noise": "loraguard.channels.noise:GaussianNoise",
        "salt-pepper": "loraguard.channels.salt_pepper:SaltPepper",
        "unsharp": "loraguard.channels.unsharp:Unsharp",
        "grey": "loraguard.channels.grey:Grey",
        "tv": "loraguard.channels.tv:TotalVariation",
        "denoiser": "loraguard.channels.denoiser:Denoiser",
        "noisy-upscale": "loraguard.channels.purifiers:NoisyUpscale",
        "autoencoder": "loraguard.channels.purifiers:RoundTrip",
        "impress": "loraguard.channels.purifiers:IMPRESS",
        "diffpure": "loraguard.channels.purifiers:DiffPure",
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
    from .chain import Chain

    channels = [build(CHANNELS, part) for part in _parts(spec)]
    return channels[0] if len(channels) == 1 else Chain(tuple(channels))


def check_channel(spec: str) -> None:
    """Check the names in a spec, without importing the channels.

    Raises:
        ValueError: for a name that is not in :data:`CHANNELS`.

    Example:
        >>> check_channel("jpeg:75+resiz:0.5")
        Traceback (most recent call last):
        ...
        ValueError: There is no 'resiz' among loraguard.channels: ... Did you mean 'resize'?
    """
    for part in _parts(spec):
        CHANNELS.check(part.partition(":")[0])


def _parts(spec: str) -> list[str]:
    return [part.strip() for part in re.split(r"\+(?=\s*[A-Za-z])", spec)]
