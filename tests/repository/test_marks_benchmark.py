"""The marks' script, with patches that have learnt nothing: every figure is there, and what must be 0 or all is."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from loraguard.defenses import RandomNoise

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_a_shortest_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script = importlib.import_module("marks")
    monkeypatch.setattr(script, "CHANNELS", {"JPEG 50": script.CHANNELS["JPEG 50"]})
    monkeypatch.setattr(script, "DEFENSES", {"noise": RandomNoise(eps=0.05)})
    monkeypatch.setattr(script, "STEPS", (1,))
    monkeypatch.setattr(script, "CALIBRATED", 20)
    monkeypatch.setattr(script, "CASES", {
        name: replace(case, size=64, batch_size=1, thorough=case.stamp is not None)
        for name, case in script.CASES.items() if name != "256 px"
    })  # fmt: skip
    arguments = {"output-dir": tmp_path / "out", "work-dir": tmp_path / "work", "steps": 1, "images": 2}
    monkeypatch.setattr(sys, "argv", ["marks.py", *(f"--{key}={value}" for key, value in arguments.items())])
    script.main()

    result = json.loads((tmp_path / "out/marks.json").read_text())
    assert [row["name"] for row in result["bound"]["best writer"]] == ["as it is", "JPEG 50"]
    assert result["bound"]["best writer"][0]["bits"] > 0.9
    patches = result["patches"]
    assert set(patches) == {"mark", "stamp and mark", "decoder"}
    assert all(one["steps"] == 1 and one["processor_seconds"] > 0 for one in patches.values())
    assert set(patches["stamp and mark"]["stamp read"]) == {"as it is", "JPEG 50", "crop of 10%"}
    rows = {row["name"]: row for row in patches["stamp and mark"]["rows"]}
    assert {"noise", "fine-tuning of all weights, 1 step", "another adapter, 1 step", "weights in 8 bits"} <= set(rows)
    assert rows["outputs of the untouched network"]["found"] == rows["photos"]["found"] == 0
    assert rows["composed with the public pattern"]["bits"] > 0.9
    assert {row["name"] for row in patches["decoder"]["rows"]} >= {"outputs", "JPEG 50", "crop of 10%"}
    assert "| outputs | " in capsys.readouterr().out
    before = (tmp_path / "out/marks.json").read_text()
    (tmp_path / "work/decoder/layers.json").write_text((tmp_path / "work/mark/layers.json").read_text())
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--only=mark", "--only=decoder"])
    script.main()  # what is kept is not measured anew
    after = json.loads((tmp_path / "out/marks.json").read_text())["patches"]
    assert after["decoder"]["rows"][:3] == json.loads(before)["patches"]["mark"]["rows"][:3]
