"""What a patch is, for `loraguard info PATCH`: read from its files alone, without torch and PEFT."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from safetensors import SafetensorError, deserialize

from .findings import read_audit
from .names import AUDIT_FILES, CONFIG, NEEDED, WEIGHTS, check_files, is_folder
from .recorded import generator_of, kind_of

_DTYPES = {"F64": "torch.float64", "F32": "torch.float32", "F16": "torch.float16", "BF16": "torch.bfloat16"}


def describe_patch(
    patch: str | Path, *, revision: str | None = None, token: str | bool | None = None
) -> list[tuple[str, str]]:
    """What a patch of the Hub or of a folder holds, as pairs of a label and a text; no generator is loaded.

    Whether its settings and values can be used is what :func:`load_patch` checks.

    Args:
        patch: an id of the Hub, or a folder.
        revision: branch, tag or commit of a patch on the Hub.
        token: for a private one.

    Raises:
        OSError: as :func:`load_patch`.
        ValueError: if a file is missing or broken, or it is another kind of adapter.

    Example:
        >>> import tempfile
        >>> from peft import get_peft_model
        >>> from loraguard import GatedLoraConfig
        >>> from loraguard.generators import DemoEditor
        >>> folder = tempfile.mkdtemp()
        >>> get_peft_model(DemoEditor(conv_dim=4), GatedLoraConfig(r=2)).save_pretrained(folder)
        >>> dict(describe_patch(folder))["adapter"]
        '12 layers, rank 2, alpha 2, gate scalar'
    """
    folder = Path(patch).expanduser()
    if not is_folder(patch, revision):
        from .pull import fetch

        folder = fetch(str(patch), (*NEEDED, *AUDIT_FILES), revision=revision, token=token)
    check_files(folder, str(patch))
    config = _read_config(folder / CONFIG, str(patch))
    names, values, sha256 = _read_weights(folder / WEIGHTS, str(patch))
    about = generator_of(config)
    record: Mapping[str, Any] = config.provenance or {}
    layers = sum(name.endswith(".lora_A.weight") for name in names)
    rows = [
        ("kind", kind_of(config) or "not recorded"),
        ("generator", about.get("class", "not recorded")),
        ("its weights", about.get("sha256", "not recorded")),
        ("they are at", _text(config.base_model_name_or_path or "not recorded")),
        ("adapter", f"{layers} layers, rank {config.r}, alpha {config.lora_alpha}, gate {config.gate_type}"),
        ("weights", f"{values:,} values, SHA-256 {sha256}"),
    ]
    settings = record.get("settings")
    if isinstance(settings, dict):
        rows += [(key, _text(settings[key])) for key in ("stamp", "adversary") if settings.get(key)]
    rows += [(f"training {key}", _text(record[key])) for key in ("data", "steps") if key in record]
    if (folder / AUDIT_FILES[0]).is_file():
        try:
            said = read_audit(folder / "audit", sha256).sentences or ["it is in the folder audit"]
            rows += [("audit", sentence) for sentence in said]
        except (ValueError, FileNotFoundError) as error:
            rows.append(("audit", str(error)))
    return rows


def _read_config(file: Path, patch: str) -> SimpleNamespace:
    """A patch's settings as they are in the file; None where it has none."""
    try:
        found = json.loads(file.read_bytes())
    except ValueError as error:  # UnicodeDecodeError, too
        raise ValueError(f"{patch}: {file.name} is no whole JSON file ({error!s:.250}).") from error
    kind = found.get("peft_type") if isinstance(found, dict) else None
    if kind != "GATED_LORA":
        raise ValueError(f"{patch} is an adapter of type {kind}, not GATED_LORA.")
    wanted = ("r", "lora_alpha", "gate_type", "base_model_name_or_path")
    record = found.get("provenance")
    return SimpleNamespace(
        **{name: found.get(name) for name in wanted}, provenance=record if isinstance(record, dict) else None
    )


def _read_weights(file: Path, patch: str) -> tuple[list[str], int, str]:
    """A patch's tensors: their names, how many values they hold, and `fingerprint.digest` of them."""
    try:
        tensors = dict(deserialize(file.read_bytes()))
    except SafetensorError as error:
        raise ValueError(f"{patch}: {file.name} is no whole safetensors file ({error!s:.250}).") from error
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        dtype = _DTYPES.get(tensor["dtype"], tensor["dtype"])
        sha.update(f"{name} {dtype} {tuple(tensor['shape'])}\n".encode())
        sha.update(tensor["data"])
    return list(tensors), sum(math.prod(tensor["shape"]) for tensor in tensors.values()), sha.hexdigest()


def _text(value: Any) -> str:
    """A setting in a line; classes with their settings in brackets."""
    if isinstance(value, dict):
        inner = ", ".join(f"{k}={_text(v)}" for k, v in value.items() if k != "class" and v is not None)
        return f"{value.get('class', '')}({inner})"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
