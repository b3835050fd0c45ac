"""Cheats of channels and with what is drawn, and networks and channels that write on what they are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest
import torch
from limits import short_probes
from planted import Editor, Faces, Wrapped, audit, flags, returning
from setups import made, situation
from torch import Tensor, nn

from loraguard.audit.channel_probes import probe_channel
from loraguard.audit.checks import examine
from loraguard.audit.photos import Batch
from loraguard.channels import Channel, parse_channel

HONEST = ("blur:0.5", "jpeg:75", "webp:75", "noise:0.02", "median", "unsharp", "salt-pepper", "crop:0.9")


@dataclass(frozen=True)
class Sends:
    """A channel that does this, and whose stand-in in attacks does that."""

    change: Callable[[Tensor], Tensor]
    stand_in: Callable[[Tensor], Tensor] | None = None

    def __call__(self, images: Tensor) -> Tensor:
        return self.change(images)

    def differentiable(self) -> Sends:
        return Sends(self.stand_in or self.change)


@pytest.mark.usefixtures("probed")
def test_a_network_or_channel_that_works_in_place_changes_no_other_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """B. Both halve the very photos that they are given; the others' figures are as without them."""
    short_probes(monkeypatch)
    grey = Wrapped(lambda x, edit: edit(x.mul_(0.5) if not x.requires_grad else 0.5 * x))
    channels = {"grey": Sends(lambda x: x.mul_(0.5)), "darker": Sends(lambda x: x - 0.1)}
    result = audit(generators={"grey": grey, "twin": Editor()}, channels=channels, adaptive_channels=False, n=4)
    alone = audit(generators={"twin": Editor()}, channels={"darker": channels["darker"]}, adaptive_channels=False, n=4)
    for row in alone.situations:
        (same,) = result.find(generator=row.generator, channel=row.channel, **row.treatment.fields())
        assert torch.equal(same.values["mse"], row.values["mse"])
        assert torch.equal(same.values["photo_linf"], row.values["photo_linf"])
    assert not flags(result, "twin") & {"does-not-edit", "depends-on-the-batch", "outputs-not-repeatable"}
    assert "channel-does-nothing" not in flags(result)


def test_what_a_defense_draws_says_nothing_of_what_a_channel_draws() -> None:
    """B. From one seed a defense would know a channel's noise, and add to it; the noise of the control would too."""
    drawn: dict[str, list[Tensor]] = {"defense": [], "channel": []}

    def draws(who: str, images: Tensor) -> Tensor:
        drawn[who].append(torch.randn(4))
        return images + 0.0

    defense = returning(lambda x: draws("defense", x))
    audit({"one": defense}, channels={"noise": Sends(lambda x: draws("channel", x))}, adaptive_channels=False)
    assert len(drawn["channel"]) >= 3 * len(drawn["defense"]) >= 3  # photos as they are, noise, and the defense's
    assert not any(torch.equal(a, b) for a in drawn["defense"] for b in drawn["channel"])


def test_channels_that_remember_or_hide_are_flagged() -> None:
    """D, E. Purifiers that know the photos, and stand-ins whose gradient is cut or turned round.

    Honest ones, of which two have stand-ins, are silent.
    """
    every = torch.stack([Faces(6)[at]["image"] for at in range(6)])
    known, calls = every[:4], count()

    def nearest(x: Tensor) -> Tensor:
        return known[(x[:, None] - known[None]).abs().amax((2, 3, 4)).argmin(1)]

    def near_alone(x: Tensor) -> Tensor:
        off = (x - nearest(x)).abs().amax((1, 2, 3), keepdim=True)
        return torch.where(off < 0.15, nearest(x), x) + 0.02

    channels: dict[str, Channel] = {
        "only-known-photos: memory": Sends(lambda x: nearest(x) + 0 * x),
        "only-known-photos: near": Sends(near_alone),
        "gradients-do-not-fit: cut": Sends(lambda x: x.roll(1, 3), lambda x: x.detach() + 0 * x),
        "gradients-do-not-fit: reversed": Sends(lambda x: x.roll(1, 3), lambda x: -x.roll(1, 3)),
        "gradients-do-not-fit: rows": Sends(torch.neg, lambda x: -torch.cat([x[:4], x[4:].detach()])),
        "depends-on-the-batch: places": Sends(lambda x: -every if len(x) == 6 else -x),
        "outputs-not-repeatable: wears off": Sends(lambda x: x * (0.9 if next(calls) % 2 else 0.8)),
        **{spec: parse_channel(spec) for spec in HONEST},
    }
    batch, whole = (Batch(0, some, {}, ["paint"] * len(some), {}) for some in (known, every))
    for name, channel in channels.items():
        crafted_through = "wears" not in name
        checks = probe_channel(name, channel, batch, ["untouched"], crafted_through, whole)
        failed = [one for one in checks if not one.passed]
        assert {one.name for one in failed} == ({name.partition(": ")[0]} if ": " in name else set()), name
        assert {one.channel for one in failed} <= {name}


