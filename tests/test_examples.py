"""The example scripts, run as a user runs them."""

import json
import subprocess
import sys
from pathlib import Path

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
