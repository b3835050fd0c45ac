"""The report as one HTML page that opens anywhere: nothing is fetched, and nothing needs a script."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import jinja2

from loraguard.metrics import Estimate
from loraguard.training import TrainingResult

from .claim import claim
from .figures import COLOURS, curve_points, dsr_curve, training_curves, transfer_figure
from .glossary import CONTROLS, FLAG_HELP, FRECHET_HELP, INTERVAL_HELP, KNOWLEDGE_HELP, Column
from .pictures import PAGE_BYTES, Strip, embedded, heading, strips
from .result import AuditResult
from .situation import KNOWLEDGE, KNOWLEDGE_WORDS, NO_CHANNEL, UNTOUCHED, Situation
from .tables import tables
from .words import columns_of, frechet_heading, photo_words, story, tried, verdict


def render_page(
    result: AuditResult,
    training: Mapping[str, TrainingResult],
    downloads: Mapping[str, tuple[str, bytes]],
    beside: Mapping[str, str],
) -> str:
    """The page.

    Args:
        result: what was found.
        training: by patch, how it was trained.
        downloads: files that the page holds, by name: their media type and content.
        beside: what is written beside it: names, and what each is.
    """
    generators = _generators(result)
    reads, figures = claim(result)
    columns = columns_of(result)
    failed = {check.name for check in result.checks if not check.passed}
    return _templates().get_template("report.html.j2").render(
        **_pictures(result),
        reads=reads,
        figures=figures,
        sentences=verdict(result)[1:],
        tried=tried(result),
        result=result,
        generators={name: _about(result, name, at) for at, name in enumerate(generators)},
        columns=columns,
        frechet=frechet_heading(result),
        frechet_help=FRECHET_HELP,
        interval_help=INTERVAL_HELP,
        panels=[_panel(result, name, columns[0]) for name in generators],
        stamps=[_panel(result, name, column) for column in columns if column.key == "stamp_rate"
                for name in generators if name == UNTOUCHED or result.settings["patches"].get(name) is not None],
        table=_table(result, result.find(role="main", channel=NO_CHANNEL), columns),
        channels=_channels(result, columns),
        tables=tables(result),
        maps={f"transfer-{name}": svg for name in result.defenses if (svg := transfer_figure(result, name))},
        curves={role: _curves(result, role, columns) for role in ("budget", "steps")},
        checks={name: [one for one in result.checks if one.name == name] for name in _flags_first(result)},
        failed=failed,
        flag_help=FLAG_HELP,
        knowledge={KNOWLEDGE_WORDS[name]: KNOWLEDGE_HELP[name] for name in KNOWLEDGE
                   if result.find(knowledge=name)},
        controls={name: CONTROLS[name][1] for name in generators if name in CONTROLS},
        training=[(name, training_curves(run, name)) for name, run in training.items()],
        settings=_flat(result.settings),
        methods=sorted({e.method for s in result.situations for e in s.estimates.values() if e.mean is not None}),
        downloads={name: f"data:{kind};base64,{base64.b64encode(content).decode()}"
                   for name, (kind, content) in downloads.items()},
        beside=beside,
    )  # fmt: skip


@cache
def _templates() -> jinja2.Environment:
    """The page's templates, which are compiled once."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("loraguard.audit"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters["by_generator"] = _by_generator
    return environment


def _generators(result: AuditResult) -> list[str]:
    return list(dict.fromkeys(one.generator for one in result.situations))


def _flags_first(result: AuditResult) -> list[str]:
    """The names of the checks that were made; those that failed come first."""
    made = {check.name for check in result.checks}
    failed = {check.name for check in result.checks if not check.passed}
    return sorted(made, key=lambda name: (name not in failed, list(FLAG_HELP).index(name)))


def _about(result: AuditResult, name: str, at: int) -> dict[str, str]:
    """How the page calls a generator, and its colour in curves."""
    return {"called": heading(result, name), "colour": COLOURS[at % len(COLOURS)]}


