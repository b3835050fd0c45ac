"""The tables of an audit beside that of its figures, for the page, for Markdown and for the screen alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .benchmark import benchmark
from .matrix import worst_cases
from .result import AuditResult
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


def tables(result: AuditResult) -> list[Table]:
    """Those that an audit has figures for."""
    return [one for one in _all(result) if one.rows]


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
    if preset := result.settings.get("preset"):
        yield Table(
            "benchmark", f"By {preset}",
            "Each defense crafted on the untouched generator itself, by the metrics of that benchmark. AvgRank is the "
            "mean of its ranks by them (1 is best), ROB the part of its figures that the benchmark's distortions "
            "leave, and TE the part that is left where it is judged on another generator. Then what it is worth on "
            "the other generators, no leak / leak, which the benchmark does not ask.",
            *benchmark(result),
        )  # fmt: skip
