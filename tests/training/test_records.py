"""Records say what was done: settings given at a resumption are used or refused, and the rest is what ran."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from killed import Once, arguments, model
from peft import PeftModel, get_peft_model
from precision import say_the_refusal
from processes import forked
from torch import Tensor, nn
from torch.nn import functional as F

from loraguard import GatedLoraConfig, PatchTrainer, Stamp
from loraguard.data import DemoFaces
from loraguard.fingerprint import generator_fingerprint
from loraguard.generators import DemoEditor
from loraguard.training.coverage import warn_of_unreached_layers
from loraguard.training.gradients import Gradients

Groups = list[list[tuple[float, tuple[float, float]]]]


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> Groups:
    """Learning rates and betas of the optimizer's groups, in each step that is taken."""
    seen: Groups = []
    step = Gradients.step

    def spy(self: Gradients) -> None:
        seen.append([(group["lr"], group["betas"]) for group in self.optimizer.param_groups])
        step(self)

    monkeypatch.setattr(Gradients, "step", spy)
    return seen


def train(folder: Path, network: PeftModel | None = None, images: int = 7, **changes: Any) -> PatchTrainer:
    trainer = PatchTrainer(network or model(), DemoFaces(images, size=16), arguments(folder, **changes))
    trainer.train()
    return trainer


