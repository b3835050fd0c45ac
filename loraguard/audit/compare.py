"""Two audits beside each other."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isclose, sqrt
from pathlib import Path
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from loraguard.metrics import mean_interval

from .paired import Difference, paired_difference
from .situation import NO_CHANNEL, SHARES

KEY = ("generator", "defense", "knowledge", "eps", "steps", "role", "channel", "crafted_on")
_NAMES = ("generator", "defense", "crafted_on")

UNIMPORTANT = ("n", "distinct_photos", "data_sha256", "budget", "device", "computed_anew", "not_described",
               "batch_size", "power")  # fmt: skip
"""Settings that are said elsewhere, or that no figure depends on."""

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Shared:
    """A metric in a situation that two audits share.

    Attributes:
        situation: its key, by the names of :data:`KEY`.
        photo: what was done to the photos, in words.
        before: the first audit's mean; None where no value is finite (PSNR of equal images).
        after: the second's.
        difference: second less first.
    """

    situation: dict[str, Any]
    photo: str
    before: float | None
    after: float | None
    difference: Difference


@dataclass(frozen=True)
class Comparison:
    """Two audits beside each other.

    Attributes:
        paired: whether both looked at the same photos with the same edits, so that differences are image by image.
        shared: the situations that both have, in the first one's order.
        only_first: those that the first alone has, in words; without the attacks of its checks.
        only_second: those that the second alone has, likewise.
        differences: what else differs between the audits, in words: weights, settings of what both have, seeds, the
            threshold of success, detectors, versions, flags of what they share, checks that only one of them made, and
            what could not be looked into. A difference between figures may come from any of these.
    """

    paired: bool
    shared: list[Shared]
    only_first: list[str]
    only_second: list[str]
    differences: list[str]


def compare(
    first: str | Path, second: str | Path, metric: str = "dsr", *, rename: Mapping[str, str] | None = None
) -> Comparison:
    """A metric in every situation that two audits share.

    A situation is shared if generator, defense, budget, steps, knowledge and channel are called the same. Where both
    audits looked at the same photos with the same edits, differences are paired
    (:func:`~loraguard.audit.paired_difference`); otherwise the two are independent samples
    (:func:`independent_difference`), and intervals are wider.

    Args:
        first: an `audit.json`, or its folder; `images.parquet` must lie beside it.
        second: likewise.
        metric: one that both have.
        rename: the second's names of patches, networks and defenses, with the first's in place of them.

    Raises:
        FileNotFoundError: if a file is not there.
        ValueError: if a file is none of an audit, its means are not those of its images, they share no situation, or
            the metric or a name is not there.
    """
    audits = [_Audit(Path(first), {}), _Audit(Path(second), rename or {})]
    paired = audits[0].data == audits[1].data
    keys = [key for key in audits[0].rows if key in audits[1].rows]
    if not keys:
        raise ValueError(f"{first} and {second} share no situation: names, budgets and steps must be the same.")
    there = set.intersection(*(set(audit.rows[key]["metrics"]) for audit in audits for key in keys))
    if metric not in there:
        raise ValueError(f"Not both have the metric {metric!r}; they have {', '.join(sorted(there))}.")
    found = []
    for key in keys:
        before, after = (audit.values(key, metric) for audit in audits)
        difference = (paired_difference if paired else independent_difference)(after, before, share=metric in SHARES)
        rows = [audit.rows[key] for audit in audits]
        first_mean, second_mean = (row["metrics"][metric]["mean"] for row in rows)
        situation = dict(zip(KEY, key, strict=True))
        found.append(Shared(situation, rows[0]["photo"], first_mean, second_mean, difference))
    alone = [
        [words(row) for key, row in audit.rows.items() if key not in keys and row["role"] != "check"]
        for audit in audits
    ]
    differences = [*differing(audits[0].settings, audits[1].settings), *_unlike(audits, keys)]
    return Comparison(paired, found, alone[0], alone[1], differences)


def _unlike(audits: Sequence[_Audit], keys: Sequence[Key]) -> Iterator[str]:
    """In words, flags of shared situations that one audit has, checks of one alone, and what neither can tell apart."""
    for name in sorted({key[0] for key in keys}):
        rows = [[audit.rows[key] for key in keys if key[0] == name] for audit in audits]
        flags = [sorted({flag for row in part for flag in row.get("flags", ())}) for part in rows]
        if flags[0] != flags[1]:
            yield f"flags of {name}: {' and '.join(', '.join(one) or 'none' for one in flags)}"
    both = {key[0] for key in keys}
    made = [{name for generator, name in audit.checks if generator in both} for audit in audits]
    for which, missing in (("first", made[1] - made[0]), ("second", made[0] - made[1])):
        if missing:
            yield f"checks that the {which} did not make: {', '.join(sorted(missing))}"
    for name in sorted({one for audit in audits for one in audit.settings.get("not_described", ())}):
        yield f"{name}: what it does cannot be told from its code, in one of them at least"


def words(row: Mapping[str, Any]) -> str:
    """A situation in words, as its row in `audit.json` has it."""
    channel = "" if row["channel"] == NO_CHANNEL else f", {row['channel']}"
    settings = [f"{name} {row[name]}" for name in ("eps", "steps") if row[name] is not None]
    return ", ".join([f"{row['generator']}: {row['photo']}{channel}", *settings])


def differing(first: Mapping[str, Any], second: Mapping[str, Any], at: str = "") -> list[str]:
    """The settings of two audits that differ, in words; not the things that only one has, nor how it was shown.

    Example:
        >>> differing({"seeds": [0], "pgd": {"eps": 0.1}}, {"seeds": [0], "pgd": {"eps": 0.2}})
        ['pgd.eps: 0.1 and 0.2']
        >>> differing({"weights_sha256": {"generator": "1a"}}, {})
        ['weights_sha256: only one of them says']
    """
    found = []
    if not at:
        found += [f"{name}: only one of them says" for name in sorted({*first} ^ {*second}) if name not in UNIMPORTANT]
    for name in first:
        if name not in second or first[name] == second[name] or (not at and name in UNIMPORTANT):
            continue
        a, b, here = first[name], second[name], f"{at}{name}"
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differing(a, b, f"{here}.")
        else:
            found.append(f"{here}: {_short(a)} and {_short(b)}")
    return found


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def _renamed(settings: Mapping[str, Any], rename: Mapping[str, str]) -> dict[str, Any]:
    """Settings whose parts by name have other names."""
    named = ("defenses", "patches", "adapters", "code_sha256", "weights_sha256", "detectors", "objectives")
    return {
        key: {rename.get(name, name): one for name, one in value.items()} if key in named else value
        for key, value in settings.items()
    } | {"not_described": [rename.get(name, name) for name in settings.get("not_described", ())]}


class _Audit:
    """What lies in an audit's folder, under other names if need be."""

    def __init__(self, path: Path, rename: Mapping[str, str]) -> None:
        from pyarrow import parquet

        self.folder = folder = path.parent if path.name == "audit.json" else path
        for name in ("audit.json", "images.parquet"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"There is no {folder / name}; `loraguard audit` writes it.")
        try:
            about = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
            self.settings = _renamed(about["settings"], rename)
            self.data: str = self.settings["data_sha256"]
            self.checks = {
                (rename.get(one["generator"], one["generator"]), one["name"]) for one in about.get("checks", ())
            }
            rows = about["situations"]
            self.images: dict[Key, list[dict[str, Any]]] = {}
            images = parquet.read_table(folder / "images.parquet").to_pylist()
            if unknown := rename.keys() - {row[name] for row in rows for name in _NAMES if name in row}:
                raise ValueError(f"it has no generator or defense {sorted(unknown)} to rename")
            for row in [*rows, *images]:
                row.setdefault("crafted_on", None)  # which only audits with a transfer matrix have
                row.update({name: rename.get(row[name], row[name]) for name in _NAMES})
            self.rows: dict[Key, dict[str, Any]] = {tuple(row[name] for name in KEY): row for row in rows}
            for row in images:
                self.images.setdefault(tuple(row[name] for name in KEY), []).append(row)
            if self.images.keys() != self.rows.keys():
                raise ValueError("audit.json and images.parquet are of different audits")
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{folder} cannot be compared: {error!s:.200}.") from error
        for row in rows:  # the photo's words name the defense
            defense, comma, rest = row["photo"].partition(", ")
            row["photo"] = f"{rename.get(defense, defense)}{comma}{rest}"

    def values(self, key: Key, metric: str) -> Tensor:
        """By seed and image, (seeds, n)."""
        by_seed: dict[int, list[float]] = {}
        for row in sorted(self.images[key], key=lambda row: (row["seed"], row["image"])):
            by_seed.setdefault(row["seed"], []).append(row[metric])
        row, sizes = self.rows[key], {len(one) for one in by_seed.values()}
        values = torch.tensor(list(by_seed.values()) if len(sizes) == 1 else [[]], dtype=torch.float64)
        means, told = values.mean(0), row["metrics"][metric]
        finite = means[means.isfinite()]
        mean = float(finite.mean()) if len(finite) else None
        same = mean == told["mean"]  # both None where no value is finite
        if mean is not None and told["mean"] is not None:
            same = isclose(mean, told["mean"], rel_tol=1e-4, abs_tol=1e-6)
        if not same or len(means) != told["n"]:
            raise ValueError(
                f"{self.folder} cannot be compared: of {words(row)} audit.json says {metric} {told['mean']} on "
                f"{told['n']} photos, and images.parquet {mean} on {len(means)}. One of the two was changed, or is of "
                "another audit; run the audit again."
            )
        return values


