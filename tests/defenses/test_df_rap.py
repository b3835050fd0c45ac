"""DF-RAP: its objective in closed form, its qualities against the release's histogram."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor, nn

from loraguard.channels import JPEG
from loraguard.defenses import DFRAP, Disrupting
from loraguard.defenses.df_rap import QUALITIES, SocialJPEG
from loraguard.describing import describe


@dataclass(frozen=True)
class Halve:
    """A channel that halves every value, with a stand-in of its own."""

    stand_in: bool = False

    def __call__(self, images: Tensor) -> Tensor:
        return images / 2 if self.stand_in else images.detach() / 2

    def differentiable(self) -> Halve:
        return Halve(stand_in=True)


def test_the_distance_is_from_the_output_without_the_channel() -> None:
    """|(x + d) / 2 - x|^2 is largest at d = -eps for x > 0; from G(C(x)) either sign would do."""
    photos = (torch.rand(2, 3, 8, 8) + 0.2) * torch.sign(torch.randn(2, 3, 8, 8)) * 0.8
    defended = DFRAP(0.05, channel=Halve())(nn.Identity(), photos, {})
    assert torch.allclose(defended, photos - 0.05 * photos.sign())


def test_without_a_channel_it_is_disrupting(faces) -> None:
    @dataclass(frozen=True)
    class Nothing:
        def __call__(self, images: Tensor) -> Tensor:
            return images

        def differentiable(self) -> Nothing:
            return self

    generator, photos = nn.Conv2d(3, 3, 3, padding=1), torch.stack([face["image"] for face in faces])
    runs = []
    for defense in (DFRAP(steps=3, channel=Nothing()), Disrupting(steps=3)):
        torch.manual_seed(0)
        runs.append(defense(generator, photos, {}))
    assert torch.equal(*runs)


def test_qualities_follow_the_histogram() -> None:
    n = 20_000
    drawn = SocialJPEG().qualities(n)
    counts = [(drawn == quality).sum().item() for quality in QUALITIES]
    assert sum(counts) == n
    total = sum(QUALITIES.values())
    assert total == pytest.approx(1, abs=1e-3)
    assert chisquare(counts, [n * share / total for share in QUALITIES.values()]).pvalue > 1e-3
    commonest = sorted(QUALITIES, key=QUALITIES.__getitem__)[-4:]
    assert sorted(commonest) == [80, 85, 92, 100]


def test_each_image_is_compressed_at_its_own_quality(monkeypatch: pytest.MonkeyPatch, faces) -> None:
    photo = faces[0]["image"]
    monkeypatch.setattr(SocialJPEG, "qualities", lambda self, n: torch.tensor([71, 100]))
    poor, good = SocialJPEG().differentiable()(torch.stack([photo, photo]))
    assert (poor - photo).square().mean() > 2 * (good - photo).square().mean()


def test_what_survives_jpeg(faces) -> None:
    """Behind the real codec, of which neither defense has seen a gradient, DF-RAP does more damage than Disrupting."""
    photos = torch.stack([face["image"] for face in faces][:4])
    damage = {}
    for name, defense in {"df-rap": DFRAP(), "disrupting": Disrupting()}.items():
        torch.manual_seed(0)
        shown = JPEG(80)(defense(nn.Identity(), photos, {}))
        damage[name] = (shown - photos).square().mean()
    assert damage["df-rap"] > damage["disrupting"]


def test_a_report_says_which_channel() -> None:
    assert describe(DFRAP())["channel"] == {"class": "SocialJPEG", "quality": 71, "highest": 100}
