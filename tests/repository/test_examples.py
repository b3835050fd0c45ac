"""The example scripts, run as a user runs them."""

import json
import runpy
from pathlib import Path

import pytest
import torch
from limits import with_short_attacks, without_probes
from PIL import Image
from processes import run_script
from safetensors.torch import load_file
from torch import nn

from loraguard.channels import parse_channel
from loraguard.generators import DemoDiffusion, DemoEditor
from loraguard.mark import MarkNetwork

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_examples_are_short() -> None:
    scripts = list(EXAMPLES.glob("*.py"))
    assert scripts
    assert all(len(script.read_text().splitlines()) < 300 for script in scripts)


def test_train_demo_editor(tmp_path: Path) -> None:
    """Both phases of the recipe, on a few faces."""
    words = ["--output-dir", tmp_path, "--steps", "6"]
    small = ["--adversarial-from", "3", "--log-every", "3", "--batch-size", "4", "--faces", "8", "--test-faces", "4"]
    done = run_script(EXAMPLES / "train_demo_editor.py", *words, *small)
    assert done.returncode == 0, done.stderr
    recipe = json.loads((tmp_path / "recipe.json").read_text())
    assert [entry["step"] for entry in recipe["log"]] == [3, 6]
    assert recipe["figures"]["psnr_db"] > recipe["log"][0]["psnr_db"] - 3
    assert recipe["figures"]["n"] == 4
    assert (tmp_path / "samples.png").stat().st_size > 10_000
    DemoEditor().load_state_dict(load_file(tmp_path / "model.safetensors"))


def test_train_mark_network(tmp_path: Path) -> None:
    """A run that had no time goes on where it was, and ends with the weights of an uninterrupted one."""
    settings = {"steps": 2, "pictures": 10, "test-pictures": 4, "batch-size": 2, "log-every": 1, "bits": 16}
    small = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    for name, words in (("whole", []), ("pieces", ["--minutes", "0"]), ("pieces", [])):
        done = run_script(EXAMPLES / "train_mark_network.py", "--output-dir", tmp_path / name, *small, *words)
        assert done.returncode == 0, done.stderr
    whole, pieces = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "pieces"))
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)
    recipe = json.loads((tmp_path / "pieces/recipe.json").read_text())
    assert [row["step"] for row in recipe["log"]] == [1, 2]
    assert set(recipe["figures"]) == {
        "as it is", "JPEG 50", "half the size", "blur, sigma 1.5", "noise, 0.1", "WebP 50", "crop of 3%",
    }  # fmt: skip
    network = MarkNetwork(bits=16)
    network.load_state_dict({name: value.float() for name, value in pieces.items()})


def test_train_demo_diffusion(tmp_path: Path) -> None:
    """Both networks of the recipe, in two pieces: one that has no time, and one that goes on from there."""
    words = ["--output-dir", tmp_path, "--autoencoder-steps", "4", "--adversarial-from", "2", "--denoiser-steps", "2",
             "--batch-size", "2", "--denoiser-batch-size", "2", "--faces", "6", "--denoiser-faces", "4",
             "--redraw", "6", "--test-faces", "4", "--log-every", "2"]  # fmt: skip
    first = run_script(EXAMPLES / "train_demo_diffusion.py", *words, "--minutes", "0")
    assert first.returncode == 0, first.stderr
    assert "more to do" in first.stdout
    second = run_script(EXAMPLES / "train_demo_diffusion.py", *words)
    assert second.returncode == 0, second.stderr
    assert "final" in second.stdout
    recipe = json.loads((tmp_path / "recipe.json").read_text())
    assert [(entry["part"], entry["step"]) for entry in recipe["log"]] == [
        ("autoencoder", 2), ("autoencoder", 4), ("denoiser", 2)
    ]  # fmt: skip
    editor = DemoDiffusion()
    editor.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert (editor.scale != 1).all()


