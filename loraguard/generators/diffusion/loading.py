"""Parts of diffusers from a folder or the Hub: by diffusers' own loaders, from safetensors alone."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import safe_open
from torch import nn

from loraguard.generators.checkpoint import say_half

_LONGEST = 300


def the_library() -> ModuleType:
    """Diffusers, which is an extra.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        import diffusers
    except ImportError as error:
        raise ImportError(
            "Editors of diffusers need the package diffusers, which is missing: pip install 'loraguard[diffusers]'."
        ) from error
    return diffusers


def load_pipeline(source: str | Path) -> Any:
    """A pipeline with all of its parts, from a folder or an id of the Hub.

    Raises:
        ImportError: if diffusers is not installed.
        ValueError: if there is no pipeline, or there are weights that are no safetensors.
        OSError: if it cannot be had.
    """
    return _loaded(the_library().DiffusionPipeline, source, "pipeline")


def load_autoencoder(source: str | Path) -> nn.Module:
    """An autoencoder from its own folder or id, or from those of a pipeline that has it as `vae`.

    Raises:
        ImportError: if diffusers is not installed.
        ValueError: if there is none, or its weights are no safetensors.
        OSError: if it cannot be had.
    """
    library, folder = the_library(), Path(source).expanduser()
    of_pipeline = (folder / "model_index.json").is_file() if folder.is_dir() else not _has_config(library, source)
    vae = _loaded(library.AutoModel, source, "autoencoder", **({"subfolder": "vae"} if of_pipeline else {}))
    if not (hasattr(vae, "encode") and hasattr(vae, "decode")):
        raise ValueError(f"{source} holds a {type(vae).__name__}, which has no encode and decode: no autoencoder.")
    return vae


def _has_config(library: ModuleType, source: str | Path) -> bool:
    """Whether an id of the Hub is of one network, whose `config.json` lies at the top."""
    try:
        library.AutoencoderKL.load_config(str(source))
    except OSError:
        return False
    return True


def _loaded(cls: Any, source: str | Path, what: str, **where: str) -> Any:
    folder = Path(source).expanduser()
    name = str(folder) if folder.exists() else str(source)
    try:
        made = cls.from_pretrained(name, use_safetensors=True, **where)
    except (ValueError, KeyError, json.JSONDecodeError, AttributeError) as error:
        raise ValueError(f"{source} is no {what} that diffusers loads from safetensors: {_short(error)}") from error
    except OSError as error:
        raise OSError(
            f"The {what} {source} cannot be had, or not as safetensors; give a folder that diffusers' save_pretrained "
            f"wrote, or an id of the Hub. diffusers says: {_short(error)}"
        ) from error
    say_half(source, _kinds_in(source, where.get("subfolder", "")))
    return made


def _kinds_in(source: str | Path, subfolder: str) -> set[str]:
    """What the tensors are, as safetensors calls it, in the files that a loader has just read."""
    folder = Path(source).expanduser()
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(str(source), local_files_only=True))
        except LocalEntryNotFoundError:  # the loader keeps its files elsewhere
            return set()
    kinds: set[str] = set()
    for file in sorted((folder / subfolder).rglob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            kinds |= {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118 - no mapping
    return kinds


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:_LONGEST]
