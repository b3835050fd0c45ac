"""Cheats of channels and with what is drawn, and networks and channels that write on what they are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from planted import Editor, Wrapped, audit, flags, returning
from torch import Tensor


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
def test_a_network_or_channel_that_works_in_place_changes_no_other_figure() -> None:
    """B. Both halve the very photos that they are given; the others' figures are as without them."""
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