@pytest.mark.parametrize("kind", ["standard", "defensive"])
def test_own_network(kind: str, tmp_path: Path) -> None:
    """Offline: a standard patch for the small network, a defensive one for a network in a folder."""
    words = ["--output-dir", tmp_path / "out", "--steps", "4", "--faces", "4", "--size", "24"]
    network = runpy.run_path(str(EXAMPLES / "own_network.py"))["small_upscaler"](24)
    if kind == "defensive":
        network.save_pretrained(tmp_path / "network")
        words += ["--pretrained", tmp_path / "network", "--stamp", "AI"]
    # One audit with probes, which call the network in all ways there are, is enough.
    first = with_short_attacks if kind == "defensive" else without_probes
    done = run_script(EXAMPLES / "own_network.py", *words, first=[first])
    assert done.returncode == 0, done.stderr
    assert "Merged into Swin2SRForImageSuperResolution" in done.stdout
    assert float(done.stdout.partition("at most ")[2].partition(" off")[0]) < 1e-4
    layers = [module for module in network.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    patch = load_file(tmp_path / "out" / "patch" / "adapter_model.safetensors")
    assert len(patch) == 3 * len(layers)  # A, B and a gate
    assert f"A {kind} patch" in (tmp_path / "out" / "patch" / "README.md").read_text()
    audit = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert audit["settings"]["n"] == 4
    assert list(audit["settings"]["detectors"]) == (["default"] if kind == "defensive" else [])
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000


def test_train_patch(tmp_path: Path) -> None:
    """Flags over a YAML file over defaults; a mixed adversary, validation and a tracker."""
    (tmp_path / "small.yaml").write_text("train_size: 8\nmax_train_steps: 9\nrank: 2\nrecipe: paper\n")
    words = "--adversary disrupting:2 noise:1 --eps 0.1 --attack_steps 1 --validation_steps 1 --validation_size 2"
    rest = "--report_to tensorboard --cpu --max_train_steps 2 --gradient_accumulation_steps 2 --disable_tqdm"
    words = ["--config", tmp_path / "small.yaml", *words.split(), *rest.split(), "--output_dir", tmp_path / "out"]
    done = run_script(EXAMPLES / "train_patch.py", *words)
    assert done.returncode == 0, done.stderr
    assert "2 steps" in done.stdout
    log = json.loads((tmp_path / "out" / "training_log.json").read_text())
    assert log["settings"]["adversary"]["class"] == "Mixture"
    assert log["settings"]["gradient_accumulation_steps"] == 2
    assert [entry["step"] for entry in log["validation"]] == [1, 2]
    assert len(load_file(tmp_path / "out" / "adapter_model.safetensors")) == 3 * 12
    assert list((tmp_path / "out").rglob("events.out.tfevents*"))


@pytest.mark.parametrize("recipe", ["paper_standard", "paper_defensive"])
def test_the_papers_recipes_are_complete(recipe: str, tmp_path: Path) -> None:
    """Every name in the shipped files is a flag, and they give the paper's settings."""
    script = runpy.run_path(str(EXAMPLES / "train_patch.py"))
    config = str(EXAMPLES / "configs" / f"{recipe}.yaml")
    flags = script["parse"](["--config", config, "--output_dir", str(tmp_path), "--seed", "3"])
    assert (flags.train_size, flags.rank, flags.loss, flags.seed) == (
        1000,
        8 if "standard" in recipe else 16,
        "mmfa",
        3,
    )
    (tmp_path / "bad.yaml").write_text("learning_rat: 1\n")
    with pytest.raises(SystemExit):
        script["parse"](["--config", str(tmp_path / "bad.yaml")])


def test_a_budget_without_an_adversary_is_not_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = runpy.run_path(str(EXAMPLES / "train_patch.py"))
    with pytest.raises(SystemExit):
        script["parse"](["--eps", "0.1", "--output_dir", str(tmp_path)])
    assert "add --adversary disrupting" in capsys.readouterr().err
    (tmp_path / "one.yaml").write_text("adversary: disrupting\neps: 0.1\n")
    flags = script["parse"](["--config", str(tmp_path / "one.yaml")])
    assert script["adversary_of"](flags).eps == 0.1


def test_train_patch_without_validation_and_with_a_mistake(tmp_path: Path, capsys) -> None:
    main = runpy.run_path(str(EXAMPLES / "train_patch.py"))["main"]
    words = f"--output_dir {tmp_path} --cpu --max_train_steps 1 --train_size 4 --train_batch_size 1 --disable_tqdm"
    main(words.split())
    assert (tmp_path / "adapter_model.safetensors").is_file()
    for mistake, said in (
        (["--adversary", "disruptin"], "Did you mean 'disrupting'"),
        (["--generator", "no"], "no 'no'"),
        (["--adversary", "noise", "--attack_steps", "3"], "--attack_steps 3: noise takes no steps"),
    ):
        with pytest.raises(SystemExit) as left:
            main([*words.split(), *mistake])
        assert left.value.code == 2
        assert said in capsys.readouterr().err


def test_train_patch_against_what_has_to_be_fitted(tmp_path: Path) -> None:
    """It is fitted before training starts, each part of a mixture by itself."""
    main = runpy.run_path(str(EXAMPLES / "train_patch.py"))["main"]
    words = f"--output_dir {tmp_path} --cpu --max_train_steps 1 --train_size 4 --train_batch_size 1 --disable_tqdm"
    main([*words.split(), "--attack_steps", "1", "--adversary", "class-transferable", "cmua", "noise"])
    adversary = json.loads((tmp_path / "training_log.json").read_text())["settings"]["adversary"]
    edits, universal, noise = adversary["defenses"]
    assert "Smiling" in edits["edits"]
    assert universal["fitted"]
    assert noise["class"] == "RandomNoise"


def test_train_denoiser(tmp_path: Path) -> None:
    """A few steps on photos in a folder; the result is a channel."""
    (tmp_path / "photos").mkdir()
    for i, size in enumerate((260, 300, 280, 256)):
        Image.effect_noise((size, size), 64).convert("RGB").save(tmp_path / "photos" / f"{i}.png")
    small = "--train-size 3 --test-size 1 --steps 4 --log-every 2 --batch-size 2 --width 4 --depth 3"
    words = ["--data", tmp_path / "photos", "--output-dir", tmp_path / "out", *small.split()]
    done = run_script(EXAMPLES / "train_denoiser.py", *words)
    assert done.returncode == 0, done.stderr
    recipe = json.loads((tmp_path / "out" / "recipe.json").read_text())
    assert [entry["step"] for entry in recipe["log"]] == [2, 4]
    assert recipe["figures"]["0.1"]["noisy_db"] == pytest.approx(26, abs=0.5)  # 20 log10(2 / 0.1)
    assert recipe["settings"]["width"] == 4
    assert parse_channel(f"denoiser:{tmp_path}/out/model.safetensors")(torch.zeros(1, 3, 8, 8)).shape == (1, 3, 8, 8)
