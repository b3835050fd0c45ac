"""The command line: what it says, and what it does in a process of its own."""

import json
import re
import shlex
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import refused, run, run_forked, run_fresh
from limits import with_short_attacks
from moments import signal_at_call
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from tiny import register
from typer.core import TyperGroup as Group
from typer.main import get_command

import loraguard
from loraguard import Mark, PatchTrainer
from loraguard.cli import app
from loraguard.commands.mark import patch_mark
from loraguard.generators import GENERATORS, TAEF2, StarGAN

TINY = [
    "--generator",
    "tiny",
    "--data",
    "tiny",
    "--train-size",
    "4",
    "--test-size",
    "0",
    "--rank",
    "1",
    "--device",
    "cpu",
]


def test_help_and_version() -> None:
    """In fresh processes, by both names."""
    assert "demo" in run_fresh("--help").stdout
    assert run_fresh("--version", module="loraguard").stdout == f"loraguard {loraguard.__version__}\n"
    assert "--output-dir" in run("demo", "--help").stdout


def test_the_examples_of_the_help_are_understood() -> None:
    """Every command shows one, of options and arguments that it has, on a line of a narrow terminal."""
    group = get_command(app)
    assert isinstance(group, Group)
    families = [one for one in group.commands.values() if isinstance(one, Group)]
    assert {one.name for one in families} == {"stamp", "mark"}
    for name, command in ((name, one) for family in (group, *families) for name, one in family.commands.items()):
        if command not in families:
            shown = re.findall(r"`(loraguard .+)`", command.epilog or "")
            assert shown, name
            for line in shown:
                assert len(line) < 80
                words = shlex.split(line.partition(f" {name}")[2])
                command.make_context(name, words)


def test_an_unwritable_folder_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here first")
    assert "Cannot write to the output folder" in refused("demo", "--output-dir", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "here first"


def test_an_unknown_device() -> None:
    result = run("demo", "--device", "abacus")
    assert result.exit_code == 2
    assert "cpu" in result.stderr


@pytest.fixture
def celeba(tmp_path: Path) -> Path:
    """Twelve photos as CelebA is distributed."""
    names = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Male", "Young")
    (tmp_path / "celeba" / "img_align_celeba").mkdir(parents=True)
    draws = np.random.default_rng(0)
    rows, partition = [], []
    for index in range(12):
        pixels = draws.integers(0, 256, (12, 10, 3), dtype=np.uint8)
        photo = Image.fromarray(pixels).resize((178, 218))
        photo.save(tmp_path / "celeba" / "img_align_celeba" / f"{index:06}.jpg")
        rows.append(f"{index:06}.jpg " + " ".join(str(value) for value in draws.choice([-1, 1], 5)))
        partition.append(f"{index:06}.jpg 0")
    (tmp_path / "celeba" / "list_attr_celeba.txt").write_text("\n".join(["12", " ".join(names), *rows]) + "\n")
    (tmp_path / "celeba" / "list_eval_partition.txt").write_text("\n".join(partition) + "\n")
    return tmp_path / "celeba"


def test_from_an_official_checkpoint_to_an_audited_patch(celeba: Path, tmp_path: Path) -> None:
    """StarGAN's file and CelebA's folder, one command."""
    torch.manual_seed(0)
    generator = StarGAN(conv_dim=4, repeat_num=1, size=32)
    torch.save(generator.state_dict(), tmp_path / "200000-G.ckpt")
    out = tmp_path / "out"
    words = ["--generator", "stargan", "--checkpoint", str(tmp_path / "200000-G.ckpt"), "--image-size", "32"]
    size = ["--train-size", "6", "--test-size", "4", "--max-train-steps", "2", "--rank", "2", "--device", "cpu"]
    done = run_forked("train", *words, "--data", f"celeba:{celeba}", *size, "--stamp", "AI", "--mark", "c0de",
                      "--output-dir", str(out), first=[with_short_attacks])  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert patch_mark(out) == Mark("c0de")
    assert "Training a defensive patch for StarGAN on 6 photos: 2 steps" in done.stdout
    assert "Auditing it on 4 photos that it was not trained on" in done.stdout
    audit = json.loads((out / "audit" / "audit.json").read_text())
    assert audit["settings"]["n"] == 4
    assert (out / "audit" / "report.html").is_file()
    model = PeftModel.from_pretrained(generator, out)
    assert model(torch.zeros(1, 3, 32, 32), torch.zeros(1, 5)).shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--generator", "stargam"], "Did you mean 'stargan'?"),
        (["--generator", "stargan"], "does not ship with weights"),
        (["--generator", "stargan", "--checkpoint", "nowhere.ckpt"], "no checkpoint nowhere.ckpt"),
        (["--data", "demos"], "Did you mean 'demo'?"),
        (["--generator", "cyclegan", "--checkpoint", __file__], "cannot be read as tensors alone"),
        (["--recipe", "slow"], "recipe='slow' must be one of"),
        (["--mark", "c0ffee"], "carries 16 bits"),
        (["--mark-extractor", "rivagan"], "give its message"),
        (["--recipe", "cat"], "DemoEditor has no encode and decode: CAT trains an autoencoder"),
        (["--recipe", "cat", "--stamp", "AI"], "recipe='cat' takes no stamp"),
    ],
)
def test_what_cannot_be_trained_is_said_in_a_line(words: list[str], said: str, tmp_path: Path) -> None:
    assert said in refused("train", *words, "--output-dir", tmp_path / "out")


