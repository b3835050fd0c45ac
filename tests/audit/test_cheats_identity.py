"""Cheats that mix up what figures belong to: each is planted in a small audit whose honest twin stays silent."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from planted import EPS, Editor, Faces, Wrapped, audit, flags
from setups import Flip
from torch import Tensor, nn

from loraguard import GatedLoraConfig
from loraguard.audit import AuditResult, run_audit
from loraguard.audit.identity import architecture
from loraguard.defenses import Disrupting
from loraguard.generators import Condition


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
