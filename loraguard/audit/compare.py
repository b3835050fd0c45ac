"""Two audits beside each other."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .paired import Difference, paired_difference
from .situation import SHARES

KEY = ("generator", "defense", "knowledge", "eps", "steps", "role", "channel")


@dataclass(frozen=True)
class Comparison:
    """A metric in the same situation of two audits.

    Attributes:
        situation: its key, by the names of :data:`KEY`.
        photo: what was done to the photos, in words.
        metric: by its name.
        before: the first audit's mean.
        after: the second's.
        difference: second less first.
    """

    situation: dict[str, Any]
    photo: str
    metric: str
    before: float
    after: float
    difference: Difference


def compare(first: str | Path, second: str | Path, metric: str = "dsr") -> list[Comparison]:
    """A metric in every situation that two audits share.

    Where both looked at the same photos with the same edits, differences are paired, image by image; otherwise the two
    are independent samples, and their intervals are wider.

    Args:
        first: an `audit.json`, or its folder; `images.parquet` must lie beside it.
        second: likewise.
        metric: one that both have.

    Raises:
        FileNotFoundError: if a file is not there.
        ValueError: if they share no situation, or the metric is not there.
    """
    audits = [_read(Path(one)) for one in (first, second)]
    paired = audits[0][0]["settings"]["data_sha256"] == audits[1][0]["settings"]["data_sha256"]
    rows = [{tuple(row[name] for name in KEY): row for row in found["situations"]} for found, _ in audits]
    shared = [key for key in rows[0] if key in rows[1]]
    if not shared:
        raise ValueError(f"{first} and {second} share no situation: names, budgets and strengths must be the same.")
    if not all(metric in rows[side][key]["metrics"] for side in (0, 1) for key in shared):
        raise ValueError(f"Not both have the metric {metric!r}; there is {sorted(rows[0][shared[0]]['metrics'])}.")
    found = []
    for key in shared:
        values = [_values(audits[side][1], key, metric) for side in (0, 1)]
        share = metric in SHARES
        if paired and values[0].shape[1] == values[1].shape[1]:
            difference = paired_difference(values[1].mean(0), values[0].mean(0), share=share)
        else:
            difference = _independent(values[1].mean(0), values[0].mean(0))
        means = [_finite(one).mean().item() for one in values]
        situation = dict(zip(KEY, key, strict=True))
        found.append(Comparison(situation, rows[0][key]["photo"], metric, means[0], means[1], difference))
    return found


def _read(path: Path) -> tuple[dict[str, Any], dict[tuple[Any, ...], list[dict[str, Any]]]]:
    from pyarrow import parquet

    folder = path if path.is_dir() else path.parent
    for name in ("audit.json", "images.parquet"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"There is no {folder / name}; `loraguard audit` writes it.")
    images: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in parquet.read_table(folder / "images.parquet").to_pylist():
        images.setdefault(tuple(row[name] for name in KEY), []).append(row)
    return json.loads((folder / "audit.json").read_text(encoding="utf-8")), images


def _values(images: dict[tuple[Any, ...], list[dict[str, Any]]], key: tuple[Any, ...], metric: str) -> Tensor:
    """(seeds, n)."""
    by_seed: dict[int, list[float]] = {}
    for row in sorted(images[key], key=lambda row: (row["seed"], row["image"])):
        by_seed.setdefault(row["seed"], []).append(row[metric])
    return torch.tensor(list(by_seed.values()), dtype=torch.float64)


def _finite(values: Tensor) -> Tensor:
    return values[torch.isfinite(values)]


def _independent(a: Tensor, b: Tensor, confidence: float = 0.95, resamples: int = 2000) -> Difference:
    """Between the means of two samples, each resampled for itself."""
    a, b = _finite(a), _finite(b)
    draws = torch.Generator().manual_seed(0)
    means = [x[torch.randint(len(x), (resamples, len(x)), generator=draws)].mean(1) for x in (a, b)]
    tail = (1 - confidence) / 2
    low, high = (means[0] - means[1]).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    method = f"two-sample percentile bootstrap, {resamples} resamples, not the same photos"
    return Difference((a.mean() - b.mean()).item(), low, high, min(len(a), len(b)), method)
