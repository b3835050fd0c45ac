"""Getting pretrained encoders from a folder, a cache or the Hub: safetensors alone, and no code but ours and PyPI's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import constants, try_to_load_from_cache
from torch import nn

from .preprocessing import ProcessorPreprocessing
from .tower import VisionTower

NEEDED = ("config.json", "preprocessor_config.json", "model.safetensors")
"""What a folder must hold, and a repository too."""


def load_tower(
    name: str | Path,
    features: str,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    dtype: torch.dtype = torch.float32,
) -> tuple[VisionTower, ProcessorPreprocessing, dict[str, Any]]:
    """The image side of a pretrained model, its preprocessing, and where both come from.

    The model is built as the class of `transformers` that its `config.json` names, so that its weights are those that
    were saved: a tensor of the image side that the file lacks is an error, never a random one.

    Args:
        name: a folder, or a repository on the Hub.
        features: as :class:`VisionTower` names them.
        revision: branch, tag or commit on the Hub.
        cache_dir: of the Hub's files, in place of the usual one.
        local_files_only: download nothing.
        dtype: of the weights.

    Raises:
        OSError: if a file cannot be had; the message says which, where it was looked for and what to pass instead.
        ValueError: if the model is not one of `transformers`, or lacks the features.
    """
    name = str(name)
    where = {"revision": revision, "cache_dir": cache_dir, "local_files_only": local_files_only}
    with _explained(name, cache_dir, local_files_only):
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False, **where)
        processor = transformers.AutoImageProcessor.from_pretrained(
            name, backend="torchvision", trust_remote_code=False, **where
        )
    model_class = _class_of(config, name)
    with _explained(name, cache_dir, local_files_only):
        model, info = model_class.from_pretrained(
            name, use_safetensors=True, output_loading_info=True, dtype=dtype, **where
        )
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    tower = VisionTower(model, features, name)
    _check_complete(tower, names, set(info["missing_keys"]), name)
    folder = Path(name)
    source = {
        "model": folder.resolve().name if folder.is_dir() else name,
        "architecture": model_class.__name__,
        "revision": revision,
        "commit": None if folder.is_dir() else _commit(name, cache_dir, revision),
        "sha256": [file_digest(file) for file in sorted(folder.glob("*.safetensors"))] if folder.is_dir() else None,
    }
    return tower, ProcessorPreprocessing(processor, name), {k: v for k, v in source.items() if v is not None}


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _commit(name: str, cache_dir: str | Path | None, revision: str | None) -> str | None:
    """The commit that a repository's configuration was read at: the cache keeps each in a folder of its name."""
    file = try_to_load_from_cache(name, "config.json", cache_dir=cache_dir, revision=revision)
    return Path(file).parent.name if isinstance(file, str) else None


def _class_of(config: Any, name: str) -> Any:
    """The class of `transformers` that a checkpoint was saved from."""
    names = config.architectures or ["none"]
    found = getattr(transformers, names[0], None)
    if not isinstance(found, type) or not issubclass(found, transformers.PreTrainedModel):
        raise ValueError(
            f"The config.json of {name} names the architecture {names[0]!r}, which is no model of transformers "
            f"{transformers.__version__}."
        )
    return found


def _check_complete(tower: nn.Module, names: dict[int, str], missing: set[str], source: str) -> None:
    kept = [names[id(parameter)] for parameter in tower.parameters()]
    random = [name for name in kept if name in missing]
    if random:
        some = ", ".join(random[:4]) + (" and more" if len(random) > 4 else "")
        raise ValueError(
            f"The weights of {source} lack {some}, which these features need. Choose other features, or a "
            "checkpoint that was trained for them."
        )


@contextmanager
def _explained(name: str, cache_dir: str | Path | None, local_files_only: bool) -> Iterator[None]:
    """Say what is missing, where it was looked for and what to pass instead."""
    folder = Path(name)
    try:
        yield
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        lacking = _lacking(folder) if folder.is_dir() else []
        if lacking:
            raise OSError(
                f"The encoder in the folder {name} cannot be loaded: it lacks {', '.join(lacking)} ({reason}). Save a "
                "model there with model.save_pretrained(folder) and image_processor.save_pretrained(folder); loraguard "
                "loads no pickle."
            ) from error
        if folder.is_dir() or isinstance(error, ValueError):
            raise ValueError(
                f"transformers {transformers.__version__} cannot load {name} by itself, and loraguard runs no code of "
                f"a repository: {reason}"
            ) from error
        raise OSError(
            f"The encoder {name!r} cannot be loaded: there is no such folder, and as a repository of the Hub it could "
            f"not be had from the cache {cache_dir or constants.HF_HUB_CACHE}"
            f"{' (nothing may be downloaded)' if local_files_only or constants.HF_HUB_OFFLINE else ''}: "
            f"{reason} Pass a folder with {', '.join(NEEDED)}, or the cache_dir that holds it, or download it once "
            f"where there is a network: hf download {name}"
        ) from error


def _lacking(folder: Path) -> list[str]:
    """Which of the files that an encoder needs are not in its folder, under this name or another that will do."""
    others = ("config.json", "*processor_config.json", "*.safetensors")
    return [file for file, pattern in zip(NEEDED, others, strict=True) if not any(folder.glob(pattern))]
