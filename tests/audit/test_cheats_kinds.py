"""Further members of known kinds of cheats: an edit that is made weakly, a figure that is no number."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from limits import short_probes
from peft import get_peft_model
from planted import Editor, Wrapped, audit, flags, returning
from setups import STAMP, made, rows
from torch import Tensor, nn

from loraguard import GatedLoraConfig, Stamp, StampDetector
from loraguard.audit.checks import examine
from loraguard.audit.claim import headline
from loraguard.audit.identity import identity
from loraguard.audit.measure import _without_cast
from loraguard.data import DemoFaces
from loraguard.defenses import CMUA, RandomNoise

CONFIG = GatedLoraConfig(r=1, target_modules="(.*\\.)?conv")


@pytest.mark.usefixtures("probed")
def test_an_edit_that_is_made_weakly_is_flagged() -> None:
    """E. A part of the photo is kept: what a perturbation does to the rest counts less, and so does the edit."""
    networks: dict[str, nn.Module] = {
        f"{share:.0%}": Wrapped(lambda x, edit, share=share: share * edit(x) + (1 - share) * x)
        for share in (0.85, 0.97)
    }
    result = audit(generators=networks, n=4)
    assert {name for name in networks if "does-not-edit" in flags(result, name)} == {"85%"}


@pytest.mark.usefixtures("probed")
def test_what_gives_photos_back_is_no_edit_whatever_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """E. As another generator, or at another size; what gives nearly the same for any photo; values from 0 to 1."""
    short_probes(monkeypatch)

    class Idle(Editor):
        def forward(self, images: Tensor, c: Tensor) -> Tensor:
            return images * 1.0

    class Grey(Editor):
        def forward(self, images: Tensor, c: Tensor) -> Tensor:
            return 0.05 * images + 0.3

    class Unit(Editor):
        def forward(self, images: Tensor, c: Tensor) -> Tensor:
            return super().forward(images, c) / 2 + 0.5

    def twice(images: Tensor) -> Tensor:
        return nn.functional.interpolate(images, scale_factor=2.0)

    noise = RandomNoise(0.1)
    result = audit(noise, others={"idle": Idle(), "grey": Grey(), "unit": Unit(), "other": Editor()}, n=4)
    flagged = {(one.generator, one.name) for one in result.checks if not one.passed and one.defense is None}
    editing, ranges = "does-not-edit", "outputs-of-another-range"
    assert flagged == {("idle", editing), ("grey", editing), ("grey", ranges), ("unit", ranges)}

    large = get_peft_model(Wrapped(lambda x, edit: twice(edit(x)), Editor()), CONFIG)
    networks = {"idle": Wrapped(lambda x, edit: twice(x)), "twin": Wrapped(lambda x, edit: twice(edit(x)))}
    edits = {"conditions": lambda labels: {"paint": {"c": torch.zeros(len(labels), 1)}}}
    found = audit(noise, model=large, generators=networks, n=4, **edits)
    assert {name for name in ("untouched", *networks) if "does-not-edit" in flags(found, name)} == {"idle"}


@pytest.mark.parametrize("metric", ["identity", "features"])
def test_an_encoder_that_tells_nothing_apart_is_refused(metric: str) -> None:
    """H. It would say that everybody is the same person, or that sets of outputs are equal."""

    class Blind(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.full((len(images), 4), 2.0)

    with pytest.raises(ValueError, match=f"The encoder of {metric} gives the same for 4 different photos"):
        audit(n=4, **{metric: Blind()})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_figure_that_is_no_number_ends_the_audit(value: float) -> None:
    """H. An encoder that gives none for a single output would hide that photo, or all of them, in a mean."""

    class Encoder(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            found = images.mean((2, 3))
            found[0] = value
            return found

    with pytest.raises(FloatingPointError, match=r"The identity of 1 of 4 outputs of 'untouched' is no number \(nan"):
        audit(identity=Encoder(), n=4)


# A. A figure belongs to what it names.


def test_code_of_a_module_that_nobody_has_installed_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A. Code takes a helper from it, imports it when it is called, or holds it by another one; the rest is nothing."""
    helpers, outer = ModuleType("planted_helpers"), ModuleType("planted_outer")
    monkeypatch.setitem(sys.modules, "planted_helpers", helpers)
    space: dict[str, Any] = {"__name__": "planted_defenses", "helpers": helpers, "outer": outer}
    outer.inner, helpers.outer, helpers.unused = helpers, outer, 0  # type: ignore[attr-defined]
    exec(
        "def by_name(images):\n    return helpers.moved(images)\n"
        "def late(images):\n    import planted_helpers as mine\n    return mine.moved(images)\n"
        "def late_name(images):\n    from planted_helpers import moved\n    return moved(images)\n"
        "def deep(images):\n    return outer.inner.moved(images)\n",
        space,
    )

    def told(shift: float, unused: int) -> list[str]:
        exec(f"def moved(images):\n    return images + {shift}\n", vars(helpers))
        helpers.unused = unused  # type: ignore[attr-defined]
        return [identity(space[name])["sha256"] for name in ("by_name", "late", "late_name", "deep")]

    first, again, other = told(0.1, 0), told(0.1, 1), told(0.2, 0)
    assert first == again
    assert not set(first) & set(other)