def independent_difference(
    a: Tensor, b: Tensor, *, share: bool = False, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Difference:
    """The difference `mean(a) - mean(b)` between samples of different images, and an interval.

    - Values: each sample is resampled for itself (:func:`~loraguard.metrics.mean_interval`). Where a sample has one
      value throughout, nothing is known of its spread and no interval is given.
    - Shares: Newcombe's hybrid of Wilson's intervals (Statistics in Medicine 17:873, 1998, method 10), which holds for
      shares of 0% and 100% too. Where seeds disagree on an image its value is a fraction, and images are resampled.

    Args:
        a: one value for each image, (n,), or for each seed and image, (seeds, n); seeds are averaged on each image.
        b: the other sample's, likewise.
        share: values are 0 or 1 and their mean is a share.
        confidence: of the interval.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Example:
        >>> a, b = torch.arange(70.0) < 56, torch.arange(80.0) < 48
        >>> found = independent_difference(a.double(), b.double(), share=True)
        >>> [round(value, 4) for value in (found.mean, found.low, found.high)]
        [0.2, 0.0524, 0.3339]
    """
    samples = [values.double().reshape(-1, values.shape[-1]).mean(0) for values in (a, b)]
    finite = [values[values.isfinite()] for values in samples]
    sizes = " and ".join(str(len(values)) for values in finite)
    n = sum(map(len, finite))
    if not all(map(len, finite)):
        return Difference(None, None, None, n, "none: a sample has no finite values")
    x, y = finite
    mean = (x.mean() - y.mean()).item()
    if share and all((values == values.round()).all() for values in finite):
        (p, low_p, high_p), (q, low_q, high_q) = (_wilson(values, confidence) for values in finite)
        low, high = mean - sqrt((p - low_p) ** 2 + (high_q - q) ** 2), mean + sqrt((high_p - p) ** 2 + (q - low_q) ** 2)
        return Difference(mean, low, high, n, f"Newcombe, {sizes} images")
    if any(len(values.unique()) == 1 for values in finite):
        return Difference(mean, None, None, n, f"none: one value on all images of a sample, {sizes} images")
    ends = mean_interval(x, confidence=confidence, resamples=resamples, seed=seed, others=y)
    assert ends is not None  # both have more than one value
    return Difference(mean, *ends, n, f"two-sample bootstrap-t, {resamples} resamples, {sizes} images")


def _wilson(values: Tensor, confidence: float) -> tuple[float, float, float]:
    """A share with Wilson's score interval."""
    n, p, z = len(values), values.mean().item(), NormalDist().inv_cdf((1 + confidence) / 2)
    middle, half = p + z * z / (2 * n), z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return p, (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
