"""Cheats of networks: hidden gradients, and edits that are none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from limits import short_attacks
from peft import get_peft_model
from planted import Editor, Faces, Wrapped, audit, flags, returning
from torch import Tensor, nn

from loraguard import GatedLoraConfig
from loraguard.channels import JPEG
from loraguard.defenses import Disrupting
from loraguard.generators import Condition

# D. Masked gradients.


def straight(images: Tensor) -> Tensor:
    """Rounded to 8 bits, with the gradient of what was not rounded."""
    rounded = (images * 127.5).round() / 127.5
    return images + (rounded - images).detach()


MASKS: dict[str, Callable[..., Tensor]] = {
    "cut": lambda x, edit: edit(x).detach() + 0 * x,
    "half": lambda x, edit: edit(torch.cat([x[..., :8].detach(), x[..., 8:]], 3)),
    "weak": lambda x, edit: edit(0.3 * x + 0.7 * x.detach()),
    "reversed": lambda x, edit: edit(2 * x.detach() - x),
    "rounded": lambda x, edit: edit((x * 8).round() / 8),
    "channel": lambda x, edit: edit(torch.cat([x[:, :1], x[:, 1:].detach()], 1)),
}
HONEST: dict[str, Callable[..., Tensor]] = {
    "plain": lambda x, edit: edit(x),
    "blur": lambda x, edit: edit(nn.functional.avg_pool2d(x, 3, 1, 1)),
    "8 bits, straight through": lambda x, edit: edit(straight(x)),
    "contrast": lambda x, edit: edit(torch.tanh(1.2 * x)),
    "mirror": lambda x, edit: edit(x.flip(3)).flip(3),
}


@pytest.mark.parametrize("name", MASKS)
def test_gradients_that_do_not_fit_are_flagged(name: str) -> None:
    assert "gradients-do-not-fit" in flags(audit(generators={"mask": Wrapped(MASKS[name])}), "mask")


@pytest.mark.parametrize("name", HONEST)
def test_honest_gradients_are_not(name: str) -> None:
    assert "gradients-do-not-fit" not in flags(audit(generators={"net": Wrapped(HONEST[name])}))


def test_a_random_network_is_said_to_be_one() -> None:
    noisy = Wrapped(lambda x, edit: edit((x + 0.1 * torch.randn_like(x)).clamp(-1, 1)))
    found = flags(audit(generators={"noisy": noisy}), "noisy")
    assert "random-generator" in found
    assert "outputs-not-repeatable" not in found


class Wavering(nn.Module):
    """It multiplies photos by -1 in three of four draws, by 5 in the fourth: most draws point the wrong way."""

    def forward(self, images: Tensor) -> Tensor:
        wrong = torch.rand(len(images), 1, 1, 1) < 0.75
        return torch.where(wrong, -1.0, 5.0) * images


def test_the_mean_of_draws_goes_where_one_draw_does_not() -> None:
    """Away from -100, outputs a * x change by a: the mean of a is 0.5, and 3 of 4 draws are below 0."""
    photos, far = torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), -100.0)
    torch.manual_seed(0)
    one, many = (Disrupting(0.1, 40, step_size=0.01, eot=draws)(Wavering(), photos, {}, far) for draws in (1, 64))
    assert torch.allclose(many, photos + 0.1)
    assert one.mean() < 0


def test_what_draws_at_random_is_attacked_along_mean_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which attacks there are, not what they find."""
    short_attacks(monkeypatch)

    @dataclass(frozen=True)
    class Noise:
        def __call__(self, images: Tensor) -> Tensor:
            return (images + 0.05 * torch.randn_like(images)).clamp(-1, 1)

        def differentiable(self) -> Noise:
            return self

    noisy = Wrapped(lambda x, edit: edit(Noise()(x)))
    result = audit(
        {"pgd": Disrupting(0.1, 2)}, generators={"noisy": noisy, "steady": Editor()},
        channels={"noise": Noise(), "none at all": JPEG(90)}, checks=2, n=4,
    )  # fmt: skip
    averaged = {(row.generator, row.channel) for row in result.find(defense="pgd-averaged")}
    everyone = {(name, "noise") for name in ("untouched", "noisy", "steady")}
    assert averaged == everyone | {("noisy", "none"), ("noisy", "none at all")}


# E. Undone needs a working edit.


def test_doing_nothing_undoes_nothing() -> None:
    result = audit(generators={"idle": Wrapped(lambda x, edit: x + 0 * edit(x))}, n=20)
    assert "does-not-edit" in flags(result, "idle")


def test_remembering_the_photos_is_no_edit() -> None:
    """It gives the right output for the audited photo that is nearest, and for others that of one of these."""
    faces, editor = Faces(20), Editor()
    known = torch.stack([faces[i]["image"] for i in range(20)])

    def remembered(x: Tensor, edit: Callable[[Tensor], Tensor]) -> Tensor:
        nearest = (x[:, None] - known[None]).square().flatten(2).mean(2).argmin(1)
        return edit(known[nearest]) + 0 * x

    assert editor.gain == 4
    assert "only-known-photos" in flags(audit(generators={"memory": Wrapped(remembered)}, n=20), "memory")


def test_outputs_of_another_range_are_refused() -> None:
    bytes_ = Wrapped(lambda x, edit: 127.5 * edit(x) + 127.5)
    with pytest.raises(ValueError, match=r"The generator 'bytes' gives values from .*; expected outputs in \[-1, 1\]"):
        audit(generators={"bytes": bytes_})


def test_a_shift_of_brightness_does_not_hold() -> None:
    """Outputs are spoilt by a cast alone, which setting each channel's mean right undoes."""

    def shifted(x: Tensor, edit: Callable[[Tensor], Tensor]) -> Tensor:
        moved = (x[:, :, :1, :1].sum((1, 2, 3), keepdim=True) * 1000).sin().abs().round()
        return (0.4 * edit(x.round(decimals=1)) + 0.6 * moved).clamp(-1, 1)

    network = Wrapped(shifted)
    model = get_peft_model(network, GatedLoraConfig(r=1, target_modules=["editor.conv"]))
    result = audit({"nudge": returning(lambda x: x + 0.01 * (x < 0.5))}, model=model, conditions=paint, n=20)
    assert "only-a-colour-cast" in flags(result)


def paint(labels: Tensor | None) -> dict[str, Condition]:
    return {"paint": {"c": torch.zeros(1 if labels is None else len(labels), 1)}}


def test_a_network_that_looks_at_its_neighbours_is_flagged() -> None:
    crowd = Wrapped(lambda x, edit: edit(x) * 0.5 + edit(x).mean(0, keepdim=True) * 0.5)
    assert "depends-on-the-batch" in flags(audit(generators={"crowd": crowd}), "crowd")


def test_a_network_that_remembers_its_last_call_is_flagged() -> None:
    class Remembers(Editor):
        def forward(self, images: Tensor, c: Tensor) -> Tensor:
            last = getattr(self, "last", 0.0)
            object.__setattr__(self, "last", float(images.detach().mean()) + last)
            return (super().forward(images, c) + 0.3 * torch.sin(torch.tensor(7 * last))).clamp(-1, 1)

    assert "outputs-not-repeatable" in flags(audit(generators={"last": Remembers()}), "last")
