"""A patch as files in a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from loraguard.fingerprint import digest
from loraguard.tuner import GatedLoraConfig
from loraguard.tuner.loading import check_file_hash, check_finite
from loraguard.tuner.messages import named, refusing

from .names import CONFIG, WEIGHTS, check_files


@dataclass(frozen=True)
class Patch:
    """A patch in a folder, checked as far as it can be without its generator.

    Attributes:
        folder: where its files are.
        config: its settings.
        tensors: its weights, on the CPU.
        sha256: their fingerprint, as :func:`loraguard.fingerprint.digest` gives it.
    """

    folder: Path
    config: GatedLoraConfig
    tensors: dict[str, Tensor]
    sha256: str


def read_patch(folder: str | Path, name: str | None = None) -> Patch:
    """Read and check what a folder holds: settings of a GATED_LORA adapter, and finite weights in safetensors.

    Args:
        folder: with `adapter_config.json` and `adapter_model.safetensors`.
        name: what to call it in messages, such as its id on the Hub; by default the folder.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if a file is missing or broken, a value cannot be, or it is another kind of adapter. No pickle is
            read.
    """
    folder, name = Path(folder), name or str(folder)
    config = read_config(folder, name)
    file, said = folder / WEIGHTS, named(name, WEIGHTS)
    with refusing(said):
        try:
            tensors = load_file(file)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"it is no whole safetensors file ({error}).") from error
        for key, value in tensors.items():
            check_finite(said, key, value)
        check_file_hash(said, file, config.provenance)
    return Patch(folder, config, tensors, digest(tensors))


def read_config(folder: Path, name: str) -> GatedLoraConfig:
    """Read and check the settings of a patch, and of its weights no more than their names, types and shapes.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_patch`.
    """
    check_files(folder, name)
    config = GatedLoraConfig.from_pretrained(str(folder))
    if not isinstance(config, GatedLoraConfig):
        raise ValueError(
            f"{named(name, CONFIG)}: it is an adapter of type {getattr(config.peft_type, 'value', config.peft_type)}, "
            "not GATED_LORA; load it with peft.PeftModel.from_pretrained."
        )
    return config


def save_adapter(model: PeftModel, adapter: str, folder: Path) -> None:
    """Save one adapter into a folder, whatever its name."""
    model.save_pretrained(str(folder), selected_adapters=[adapter])
    if adapter != "default":  # PEFT puts every other adapter into a folder of its name
        for file in (folder / adapter).iterdir():
            file.rename(folder / file.name)
        (folder / adapter).rmdir()