def _panel(result: AuditResult, generator: str, column: Column) -> dict[str, Any]:
    """A generator's bars: the controls, then each defense with and without a leak."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for one in result.find(generator=generator, role="main", channel=NO_CHANNEL):
        control = one.treatment.knowledge in ("clean", "noise")
        found = one.estimates[column.key]
        rows.setdefault(photo_words(result, one.treatment) if control else one.treatment.defense, []).append(
            {
                "kind": "control" if control else one.treatment.knowledge,
                "title": f"{photo_words(result, one.treatment)}: {column.text(found)} ({column.interval(found)})",
                "text": column.text(found),
                "mean": 100 * (found.mean or 0.0),
                "low": 100 * (found.low or 0.0),
                "high": 100 * (found.high or 0.0),
            }
        )
    return {"generator": generator, "rows": rows}


def _table(result: AuditResult, situations: Iterable[Situation], columns: Sequence[Column]) -> list[dict[str, Any]]:
    """Rows of a table with every metric, by generator."""
    rows = []
    for one in situations:
        cells = [_cell(column, one.estimates[column.key]) for column in columns]
        if frechet_heading(result):
            cells.append(("" if one.frechet is None else f"{one.frechet:.2f}", ""))
        rows.append(
            {
                "generator": one.generator,
                "photo": photo_words(result, one.treatment),
                "help": KNOWLEDGE_HELP[one.treatment.knowledge],
                "eps": "" if one.treatment.eps is None else f"{one.treatment.eps:g}",
                "steps": "" if one.treatment.steps is None else str(one.treatment.steps),
                "cells": cells,
                "flags": result.flags(one),
            }
        )
    return sorted(rows, key=lambda row: _place(result, row["generator"]))


def _by_generator(rows: Iterable[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Rows in their order, those of a generator together."""
    return [(name, list(group)) for name, group in itertools.groupby(rows, key=lambda row: row["generator"])]


def _place(result: AuditResult, generator: str) -> int:
    return _generators(result).index(generator)


def _cell(column: Column, found: Estimate) -> tuple[str, str]:
    return column.text(found), column.interval(found)


def _channels(result: AuditResult, columns: Sequence[Column]) -> dict[str, Any]:
    """DSR by channel side by side, and a full table of each channel."""
    names = list(result.settings["channels"])
    dsr = columns[0]
    found: dict[tuple[str, str], dict[str, tuple[str, str]]] = {}
    for one in result.find(role="main"):
        row = found.setdefault((one.generator, photo_words(result, one.treatment)), {})
        row[one.channel] = _cell(dsr, one.estimates[dsr.key])
    empty = ("", "")
    matrix = [
        {"generator": generator, "photo": photo, "cells": [row.get(name, empty) for name in (NO_CHANNEL, *names)]}
        for (generator, photo), row in found.items()
    ]
    return {
        "names": names,
        "matrix": sorted(matrix, key=lambda row: _place(result, str(row["generator"]))),
        "tables": {name: _table(result, result.find(role="main", channel=name), columns) for name in names},
    }


def _curves(result: AuditResult, role: str, columns: Sequence[Column]) -> dict[str, Any]:
    """A figure for each defense that has a curve, and the table of all points."""
    figures = {name: svg for name in result.defenses if (svg := dsr_curve(result, name, role)) is not None}
    points = [
        situation
        for generator in _generators(result)
        for defense in figures
        for knowledge in ("no-leak", "leak")
        for _, situation in curve_points(result, generator, defense, knowledge, role)
    ]
    there = {one.generator for one in points}
    about = [_about(result, name, at) for at, name in enumerate(_generators(result)) if name in there]
    return {"figures": figures, "generators": about, "table": _table(result, points, columns)}


def _pictures(result: AuditResult) -> dict[str, Any]:
    """The strips that tell the story, the others by generator, and how many had to be left out."""
    told = {(group, defense, knowledge, NO_CHANNEL): text for (group, defense, knowledge), text in story(result)}
    there = {one.key: one for one in strips(result)}
    first = [there[key] for key in told if key in there]
    wanted = [*first, *(one for key, one in there.items() if key not in told)]
    uris = embedded(wanted, PAGE_BYTES)

    def shown(one: Strip) -> dict[str, Any]:
        count, _, height, width = one.images.shape
        return {"image": uris[one.key], "count": count, "ratio": round(width / height, 4), "label": one.label,
                "group": heading(result, one.group), "edits": result.edits[:count]}  # fmt: skip

    others: dict[str, list[dict[str, Any]]] = {}
    for one in wanted[len(first) :]:
        if one.key in uris:
            others.setdefault(heading(result, one.group), []).append(shown(one))
    return {
        "story": [{**shown(one), "text": told[one.key]} for one in first if one.key in uris],
        "others": others,
        "left_out": len(wanted) - len(uris),
    }


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as pairs of a dotted name and a value."""
    pairs: list[tuple[str, str]] = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{prefix}{name}.")
        else:
            pairs.append((prefix + str(name), str(value)))
    return pairs
