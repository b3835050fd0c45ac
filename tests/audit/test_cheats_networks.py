"""Cheats of networks: hidden gradients, and edits that are none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from limits import short_attacks, short_probes
from peft import get_peft_model
from planted import EPS, Editor, Faces, Wrapped, audit, flags, returning
from torch import Tensor, nn

from loraguard import GatedLoraConfig
from loraguard.audit.slopes import fits, slopes, slopes_under_attack
from loraguard.channels import JPEG
from loraguard.defenses import Disrupting
from loraguard.generators import Condition

pytestmark = pytest.mark.usefixtures("probed")

# D. Masked gradients.


def straight(images: Tensor) -> Tensor:
    """Rounded to 8 bits, with the gradient of what was not rounded."""
    rounded = (images * 127.5).round() / 127.5
    return images + (rounded - images).detach()


def is_of_8_bits(images: Tensor) -> bool:
    levels = images * 127.5 + 127.5
    return bool(((levels - levels.round()).abs() < 1e-3).all())


def attended(images: Tensor) -> Tensor:
    """Every pixel by its likeness to every other one."""
    pixels = images.flatten(2).transpose(1, 2)
    likeness = torch.softmax(pixels @ pixels.transpose(1, 2) / 4, -1)
    return 0.5 * images + 0.5 * (likeness @ pixels).transpose(1, 2).reshape(images.shape)


class Backward(torch.autograd.Function):
    """Leaves values as they are, and does something to their gradient."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.change = change
        return images.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return ctx.change(gradients[0]), None


@cache
def _known() -> Tensor:
    return torch.stack([Faces(6)[at]["image"] for at in range(6)])


