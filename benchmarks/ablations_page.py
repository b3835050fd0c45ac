"""Tables and plots of `ablations.py`, for light and dark pages."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Rows = dict[str, dict[str, Any]]
"""What runs gave, by name."""

GREY = "#808080"
"""Of text and axes: as far from white as from a dark page."""
COLOURS = {"no-leak": "#2f81d6", "leak": "#e0562b", "gate": "#2f81d6", "no gate": "#e0562b", "fixed": "#a57f1c"}


def _share(values: list[float]) -> str:
    mean, low, high = (100 * value for value in values)
    return f"{mean:.0f}% ({low:.0f}-{high:.0f})"


COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "clean PSNR, dB": lambda row: f"{row['clean_psnr']:.1f}",
    "no-leak DSR": lambda row: _share(row["no-leak_dsr"]),
    "leak DSR": lambda row: _share(row["leak_dsr"]),
    "leak MSE": lambda row: "{:.3f} ({:.3f}-{:.3f})".format(*row["leak_mse"]),
    "labels kept": lambda row: f"{100 * row['labels_kept']:.0f}%",
    "first gradient": lambda row: f"{row['first_gradient']:.2g}",
    "largest": lambda row: f"{row['largest_gradient']:.2g}",
    "loss at end": lambda row: f"{row['loss_at_end']:.3f}",
    "skipped": lambda row: f"{row['skipped']}",
    "parameters": lambda row: f"{row['parameters']:,}",
    "CPU s": lambda row: f"{row['seconds']:.0f}",
}
QUALITY = ("clean PSNR, dB", "no-leak DSR", "leak DSR", "leak MSE", "labels kept")
GRADIENTS = ("first gradient", "largest", "loss at end", "skipped")
SHOWN = {
    "gate": (*GRADIENTS, "clean PSNR, dB", "no-leak DSR", "leak DSR"),
    "kind of gate": (*QUALITY, "largest", "loss at end", "parameters", "CPU s"),
    "loss": (*QUALITY, "CPU s"),
    "rank": (*QUALITY, "parameters", "CPU s"),
    "images": (*QUALITY, "loss at end"),
    "adversary": (*QUALITY, "CPU s"),
    "seed": QUALITY,
}


def tables(results: dict[str, Rows], readers: dict[str, Any], usual: dict[str, Any]) -> str:
    """Markdown, from the heading "Tables" on.

    Args:
        results: by ablation.
        readers: how well the readers of faces read, and the loss's terms.
        usual: the run that the others are compared with.
    """
    lines = ["## Tables", "", "<!-- from: python benchmarks/ablations.py -->", ""]
    for name, what in (("encoder", "The reader in the loss"), ("judge", "The one that judges")):
        labels, faces = (100 * share for share in readers[name])
        lines.append(f"{what} has {labels:.1f}% of the labels right on unseen faces, and all five of {faces:.1f}%.")
    sizes = ", ".join(f"{name} {value:.3f}" for name, value in readers["terms"].items())
    lines += [
        f"The loss's terms, weighted, where the untouched generator is disrupted: {sizes}.",
        f"The attack on the untouched generator: DSR {100 * usual['untouched_dsr']:.0f}%, labels kept "
        f"{100 * usual['untouched_labels_kept']:.0f}%.",
        f"torch {torch.__version__}, {platform.machine()}, one thread.",
    ]
    for ablation, rows in results.items():
        shown = SHOWN[ablation]
        lines += ["", f"### {ablation.capitalize()}", "", f"| {ablation} | {' | '.join(shown)} |"]
        lines.append("|---" * (len(shown) + 1) + "|")
        lines += [f"| {name} | {' | '.join(COLUMNS[key](row) for key in shown)} |" for name, row in rows.items()]
    return "\n".join(lines) + "\n"


def _style(axis: Axes) -> None:
    axis.set_facecolor("none")
    axis.tick_params(colors=GREY, labelsize=9)
    axis.grid(color=GREY, alpha=0.25, linewidth=0.6)
    for name, spine in axis.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(GREY)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=150, transparent=True)
    plt.close(figure)


def _legend(figure: Figure, axis: Axes) -> None:
    figure.legend(
        *axis.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False, labelcolor=GREY,
        fontsize=10,
    )  # fmt: skip


def plot_gates(rows: Rows, path: Path) -> None:
    """Over the learning rate, a line for each gate: the largest gradient, the loss at the end, DSR with the leak.

    Args:
        rows: named "start, gate, rate".
        path: of the PNG.
    """
    starts, gates, _ = (list(dict.fromkeys(parts)) for parts in zip(*(name.split(", ") for name in rows), strict=True))
    figure, axes = plt.subplots(
        3, len(starts), figsize=(8.4, 8), sharex=True, sharey="row", squeeze=False, layout="constrained"
    )
    for column, start in enumerate(starts):
        for gate, beside in zip(gates, (0.93, 1.0, 1.075), strict=True):  # intervals would lie on each other
            line = {
                float(name.rpartition(", ")[2]): row
                for name, row in rows.items()
                if name.startswith(f"{start}, {gate}, ")
            }
            label = {"gate": "learnt gate, from 0.27", "no gate": "no gate", "fixed": "fixed factor 0.27"}[gate]
            style = {"color": COLOURS[gate], "marker": "o", "markersize": 4, "label": label}
            style["linestyle"] = "--" if gate == "fixed" else "-"  # it often lies on the learnt gate's
            for axis, key in zip(axes[:2, column], ("largest_gradient", "loss_at_end"), strict=True):
                axis.plot(list(line), [row[key] for row in line.values()], **style)
            places = [rate * beside for rate in line]
            _errors(axes[2, column], places, [row["leak_dsr"] for row in line.values()], **style)
        axes[1, column].axhline(
            next(row["loss_at_start"] for name, row in rows.items() if name.startswith(f"{start}, gate, ")),
            color=GREY, linestyle=":", linewidth=1.5,
        )  # fmt: skip
        axes[0, column].set_title(start, color=GREY, fontsize=11)
        axes[2, column].set_xlabel("learning rate", color=GREY)
    labels = ("largest gradient", "loss at the end\n(dotted: at the start)", "leak DSR, %")
    for row, label in zip(axes, labels, strict=True):
        row[0].set_ylabel(label, color=GREY)
        for axis in row:
            _style(axis)
            axis.set_xscale("log")
    for axis in axes[:2].flat:
        axis.set_yscale("log")
    axes[2, 0].set_ylim(-3, 103)
    _legend(figure, axes[0, 0])
    _save(figure, path)


def _errors(axis: Axes, places: list[float], shares: list[list[float]], **style: Any) -> None:
    """Shares in per cent with their intervals, upright."""
    means = [100 * mean for mean, _, _ in shares]
    spread = [[100 * (mean - low) for mean, low, _ in shares], [100 * (high - mean) for mean, _, high in shares]]
    axis.errorbar(places, means, yerr=spread, capsize=2, elinewidth=1, **style)


def plot_others(results: dict[str, Rows], path: Path) -> None:
    """A band for each ablation, a line for each run: DSR without and with the leak, clean PSNR, time."""
    heights = [len(rows) + 1 for rows in results.values()]
    figure, axes = plt.subplots(
        len(results), 3, figsize=(8.4, 0.27 * sum(heights) + 1), sharex="col", sharey="row", squeeze=False,
        height_ratios=heights, width_ratios=(5, 2, 2), layout="constrained",
    )  # fmt: skip
    for (share, quality, time), (ablation, rows) in zip(axes, results.items(), strict=True):
        places = list(range(len(rows)))
        for key, label, shift in (("no-leak", "DSR, no leak", -0.15), ("leak", "DSR, leak", 0.15)):
            values = [row[f"{key}_dsr"] for row in rows.values()]
            means = [100 * mean for mean, _, _ in values]
            spread = [[100 * abs(one[0] - one[end]) for one in values] for end in (1, 2)]
            share.errorbar(
                means, [place + shift for place in places], xerr=spread, fmt="o", color=COLOURS[key], label=label,
                markersize=4, elinewidth=1.2, capsize=2,
            )  # fmt: skip
        quality.plot([row["clean_psnr"] for row in rows.values()], places, "o", color=GREY, markersize=4)
        time.barh(places, [row["seconds"] for row in rows.values()], 0.5, color=GREY, alpha=0.7)
        for axis in (share, quality, time):
            _style(axis)
        share.set_yticks(places, list(rows))
        share.set_ylim(len(rows) - 0.4, -0.6)
        share.set_title(ablation, color=GREY, fontsize=11, loc="left", fontweight="bold")
    axes[0, 0].set_xlim(-3, 103)
    axes[0, 1].xaxis.set_major_locator(MaxNLocator(3, integer=True))
    axes[0, 2].xaxis.set_major_locator(MaxNLocator(3, integer=True))
    for axis, label in zip(axes[-1], ("images spoilt, %", "clean PSNR, dB", "CPU s of training"), strict=True):
        axis.set_xlabel(label, color=GREY)
    _legend(figure, axes[0, 0])
    _save(figure, path)