def written(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The log, and the provenance."""
    log = json.loads((folder / "training_log.json").read_text())
    return log, json.loads((folder / "adapter_config.json").read_text())["provenance"]


def test_settings_of_a_resumption_are_used_and_both_are_recorded(tmp_path: Path, used: Groups) -> None:
    train(tmp_path, max_train_steps=2, checkpointing_steps=2, lr_scheduler="constant")
    now = {"learning_rate": 1e-4, "gate_learning_rate": 0.5, "adam_beta1": 0.9, "lr_scheduler": "constant"}
    with pytest.warns(UserWarning, match="learning_rate: 0.01 then, 0.0001 now"):
        train(tmp_path, max_train_steps=4, resume_from_checkpoint="latest", **now)
    assert used[1] == [(1e-2, (0.5, 0.999)), (1e-2, (0.5, 0.999))]
    assert used[2] == used[3] == [(1e-4, (0.9, 0.999)), (0.5, (0.9, 0.999))]
    log, record = written(tmp_path)
    assert [entry["learning_rate"] for entry in log["steps"]] == [1e-2, 1e-2, 1e-4, 1e-4]
    for settings in (log["settings"], record["settings"]):
        assert {name: settings[name] for name in now} == now
    (resumed,) = log["resumed"]
    assert resumed["step"] == 2
    assert resumed["before"]["learning_rate"] == 1e-2
    assert resumed["before"]["gate_learning_rate"] is None
    assert record["resumed"] == log["resumed"]


def test_a_run_that_is_resumed_as_it_was_says_nothing(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    train(tmp_path, checkpointing_steps=3)
    train(tmp_path, resume_from_checkpoint="latest")
    assert "resumed" not in written(tmp_path)[0]
    assert "resumed" not in written(tmp_path)[1]
    assert not [one for one in recwarn if "Resuming" in str(one.message)]


def test_a_finished_cosine_that_is_made_longer_goes_on_along_the_longer_one(tmp_path: Path, used: Groups) -> None:
    train(tmp_path, max_train_steps=4, checkpointing_steps=4)
    with pytest.warns(UserWarning, match="max_train_steps: 4 then, 6 now"):
        train(tmp_path, max_train_steps=6, resume_from_checkpoint="latest")
    cosine = [1e-2 * 0.5 * (1 + math.cos(math.pi * step / 6)) for step in (4, 5)]
    assert [groups[0][0] for groups in used[4:]] == pytest.approx(cosine, rel=1e-12)
    assert [entry["learning_rate"] for entry in written(tmp_path)[0]["steps"][4:]] == pytest.approx(cosine, rel=1e-12)


def test_a_loss_of_a_resumption_is_said(tmp_path: Path) -> None:
    train(tmp_path, checkpointing_steps=3)
    with pytest.warns(UserWarning, match="loss: 'mse_loss' then, 'l1_loss' now"):
        PatchTrainer(
            model(), DemoFaces(7, size=16), arguments(tmp_path, resume_from_checkpoint="checkpoint-3"), loss=F.l1_loss
        ).train()
    assert written(tmp_path)[0]["resumed"][0]["before"] == {"loss": "mse_loss"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 5}, "seed=0.*seed=5"),
        ({"max_train_steps": 4}, "step 6.*4 steps"),
    ],
)
def test_what_a_resumption_cannot_use_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    train(tmp_path, checkpointing_steps=6)
    before = (tmp_path / "adapter_model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=words) as refused:
        train(tmp_path, resume_from_checkpoint="latest", **changes)
    assert len(str(refused.value)) <= 600
    assert (tmp_path / "adapter_model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"r": 4}, r"shape.*\(2, .*\(4, .*r=2, .*r=4"),
        ({"lora_alpha": 32}, "lora_alpha=2, .*lora_alpha=32"),
        ({"gate_type": "none"}, "gate_type='scalar', .*gate_type='none'"),
        ({"target_modules": r"main\.0"}, "has the tensor .*main.*which this adapter has not"),
    ],
)
def test_an_adapter_that_is_not_the_checkpoints(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    """The first mismatch, in 600 characters; nothing is loaded."""
    train(tmp_path, checkpointing_steps=6)
    torch.manual_seed(0)
    network = DemoEditor(conv_dim=4, num_blocks=1)
    other = get_peft_model(network, GatedLoraConfig(**{"r": 2, **changes}))
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ValueError, match=words) as refused:
        train(tmp_path, other, resume_from_checkpoint="latest")
    assert len(str(refused.value)) <= 600
    assert "resume_from_checkpoint=None" in str(refused.value)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_a_generator_that_is_not_the_checkpoints(tmp_path: Path) -> None:
    train(tmp_path, checkpointing_steps=6)
    torch.manual_seed(1)
    other = get_peft_model(DemoEditor(conv_dim=4, num_blocks=1), GatedLoraConfig(r=2))
    with pytest.raises(ValueError, match="other weights of the generator"):
        train(tmp_path, other, resume_from_checkpoint="latest")


def test_half_precision_that_would_not_be_one_is_refused(tmp_path: Path) -> None:
    """Accelerate takes fp16 on a CPU and then computes in float32."""
    done = forked(say_the_refusal, tmp_path)
    assert "mixed_precision='fp16'" in done.stdout, done
    assert "bf16" in done.stdout
    assert not (tmp_path / "out" / "training_log.json").exists()


def test_what_ran_is_recorded(tmp_path: Path) -> None:
    """Not what was asked for: precision, device, processes, workers, and epochs that steps override."""
    train(tmp_path / "steps", max_train_steps=2)
    log, record = written(tmp_path / "steps")
    for settings in (log["settings"], record["settings"]):
        assert settings["mixed_precision"] == "no"
        assert (settings["device"], settings["processes"], settings["dataloader_num_workers"]) == ("cpu", 1, 0)
        assert settings["num_train_epochs"] is None
    train(tmp_path / "epochs", max_train_steps=None, num_train_epochs=1)
    settings = written(tmp_path / "epochs")[0]["settings"]
    assert (settings["num_train_epochs"], settings["max_train_steps"]) == (1, None)


def test_settings_without_an_effect_are_not_recorded(tmp_path: Path) -> None:
    """More edits than there are, and a rate of gates that do not learn."""
    network = get_peft_model(nn.Sequential(nn.Conv2d(3, 3, 1)), GatedLoraConfig(r=1, gate_type="none"))
    train(tmp_path, network, edits_per_step=2, gate_learning_rate=0.5, max_train_steps=1)
    settings = written(tmp_path)[0]["settings"]
    assert (settings["edits_per_step"], settings["gate_learning_rate"]) == (1, None)


def test_a_warmup_that_the_schedule_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lr_warmup_steps=3.*'constant_with_warmup'"):
        arguments(tmp_path, lr_scheduler="constant", lr_warmup_steps=3)


def test_the_weights_that_are_recorded_are_those_of_the_training(tmp_path: Path) -> None:
    """Not those that the network had when the trainer was made."""
    network = model()
    trainer = PatchTrainer(network, DemoFaces(7, size=16), arguments(tmp_path, max_train_steps=1))
    with torch.no_grad():
        network.get_base_model().main[0].base_layer.weight.mul_(1.5)
    trainer.train()
    assert written(tmp_path)[1]["generator"]["sha256"] == generator_fingerprint(network)


def test_a_network_that_changes_now_and_then_is_warned_of(tmp_path: Path) -> None:
    """Not in the one forward pass before training."""
    network = model()
    adversary = Once(2, lambda: network.get_base_model().main[0].base_layer.weight.data.mul_(1.01))
    with pytest.warns(UserWarning, match="changed the network beneath"):
        train(tmp_path, network, max_train_steps=3, adversary=adversary)


def test_a_stamp_that_shows_nothing_is_refused(tmp_path: Path) -> None:
    """By what it does to an image, not by its form."""
    from PIL import Image

    Image.new("RGBA", (60, 40), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    for stamp in (
        Stamp(image=tmp_path / "clear.png"),
        Stamp("\u200b"),
        Stamp("\u00ad"),
        Stamp("AI", colour="#ffffff00", outline=None),
        Stamp("AI", opacity=0.001),
    ):
        with pytest.raises(ValueError, match="shows nothing"):
            stamp.compose(torch.zeros(1, 3, 32, 32))
        with pytest.raises(ValueError, match="shows nothing"):
            PatchTrainer(model(), DemoFaces(7, size=32), arguments(tmp_path / "out", stamp=stamp))


def test_a_stamp_in_the_colour_of_all_outputs_is_refused(tmp_path: Path) -> None:
    class White(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, images: Tensor) -> Tensor:
            return 0 * self.conv(images) + 1

    network = get_peft_model(White(), GatedLoraConfig(r=1))
    with pytest.raises(ValueError, match="moves no pixel"):
        train(tmp_path, network, stamp=Stamp("AI", size=0.8, outline=None))


# Errors of 600 characters at most.


def test_long_errors_are_cut(tmp_path: Path) -> None:
    many = [f"checkpoint-{step}" for step in range(1, 300)]
    for name in many:
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_state.json").touch()
    with pytest.raises(FileNotFoundError, match=r"checkpoint-299") as missing:
        train(tmp_path, resume_from_checkpoint="checkpoint-x")

    def forward(images: Tensor, **condition: Tensor) -> Tensor:
        raise error("x" * 5000)

    found = [missing.value]
    for error in (TypeError, RuntimeError):
        network = model()
        network.get_base_model().forward = forward
        with pytest.raises((error, ValueError)) as raised:
            PatchTrainer(network, DemoFaces(7, size=16), arguments(tmp_path / "out"))
        if error is TypeError:  # one of the network's own passes as it is
            found.append(raised.value)
    assert max(len(str(one)) for one in found) <= 600


def test_a_long_list_of_unreached_layers_is_cut() -> None:
    network = nn.ModuleDict({f"{i}_{'n' * 200}": nn.Linear(1, 1) for i in range(30)})
    with pytest.warns(UserWarning, match="30 of 30 layers") as warned:
        warn_of_unreached_layers(get_peft_model(network, GatedLoraConfig(r=1)), "default")
    assert len(str(warned[0].message)) <= 600


@pytest.mark.parametrize(("held_out", "used"), [(0, 0), (2, 2), (5, 3)])
def test_images_of_the_validation_that_there_are_not_are_not_recorded(tmp_path: Path, held_out: int, used: int) -> None:
    validation = {"validation_dataset": DemoFaces(held_out, size=16)} if held_out else {}
    steps = {"validation_steps": 1} if held_out else {}
    settings = arguments(tmp_path, max_train_steps=1, num_validation_images=3, **steps)
    PatchTrainer(model(), DemoFaces(4, size=16), settings, **validation).train()
    assert written(tmp_path)[0]["settings"]["num_validation_images"] == used
