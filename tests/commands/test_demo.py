"""The main job from end to end, and the network that ships with it."""

import ast
import csv
import json
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from limits import small_demo_network
from peft import PeftModel
from processes import forked, run_script
from small_demo import SMALL, run_small

import loraguard.generators
from loraguard.commands.demo import STAMP, DemoResult, DemoSettings, Work, every_edit
from loraguard.data import DemoFaces
from loraguard.data.demo_faces import render
from loraguard.defenses import Disrupting
from loraguard.generators import DemoEditor
from loraguard.metrics import defense_succeeds, psnr
from loraguard.stamp import Stamp
from loraguard.training import PatchTrainingArguments

WEIGHTS = Path(loraguard.generators.__file__).parent / "demo_weights"
N = 20


class TrainedError(Exception):
    """Both patches are trained, and the audit would begin."""


@pytest.fixture(scope="module")
def unseen() -> tuple[DemoFaces, torch.Tensor, torch.Tensor]:
    faces = DemoFaces(N, split="never seen")
    samples = faces.__getitems__(list(range(N)))
    return faces, *(torch.stack([sample[key] for sample in samples]) for key in ("image", "labels"))


def test_the_shipped_weights_are_small_and_say_where_they_come_from() -> None:
    assert (WEIGHTS / "model.safetensors").stat().st_size <= 2 * 1024**2
    recipe = json.loads((WEIGHTS / "recipe.json").read_text())
    assert recipe["figures"]["psnr_db"] >= 24
    assert recipe["figures"]["dsr"] >= 0.9
    assert recipe["log"][-1]["step"] == recipe["settings"]["steps"]


@torch.no_grad()
def test_the_shipped_network_edits_well(unseen: tuple[DemoFaces, torch.Tensor, torch.Tensor]) -> None:
    """At least 24 dB against the drawn truth on every edit, on average and on glasses and smiles in particular."""
    faces, images, labels = unseen
    editor = DemoEditor.pretrained()
    traits = faces.traits(list(range(N)))
    for name, condition in every_edit(labels).items():
        truth = render(traits, condition["labels"], 64)
        outputs = editor(images, **condition)
        assert psnr(outputs, truth).mean() >= 24, name
        # The edit is made: outputs are much nearer to the truth than photos are, where both differ.
        where = ((truth - images).abs() > 0.2).float()
        if where.sum() > 1000:
            assert ((outputs - truth).abs() * where).sum() < 0.5 * ((images - truth).abs() * where).sum(), name


def test_the_shipped_network_is_as_vulnerable_as_published_ones(
    unseen: tuple[DemoFaces, torch.Tensor, torch.Tensor],
) -> None:
    """A DSR of 90% at the demo's budget and steps."""
    _, images, labels = unseen
    settings, editor = DemoSettings(), DemoEditor.pretrained()
    condition = DemoEditor.conditions(labels)["Eyeglasses"]
    defended = settings.defense(editor, images, condition)
    with torch.no_grad():
        assert defense_succeeds(editor(defended, **condition), editor(images, **condition)).mean() >= 0.9


