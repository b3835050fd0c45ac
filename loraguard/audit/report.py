"""What an audit found, as `audit.json`, `grid.png` and one HTML page that opens anywhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

from loraguard.files import whole_files, writable_folder, write_json
from loraguard.metrics import DSR_THRESHOLD, Estimate
from loraguard.training import TrainingResult

from .protocol import UNTOUCHED, AuditResult, Situation

WORDS = {
    "clean": "as it is",
    "noise": "random noise",
    "no-leak": "defended, no leak",
    "leak": "defended, leak",
}
HELP = {
    "clean": "The photo as it is.",
    "noise": "Every value moved by the whole budget, up or down at random: the control.",
    "no-leak": "The defender attacked the untouched generator and knows of no patch.",
    "leak": "The defender has the very generator that is used, its patch included, and attacked that.",
}


@dataclass(frozen=True)
class Column:
    """One metric of the table: its key, its heading, its unit and what it means in plain words."""

    key: str
    heading: str
    help: str

    def text(self, value: Estimate) -> str:
        """The figure as it stands in the table."""
        if value.mean is None:
            return "equal"
        return self.number(value.mean)

    def interval(self, value: Estimate) -> str:
        """Its 95% interval, in the same unit."""
        if value.low is None or value.high is None:
            return ""
        return f"{self.number(value.low)} – {self.number(value.high)}"

    def number(self, value: float) -> str:
        """A value in this metric's unit."""
        if self.key in ("dsr", "stamp_rate"):
            return f"{100 * value:.1f}%"
        return {"mse": "{:.4f}", "psnr": "{:.1f} dB", "ssim": "{:.3f}"}[self.key].format(value)


COLUMNS = (
    Column("dsr", "DSR", "Defense success rate: the share of photos on which the output is spoilt (MSE over "
           f"{DSR_THRESHOLD}). High is good for whoever relies on the defense."),
    Column("mse", "MSE", "Mean squared error between the output and what it should have been, values in [-1, 1]."),
    Column("psnr", "PSNR", "The same distance in decibel; over 30 dB the difference is hard to see."),
    Column("ssim", "SSIM", "Structural similarity to what the output should have been; 1 is equal."),
    Column("stamp_rate", "Stamp", "The share of outputs on which the detector finds the visible warning."),
)  # fmt: skip


def table(result: AuditResult) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the audit's table as plain text."""
    columns = _columns(result)
    rows = []
    for situation in result.situations:
        estimates = situation.estimates
        rows.append([situation.generator, WORDS[situation.perturbation], *(c.text(estimates[c.key]) for c in columns)])
    return ["generator", "photo", *(column.heading for column in columns)], rows


def verdict(result: AuditResult) -> list[str]:
    """What the audit says, in sentences: one on the defense, one on each patch."""

    def share(situation: Situation, metric: str) -> str:
        return f"{100 * (situation.estimates[metric].mean or 0.0):.1f}%"

    sentences = [
        f"On the untouched generator the defense spoils {share(result[UNTOUCHED, 'no-leak'], 'dsr')} of the edits "
        f"(random noise of the same budget: {share(result[UNTOUCHED, 'noise'], 'dsr')})."
    ]
    for patch, stamp in result.settings["patches"].items():
        clean, no_leak, leak = (result[patch, name] for name in ("clean", "no-leak", "leak"))
        if stamp is None:
            value = clean.estimates["psnr"]
            quality = "are what they were" if value.mean is None else f"keep {value.mean:.1f} dB PSNR to what they were"
            sentences.append(
                f"With the patch {patch!r} it spoils {share(no_leak, 'dsr')} when the defender does not know of the "
                f"patch, and {share(leak, 'dsr')} when the defender attacks the patched generator itself; clean "
                f"outputs {quality}."
            )
        elif "stamp_rate" in clean.values:
            words = stamp["text"] or "its picture"
            sentences.append(
                f"The patch {patch!r} stamps {words!r} on {share(clean, 'stamp_rate')} of clean outputs, "
                f"{share(no_leak, 'stamp_rate')} of defended ones and {share(leak, 'stamp_rate')} when the defender "
                "attacks the patched generator itself."
            )
    return sentences


def write_report(
    result: AuditResult, output_dir: str | Path, *, training: Mapping[str, TrainingResult] | None = None
) -> Path:
    """Write `audit.json`, `grid.png` and `report.html`, each whole or not at all.

    Args:
        result: from :func:`~loraguard.audit.run_audit`.
        output_dir: a folder; it is made where there is none.
        training: by patch, how its training went, for the curves.

    Returns:
        The path of `report.html`.
    """
    folder = writable_folder(output_dir)
    page = render_page(result, training or {})
    with whole_files(folder) as draft:
        write_json(draft / "audit.json", {**result.to_dict(), "verdict": verdict(result)})
        draw_grid(result).save(draft / "grid.png", optimize=True)
        (draft / "report.html").write_text(page, encoding="utf-8")
    return folder / "report.html"


