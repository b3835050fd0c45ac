"""The tables of an audit beside that of its figures, for the page, for Markdown and for the screen alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .benchmark import benchmark_table
from .detectability import Detection
from .glossary import COLUMNS
from .matrix import worst_cases
from .result import AuditResult
from .situation import UNTOUCHED
from .transfer import transfer_matrix


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        id: where links lead.
        title: its heading.
        text: what it shows, in a sentence or two.
        headings: of the columns.
        rows: a text for each column.
    """

    id: str
    title: str
    text: str
    headings: list[str]
    rows: list[list[str]]


def _detection(one: Detection) -> list[str]:
    """A row: the share that is found, the false alarms in photos, and how many others it was learned on."""
    names = {"none": "(photo as it is)", "noise": f"(random noise, eps {one.eps:g})" if one.eps else ""}
    shares = next(column for column in COLUMNS if column.key == "dsr")
    alarms = round((one.false_alarms.mean or 0.0) * one.false_alarms.n)
    return [names.get(one.defense, one.defense), shares.with_interval(one.found),
            f"{alarms} of {one.false_alarms.n}", f"{one.trained_on} photos"]  # fmt: skip


def tables(result: AuditResult) -> list[Table]:
    """Those that an audit has figures for, each with the flags of its defenses."""
    flagged = _flagged(result)
    return [replace(one, text=f"{one.text}{flagged}") for one in _all(result) if one.rows]


def _flagged(result: AuditResult) -> str:
    """Which defenses have flags on the untouched generator; nothing where none has."""
    rows = {name: result.find(defense=name, generator=UNTOUCHED) for name in result.defenses}
    flags = {name: dict.fromkeys(flag for row in there for flag in result.flags(row)) for name, there in rows.items()}
    said = [f"{name} ({', '.join(names)})" for name, names in flags.items() if names]
    return f" Under flags on the untouched generator: {', '.join(said)}." if said else ""


def _all(result: AuditResult) -> Iterator[Table]:
    yield Table(
        "worst", "Whatever happens to a photo",
        "The share of photos whose edit is spoilt through every channel, without one too, and under every seed, no "
        "leak / leak: whoever holds a photo takes the channel that suits them.",
        *worst_cases(result),
    )  # fmt: skip
    for name in result.defenses:
        yield Table(
            f"transfer-{name}", f"{name}, carried from one generator to another",
            "The share of edits that are spoilt where photos are crafted on the row's generator and judged on the "
            "column's, with its 95% interval. Nobody who protects a photo has the network of whoever misuses it.",
            *transfer_matrix(result, name),
        )  # fmt: skip
    yield Table(
        "detectability", "Can the protection itself be seen?",
        "A small network that has learned on other photos tells protected photos from plain ones: the share that it "
        "finds where it takes no more than one plain photo in a hundred for a protected one, with the 95% interval. "
        "Whoever detects a protection can filter it out or purify the photo. Of plain photos that are called "
        "protected it can find no more than those false alarms.",
        ["defense", "found", "false alarms", "learned on"], [_detection(one) for one in result.detections],
    )  # fmt: skip
    if preset := result.settings.get("preset"):
        yield Table(
            "benchmark", f"By {preset}",
            "Each defense crafted on the untouched generator itself, by the metrics of that benchmark. AvgRank is the "
            "mean of its ranks by them (1 is best), ROB the part of its figures that the benchmark's distortions "
            "leave, and TE the part that is left where it is judged on another generator. Then what it is worth on "
            "the other generators, no leak / leak, which the benchmark does not ask.",
            *benchmark_table(result),
        )  # fmt: skip