def test_the_readme_shows_these_settings() -> None:
    text = (Path(loraguard.__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    block = re.search(r"^arguments = (PatchTrainingArguments\(.*?^\))", text, re.DOTALL | re.MULTILINE)[1]
    shown = eval(block, {one.__name__: one for one in (PatchTrainingArguments, Stamp, Disrupting)})
    work = Work(Path("out"), DemoSettings(), "cpu", disable_tqdm=False)
    ours, recipe = work.arguments("defensive"), work.settings.defensive
    for name in (keyword.arg for keyword in ast.parse(block).body[0].value.keywords):
        assert getattr(shown, name) == getattr(ours, name), name
    assert f"GatedLoraConfig(r={recipe.r}, lora_alpha={recipe.lora_alpha})" in text


def test_edits_by_hand() -> None:
    labels = torch.tensor([[1.0, 0, 0, 0, 1]])
    edits = {name: edit["labels"][0].tolist() for name, edit in every_edit(labels).items()}
    assert edits == {
        "Black_Hair": [1, 0, 0, 0, 1],
        "Blond_Hair": [0, 1, 0, 0, 1],
        "Brown_Hair": [0, 0, 1, 0, 1],
        "Eyeglasses": [1, 0, 0, 1, 1],
        "Smiling": [1, 0, 0, 0, 0],
        "Eyeglasses+Smiling": [1, 0, 0, 1, 0],
        "Black_Hair+Eyeglasses": [1, 0, 0, 1, 1],
        "Black_Hair+Smiling": [1, 0, 0, 0, 0],
        "Blond_Hair+Eyeglasses": [0, 1, 0, 1, 1],
        "Blond_Hair+Smiling": [0, 1, 0, 0, 0],
        "Brown_Hair+Eyeglasses": [0, 0, 1, 1, 1],
        "Brown_Hair+Smiling": [0, 0, 1, 0, 0],
    }
    assert labels.tolist() == [[1, 0, 0, 0, 1]]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    """The small demo, in one process."""
    return run_small(tmp_path_factory.mktemp("demo"))


def test_in_two_processes_it_gives_the_same(small: DemoResult, tmp_path: Path) -> None:
    done = forked(run_small, tmp_path, SMALL, 2)
    assert done.returncode == 0, done.stderr
    first, second = small.report.parent, tmp_path
    for name in ("audit.json", "grid.png", "standard/adapter_model.safetensors", "defensive/adapter_model.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    pages = [(folder / "report.html").read_text(encoding="utf-8") for folder in (first, second)]
    assert pages[0] == pages[1]


def test_an_interrupt_is_made_up_for(small: DemoResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the second patch: the same command trains it from where it was, to the same bits; another one does not."""

    def audit(*_: object) -> None:
        raise TrainedError

    read = DemoFaces.__getitems__
    done = tmp_path / "standard" / "adapter_model.safetensors"
    later = iter(range(1000))

    def reading(self: DemoFaces, indices: list[int]) -> list[dict[str, torch.Tensor]]:
        if done.is_file() and next(later) == 1:
            signal.raise_signal(signal.SIGINT)
        return read(self, indices)

    with monkeypatch.context() as patch:
        patch.setattr(DemoFaces, "__getitems__", reading)
        with pytest.raises(KeyboardInterrupt):
            run_small(tmp_path)
    assert list((tmp_path / "defensive").glob("checkpoint-[123]"))
    monkeypatch.setattr(Work, "audit", audit)
    other = shutil.copytree(tmp_path, tmp_path.with_name("other"))
    with pytest.raises(TrainedError), pytest.warns(UserWarning, match="checkpoints of an earlier run"):
        run_small(other, replace(SMALL, seed=1))
    with pytest.raises(TrainedError):
        run_small(tmp_path)
    log = json.loads((tmp_path / "defensive" / "training_log.json").read_text())
    assert log["settings"]["resume_from_checkpoint"] is not None
    for name in ("standard", "defensive"):
        file = Path(name, "adapter_model.safetensors")
        assert (tmp_path / file).read_bytes() == (small.report.parent / file).read_bytes(), name


HELD = """
import os, signal, sys, time
from pathlib import Path
from loraguard.data import DemoFaces
from loraguard.commands.demo import DemoSettings, run_demo
from loraguard.training.interruption import Interruption

folder, later, noted, started = Path(sys.argv[1]), iter(range(1000)), [], None
read, note = DemoFaces.__getitems__, Interruption._note

def noting(self, number, frame):
    noted.append(number)
    note(self, number, frame)

def reading(self, indices):
    if next(later) == 2:  # in the second step
        first = os.getpid() == started
        if not first:
            (folder / "there").touch()
        while not ((folder / "there").exists() if first else noted):
            time.sleep(0.01)
        if first:
            os.kill(os.getpid(), signal.SIGINT)
    return read(self, indices)

DemoFaces.__getitems__, Interruption._note = reading, noting  # in the second process, too
if __name__ == "__main__":
    started = os.getpid()
    run_demo(folder / "out", DemoSettings().quick(), processes=2, disable_tqdm=True)
"""


def test_an_interrupt_of_the_first_process_stops_the_second_in_good_order(tmp_path: Path) -> None:
    """The first waits in a step for the second, gets the signal, and the second goes on once it has one as well."""
    script = tmp_path / "script.py"
    script.write_text(HELD)
    done = run_script(script, tmp_path)
    assert done.returncode == 1
    assert "KeyboardInterrupt" in done.stderr
    for name in ("standard", "defensive"):
        assert [path.name for path in (tmp_path / "out" / name).glob("checkpoint-*")] == ["checkpoint-2"], name
        assert not (tmp_path / "out" / name / "adapter_model.safetensors").exists()


@torch.no_grad()
def test_plain_peft_loads_its_patches(small: DemoResult, monkeypatch: pytest.MonkeyPatch) -> None:
    small_demo_network(monkeypatch)
    sample = DemoFaces(1, split="test")[0]
    images, labels = sample["image"][None], sample["labels"][None]
    for patch in ("standard", "defensive"):
        small.model.set_adapter(patch)
        loaded = PeftModel.from_pretrained(DemoEditor.pretrained(), small.report.parent / patch).eval()
        assert torch.equal(loaded(images, labels), small.model.eval()(images, labels))
        merged = loaded.merge_and_unload()
        assert merged.state_dict().keys() == DemoEditor.pretrained().state_dict().keys()
        assert (merged(images, labels) - small.model(images, labels)).abs().max() < 1e-4


def test_its_settings_are_stated(small: DemoResult) -> None:
    found = json.loads((small.report.parent / "audit.json").read_text())
    settings = found["settings"]
    assert settings["n"] == SMALL.test_images
    assert settings["budget"] == "L-infinity 0.1 on [-1, 1], that is 12.75/255"
    assert settings["patches"]["defensive"]["text"] == STAMP.text
    assert settings["detectors"]["defensive"]["calibrated_on"] == SMALL.calibration_images
    with (small.report.parent / "images.csv").open(newline="") as file:
        edits = {row["edit"].split("+")[0] for row in csv.DictReader(file)}
    assert edits >= {"Black_Hair", "Blond_Hair"}
    page = small.report.read_text(encoding="utf-8")
    assert "12.75/255" in page
