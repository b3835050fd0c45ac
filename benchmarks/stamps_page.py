"""Tables and the picture of `stamps.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot as plt
from torch import Tensor
from torch.nn import functional as F


def _read(share: dict[str, float]) -> str:
    """A share with its 95% interval."""
    n = share["n"]
    return f"{100 * share['count'] / n:.0f}% ({100 * share['low']:.0f}-{100 * share['high']:.0f})"


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def _pooled(result: dict[str, Any], key: str) -> dict[str, float]:
    found = [attacks[key] for attacks in result["perturbed"].values()]
    return {part: sum(one[part] for one in found) for part in ("count", "n")}


def _count(share: dict[str, float]) -> str:
    return f"{share['count']}/{share['n']}"


def _outside(row: dict[str, Any]) -> str:
    return f"{row['psnr']:.1f} ({row['lowest_psnr']:.1f})" if row["stamp"] else ""


def _cost(row: dict[str, Any]) -> str:
    """What the removal leaves of the picture."""
    if "psnr" in row:
        return f"{row['psnr']:.1f} dB PSNR in the region"
    return f"{100 * row['kept']:.0f}% of the picture is left" if "kept" in row else ""


def tables(result: dict[str, Any]) -> str:
    """Markdown: reading, defenses, removal, fine-tuning away."""
    rows = result["unperturbed"]
    names = list(result["perturbed"])
    channels = list(rows[0]["read"])
    reading = [
        [row["stamp"] or "*none*", str(row["size"]), _outside(row)]
        + [_count(row["read"][channel]) for channel in channels]
        for name in (*names, None)
        for row in rows
        if row["stamp"] == name
    ]
    attacks = [
        [key, *(_count(result["perturbed"][name][key]) for name in names), _count(_pooled(result, key))]
        for key in result["perturbed"][names[0]]
    ]
    removal = [[key, _read(row["read"]), _cost(row)] for key, row in result["removal"]["rows"].items()]
    tuned = result["fine_tuned_away"]
    steps = [row["step"] for row in next(iter(tuned.values()))]
    away = [
        [str(count), *(f"{100 * row['read']['count'] / row['read']['n']:.0f}%, {row['psnr']:.1f}" for row in found)]
        for count, found in tuned.items()
    ]
    return "\n\n".join([
        _table(["stamp", "size, px", "PSNR outside, dB (lowest)", *channels], reading),
        _table(["perturbed by", *names, "all"], attacks),
        _table(["what is done", "stamp is read", "what it costs"], removal),
        _table(["attacker's photos", "0 steps", *(str(step) for step in steps[1:])], away),
    ])  # fmt: skip


def draw_picture(result: dict[str, Any], pictures: dict[str, Tensor], file: Path) -> None:
    """Outputs at every size, two by the untouched network and two with each stamp, and what is left of the stamp."""
    sizes = list(dict.fromkeys(row["size"] for row in result["unperturbed"]))
    names = ["untouched", *result["perturbed"]]
    figure, (grid, plot) = plt.subplots(1, 2, figsize=(11, 4.4), gridspec_kw={"width_ratios": [1.75, 1]})
    cell = max(sizes)
    rows = [
        torch.cat([F.interpolate(pictures[f"{name}, {size}"], cell, mode="nearest") for name in names])
        for size in sizes
    ]
    lines = [torch.cat(list(F.pad(row, (2, 2, 2, 2), value=1.0)), 2) for row in rows]
    grid.imshow(((torch.cat(lines, 1).clamp(-1, 1) + 1) / 2).permute(1, 2, 0).numpy(), interpolation="nearest")
    grid.set_xticks([(2 * i + 1) * (cell + 4) for i in range(len(names))], names)
    grid.set_yticks([(i + 0.5) * (cell + 4) for i in range(len(sizes))], [f"{size} px" for size in sizes])
    grid.tick_params(length=0)
    grid.spines[:].set_visible(False)
    for count, found in result["fine_tuned_away"].items():
        shares = [100 * row["read"]["count"] / row["read"]["n"] for row in found]
        plot.plot([row["step"] for row in found], shares, marker="o", markersize=3, label=f"{count} photos")
    plot.set_xscale("symlog", linthresh=5)
    ticks = [row["step"] for row in found]
    plot.set_xticks(ticks, [str(tick) for tick in ticks])
    plot.minorticks_off()
    plot.set_ylim(-3, 103)
    plot.set_xlabel("steps of fine-tuning by an attacker")
    plot.set_ylabel("outputs with the stamp, %")
    plot.legend(frameon=False)
    plot.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(file, dpi=110, facecolor="white")
    plt.close(figure)
