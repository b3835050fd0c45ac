"""What an audit found, as `audit.json`, `grid.png` and one HTML page that opens anywhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

from loraguard.files import whole_files, writable_folder, write_json
from loraguard.training import TrainingResult

from .result import AuditResult
from .situation import KNOWLEDGE_WORDS, NO_CHANNEL, UNTOUCHED, Photo
from .words import KNOWLEDGE_HELP, columns_of, verdict


def write_report(
    result: AuditResult, output_dir: str | Path, *, training: Mapping[str, TrainingResult] | None = None
) -> Path:
    """Write `audit.json`, `images.parquet`, `images.csv`, `grid.png` and `report.html`, each whole or not at all.

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
        result.write_per_image(draft)
        draw_grid(result).save(draft / "grid.png", optimize=True)
        (draft / "report.html").write_text(page, encoding="utf-8")
    return folder / "report.html"


def render_page(result: AuditResult, training: Mapping[str, TrainingResult]) -> str:
    """The report as one HTML page without anything to fetch."""
    columns = columns_of(result)
    rows = []
    for situation in result.find(role="main"):
        estimates = situation.estimates
        cells = [(column.text(estimates[column.key]), column.interval(estimates[column.key])) for column in columns]
        rows.append({"generator": situation.generator, "photo": situation.photo.words,
                     "channel": situation.channel, "flags": result.flags(situation),
                     "help": KNOWLEDGE_HELP[situation.photo.knowledge], "cells": cells})  # fmt: skip
    strips = [{"group": group, "label": label, "image": _data_uri(_strip(images))}
              for group, label, images in _ordered(result)]  # fmt: skip
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("loraguard.audit"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    return environment.get_template("report.html.j2").render(
        verdict=verdict(result),
        columns=columns,
        photos={KNOWLEDGE_WORDS[name]: text for name, text in KNOWLEDGE_HELP.items()},
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
    strips = [(group, label, _strip(images)) for group, label, images in _ordered(result)]
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


def _heading(group: str) -> str:
    return (
        "Photos"
        if group == "photo"
        else f"{group.capitalize()} generator"
        if group == UNTOUCHED
        else f"{group.capitalize()} patch"
    )


def _ordered(result: AuditResult) -> list[tuple[str, str, Tensor]]:
    """Pictures without a channel, by group and label: photos first, then each generator's, all equally large."""
    shown = {}
    for (group, defense, knowledge, last), images in result.pictures.items():
        crafted_elsewhere = group == "photo" and knowledge not in ("clean", "noise", "no-leak")
        if not crafted_elsewhere and (group == "photo" or last == NO_CHANNEL):
            shown[group, Photo(defense, knowledge).words] = images
    groups = list(dict.fromkeys(["photo", UNTOUCHED, *(group for group, _ in shown)]))
    height, width = (max(images.shape[axis] for images in shown.values()) for axis in (2, 3))
    rows = sorted(shown.items(), key=lambda item: groups.index(item[0][0]))
    return [(group, label, _fitted(images, height, width)) for (group, label), images in rows]


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
