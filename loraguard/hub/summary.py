"""What a patch is, for `loraguard info PATCH`: read from its files alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .audit import read_audit
from .local import AUDIT_FILES, NEEDED, read_patch
from .provenance import generator_of, hosted_id, kind_of
from .pull import fetch


def describe_patch(
    patch: str | Path, *, revision: str | None = None, token: str | bool | None = None
) -> list[tuple[str, str]]:
    """What a patch of the Hub or of a folder holds, as pairs of a label and a text; no generator is loaded.

    Args:
        patch: an id of the Hub, or a folder.
        revision: branch, tag or commit of a patch on the Hub.
        token: for a private one.

    Raises:
        OSError, ValueError: as :func:`load_patch`.

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
    local = Path(patch).expanduser()
    folder = local if local.is_dir() else fetch(str(patch), (*NEEDED, *AUDIT_FILES), revision=revision, token=token)
    found = read_patch(folder, str(patch))
    config, about = found.config, generator_of(found.config)
    record: Mapping[str, Any] = config.provenance or {}
    layers = sum(name.endswith(".lora_A.weight") for name in found.tensors)
    values = sum(tensor.numel() for tensor in found.tensors.values())
    rows = [
        ("kind", kind_of(config) or "not recorded"),
        ("generator", about.get("class", "not recorded")),
        ("its weights", about.get("sha256", "not recorded")),
        ("they are at", hosted_id(config.base_model_name_or_path) or config.base_model_name_or_path or "not recorded"),
        ("adapter", f"{layers} layers, rank {config.r}, alpha {config.lora_alpha}, gate {config.gate_type}"),
        ("weights", f"{values:,} values, SHA-256 {found.sha256}"),
    ]
    settings = record.get("settings")
    if isinstance(settings, dict):
        rows += [(key, _text(settings[key])) for key in ("stamp", "adversary") if settings.get(key)]
    rows += [(f"training {key}", _text(record[key])) for key in ("data", "steps") if key in record]
    if (folder / AUDIT_FILES[0]).is_file():
        try:
            said = read_audit(folder / "audit", found.sha256).sentences or ["it is in the folder audit"]
            rows += [("audit", sentence) for sentence in said]
        except (ValueError, FileNotFoundError) as error:
            rows.append(("audit", str(error)))
    return rows


def _text(value: Any) -> str:
    """A setting in a line; classes with their settings in brackets."""
    if isinstance(value, dict):
        inner = ", ".join(f"{k}={_text(v)}" for k, v in value.items() if k != "class" and v is not None)
        return f"{value.get('class', '')}({inner})"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
