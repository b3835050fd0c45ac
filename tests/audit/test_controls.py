"""Controls of a patch: what each leaves out, that they are repeatable, loadable and not trained twice."""

import copy
import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from loraguard import GatedLoraConfig, PatchTrainingArguments, Stamp
from loraguard.audit import Controls, run_audit, train_controls
from loraguard.audit.controls import KINDS
from loraguard.channels import quantize
from loraguard.data import DemoFaces, collate
from loraguard.defenses import Disrupting, Unperturbed
from loraguard.generators import DemoEditor, conditions_of, expand
from loraguard.training import fine_tune, patch_step


@dataclass(frozen=True)
class Counting:
    """An adversary that says how often it was asked, and by which kind of network."""

    eps: float = 0.1

    def __call__(self, generator: nn.Module, images: Tensor, condition: dict, clean: Tensor | None = None) -> Tensor:
        ASKED.append(type(generator).__name__)
        return (images + self.eps * (2 * torch.rand_like(images) - 1)).clamp(-1, 1)


ASKED: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_asked() -> None:
    ASKED.clear()


def arguments(**changes: object) -> PatchTrainingArguments:
    defaults = {"adversary": Counting(), "max_train_steps": 2, "cpu": True, "disable_tqdm": True}
    return PatchTrainingArguments("unused", **{**defaults, **changes})


def outputs_of(network: nn.Module, faces: DemoFaces) -> Tensor:
    with torch.no_grad():
        return network(faces[0]["image"][None], faces[0]["labels"][None])


def test_each_control_leaves_out_what_it_says(editor: DemoEditor, faces: DemoFaces, tmp_path: Path) -> None:
    before = copy.deepcopy(editor.state_dict())
    controls = train_controls(editor, faces, arguments(), tmp_path, config=GatedLoraConfig(r=2, gate_init=-3.0))
    assert ASKED == ["PeftModel"] * 2 + ["DemoEditor"] * 2  # ungated, then fine-tune
    files = {kind: load_file(folder / "adapter_model.safetensors") for kind, folder in controls.adapters.items()}
    assert list(files) == ["ungated", "clean-only"]
    assert not any("lora_gate" in name for name in files["ungated"])
    assert {name for name in files["clean-only"] if "lora_gate" not in name} == files["ungated"].keys()
    gates = [value for name, value in files["clean-only"].items() if "lora_gate" in name]
    assert len(gates) == 8
    assert all(abs(gate + 3).max() < 0.1 for gate in gates)
    assert all(torch.equal(value, before[name]) for name, value in editor.state_dict().items())
    assert not (Path("unused")).exists()


def test_training_on_clean_images_alone_learns_from_the_clean_loss_alone(patched: PeftModel, faces: DemoFaces) -> None:
    model = patched.double()
    batch = collate([faces[i] for i in range(2)])
    images, condition = expand(batch["image"].double(), conditions_of(model, batch["labels"].double()))
    patch_step(model, images, condition, adversary=Unperturbed(), stamp=None, loss=F.mse_loss)
    learnt = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    with torch.no_grad(), model.disable_adapter():
        target = model(images, **condition)
    F.mse_loss(model(images, **condition), target).backward()
    clean = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(learnt) == len(clean) > 10
    assert all(torch.allclose(a, 2 * b, rtol=1e-9, atol=1e-14) for a, b in zip(learnt, clean, strict=True))


