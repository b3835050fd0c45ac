"""Cheats that mix up what figures belong to: each is planted in a small audit whose honest twin stays silent."""

from __future__ import annotations

import collections
import enum
import functools
import importlib
import json
import random
import re
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import get_peft_model
from planted import EPS, Editor, Faces, Wrapped, audit, flags, returning
from setups import Flip
from torch import Tensor, nn
from torchvision.transforms import Normalize

from loraguard import GatedLoraConfig
from loraguard.audit import AuditResult, run_audit
from loraguard.audit.again import agree
from loraguard.audit.identity import architecture, identity
from loraguard.audit.store import key_of
from loraguard.defenses import Disrupting
from loraguard.generators import Condition


@pytest.fixture(scope="module")
def honest() -> AuditResult:
    return audit({"flip": Flip(0.1), "pgd": Disrupting(0.1, 4)}, generators={"twin": Editor()})


def test_an_honest_audit_raises_no_flag_of_a_cheat(honest: AuditResult) -> None:
    assert flags(honest) <= {"no-better-than-noise", "transfer-beats-white-box"}


@pytest.mark.usefixtures("probed")
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


class Slots:
    __slots__ = ("__shift",)

    def __init__(self, shift: float) -> None:
        self.__shift = shift


class Listed(list[int]):
    """A list with an attribute."""

    def __init__(self, shift: float) -> None:
        super().__init__([1])
        self.shift = shift


class Whole(float):
    """A number that is printed as a rounded one."""

    def __repr__(self) -> str:
        return "0"


class Extra(nn.Module):
    """Its setting is saved beside its weights."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = shift

    def get_extra_state(self) -> dict[str, float]:
        return {"shift": self.shift}


def _attributed(thing: Any, shift: float) -> Any:
    thing.shift = shift
    return thing


def _partial(shift: float) -> Any:
    class Partial(functools.partial):  # type: ignore[type-arg]
        def __call__(self, *args: Any) -> Any:
            return shift

    return Partial(abs)


def _enumerated(shift: float) -> Any:
    class Shift(enum.Enum):
        one = shift

    return Shift.one


def _unsaved(shift: float) -> nn.Module:
    network = nn.ReLU()
    network.register_buffer("shift", torch.tensor(shift), persistent=False)
    return network


def _hooked(shift: float) -> nn.Module:
    network = nn.ReLU()
    network.register_full_backward_hook(lambda module, given, taken: (given[0] * shift,))  # type: ignore[operator,index]
    return network


def _late(shift: float) -> Callable[[], float]:
    def inner() -> float:
        return shift + late

    return inner
    late = 1.0


THINGS: dict[str, Callable[[float], Any]] = {
    "private slots": Slots,
    "a list's attribute": Listed,
    "a number of another class": Whole,
    "a bound method in C": lambda f: torch.tensor(f).add,
    "a method wrapper": lambda f: f.__add__,
    "Python's generator": random.Random,
    "NumPy's generator": lambda f: np.random.default_rng(int(10 * f)),
    "torch's generator": lambda f: torch.Generator().manual_seed(int(10 * f)),
    "a default": lambda f: collections.defaultdict(lambda: f),
    "a tensor's attribute": lambda f: _attributed(torch.ones(1), f),
    "a mask": lambda f: np.ma.array([1.0], mask=[f > 0.5]),
    "a sparse tensor": lambda f: torch.tensor([0, f]).to_sparse(),
    "an enumeration": _enumerated,
    "a partial of another class": _partial,
    "a closure that is not full yet": _late,
    "a pattern": lambda f: re.compile(f"{f}"),
    "a decimal": lambda f: Decimal(f"{f}"),
}
NETWORKS: dict[str, Callable[[float], nn.Module]] = {
    "a pair": lambda f: nn.ZeroPad2d((int(10 * f), 0, 0, 0)),
    "a stride": lambda f: nn.AvgPool2d((1, 1), (int(10 * f), 1)),
    "a list": lambda f: Normalize([f], [1.0]),
    "a trace": lambda f: torch.jit.trace(nn.Hardtanh(-f, f), torch.ones(1)),
    "a graph": lambda f: torch.fx.symbolic_trace(nn.Hardtanh(-f, f)),
    "a buffer that is not saved": _unsaved,
    "a backward hook": _hooked,
    "a state of its own": Extra,
}


@pytest.mark.parametrize("kinds", [THINGS, NETWORKS], ids=["things", "networks"])
def test_what_python_does_not_show_at_once_is_told_apart(kinds: dict[str, Callable[[float], Any]]) -> None:
    """Each is like itself when it is made again, so that its figures are found, and unlike another one."""
    for name, kind in kinds.items():
        told = (identity, architecture) if kinds is NETWORKS else (identity,)
        for tell in told:
            one, again, other = (tell(kind(f)) for f in (0.2, 0.2, 0.7))
            assert one == again, name
            assert one != other, name
            assert "opaque" not in one, name


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


@pytest.mark.parametrize("installed", ["to be edited", "in place", "for good"])
def test_code_of_a_package_that_is_worked_on_counts(
    installed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its version stays while its code changes; of one that was installed for good the version is what it is."""
    name = f"planted_{installed.replace(' ', '_')}"
    about = tmp_path / (f"{name}.egg-info" if installed == "in place" else f"{name}-1.0.dist-info")
    about.mkdir()
    for file in ("METADATA", "PKG-INFO") if installed == "in place" else ("METADATA",):
        (about / file).write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    if installed == "to be edited":
        (about / "direct_url.json").write_text('{"url": "file:///there", "dir_info": {"editable": true}}')
    monkeypatch.syspath_prepend(tmp_path)

    def defense(shift: float) -> Any:
        (tmp_path / f"{name}.py").write_text(f"def defense(images):\n    return images + {shift}\n")
        monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        return importlib.import_module(name).defense

    assert (identity(defense(0.1)) == identity(defense(0.25))) == (installed == "for good")


