"""The ablations' script: one shortest run, and its page and plots from made-up results."""

from __future__ import annotations

import importlib
import random
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from limits import no_probes
from PIL import Image

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
READERS = {"encoder": (1.0, 0.75), "judge": (0.9, 0.5), "terms": {"pixel": 0.125, "mse": 0.5}}


@pytest.fixture
def ablations(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script, with readers of faces that learn nothing, and no probes."""
    no_probes(monkeypatch)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script, reader = (importlib.import_module(name) for name in ("ablations", "face_reader"))
    for name, value in (("STEPS", 2), ("BATCH", 2), ("UNSEEN_FACES", 3)):
        monkeypatch.setattr(reader, name, value)
    yield script
    reader.trained_reader.cache_clear()


def made_up(seed: int) -> dict[str, Any]:
    draw = random.Random(seed).random
    share = sorted(draw() for _ in range(3))
    return {
        "clean_psnr": 20 + 10 * draw(),
        **{f"{key}_dsr": [share[1], share[0], share[2]] for key in ("no-leak", "leak")},
        **{f"{key}_mse": [0.04, 0.03, 0.05] for key in ("no-leak", "leak")},
        "labels_kept": draw(),
        "first_gradient": 0.01,
        "largest_gradient": 10 ** (4 * draw() - 2),
        "loss_at_start": 0.06,
        "loss_at_end": draw(),
        "skipped": 0,
        "parameters": 12345,
        "seconds": 20 * draw(),
        "untouched_dsr": 0.98,
        "untouched_labels_kept": 0.7,
    }


def test_every_ablation_holds_the_usual_run(ablations: ModuleType) -> None:
    setups = ablations.setups()
    usual = ablations.Setup()
    assert all(usual in runs.values() for runs in setups.values())
    assert all(len(set(runs.values())) == len(runs) for runs in setups.values())


def test_a_run_is_known_by_all_that_it_was_given(ablations: ModuleType) -> None:
    """And not by what a defense has as its default, which may become more."""
    runs = {setup for one in ablations.setups().values() for setup in one.values()}
    assert len(set(map(str, runs))) == len(runs)
    assert "adversary=Disrupting(eps=0.1, steps=2, step_size=0.1), features=()" in str(ablations.Setup())


def test_shortest_run(ablations: ModuleType) -> None:
    """Trains, attacks, and gives what the made-up results have."""
    setup = ablations.Setup(r=1, features=("mse", "cosine"), faces=2, steps=2, batch=1, test_faces=2)
    row = ablations.run(setup)
    assert row.keys() == made_up(0).keys()
    # At B = 0 the patch is the identity: the adversary alone makes the first loss. Two steps on, it still spoils.
    assert row["loss_at_start"] > 0.01
    assert 0 < row["first_gradient"] <= row["largest_gradient"]
    assert row["untouched_dsr"] == 1
    assert row["leak_dsr"][1] <= row["leak_dsr"][0] <= row["leak_dsr"][2]
    assert 0 <= row["labels_kept"] <= 1
    # Rank 1: for each of the layers k*k*in + out, and a gate; convolutions of 16 to 64 channels, labels beside pixels.
    shapes = [(8, 16, 7), (16, 32, 4), (32, 64, 4), *[(64, 64, 3)] * 6, (64, 32, 4), (32, 16, 4), (16, 3, 7)]
    assert row["parameters"] == sum(k * k * wide_in + wide_out + 1 for wide_in, wide_out, k in shapes)


def test_readers(ablations: ModuleType) -> None:
    found = ablations.readers(faces=2)
    assert list(found["terms"]) == ["pixel", "mse", "cosine"]
    assert found["terms"]["pixel"] > 0.05  # the untouched generator is disrupted
    assert all(0 <= share <= 1 for name in ("encoder", "judge") for share in found[name])


def test_page(
    ablations: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run is made once, whatever it is called, and found again; what is written above the tables stays."""
    ran = []

    def run(setup: Any) -> dict[str, Any]:
        ran.append(setup)
        return made_up(len(ran))

    monkeypatch.setattr(ablations, "run", run)
    monkeypatch.setattr(ablations, "readers", lambda: READERS)
    monkeypatch.setattr("sys.argv", ["ablations.py", "--output-dir", str(tmp_path)])
    setups = ablations.setups()
    ablations.main()
    assert sorted(map(str, ran)) == sorted({str(setup) for runs in setups.values() for setup in runs.values()})
    page = tmp_path / "ablations.md"
    first = page.read_text()
    assert first.startswith("# Ablations\n\n## Tables\n")
    assert "has 100.0% of the labels right on unseen faces, and all five of 75.0%." in first

    ran.clear()
    page.write_text(first.replace("\n## Tables", "\nA finding.\n\n## Another\n\nOne more.\n\n## Tables"))
    ablations.main()
    assert not ran
    above, _, below = page.read_text().partition("\n## Tables\n")
    assert above == "# Ablations\n\nA finding.\n\n## Another\n\nOne more.\n"
    assert below == first.partition("\n## Tables\n")[2]

    for block in below.split("\n### ")[1:]:
        title, _, table = block.partition("\n\n")
        header, rule, *rows = table.strip().splitlines()
        assert [row.split(" | ")[0] for row in rows] == [f"| {name}" for name in setups[title.lower()]]
        assert {line.count("|") for line in (header, rule, *rows)} == {header.count("|")}
    usual = made_up(1 + list(setups["gate"].values()).index(ablations.Setup()))
    assert f"| pixel | {usual['clean_psnr']:.1f} | {100 * usual['no-leak_dsr'][0]:.0f}% (" in below
    for name in ("ablations-gate.png", "ablations.png"):
        with Image.open(tmp_path / "images" / name) as picture:
            assert picture.width == 1260
            corner, alphas = picture.getpixel((0, 0)), picture.getchannel("A").getextrema()
        assert corner[3] == 0  # the page shows through
        assert alphas == (0, 255)
