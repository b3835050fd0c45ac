"""Cheats of defenses: what they may do is enforced, and what they drive outputs away from is said."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from planted import Editor, Faces, Wrapped, audit, flags, returning
from setups import Flip
from torch import Tensor, nn

from loraguard import GatedLoraConfig
from loraguard.audit.words import tried
from loraguard.defenses import Defense, Disrupting
from loraguard.generators import Condition

pytestmark = pytest.mark.usefixtures("probed")

# B. The threat model is enforced.


def test_the_budget_is_measured_and_enforced() -> None:
    result = audit({"greedy": returning(lambda x: (x + 0.3).clamp(-1, 1))})
    row = result["untouched", "no-leak"]
    assert "over-budget" in result.flags(row)
    assert row.values["photo_linf"].max() <= 0.05 + 1 / 127.5
    assert row.values["photo_moved"].max() == pytest.approx(0.3, abs=1e-4)
    assert "by up to 0.3 and claims 0.05" in next(one.evidence for one in result.checks if one.name == "over-budget")


def test_the_budget_is_of_the_kind_that_was_said_first() -> None:
    """Called once, the defense says that its budget is another one, which nobody can enforce."""

    @dataclass(frozen=True)
    class Relents(Defense):
        eps: float = 0.05

        def perturb(self, generator: nn.Module, images: Tensor, condition: Condition, clean: Any = None) -> Tensor:
            object.__setattr__(self, "budget", "whatever it takes")
            return (images + 0.3).clamp(-1, 1)

    result = audit({"relents": Relents()})
    row = result["untouched", "no-leak"]
    assert "over-budget" in result.flags(row)
    assert row.values["photo_linf"].max() <= 0.05 + 1 / 127.5
    assert result.settings["own_budgets"] == []


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


def _shrinks(network: nn.Module, factor: float) -> None:
    old = Editor.forward
    Editor.forward = lambda self, images, c: old(self, factor * images, c)  # type: ignore[method-assign]


def _overrides(network: nn.Module) -> None:
    plain = network.forward
    network.forward = lambda *args, **kwargs: 0.1 * plain(*args, **kwargs)


def _hooks_everything(network: nn.Module) -> None:
    torch.nn.modules.module.register_module_forward_hook(lambda module, args, output: 0.1 * output)


TAMPERING: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a hook": (lambda g: g.register_forward_hook(lambda module, args, output: 0.1 * output), "a hook on"),
    "a backward hook": (lambda g: g.register_full_backward_pre_hook(lambda module, taken: (-taken[0],)), "a hook on"),
    "a hook on all": (_hooks_everything, "a hook on every network"),
    "a method": (_overrides, "a method of"),
    "an attribute": (lambda g: setattr(g.get_base_model(), "gain", 0.1), "off by 0.9"),
    "a class": (lambda g: _shrinks(g, 0.1), "off by 0."),
    "torch": (lambda g: setattr(torch, "tanh", torch.zeros_like), "off by 0.9"),
}


@pytest.mark.parametrize("name", TAMPERING)
def test_tampering_with_what_the_generator_does_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, buffers and modes are as they were; its outputs, or its gradients, are not."""
    for where, what in ((Editor, "forward"), (torch, "tanh")):
        monkeypatch.setattr(where, what, getattr(where, what))
    tamper, says = TAMPERING[name]

    class Tampers:
        eps = 0.1

        def __call__(self, generator: Any, images: Tensor, condition: Any, clean: Any = None) -> Tensor:
            tamper(generator)
            return images

    with pytest.raises(ValueError, match=f"The defense 'tampers' changed the generator.*{says}"):
        audit({"tampers": Tampers()}, n=2)


@pytest.mark.parametrize("on", ["the network", "a copy"])
def test_without_a_leak_the_patch_may_not_be_switched_on(on: str) -> None:
    """B. The patch lies in the very model that a defender without a leak gets."""

    class Peeks:
        eps = 0.1

        def __call__(self, generator: Any, images: Tensor, condition: Any, clean: Any = None) -> Tensor:
            network = copy.deepcopy(generator) if on == "a copy" else generator
            network.base_model.enable_adapter_layers()
            known = network(images, **condition)
            network.base_model.disable_adapter_layers()
            return (images + 0.1 * known.detach().sign()).clamp(-1, 1)

    model = get_peft_model(Editor(), GatedLoraConfig(r=1, target_modules=["conv"]), adapter_name="patch")
    with pytest.raises(ValueError, match=r"The defense 'peeks' was to know of 'untouched' alone, and .* \(patch\)"):
        audit({"peeks": Peeks()}, model=model, patches={"patch": None}, n=2)


class Denies(Tensor):
    """Says that it differs from nothing."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "sub" in getattr(function, "__name__", ""):
            return torch.zeros(args[0].shape)
        return super().__torch_function__(function, types, args, kwargs or {})


def test_what_else_a_defense_does_changes_no_figure(tmp_path: Path) -> None:
    """Another type or class of tensor, and settings of the process that it leaves behind."""

    def shifted(images: Tensor) -> Tensor:
        return (images + 0.06).clamp(-1, 1)

    changes: dict[str, Callable[[Tensor], Any]] = {
        "plain": lambda x: x,
        "double": Tensor.double,
        "subclass": lambda x: x.as_subclass(Denies),
        "learning": Tensor.requires_grad_,
        "default dtype": lambda x: (torch.set_default_dtype(torch.float64), x)[1],
        "gradients": lambda x: (torch.set_grad_enabled(False), x)[1],
        "autocast": lambda x: (torch.set_autocast_enabled("cpu", True), x)[1],
        "precision": lambda x: (torch.set_float32_matmul_precision("medium"), x)[1],
        "algorithms": lambda x: (torch.use_deterministic_algorithms(True), x)[1],
        "folder": lambda x: (os.chdir(tmp_path), x)[1],
    }
    before = os.getcwd(), torch.get_default_dtype(), torch.is_grad_enabled()
    defenses = {name: returning(lambda x, change=change: change(shifted(x)), 0.1) for name, change in changes.items()}
    result = audit(defenses, n=2)
    assert before == (os.getcwd(), torch.get_default_dtype(), torch.is_grad_enabled())
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.is_autocast_enabled("cpu")
    honest = result["untouched", "no-leak", "plain"].values
    for name in changes:
        row = result["untouched", "no-leak", name].values
        assert torch.allclose(row["mse"], honest["mse"]), name
        assert torch.allclose(row["photo_moved"], honest["photo_moved"]), name


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
    """The defense spends its budget in a batch, in a larger one than probes have, or only when it is called first."""
    calls: list[int] = []
    crowd = returning(lambda x: (x + 0.1 * (len(x) > 1)).clamp(-1, 1), eps=0.1)
    large = returning(lambda x: (x + 0.1 * (len(x) > 4)).clamp(-1, 1), eps=0.1)

    def first(images: Tensor) -> Tensor:
        calls.append(len(images))
        return (images + 0.1 * (len(calls) == 1)).clamp(-1, 1)

    once = returning(first, eps=0.1)
    result = audit({"crowd": crowd, "large": large, "once": once}, n=5)
    flagged = {one.defense for one in result.checks if one.name == "crafted-otherwise-alone" and not one.passed}
    assert flagged == {"crowd", "large", "once"}


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
