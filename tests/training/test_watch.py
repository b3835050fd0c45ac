"""Steps that must not reach the weights, gates that are stuck, trackers, validation, and the order of the data."""

import json
import math
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model
from PIL import Image
from precision import say_the_precision
from processes import forked
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.nn import functional as F

from loraguard import GatedLoraConfig, PatchTrainer, PatchTrainingArguments, Stamp
from loraguard.data import DemoFaces
from loraguard.defenses import Disrupting, Mixture, RandomNoise
from loraguard.generators import DemoEditor
from loraguard.training.gates import stuck_gates
from loraguard.training.sampling import EndlessBatches
from loraguard.training.watch import StepWatch


def arguments(folder: Path, **changes: object) -> PatchTrainingArguments:
    defaults = {
        "adversary": RandomNoise(0.05), "max_train_steps": 4, "train_batch_size": 2, "cpu": True, "disable_tqdm": True
    }  # fmt: skip
    return PatchTrainingArguments(folder, **{**defaults, **changes})


class Failing:
    """Pixel MSE that is multiplied by something at some of its calls; two calls make a step."""

    def __init__(self, factors: dict[int, float]) -> None:
        self.factors, self.calls = factors, 0

    def __call__(self, outputs: Tensor, target: Tensor) -> Tensor:
        self.calls += 1
        return F.mse_loss(outputs, target) * self.factors.get(self.calls, 1.0)


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_broken_step_is_skipped_and_counted(
    factor: float, patched: PeftModel, faces: DemoFaces, tmp_path: Path
) -> None:
    """The weights after it are those before it, and training goes on."""
    seen = []
    noise = RandomNoise(0.05)

    def adversary(generator, images, condition, clean=None):
        seen.append({k: v.detach().clone() for k, v in generator.named_parameters() if "lora_" in k})
        return noise(generator, images, condition, clean)

    adversary.eps = 0.05
    settings = arguments(tmp_path, adversary=adversary, max_train_steps=4)
    result = PatchTrainer(patched, faces, settings, loss=Failing({4: factor})).train()
    assert [("skipped" in entry) for entry in result.log] == [False, True, False, False]
    assert "loss_adversarial is" in result.log[1]["skipped"]
    assert all(torch.equal(value, seen[2][name]) for name, value in seen[1].items())
    assert not all(torch.equal(value, seen[3][name]) for name, value in seen[2].items())
    log = json.loads((tmp_path / "training_log.json").read_text())
    assert [entry["step"] for entry in log["skipped"]] == [2]
    record = json.loads((tmp_path / "adapter_config.json").read_text())["provenance"]
    assert (record["steps"], record["skipped"]) == (4, 1)


