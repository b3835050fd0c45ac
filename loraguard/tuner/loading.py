"""The file of a patch's weights: what it holds is known before a network is touched.

A patch is a folder, or a repository on the Hub, with `adapter_config.json` and `adapter_model.safetensors`. Neither can
make anything run: pickles are refused, and names in a config are compared with names of layers, never imported.

Settings are read first (`GatedLoraConfig.from_pretrained`), and with them goes the header of the file: names, types and
shapes. Before `GatedLoraModel` replaces a layer, it compares these with the network (`fitting`), and then has each
tensor read and checked (:func:`largest_values`). `peft_loaders` says how that reaches every loader.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import peft  # noqa: F401  # whole, before a part of it: another thread may be importing it
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .messages import named, shown
from .settings_file import FILE_HASH, check_hash

Shape = tuple[int, ...]

FLOATS = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
"""As safetensors calls them."""
DTYPES = {
    **FLOATS, torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip
LONGEST_HEADER = 2**23  # bytes; real ones have some ten thousands


def find_weights(model_id: str, subfolder: str | None = None, **hub: Any) -> Path | None:
    """The safetensors file of a patch, downloaded if it is on the Hub; None for a folder without weights.

    Raises:
        ValueError: If there is a pickle instead, or no regular file.
    """
    refusal = (
        f"{model_id[-150:]} holds no {SAFETENSORS_WEIGHTS_NAME}. loraguard does not load {WEIGHTS_NAME} or any other "
        "pickle, which could run code: ask its author to save it anew with model.save_pretrained(folder)."
    )
    folder = Path(model_id, subfolder or "")
    if not folder.is_dir():
        try:
            return Path(hf_hub_download(model_id, SAFETENSORS_WEIGHTS_NAME, subfolder=subfolder, **hub))
        except EntryNotFoundError as error:
            raise ValueError(refusal) from error
    weights = folder / SAFETENSORS_WEIGHTS_NAME
    if weights.is_file():
        return weights
    if weights.exists() or (folder / WEIGHTS_NAME).exists():
        raise ValueError(refusal)
    return None


class Header(NamedTuple):
    """What a file of weights holds.

    Attributes:
        source: Whose it is.
        file: Where it is.
        shapes: By the tensors' names.
        dtypes: By the tensors' names, as safetensors calls them.
    """

    source: str
    file: Path
    shapes: dict[str, Shape]
    dtypes: dict[str, str]

    @property
    def name(self) -> str:
        """What to call the file in messages."""
        return named(self.source, SAFETENSORS_WEIGHTS_NAME)


def read_header(source: str, file: Path) -> Header:
    """Names, types and shapes in a safetensors file, of which no tensor is read.

    Args:
        source: Whose it is, for messages.
        file: The file.

    Raises:
        ValueError: If it is no whole safetensors file.
    """
    name = named(source, SAFETENSORS_WEIGHTS_NAME)
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
        if length > LONGEST_HEADER:
            raise ValueError(
                f"{name} is no whole safetensors file of a patch: its header has {length:,} bytes, at most "
                f"{LONGEST_HEADER:,} are read. Download or save it again."
            )
        with safe_open(file, "pt") as tensors:
            slices = {key: tensors.get_slice(key) for key in tensors.keys()}  # noqa: SIM118  # it is no dict
            shapes = {key: tuple(one.get_shape()) for key, one in slices.items()}
            return Header(source, file, shapes, {key: one.get_dtype() for key, one in slices.items()})
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{name} is no whole safetensors file ({error}). Download or save it again.") from error


def file_sha256(file: str | Path) -> str:
    """SHA-256 of a file's bytes."""
    sha = hashlib.sha256()
    with Path(file).open("rb") as opened:
        while data := opened.read(2**20):
            sha.update(data)
    return sha.hexdigest()


def check_file_hash(source: str, file: str | Path, provenance: Mapping[str, Any] | None) -> None:
    """Compare the file of weights with the hash that the config beside it records, if any.

    Raises:
        ValueError: If it is another one.
    """
    if (recorded := (provenance or {}).get(FILE_HASH)) is not None:
        check_hash(source, file_sha256(file), recorded)


def check_finite(source: str, name: str, tensor: Tensor) -> None:
    """Raise a ValueError that names the first value that is infinite or NaN."""
    if not torch.isfinite(tensor).all():
        at = tuple((~torch.isfinite(tensor)).nonzero()[0].tolist())
        raise ValueError(
            f"{source}: {shown(name)} holds {tensor[at].item()} at {at}; every value must be finite. The patch is "
            "broken."
        )


def largest_values(header: Header, names: Iterable[str], same: Mapping[str, Tensor]) -> dict[str, float]:
    """Read tensors one after another, and check that values are finite.

    Args:
        header: Of the file.
        names: Which tensors.
        same: By name, what some of them have to be, to the bit.

    Returns:
        By name, the largest magnitude.

    Raises:
        ValueError: For a value that is not finite, or another than it has to be.
    """
    found = {}
    with safe_open(header.file, "pt") as file:
        for name in names:
            tensor = file.get_tensor(name)
            check_finite(header.name, name, tensor)
            if name in same and not torch.equal(tensor, same[name].detach().to("cpu", tensor.dtype)):
                raise ValueError(
                    f"{header.name}: {shown(name)} is a weight of the base network, and not the one that this "
                    "network has. A patch sets nothing but its adapter and the modules that modules_to_save names. "
                    "What you trained yourself goes in by peft.set_peft_model_state_dict."
                )
            found[name] = float(tensor.abs().max()) if tensor.numel() and tensor.dtype != torch.bool else 0.0
    return found
