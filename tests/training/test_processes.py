"""Several processes, and several batches a step, are one process and one batch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator, DistributedType
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file
from two_processes import train

SCRIPT = Path(__file__).with_name("two_processes.py")
ROOT = Path(__file__).parents[2]


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def assert_same(folder: Path, other: Path) -> None:
    mine, theirs = adapter(folder), adapter(other)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.allclose(value, theirs[name], rtol=1e-9, atol=1e-12), name


def run(launcher: list[str], folder: Path) -> str:
    """What the script says, once for each of its two processes."""
    command = [sys.executable, "-m", *launcher, str(SCRIPT), str(folder), "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_accumulated_batches_are_the_big_batch(tmp_path: Path) -> None:
    train(tmp_path / "big", batch=4)
    train(tmp_path / "small", batch=2, accumulation=2)
    assert_same(tmp_path / "big", tmp_path / "small")


def test_two_processes_are_one_with_the_same_global_batch(tmp_path: Path) -> None:
    """Over gloo; only one of them writes."""
    train(tmp_path / "one", batch=4)
    said = run(["torch.distributed.run", "--standalone", "--nproc_per_node", "2"], tmp_path / "two")
    assert said.count("processes 2 MULTI_CPU") == 2
    assert_same(tmp_path / "one", tmp_path / "two")
    found = {path.relative_to(tmp_path / "two").as_posix() for path in (tmp_path / "two").rglob("*")}
    assert {"checkpoint-4/random_states_0.pkl", "checkpoint-4/random_states_1.pkl"} <= found
    assert len([name for name in found if name.endswith("adapter_model.safetensors")]) == 3
    assert not [name for name in found if "partial" in name]


def test_two_processes_audit_together(tmp_path: Path) -> None:
    """`loraguard train` and then `loraguard audit` of that patch: each ends, the main process alone speaks."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    sizes = {"train": ["--train-size", "8", "--test-size", "5", "--max-train-steps", "1", "--rank", "1"],
             "audit": ["--fit-images", "8", "--images", "5", "--checks", "0", "--patch", f"mine={tmp_path / 'train'}",
                       "--batch-size", "2", "--defense", "disrupting:0.1,steps=2"]}  # fmt: skip
    for command, size in sizes.items():
        flags = ["--generator", "tiny", "--data", "tiny", "--device", "cpu", "--output-dir", str(tmp_path / command)]
        words = [*launcher, str(ROOT / "tests" / "tiny.py"), command, *flags, *size]
        done = subprocess.run(words, capture_output=True, text=True, timeout=300, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("Report: ") == done.stdout.count("Auditing ") == 1
        folder = tmp_path / "train" / "audit" if command == "train" else tmp_path / command
        assert json.loads((folder / "audit.json").read_text())["settings"]["n"] == 5


def test_the_shipped_config_is_one() -> None:
    """Accelerate reads it; running it takes GPUs."""
    config = load_config_from_file(str(ROOT / "examples" / "configs" / "multi_gpu.yaml"))
    assert config.distributed_type.value == "MULTI_GPU"
    assert config.num_processes == 2


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_sharded_networks_are_refused(kind: DistributedType, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Accelerator, "distributed_type", kind)
    with pytest.raises(ValueError, match=f"{kind.value} is not supported"):
        train(tmp_path, batch=4)