def test_controls_are_audited_beside_a_patch(editor: DemoEditor, faces: DemoFaces, tmp_path: Path) -> None:
    """On a model with adapters, whose own stay as they are and are not in the controls."""
    bare = copy.deepcopy(editor)
    config = GatedLoraConfig(r=2, init_lora_weights="paper")
    model = get_peft_model(editor, config, adapter_name="standard").eval()
    before = outputs_of(model, faces)
    controls = train_controls(model, faces, arguments(learning_rate=1e-3), tmp_path, config=config)
    patches = {"standard": None} | controls.add_to(model)
    assert model.active_adapter == "standard"
    assert torch.equal(outputs_of(model, faces), before)
    result = run_audit(
        model,
        faces,
        defenses=Disrupting(steps=2),
        patches=patches,
        generators=controls.generators,
        disable_tqdm=True,
    )
    batch = collate([faces[i] for i in range(len(faces))])
    edits = conditions_of(bare, batch["labels"])
    condition = {"labels": torch.stack([edits[name]["labels"][i] for i, name in enumerate(result.edits)])}
    for kind in KINDS:
        network = controls.generators.get(kind)
        if network is None:
            network = PeftModel.from_pretrained(copy.deepcopy(bare), controls.adapters[kind])
        with torch.no_grad():
            wanted = quantize(bare(batch["image"], **condition))
            difference = quantize(network(batch["image"], **condition)) - wanted
        mse = difference.square().mean((1, 2, 3))
        assert mse.min() > 0
        assert torch.allclose(result[kind, "clean"].values["mse"], mse, atol=1e-5)
    with pytest.raises(ValueError, match=r"adapters \['clean-only', 'ungated'\] already"):
        controls.add_to(model)


def test_a_clean_only_standard_patch_has_something_to_learn(
    editor: DemoEditor, faces: DemoFaces, tmp_path: Path
) -> None:
    """From an update of zero, which is right on clean images, it would never move."""
    controls = train_controls(editor, faces, arguments(max_train_steps=12), tmp_path, kinds=("clean-only",))
    log = json.loads((controls.adapters["clean-only"] / "training_log.json").read_text())["steps"]
    assert 0 < log[-1]["loss_clean"] < log[0]["loss_clean"]
    model = PeftModel.from_pretrained(copy.deepcopy(editor), controls.adapters["clean-only"]).eval()
    assert not torch.equal(outputs_of(model, faces), outputs_of(editor, faces))


def test_fine_tuning_moves_every_weight_and_learns(tmp_path: Path) -> None:
    editor = DemoEditor.pretrained()
    stamp = Stamp("AI", place="bottom-left", size=0.5, background="red", outline=None)
    settings = arguments(stamp=stamp, adversary=Disrupting(steps=1), max_train_steps=30, learning_rate=1e-3)
    network = fine_tune(editor, DemoFaces(64, size=16), dataclasses.replace(settings, output_dir=tmp_path))
    log = json.loads((tmp_path / "training_log.json").read_text())["steps"]
    for key in ("loss_clean", "loss_adversarial"):
        values = [entry[key] for entry in log]
        assert sum(values[-5:]) < 0.6 * sum(values[:5])
    for (name, before), after in zip(editor.named_parameters(), network.parameters(), strict=True):
        assert not torch.equal(before, after), name
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    saved = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in network.state_dict().items())


def test_fine_tuning_against_one_plain_step(editor: DemoEditor, faces: DemoFaces, tmp_path: Path) -> None:
    """Accumulated batches are one step of the whole gradient, on every image with every edit."""

    class Shift:
        eps = 0.1

        def __call__(
            self, generator: nn.Module, images: Tensor, condition: dict, clean: Tensor | None = None
        ) -> Tensor:
            return (images + self.eps).clamp(-1, 1)

    stamp = Stamp("AI", size=0.8)
    settings = arguments(
        recipe="paper", stamp=stamp, adversary=Shift(), max_train_steps=1, gradient_accumulation_steps=3
    )
    network = fine_tune(editor, faces, dataclasses.replace(settings, output_dir=tmp_path))
    batch = collate([faces[i] for i in range(12)])  # three batches of four are all there are
    images, condition = expand(batch["image"], conditions_of(editor, batch["labels"]))
    with torch.no_grad():
        target = stamp.compose(editor(images, **condition))
    losses = [F.mse_loss(editor(x, **condition), target) for x in (images, (images + 0.1).clamp(-1, 1))]
    sum(losses).backward()
    norm = torch.stack([parameter.grad.norm() for parameter in editor.parameters()]).norm()
    (entry,) = json.loads((tmp_path / "training_log.json").read_text())["steps"]
    expected = {"loss_clean": losses[0].item(), "loss_adversarial": losses[1].item(), "gradient_norm": norm.item()}
    assert {name: entry[name] for name in expected} == pytest.approx(expected, rel=1e-3)
    for before, after in zip(editor.parameters(), network.parameters(), strict=True):
        large = before.grad.abs() > 1e-4 * norm
        moved = (after - before)[large] / settings.learning_rate  # Adam's first step is as long as its rate
        assert torch.allclose(moved, -before.grad[large].sign(), atol=1e-2)


