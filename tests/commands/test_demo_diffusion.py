"""The latent-diffusion editor that ships, and the demo that goes with it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from limits import at_most, no_probes, short_attacks
from peft import PeftModel
from torch import Tensor

import loraguard.generators.diffusion
from loraguard.audit import run_audit
from loraguard.commands.demo_diffusion import BUDGET, DiffusionDemoSettings, protections, run_diffusion_demo
from loraguard.data import DemoFaces
from loraguard.data.demo_faces import render
from loraguard.defenses import PhotoGuard, RandomNoise
from loraguard.generators import DemoDiffusion, load_generator, up_to
from loraguard.metrics import psnr

WEIGHTS = Path(loraguard.generators.diffusion.__file__).parent / "demo_weights"
N = 12


@pytest.fixture(scope="module")
def editor() -> DemoDiffusion:
    return DemoDiffusion.pretrained()


@pytest.fixture(scope="module")
def unseen() -> tuple[DemoFaces, Tensor, Tensor]:
    faces = DemoFaces(N, split="never seen")
    samples = faces.__getitems__(list(range(N)))
    return faces, *(torch.stack([sample[key] for sample in samples]) for key in ("image", "labels"))


def test_the_shipped_weights_are_small_and_say_where_they_come_from() -> None:
    assert (WEIGHTS / "model.safetensors").stat().st_size <= 4 * 1024**2
    recipe = json.loads((WEIGHTS / "recipe.json").read_text())
    assert recipe["log"][-1]["part"] == "denoiser"
    assert recipe["figures"]["round_trip_db"] >= recipe["figures"]["edit_db"]


@torch.no_grad()
def test_the_shipped_editor_edits(editor: DemoDiffusion, unseen: tuple[DemoFaces, Tensor, Tensor]) -> None:
    """Against the drawn truth, each edit is nearer than the photo is, where both differ."""
    faces, images, labels = unseen
    traits, recipe = faces.traits(list(range(N))), json.loads((WEIGHTS / "recipe.json").read_text())
    figures = []
    for name, condition in editor.conditions(labels).items():
        truth, outputs = render(traits, condition["labels"], 64), editor(images, **condition)
        figures.append(psnr(outputs, truth).mean().item())
        where = ((truth - images).abs() > 0.2).float()
        assert ((outputs - truth).abs() * where).sum() < 0.7 * ((images - truth).abs() * where).sum(), name
    # The recipe's figure is of random edits of other faces; a dB is many times the error of either mean.
    assert sum(figures) / len(figures) == pytest.approx(recipe["figures"]["edit_db"], abs=1.5)


@torch.no_grad()
def test_noise_is_the_same_every_time_and_a_photo_s_own(editor: DemoDiffusion) -> None:
    images, labels = torch.zeros(3, 3, 16, 24), torch.eye(5)[:3]
    assert torch.equal(editor(images, labels), editor(images, labels))
    alone = editor(images[1:2], labels[1:2], seeds=torch.tensor([4]))
    together = editor(images, labels, seeds=torch.tensor([3, 4, 5]))
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-4)
    assert not torch.equal(editor(images, labels, seeds=torch.tensor([0, 0, 1]))[2], editor(images, labels)[2])


def test_its_schedule_and_velocity_are_one(editor: DemoDiffusion) -> None:
    """An edit is Euler's steps down the velocity, and the noise that is predicted is what the velocity says."""
    images, labels, times = torch.zeros(2, 3, 16, 16), torch.eye(5)[:2], torch.tensor([199, 899])
    with torch.no_grad():
        z = up_to(editor, editor.latent_layer)(images, labels=labels)
        noise = editor.noise_like(z)
        a, b = editor.levels(times)
        torch.testing.assert_close(b.flatten(), torch.tensor([0.2, 0.9]))
        noised = a * z + b * noise
        velocity = editor.denoiser(noised, b.flatten(), z, labels)
        predicted = editor.predict_noise(noised, times, z, labels=labels)
        torch.testing.assert_close(noised - b * velocity + velocity, predicted, rtol=1e-4, atol=1e-4)


def test_it_gives_way_to_protections_more_than_to_noise(
    editor: DemoDiffusion, unseen: tuple[DemoFaces, Tensor, Tensor]
) -> None:
    """At 16/255 each spoils edits several times as much as random noise of the same budget."""
    _, images, labels = unseen
    images, condition = images[:3], editor.conditions(labels[:3])["Eyeglasses"]
    with torch.no_grad():
        clean = editor(images, **condition)

    def spoilt(perturbed: Tensor) -> float:
        with torch.no_grad():
            return float((editor(perturbed, **condition) - clean).square().mean())

    torch.manual_seed(0)
    noise = spoilt(RandomNoise(BUDGET)(editor, images, condition))
    for name, defense in protections(30).items():
        assert spoilt(defense(editor, images, condition)) > 2 * noise, name


def test_the_usual_threshold_is_said_to_be_out_of_its_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """PhotoGuard raises the MSE to many times what noise does, and none comes near 0.05: audits say so."""
    no_probes(monkeypatch)
    editor = DemoDiffusion.pretrained()
    editor.steps = 1
    defenses = {"photoguard": PhotoGuard(BUDGET, 5)}
    faces = DemoFaces(6, size=32, split="test")
    found = run_audit(editor, faces, defenses=defenses, disable_tqdm=True)
    assert found["untouched", "no-leak"].values["dsr"].sum() == 0
    assert "threshold-out-of-reach" in found.flags(found["untouched", "no-leak"])
    # What the demo takes for success is reached.
    found = run_audit(editor, faces, defenses=defenses, success=DiffusionDemoSettings().success, disable_tqdm=True)
    assert "threshold-out-of-reach" not in found.flags(found["untouched", "no-leak"])


def test_by_name_and_another_size() -> None:
    editor = load_generator("demo_diffusion")
    assert isinstance(editor, DemoDiffusion)
    with torch.no_grad():
        assert editor(torch.zeros(1, 3, 32, 40), torch.zeros(1, 5)).shape == (1, 3, 32, 40)
    with pytest.raises(ValueError, match=r"Expected labels \(1, 5\)"):
        editor(torch.zeros(1, 3, 16, 16), torch.zeros(2, 5))
    with pytest.raises(ValueError, match="steps=0 must be at least 1"):
        DemoDiffusion(steps=0)


def test_the_demo_from_end_to_end(tmp_path, capsys, monkeypatch) -> None:
    short_attacks(monkeypatch)
    at_most(monkeypatch, DemoFaces, size=32)
    settings = replace(DiffusionDemoSettings().quick(), test_images=2)
    result = run_diffusion_demo(tmp_path, settings, disable_tqdm=True)
    assert result.report.is_file()
    assert isinstance(result.model, PeftModel)
    adapted = [name for name, p in result.model.named_parameters() if "lora_" in name]
    assert adapted
    assert all(".encoder." in name for name in adapted)
    assert set(json.loads((tmp_path / "audit.json").read_text())["settings"]["demo"]) >= {"adapt", "steps", "seed"}
    said = capsys.readouterr().out
    assert "Training a patch of the encoder in 2 steps" in said
    assert "photoguard, mist, sds" in said
