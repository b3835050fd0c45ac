"""Nothing is lost: runs that are killed, interrupted or short of disk go on as if nothing had happened."""

import copy
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from loraguard import GatedLoraConfig, PatchTrainer, PatchTrainingArguments
from loraguard.data import DemoFaces
from loraguard.defenses import Disrupting
from loraguard.generators import DemoEditor

HERE = Path(__file__).parent


def model() -> PeftModel:
    torch.manual_seed(0)
    return get_peft_model(DemoEditor(conv_dim=4, num_blocks=1), GatedLoraConfig(r=2))


def arguments(folder: Path, **changes: object) -> PatchTrainingArguments:
    defaults = {
        "adversary": Disrupting(steps=1), "max_train_steps": 6, "train_batch_size": 2, "learning_rate": 1e-2,
        "lr_scheduler": "cosine", "cpu": True, "disable_tqdm": True,
    }  # fmt: skip
    return PatchTrainingArguments(folder, **{**defaults, **changes})


def weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


class Once:
    """An adversary that does something at its n-th call."""

    eps = 0.05

    def __init__(self, call: int, deed) -> None:
        self.call, self.deed, self.calls = call, deed, 0

    def __call__(self, generator: nn.Module, images: Tensor, condition: dict, clean: Tensor | None = None) -> Tensor:
        self.calls += 1
        if self.calls == self.call:
            self.deed()
        return Disrupting(steps=1)(generator, images, condition, clean)


