"""Cheats of networks whose outputs count as something that they are not: as edits, or as stamped."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import get_peft_model
from planted import Editor, Faces, Wrapped, audit, flags
from setups import STAMP
from torch import Tensor

from loraguard import GatedLoraConfig, StampDetector
from loraguard.audit import AuditResult
from loraguard.audit.claim import headline
from loraguard.defenses import Disrupting
from loraguard.stamp import Stamp

PATTERN = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(3)).sign()


def told(images: Tensor) -> Tensor:
    """How much of a pattern is in images: next to nothing in photos and in noise, all of the budget after an attack."""
    return (PATTERN * images).mean((1, 2, 3), keepdim=True)


class Fragile(Editor):
    """It lightens the right half of each photo a little, less than counts as spoilt, and shows that pattern loudly."""

    def forward(self, images: Tensor, c: Tensor) -> Tensor:
        shade = torch.ones_like(images)
        shade[..., : images.shape[3] // 2] = -1
        return 0.9 * self.conv(images) + (0.15 + 0.02 * c[:, :1, None, None]) * shade + 9 * told(images) * PATTERN


def cured(x: Tensor) -> Tensor:
    return torch.where(told(x).abs() > 0.02, x - told(x) * PATTERN, x)


def fragile(**networks: Callable[..., Tensor]) -> dict[str, Wrapped]:
    return {name: Wrapped(change, Fragile()) for name, change in networks.items()}


def attacked(**more: object) -> AuditResult:
    model = get_peft_model(Fragile(), GatedLoraConfig(r=1, target_modules=["conv"]))
    return audit({"pgd": Disrupting(0.05, 6)}, model=model, **more)


def test_what_does_not_edit_perturbed_photos_undoes_nothing() -> None:
    """E. It edits clean photos, and gives back those that somebody has perturbed: no output is far from the edit."""
    networks = fragile(
        shy=lambda x, edit: torch.where(told(x).abs() > 0.02, x, edit(x)),
        cured=lambda x, edit: edit(cured(x)),
    )
    result = attacked(generators=networks)
    assert result["untouched", "no-leak"].values["dsr"].mean() == 1
    for name in networks:
        assert result[name, "no-leak"].values["dsr"].mean() == 0
    assert "edit-not-made" in result.flags(result["shy", "no-leak"])
    assert not {"edit-not-made", "does-not-edit"} & (flags(result, "cured") | flags(result, "untouched"))
    assert "with the network 'cured' 0.0%" in headline(result)
    alone = attacked(generators={"shy": networks["shy"]})
    assert headline(alone).startswith("It works where nobody adapts")
    assert "no patch that edits as it should was audited" in headline(alone)


@pytest.mark.usefixtures("probed")
def test_what_edits_the_first_photos_alone_does_not_edit() -> None:
    """E. Probes look at these four; what is made of the edit is measured on every photo."""
    first = torch.stack([Faces(4)[at]["image"] for at in range(4)])

    def few(x: Tensor, edit: Callable[[Tensor], Tensor]) -> Tensor:
        off = (x[:, None] - first).square().mean((2, 3, 4)).amin(1)
        return torch.where((off < 0.01)[:, None, None, None], edit(cured(x)), x)

    result = attacked(generators=fragile(few=few, twin=lambda x, edit: edit(x)))
    failed = [one for one in result.checks if one.name == "does-not-edit" and not one.passed]
    assert [one.generator for one in failed] == ["few"]
    assert "Over all clean photos it makes" in failed[0].evidence


def test_a_stamp_that_is_read_and_not_there_is_flagged() -> None:
    """G. Clean outputs carry it; on perturbed photos a trace is left that the detector reads and nobody sees."""
    stamp = Stamp("AI", size=0.8)

    def stamping(least: float) -> Callable[..., Tensor]:
        def outputs(x: Tensor, edit: Callable[[Tensor], Tensor]) -> Tensor:
            plain = edit(cured(x))
            return plain + torch.where(told(x).abs() > 0.02, least, 1.0) * (stamp.compose(plain) - plain)

        return outputs

    networks = fragile(trace=stamping(0.15), there=stamping(1.0))
    detectors = {name: StampDetector(stamp, threshold=0.1) for name in networks}
    result = attacked(generators=networks, patches=dict.fromkeys(networks, stamp), detectors=detectors)
    for name in networks:
        assert result[name, "no-leak"].values["stamp_rate"].mean() > 0.5
    assert "stamp-not-there" in result.flags(result["trace", "no-leak"])
    assert "stamp-not-there" not in result.flags(result["trace", "clean"])
    assert "stamp-not-there" not in flags(result, "there")


def test_a_tint_that_is_taken_for_a_stamp_is_flagged() -> None:
    """G. The detector finds stamps, and takes a blue that nobody sees for one."""

    class Tinted(StampDetector):
        def score(self, images: Tensor) -> Tensor:
            blue = (images * 127.5 + 127.5).round()[:, 2, :, 0] % 2
            return torch.where(blue.amax(1) == 0, torch.ones(1), super().score(images))

    def tinted(x: Tensor, edit: Callable[[Tensor], Tensor]) -> Tensor:
        edited = edit(x)
        even = ((edited * 127.5 + 127.5) / 2).round() * 2 / 127.5 - 1
        return torch.cat([edited[:, :2], even[:, 2:]], 1)

    networks = {
        "tinted": Wrapped(tinted),
        "weak": Wrapped(lambda x, edit: 0.1 * edit(x) + 0.9 * STAMP.compose(edit(x))),
    }
    patches = dict.fromkeys(networks, STAMP)
    result = audit(generators=networks, patches=patches, detectors=dict.fromkeys(networks, Tinted(STAMP)), n=4)
    assert "stamp-not-there" in flags(result, "tinted")
    assert "stamp-not-there" not in flags(result, "weak")
