"""Several processes, and several batches a step, are one process and one batch."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import accelerate.commands.launch
import pytest
import torch
from accelerate import DeepSpeedPlugin
from accelerate.commands.config.config_args import load_config_from_file
from command_line import run_forked_ranks
from limits import with_short_attacks
from processes import forked_ranks, run_main
from safetensors.torch import load_file
from sharded import train_sharded_and_not
from tiny import register
from two_processes import train, train_and_say, train_with_a_tracker

from loraguard.training.gradients import set_up_zero

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "examples" / "configs"


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def assert_same(folder: Path, other: Path, rtol: float = 1e-9, atol: float = 1e-12) -> None:
    mine, theirs = adapter(folder), adapter(other)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.allclose(value, theirs[name], rtol=rtol, atol=atol), name


def launched(config: str, folder: Path) -> list[dict[str, str]]:
    """What the two processes are told that `accelerate launch` starts by a shipped configuration: their variables."""
    options = ["--config_file", CONFIGS / config, "--main_process_port", "0"]
    done = run_main(accelerate.commands.launch.main, *options, HERE / "say_environment.py", folder)
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_accumulated_batches_are_the_big_batch(tmp_path: Path) -> None:
    train(tmp_path / "big", batch=4)
    train(tmp_path / "small", batch=2, accumulation=2)
    assert_same(tmp_path / "big", tmp_path / "small")


def test_two_processes_are_one_with_the_same_global_batch(tmp_path: Path) -> None:
    """Over gloo; only one of them writes."""
    train(tmp_path / "one", batch=4)
    done = forked_ranks(train_and_say, tmp_path / "two", told=launched("multi_cpu.yaml", tmp_path))
    assert [one.stdout for one in done] == 2 * ["processes 2 MULTI_CPU\n"], done
    assert_same(tmp_path / "one", tmp_path / "two")
    found = {path.relative_to(tmp_path / "two").as_posix() for path in (tmp_path / "two").rglob("*")}
    assert {"checkpoint-4/random_states_0.pkl", "checkpoint-4/random_states_1.pkl"} <= found
    assert len([name for name in found if name.endswith("adapter_model.safetensors")]) == 3
    assert not [name for name in found if "partial" in name]


def test_two_processes_with_a_tracker_leave_in_good_order(tmp_path: Path) -> None:
    """The trackers are closed, and not the group of processes with them: an audit may follow."""
    done = forked_ranks(train_with_a_tracker, tmp_path)
    for one in done:
        assert one.returncode == 0, one.stderr
        assert one.stdout.splitlines()[-1] == "together 2", one
    assert (tmp_path / "adapter_model.safetensors").is_file()
    assert len(list(tmp_path.rglob("events.out.tfevents*"))) >= 1


def test_two_processes_audit_together(tmp_path: Path) -> None:
    """`loraguard train` and then `loraguard audit` of that patch: each ends, the main process alone speaks."""
    sizes = {"train": ["--train-size", "8", "--test-size", "5", "--max-train-steps", "1", "--rank", "1"],
             "audit": ["--fit-images", "8", "--images", "5", "--checks", "0", "--patch", f"mine={tmp_path / 'train'}",
                       "--batch-size", "2", "--defense", "disrupting:0.1,steps=2"]}  # fmt: skip
    for command, size in sizes.items():
        flags = ["--generator", "tiny", "--data", "tiny", "--device", "cpu", "--output-dir", tmp_path / command]
        done = run_forked_ranks(command, *flags, *size, first=[register, with_short_attacks])
        assert [one.returncode for one in done] == [0, 0], done
        assert [(one.stdout.count("Auditing "), one.stdout.count("Report: ")) for one in done] == [(1, 1), (0, 0)]
        folder = tmp_path / "train" / "audit" if command == "train" else tmp_path / command
        assert json.loads((folder / "audit.json").read_text())["settings"]["n"] == 5


def test_zero_is_data_parallel(tmp_path: Path) -> None:
    """Two processes over DeepSpeed's ZeRO-2, with a step that is skipped and a resumption, are two over DDP."""
    done = forked_ranks(train_sharded_and_not, tmp_path, told=launched("deepspeed_zero2.yaml", tmp_path))
    for one in done:
        assert re.findall("processes .*", one.stdout) == ["processes 2 DEEPSPEED", "processes 2 MULTI_CPU"], one
        assert one.returncode == 0, one.stderr
    # To a hundredth of what a step of Adam moves weights, as it divides the rounding of small gradients by them.
    assert_same(tmp_path / "zero", tmp_path / "ddp", rtol=0, atol=1e-4)


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
