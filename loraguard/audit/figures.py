"""Curves of an audit and of a training, as SVG that fits light and dark pages."""

from __future__ import annotations

import io
import re
from typing import Any

from loraguard.training import TrainingResult

from .result import AuditResult
from .situation import NO_CHANNEL, Situation
from .transfer import transferred

GREY = "#808080"
COLOURS = ("#3b82c4", "#d9622b", "#8a63c9", "#2e9e6b", "#b58900", "#c94f8f", "#1f9aa6", GREY)
"""Of generators, in their order; each is told from white and from black alike."""

MARKERS = "osD^vPX*"


def training_curves(run: TrainingResult, name: str) -> str:
    """Losses and gates over the training of a patch, side by side."""
    figure = _figure(8.4, 2.8)
    losses, gates = figure.subplots(1, 2)
    steps = [entry["step"] for entry in run.log]
    for key, colour, label in (
        ("loss_clean", COLOURS[0], "clean photos"),
        ("loss_adversarial", COLOURS[1], "perturbed photos"),
    ):
        if key not in run.log[0]:  # CAT sees no clean photos
            continue
        losses.plot(steps, [max(entry[key], 1e-6) for entry in run.log], color=colour, label=label, linewidth=1.5)
    losses.set(xlabel="training step", ylabel="loss", yscale="log")
    losses.legend(frameon=False)
    for values in run.gates.values():
        gates.plot(steps, values, color=COLOURS[2], linewidth=0.9, alpha=0.6)
    gates.set(xlabel="training step", ylabel="gate, sigmoid(g), per layer")
    for axes in (losses, gates):
        axes.xaxis.get_major_locator().set_params(integer=True)
    return _svg(figure, name)


def dsr_curve(result: AuditResult, defense: str, role: str) -> str | None:
    """A defense's DSR on each generator over budgets (role "budget") or steps ("steps"); None where it has no curve.

    Solid lines are without a leak, dashed ones with it; bars are 95% intervals.
    """
    curves = [
        (at, line, points)
        for at, generator in enumerate(dict.fromkeys(one.generator for one in result.situations))
        for knowledge, line in (("no-leak", "-"), ("leak", "--"))
        if len(points := curve_points(result, generator, defense, knowledge, role)) > 1
    ]
    if not curves:
        return None
    figure = _figure(3.6, 2.5)
    axes = figure.subplots()
    ticks: set[float] = set()
    for at, line, points in curves:
        x = [value for value, _ in points]
        found = [one.estimates["dsr"] for _, one in points]
        mean = [100 * (one.mean or 0.0) for one in found]
        low = [max(0.0, m - 100 * (one.low or 0.0)) for m, one in zip(mean, found, strict=True)]
        high = [max(0.0, 100 * (one.high or 0.0) - m) for m, one in zip(mean, found, strict=True)]
        colour, marker = COLOURS[at % len(COLOURS)], MARKERS[at % len(MARKERS)]
        bars: Any = {"linewidth": 1.4, "linestyle": line, "elinewidth": 0.8, "capsize": 2, "markersize": 4}
        axes.errorbar(x, mean, (low, high), color=colour, marker=marker, **bars)
        ticks |= set(x)
    axes.set(xscale="log", ylim=(-4, 104), yticks=(0, 50, 100), xlabel="eps" if role == "budget" else "steps")
    axes.set_yticks((0, 50, 100), ("0%", "50%", "100%"))
    axes.set_xticks(sorted(ticks), [f"{one:g}" for one in sorted(ticks)])
    axes.set_xticks([], minor=True)
    axes.set_title(defense, fontsize=10)
    return _svg(figure, f"{role} {defense}")


def transfer_figure(result: AuditResult, defense: str) -> str | None:
    """A defense's transfer matrix as a map, the darker the more is spoilt, each cell with its 95% interval.

    None where the audit has no such matrix of it.
    """
    names = list(result.settings.get("transfer", ()))
    found = [[transferred(result, defense, source, name) for name in names] for source in names]
    if not any(one is not None for row in found for one in row):
        return None
    size = len(names)
    figure = _figure(1.6 + 1.1 * size, 1.1 + 0.62 * size)
    axes = figure.subplots()
    for down, row in enumerate(found):
        for right, one in enumerate(row):
            if one is None:
                continue
            dsr = one.estimates["dsr"]
            share = dsr.mean or 0.0
            axes.add_patch(_rectangle((right - 0.48, down - 0.46), 0.96, 0.92, COLOURS[0], 0.12 + 0.88 * share))
            said = f"{share:.0%}" + ("" if dsr.low is None else f"\n{dsr.low:.0%} – {dsr.high:.0%}")
            colour = "white" if share > 0.6 else GREY
            axes.text(right, down, said, ha="center", va="center", color=colour, fontsize=8)
    axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), xlabel="judged on", ylabel="crafted on")
    axes.set_xticks(range(size), names)
    axes.set_yticks(range(size), names)
    axes.set_title(defense, fontsize=10)
    return _svg(figure, f"transfer {defense}")


def _rectangle(corner: tuple[float, float], width: float, height: float, colour: str, alpha: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(corner, width, height, facecolor=colour, alpha=alpha, linewidth=0)


def curve_points(
    result: AuditResult, generator: str, defense: str, knowledge: str, role: str
) -> list[tuple[float, Situation]]:
    """Situations of a curve, the defense's own among them, by their budget or number of steps."""
    setting = "eps" if role == "budget" else "steps"
    same = {"generator": generator, "defense": defense, "knowledge": knowledge, "channel": NO_CHANNEL}
    found = result.find(**same, role=role)
    found += result.find(**same, role="main") if found else []
    return sorted(((getattr(one.treatment, setting), one) for one in found), key=lambda pair: pair[0])


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure((width, height), layout="constrained")


def _svg(figure: Any, name: str) -> str:
    """Text stays text; what two figures on a page share has no id, nothing names an address, digits are few."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(GREY)
        axes.tick_params(which="both", colors=GREY, labelsize=9)
        for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
            text.set_color(GREY)
        for text in axes.get_legend().get_texts() if axes.get_legend() else ():
            text.set_color(GREY)
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\d\.\d\d)\d{3,}", r"\1", tag[0]), svg)  # no label of an axis
    return re.sub(r'<g id="[^"]*"', "<g", svg)