def test_figures_changed_by_hand_do_not_pass(resumed: Callable[..., AuditResult], tmp_path: Path) -> None:
    honest = resumed()["untouched", "no-leak"].values["mse"]
    for file in (tmp_path / "cells").rglob("*.json"):
        piece = json.loads(file.read_text())
        for metrics in piece["piece"].get("passes", {}).values():
            metrics["mse"] = [0.5] * len(metrics["mse"])
        file.write_text(json.dumps(piece))
    assert torch.equal(resumed()["untouched", "no-leak"].values["mse"], honest)


def falsify(cells: Path) -> None:
    """Every stored MSE is a half, and checksums are right."""
    for file in cells.rglob("*.json"):
        stored = json.loads(file.read_text())
        for metrics in stored["piece"].get("passes", {}).values():
            metrics["mse"] = [0.5] * len(metrics["mse"])
        file.write_text(json.dumps(stored | {"sha256": key_of(stored["piece"])}))


def test_figures_changed_with_their_checksums_do_not_come_again(
    resumed: Callable[..., AuditResult], tmp_path: Path
) -> None:
    """One stored piece of each row is computed again; where it differs, all of the row are."""
    honest = resumed()["untouched", "no-leak"].values["mse"]
    falsify(tmp_path / "cells")
    with pytest.warns(UserWarning, match="did not come out again; all of these were computed anew"):
        again = resumed()
    assert torch.equal(again["untouched", "no-leak"].values["mse"], honest)
    assert again.settings["computed_anew"]


def test_figures_moved_from_photo_to_photo_do_not_come_again() -> None:
    """The mean stays, and another number of photos is over the threshold; what is rounded otherwise does come again."""
    found = {"passes": {"one": {"mse": [0.04, 0.05, 0.03, 0.04, 0.06], "stamp_rate": [0.0, 0.0, 1.0, 0.0, 1.0]}}}
    for mse, rate, same in (
        ([0.041, 0.048, 0.031, 0.042, 0.058], [0.0, 1.0, 1.0, 0.0, 1.0], True),
        ([0.055, 0.055, 0.055, 0.055, 0.0], [0.0, 0.0, 1.0, 0.0, 1.0], False),
        ([0.04, 0.05, 0.03, 0.04, 0.06], [1.0, 1.0, 0.0, 0.0, 0.0], False),
    ):
        assert agree({"passes": {"one": {"mse": mse, "stamp_rate": rate}}}, found) == same


def test_one_piece_of_what_was_crafted_through_each_channel_is_computed_again(tmp_path: Path) -> None:
    kept = {"defenses": Flip(EPS), "channels": ["blur:0.5", "jpeg:90"], "n": 5, "output_dir": tmp_path}
    honest = audit(**kept)
    falsify(tmp_path / "cells")
    with pytest.warns(UserWarning, match="on untouched through blur:0.5;.* on untouched through jpeg:90"):
        again = audit(**kept)
    for one, other in zip(honest.situations, again.situations, strict=True):
        assert torch.equal(one.values["mse"], other.values["mse"])


@pytest.mark.usefixtures("probed")
def test_what_photos_and_probes_showed_is_not_believed_either(
    resumed: Callable[..., AuditResult], tmp_path: Path
) -> None:
    """How far photos were moved, flags of probes, and a figure that no mean counts as it is infinite."""
    greedy = {"greedy": returning(lambda x: (x + 0.3 * (len(x) > 1)).clamp(-1, 1))}
    honest = resumed(greedy, n=5)
    for file in (tmp_path / "cells").rglob("*.json"):
        stored = json.loads(file.read_text())
        piece = stored["piece"]
        for check in piece.get("checks", ()):
            check["passed"] = True
        if "photo" in piece and max(piece["photo"]["photo_moved"]) > 0.25:
            piece["photo"]["photo_moved"] = [0.05 for _ in piece["photo"]["photo_moved"]]
        elif "photo" in piece and max(piece["photo"]["photo_moved"]) == 0:
            for metrics in piece["passes"].values():
                metrics["mse"][0] = None
        file.write_text(json.dumps(stored | {"sha256": key_of(piece)}))
    with pytest.warns(UserWarning, match="did not come out again"):
        again = resumed(greedy, n=5)
    assert {"over-budget", "crafted-otherwise-alone"} <= flags(honest) == flags(again)
    anew = again.settings["computed_anew"]
    for row in ("as it is", "greedy, no leak", "greedy, as it was probed"):
        assert row in str(anew)


def test_what_cannot_be_described_is_computed_anew_and_said(resumed: Callable[..., AuditResult]) -> None:
    class Stream:
        eps = EPS

        def __init__(self) -> None:
            self.numbers = (0.1 for _ in range(10_000))

        def __call__(self, generator: Any, images: Tensor, condition: Any, clean: Any = None) -> Tensor:
            return (images + next(self.numbers)).clamp(-1, 1)

    with pytest.warns(UserWarning, match="What stream does cannot be told from its code"):
        result = resumed({"stream": Stream()})
    assert result.settings["not_described"] == ["stream"]
