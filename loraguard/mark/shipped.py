"""The network of marks (invisible watermarks) that ships with the package."""

from __future__ import annotations

from importlib.resources import files

from safetensors.torch import load

from .extractors import network_from
from .network import CornerNetwork, MarkNetwork


def shipped_network(kind: type[MarkNetwork] = MarkNetwork) -> MarkNetwork:
    """The reader of 48 bits that ships with the package, in evaluation mode; examples/train_mark_network.py made it.

    Example:
        >>> shipped_network().bits
        48
    """
    weights = files("loraguard.mark").joinpath("network_weights/model.safetensors").read_bytes()
    return network_from(load(weights), kind)


def corner_network() -> MarkNetwork:
    """The same weights, looking at the corners of pictures of any size.

    Example:
        >>> corner_network().bits
        48
    """
    return shipped_network(CornerNetwork)
