"""Reading the checkpoints that authors of generators distribute; nothing in a file is executed."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

_logger = logging.getLogger(__name__)
_HALF = {"torch.float16": "float16", "F16": "float16", "torch.bfloat16": "bfloat16", "BF16": "bfloat16"}

COUNTERS = ("num_batches_tracked", "total_ops", "total_params")
"""Last parts of names of tensors that no output depends on: of norms, and of profilers that left them behind."""

WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What DataParallel, `torch.compile`, FSDP and activation checkpointing put into names."""

_NO_WEIGHTS = {
    b"<!doctype html": "a web page: the download was refused, or asked for a confirmation; fetch it in a browser",
    b"<html": "a web page: the download was refused, or asked for a confirmation; fetch it in a browser",
    b"version https://git-lfs": "a pointer of Git LFS, and not the file; fetch that by git lfs pull",
    b"\x1f\x8b": "compressed by gzip; unpack it first",
    b"\x89hdf": "in HDF5, as Keras saves networks; loraguard reads those of torch",
    b"7z\xbc\xaf": "an archive of 7-Zip; unpack it first",
}
"""What lies in the place of weights, by its first bytes in lower case."""

_DEEPEST = 4
"""Dicts and lists within each other that are looked into."""
_LONGEST = 64
"""Items of a list that are looked into."""

_BESIDE = re.compile(
    r"numpy\..+|argparse\.Namespace|pathlib\.(?:\w+\.)?\w*Path|datetime\..+|collections\.deque|builtins\.set"
    r"|(?:pytorch_lightning|lightning|omegaconf|easydict|munch|yacs)\..+"
)
"""Objects that training code saves beside tensors: figures, arguments, paths. They are passed over, and not made."""


class _PassedOver:
    """Stands where such an object was; none of its own code is imported."""

    def __new__(cls, *arguments: object) -> _PassedOver:
        return super().__new__(cls)

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


@dataclass(frozen=True)
class Reading:
    """A state dict in a file, and how it is read there.

    Attributes:
        keys: of the dicts that it lies in, from the outermost; none for the file itself.
        prefix: taken off every name; tensors without it are left out.
        wrappers: parts that wrappers put into names, which are taken off as well.
        state: names with tensors.
    """

    keys: tuple[str, ...]
    prefix: str
    wrappers: tuple[str, ...]
    state: dict[str, Tensor]

    @property
    def words(self) -> str:
        """Where it is, in words.

        Example:
            >>> Reading(("state_dict",), "generator.", (), {}).words
            "under 'state_dict', names without 'generator.'"
        """
        where = "under " + " in ".join(map(repr, reversed(self.keys))) if self.keys else "the whole file"
        without = [repr(part) for part in (self.prefix, *self.wrappers) if part]
        return where + (f", names without {' and '.join(without)}" if without else "")


