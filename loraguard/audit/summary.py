"""An audit on one page of Markdown, and as a table with a row for each situation."""

from __future__ import annotations

import csv
import io
from typing import Any

from .glossary import FLAG_HELP
from .result import AuditResult
from .tables import tables
from .words import frechet_heading, table, tried, verdict


def markdown(result: AuditResult) -> str:
    """The verdict, what was tried, the table, flags with their evidence, and the picture `grid.png`."""
    first, *others = verdict(result)
    headings, rows = table(result)
    lines = ["# What is this protection worth?", "", f"**{_inline(first)}**", ""]
    lines += [f"- {_inline(sentence)}" for sentence in others]
    lines += ["", "## What was tried", ""]
    lines += [f"- {label}: {_inline(text)}" for label, text in tried(result).items()]
    lines += ["", f"Budget: {_inline(result.settings['budget'])}." if result.settings["budget"] else "", ""]
    lines += ["## Figures", "", _row(headings), "|" + "---|" * len(headings), *map(_row, rows)]
    lines += ["", "Means over photos; intervals are in `summary.csv`, every photo's figures in `images.parquet`.", ""]
    for one in tables(result):
        lines += [f"## {one.title}", "", one.text, ""]
        lines += [_row(one.headings), "|" + "---|" * len(one.headings), *map(_row, one.rows), ""]
    if failed := [check for check in result.checks if not check.passed]:
        lines += ["## Flags", ""]
        for name in dict.fromkeys(check.name for check in failed):
            lines.append(f"- **{name}**: {FLAG_HELP[name]}")
            lines += [f"  - {_inline(one.generator)}: {_inline(one.evidence)}" for one in failed if one.name == name]
        lines.append("")
    lines += ["## Pictures", "", "![The same photos in every situation, one a row](grid.png)"]
    return "\n".join(lines) + "\n"


def summary_csv(result: AuditResult) -> str:
    """A row for each situation: its key, each metric's mean, interval, n and method, and its flags.

    What is not there is empty: the PSNR where all outputs are equal, budgets of photos that nobody perturbed.
    """
    metrics = list(dict.fromkeys(metric for one in result.situations for metric in one.values))
    parts = ("mean", "low", "high", "n", "method")
    frechet = [] if frechet_heading(result) is None else ["frechet"]
    keys = ["generator", "defense", "knowledge", "eps", "steps", "role", "channel"]
    keys += ["crafted_on"] if result.find(role="transfer") else []
    text = io.StringIO(newline="")
    writer = csv.DictWriter(
        text, [*keys, *(f"{metric}_{part}" for metric in metrics for part in parts), *frechet, "flags"]
    )
    writer.writeheader()
    for one in result.situations:
        row: dict[str, Any] = {"generator": one.generator, **one.treatment.fields(), "channel": one.channel}
        for metric, found in one.estimates.items():
            row |= {f"{metric}_{part}": getattr(found, part) for part in parts}
        row |= dict.fromkeys(frechet, one.frechet)
        writer.writerow({**row, "flags": " ".join(result.flags(one))})
    return text.getvalue()


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(map(_inline, cells))} |"


def _inline(text: str) -> str:
    """Text that stays in its cell or sentence."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