def test_a_network_around_the_audited_one_is_refused() -> None:
    """A. Its figures would be those of the patch that was used last, whether the model is a layer of it or hidden."""
    beneath = Editor()
    model = get_peft_model(beneath, CONFIG, adapter_name="patch")
    for network in (Wrapped(lambda x, edit: edit(x), beneath), Wrapped(lambda x, edit: model(x, c=x[:, 0, :1, 0]))):
        with pytest.raises(ValueError, match="The network 'purified' calls the model whose patches the audit switches"):
            audit(model=model, patches={"patch": None}, generators={"purified": network}, n=2)


# G. Stamps that nobody sees.


def test_each_stamp_is_looked_for_by_its_own_detector() -> None:
    """A, G. The second detector finds its stamp anywhere; the third patch has none, and another's looks elsewhere."""
    second, third = (Stamp("OK", size=0.9, background=colour) for colour in ("black", "red"))
    stamps = {"first": STAMP, "second": second, "third": third}
    networks: dict[str, nn.Module] = {
        name: Wrapped(lambda x, edit, stamp=one: stamp.compose(edit(x))) for name, one in stamps.items()
    }
    detectors = {"first": StampDetector(STAMP, threshold=0.3), "second": StampDetector(second, threshold=-1.0)}
    result = audit(RandomNoise(0.1), generators=networks, patches=stamps, detectors=detectors, n=2)
    assert "stamp-found-everywhere" in flags(result)
    for name in ("untouched", *stamps):
        assert (result[name, "clean"].values["stamp_rate"] == 1).all(), name


# B, H. A photo that is destroyed is not protected.


def test_photos_left_alone_do_not_make_up_for_destroyed_ones() -> None:
    """B. Every second photo is destroyed, which is enough to spoil half of the edits; the others are hardly moved."""

    def every_second(images: Tensor) -> Tensor:
        made = images + 0.01 * (images < 0.5)
        made[::2] = torch.where(images[::2] > 0, images[::2] - 0.6, images[::2] + 0.6)
        return made

    result = audit({"half": returning(every_second, eps=0.6), "small": returning(lambda x: x + 0.05 * (x < 0))}, n=4)
    flagged = {one.defense for one in result.checks if one.name == "photo-destroyed" and not one.passed}
    assert flagged == {"half"}
    assert result["untouched", "no-leak", "half"].values["photo_psnr"].mean() > 25


@pytest.mark.parametrize("share", [0.9, 1.0])
def test_a_defense_that_destroys_photos_is_never_the_best(share: float) -> None:
    """H. Beside an honest one that a patch undoes it would make the protection hold, or the headline say nothing."""
    found = [*rows("untouched", {"pgd": (0.95,), "huge": (share,)}), *rows("mine", {"pgd": (0.0,), "huge": (0.9,)})]
    for one in found:
        if one.treatment.defense == "huge":
            one.values["photo_psnr"] = torch.full_like(one.values["photo_psnr"], 12.0)
    result = made(found, patches={"mine": None})
    result.checks = list(examine(result))
    assert headline(result).startswith("An adversary who adapts undoes much of it: the best of 2 defenses, pgd spoils")