def test_a_run_killed_at_random_moments_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    """20 times SIGKILL, while a checkpoint is written and in between; equal to the bit."""
    kills = 20
    command = [sys.executable, "-W", "ignore", str(HERE / "killed.py"), str(tmp_path), str(kills)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert len(found["moments"]) == kills
    assert set(found["moments"]) == {"writing", "between"}
    log = json.loads((tmp_path / "whole" / "training_log.json").read_text())
    for number in range(1, found["rounds"] + 1):
        killed = tmp_path / f"killed-{number}"
        assert weights(killed) == weights(tmp_path / "whole")
        again = json.loads((killed / "training_log.json").read_text())
        assert {k: v for k, v in again.items() if k != "settings"} == {k: v for k, v in log.items() if k != "settings"}
        assert not list(killed.glob(".*checkpoint*"))
        assert len(list(killed.glob("checkpoint-*"))) == 2


def test_resuming_in_the_middle_equals_not_stopping(tmp_path: Path) -> None:
    """By name, by path, and from a checkpoint that is not the last."""
    PatchTrainer(model(), DemoFaces(7, size=16), arguments(tmp_path / "a", checkpointing_steps=2)).train()
    assert sorted(p.name for p in (tmp_path / "a").glob("checkpoint-*")) == [f"checkpoint-{n}" for n in (2, 4, 6)]
    for name in ("checkpoint-2", str(tmp_path / "a" / "checkpoint-4")):
        other = get_peft_model(model().unload(), GatedLoraConfig(r=2))  # other first weights
        folder = tmp_path / "b" if "/" in name else tmp_path / "a"
        settings = arguments(folder, resume_from_checkpoint=name)
        before = weights(tmp_path / "a")
        result = PatchTrainer(other, DemoFaces(7, size=16), settings).train()
        assert weights(folder) == before
        assert [entry["step"] for entry in result.log] == [1, 2, 3, 4, 5, 6]


def test_a_checkpoint_is_a_patch_that_peft_loads(tmp_path: Path) -> None:
    trained = model()
    bare = copy.deepcopy(trained).unload()
    PatchTrainer(trained, DemoFaces(7, size=16), arguments(tmp_path, checkpointing_steps=3)).train()
    again = PeftModel.from_pretrained(bare, tmp_path / "checkpoint-6").eval()
    face = DemoFaces(1, size=16)[0]
    with torch.no_grad():
        outputs = [network(face["image"][None], face["labels"][None]) for network in (trained, again)]
    assert torch.equal(*outputs)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_signals_save_and_leave(number: signal.Signals, error: type, tmp_path: Path) -> None:
    PatchTrainer(model(), DemoFaces(7, size=16), arguments(tmp_path / "whole", adversary=Once(0, None))).train()
    before = signal.getsignal(number)
    interrupted = arguments(tmp_path / "a", adversary=Once(3, lambda: os.kill(os.getpid(), number)))
    with pytest.raises(error) as caught:
        PatchTrainer(model(), DemoFaces(7, size=16), interrupted).train()
    if error is SystemExit:
        assert caught.value.code == 128 + signal.SIGTERM
    else:
        assert "checkpoint-3 has all of it" in str(caught.value)
    assert signal.getsignal(number) == before
    assert not (tmp_path / "a" / "adapter_model.safetensors").exists()
    settings = arguments(tmp_path / "a", adversary=Once(0, None), resume_from_checkpoint="latest")
    PatchTrainer(model(), DemoFaces(7, size=16), settings).train()
    assert weights(tmp_path / "a") == weights(tmp_path / "whole")


def test_a_signal_in_the_last_step_leaves_with_the_patch(tmp_path: Path) -> None:
    last = arguments(tmp_path, adversary=Once(6, lambda: os.kill(os.getpid(), signal.SIGINT)))
    with pytest.raises(KeyboardInterrupt, match="is complete"):
        PatchTrainer(model(), DemoFaces(7, size=16), last).train()
    assert (tmp_path / "adapter_model.safetensors").is_file()


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: the system refuses to write on."""
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "sys.path.insert(0, sys.argv[1]); from test_checkpoints import *\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "fill = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "settings = arguments(Path(sys.argv[2]), checkpointing_steps=2, adversary=Once(4, fill))\n"
        "try:\n    PatchTrainer(model(), DemoFaces(7, size=16), settings).train()\n"
        "except OSError as error: print('OSError', error)"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(HERE), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout.startswith("OSError"), done.stderr[-2000:]
    assert f"The last good one is {tmp_path / 'checkpoint-2'}" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
    settings = arguments(tmp_path, resume_from_checkpoint="latest")
    assert len(PatchTrainer(model(), DemoFaces(7, size=16), settings).train().log) == 6


def test_what_cannot_be_resumed_is_said(tmp_path: Path) -> None:
    def train(folder: Path, images: int = 7, **changes: object) -> None:
        PatchTrainer(model(), DemoFaces(images, size=16), arguments(folder, **changes)).train()

    train(tmp_path, checkpointing_steps=3)
    with pytest.raises(FileNotFoundError, match="checkpoint-3, checkpoint-6"):
        train(tmp_path, resume_from_checkpoint="checkpoint-5")
    with pytest.raises(ValueError, match="7 images, this run has 9"):
        train(tmp_path, 9, resume_from_checkpoint="latest")
    with pytest.warns(UserWarning, match=r"learning_rate: 0.01 then, 0.1 now"):
        train(tmp_path, resume_from_checkpoint="checkpoint-3", learning_rate=0.1)
    for file in ("random_states_0.pkl", "optimizer.bin"):
        (tmp_path / "checkpoint-6" / file).write_bytes(b"nothing")
        with pytest.raises(ValueError, match="checkpoint-6 cannot be loaded"):
            train(tmp_path, resume_from_checkpoint="checkpoint-6")
    (tmp_path / "checkpoint-6" / "random_states_0.pkl").rename(tmp_path / "checkpoint-6" / "random_states_1.pkl")
    (tmp_path / "checkpoint-3" / "random_states_1.pkl").write_bytes(b"")
    with pytest.raises(ValueError, match="2 processes, this one has 1"):
        train(tmp_path, resume_from_checkpoint="checkpoint-3")


def test_latest_without_a_checkpoint_starts_anew(tmp_path: Path) -> None:
    settings = arguments(tmp_path, resume_from_checkpoint="latest")
    assert len(PatchTrainer(model(), DemoFaces(7, size=16), settings).train().log) == 6


def test_no_pickle_is_run_on_resuming(tmp_path: Path) -> None:
    """A checkpoint with an object in it that would run code is refused."""
    PatchTrainer(model(), DemoFaces(7, size=16), arguments(tmp_path, checkpointing_steps=3)).train()
    flag = tmp_path / "ran"
    torch.save(Touch(flag), tmp_path / "checkpoint-6" / "scheduler.bin")
    trainer = PatchTrainer(model(), DemoFaces(7, size=16), arguments(tmp_path, resume_from_checkpoint="latest"))
    with pytest.raises(ValueError, match="cannot be loaded"):
        trainer.train()
    assert not flag.exists()


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_an_earlier_runs_checkpoints_do_not_cost_the_new_ones(tmp_path: Path) -> None:
    """The limit never takes the one that was just written, and it is said that others lie there."""
    PatchTrainer(model(), DemoFaces(7, size=16), arguments(tmp_path, checkpointing_steps=5, max_train_steps=6)).train()
    settings = arguments(tmp_path, checkpointing_steps=1, max_train_steps=3, checkpoints_total_limit=2)
    with pytest.warns(UserWarning, match="checkpoint-5 the last, and this one starts at step 0"):
        PatchTrainer(model(), DemoFaces(7, size=16), settings).train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-5"]


def test_a_limit_above_the_number_of_checkpoints_deletes_none(tmp_path: Path) -> None:
    settings = arguments(tmp_path, checkpointing_steps=1, checkpoints_total_limit=8)
    PatchTrainer(model(), DemoFaces(7, size=16), settings).train()
    assert len(list(tmp_path.glob("checkpoint-*"))) == 6


def test_training_again_keeps_the_optimizer_of_now(tmp_path: Path) -> None:
    trainer = PatchTrainer(model(), DemoFaces(7, size=16), arguments(tmp_path, checkpointing_steps=6))
    trainer.train()
    once = sorted(path.name for path in (tmp_path / "checkpoint-6").iterdir())
    trainer.train()
    assert sorted(path.name for path in (tmp_path / "checkpoint-6").iterdir()) == once
