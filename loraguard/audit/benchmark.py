"""The table of the Proactive Defense Benchmark from an audit's figures, with what a patch leaves of it.

The benchmark (Baek et al., ICML 2026, proactivedefensebenchmark.github.io) ranks defenses by four metrics of outputs on
photos that were crafted on the very generator, and adds two scores. With `m(d, T)` a metric's mean on generator T for
photos that went through distortion d:

    ROB(S) = mean over d, then over metrics m, of min(1, m(d, S) / m(S))
    TE(S)  = mean over T other than S, then over metrics m, of min(1, m(S -> T) / m(T -> T))

where `S -> T` is crafted on S and judged on T. AvgRank is the mean of a defense's ranks, 1 for the largest figure.
The formulas are those of the benchmark's published code (`robustness_evaluation.py`, `transferability_evaluation.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

from scipy.stats import rankdata

from .glossary import COLUMNS
from .names import PRESETS
from .result import AuditResult
from .situation import NO_CHANNEL, UNTOUCHED, Situation

METRICS = ("mse", "lpips", "cidr", "brisque")
"""By which defenses are ranked, as far as they were measured; of each the larger figure is the better defense."""


def benchmark_table(result: AuditResult, generator: str = UNTOUCHED) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: each defense by the metrics of the Proactive Defense Benchmark, and what a patch leaves of it.

    Metrics that were not measured are left out, of the ranks as well. The last columns are this package's own: the DSR
    on each other generator, without a leak / with it.

    Args:
        result: of an audit with `preset="proactive-benchmark-2026"`; of one without it, where it lacks a figure, "-".
        generator: which one defenses are judged on.

    Returns:
        Rows by average rank, the best defense first.
    """
    defenses = [name for name in result.defenses if white_box(result, generator, name) is not None]
    rows = {name: white_box(result, generator, name) for name in defenses}
    metrics = [name for name in METRICS if all(row is not None and name in row.values for row in rows.values())]
    ranks = average_ranks([[_mean(rows[name], metric) for metric in metrics] for name in defenses])
    shown = {column.key: column for column in COLUMNS}
    others = [name for name in dict.fromkeys(one.generator for one in result.situations) if name != generator]
    table = []
    for rank, name in sorted(zip(ranks, defenses, strict=True)):
        figures = [shown[metric].number(_mean(rows[name], metric)) for metric in metrics]
        scores = [robustness(result, generator, name, metrics), transfer(result, generator, name, metrics)]
        left = [_left(result, other, name) for other in others]
        table.append([name, *figures, f"{rank:.2f}", *("-" if one is None else f"{one:.3f}" for one in scores), *left])
    headings = ["defense", *(shown[metric].heading for metric in metrics), "AvgRank", "ROB", "TE"]
    return [*headings, *(f"DSR, {other}" for other in others)], table


def average_ranks(figures: Sequence[Sequence[float]]) -> list[float]:
    """Each row's mean rank over the columns, 1 for the largest figure; equal ones share the mean of their ranks.

    Example:
        >>> average_ranks([[0.3, 10.0], [0.1, 30.0], [0.2, 20.0]])
        [2.0, 2.0, 2.0]
    """
    columns = zip(*([-value for value in row] for row in figures), strict=True)
    by_column = [rankdata(column) for column in columns]
    return [float(sum(column[at] for column in by_column) / max(len(by_column), 1)) for at in range(len(figures))]


def robustness(result: AuditResult, generator: str, defense: str, metrics: Sequence[str]) -> float | None:
    """ROB: how much of a defense's figures is left behind the benchmark's distortions; None where none was tried.

    Of the eight distortions one, `blur1`, blurs with a kernel of one pixel, which changes nothing: the row without a
    channel stands for it.
    """
    base = white_box(result, generator, defense)
    behind = [white_box(result, generator, defense, channel) for channel in distortions()]
    there = [row for row in behind if row is not None]
    if base is None or not there or not metrics:
        return None
    return _average([_kept(row, base, metrics) for row in [base, *there]])


def transfer(result: AuditResult, generator: str, defense: str, metrics: Sequence[str]) -> float | None:
    """TE: how much of what is crafted on the others itself a defense does when it is crafted on this generator.

    Over the generators that the audit's `transfer` names; None where there is none, or photos are not crafted anew.
    """
    shares = []
    for other in result.settings.get("transfer", ()):
        own, carried = white_box(result, other, defense), carried_over(result, generator, other, defense)
        if other != generator and own is not None and carried is not None:
            shares.append(_kept(carried, own, metrics))
    return _average(shares) if shares and metrics else None


def white_box(result: AuditResult, generator: str, defense: str, channel: str = NO_CHANNEL) -> Situation | None:
    """A defense that was crafted on the very generator on which it is judged."""
    knowledge = "no-leak" if generator == UNTOUCHED else "leak"
    found = result.find(role="main", generator=generator, defense=defense, knowledge=knowledge, channel=channel)
    return found[0] if found else None


def carried_over(result: AuditResult, source: str, generator: str, defense: str) -> Situation | None:
    """A defense that was crafted on one generator and is judged on another."""
    wanted = {"generator": generator, "defense": defense, "channel": NO_CHANNEL}
    if source == UNTOUCHED:
        found = result.find(role="main", knowledge="no-leak", **wanted)
    else:
        found = result.find(role="transfer", crafted_on=source, **wanted)
    return found[0] if found else None


def distortions() -> tuple[str, ...]:
    """The channels of the benchmark."""
    return PRESETS["proactive-benchmark-2026"]


def _kept(row: Situation, base: Situation, metrics: Sequence[str]) -> float:
    """The mean over metrics of what a row keeps of another; where that has no CIDR, there is none to keep."""
    kept = []
    for metric in metrics:
        value, of = _mean(row, metric), _mean(base, metric)
        if of > 0 or metric != "cidr":
            kept.append(min(1.0, value / of) if of > 0 else 0.0)
    return _average(kept)


def _average(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _mean(row: Situation | None, metric: str) -> float:
    """A metric's mean over the images that have one."""
    found = None if row is None else row.estimates[metric].mean
    return 0.0 if found is None else found


def _left(result: AuditResult, generator: str, defense: str) -> str:
    """The DSR on another generator, without a leak / with it."""
    shown = next(column for column in COLUMNS if column.key == "dsr")
    rows = [result.find(role="main", generator=generator, defense=defense, knowledge=one, channel=NO_CHANNEL)
            for one in ("no-leak", "leak")]  # fmt: skip
    return " / ".join(shown.text(found[0].estimates["dsr"]) for found in rows if found)
