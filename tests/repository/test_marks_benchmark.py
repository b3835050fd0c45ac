"""The marks' script, with patches that have learnt nothing: every figure is there, and what must be 0 or all is."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from loraguard.generators import DemoEditor

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
LEFT = {"group": "layers", "name": "outputs", "found": 1, "n": 2, "low": 0.1, "high": 0.9, "bits": 0.75, "psnr": 30.0}


def tiny() -> DemoEditor:
    """A generator of the same weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return DemoEditor(conv_dim=4, num_blocks=1).requires_grad_(False).eval()


def test_a_shortest_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script = importlib.import_module("marks")
    small = {"SLOW_STEPS": (2,)}
    small |= {"STEPS": (1,), "FACTORS": (1.0,), "CALIBRATED": 20, "ATTACKER": 2, "FORGED": 2, "WRITER_STEPS": 25}
    small |= {"CHANNELS": {"JPEG 50": script.CHANNELS["JPEG 50"]}, "DEFENSES": {"noise": script.NOISE}}
    for name, value in small.items():
        monkeypatch.setattr(script, name, value)
    both, decoder = script.CASES["stamp and mark"], script.CASES["decoder"]
    plate = replace(both.stamp, of_width=32)
    both = replace(
        both,
        generator=tiny,
        untouched=tiny,
        stamp=plate,
        adversary=script.NOISE,
        sizes=(32,),
        trained=(32,),
        batch_size=1,
    )
    decoder = replace(decoder, sizes=(32,), trained=(32,), batch_size=1)
    corners = replace(script.CASES["every size"], generator=tiny, untouched=tiny, sizes=(64, 80), trained=(64, 80))
    corners = replace(corners, removal=True)
    cases = {"stamp and mark": both, "decoder": decoder, "every size": corners}
    monkeypatch.setattr(script, "CASES", cases)
    (tmp_path / "work/decoder").mkdir(parents=True)
    (tmp_path / "work/decoder/layers.json").write_text(json.dumps([LEFT]))
    arguments = {"output-dir": tmp_path / "out", "work-dir": tmp_path / "work", "steps": 1, "images": 1}
    monkeypatch.setattr(sys, "argv", ["marks.py", *(f"--{key}={value}" for key, value in arguments.items())])
    script.main()

    result = json.loads((tmp_path / "out/marks.json").read_text())
    assert [row["name"] for row in result["bound"]["best writer"]] == ["as it is", "JPEG 50"]
    assert result["bound"]["best writer"][0]["bits"] > 0.9
    patches = result["patches"]
    assert all(one["steps"] == 1 and one["processor_seconds"] > 0 and one["factor"] == 1 for one in patches.values())
    stamped = patches["stamp and mark"]
    assert set(stamped["stamp read"]) == {"as it is", "JPEG 50", "crop of 10%"}
    assert set(stamped["message read without knowing it"]) == {"as it is", "JPEG 50", "crop of 10%"}
    assert stamped["psnr outside of the stamp"] > 20
    rows = {row["name"]: row for row in stamped["rows"]}
    assert {"noise", "fine-tuning of all weights, 1 step", "another adapter, 1 step", "weights in 8 bits"} <= set(rows)
    assert {"fine-tuning of all weights at 1e-4, 2 steps", "another adapter at 1e-4, 2 steps"} <= set(rows)
    assert rows["outputs of the untouched network"]["found"] == rows["photos"]["found"] == 0
    assert rows["composed with the public pattern"]["bits"] > 0.9
    assert patches["decoder"]["rows"][0] == LEFT  # what an earlier run has left is not measured anew
    assert [row["name"] for row in patches["decoder"]["rows"]] == ["outputs", "JPEG 50", "crop of 10%"]
    for size in (64, 80):
        assert patches[f"every size, {size} px"]["psnr in the corners"] > 20
        assert patches[f"every size, {size} px"]["rows"][2]["found"] == 0
        names = {row["name"] for row in patches[f"every size, {size} px"]["rows"]}
        assert ("another adapter, 1 step" in names) == (size == 64)
    with Image.open(tmp_path / "out/images/mark-every-size-80-px.png") as picture:
        assert picture.size == (80, 3 * 80)  # one photo, three rows
    assert "| outputs | " in capsys.readouterr().out
