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

from loraguard.tuner.messages import in_a_line, named, refusing, shown
from loraguard.tuner.settings_file import FILE_HASH, check_hash, read_settings

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
    with refusing(str(patch), str(patch)):
        return [(in_a_line(label), in_a_line(text)) for label, text in _rows(folder, str(patch))]


def _rows(folder: Path, patch: str) -> list[tuple[str, str]]:
    config = _read_config(folder / CONFIG, patch)
    names, values, sha256 = _read_weights(folder / WEIGHTS, patch, (config.provenance or {}).get(FILE_HASH))
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
        rows += [(key, _text(settings[key])) for key in ("stamp", "mark", "adversary") if settings.get(key)]
    rows += [(f"training {key}", _text(record[key])) for key in ("data", "steps") if key in record]
    if (folder / AUDIT_FILES[0]).is_file():
        try:
            said = read_audit(folder / "audit", sha256).sentences or ["it is in the folder audit"]
            rows += [("audit", sentence) for sentence in said]
        except (ValueError, FileNotFoundError, RecursionError) as error:
            rows.append(("audit", str(error)))
    return rows


def _read_config(file: Path, patch: str) -> SimpleNamespace:
    """A patch's settings as they are in the file; None where it has none."""
    with refusing(named(patch, CONFIG)):
        found = read_settings(file)
    kind = found.get("peft_type")
    if kind != "GATED_LORA":
        raise ValueError(f"{named(patch, CONFIG)}: it is an adapter of type {shown(kind)}, not GATED_LORA.")
    wanted = ("r", "lora_alpha", "gate_type", "base_model_name_or_path")
    record = found.get("provenance")
    return SimpleNamespace(
        **{name: found.get(name) for name in wanted}, provenance=record if isinstance(record, dict) else None
    )


def _read_weights(file: Path, patch: str, recorded: Any) -> tuple[list[str], int, str]:
    """A patch's tensors: their names, how many values they hold, and `fingerprint.digest` of them.

    Raises:
        ValueError: if it is no whole file, or has another SHA-256 than the config records.
    """
    data = file.read_bytes()
    try:
        tensors = dict(deserialize(data))
    except SafetensorError as error:
        raise ValueError(f"{named(patch, WEIGHTS)} is no whole safetensors file ({error}).") from error
    check_hash(named(patch, WEIGHTS), hashlib.sha256(data).hexdigest(), recorded)
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