def test_cat_is_a_recipe(tmp_path: Path) -> None:
    """Plain LoRA of the autoencoder, alpha its rank; its loss is that of perturbed photos alone."""
    TAEF2(**TAEF2.small, size=16).save_pretrained(tmp_path / "taef2")
    words = ["--recipe", "cat", "--generator", "taef2", "--checkpoint", tmp_path / "taef2", "--max-train-steps", "2"]
    size = ["--train-size", "4", "--test-size", "0", "--rank", "2", "--device", "cpu"]
    done = run("train", *words, *size, "--output-dir", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert [config[name] for name in ("r", "lora_alpha", "gate_type", "use_rslora")] == [2, 2, "none", False]
    learnt = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {name.split(".")[2] for name in learnt} == {"encoder", "decoder"}
    log = json.loads((tmp_path / "out" / "training_log.json").read_text())
    assert log["settings"]["recipe"] == "cat"
    assert [set(entry) & {"loss_clean", "loss_adversarial"} for entry in log["steps"]] == [{"loss_adversarial"}] * 2


def test_info() -> None:
    listed = run("info", "generators").stdout
    assert all(f"{name}  (loraguard.generators" in listed for name in GENERATORS.ours)
    assert "disrupting  (loraguard.defenses.disrupting.Disrupting)" in run("info", "defenses").stdout
    assert ":class:" not in run("info", "data").stdout


def test_no_audit_where_none_is_wanted(tmp_path: Path) -> None:
    """In a fresh process, as DeepSpeed, where it is installed, logs when it is imported."""
    size = ["--train-size", "4", "--test-size", "0", "--max-train-steps", "1", "--rank", "1", "--device", "cpu"]
    done = run_fresh("train", *size, "--output-dir", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "accelerator" not in done.stdout  # which DeepSpeed's line is about
    assert (tmp_path / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "audit").exists()


def test_an_interrupt_says_where_the_run_goes_on(tmp_path: Path) -> None:
    """SIGINT as the fifth step begins: its checkpoint is beside those that were due, and the run goes on from there."""
    words = ["train", *TINY, "--max-train-steps", "6", "--checkpointing-steps", "2", "--output-dir", tmp_path]
    fifth = partial(signal_at_call, signal.SIGINT, PatchTrainer, "_backward", 5)
    stopped = run_forked(*words, first=[register, fifth])
    assert stopped.returncode == 130
    said = f"Interrupted after step 5 of 6; {tmp_path / 'checkpoint-5'} has all of it. To go on: "
    assert said in stopped.stderr
    assert "--resume" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-4", "checkpoint-5"]
    resumed = run_forked(*words, "--resume", first=[register])
    assert resumed.returncode == 0, resumed.stderr
    log = json.loads((tmp_path / "training_log.json").read_text())["steps"]
    assert [entry["step"] for entry in log] == [1, 2, 3, 4, 5, 6]


def test_a_warning_is_a_line(tmp_path: Path) -> None:
    """Without the place in the code, which `warnings` shows by itself."""
    words = ["train", *TINY, "--max-train-steps", "1", "--checkpointing-steps", "1", "--output-dir", tmp_path]
    first, second = (run_forked(*words, first=[register]).stderr for _ in range(2))
    assert "Warning" not in first
    (warning,) = (line for line in second.splitlines() if "Warning" in line)
    assert warning.startswith(f"Warning: {tmp_path} holds checkpoints of an earlier run, checkpoint-1 the last")