def test_a_skipped_step_leaves_the_gradient_scaler_ready_for_the_next(
    patched: PeftModel, faces: DemoFaces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of fp16, whose autocast is left out here: it needs an accelerator, the scaler does not."""
    trainer = PatchTrainer(patched, faces, arguments(tmp_path), loss=Failing({4: math.nan}))
    trainer.args.mixed_precision = "fp16"
    scaler = trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    monkeypatch.setattr(type(trainer.accelerator), "mixed_precision", "fp16")
    monkeypatch.setattr(trainer.accelerator, "native_amp", True)
    monkeypatch.setattr(trainer.accelerator, "prepare_model", lambda model, **_: model)
    result = trainer.train()
    assert ["skipped" in entry for entry in result.log] == [False, True, False, False]
    assert scaler.get_scale() == 2.0


def test_precision_is_what_the_launcher_was_told(tmp_path: Path) -> None:
    """As `accelerate launch --mixed_precision bf16`, and examples/configs, tell it."""
    done = forked(say_the_precision, tmp_path, ACCELERATE_MIXED_PRECISION="bf16")
    assert done.stdout.split() == ["bf16"], done.stderr


def test_an_explosion_is_skipped(patched: PeftModel, faces: DemoFaces, tmp_path: Path) -> None:
    loss = Failing({27: 1e6, 28: 1e6})
    result = PatchTrainer(patched, faces, arguments(tmp_path, max_train_steps=16), loss=loss).train()
    assert [entry["step"] for entry in result.log if "skipped" in entry] == [14]


def test_the_run_stops_with_a_diagnosis(patched: PeftModel, faces: DemoFaces, tmp_path: Path) -> None:
    loss = Failing({call: math.nan for call in range(7, 100)})
    settings = arguments(tmp_path, max_train_steps=30, max_skipped_steps=3, learning_rate=0.02, lr_scheduler="constant")
    with pytest.raises(
        FloatingPointError, match=r"step 6: 3 steps in a row.*learning rate 0\.02.*max_grad_norm"
    ) as error:
        PatchTrainer(patched, faces, settings, loss=loss).train()
    assert "last good losses were" in str(error.value)
    assert not (tmp_path / "adapter_model.safetensors").exists()


def test_watch_goes_on_where_it_was() -> None:
    one, other = StepWatch(2), StepWatch(2)
    for step in range(1, 13):
        one.judge(step, {"loss": 0.1 * step}, 1.0, 0.1)
    one.judge(13, {"loss": math.nan}, 1.0, 0.1)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for watch in (one, other):
        with pytest.raises(FloatingPointError, match="2 steps in a row"):
            watch.judge(14, {"loss": math.nan}, 1.0, 0.1)


def test_gates_that_are_stuck_are_warned_about_once(editor: DemoEditor, faces: DemoFaces, tmp_path: Path) -> None:
    model = get_peft_model(editor, GatedLoraConfig(r=2, gate_init=-6.0))
    with pytest.warns(UserWarning, match="After step 1, 8 of 8 gates are all but shut") as warned:
        PatchTrainer(model, faces, arguments(tmp_path)).train()
    assert len([w for w in warned if "gates" in str(w.message)]) == 1
    assert "open (above 0.99)" in str(stuck_gates({"a": 0.999}))
    assert stuck_gates({"a": 0.3, "b": 0.7}) is None


def test_no_warning_of_gates_that_are_none(editor: DemoEditor, faces: DemoFaces, tmp_path: Path, recwarn) -> None:
    model = get_peft_model(editor, GatedLoraConfig(r=2, gate_type="none"))
    PatchTrainer(model, faces, arguments(tmp_path)).train()
    assert not [w for w in recwarn if "gates" in str(w.message)]


# Order of the data.


@pytest.mark.parametrize(("length", "batch"), [(7, 3), (12, 4), (2, 5)])
def test_every_pass_is_a_permutation(length: int, batch: int) -> None:
    indices = [i for b in islice(EndlessBatches(length, batch, seed=3), 60) for i in b]
    passes = [indices[at : at + length] for at in range(0, len(indices) - length, length)]
    assert all(sorted(one) == list(range(length)) for one in passes)
    assert length < 5 or len({tuple(one) for one in passes}) > 1


def test_two_processes_share_what_one_would_take() -> None:
    whole = list(islice(EndlessBatches(13, 4, seed=1), 20))
    parts = [list(islice(EndlessBatches(13, 2, seed=1, process=p, processes=2), 20)) for p in (0, 1)]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole
    late = list(islice(EndlessBatches(13, 2, seed=1, start=5, process=1, processes=2), 3))
    assert late == parts[1][5:8]


def test_seeds_give_other_orders() -> None:
    orders = [next(iter(EndlessBatches(50, 50, seed=seed))) for seed in (0, 1, 2**31, 2**32 - 1)]
    assert len({tuple(order) for order in orders}) == 4


# Adversaries and edits.


def test_a_mixture_draws_by_weight() -> None:
    class Add:
        def __init__(self, eps: float) -> None:
            self.eps = eps

        def __call__(self, generator, images, condition, clean=None):
            return images + self.eps

    mixture = Mixture((Add(0.1), Add(0.2), Add(0.3)), weights=(3, 1, 0))
    drawn = [round(float(mixture(torch.nn.Identity(), torch.zeros(1, 3, 1, 1), {}).mean()), 1) for _ in range(2000)]
    assert drawn.count(0.3) == 0
    assert drawn.count(0.1) / 2000 == pytest.approx(0.75, abs=0.04)  # four standard deviations
    assert mixture.eps == 0.3


@pytest.mark.parametrize("weights", [(), (1,), (1, -1), (0, 0), (1, math.inf)])
def test_a_mixture_of_bad_weights(weights: tuple) -> None:
    with pytest.raises(ValueError, match="weight >= 0 for each of 2"):
        Mixture((RandomNoise(), RandomNoise()), weights)


def test_edits_are_drawn(patched: PeftModel, faces: DemoFaces, tmp_path: Path) -> None:
    seen = []

    def edits(labels: Tensor) -> dict:
        return {str(i): {"labels": labels + i} for i in range(5)}

    class Watching(RandomNoise):
        def __call__(self, generator, images, condition, clean=None):
            seen.append(condition["labels"])
            return super().__call__(generator, images, condition, clean)

    settings = arguments(tmp_path, adversary=Watching(0.05), edits_per_step=2, max_train_steps=12)
    PatchTrainer(patched, faces, settings, conditions=edits).train()
    assert {len(labels) for labels in seen} == {4}
    assert len({tuple(labels[::2, 0].tolist()) for labels in seen}) > 4


# Validation and trackers.


def test_validation_and_tensorboard(patched: PeftModel, faces: DemoFaces, tmp_path: Path) -> None:
    """Figures against their definition; pictures as files and in the tracker; training is not disturbed."""
    held_out = DemoFaces(6, size=16, split="test")
    bare = arguments(tmp_path / "bare", adversary=Disrupting(eps=0.1, steps=2))
    plain = PatchTrainer(copy_of(patched), faces, bare).train()
    settings = arguments(
        tmp_path / "a", adversary=Disrupting(eps=0.1, steps=2), validation_steps=2, num_validation_images=6,
        report_to="tensorboard",
    )  # fmt: skip
    result = PatchTrainer(patched, faces, settings, validation_dataset=held_out).train()
    assert [entry["loss_adversarial"] for entry in result.log] == [entry["loss_adversarial"] for entry in plain.log]
    assert [entry["step"] for entry in result.validation] == [2, 4]

    images = torch.stack([held_out[i]["image"] for i in range(6)])
    labels = torch.stack([held_out[i]["labels"] for i in range(6)])
    edits = list(patched.get_base_model().conditions(labels).values())
    wanted = torch.stack([edits[i % 5]["labels"][i] for i in range(6)])
    with torch.no_grad():
        clean = patched(images, wanted)
        with patched.disable_adapter():
            target = patched(images, wanted)
    mse = (clean - target).square().mean((1, 2, 3))
    last = result.validation[-1]
    assert last["clean_mse"] == pytest.approx(mse.mean().item(), rel=1e-3)
    assert last["clean_psnr"] == pytest.approx((10 * (4 / mse).log10()).mean().item(), rel=1e-3)
    assert last["leak_mse"] > last["clean_mse"]

    picture = Image.open(tmp_path / "a" / "validation" / "step-4.png")
    assert picture.size == (6 * 18 + 2, 5 * 18 + 2)
    shown = np.asarray(picture)[2:18, 2:18].astype(int)
    assert np.abs(shown - ((images[0] + 1) * 127.5).permute(1, 2, 0).numpy()).max() <= 1
    events = EventAccumulator(str(next((tmp_path / "a").rglob("events.out*")).parent)).Reload()
    assert [e.step for e in events.Scalars("train/loss_clean")] == [1, 2, 3, 4]
    assert len([tag for tag in events.Tags()["scalars"] if tag.startswith("gate/")]) == 8
    assert [e.step for e in events.Images("validation")] == [2, 4]


def copy_of(model: PeftModel) -> PeftModel:
    import copy

    return copy.deepcopy(model)


def test_validation_of_a_defensive_patch(patched: PeftModel, faces: DemoFaces, tmp_path: Path) -> None:
    settings = arguments(tmp_path, stamp=Stamp("A", size=0.5), validation_steps=10, max_train_steps=3)
    result = PatchTrainer(patched, faces, settings, validation_dataset=faces).train()
    assert [entry["step"] for entry in result.validation] == [3]


def test_validation_needs_images(patched: PeftModel, faces: DemoFaces, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a validation_dataset"):
        PatchTrainer(patched, faces, arguments(tmp_path, validation_steps=2))


# Settings.


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lr_scheduler": "sinus"}, "lr_scheduler='sinus' must be 'constant', "),
        ({"recipe": "slow"}, "recipe='slow' must be one of"),
        ({"report_to": "tensorbored"}, "tensorbored"),
        ({"seed": -1}, "seed=-1 must be greater than or equal to 0"),
        ({"gradient_accumulation_steps": 0}, "must be greater than or equal to 1"),
        ({"edits_per_step": 0}, "must be greater than or equal to 1"),
        ({"learning_rate": 0}, "learning_rate=0 must be greater than 0"),
        ({"learning_rate": "1e-3"}, "learning_rate='1e-3' must be a number"),
        ({"num_train_epochs": 1.5}, "num_train_epochs=1.5 must be a whole number"),
        ({"mixed_precision": "fp8"}, "mixed_precision='fp8' must be 'no', 'fp16' or 'bf16'"),
        ({"cpu": "yes"}, "cpu='yes' must be true or false"),
        ({"train_batch_size": 2.5}, "train_batch_size=2.5 must be a whole number"),
        ({"seed": 2**33}, "seed=8589934592 must be less than 4294967296"),
    ],
)
def test_bad_settings(changes: dict, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        arguments(tmp_path, **changes)


def test_an_empty_data_set(patched: PeftModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="empty"):
        PatchTrainer(patched, [], arguments(tmp_path))


def test_pushing_without_a_name_on_the_hub(patched: PeftModel, faces: DemoFaces, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="does not know who you are"):
        PatchTrainer(patched, faces, arguments(tmp_path, push_to_hub=True, hub_token="hf_none"))


def test_the_token_is_written_nowhere(tmp_path: Path) -> None:
    assert "secret" not in json.dumps(arguments(tmp_path, hub_token="secret").to_dict())
