"""Several defenses against several generators at a glance: one metric, at one number of steps and along curves."""

from __future__ import annotations

import torch

from loraguard.metrics import estimate

from .figures import curve_points
from .glossary import COLUMNS
from .result import AuditResult
from .situation import NO_CHANNEL


def matrix(result: AuditResult, metric: str = "dsr", channel: str = NO_CHANNEL) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: defenses against each generator, without a leak / with it.

    The first two rows are the controls: photos as they are, and random noise.

    Args:
        result: of an audit.
        metric: one of its metrics.
        channel: what photos went through, by name; behind one, a third figure is of a defense that knows of it (the
            second is "-" where nothing was leaked as there is no patch).

    Example:
        >>> import torch
        >>> from loraguard.audit import Treatment, Situation
        >>> values = {"dsr": torch.tensor([[1.0, 0.0]])}
        >>> situations = [Situation(name, Treatment("pgd", knowledge), "none", values)
        ...               for name, knowledge in (("untouched", "no-leak"), ("mine", "no-leak"), ("mine", "leak"))]
        >>> matrix(AuditResult(situations, [], {}, {}))
        (['defense', 'untouched', 'mine'], [['pgd', '50.0%', '50.0% / 50.0%']])
    """
    column = next(one for one in COLUMNS if one.key == metric)
    found = {
        (one.treatment.defense, one.treatment.eps, one.generator, one.treatment.knowledge): column.text(
            one.estimates[metric]
        )
        for one in result.find(role="main", channel=channel)
    }
    defenses = dict.fromkeys((defense, eps) for defense, eps, _, _ in found)
    generators = list(dict.fromkeys(generator for _, _, generator, _ in found))
    rows = []
    for defense, eps in defenses:
        cells = []
        for generator in generators:
            states = ("clean", "noise", "no-leak", "leak", "leak+channel")
            there = {one: found[key] for one in states if (key := (defense, eps, generator, one)) in found}
            if "leak+channel" in there and "leak" not in there:
                there = {"no-leak": there["no-leak"], "leak": "-", "leak+channel": there["leak+channel"]}
            cells.append(" / ".join(there.values()))
        names = {"none": "(photo as it is)", "noise": "(random noise)"}
        rows.append([names.get(defense, defense), *cells])
    return ["defense", *generators], rows


def worst_cases(result: AuditResult) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: the share of photos that each defense protects whatever happens to them, no leak / leak.

    A photo counts where its edit is spoilt through every channel, without one too, and under every seed: whoever holds
    it takes the channel that suits them. The means of rows say less, as other photos fail behind each channel.

    Args:
        result: of an audit.

    Returns:
        No rows where there is one channel and one seed alone, and the figures are those of the table.

    Example:
        >>> import torch
        >>> from loraguard.audit import Situation, Treatment
        >>> spoilt = {"none": [1.0, 1.0, 0.0], "jpeg": [1.0, 0.0, 1.0]}
        >>> situations = [Situation("untouched", Treatment("pgd", "no-leak"), channel, {"dsr": torch.tensor([values])})
        ...               for channel, values in spoilt.items()]
        >>> worst_cases(AuditResult(situations, [], {}, {"defenses": {"pgd": {}}, "seeds": [0]}))
        (['defense', 'untouched'], [['pgd', '33.3%']])
    """
    column = next(one for one in COLUMNS if one.key == "dsr")
    generators = list(dict.fromkeys(one.generator for one in result.situations))
    several = len(result.settings["seeds"]) > 1
    rows = []
    for defense in result.defenses:
        cells = []
        for generator in generators:
            shares = []
            for knowledge in ("no-leak", "leak"):
                there = result.find(role="main", generator=generator, defense=defense, knowledge=knowledge)
                several |= len(there) > 1
                if there:
                    everywhere = torch.cat([one.values["dsr"] for one in there]).amin(0)
                    shares.append(column.text(estimate(everywhere, share=True)))
            cells.append(" / ".join(shares))
        rows.append([defense, *cells])
    return ["defense", *generators], rows if several else []


def curves(result: AuditResult, role: str, metric: str = "dsr") -> tuple[list[str], list[list[str]]]:
    """Headings and rows: each defense against each generator along a curve, without a leak / with it.

    Args:
        result: of an audit.
        role: "budget" for curves over `eps`, "steps" for those over `steps`.
        metric: one of its metrics.

    Returns:
        A defense's own budget or number of steps is among the points; no rows where no defense has a curve.

    Example:
        >>> import torch
        >>> from loraguard.audit import Treatment, Situation
        >>> situations = [Situation("untouched", Treatment("pgd", "no-leak", 0.1, steps, role), "none",
        ...                         {"dsr": torch.tensor([[1.0, float(steps > 10)]])})
        ...               for steps, role in ((10, "main"), (100, "steps"))]
        >>> curves(AuditResult(situations, [], {}, {"defenses": {"pgd": {}}}), "steps")
        (['defense', 'generator', '10', '100'], [['pgd', 'untouched', '50.0%', '100.0%']])
    """
    column = next(one for one in COLUMNS if one.key == metric)
    found: dict[tuple[str, str], dict[float, list[str]]] = {}
    for defense in result.defenses:
        for generator in dict.fromkeys(one.generator for one in result.situations):
            for knowledge in ("no-leak", "leak"):
                for at, one in curve_points(result, generator, defense, knowledge, role):
                    points = found.setdefault((defense, generator), {})
                    points.setdefault(at, []).append(column.text(one.estimates[metric]))
    ats = sorted({at for points in found.values() for at in points})
    rows = [[*names, *(" / ".join(points.get(at, [])) for at in ats)] for names, points in found.items()]
    return ["defense", "generator", *(f"{at:g}" for at in ats)], rows
