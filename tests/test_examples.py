"""The example scripts, run as a user runs them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from loraguard.generators import DemoEditor

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_examples_are_short() -> None:
    scripts = list(EXAMPLES.glob("*.py"))
    assert scripts
    assert all(len(script.read_text().splitlines()) < 300 for script in scripts)


def test_train_demo_editor(tmp_path: Path) -> None:
    """Both phases of the recipe, on a few faces."""
    command = [sys.executable, EXAMPLES / "train_demo_editor.py", "--output-dir", tmp_path, "--steps", "6"]
    small = ["--adversarial-from", "3", "--log-every", "3", "--batch-size", "4", "--faces", "8", "--test-faces", "4"]
    subprocess.run([*command, *small], check=True, timeout=300)
    recipe = json.loads((tmp_path / "recipe.json").read_text())
    assert [entry["step"] for entry in recipe["log"]] == [3, 6]
    assert recipe["figures"]["psnr_db"] > recipe["log"][0]["psnr_db"] - 3
    assert recipe["figures"]["n"] == 4
    assert (tmp_path / "samples.png").stat().st_size > 10_000
    DemoEditor().load_state_dict(load_file(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("stamp", [(), ("--stamp", "AI")], ids=["standard", "defensive"])
def test_own_network(stamp: tuple[str, ...], tmp_path: Path) -> None:
    """Offline from a config, and again from a folder of that network."""
    command = [sys.executable, EXAMPLES / "own_network.py", "--output-dir", tmp_path, "--steps", "4", *stamp]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, "--faces", "4", "--size", "24"], check=True, timeout=300, env=offline, capture_output=True, text=True
    )
    assert "Merged into Swin2SRForImageSuperResolution" in done.stdout
    off = float(done.stdout.partition("at most ")[2].partition(" off")[0])
    assert off < 1e-5
    assert len(load_file(tmp_path / "patch" / "adapter_model.safetensors")) == 3 * 42
    audit = json.loads((tmp_path / "audit.json").read_text())
    assert audit["settings"]["n"] == 4
    assert (audit["settings"]["detector"] is not None) == bool(stamp)
    assert (tmp_path / "report.html").stat().st_size > 10_000
