"""Reading the checkpoints that authors of generators distribute; nothing in a file is executed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

COUNTER = "num_batches_tracked"
"""The tensor that norms of torch < 0.4.1 did not have, and that no output depends on."""


def read_checkpoint(path: str | Path, nested: Iterable[str] = ()) -> dict[str, Tensor]:
    """The state dict in a file, from `torch.save` or in safetensors.

    Args:
        path: the file.
        nested: keys under which the state dict may lie in it, one or the other.

    Returns:
        Names with tensors, on the CPU; without the prefix `module.` that `DataParallel` puts before every name.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not whole, would run code when read, or holds no state dict.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "weights.pth")
        >>> torch.save({"G": {"module.weight": torch.zeros(2)}, "epoch": 3}, path)
        >>> read_checkpoint(path, nested=("G",))
        {'weight': tensor([0., 0.])}
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint file {path}.")
    try:
        safe = path.suffix == ".safetensors"
        state: Any = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise ValueError(f"{path} is no whole safetensors file: {error}") from error
    except Exception as error:  # what torch.load raises is not laid down, and its words advise to read it unsafely
        raise ValueError(
            f"{path} cannot be read as tensors alone. It is damaged, no checkpoint of torch.save, or holds objects "
            "that would run code; loraguard does not run any. Save its state_dict anew."
        ) from error
    for key in nested:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
            break
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        inside = f"a dict of {', '.join(map(repr, list(state)[:6]))}" if isinstance(state, Mapping) else type(state)
        raise ValueError(
            f"{path} holds no state dict but {inside}; expected names with tensors, plain or under one of the keys "
            f"{', '.join(nested) or 'none'}."
        )
    prefixed = all(str(name).startswith("module.") for name in state)
    return {str(name).removeprefix("module.") if prefixed else str(name): value for name, value in state.items()}


def load_strictly(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict whose names and shapes are exactly the network's; `num_batches_tracked` may be there or not.

    Raises:
        ValueError: if a tensor is missing, left over, of another shape or not finite. Nothing has changed then.

    Example:
        >>> load_strictly(nn.Linear(2, 1), {"weight": torch.zeros(1, 3)}, "file.pth")
        Traceback (most recent call last):
        ...
        ValueError: file.pth does not fit Linear. Missing: bias. Other shape: weight (1, 3), expected (1, 2).
    """
    own = network.state_dict()
    kept = {name: value for name, value in state.items() if name in own or not name.endswith(COUNTER)}
    complaints = {
        "Missing": [name for name in own if name not in kept and not name.endswith(COUNTER)],
        "Left over": [name for name in kept if name not in own],
        "Other shape": [
            f"{name} {tuple(value.shape)}, expected {tuple(own[name].shape)}"
            for name, value in kept.items()
            if name in own and value.shape != own[name].shape
        ],
        "Not finite": [name for name, value in kept.items() if not torch.isfinite(value).all()],
    }
    if any(complaints.values()):
        found = " ".join(f"{what}: {_some(names)}." for what, names in complaints.items() if names)
        raise ValueError(f"{source} does not fit {type(network).__name__}. {found}")
    network.load_state_dict({**own, **kept})


def _some(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
