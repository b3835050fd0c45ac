"""What every defense that is fitted promises: budgets, seeds, files, and a place in an audit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from limits import short_attacks
from linear import EPS
from small_fitted import SMALL, fitted
from torch import nn

from loraguard.audit import run_audit
from loraguard.channels import Quantize, published, quantize
from loraguard.data import DemoFaces
from loraguard.defenses import DEFENSES, Fittable
from loraguard.defenses.cmua import CMUA
from loraguard.defenses.tsdf import TSDF
from loraguard.describing import describe
from loraguard.generators import DemoEditor


@pytest.mark.parametrize("name", SMALL)
def test_registered_and_fittable(name: str) -> None:
    assert DEFENSES[name] is type(SMALL[name])
    assert isinstance(SMALL[name], Fittable)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [16, 20])
def test_published_photos_are_8_bit_and_within_the_budget(name: str, size: int) -> None:
    photos = quantize(torch.rand(3, 3, size, size) * 2 - 1)
    photos[0] = photos[0].sign()
    defended = fitted(name)(nn.Identity(), photos, {})
    assert defended.shape == photos.shape
    assert not defended.requires_grad
    assert (defended - photos).abs().max() <= EPS + 1e-6
    assert defended.abs().max() <= 1
    shown = published(defended, photos)
    levels = (shown + 1) * 127.5
    assert torch.allclose(levels, levels.round(), atol=1e-3)
    assert (shown - photos).abs().max() <= EPS
    assert (defended != photos).any()


@pytest.mark.parametrize("name", SMALL)
def test_a_smaller_budget_of_the_same_fit_is_kept(name: str) -> None:
    """Whatever was fitted, a photo moves no further than eps."""
    photos = torch.rand(2, 3, 16, 16) - 0.5
    learnt = fitted(name).fitted
    assert learnt is not None
    allowed = (fitted(name)(nn.Identity(), photos, {}) - photos).abs().max().item() / 2
    defended = replace(SMALL[name], eps=allowed).having(learnt)(nn.Identity(), photos, {})
    assert (defended - photos).abs().max().item() == pytest.approx(allowed, abs=1e-6)


@pytest.mark.parametrize("name", SMALL)
def test_same_seed_same_fit(name: str) -> None:
    photos = torch.rand(2, 3, 16, 16) - 0.5
    once = fitted(name)(nn.Identity(), photos, {})
    fitted.cache_clear()
    assert torch.equal(fitted(name)(nn.Identity(), photos, {}), once)
    assert not torch.equal(fitted(name, seed=1)(nn.Identity(), photos, {}), once)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("training", [True, False])
def test_leaves_generators_and_the_defense_alone(name: str, training: bool, editor: DemoEditor) -> None:
    editor.train(training)
    editor.main[0].weight.requires_grad_(False)
    asked = [parameter.requires_grad for parameter in editor.parameters()]
    before = {key: value.clone() for key, value in editor.state_dict().items()}
    defense = SMALL[name]
    defense.fit(editor, DemoFaces(4, size=16), disable_tqdm=True)
    assert defense.fitted is None
    assert editor.training == training
    assert [parameter.requires_grad for parameter in editor.parameters()] == asked
    assert all(parameter.grad is None for parameter in editor.parameters())
    assert all(torch.equal(before[key], value) for key, value in editor.state_dict().items())
    assert not any(module._forward_hooks for module in editor.modules())


@pytest.mark.parametrize("name", SMALL)
def test_not_fitted(name: str) -> None:
    with pytest.raises(ValueError, match=r"not fitted: call .*\.fit\(generators, photos\)"):
        SMALL[name](nn.Identity(), torch.zeros(1, 3, 16, 16), {})
    with pytest.raises(ValueError, match="not fitted"):
        SMALL[name].save("nowhere/x.safetensors")
    with pytest.raises(ValueError, match="not fitted"):  # changed settings have to be fitted again
        replace(fitted(name), eps=0.01)(nn.Identity(), torch.zeros(1, 3, 16, 16), {})


@pytest.mark.parametrize("name", SMALL)
def test_saved_and_loaded(name: str, tmp_path: Path) -> None:
    defense, photos = fitted(name), torch.rand(2, 3, 16, 16) - 0.5
    path = defense.save(tmp_path / "new" / "defense.safetensors")
    assert [file.name for file in path.parent.iterdir()] == ["defense.safetensors"]
    state = torch.get_rng_state()
    loaded = type(defense).load(path)
    assert torch.equal(torch.get_rng_state(), state)
    assert loaded == defense
    assert describe(loaded) == describe(defense)
    assert torch.equal(loaded(nn.Identity(), photos, {}), defense(nn.Identity(), photos, {}))


def test_what_cannot_be_saved_is_described(tmp_path: Path) -> None:
    identity = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    faces = DemoFaces(4, size=16)
    with_identity = replace(SMALL["id-guard"], identity=identity).fit(DemoEditor(4, 1), faces, disable_tqdm=True)
    with_channel = replace(SMALL["tafim"], channel=Quantize()).fit(DemoEditor(4, 1), faces, disable_tqdm=True)
    for defense, name, said in (
        (with_identity, "identity", "Sequential"),
        (with_channel, "channel", "Quantize(bits=8, pass_through=False)"),
    ):
        loaded = type(defense).load(defense.save(tmp_path / "defense.safetensors"))
        assert describe(loaded)[name] == said
        assert getattr(type(loaded).load(loaded.save(tmp_path / "again.safetensors")), name) == said
        with pytest.raises(ValueError, match=f"give {name} itself"):
            loaded.fit(DemoEditor(4, 1), faces)


def test_files_that_are_not_what_was_asked_for(tmp_path: Path) -> None:
    path = fitted("cmua").save(tmp_path / "defense.safetensors")
    with pytest.raises(FileNotFoundError, match="other"):
        CMUA.load(tmp_path / "other")
    with pytest.raises(ValueError, match="holds CMUA, not TSDF"):
        TSDF.load(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="no complete safetensors"):
        CMUA.load(path)


@pytest.mark.parametrize("name", SMALL)
def test_described_in_json_by_what_was_fitted(name: str) -> None:
    words = json.dumps(describe(fitted(name)))
    assert "sha256" in words
    assert words != json.dumps(describe(fitted(name, seed=1)))
    assert describe(SMALL[name])["fitted"] is None


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_audited(patched: nn.Module) -> None:
    """As any defense: taken as it is for the untouched generator, and fitted to the patched one, in PEFT's wrapping."""
    result = run_audit(
        patched, DemoFaces(3, size=16, split="test"), defenses={"tsdf": fitted("tsdf")}, patches={"default": None},
        fit_on=DemoFaces(4, size=16), disable_tqdm=True,
    )  # fmt: skip
    json.dumps(result.to_dict(), allow_nan=False)


def test_tafim_alone_is_audited_beside_noise_and_further_attacks_of_its_budget(
    patched: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It clips to L-infinity on images, whatever the paper does."""
    short_attacks(monkeypatch)
    result = run_audit(
        patched, DemoFaces(2, size=16, split="test"), defenses={"tafim": fitted("tafim")}, patches={"default": None},
        no_leak_only=["tafim"], checks=1, disable_tqdm=True,
    )  # fmt: skip
    assert [row.treatment.eps for row in result.find(knowledge="noise", generator="untouched")] == [EPS]
    assert result.find(role="check")
    assert result.settings["budget"].startswith(f"L-infinity {EPS:g} on [-1, 1]")
