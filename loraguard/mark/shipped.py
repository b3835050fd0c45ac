"""The network of marks (invisible watermarks) that ships with the package."""

from __future__ import annotations

from importlib.resources import files

from safetensors.torch import load

from .extractors import network_from
from .network import MarkNetwork


def shipped_network() -> MarkNetwork:
    """The reader of 48 bits that ships with the package, in evaluation mode; examples/train_mark_network.py made it.

    Example:
        >>> shipped_network().bits
        48
    """
    return network_from(load(files("loraguard.mark").joinpath("network_weights/model.safetensors").read_bytes()))