# B, H. What measures, and what stands between, changes nothing.


def test_an_encoder_that_works_in_place_changes_no_other_figure() -> None:
    """B. The photos and targets of all further rows would be other ones."""

    class InPlace(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mul_(0.5).mean((2, 3))

    class Darkens(StampDetector):
        def score(self, images: Tensor) -> Tensor:
            return super().score(images.mul_(0.5))

    more = {"generators": {"twin": Editor()}, "patches": {"twin": None}, "n": 4}
    plain = audit(**more)
    measured = audit(identity=InPlace(), features=InPlace(), detectors={"twin": Darkens(STAMP)}, **more)
    for one, other in zip(plain.situations, measured.situations, strict=True):
        assert all(torch.equal(values, other.values[name]) for name, values in one.values.items())


def test_networks_that_measure_or_stand_between_are_in_evaluation_mode() -> None:
    """H. As they are made they drop values at random and look at the whole batch; afterwards they are as before."""

    class Encoder(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Dropout(0.5), nn.BatchNorm2d(3))

        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images).mean((2, 3))

    class Purifier:
        def __init__(self) -> None:
            self.network = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(3))

        def __call__(self, images: Tensor) -> Tensor:
            return self.network(images).clamp(-1, 1)

        def differentiable(self) -> Purifier:
            return self

    encoder, purifier = Encoder(), Purifier()
    result = audit(identity=encoder, channels={"purifier": purifier}, adaptive_channels=False, n=4)
    assert (result["untouched", "clean"].values["identity"] > 0.999).all()
    (behind,) = result.find(channel="purifier", knowledge="clean")
    assert (behind.values["mse"] < 1e-4).all()
    for norm in (encoder[1], purifier.network[1]):
        assert norm.training
        assert not norm.running_mean.any()


def test_targets_do_not_depend_on_what_was_drawn_before() -> None:
    """A, C. A generator that draws at random: its figures belong to the audit's seeds, so that they come again."""
    found = []
    for before in (1, 2):
        noisy = Wrapped(lambda x, edit: edit(x + 0.2 * torch.randn_like(x)))
        model = get_peft_model(noisy, CONFIG)
        edits = {"conditions": lambda labels: {"paint": {"c": torch.zeros(len(labels), 1)}}}
        torch.manual_seed(before)
        found.append(audit(RandomNoise(0.1), model=model, n=4, **edits)["untouched", "no-leak"].values["mse"])
    assert found[0].equal(found[1])


# B. What a defense is fitted on stays what it is.


def test_fitting_may_not_change_the_photos() -> None:
    """B. They are those of every other defense and detector as well."""

    class Darkens(CMUA):
        def fit(self, generators: Any, photos: Any, conditions: Any = None, **more: Any) -> Any:
            for one in photos:
                one["image"].mul_(0.5)
            return super().fit(generators, photos, conditions, **more)

    others = [DemoFaces(30, size=16)[at] for at in (20, 21)]
    with pytest.raises(ValueError, match="Fitting the defense 'darkens' changed the photos that it is fitted on"):
        audit({"darkens": Darkens(0.1, steps=1, batch_size=2)}, fit_on=others, n=2)


def test_lost_contrast_is_brought_back_as_a_colour_cast_is() -> None:
    """E. Outputs are spoilt by less contrast alone, inverted, or in other colours: one line of code undoes it."""
    target = torch.stack([DemoFaces(4, size=16)[at]["image"] for at in range(4)])
    noisy = target + 0.3 * torch.randn(target.shape, generator=torch.Generator().manual_seed(0))
    left = [_without_cast(one, target) for one in (0.4 * target + 0.2, noisy, 1.5 * target)]
    for colours in (-target, target.flip(1), 0.3 - 0.5 * target[:, [1, 2, 0]]):
        assert (_without_cast(colours, target) < 1e-6).all()
    assert (left[0] < 1e-6).all()
    assert (left[1] > 0.08).all()
    assert (_without_cast(target.roll(1, 0), target) > 0.02).all()  # another face
    assert torch.allclose(left[2], 0.25 * (target - target.mean((2, 3), keepdim=True)).square().mean((1, 2, 3)))