def test_controls_are_repeatable_by_seed(editor: DemoEditor, faces: DemoFaces, tmp_path: Path) -> None:
    def weights(folder: str, seed: int) -> list[bytes]:
        torch.rand(len(folder))
        train_controls(editor, faces, arguments(seed=seed), tmp_path / folder)
        files = ("ungated/adapter_model", "clean-only/adapter_model", "fine-tune/model")
        return [(tmp_path / folder / f"{file}.safetensors").read_bytes() for file in files]

    first, again, other = weights("a", 0), weights("bcd", 0), weights("e", 1)
    assert first == again
    assert all(one != two for one, two in zip(first, other, strict=True))


def test_a_finished_control_is_not_trained_again(editor: DemoEditor, faces: DemoFaces, tmp_path: Path) -> None:
    def asked(generator: nn.Module = editor, data: DemoFaces = faces, both: bool = False, **changes: object) -> int:
        ASKED.clear()
        kinds = ("ungated", "fine-tune") if both else ("ungated",)
        controls.append(train_controls(generator, data, arguments(**changes), tmp_path, kinds=kinds))
        return len(ASKED)

    controls: list[Controls] = []
    assert asked(both=True) == 4
    assert asked(both=True) == 0
    one, two = (outputs_of(each.generators["fine-tune"], faces) for each in controls)
    assert torch.equal(one, two)
    assert not torch.equal(one, outputs_of(editor, faces))
    assert controls[0].adapters == controls[1].adapters
    assert asked(dataloader_num_workers=0) == 0  # changes no figure
    for change in ({"max_train_steps": 3}, {"adam_beta1": 0.9}, {"adversary": Counting(0.2)}, {"seed": 4}):
        assert asked(both=True, **change) > 0 if "seed" in change else asked(**change) > 0
    assert asked(seed=4, both=True) == 0
    assert asked(data=DemoFaces(12, size=16, seed=9), seed=4) > 0
    assert asked(generator=DemoEditor(conv_dim=4, num_blocks=1), seed=4) > 0
    (tmp_path / "ungated" / "control.json").unlink()  # as if it had been killed
    assert asked(generator=editor, seed=4) > 0


def test_a_control_whose_weights_are_others_is_no_finished_one(
    editor: DemoEditor, faces: DemoFaces, tmp_path: Path
) -> None:
    """A figure belongs to what it names: somebody has put other weights where the training left its own."""

    def weights() -> dict[str, Tensor]:
        (folder,) = train_controls(editor, faces, arguments(), tmp_path, kinds=("ungated",)).adapters.values()
        return load_file(folder / "adapter_model.safetensors")

    trained = weights()
    save_file({name: one + 1 for name, one in trained.items()}, tmp_path / "ungated" / "adapter_model.safetensors")
    assert all(torch.equal(one, trained[name]) for name, one in weights().items())


def test_what_cannot_be_trained_is_said_first(
    editor: DemoEditor, faces: DemoFaces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = r"no controls \['gateless'\]; choose from standard, ungated, clean-only, fine-tune"
    with pytest.raises(ValueError, match=words):
        train_controls(editor, faces, arguments(), tmp_path, kinds=("ungated", "gateless"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="controls runs in one process, and there are 2"):
        train_controls(editor, faces, arguments(), tmp_path)
    with pytest.raises(ValueError, match="full fine-tune runs in one process"):
        fine_tune(editor, faces, arguments())
    assert not ASKED


def test_a_fine_tune_that_explodes_leaves_nothing(editor: DemoEditor, faces: DemoFaces, tmp_path: Path) -> None:
    settings = dataclasses.replace(arguments(max_skipped_steps=1), output_dir=tmp_path)
    with pytest.raises(FloatingPointError, match="loss_clean is nan"):
        fine_tune(editor, faces, settings, loss=lambda a, b: F.mse_loss(a, b) * math.nan)
    assert not list(tmp_path.iterdir())
