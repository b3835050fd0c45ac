"""The network of marks (invisible watermarks) that ships with the package."""

from __future__ import annotations

from importlib.resources import files

from safetensors.torch import load

from .network import MarkNetwork


def shipped_network() -> MarkNetwork:
    """The reader of 48 bits that ships with the package, in evaluation mode; examples/train_mark_network.py made it.

    Example:
        >>> shipped_network().bits
        48
    """
    state = load(files("loraguard.mark").joinpath("network_weights/model.safetensors").read_bytes())
    blocks = sum(name.startswith("blocks.") and name.endswith(".1.weight") for name in state)
    network = MarkNetwork(len(state["patterns"]), len(state["stem.weight"]), blocks)
    network.load_state_dict({name: value.float() for name, value in state.items()})
    return network.requires_grad_(False).eval()
