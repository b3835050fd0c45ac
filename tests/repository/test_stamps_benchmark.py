"""The stamps' script, with patches that have learnt nothing: every figure is there, and what must be 0% or 100% is."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
from limits import small_demo_network
from PIL import Image

from loraguard.defenses import sign_ascent
from loraguard.generators import DemoEditor

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


class Small(DemoEditor):
    """By default of the sizes that `small_demo_network` has."""

    def __init__(self) -> None:
        super().__init__(**DemoEditor.small)


def test_a_shortest_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    small_demo_network(monkeypatch)
    script = importlib.import_module("stamps")
    monkeypatch.setattr(script, "DemoEditor", Small)
    monkeypatch.setattr(script, "ATTACKER_STEPS", (0, 1))
    monkeypatch.setattr(script, "ATTACKER_IMAGES", (2,))
    monkeypatch.setattr(script, "TRAINED", (48,))
    monkeypatch.setattr(script, "SIZES", (64, 80))
    monkeypatch.setattr(script, "CHANNELS", {name: script.CHANNELS[name] for name in ("as it is", "JPEG 50")})
    monkeypatch.setattr(script, "sign_ascent", lambda *args, **given: sign_ascent(*args, **given | {"steps": 2}))
    monkeypatch.setattr(script, "DEFENSES", ["noise", "tafim"])
    monkeypatch.setattr(script, "STRONGER", {})
    arguments = {"output-dir": tmp_path, "steps": 1, "calibrated": 20, "images": 2, "attacked": 2}
    monkeypatch.setattr(sys, "argv", ["stamps.py", *(f"--{key}={value}" for key, value in arguments.items())])
    script.main()

    result = json.loads((tmp_path / "stamps.json").read_text())
    assert {row["stamp"] for row in result["unperturbed"]} == {None, "AI", "ИИ", "logo"}
    assert set(result["perturbed"]["logo"]) == {"noise", "tafim", "on the stamp itself"}
    assert result["removal"]["rows"]["adapter disabled"]["read"]["count"] == 0
    assert result["removal"]["largest_difference"] < 1e-4
    assert result["removal"]["same_keys"]
    assert result["reader"]["checked_on"] == 10
    printed = capsys.readouterr().out
    assert "| AI | 64 |" in printed
    assert "in-painted" in printed
    with Image.open(tmp_path / "images/stamps.png") as picture:
        assert picture.width > picture.height > 300


def test_a_share_has_clopper_and_pearsons_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.stats import binomtest

    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script = importlib.import_module("stamps")
    for count, n in ((0, 20), (7, 20), (20, 20)):
        expected = binomtest(count, n).proportion_ci(0.95, method="exact")
        found = script.share(count, n)
        assert found["low"] == pytest.approx(expected.low, abs=1e-7)
        assert found["high"] == pytest.approx(expected.high, abs=1e-7)
