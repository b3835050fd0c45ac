"""Tables of `diffusion.py`, in Markdown, from its audits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from loraguard.audit import AuditResult
from loraguard.audit.paired import paired_difference
from loraguard.audit.situation import NO_CHANNEL, Situation
from loraguard.audit.transfer import transferred
from loraguard.metrics import Estimate

NAMES = {"untouched": "untouched", "cat": "CAT", "cat-long": "CAT, equal time"}


def shown_name(key: str) -> str:
    """What the page calls a generator: "ours: encoder + decoder"."""
    return NAMES.get(key, key.replace("ours-", "ours: ").replace("-and-", " + "))


def interval(found: Estimate, form: Callable[[float], str]) -> str:
    """A mean with its 95% interval."""
    if found.mean is None:
        return "the same"
    if found.low is None or found.high is None:
        return form(found.mean)
    return f"{form(found.mean)} ({form(found.low)} – {form(found.high)})"


def thousandths(value: float) -> str:
    """An MSE, in thousandths."""
    return f"{1000 * value:.1f}"


def rows_of(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def adapters_table(audit: AuditResult, trained: dict[str, dict[str, Any]]) -> str:
    """What each adapter is, what it took, and what it leaves of clean outputs."""
    rows = []
    for key, about in trained.items():
        clean = audit[key, "clean"].estimates["psnr"]
        rows.append([shown_name(key), f"{about['parameters']:,}", str(about["steps"]), f"{about['seconds']:.0f}",
                     interval(clean, lambda value: f"{value:.1f}")])  # fmt: skip
    return rows_of(["adapter", "parameters", "steps", "processor s", "clean PSNR, dB"], rows)


def protections_table(audit: AuditResult, defenses: Sequence[str], keys: Sequence[str]) -> str:
    """MSE of each protection on each generator, without a leak and with it."""
    return _table(audit, keys, [("none", "clean"), ("noise", "noise")], defenses, ("no-leak", "leak"))


def transfer_table(
    audit: AuditResult, carried: Sequence[str], defense: str, sources: Sequence[str], keys: Sequence[str]
) -> str:
    """MSE of what was crafted elsewhere: of the rows that are carried as they are, or of a defense on each source."""
    if carried:
        return _table(audit, keys, [(one, "no-leak") for one in carried], (), ())
    rows = [
        [shown_name(source), *(_cell(transferred(audit, defense, source, key)) for key in keys)] for source in sources
    ]
    return rows_of([f"{defense}, crafted on", *(shown_name(key) for key in keys)], rows)


def purifiers_table(audit: AuditResult, defense: str, channels: dict[str, str], keys: Sequence[str]) -> str:
    """MSE of the plain photo and of a protection behind each purifier."""
    rows = []
    for title, channel in {"none": NO_CHANNEL, **channels}.items():
        for words, wanted in (("plain", {"knowledge": "clean"}), ("no leak", {"knowledge": "no-leak"}),
                              ("leak", {"knowledge": "leak"})):  # fmt: skip
            found = [audit.find(generator=key, channel=channel, role="main", **wanted) for key in keys]
            cells = [_cell(one[0] if one else None) for one in found]
            rows.append([title if words == "plain" else "", words, *cells])
    return rows_of(["purifier", defense, *(shown_name(key) for key in keys)], rows)


def comparison_table(audit: AuditResult, defenses: Sequence[str], ours: str, theirs: Sequence[str]) -> str:
    """What GATED_LORA has less of than CAT, paired over photos: above 0 it is the better one."""
    rows = []
    for other in theirs:
        for defense in defenses:
            cells = []
            for knowledge in ("no-leak", "leak"):
                a, b = (audit[key, knowledge, defense].values["mse"] for key in (other, ours))
                cells.append(interval(paired_difference(a, b), lambda value: f"{1000 * value:+.1f}"))
            rows.append([shown_name(other), defense, *cells])
    return rows_of([f"MSE more than {shown_name(ours)}", "protection", "no leak", "leak"], rows)


def _table(
    audit: AuditResult, keys: Sequence[str], controls: Sequence[tuple[str, str]], defenses: Sequence[str],
    knowledge: Sequence[str],
) -> str:  # fmt: skip
    words = {"clean": "(photo as it is)", "noise": "(random noise)"}
    rows = []
    for defense, how in [*controls, *((one, how) for one in defenses for how in knowledge)]:
        found = [audit.find(generator=key, channel=NO_CHANNEL, role="main", defense=defense, knowledge=how)
                 for key in keys]  # fmt: skip
        cells = [_cell(one[0] if one else None) for one in found]
        rows.append([words.get(how, defense), how if how in knowledge else "", *cells])
    return rows_of(["protection", "", *(shown_name(key) for key in keys)], rows)


def _cell(found: Situation | None) -> str:
    return "" if found is None else interval(found.estimates["mse"], thousandths)
