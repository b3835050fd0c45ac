"""Several defenses against several generators at a glance: one metric, a row for each defense."""

from __future__ import annotations

from .result import AuditResult
from .situation import NO_CHANNEL
from .words import COLUMNS


def matrix(result: AuditResult, metric: str = "dsr", channel: str = NO_CHANNEL) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: defenses against each generator, without a leak / with it.

    The first two rows are the controls: photos as they are, and random noise.

    Args:
        result: of an audit.
        metric: one of its metrics.
        channel: what photos went through, by name; behind one, a third figure is of a defense that knows of it.

    Example:
        >>> import torch
        >>> from loraguard.audit import Photo, Situation
        >>> values = {"dsr": torch.tensor([[1.0, 0.0]])}
        >>> situations = [Situation(name, Photo("pgd", knowledge), "none", values)
        ...               for name, knowledge in (("untouched", "no-leak"), ("mine", "no-leak"), ("mine", "leak"))]
        >>> matrix(AuditResult(situations, [], {}, {}))
        (['defense', 'untouched', 'mine'], [['pgd', '50.0%', '50.0% / 50.0%']])
    """
    column = next(one for one in COLUMNS if one.key == metric)
    found = {
        (one.photo.defense, one.photo.eps, one.generator, one.photo.knowledge): column.text(one.estimates[metric])
        for one in result.find(role="main", channel=channel)
    }
    defenses = dict.fromkeys((defense, eps) for defense, eps, _, _ in found)
    generators = list(dict.fromkeys(generator for _, _, generator, _ in found))
    rows = []
    for defense, eps in defenses:
        cells = []
        for generator in generators:
            looks = ("clean", "noise", "no-leak", "leak", "leak+channel")
            cells.append(" / ".join(found[key] for look in looks if (key := (defense, eps, generator, look)) in found))
        names = {"none": "(photo as it is)", "noise": "(random noise)"}
        rows.append([names.get(defense, defense), *cells])
    return ["defense", *generators], rows