def render_page(result: AuditResult, training: Mapping[str, TrainingResult]) -> str:
    """The report as one HTML page without anything to fetch."""
    columns = _columns(result)
    rows = []
    for situation in result.situations:
        estimates = situation.estimates
        cells = [(column.text(estimates[column.key]), column.interval(estimates[column.key])) for column in columns]
        rows.append({"generator": situation.generator, "photo": WORDS[situation.perturbation],
                     "help": HELP[situation.perturbation], "cells": cells})  # fmt: skip
    strips = [{"group": group, "label": WORDS[name], "image": _data_uri(_strip(images))}
              for (group, name), images in _ordered(result)]  # fmt: skip
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("loraguard.audit"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    return environment.get_template("report.html.j2").render(
        verdict=verdict(result),
        columns=columns,
        photos={WORDS[name]: text for name, text in HELP.items()},
        rows=rows,
        strips=strips,
        n=len(result.edits),
        budget=result.settings["budget"],
        curves=[(name, curves(run, name)) for name, run in training.items()],
        settings=_flat(result.settings),
        methods=sorted({e.method for s in result.situations for e in s.estimates.values() if e.mean is not None}),
    )


def curves(run: TrainingResult, name: str) -> str:
    """Losses and gates over the training of a patch, as an SVG that fits light and dark pages."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    grey = "#808080"
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": name, "text.color": grey, "axes.labelcolor": grey,
             "axes.edgecolor": grey, "xtick.color": grey, "ytick.color": grey, "font.size": 9,
             "axes.spines.top": False, "axes.spines.right": False}  # fmt: skip
    with rc_context(style):
        figure = Figure((8.4, 2.8), layout="constrained")
        losses, gates = figure.subplots(1, 2)
        steps = [entry["step"] for entry in run.log]
        for key, colour, label in (
            ("loss_clean", "#3b82c4", "clean photos"),
            ("loss_adversarial", "#d9622b", "perturbed photos"),
        ):
            losses.plot(steps, [max(entry[key], 1e-6) for entry in run.log], color=colour, label=label, linewidth=1.5)
        losses.set(xlabel="training step", ylabel="loss", yscale="log")
        losses.legend(frameon=False)
        for values in run.gates.values():
            gates.plot(steps, values, color="#8a63c9", linewidth=0.9, alpha=0.6)
        gates.set(xlabel="training step", ylabel="gate, sigmoid(g), per layer")
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]


def draw_grid(result: AuditResult, scale: int = 2) -> Image.Image:
    """The same faces in every situation, one situation a row, with labels."""
    strips = [(group, WORDS[name], _strip(images)) for (group, name), images in _ordered(result)]
    width, height = strips[0][2].size
    margin, gap, head = 190, 4, 26
    groups = [group for group, _, _ in strips]
    heads = sum(group != before for group, before in zip(groups, [None, *groups], strict=False))
    page = Image.new(
        "RGB", (margin + width * scale + 12, 12 + heads * head + len(strips) * (height * scale + gap)), "white"
    )
    draw = ImageDraw.Draw(page)
    y, before = 6, None
    for group, label, strip in strips:
        if group != before:
            draw.text((12, y + 5), _heading(group), fill="#1c2733", font=ImageFont.load_default(15))
            y, before = y + head, group
        draw.text((12, y + height * scale // 2 - 8), label, fill="#4a5866", font=ImageFont.load_default(14))
        larger = strip.resize((width * scale, height * scale), Image.Resampling.BICUBIC)
        page.paste(larger, (margin, y), larger)
        y += height * scale + gap
    return page


def _columns(result: AuditResult) -> list[Column]:
    return [column for column in COLUMNS if column.key in result.situations[0].values]


def _heading(group: str) -> str:
    return (
        "Photos"
        if group == "photo"
        else f"{group.capitalize()} generator"
        if group == UNTOUCHED
        else f"{group.capitalize()} patch"
    )


def _ordered(result: AuditResult) -> list[tuple[tuple[str, str], Tensor]]:
    """Pictures, photos first, then generator by generator, all as large as the largest."""
    groups = list(dict.fromkeys(group for group, _ in result.pictures))
    height, width = (max(images.shape[axis] for images in result.pictures.values()) for axis in (2, 3))
    fitted = {key: _fitted(images, height, width) for key, images in result.pictures.items()}
    return sorted(fitted.items(), key=lambda item: groups.index(item[0][0]))


def _fitted(images: Tensor, height: int, width: int) -> Tensor:
    """Images (k, 3, H, W) enlarged to this height and width, on white where their proportions are others."""
    old_height, old_width = images.shape[2:]
    if (old_height, old_width) == (height, width):
        return images
    scale = min(height / old_height, width / old_width)
    size = round(old_height * scale), round(old_width * scale)
    larger = functional.interpolate(images.float(), size, mode="bicubic", align_corners=False)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    around = (left, width - size[1] - left, top, height - size[0] - top)
    return functional.pad(larger, around, value=1.0)


def _strip(images: Tensor) -> Image.Image:
    """Images (k, 3, H, W) in [-1, 1] side by side."""
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    opaque = torch.full_like(pixels[:, :1], 255)
    spaced = functional.pad(torch.cat([pixels, opaque], 1), (0, 2))
    return Image.fromarray(torch.cat(list(spaced), 2)[..., :-2].permute(1, 2, 0).numpy())


def _data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as pairs of a dotted name and a value."""
    pairs = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{prefix}{name}.")
        else:
            pairs.append((prefix + name, str(value)))
    return pairs