@torch.no_grad()
def _off(images: Tensor, edit: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
    """How far each is from the audit's photos, or its edit from theirs: the masks below remember them, (N, 1, 1, 1)."""
    known = _known()
    at = (images[:, None] - known[None]).abs().amax((2, 3, 4)).argmin(1)
    size = (edit(images) - edit(known[at])).abs()
    return size.flatten(1).quantile(0.9, 1)[:, None, None, None]


MASKS: dict[str, Callable[..., Tensor]] = {
    "cut": lambda x, edit: edit(x).detach() + 0 * x,
    "half": lambda x, edit: edit(torch.cat([x[..., :8].detach(), x[..., 8:]], 3)),
    "weak": lambda x, edit: edit(0.3 * x + 0.7 * x.detach()),
    "reversed": lambda x, edit: edit(2 * x.detach() - x),
    "rounded": lambda x, edit: edit((x * 8).round() / 8),
    "channel": lambda x, edit: edit(torch.cat([x[:, :1], x[:, 1:].detach()], 1)),
    "off the levels of 8 bits": lambda x, edit: edit(x if is_of_8_bits(x) else x.detach() + 0 * x),
    "small gradients": lambda x, edit: edit(Backward.apply(x, lambda g: g if g.abs().max() > 2e-3 else 0 * g)),
    "turned by a hook": lambda x, edit: edit(Backward.apply(x, lambda g: g if g.abs().max() > 2e-3 else -g)),
    "signs alone": lambda x, edit: edit(Backward.apply(x, lambda g: 1e-3 * g.sign())),
    "large batches": lambda x, edit: edit(x if len(x) <= 4 else x.detach() + 0 * x),
    "rows after the fourth": lambda x, edit: edit(torch.cat([x[:4], x[4:].detach()])),
    "what is no leaf": lambda x, edit: edit(x if x.is_leaf else x.detach() + 0 * x),
    "another network under autograd": lambda x, edit: edit(0.5 * x if torch.is_grad_enabled() else x),
    "far from photos": lambda x, edit: edit(torch.where(_off(x) < 0.06, x, x.detach())),
    "sizes in between": lambda x, edit: edit(Backward.apply(x, lambda g: 0 * g if 1e-5 < g.abs().max() < 5e-3 else g)),
    "where outputs are moved": lambda x, edit: edit(torch.where(_off(x, edit) < 0.3, x, x.detach())),
}
HONEST: dict[str, Callable[..., Tensor]] = {
    "plain": lambda x, edit: edit(x),
    "blur": lambda x, edit: edit(nn.functional.avg_pool2d(x, 3, 1, 1)),
    "8 bits, straight through": lambda x, edit: edit(straight(x)),
    "contrast": lambda x, edit: edit(torch.tanh(1.2 * x)),
    "mirror": lambda x, edit: edit(x.flip(3)).flip(3),
    "max pooling": lambda x, edit: edit(nn.functional.max_pool2d(x, 3, 1, 1)),
    "sorted": lambda x, edit: edit(x.sort(3).values),
    "layer norm": lambda x, edit: edit(nn.functional.layer_norm(x, x.shape[1:]) * 0.4),
    "attention": lambda x, edit: edit(attended(x)),
    "dead units": lambda x, edit: edit(x.relu() - (-x - 0.3).relu()),
    "fake quantisation": lambda x, edit: edit(torch.fake_quantize_per_tensor_affine(x, 1 / 127.5, 128, 0, 255)),
    "half precision": lambda x, edit: edit(x.half().float()),
    "tiny outputs": lambda x, edit: 1e-3 * edit(x),
    "large inputs": lambda x, edit: edit(3 * x),
}


class MaskedLater(Editor):
    """It counts its calls, and cuts its gradient after some of them."""

    calls = 0

    def forward(self, images: Tensor, c: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(images if self.calls < 8 else images.detach() + 0 * images, c)


@pytest.mark.parametrize("kind", [MASKS, HONEST], ids=["masked", "honest"])
def test_gradients_that_do_not_fit_are_found_and_honest_ones_do(kind: dict[str, Callable[..., Tensor]]) -> None:
    """As an audit's probe looks for them: on its first four photos, in its batch, and where an attack ends."""
    images, edits = _known(), {"c": torch.zeros(6, 1)}
    target, some = Editor()(images, **edits).detach(), {"c": edits["c"][:4]}
    for name, change in kind.items():
        network = Wrapped(change)
        found = slopes(network, images, edits, 4), slopes_under_attack(network, images[:4], some, target[:4], EPS)
        assert all(map(fits, found)) == (kind is HONEST), name


def test_gradients_fit_on_white_photos_and_where_photos_are_drawn_for() -> None:
    """D. Honest ones: it clips its input, which has no slope beyond white; or it draws one number for each photo."""
    images, edits = _known().clone(), {"c": torch.zeros(6, 1)}
    images[..., :11] = 1.0
    clips = Wrapped(lambda x, edit: edit(0.1 * x.clamp(-1, 1)))
    draws = Wrapped(lambda x, edit: edit(x + 0.5 * torch.randn(len(x), 3, 1, 1)))
    for network in (clips, draws):
        assert fits(slopes(network, images, edits, 4))


def test_a_network_that_hides_gradients_is_flagged_also_if_it_waits() -> None:
    cut, plain = Wrapped(MASKS["cut"]), Wrapped(HONEST["plain"])
    result = audit(generators={"cut": cut, "later": MaskedLater(), "plain": plain}, n=6, batch_size=6)
    found = {name for name in ("cut", "later", "plain") if "gradients-do-not-fit" in flags(result, name)}
    assert found == {"cut", "later"}


def test_a_random_network_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it draws for perturbed photos alone: here, for what is not one of the audit's."""
    short_probes(monkeypatch)

    def noisy(x: Tensor, where: Tensor | None = None) -> Tensor:
        drawn = (x + 0.1 * torch.randn_like(x)).clamp(-1, 1)
        return drawn if where is None else torch.where(where, drawn, x)

    networks = {
        "noisy": Wrapped(lambda x, edit: edit(noisy(x))),
        "where it is attacked": Wrapped(lambda x, edit: edit(noisy(x, _off(x) > 0))),
    }
    result = audit(generators=networks, n=6)
    for name in networks:
        found = flags(result, name)
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


class BlindFirst(Editor):
    """It has no gradients until the audit's own attack is over."""

    learned = 0

    def forward(self, images: Tensor, c: Tensor) -> Tensor:
        self.learned += torch.is_grad_enabled()
        return super().forward(images if self.learned > 4 else images.detach() + 0 * images, c)


class KnowsFirst(Editor):
    """It goes back to photos that it remembers until all figures are taken."""

    calls = 0

    def forward(self, images: Tensor, c: Tensor) -> Tensor:
        self.calls += 1
        if self.calls <= 8 and not torch.is_grad_enabled():
            images = _known()[(images[:, None] - _known()[None]).abs().amax((2, 3, 4)).argmin(1)]
        return super().forward(images, c)


def test_networks_that_are_others_until_figures_are_taken_are_flagged(monkeypatch: pytest.MonkeyPatch) -> None:
    short_probes(monkeypatch)
    networks: dict[str, nn.Module] = {"blind": BlindFirst(), "knows": KnowsFirst(), "twin": Editor()}
    result = audit({"pgd": Disrupting(EPS, 4)}, generators=networks, n=6, batch_size=6)
    later = {"crafted-otherwise-alone", "outputs-not-repeatable"}
    found = {name: flags(result, name) & later for name in networks}
    assert found["blind"] == {"crafted-otherwise-alone"}
    assert "outputs-not-repeatable" in found["knows"]
    assert not found["twin"]


# E. Undone needs a working edit.


def test_what_edits_little_or_only_photos_that_it_knows_is_no_edit() -> None:
    """Doing nothing, or too little; and memories of the audited photos.

    One gives the right output for the nearest of them, one for the nearest in any orientation, and one for what is near
    one of them alone, as a perturbed photo is. Honest ones are silent, of which one undoes perturbations.
    """
    faces = Faces(6)
    known = torch.stack([faces[i]["image"] for i in range(6)])
    turned = torch.cat([known, known.flip(3), known.flip(1), known.flip(1, 3), known.flip(2)])

    def nearest(x: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
        off, at = (x[:, None] - among[None]).square().flatten(2).mean(2).min(1)
        return off, among[at]

    def near_alone(x: Tensor, edit: Callable[[Tensor], Tensor]) -> Tensor:
        off, clean = nearest(x, known)
        return edit(torch.where((off < 0.06)[:, None, None, None], clean, x)) + 0 * x

    networks = {
        "does-not-edit: idle": Wrapped(lambda x, edit: x + 0 * edit(x)),
        "does-not-edit: half": Wrapped(lambda x, edit: 0.7 * edit(x) + 0.3 * x),
        "only-known-photos: memory": Wrapped(lambda x, edit: edit(nearest(x, known)[1]) + 0 * x),
        "only-known-photos: turned": Wrapped(lambda x, edit: edit(nearest(x, turned)[1]) + 0.01 * x),
        "only-known-photos: near": Wrapped(near_alone),
        "twin": Wrapped(lambda x, edit: edit(x)),
        "deaf": Wrapped(lambda x, edit: edit(nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False))),
    }
    result = audit(generators=networks, n=6, batch_size=6)
    for name in networks:
        found = flags(result, name) & {"does-not-edit", "only-known-photos"}
        assert found == ({name.partition(":")[0]} if ":" in name else set()), name


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
    large = Wrapped(lambda x, edit: edit(x if len(x) <= 4 else 0.8 * x))
    result = audit(generators={"crowd": crowd, "large": large})
    for name in ("crowd", "large"):
        assert "depends-on-the-batch" in flags(result, name)


def test_a_network_that_remembers_its_last_call_is_flagged() -> None:
    class Remembers(Editor):
        def forward(self, images: Tensor, c: Tensor) -> Tensor:
            last = getattr(self, "last", 0.0)
            object.__setattr__(self, "last", float(images.detach().mean()) + last)
            return (super().forward(images, c) + 0.3 * torch.sin(torch.tensor(7 * last))).clamp(-1, 1)

    assert "outputs-not-repeatable" in flags(audit(generators={"last": Remembers()}), "last")
