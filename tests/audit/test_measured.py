"""What is measured beside pixels: identity by an encoder from a folder, and what the command line says of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import run
from peft import PeftModel
from setups import Flip
from torch import nn
from torch.nn.functional import cosine_similarity
from torchvision.models import AlexNet_Weights
from transformers import ConvNextImageProcessor, ResNetConfig, ResNetModel

from loraguard.audit import run_audit
from loraguard.audit.identity import identity
from loraguard.audit.measure import Measures
from loraguard.commands.audit import load_lpips
from loraguard.data import DemoFaces
from loraguard.losses import FeatureEncoder
from loraguard.metrics import LPIPS

QUICK = ["--defense", "disrupting:0.1,steps=2", "--batch-size", "2", "--device", "cpu", "--checks", "0"]


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """The folder of a tiny network that stands for a face encoder."""
    torch.manual_seed(5)
    folder = tmp_path / "encoder"
    ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])).eval().save_pretrained(folder)
    ConvNextImageProcessor(size={"shortest_edge": 32}).save_pretrained(folder)
    return folder


def test_identity_decides_success_from_the_command_line(tiny: list[str], encoder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run("audit", *tiny, *QUICK, "--output-dir", out, "--identity", encoder, "--success", "identity:0.9999")
    assert done.exit_code == 0, done.output
    found = json.loads((out / "audit.json").read_text())
    assert found["settings"]["success"] == "identity:0.9999"
    rows = [line.split(",") for line in (out / "images.csv").read_text().replace('"', "").splitlines()]
    at = {name: rows[0].index(name) for name in ("dsr", "identity", "knowledge")}
    assert {float(row[at["dsr"]]) for row in rows[1:] if row[at["knowledge"]] == "clean"} == {0.0}
    for row in rows[1:]:
        assert float(row[at["dsr"]]) == (float(row[at["identity"]]) < 0.9999)


def test_an_encoder_is_the_same_when_it_is_loaded_again(encoder: Path) -> None:
    """Or else a resumed audit would find nothing of what it has stored."""
    first, second = (identity(FeatureEncoder.from_pretrained(encoder, name="tiny")) for _ in range(2))
    assert first == second
    assert "opaque" not in first


def test_identity_is_the_cosine_of_pooled_features(encoder: Path) -> None:
    network = FeatureEncoder.from_pretrained(encoder, name="tiny")
    draws = torch.rand(2, 3, 32, 32) * 2 - 1
    a, b = (ResNetModel.from_pretrained(encoder)(network.preprocess(one)["pixel_values"]).pooler_output.flatten(1)
            for one in (draws, draws.flip(3)))  # fmt: skip
    found = Measures(identity=network)("mine", draws, draws.flip(3), draws, draws)["identity"]
    assert torch.allclose(found, cosine_similarity(a, b), atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--success", "identity:0.5"], "--identity"),
        (["--identity", "nowhere/at/all"], "no face encoder nowhere/at/all"),
        (["--identity", "{folder}@patch"], "one vector for each image"),
        (["--identity", "{folder}@cls"], "no class token"),
        (["--identity", "{empty}"], "lacks config.json"),
    ],
)
def test_what_is_no_face_encoder(flags: list[str], said: str, tiny: list[str], encoder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    given = [one.format(folder=encoder, empty=tmp_path / "empty") for one in flags]
    done = run("audit", *tiny, *QUICK, *given, "--output-dir", tmp_path / "out")
    assert done.exit_code == 2
    assert said in done.stderr.splitlines()[-1]  # after transformers' own progress bars
    assert not (tmp_path / "out" / "cells").exists()


def test_the_benchmark_s_preset_from_the_command_line(tiny: list[str], encoder: Path, tmp_path: Path) -> None:
    """All four of its metrics but LPIPS, whose weights are not at hand; its table on the screen and on the page."""
    done = run("audit", *tiny, *QUICK, "--output-dir", tmp_path / "out", "--identity", encoder, "--images", 2,
               "--preset", "proactive-benchmark-2026", "--lpips", "none")  # fmt: skip
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.stdout.splitlines()]
    at = lines.index(["defense", "MSE", "CIDR", "BRISQUE", "AvgRank", "ROB", "TE"])
    name, *figures = lines[at + 1]
    assert (name, figures[3], figures[5]) == ("disrupting", "1.00", "-")
    assert 0 < float(figures[4]) <= 1
    assert '<h2 id="benchmark">' in (tmp_path / "out" / "report.html").read_text()
    images = (tmp_path / "out" / "images.csv").read_text().splitlines()[0].replace('"', "").split(",")
    assert {"identity", "cidr", "brisque"} <= set(images)
    assert not json.loads((tmp_path / "out" / "audit.json").read_text())["settings"]["lpips"]


def test_lpips_is_measured_where_its_weights_are_at_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(LPIPS, "load", classmethod(lambda cls, **how: how))
    assert load_lpips("auto", (64, 64)) is None
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / AlexNet_Weights.IMAGENET1K_V1.url.rpartition("/")[2]).touch()
    assert load_lpips("auto", (64, 64)) == {"local_files_only": True}
    assert load_lpips("auto", (64, 30)) is None  # AlexNet needs 31 pixels
    assert load_lpips("none", (64, 64)) is load_lpips(None, (64, 64)) is None


def test_what_an_encoder_makes_of_a_target_is_computed_once(model: PeftModel, faces: DemoFaces) -> None:
    calls = []

    class Counted(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            calls.append(len(images))
            return images.mean((2, 3)) + 1

    run_audit(model, faces, defenses=Flip(), patches={"standard": None}, identity=Counted(), disable_tqdm=True)
    # on each of two generators: photos as they are, noise and no leak; and one leak. Two targets, and the photos.
    assert len(calls) == 2 * 3 + 1 + 2 + 1
