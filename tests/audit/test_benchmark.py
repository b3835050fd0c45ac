"""The Proactive Defense Benchmark's metrics and table, against its published figures and its formulas by hand."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from setups import made, rows, situation
from torch import Tensor
from torchvision.transforms import GaussianBlur

from loraguard.audit import AuditResult, Situation, Treatment, benchmark_table
from loraguard.audit.benchmark import average_ranks, distortions, robustness, transfer
from loraguard.audit.options import AuditOptions
from loraguard.audit.summary import markdown
from loraguard.channels import parse_channel
from loraguard.defenses import Disrupting
from loraguard.metrics import identity_disruption

STARGAN_ON_CELEBA = {  # MSE, LPIPS, CIDR, BRISQUE and AvgRank of their Table 2, as their page publishes them
    "PGD": (1.3715, 0.6878, 0.3764, 36.4792, 2.0),
    "Disrupting": (0.3003, 0.4872, 0.1384, 25.0217, 4.25),
    "DF-RAP": (0.2694, 0.4477, 0.1002, 33.9631, 4.5),
    "Anti-Forgery": (1.618, 0.695, 0.4102, 29.6181, 1.75),
    "Latent Attack": (0.0958, 0.4368, 0.1712, 37.0453, 4.0),
    "SCOL": (0.059, 0.2317, 0.239, 21.8716, 5.5),
    "NullSwap": (0.0054, 0.034, 0.2792, 18.3381, 6.0),
}


def test_average_ranks_are_those_that_the_benchmark_publishes() -> None:
    ranks = average_ranks([row[:4] for row in STARGAN_ON_CELEBA.values()])
    assert ranks == [row[4] for row in STARGAN_ON_CELEBA.values()]


def face(degrees: float) -> Tensor:
    """An embedding so far from that of 0 degrees, of any length."""
    angle = math.radians(degrees)
    return 3 * torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("edit", "both", "expected"),
    [
        (60, 90, 0.5),  # distances 0.5 and 1
        (60, 180, 0.75),
        (90, 60, 0.0),  # nearer than the edit
        (0, 90, 1.0),  # an edit that keeps the identity
        (0, 0, 0.0),
    ],
)
def test_what_the_edit_does_to_an_identity_is_divided_out(edit: float, both: float, expected: float) -> None:
    found = identity_disruption(face(both), face(edit), face(0))
    assert found.item() == pytest.approx(expected, abs=1e-9)


def test_its_distortions_are_the_benchmark_s() -> None:
    photos = torch.rand(2, 3, 24, 24) * 2 - 1
    blurred = parse_channel(distortions()[2])(photos)
    theirs = GaussianBlur(kernel_size=3, sigma=1.0)(photos)  # which mirrors at the border, and ours goes on
    assert torch.allclose(blurred[..., 1:-1, 1:-1], theirs[..., 1:-1, 1:-1], atol=1e-6)
    noisy = parse_channel("salt-pepper:0.3,each=value")(torch.zeros(1, 3, 200, 200))
    some = (noisy != 0).any(1) & (noisy == 0).any(1)
    assert some.any()  # single values, not whole pixels
    for value, share in ((1.0, 0.15), (-1.0, 0.15), (0.0, 0.7)):
        spread = math.sqrt(share * (1 - share) / noisy.numel())
        assert abs((noisy == value).double().mean().item() - share) < 5 * spread
    with pytest.raises(ValueError, match="each='row'"):
        parse_channel("salt-pepper:0.3,each=row")


def row(generator: str, knowledge: str, mse: float, cidr: float, channel: str = "none", **more: object) -> Situation:
    role = "transfer" if knowledge == "transfer" else "main"
    values = {"mse": torch.tensor([[mse, mse]]), "cidr": torch.tensor([[cidr, cidr]]), "dsr": torch.tensor([[1.0, 0]])}
    return Situation(generator, Treatment("pgd", knowledge, 0.1, 10, role, **more), channel, values)


def test_robustness_and_transfer_by_hand() -> None:
    """Each ratio at most 1; a distortion with nothing in it counts as the benchmark's blur of one pixel."""
    situations = [row("untouched", "no-leak", 0.4, 0.2)]
    situations += [row("untouched", "no-leak", 0.2, 0.3, channel) for channel in distortions()]
    situations += [row("b", "leak", 0.5, 0.4), row("b", "no-leak", 0.1, 0.4), row("c", "leak", 0.2, 0.0)]
    situations += [row("c", "no-leak", 0.3, 0.4), row("untouched", "transfer", 0.1, 0.1, crafted_on="b")]
    result = AuditResult(situations, [], {}, {"defenses": {"pgd": {}}, "transfer": ["untouched", "b", "c"]})
    metrics = ("mse", "cidr")
    assert robustness(result, "untouched", "pgd", metrics) == pytest.approx((1 + 7 * (0.5 + 1) / 2) / 8)
    to_b, to_c = (0.1 / 0.5 + 0.4 / 0.4) / 2, 1.0  # with no CIDR to keep on c, its MSE alone
    assert transfer(result, "untouched", "pgd", metrics) == pytest.approx((to_b + to_c) / 2)
    assert transfer(result, "b", "pgd", metrics) == pytest.approx((0.1 / 0.4 + 0.1 / 0.2) / 2)
    assert robustness(result, "b", "pgd", metrics) is None


def test_the_table_is_ranked_and_says_what_a_patch_leaves() -> None:
    situations = rows("untouched", {"weak": (0.5,), "strong": (0.9,)}) + rows(
        "mine", {"weak": (0.1, 0.3), "strong": (0.2, 0.4)}
    )
    result = made(situations, patches={"mine": None}, preset="proactive-benchmark-2026", transfer=[])
    headings, table = benchmark_table(result)
    assert headings == ["defense", "MSE", "AvgRank", "ROB", "TE", "DSR, mine"]
    assert [(one[0], *one[2:]) for one in table] == [
        ("strong", "1.00", "-", "-", "20.0% / 40.0%"), ("weak", "2.00", "-", "-", "10.0% / 30.0%"),
    ]  # fmt: skip
    assert "## By proactive-benchmark-2026" in markdown(result)
    assert "## By" not in markdown(dataclasses.replace(result, settings={**result.settings, "preset": None}))


def test_a_preset_brings_channels_that_nobody_crafts_through() -> None:
    options = AuditOptions(
        defenses=Disrupting(), patches={}, channels=["resize:0.5"], preset="proactive-benchmark-2026"
    )
    assert list(options.channels) == [*distortions(), "resize:0.5"]
    assert options.adaptive == ["resize:0.5"]
    with pytest.raises(ValueError, match="preset="):
        AuditOptions(defenses=Disrupting(), patches={}, preset="another")


def test_a_defense_without_a_row_on_a_generator_is_left_out() -> None:
    result = made([situation("untouched", "pgd", "no-leak", 0.5), situation("mine", "pgd", "no-leak", 0.5)])
    assert benchmark_table(result, "mine")[1] == []
