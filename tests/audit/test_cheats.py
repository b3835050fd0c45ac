"""Cheats that somebody plants in an audit, one of each kind and more: what they claim is not what is reported.

Each test plants one in a small audit whose honest twin stays silent.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from setups import STAMP, Flip
from torch import Tensor, nn

from loraguard import GatedLoraConfig
from loraguard.audit import AuditResult, run_audit
from loraguard.audit.identity import architecture
from loraguard.audit.words import tried
from loraguard.channels import JPEG
from loraguard.data import DemoFaces, PhotoHashes
from loraguard.defenses import Disrupting
from loraguard.fingerprint import generator_fingerprint
from loraguard.generators import Condition
from loraguard.stamp import StampDetector

EPS = 0.2


class Editor(nn.Module):
    """An editor that can be read: it paints the upper half of each photo by the edit that is asked for.

    A perturbation of the photo is carried into the output, `gain` times.
    """

    gain = 4.0

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(3).reshape(3, 3, 1, 1))

    def forward(self, images: Tensor, c: Tensor) -> Tensor:
        edited = torch.tanh(self.gain * self.conv(images))
        upper = torch.zeros_like(images)
        upper[:, :, : images.shape[2] // 2] = 1
        return torch.clamp(edited * (1 - 0.5 * upper) - upper * (0.4 + 0.1 * c[:, :1, None, None]), -1, 1)

    def conditions(self, labels: Tensor | None) -> dict[str, Condition]:
        n = 1 if labels is None else len(labels)
        return {"paint": {"c": torch.zeros(n, 1)}, "paint more": {"c": torch.ones(n, 1)}}


class Faces(DemoFaces):
    """Photos, with how often each was read."""

    def __init__(self, n: int = 12, size: int = 16) -> None:
        super().__init__(n, size=size)
        self.reads: list[int] = []

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        self.reads += indices
        return super().__getitems__(indices)


def audit(
    defenses: Any = None,
    *,
    generators: dict[str, nn.Module] | None = None,
    model: PeftModel | None = None,
    n: int = 12,
    **more: Any,
) -> AuditResult:
    if model is None:
        torch.manual_seed(0)
        model = get_peft_model(Editor(), GatedLoraConfig(r=1, target_modules=["conv"]))
    defenses = Flip(EPS) if defenses is None else defenses
    more = {"batch_size": 5, "disable_tqdm": True, "patches": {}, **more}
    return run_audit(model, Faces(n), defenses=defenses, generators=generators, **more)


def flags(result: AuditResult, generator: str | None = None) -> set[str]:
    return {one.name for one in result.checks if not one.passed and generator in (None, one.generator)}


class Wrapped(nn.Module):
    """The editor behind a function on its outputs, of the photos and the edit."""

    def __init__(self, change: Callable[..., Tensor], editor: nn.Module | None = None) -> None:
        super().__init__()
        self.editor, self.change = editor or Editor(), change

    def forward(self, images: Tensor, **condition: Tensor) -> Tensor:
        return self.change(images, lambda x: self.editor(x, **condition))


@pytest.fixture(scope="module")
def honest() -> AuditResult:
    return audit({"flip": Flip(0.1), "pgd": Disrupting(0.1, 4)}, generators={"twin": Editor()})


def test_an_honest_audit_raises_no_flag_of_a_cheat(honest: AuditResult) -> None:
    assert flags(honest) <= {"no-better-than-noise", "transfer-beats-white-box"}


def test_photos_are_read_once() -> None:
    faces = Faces(12)
    model = get_peft_model(Editor(), GatedLoraConfig(r=1, target_modules=["conv"]))
    run_audit(model, faces, defenses=Flip(EPS), patches={}, batch_size=5, disable_tqdm=True)
    assert sorted(faces.reads) == list(range(12))


# A. A figure belongs to what it names.


def test_a_further_patch_leaves_what_is_known_of_the_network(tmp_path: Path) -> None:
    """The network is the same one, whatever adapters PEFT notes on it: its figures are found again."""
    torch.manual_seed(0)
    model = get_peft_model(Editor(), GatedLoraConfig(r=1, target_modules=["conv"]), adapter_name="one")
    before = architecture(model)
    model.add_adapter("two", GatedLoraConfig(r=2, target_modules=["conv"]))
    assert architecture(model) == before


def mean_dsr(result: AuditResult, generator: str, *key: str) -> float:
    return result[(generator, *key)].values["mse"].mean().item()


def test_networks_without_parameters_are_told_apart() -> None:
    """Purifiers that differ in a closure, an attribute, a partial's argument, a method put over another, or a hook."""

    def by_closure(factor: float) -> nn.Module:
        return Wrapped(lambda images, edit: factor * edit(images))

    class ByAttribute(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.editor, self.factor = Editor(), factor

        def forward(self, images: Tensor, c: Tensor) -> Tensor:
            return self.factor * self.editor(images, c)

    def scaled(images: Tensor, edit: Callable[[Tensor], Tensor], factor: float) -> Tensor:
        return factor * edit(images)

    def by_method(factor: float) -> nn.Module:
        network = Editor()
        plain = network.forward
        network.forward = lambda *args, **kwargs: factor * plain(*args, **kwargs)  # type: ignore[method-assign]
        return network

    def by_hook(factor: float) -> nn.Module:
        network = Editor()
        network.register_forward_hook(lambda module, args, output: factor * output)
        return network

    kinds = (by_closure, ByAttribute, lambda f: Wrapped(functools.partial(scaled, factor=f)), by_method, by_hook)
    networks = {f"{at} {f}": kind(f) for at, kind in enumerate(kinds) for f in (0.2, 0.7)}
    result = audit(generators=networks)
    alone = {f: mean_dsr(audit(generators={"one": by_closure(f)}), "one", "clean") for f in (0.2, 0.7)}
    for name in networks:
        assert mean_dsr(result, name, "clean") == pytest.approx(alone[float(name.split()[1])]), name


def test_defenses_without_settings_are_told_apart() -> None:
    def by_closure(sign: float) -> Any:
        def defense(generator: nn.Module, images: Tensor, condition: Condition, clean: Tensor | None = None) -> Tensor:
            return (images + sign * EPS).clamp(-1, 1)

        defense.eps = EPS  # type: ignore[attr-defined]
        return defense

    def made(sign: float) -> Any:
        class Defense:
            eps = EPS

            def __call__(self, generator: Any, images: Tensor, condition: Any, clean: Any = None) -> Tensor:
                return (images + sign * EPS).clamp(-1, 1)

        return Defense()

    class Bound:
        def __init__(self, sign: float) -> None:
            self.sign, self.eps = sign, EPS

        def __call__(self, generator: Any, images: Tensor, condition: Any, clean: Any = None) -> Tensor:
            return (images + self.sign * EPS).clamp(-1, 1)

    for kind in (by_closure, made, Bound):
        result = audit({"brighter": kind(1.0), "darker": kind(-1.0)})
        photos = [result.pictures["photo", name, "no-leak", "untouched"].mean() for name in ("brighter", "darker")]
        assert photos[0] > photos[1] + EPS, kind


@pytest.fixture
def resumed(tmp_path: Path) -> Callable[..., AuditResult]:
    return functools.partial(audit, output_dir=tmp_path)


def plus(shift: float) -> Any:
    """A defense of one name and one module, whatever it does."""
    source = f"def defense(generator, images, condition, clean=None):\n    return (images + {shift}).clamp(-1, 1)\n"
    space: dict[str, Any] = {"__name__": "planted"}
    exec(source, space)
    space["defense"].eps = EPS
    return space["defense"]


def test_other_code_is_another_defense_in_the_next_run(resumed: Callable[..., AuditResult]) -> None:
    resumed({"one": plus(0.0)})
    found = resumed({"one": plus(0.2)})
    fresh = audit({"one": plus(0.2)})
    assert torch.equal(found["untouched", "no-leak"].values["mse"], fresh["untouched", "no-leak"].values["mse"])


def test_figures_changed_by_hand_do_not_pass(resumed: Callable[..., AuditResult], tmp_path: Path) -> None:
    honest = resumed()["untouched", "no-leak"].values["mse"]
    for file in (tmp_path / "cells").rglob("*.json"):
        piece = json.loads(file.read_text())
        for metrics in piece["piece"].get("passes", {}).values():
            metrics["mse"] = [0.5] * len(metrics["mse"])
        file.write_text(json.dumps(piece))
    assert torch.equal(resumed()["untouched", "no-leak"].values["mse"], honest)


def test_figures_changed_with_their_checksums_do_not_come_again(
    resumed: Callable[..., AuditResult], tmp_path: Path
) -> None:
    """One stored piece of each row is computed again; where it differs, all of the row are."""
    from loraguard.audit.store import key_of

    honest = resumed()["untouched", "no-leak"].values["mse"]
    for file in (tmp_path / "cells").rglob("*.json"):
        stored = json.loads(file.read_text())
        for metrics in stored["piece"].get("passes", {}).values():
            metrics["mse"] = [0.5] * len(metrics["mse"])
        file.write_text(json.dumps(stored | {"sha256": key_of(stored["piece"])}))
    with pytest.warns(UserWarning, match="did not come out again; all of these were computed anew"):
        again = resumed()
    assert torch.equal(again["untouched", "no-leak"].values["mse"], honest)
    assert again.settings["computed_anew"]


def test_what_cannot_be_described_is_computed_anew_and_said(resumed: Callable[..., AuditResult]) -> None:
    class Stream:
        eps = EPS

        def __init__(self) -> None:
            self.numbers = iter([0.1] * 10_000)

        def __call__(self, generator: Any, images: Tensor, condition: Any, clean: Any = None) -> Tensor:
            return (images + next(self.numbers)).clamp(-1, 1)

    with pytest.warns(UserWarning, match="What stream does cannot be told from its code"):
        result = resumed({"stream": Stream()})
    assert result.settings["not_described"] == ["stream"]


# B. The threat model is enforced.


def returning(change: Callable[[Tensor], Any], eps: float = 0.05) -> Any:
    class Defense:
        def __call__(self, generator: Any, images: Tensor, condition: Any, clean: Any = None) -> Any:
            return change(images)

    defense = Defense()
    defense.eps = eps  # type: ignore[attr-defined]
    return defense


def test_the_budget_is_measured_and_enforced() -> None:
    result = audit({"greedy": returning(lambda x: (x + 0.3).clamp(-1, 1))})
    row = result["untouched", "no-leak"]
    assert "over-budget" in result.flags(row)
    assert row.values["photo_linf"].max() <= 0.05 + 1 / 127.5
    assert row.values["photo_moved"].max() == pytest.approx(0.3, abs=1e-4)
    assert "by up to 0.3 and claims 0.05" in next(one.evidence for one in result.checks if one.name == "over-budget")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x: 3 * x, r"values from .* photos are in \[-1, 1\]"),
        (lambda x: x[:1], r"float32 \(1, 3, 16, 16\) for photos of float32 \(5, 3, 16, 16\)"),
        (lambda x: (x * 127.5 + 127.5).byte(), r"uint8 .* expected floating images"),
        (lambda x: x.numpy(), "ndarray; expected a tensor"),
        (lambda x: None, "NoneType; expected a tensor"),
        (lambda x: x / 0, "values that are not finite"),
        (lambda x: x.mean(1, keepdim=True), r"\(5, 1, 16, 16\)"),
    ],
)
def test_what_is_no_photo_is_refused(change: Callable[[Tensor], Any], says: str) -> None:
    with pytest.raises(ValueError, match=f"The defense 'planted' gives .*{says}"):
        audit({"planted": returning(change)})