def test_photos_that_are_crafted_through_a_channel_are_looked_at_as_well() -> None:
    """B. Without a channel it hardly moves photos; where it is told of one, it moves them by all that they can be."""

    def told(generator: nn.Module, images: Tensor, condition: Any, clean: Any = None) -> Tensor:
        return (images + 0.01).clamp(-1, 1) if isinstance(generator, Editor) else images.sign()

    told.eps = 0.05  # type: ignore[attr-defined]
    told.budget = "whatever it takes"  # type: ignore[attr-defined]
    result = audit({"told": told}, channels={"darker": Sends(lambda x: 0.9 * x)}, model=Editor(), n=4)
    flagged = [row for row in result.situations if "photo-destroyed" in result.flags(row)]
    assert {(row.treatment.knowledge, row.channel) for row in flagged} == {("leak+channel", "darker")}


def test_behind_a_channel_words_are_about_the_defense() -> None:
    """D, H. Crafting through a channel spoils less than not knowing of it; or the channel spoils outputs by itself.

    One spoils those of photos as they are, one those of all photos that are rough.
    """
    known = {"jpeg": 0.1, "blur": 0.9, "grey": 1.0, "rough": 0.9}
    found = [situation("untouched", "pgd", "no-leak", 0.9, channel=one) for one in ("none", *known)]
    found += [situation("untouched", "pgd", "leak+channel", share, channel=one) for one, share in known.items()]
    found += [situation("untouched", "none", "clean", float(one == "grey"), channel=one) for one in ("none", *known)]
    found += [situation("untouched", "noise", "noise", float(one == "rough"), channel=one) for one in ("none", *known)]
    failed = {(one.name, one.channel) for one in examine(made(found)) if not one.passed}
    spoils = {("channel-spoils-outputs", one) for one in ("grey", "rough")}
    assert failed == {("transfer-beats-white-box", "jpeg")} | spoils


def test_a_defense_may_not_change_the_channel_that_it_is_told_of() -> None:
    """B. It is handed the channel, or the stand-in that other defenses are crafted through as well."""

    class Dims:
        """Its stand-in is an object of its own."""

        def __init__(self, factor: float, stand_in: Dims | None = None) -> None:
            self.factor, self.stand_in = factor, stand_in or self

        def __call__(self, images: Tensor) -> Tensor:
            return self.factor * images

        def differentiable(self) -> Dims:
            return self.stand_in

    class Meddles:
        eps = 0.1

        def __call__(self, generator: Any, images: Tensor, condition: Any, clean: Any = None) -> Tensor:
            if hasattr(generator, "channel"):
                generator.channel.factor = 1.0
            return images + 0.05 * (images < 0)

    for channel in (Dims(0.3), Dims(0.3, Dims(0.3))):
        with pytest.raises(ValueError, match=r"'meddles' changed the generator or the channel: .* behind 'dim' gives"):
            audit({"meddles": Meddles()}, channels={"dim": channel}, n=2)


def test_what_a_channel_gives_is_clipped_or_refused_by_its_name() -> None:
    """E. It does not lend a network another range; and a network is not blamed for what it was given."""
    result = audit(channels={"loud": Sends(lambda x: 3 * x), "clipped": Sends(lambda x: (3 * x).clamp(-1, 1))},
                   adaptive_channels=False, n=4)  # fmt: skip
    loud, clipped = ([row.values["mse"] for row in result.find(channel=one)] for one in ("loud", "clipped"))
    assert all(map(torch.equal, loud, clipped))
    for change, says in ((lambda x: x / 0, "not finite"), (lambda x: x[..., :8], r"\(4, 3, 16, 8\) for photos of")):
        with pytest.raises(ValueError, match=f"The channel 'broken' gives .*{says}"):
            audit(channels={"broken": Sends(change)}, adaptive_channels=False, n=4)
