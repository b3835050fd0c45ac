"""Extractors by name, from a folder or from the Hub: safetensors or TorchScript, and never a pickle."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from .network import MarkNetwork
from .registry import EXTRACTORS, WEIGHTS, check_extractor

SETTINGS = "extractor.json"
"""Beside a TorchScript file: what it is called and how images are given to it."""
_DEFAULTS: dict[str, Any] = {"file": "extractor.pt", "size": None, "mean": [0.0] * 3, "std": [1.0] * 3}


class ScriptedExtractor(nn.Module):
    """A TorchScript module that reads marks, given images as it wants them.

    Args:
        script: turns images (N, 3, H, W) into logits (N, bits), differentiable.
        size: of images, in pixels a side; None leaves theirs.
        mean: taken off images in [0, 1], a number for each of red, green and blue.
        std: that they are then divided by, likewise.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, script: nn.Module, size: int | None, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.script, self.size = script, size
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, bits) of images (N, 3, H, W) in [-1, 1]."""
        given = (images + 1) / 2
        if self.size is not None and given.shape[-2:] != (self.size, self.size):
            given = F.interpolate(given, (self.size, self.size), mode="bilinear", antialias=True)
        return self.script((given - self.mean) / self.std)


def network_from(state: Mapping[str, Tensor], kind: type[MarkNetwork] = MarkNetwork) -> MarkNetwork:
    """A network as `examples/train_mark_network.py` saves it, whose sizes are those of its tensors.

    Raises:
        ValueError: for tensors of another network.
    """
    try:
        blocks = sum(name.startswith("blocks.") and name.endswith(".1.weight") for name in state)
        network = kind(len(state["patterns"]), len(state["stem.weight"]), blocks)
        network.load_state_dict({name: value.float() for name, value in state.items()})
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"these are not the tensors of a MarkNetwork: {error!s:.200}") from error
    return network.requires_grad_(False).eval()


def load_extractor(name: str) -> nn.Module:
    """A module that reads marks, in evaluation mode.

    Args:
        name: of :data:`~loraguard.mark.EXTRACTORS`; a folder or an id of the Hub with the `model.safetensors` of
            `examples/train_mark_network.py`; or, on this machine, a TorchScript file, or a folder that has one and
            `extractor.json` (see :class:`ScriptedExtractor`). TorchScript is a program: give only what you trust.

    Raises:
        FileNotFoundError, PermissionError, ConnectionError: where it cannot be had.
        ValueError: for what is none, or a name that there is none of.
        ImportError: where the package that it needs is not installed.
    """
    if (known := _registered(name)) is not None:
        return known
    check_extractor(name)
    path = Path(name).expanduser()
    if not path.exists():
        path = _pulled(name)
    elif path.is_dir():
        path = next((one for one in (path / SETTINGS, path / WEIGHTS) if one.is_file()), path)
    if path.is_dir():
        raise ValueError(f"The folder {name} holds no {WEIGHTS} and no {SETTINGS}; loraguard reads no pickle.")
    return _from_file(path, path.stat().st_mtime_ns)


@contextmanager
def _for_everybody() -> Iterator[None]:
    """Who asks first for a network that others share may be in inference mode, or have another default device."""
    with torch.inference_mode(False), torch.device("cpu"):
        yield


@lru_cache(maxsize=8)
@_for_everybody()
def _registered(name: str) -> nn.Module | None:
    return EXTRACTORS[name]().eval() if name in EXTRACTORS else None


@lru_cache(maxsize=8)
def _pulled(name: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    from loraguard.hub.errors import explained

    with explained(name, "pulling an extractor"):
        try:
            return Path(hf_hub_download(name, WEIGHTS))
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError as error:
            raise FileNotFoundError(
                f"{name} holds no {WEIGHTS} on the Hub. A TorchScript file is a program: download it, and give the "
                "file."
            ) from error


@lru_cache(maxsize=8)
@_for_everybody()
def _from_file(path: Path, changed: int) -> nn.Module:
    """From a file as it was at this time."""
    try:
        if path.suffix == ".safetensors":
            return network_from(load_file(path))
        settings = json.loads(path.read_text(encoding="utf-8")) if path.name == SETTINGS else {"file": path.name}
        return _scripted(path.parent, settings)
    except (ValueError, TypeError, SafetensorError) as error:
        raise ValueError(f"The extractor {str(path)[-200:]} cannot be used: {error!s:.300}") from error


def _scripted(folder: Path, settings: Any) -> nn.Module:
    if not isinstance(settings, dict) or set(settings) - set(_DEFAULTS):
        raise ValueError(f"its settings must be a dict of {', '.join(_DEFAULTS)}, got {settings!r:.150}.")
    given = _DEFAULTS | settings
    file, size = folder / Path(str(given["file"])).name, given["size"]
    if size is not None and (not isinstance(size, int) or size < 1):
        raise ValueError(f"size={size!r} must be pixels a side, or null.")
    if any(len(given[key]) != 3 for key in ("mean", "std")) or not all(given["std"]):
        raise ValueError("mean and std must be three numbers each, those of std not 0.")
    if not file.is_file():
        raise ValueError(f"there is no file {file.name} beside it.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch would rather have exported programs
            script = torch.jit.load(str(file), map_location="cpu")
    except RuntimeError as error:
        raise ValueError(f"{file.name} is no TorchScript file ({error!s:.150}); loraguard reads no pickle.") from error
    return ScriptedExtractor(script, size, given["mean"], given["std"]).requires_grad_(False).eval()