def read_checkpoint(path: str | Path) -> Any:
    """What is in a file, from `torch.save` or in safetensors: tensors on the CPU, and what lies around them.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not whole, or holds objects whose code would have to run.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "weights.pth")
        >>> torch.save({"G": {"weight": torch.zeros(2)}, "epoch": 3}, path)
        >>> read_checkpoint(path)
        {'G': {'weight': tensor([0., 0.])}, 'epoch': 3}
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint file {path}.")
    with path.open("rb") as file:
        head = file.read(32)
    if not head:
        raise ValueError(f"{path} is empty. Download or save it again.")
    for start, what in _NO_WEIGHTS.items():
        if head.lower().startswith(start):
            raise ValueError(f"{path} holds no weights. It is {what}.")
    foreign = _foreign(path)
    try:
        # Told by content, as files are renamed: in safetensors, JSON comes after its length in eight bytes.
        if head[8:9] == b"{" or (path.suffix == ".safetensors" and head[:2] != b"PK"):
            return load_file(path)
        stand_ins = [(dict if name.lower().endswith("dict") else _PassedOver, name) for name in foreign]
        with safe_globals([pair for pair in stand_ins if _BESIDE.fullmatch(pair[1])]), path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)  # not by name, which torch goes by
    except SafetensorError as error:
        raise ValueError(f"{path} is no whole safetensors file: {error!s:.250}") from error
    except Exception as error:  # what torch.load raises is not laid down, and its words advise to read it unsafely
        culprits = [name for name in foreign if not _BESIDE.fullmatch(name)]
        of = f" (here {_some(culprits)})" if culprits else ""
        raise ValueError(
            f"{path} cannot be read as tensors alone. It is damaged, no checkpoint of torch.save, or holds objects "
            f"that would run code{of}; loraguard does not run any. Save its state_dict anew."
        ) from error


def _foreign(path: Path) -> list[str]:
    """Classes and functions that a file of torch.save names, beside those that torch takes for safe."""
    try:
        return sorted(get_unsafe_globals_in_checkpoint(path))
    except Exception:  # of another format, or damaged; reading it will say what is wrong
        return []


def readings(content: Any, first: Iterable[str] = ()) -> Iterator[Reading]:
    """Every way to read a state dict out of a file's content, the plainest first.

    Args:
        content: as :func:`read_checkpoint` gives it.
        first: keys under which the official code saves the state dict; it is looked for there before anywhere else.

    Example:
        >>> content = {"state_dict": {"module.weight": torch.zeros(2)}, "epoch": 3}
        >>> [(reading.words, list(reading.state)) for reading in readings(content)][1]
        ("under 'state_dict', names without 'module.'", ['weight'])
    """
    order = list(first)
    places = sorted(_places(content, ()), key=lambda place: (place[0][:1] not in [(key,) for key in order], place[0]))
    for keys, tensors in places:
        yield Reading(keys, "", (), tensors)
    for keys, tensors in places:
        plain = {WRAPPERS.sub("", name): value for name, value in tensors.items()}
        parts = tuple(sorted({part for name in tensors for part in WRAPPERS.findall(name)}))
        if parts and len(plain) == len(tensors):
            yield Reading(keys, "", parts, plain)
            for prefix in _prefixes(plain):
                yield Reading(keys, prefix, parts, _without(prefix, plain))
        for prefix in _prefixes(tensors):
            yield Reading(keys, prefix, (), _without(prefix, tensors))


def _places(content: Any, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Every dict with tensors by name, and the keys that lead there; those of a list are numbers."""
    if isinstance(content, (list, tuple)):
        content = {str(number): one for number, one in enumerate(content[:_LONGEST]) if isinstance(one, Mapping)}
    if not isinstance(content, Mapping) or len(keys) > _DEEPEST or not all(isinstance(name, str) for name in content):
        return
    if tensors := {name: value for name, value in content.items() if isinstance(value, Tensor)}:
        yield keys, tensors
    for name, value in content.items():
        yield from _places(value, (*keys, name))


def _prefixes(tensors: Mapping[str, Tensor]) -> list[str]:
    """What names begin with up to one of their dots, each once; the shortest first."""
    found = {name[: place + 1] for name in tensors for place, letter in enumerate(name) if letter == "."}
    return sorted(found, key=lambda prefix: (prefix.count("."), prefix))


def _without(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def misfit(network: nn.Module, state: Mapping[str, Tensor]) -> str | None:
    """What keeps a state dict from being a network's; None for one whose names and shapes are exactly the network's.

    Counters (:data:`COUNTERS`) may be there or not.

    Example:
        >>> misfit(nn.Linear(2, 1), {"weight": torch.zeros(1, 3)})
        'Missing: bias. Other shape: weight (1, 3), expected (1, 2).'
    """
    own = network.state_dict()
    kept = {name: value for name, value in state.items() if name in own or not _counts(name)}
    complaints = {
        "Missing": [name for name in own if name not in kept and not _counts(name)],
        "Left over": [name for name in kept if name not in own],
        "Other shape": [
            f"{name} {tuple(value.shape)}, expected {tuple(own[name].shape)}"
            for name, value in kept.items()
            if name in own and value.shape != own[name].shape
        ],
        "No plain numbers": [name for name, value in kept.items() if not _is_plain(value)],
        "Not finite": [name for name, value in kept.items() if _is_plain(value) and not torch.isfinite(value).all()],
    }
    return " ".join(f"{what}: {_some(names)}." for what, names in complaints.items() if names) or None


def load_strictly(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a state dict that fits (:func:`misfit`)."""
    own = network.state_dict()
    network.load_state_dict({**own, **{name: value for name, value in state.items() if name in own}})


def say_half(source: str | Path, kinds: Iterable[torch.dtype | str]) -> None:
    """Log that weights were saved in half precision, where they were: networks compute in float32 here.

    Args:
        source: the file, folder or id.
        kinds: of its tensors, as torch or safetensors call them.
    """
    found = sorted({name for kind in kinds if (name := _HALF.get(str(kind))) is not None})
    if found:
        _logger.warning(
            "%s: weights in %s are read as float32, twice the memory; outputs differ a little from half precision.",
            source,
            " and ".join(found),
        )


def _is_plain(value: Tensor) -> bool:
    """Whether a tensor has its values, dense, real and not quantized."""
    return value.layout == torch.strided and not (value.is_meta or value.is_quantized or value.is_complex())


def _counts(name: str) -> bool:
    return name.rpartition(".")[2] in COUNTERS


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
