"""Several processes, and several batches a step, are one process and one batch."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import DeepSpeedPlugin
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file
from two_processes import train

from loraguard.training.gradients import set_up_zero

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
CONFIGS = ROOT / "examples" / "configs"


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def assert_same(folder: Path, other: Path, rtol: float = 1e-9, atol: float = 1e-12) -> None:
    mine, theirs = adapter(folder), adapter(other)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.allclose(value, theirs[name], rtol=rtol, atol=atol), name


def launch(config: str, script: str, *arguments: str) -> str:
    """What the script says, once for each of its two processes, which a shipped configuration starts."""
    options = ["--config_file", str(CONFIGS / config), "--main_process_port", "0"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, str(HERE / script), *arguments]
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
    said = launch("multi_cpu.yaml", "two_processes.py", str(tmp_path / "two"), "2")
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


def test_zero_is_data_parallel(tmp_path: Path) -> None:
    """Two processes over DeepSpeed's ZeRO-2, with a step that is skipped and a resumption, are two over DDP."""
    said = launch("deepspeed_zero2.yaml", "sharded.py", str(tmp_path))
    assert (said.count("processes 2 DEEPSPEED"), said.count("processes 2 MULTI_CPU")) == (2, 2)
    assert_same(tmp_path / "zero", tmp_path / "ddp", rtol=0, atol=1e-6)


def test_the_shipped_config_is_one() -> None:
    """Accelerate reads it; running it takes GPUs."""
    config = load_config_from_file(str(CONFIGS / "multi_gpu.yaml"))
    assert config.distributed_type.value == "MULTI_GPU"
    assert config.num_processes == 2


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("ACCELERATE_USE_FSDP", "true", "FSDP is not supported"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "cpu=True has Accelerate ignore DeepSpeed"),
        ("ACCELERATE_USE_MEGATRON_LM", "true", "Megatron-LM is not supported"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "gradient_accumulation_steps=4"),
    ],
)
def test_what_would_be_ignored_is_refused(name: str, value: str, words: str, tmp_path: Path, monkeypatch) -> None:
    """Accelerate reads these on a CPU, and then trains as if they were not there, or with smaller gradients."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=words):
        train(tmp_path, batch=4)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "precision", "words"),
    [
        ({"zero_stage": 3}, "no", "ZeRO stage 3"),
        ({"zero_stage": 0}, "no", "ZeRO stage 0"),
        ({"zero_stage": 2, "offload_optimizer_device": "cpu"}, "no", "offloading to cpu"),
        ({"zero_stage": 1}, "bf16", "mixed_precision='bf16'"),
    ],
)
def test_kinds_of_zero_that_are_refused(settings: dict, precision: str, words: str) -> None:
    plugin = DeepSpeedPlugin(**settings)
    accelerator = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin), mixed_precision=precision)
    with pytest.raises(ValueError, match=words):
        set_up_zero(accelerator, batch_size=4, max_norm=1.0)
