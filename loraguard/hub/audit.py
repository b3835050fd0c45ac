"""An audit as a patch's card shows it: table, findings, picture, and results that the Hub reads."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from loraguard.describing import is_absolute, without_paths

from .findings import FLAGGED, Findings, Row
from .names import AUDIT_FILES

TASK = "Audit by loraguard"
_FLAGS = ("A flag names a check that failed: the figures beside it may be too good (docs/audit-checks.md).", "")
_METRICS = {
    "dsr": ("Defense success rate", "{:.1%}"),
    "mse": ("MSE", "{:.4f}"),
    "masked_mse": ("Masked MSE", "{:.4f}"),
    "psnr": ("PSNR", "{:.1f} dB"),
    "ssim": ("SSIM", "{:.3f}"),
    "lpips": ("LPIPS", "{:.3f}"),
    "stamp_rate": ("Stamp rate", "{:.1%}"),
}


def audit_part(rows: Sequence[Row], sentences: Sequence[str], about: Mapping[str, Any], sha256: str) -> str:
    """An audit as Markdown: findings in words, a table of means with 95% intervals, and the picture.

    Args:
        rows: what is shown.
        sentences: the verdict.
        about: the audit's settings, of which `n`, `data`, `defenses`, `budget`, `success` and `seeds` are named.
        sha256: the audited patch's fingerprint.

    Example:
        >>> dsr = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 100, "method": "Wilson"}
        >>> part = audit_part([("untouched", "pgd, no leak", {"dsr": dsr})], ["It spoils half."], {"n": 100}, "0" * 64)
        >>> [line for line in part.splitlines() if "untouched" in line]
        ['| untouched | pgd, no leak | 50.0% (40.0% – 60.0%) |']
    """
    metrics = [key for key in _METRICS if any(key in found for _, _, found in rows)]
    table = ["generator", "photo", *(_METRICS[key][0] for key in metrics)]
    lines = [f"| {' | '.join(table)} |", "|" + "---|" * len(table)]
    for generator, photo, found in rows:
        cells = [generator, photo, *(_cell(key, found.get(key)) for key in metrics)]
        lines.append(f"| {' | '.join(_plain(cell) for cell in cells)} |")
    methods = sorted({one["method"] for _, _, found in rows for one in found.values() if one.get("method")})
    facts = {
        "photos": about.get("n"),
        "of": _named(about.get("data")),
        "defenses": ", ".join(about.get("defenses", ())) or None,
        "budget": about.get("budget"),
        "spoilt by": about.get("success"),
        "seeds": ", ".join(map(str, about.get("seeds", ()))) or None,
        "intervals": "95%, " + ", ".join(methods) if methods else None,
        "audited patch": f"`{sha256}`",
    }
    return "\n".join(
        [
            "## Audit",
            "",
            *(f"{_plain(sentence)}\n" for sentence in sentences),
            *lines,
            "",
            "; ".join(f"{key}: {_plain(str(value))}" for key, value in facts.items() if value is not None) + ".",
            "",
            *(_FLAGS if any(FLAGGED in done for _, done, _ in rows) else ()),
            "Everything that was measured is in [`audit/audit.json`](audit/audit.json), with a page to read, "
            "[`audit/report.html`](audit/report.html), and a table, [`audit/summary.csv`](audit/summary.csv).",
            "",
            "![The same photos in every situation, one a row](audit/grid.png)",
        ]
    )


def audit_results(findings: Findings) -> list[EvalResult]:
    """The patch's figures as the Hub's `model-index` takes them; infinite ones (PSNR of equal images) are left out."""
    data = _named(findings.about.get("data")) or "unknown"
    return [
        EvalResult(
            task_type="image-to-image",
            task_name=TASK,
            dataset_type=data,
            dataset_name=f"{data}, {findings.about.get('n')} photos",
            metric_type=key,
            metric_name=f"{_METRICS[key][0]}, photo {photo}",
            metric_value=round(float(found[key]["mean"]), 6),
            metric_args={one: found[key].get(one) for one in ("low", "high", "n", "method")},
        )
        for generator, photo, found in findings.rows
        for key in _METRICS
        if generator == findings.patch and key in found and found[key].get("mean") is not None
    ]


def publishable(findings: Findings) -> dict[str, bytes]:
    """The audit's files as they are pushed, by their paths in the repository: without paths of this machine."""
    found = json.loads((findings.folder / "audit.json").read_text(encoding="utf-8"))
    pushed: dict[str, bytes] = {}
    for file in AUDIT_FILES:
        here = findings.folder / Path(file).name
        if here.suffix == ".json":
            pushed[file] = (json.dumps(without_paths(found), indent=1, ensure_ascii=False) + "\n").encode()
        elif here.suffix == ".png":
            pushed[file] = here.read_bytes()
        else:
            text, written = here.read_bytes().decode(), html.escape if here.suffix == ".html" else str
            for path in sorted(_paths(found), key=len, reverse=True):
                text = text.replace(written(path), written(without_paths(path)))
            pushed[file] = text.encode()
    return pushed


def _paths(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set().union(*(_paths(one) for key, one in value.items() if key != "text"))
    if isinstance(value, list):
        return set().union(*map(_paths, value))
    return {value} if is_absolute(value) else set()


def _cell(key: str, estimate: Mapping[str, Any] | None) -> str:
    if estimate is None:
        return ""
    if estimate.get("mean") is None:
        return "equal"
    number = _METRICS[key][1].format
    low, high = estimate.get("low"), estimate.get("high")
    return number(estimate["mean"]) + (f" ({number(low)} – {number(high)})" if None not in (low, high) else "")


def _named(settings: Any) -> str | None:
    return str(settings["class"]) if isinstance(settings, Mapping) and "class" in settings else None


def _plain(text: str) -> str:
    """Text that stays in its cell or sentence."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
