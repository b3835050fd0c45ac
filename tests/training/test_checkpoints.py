"""Nothing is lost: runs that are killed, interrupted or short of disk go on as if nothing had happened."""

import copy
import json
import os
import signal
from itertools import chain, count
from pathlib import Path

import pytest
import torch
from killed import (
    STEPS,
    WHOLE,
    Once,
    arguments,
    killed_before_a_change,
    killed_in_a_step,
    killed_within_a_file,
    model,
    train,
)
from peft import PeftModel, get_peft_model
from processes import forked

from loraguard import GatedLoraConfig, PatchTrainer
from loraguard.data import DemoFaces
from loraguard.training import trainer
from loraguard.training.checkpoints import whole_checkpoints


def weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def test_a_run_killed_at_any_moment_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    """SIGKILL in a step and before each change to files that a checkpoint makes, and death while it writes a file.

    Each process goes on from what the one before it left; the end is equal to the bit. Between two changes to files
    all moments are alike.
    """
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert forked(train, whole).returncode == 0
    half = {file.name: file.stat().st_size // 2 for file in (whole / f"checkpoint-{STEPS}").iterdir()}
    deaths = [
        (signal.SIGKILL, killed_in_a_step, 4),  # from here on each checkpoint takes an earlier one's place
        (signal.SIGXFSZ, killed_within_a_file, half["optimizer.bin"]),
        (signal.SIGXFSZ, killed_within_a_file, half["adapter_model.safetensors"]),
    ]
    steps, left = [], set()
    for number, deed, at in chain(deaths, ((signal.SIGKILL, killed_before_a_change, nth) for nth in count(1))):
        done = forked(deed, killed, at)
        if done.returncode == WHOLE:
            break
        assert done.returncode == -number, done.stderr
        there = whole_checkpoints(killed)
        assert all({file.name for file in one.iterdir()} == half.keys() for one in there)
        steps.append(int(there[-1].name.removeprefix("checkpoint-")))
        left |= {path.name.partition(".old")[1] for path in killed.glob(".*checkpoint-*.partial")}
    assert steps == sorted(steps)  # no step is lost
    assert steps[0] == 3
    assert left == {"", ".old"}  # some died writing, some deleting
    assert forked(train, killed).returncode == 0
    assert weights(killed) == weights(whole)
    logs = [json.loads((folder / "training_log.json").read_text()) for folder in (whole, killed)]
    one, other = ({key: value for key, value in log.items() if key != "settings"} for log in logs)
    assert one == other
    assert not list(killed.glob(".*checkpoint*"))
    assert [path.name for path in whole_checkpoints(killed)] == [f"checkpoint-{STEPS - 1}", f"checkpoint-{STEPS}"]


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


def test_a_signal_while_the_patch_is_saved_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no checkpoint that could be gone on from; schedulers wait before they kill."""
    save = trainer.save_patch

    def asked_to_stop(*args: object, **kwargs: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        save(*args, **kwargs)

    monkeypatch.setattr(trainer, "save_patch", asked_to_stop)
    with pytest.raises(SystemExit) as caught:
        PatchTrainer(model(), DemoFaces(7, size=16), arguments(tmp_path)).train()
    assert caught.value.code == 128 + signal.SIGTERM
    assert (tmp_path / "adapter_model.safetensors").is_file()


def test_what_cannot_be_resumed_is_said(tmp_path: Path) -> None:
    def trained(folder: Path, images: int = 7, **changes: object) -> None:
        PatchTrainer(model(), DemoFaces(images, size=16), arguments(folder, **changes)).train()

    trained(tmp_path, checkpointing_steps=3)
    with pytest.raises(FileNotFoundError, match="checkpoint-3, checkpoint-6"):
        trained(tmp_path, resume_from_checkpoint="checkpoint-5")
    with pytest.raises(ValueError, match="7 images, this run has 9"):
        trained(tmp_path, 9, resume_from_checkpoint="latest")
    with pytest.warns(UserWarning, match=r"learning_rate: 0.01 then, 0.1 now"):
        trained(tmp_path, resume_from_checkpoint="checkpoint-3", learning_rate=0.1)
    state = (tmp_path / "checkpoint-6" / "trainer_state.json").read_text()
    odd = [json.dumps({**json.loads(state), name: "odd"}) for name in ("step", "settings", "log", "gates", "watch")]
    for broken in ("{", "[]", "{}", state[:-30], *odd, json.dumps({**json.loads(state), "log": [3]})):
        (tmp_path / "checkpoint-6" / "trainer_state.json").write_text(broken)
        with pytest.raises(ValueError, match="checkpoint-6 cannot be loaded"):
            trained(tmp_path, resume_from_checkpoint="checkpoint-6")
    (tmp_path / "checkpoint-6" / "trainer_state.json").write_text(state)
    for file in ("random_states_0.pkl", "optimizer.bin"):
        (tmp_path / "checkpoint-6" / file).write_bytes(b"nothing")
        with pytest.raises(ValueError, match="checkpoint-6 cannot be loaded"):
            trained(tmp_path, resume_from_checkpoint="checkpoint-6")
    (tmp_path / "checkpoint-6" / "random_states_0.pkl").rename(tmp_path / "checkpoint-6" / "random_states_1.pkl")
    (tmp_path / "checkpoint-3" / "random_states_1.pkl").write_bytes(b"")
    with pytest.raises(ValueError, match="2 processes, this one has 1"):
        trained(tmp_path, resume_from_checkpoint="checkpoint-3")


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
