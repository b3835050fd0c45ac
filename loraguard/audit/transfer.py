"""What is left of a defense where its photos meet another generator than the one that they were crafted on."""

from __future__ import annotations

from .benchmark import carried_over, white_box
from .glossary import COLUMNS
from .result import AuditResult
from .situation import Situation


def transferred(result: AuditResult, defense: str, source: str, generator: str) -> Situation | None:
    """A defense that was crafted on `source` and is judged on `generator`; None where nobody tried it."""
    if source == generator:
        return white_box(result, generator, defense)
    return carried_over(result, source, generator, defense)


def transfer_matrix(result: AuditResult, defense: str, metric: str = "dsr") -> tuple[list[str], list[list[str]]]:
    """Headings and rows of a defense's transfer matrix: crafted on the row's generator, judged on the column's.

    Args:
        result: of an audit with `transfer=`.
        defense: by its name.
        metric: one of the audit's.

    Returns:
        In each cell the mean and its 95% interval; no rows without a matrix. A source on which the defense is not
        crafted anew has none.

    Example:
        >>> import torch
        >>> from loraguard.audit import Treatment
        >>> def row(generator, knowledge, *spoilt, **more):
        ...     values = {"dsr": torch.tensor([spoilt])}
        ...     return Situation(generator, Treatment("pgd", knowledge, **more), "none", values)
        >>> situations = [row("untouched", "no-leak", 1.0, 1.0), row("mine", "no-leak", 0.0, 0.0),
        ...               row("mine", "leak", 1.0, 0.0),
        ...               row("untouched", "transfer", 0.0, 1.0, role="transfer", crafted_on="mine")]
        >>> result = AuditResult(situations, [], {}, {"transfer": ["untouched", "mine"]})
        >>> transfer_matrix(result, "pgd")[1][1]
        ['mine', '50.0% (1.3% – 98.7%)', '50.0% (1.3% – 98.7%)']
    """
    column = next(one for one in COLUMNS if one.key == metric)
    names = list(result.settings.get("transfer", ()))
    rows = []
    for source in names:
        found = [transferred(result, defense, source, name) for name in names]
        if any(one is not None for one in found):
            cells = ["-" if one is None else column.with_interval(one.estimates[metric]) for one in found]
            rows.append([source, *cells])
    return ["crafted on", *names], rows