def test_working_in_place_changes_no_original() -> None:
    in_place = audit({"one": returning(lambda x: x.add_(0.04).clamp_(-1, 1))})
    plain = audit({"one": returning(lambda x: (x + 0.04).clamp(-1, 1))})
    for metric in ("mse", "photo_linf", "photo_psnr"):
        assert torch.equal(*(one["untouched", "no-leak"].values[metric] for one in (in_place, plain)))


@pytest.mark.parametrize("harm", ["weight", "data", "mode", "buffer"])
def test_spoiling_the_generator_is_refused(harm: str) -> None:
    class WithNorm(Editor):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, images: Tensor, c: Tensor) -> Tensor:
            return super().forward(self.norm(images), c)

    @dataclass(frozen=True)
    class Spoils(Flip):
        def __call__(self, generator: nn.Module, images: Tensor, condition: Condition, clean: Any = None) -> Tensor:
            with torch.no_grad():
                if harm == "weight":
                    next(generator.parameters()).add_(0.1)
                elif harm == "data":
                    next(generator.parameters()).data += 0.1
                elif harm == "mode":
                    generator.train()
                else:
                    next(generator.buffers()).add_(0.1)
            return images

    model = get_peft_model(WithNorm(), GatedLoraConfig(r=1, target_modules=["conv"]))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"The defense 'spoils' changed the generator \("):
        audit({"spoils": Spoils()}, model=model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_drawing_from_the_operating_system_is_flagged() -> None:
    def drawn(images: Tensor) -> Tensor:
        seed = int.from_bytes(os.urandom(4), "little")
        draws = torch.Generator().manual_seed(seed)
        return (images + 0.05 * (2 * torch.rand(images.shape, generator=draws) - 1)).clamp(-1, 1)

    assert "crafted-otherwise-again" in flags(audit({"drawn": returning(drawn)}))


def test_drawing_from_numpy_and_python_comes_again() -> None:
    import random

    import numpy as np

    def drawn(images: Tensor) -> Tensor:
        return (images + 0.05 * (np.random.rand() + random.random() - 1)).clamp(-1, 1)  # noqa: NPY002

    assert "crafted-otherwise-again" not in flags(audit({"drawn": returning(drawn)}))


def test_depending_on_the_batch_is_flagged() -> None:
    """In a batch the defense spends its budget; alone, as a photo is published, it does nothing."""
    crowd = returning(lambda x: (x + 0.1 * (len(x) > 1)).clamp(-1, 1), eps=0.1)
    assert "crafted-otherwise-alone" in flags(audit({"crowd": crowd}))


def test_a_destroyed_photo_is_no_protection() -> None:
    result = audit({"paint": returning(lambda x: torch.where(x > 0, x - 0.6, x + 0.6), eps=0.6)}, n=20)
    assert "photo-destroyed" in flags(result)


@pytest.mark.parametrize("theirs", ["others", "turned"])
def test_photos_of_others_are_no_perturbed_photos(theirs: str) -> None:
    faces = Faces(12)
    images = [faces[i]["image"] for i in range(12)]
    given = images[1:] + images[:1] if theirs == "others" else [one.flip(1) for one in images]
    perturbed = [{"image": one} for one in given]
    with pytest.raises(ValueError, match=r"Photo \d+ that 'theirs' is said to have perturbed is \d+\.\d dB"):
        audit({"theirs": perturbed, "flip": Flip(0.1)})
    result = audit({"theirs": perturbed}, allow_large_change=True)
    assert "photo-destroyed" in flags(result, "untouched")
    assert "which somebody else has perturbed, by up to" in tried(result)["Budget"]


# C. The attack goes away from what outputs are compared with.


def test_with_a_leak_defenses_attack_what_is_measured() -> None:
    """The network's clean outputs are off by a cast; only from the target itself is the way out of it the longest."""
    seen = []

    @dataclass(frozen=True)
    class Looks(Flip):
        def __call__(self, generator: nn.Module, images: Tensor, condition: Condition, clean: Any = None) -> Tensor:
            seen.append(clean.clone())
            return super().__call__(generator, images, condition, clean)

    cast = Wrapped(lambda images, edit: (edit(images) + 0.15).clamp(-1, 1))
    result = audit({"looks": Looks(0.1)}, generators={"cast": cast}, batch_size=12)
    faces, editor = Faces(12), Editor()
    images = torch.stack([faces[i]["image"] for i in range(12)])
    targets = [
        torch.cat([editor(images[i : i + 1], torch.full((1, 1), float(more))) for i in range(12)]) for more in (0, 1)
    ]
    for clean in (one for one in seen if len(one) == 12):
        off = torch.minimum(*((clean - one).abs().amax((1, 2, 3)) for one in targets))
        assert off.max() < 1 / 127.5, "the target is the untouched output, without the cast"
    assert result.settings["objectives"] == {"looks": "own"}


def test_the_audit_says_what_a_defense_drives_outputs_away_from() -> None:
    result = audit({"pgd": Disrupting(0.1, 3), "flip": Flip(0.1)})
    assert result.settings["objectives"] == {"pgd": "target", "flip": "own"}


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


def test_what_draws_at_random_is_attacked_along_mean_gradients() -> None:
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


# F. Data are kept apart by content.


def test_photos_of_the_training_are_flagged_under_any_name() -> None:
    """As they are, mirrored, compressed or darker; other photos are not."""
    size = 64
    own = torch.stack([DemoFaces(8, size=size)[i]["image"] for i in range(8)])
    others = torch.stack([DemoFaces(16, size=size)[i]["image"] for i in range(8, 16)])
    versions = {
        "same": own,
        "mirrored": own.flip(3),
        "compressed": JPEG(60)(own),
        "darker": 0.9 * own,
        "others": others,
    }
    for name, photos in versions.items():
        known = PhotoHashes.of(photos)
        model = get_peft_model(Editor(), GatedLoraConfig(r=1, target_modules=["conv"]), adapter_name="patch")
        result = run_audit(
            model, DemoFaces(8, size=size), defenses=Flip(0.1), patches={"patch": None}, trained_on={"patch": known},
            disable_tqdm=True,
        )  # fmt: skip
        assert ("trained-on-these-photos" in flags(result, "patch")) == (name != "others"), name


def test_the_same_photo_on_both_sides_is_flagged() -> None:
    assert "fitted-on-these-photos" in flags(audit(fit_on=Faces(4)))
    others = [DemoFaces(30, size=16)[i] for i in range(20, 30)]
    assert "fitted-on-these-photos" not in flags(audit(fit_on=others))


@pytest.mark.parametrize("same", [True, False])
def test_a_patch_of_other_weights_is_flagged(same: bool) -> None:
    model = get_peft_model(Editor(), GatedLoraConfig(r=1, target_modules=["conv"]), adapter_name="patch")
    recorded = generator_fingerprint(model) if same else "0" * 64
    model.peft_config["patch"].provenance = {"generator": {"class": "Editor", "sha256": recorded}}
    found = flags(audit(model=model, patches={"patch": None}))
    assert ("made-for-other-weights" in found) == (not same)


# G. Stamps that nobody sees.


def stamped(result: AuditResult, generator: str) -> float:
    return result[generator, "clean"].values["stamp_rate"].mean().item()


def test_a_stamp_below_a_level_is_not_read() -> None:
    class Faint(StampDetector):
        """Reads the smallest trace of the stamp."""

    detector = StampDetector(STAMP, threshold=1e-3)
    faint = Wrapped(lambda x, edit: edit(x) + 0.2 / 127.5 * (STAMP.compose(edit(x)) - edit(x)).sign())
    result = audit(generators={"faint": faint}, patches={"faint": STAMP}, detectors={"faint": detector})
    plain = audit(generators={"faint": Editor()}, patches={"faint": STAMP}, detectors={"faint": detector})
    assert stamped(result, "faint") == stamped(plain, "faint")


def test_a_detector_that_finds_stamps_everywhere_is_flagged() -> None:
    everywhere = StampDetector(STAMP, threshold=-1.0)
    result = audit(generators={"warns": Editor()}, patches={"warns": STAMP}, detectors={"warns": everywhere})
    assert "stamp-found-everywhere" in flags(result)
    assert stamped(result, "untouched") == 1
