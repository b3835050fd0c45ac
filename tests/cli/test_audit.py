"""`loraguard audit`, `compare` and `protect`, and an audit that is killed and interrupted."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from command_line import refused, run, run_forked
from moments import signal_at_call
from PIL import Image
from tiny import register
from typer.testing import CliRunner

from loraguard.audit.store import Store
from loraguard.cli import app
from loraguard.commands.audit_settings import SETTINGS, AuditSettings

QUICK = ["--defense", "disrupting:0.1,steps=2", "--batch-size", "2"]


@pytest.fixture
def settings_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., AuditSettings]:
    """What an audit by these arguments would be of, where there are the files and folders that they name."""
    monkeypatch.chdir(tmp_path)
    for file in ("a.ckpt", "inception.pth"):
        Path(file).touch()
    for folder in ("x", "d", "e", "c"):
        Path(folder).mkdir()

    def settings_of(*arguments: object) -> AuditSettings:
        seen: list[AuditSettings] = []

        def look(settings: AuditSettings, *_: object, **__: object) -> None:
            seen.append(settings)
            raise ValueError("seen")

        with monkeypatch.context() as patch:
            patch.setattr("loraguard.commands.audit.audit_by_settings", look)
            assert "seen" in refused("audit", "--output-dir", tmp_path / "out", *arguments)
        return seen[0]

    return settings_of


FLAGS = (
    "--generator stargan --checkpoint a.ckpt --image-size 128 --patch mine=p/one --patch q/two --other third=demo "
    "--ignore-fingerprint "
    "--train standard --train fine-tune --train-steps 9 --data folder:x --split test --images 5 --fit-images 6 "
    "--defense disrupting:0.1,steps=3 --defense weak=noise --no-leak-only weak --perturbed theirs=d --channel jpeg:75 "
    "--channel jpeg:75+resize:0.5 --no-adaptive --allow-large-change --success noise:0.9 --budget 0.1 --budget 16/255 "
    "--strength 5 --seed 1 --seed 2 --checks 0 "
    "--lpips cache --identity e --clip c --brisque --preset proactive-benchmark-2026 --transfer mine "
    "--transfer untouched --detect 7 --fid inception.pth --batch-size 7 --pictures 1 --device cpu"
)
YAML = """
generator: stargan
checkpoint: a.ckpt
image_size: 128
patches: {mine: p/one, two: q/two}
others: {third: demo}
ignore_fingerprint: true
train: [standard, fine-tune]
train_steps: 9
data: folder:x
split: test
images: 5
fit_images: 6
defenses: {disrupting: "disrupting:0.1,steps=3", weak: noise}
no_leak_only: [weak]
perturbed: {theirs: d}
allow_large_change: true
success: noise:0.9
channels: ["jpeg:75", "jpeg:75+resize:0.5"]
adaptive_channels: false
budgets: [0.1, 16/255]
strengths: [5]
seeds: [1, 2]
checks: 0
lpips: cache
identity: e
clip: c
brisque: true
preset: proactive-benchmark-2026
transfer: [mine, untouched]
detect: 7
fid: inception.pth
batch_size: 7
pictures: 1
device: cpu
"""


def test_flags_and_yaml_are_the_same(settings_of: Callable[..., AuditSettings], tmp_path: Path) -> None:
    """Every setting, none at its default."""
    (tmp_path / "a.yaml").write_text(YAML)
    by_flags = settings_of(*FLAGS.split())
    assert by_flags == settings_of("--config", tmp_path / "a.yaml")
    assert {key for key, value in vars(AuditSettings()).items() if vars(by_flags)[key] == value} == set()


def test_flags_go_first_and_defaults_last(settings_of: Callable[..., AuditSettings], tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("images: 5\nchecks: 3\nadaptive_channels: false\n")
    found = settings_of("--config", tmp_path / "a.yaml", "--images", 7, "--adaptive", "--checks", 0)
    assert found == AuditSettings(images=7, checks=0)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--generator", "stargam"], "Did you mean 'stargan'?"),
        (["--data", "demos"], "Did you mean 'demo'?"),
        (["--data", "nowhere/at/all"], "no data 'nowhere/at/all'"),
        (["--image-size", "64"], "Tiny ships with its weights, and they fix size; leave it out"),
        (["--defense", "disruptin"], "Did you mean 'disrupting'?"),
        (["--defense", "disrupting:steps=2.5"], "steps=2.5 must be a whole number"),
        (["--defense", "noise", "--defense", "noise:0.1"], "Two are called 'noise'; give one another name: OTHER="),
        (["--defense", "noise"], "the name 'noise' is taken"),
        (["--channel", "jpg:75"], "Did you mean 'jpeg'?"),
        (["--channel", "jpeg:high"], "quality='high'"),
        (["--images", "-1"], "images=-1 must be greater than or equal to 1"),
        (["--images", "99"], "Too few photos"),
        (["--budget", "9"], "budgets[0]=9.0 must be less than or equal to 2"),
        (["--steps", "0"], "steps[0]=0 must be greater than or equal to 1"),
        (["--train", "finetune"], "must be 'standard', 'ungated', 'clean-only' or 'fine-tune'"),
        (["--train-steps", "3"], "train_steps is of what"),
        (["--patch", "nowhere/at/all"], "nowhere/at/all"),
        (["--perturbed", "theirs=nowhere"], "no folder nowhere"),
        (["--perturbed", "theirs=."], "TinyFaces has no photos with names of files"),
        (["--lpips", "nowhere.pth"], "nowhere.pth"),
        (["--success", "identity:0.5"], "success='identity:0.5' needs a face encoder: --identity"),
        (["--success", "clip:0.2"], "success='clip:0.2' needs a CLIP or SigLIP: --clip"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_mistakes_are_said_in_a_line_before_anything(
    flags: list[str], said: str, tiny: list[str], tmp_path: Path
) -> None:
    assert said in refused("audit", *tiny, *flags, "--output-dir", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


def test_words_for_numbers_are_refused(tmp_path: Path) -> None:
    for flags in (["--images", "many"], ["--budget", "all"], ["--device", "abacus"]):
        result = run("audit", *flags, "--output-dir", tmp_path / "out")
        assert result.exit_code == 2
        assert f"Invalid value for '{flags[0]}'" in result.stderr


def test_where_an_audit_goes(tmp_path: Path) -> None:
    assert "--output-dir FOLDER" in refused("audit")
    (tmp_path / "file").write_text("")
    assert "Cannot write to the output folder" in refused("audit", "--output-dir", tmp_path / "file")
    assert "There is no audit in" in refused("audit", "--resume", tmp_path)
    for more in (["--images", "3"], ["--config", "a.yaml"], ["--output-dir", "b"], ["--no-adaptive"]):
        assert "give no other flags" in refused("audit", "--resume", tmp_path, *more)


def test_what_differs_from_an_audit_in_the_folder_is_said(tiny: list[str], tmp_path: Path) -> None:
    same = ["--output-dir", tmp_path, *QUICK, "--device", "cpu", "--checks", 0]
    assert "holds an audit" not in run("audit", *tiny, *same).stdout
    said = run("audit", *tiny, *same, "--defense", "weak=disrupting:0.1,steps=1", "--channel", "jpeg:75").stdout
    assert f"{tmp_path} holds an audit with other defenses, channels. Its report will be replaced" in said
    (tmp_path / SETTINGS).write_text("colour: red")
    assert "holds an audit with other settings. Its report" in run("audit", *tiny, *same).stdout


def test_an_audit_from_start_to_comparison(tiny: list[str], tmp_path: Path) -> None:
    """Its table, its settings, the same again from them alone, and two beside each other."""
    done = run("audit", *tiny, *QUICK, "--train", "standard", "--train-steps", 2, "--channel", "jpeg:75",
               "--output-dir", tmp_path / "a", "--device", "cpu")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "Training standard on 8 photos" in done.stdout
    assert "Auditing 1 defense on 4 photos" in done.stdout
    lines = done.stdout.splitlines()
    assert any(line.split()[:3] == ["generator", "photo", "channel"] for line in lines)
    assert any(line.startswith("standard") and "disrupting, leak" in line and "jpeg:75" in line for line in lines)
    assert "Budget: L-infinity 0.1 on [-1, 1], that is 12.75/255." in lines
    assert lines[-1] == f"Report: {(tmp_path / 'a' / 'report.html').resolve()}"
    kept = yaml.safe_load((tmp_path / "a" / SETTINGS).read_text())
    assert (kept["images"], kept["train"], kept["train_steps"]) == (4, ["standard"], 2)

    found = (tmp_path / "a" / "audit.json").read_bytes()
    for file in ("audit.json", "report.html", "images.parquet"):
        (tmp_path / "a" / file).unlink()
    shutil.rmtree(next((tmp_path / "a" / "cells").iterdir()))
    again = run("audit", "--resume", tmp_path / "a")
    assert again.exit_code == 0
    assert "holds an audit with other" not in again.stdout
    assert (tmp_path / "a" / "audit.json").read_bytes() == found

    other = ["--defense", "pgd=disrupting:0.1,steps=2", "--train", "ungated", "--train-steps", 2, "--device", "cpu"]
    assert run("audit", *tiny, *other, "--output-dir", tmp_path / "b").exit_code == 0
    said = run("compare", tmp_path / "a", tmp_path / "b", "--rename", "pgd=disrupting", "--rename", "ungated=standard")
    assert said.exit_code == 0, said.output
    rows = [line for line in said.stdout.splitlines() if line.startswith(("untouched", "standard"))]
    assert len(rows) == 7
    assert "dsr, the same photos." in said.stdout
    assert "Only in the first: untouched: as it is, jpeg:75; " in said.stdout
    assert "--rename" not in said.stdout
    plain = run("compare", tmp_path / "a", tmp_path / "b", "--metric", "psnr").stdout
    assert "equal" in next(line for line in plain.splitlines() if line.startswith("untouched"))
    assert "is matched by --rename SECOND=FIRST" in plain
    assert "--rename x: write SECOND=FIRST" in refused("compare", tmp_path / "a", tmp_path / "b", "--rename", "x")
    assert "metric 'beauty'; they have" in refused("compare", tmp_path / "a", tmp_path / "b", "--metric", "beauty")
    assert "`loraguard audit` writes it" in refused("compare", tmp_path / "a", tmp_path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A dozen with labels."""
    folder = tmp_path / "photos"
    folder.mkdir()
    draws = np.random.default_rng(0)
    rows = ["file_name,Black_Hair,Blond_Hair,Brown_Hair,Eyeglasses,Smiling"]
    for index in range(12):
        small = Image.fromarray(draws.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        small.resize((60, 50)).save(folder / f"{index}.jpg")
        rows.append(f"{index}.jpg,1,0,0,{index % 2},0")
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_protected_photos_are_audited(tiny: list[str], photos: Path, tmp_path: Path) -> None:
    """What `protect` wrote is what the audit sees: as far from the photos, and as bad for the generator."""
    out = tmp_path / "protected"
    done = run("protect", photos, "--output-dir", out, "--generator", "tiny", "--defense", "disrupting:0.1,steps=3")
    assert done.exit_code == 0, done.output
    assert "12 photos, " in done.stdout
    assert done.stdout.splitlines()[-1] == f"Photos: {out.resolve()}"
    words = ["--generator", "tiny", "--data", photos, "--images", 4, "--fit-images", 8, "--checks", 0]
    theirs = ["--defense", "disrupting:0.1,steps=1", "--perturbed", f"theirs={out}"]
    done = run("audit", *words, *theirs, "--output-dir", tmp_path / "out")
    assert done.exit_code == 0, done.output
    rows = json.loads((tmp_path / "out" / "audit.json").read_text())["situations"]
    (row,) = [row for row in rows if row["defense"] == "theirs" and row["role"] == "main"]
    assert row["photo"] == "theirs, no leak"
    assert 0.05 < row["metrics"]["photo_linf"]["mean"] <= 0.1
    record = json.loads((out / "protect.json").read_text())["photos"]
    assert row["metrics"]["photo_psnr"]["mean"] >= min(one["psnr_db"] for one in record) - 0.01
    (out / "0.png").unlink()
    (out / "1.png").unlink()
    assert "no perturbed version" in refused("audit", *words, *theirs, "--images", 12 - 8, "--fit-images", 8,
                                             "--output-dir", tmp_path / "none")  # fmt: skip


def test_fitting_a_defense_shows_progress(tiny: list[str], tmp_path: Path) -> None:
    """It may take longer than all the rest."""
    size = ["--images", 2, "--fit-images", 2, "--checks", 0, "--batch-size", 2]
    done = run(
        "audit", *tiny, *size, "--defense", "cmua:steps=1,photos=2,batch_size=2", "--output-dir", tmp_path / "out"
    )
    assert done.exit_code == 0, done.output
    assert re.search(r"cmua: *100%", done.stderr)


def test_a_single_photo_by_the_default_settings(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into a folder of its own, here; what its size is and that the demo's network is no real one is said."""
    monkeypatch.chdir(tmp_path)
    done = run("protect", photos / "3.jpg")
    assert done.exit_code == 0, done.output
    assert "1 photo, cropped and resized to 64x64 pixels; " in done.stdout
    assert "That was 'demo', which edits drawn faces; name" in done.stdout
    assert [file.suffix for file in sorted((tmp_path / "loraguard-protected").iterdir())] == [".png", ".json"]


def test_what_cannot_be_protected(tiny: list[str], photos: Path, tmp_path: Path) -> None:
    words = ["--generator", "tiny", "--output-dir", tmp_path / "out"]
    for changes, said in (
        (["--defense", "disruptin"], "Did you mean 'disrupting'?"),
        (["--defense", "cmua"], "--fit-on"),
        (["--edit", "Smile"], "no edit 'Smile'; the generator has Black_Hair"),
        (["--output-dir", photos / "out"], "among the originals"),
    ):
        assert said in refused("protect", photos, *words, *changes)
    assert "no data" in refused("protect", tmp_path / "nowhere", *words)
    assert not (tmp_path / "out").exists()


def test_help_fits_a_terminal() -> None:
    """Of 80 columns, nothing cut off."""
    for command in ("audit", "compare", "protect"):
        result = CliRunner().invoke(app, [command, "--help"], terminal_width=80, env={"COLUMNS": "80"})
        assert "…" not in result.stdout
        assert max(map(len, result.stdout.splitlines())) <= 80
    assert "Against what" in CliRunner().invoke(app, ["audit", "--help"]).stdout


def test_killed_and_interrupted_it_goes_on(tiny: list[str], tmp_path: Path) -> None:
    """SIGKILL, then SIGINT, each before a fifth finding is written; the end is that of an audit left alone."""
    settings = [*tiny, "--images", "6", "--defense", "disrupting:0.1,steps=2", "--batch-size", "1", "--device", "cpu"]
    out = tmp_path / "out"

    def before_the_fifth(number: int, *arguments: object) -> tuple[int, list[str]]:
        signalled = partial(signal_at_call, number, Store, "write", 5)
        done = run_forked("audit", *arguments, first=[register, signalled])
        return done.returncode, done.stderr.splitlines()

    assert before_the_fifth(signal.SIGKILL, *settings, "--output-dir", out)[0] == -signal.SIGKILL
    assert len(list((out / "cells").rglob("*.json"))) == 4
    code, said = before_the_fifth(signal.SIGINT, "--resume", out)
    assert code == 130
    assert said[-1] == f"Interrupted. To go on: loraguard audit --resume {out}"
    assert not [line for line in said if "Traceback" in line]
    assert len(list((out / "cells").rglob("*.json"))) == 8
    assert not (out / "audit.json").exists()
    assert run("audit", "--resume", out).exit_code == 0
    assert run("audit", *settings, "--output-dir", tmp_path / "whole").exit_code == 0
    for file in ("audit.json", "images.csv"):
        assert (out / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
