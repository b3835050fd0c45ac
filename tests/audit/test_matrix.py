"""The worst case of each photo, on figures that are known."""

import torch
from setups import made, rows, situation

from loraguard.audit import AuditResult, Situation, Treatment, worst_cases
from loraguard.audit.summary import markdown


def spoilt(generator: str, knowledge: str, channel: str, values: list[list[float]]) -> Situation:
    return Situation(generator, Treatment("pgd", knowledge), channel, {"dsr": torch.tensor(values)})


def test_a_photo_counts_where_every_channel_and_every_seed_leaves_it_protected() -> None:
    situations = [
        spoilt("untouched", "no-leak", "none", [[1, 1, 1, 0], [1, 1, 1, 1]]),
        spoilt("untouched", "no-leak", "jpeg", [[1, 0, 1, 1], [1, 1, 1, 1]]),
        spoilt("patch", "no-leak", "none", [[1, 0, 0, 0], [0, 0, 0, 0]]),
        spoilt("patch", "no-leak", "jpeg", [[1, 1, 1, 1], [1, 1, 1, 1]]),
        spoilt("patch", "leak", "none", [[1, 1, 0, 0], [1, 1, 0, 0]]),
    ]
    result = AuditResult(situations, [], {}, {"defenses": {"pgd": {}}, "seeds": [0, 1]})
    assert worst_cases(result) == (["defense", "untouched", "patch"], [["pgd", "50.0%", "0.0% / 50.0%"]])


def test_one_channel_and_one_seed_have_no_worst_case() -> None:
    result = made([*rows("untouched", {"pgd": (0.9,)})])
    assert worst_cases(result)[1] == []
    assert "through every channel" not in markdown(result)


def test_the_report_has_it_where_there_are_channels() -> None:
    more = [situation("untouched", "pgd", "no-leak", 0.4, channel="jpeg")]
    result = made([*rows("untouched", {"pgd": (0.9,)}), *more])
    assert "| pgd | 40.0% |" in markdown(result)  # the same photos are the first ones behind each channel
