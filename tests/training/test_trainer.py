"""Patch training against a plain second implementation."""

import copy
import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel, get_peft_model
from precision import train_in_bfloat16
from processes import forked
from safetensors.torch import load_file
from small import Pictures, arguments
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth
from two_processes import Faces

from loraguard import GatedLoraConfig, PatchTrainer, Stamp
from loraguard.data import DemoFaces, collate
from loraguard.defenses import Disrupting, RandomNoise
from loraguard.fingerprint import generator_fingerprint
from loraguard.generators import DemoEditor, conditions_of, expand
from loraguard.losses import FeatureCache, FeatureEncoder, MMFALoss
from loraguard.training import patch_step
from loraguard.tuner import GATES


@pytest.mark.parametrize("stamp", [None, Stamp("AI", size=0.8)])
def test_gradient_is_that_of_a_naive_implementation(patched: PeftModel, faces: DemoFaces, stamp: Stamp | None) -> None:
    """Two networks, nothing folded or shared, one backward; in float64, as sign() amplifies rounding."""
    model = patched.double()
    batch = collate([faces[i] for i in range(3)])
    images, condition = expand(batch["image"].double(), conditions_of(model, batch["labels"].double()))
    original = DemoEditor(conv_dim=4, num_blocks=1).double()
    original.load_state_dict(
        {k.replace("base_layer.", ""): v for k, v in model.get_base_model().state_dict().items() if "lora_" not in k}
    )
    naive = copy.deepcopy(model)

    torch.manual_seed(5)
    losses = patch_step(model, images, condition, adversary=Disrupting(steps=3), stamp=stamp, loss=F.mse_loss)

    torch.manual_seed(5)
    target = original(images, **condition).detach()
    if stamp is not None:
        target = stamp.compose(target)
    adversarial = images + 0.05 * (2 * torch.rand_like(images) - 1)
    adversarial = adversarial.clamp(-1, 1)
    for _ in range(3):
        adversarial.requires_grad_(True)
        distance = F.mse_loss(naive(adversarial, **condition), naive(images, **condition).detach())
        gradient = torch.autograd.grad(distance, adversarial)[0]
        adversarial = (adversarial + 0.01 * gradient.sign()).detach()
        adversarial = (images + (adversarial - images).clamp(-0.05, 0.05)).clamp(-1, 1)
    clean, perturbed = (F.mse_loss(naive(x, **condition), target) for x in (images, adversarial))
    (clean + perturbed).backward()

    assert losses["loss_clean"] == pytest.approx(clean.item(), rel=1e-9)
    assert losses["loss_adversarial"] == pytest.approx(perturbed.item(), rel=1e-9)
    compared = 0
    for (name, mine), theirs in zip(model.named_parameters(), naive.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None), name
        if mine.grad is not None:
            assert torch.allclose(mine.grad, theirs.grad, rtol=1e-7, atol=1e-12), name
            compared += 1
    assert compared > 20


def test_a_patch_learns_its_target(faces: DemoFaces, tmp_path: Path) -> None:
    """On a defensive patch both losses fall, and only the adapter has changed."""
    editor = DemoEditor.pretrained()
    before = copy.deepcopy(editor.state_dict())
    model = get_peft_model(editor, GatedLoraConfig(r=4, lora_alpha=8))
    stamp = Stamp("AI", place="bottom-left", size=0.5, background="red", outline=None)
    settings = arguments(
        tmp_path, stamp=stamp, learning_rate=1e-2, max_train_steps=25, max_grad_norm=1.0, train_batch_size=2
    )
    result = PatchTrainer(model, DemoFaces(64, size=32), settings).train()
    for key in ("loss_clean", "loss_adversarial"):
        values = [entry[key] for entry in result.log]
        assert sum(values[-5:]) < 0.6 * sum(values[:5])
    bare = {k.replace("base_layer.", ""): v for k, v in model.get_base_model().state_dict().items() if "lora_" not in k}
    assert all(torch.equal(before[key], bare[key]) for key in before)
    assert len(result.gates) == 12
    assert all(len(values) == 25 and all(0 < v < 1 for v in values) for values in result.gates.values())


def test_what_is_saved_is_what_was_trained(patched: PeftModel, faces: DemoFaces, tmp_path: Path) -> None:
    editor = DemoEditor(conv_dim=4, num_blocks=1)
    editor.load_state_dict(
        {k.replace("base_layer.", ""): v for k, v in patched.get_base_model().state_dict().items() if "lora_" not in k}
    )
    result = PatchTrainer(patched, faces, arguments(tmp_path / "a" / "b")).train()
    assert {f.name for f in result.output_dir.iterdir()} == {
        "adapter_model.safetensors", "adapter_config.json", "training_log.json", "README.md", "photos.safetensors",
    }  # fmt: skip
    again = PeftModel.from_pretrained(editor, result.output_dir)
    images, condition = faces[0]["image"][None], {"labels": faces[0]["labels"][None]}
    with torch.no_grad():
        assert torch.equal(patched(images, **condition), again.eval()(images, **condition))
    log = json.loads((result.output_dir / "training_log.json").read_text())
    assert log["settings"]["kind"] == "standard"
    assert log["settings"]["adversary"] == {
        "class": "Disrupting",
        "eps": 0.05,
        "steps": 2,
        "step_size": None,
        "method": "pgd",
        "restarts": 1,
        "layer": None,
        "eot": 1,
    }
    assert [entry["step"] for entry in log["steps"]] == [1, 2, 3]


def test_merged_patch_has_the_keys_and_shapes_of_the_generator(
    patched: PeftModel, faces: DemoFaces, tmp_path: Path
) -> None:
    PatchTrainer(patched, faces, arguments(tmp_path)).train()
    images, condition = faces[0]["image"][None], {"labels": faces[0]["labels"][None]}
    expected = patched(images, **condition)
    merged = patched.merge_and_unload()
    shapes = {key: value.shape for key, value in DemoEditor(conv_dim=4, num_blocks=1).state_dict().items()}
    assert {key: value.shape for key, value in merged.state_dict().items()} == shapes
    assert (merged(images, **condition) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("stamp", [None, Stamp("AI", size=0.8)])
def test_the_card_says_what_the_patch_is_and_how_to_load_it(
    stamp: Stamp | None, patched: PeftModel, faces: DemoFaces, tmp_path: Path
) -> None:
    PatchTrainer(patched, faces, arguments(tmp_path, stamp=stamp)).train()
    card = ModelCard.load(tmp_path / "README.md")
    kind = "standard" if stamp is None else "defensive"
    assert card.data.library_name == "peft"
    assert kind in card.data.tags
    first = next(line for line in card.text.splitlines() if line and not line.startswith("<!--"))
    assert first.startswith(f"# A {kind} patch for DemoEditor")
    assert card.text.index("import loraguard") < card.text.index("PeftModel.from_pretrained")
    assert str(tmp_path) not in card.content


def test_what_a_person_wrote_on_the_card_outlives_the_next_training(
    patched: PeftModel, faces: DemoFaces, tmp_path: Path
) -> None:
    PatchTrainer(patched, faces, arguments(tmp_path)).train()
    readme = tmp_path / "README.md"
    readme.write_text(readme.read_text() + "\nMine.\n")
    PatchTrainer(patched, faces, arguments(tmp_path, stamp=Stamp("AI", size=0.8))).train()
    assert readme.read_text().endswith("\nMine.\n")
    assert "# A defensive patch" in readme.read_text()


def test_a_patch_says_for_which_weights_it_is(tmp_path: Path, faces: DemoFaces) -> None:
    """Those before training, which training does not move; the settings name no folder."""
    network = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Tanh())
    before = generator_fingerprint(network)
    model = get_peft_model(network, GatedLoraConfig(r=1))
    edits = {"conditions": lambda labels: {"output": {}}}
    PatchTrainer(model, faces, arguments(tmp_path), **edits).train()
    assert generator_fingerprint(model) == before
    record = json.loads((tmp_path / "adapter_config.json").read_text())["provenance"]
    assert record["generator"]["sha256"] == before
    assert record["generator"]["class"] == "Sequential"
    assert record["generator"]["name"] is None
    assert record["data"] == {"class": "DemoFaces", "images": 12, "split": "train", "size": 16, "seed": 0}
    assert record["kind"] == "standard"
    assert record["steps"] == 3
    assert record["settings"]["adversary"]["class"] == "Disrupting"
    assert str(tmp_path) not in json.dumps(record)


def test_an_adapter_by_another_name_is_saved_in_the_same_place(
    editor: DemoEditor, faces: DemoFaces, tmp_path: Path
) -> None:
    model = get_peft_model(editor, GatedLoraConfig(r=2), adapter_name="first")
    model.add_adapter("second", GatedLoraConfig(r=2))
    model.set_adapter("second")
    first = {k: v.clone() for k, v in model.state_dict().items() if ".first." in k}
    PatchTrainer(model, faces, arguments(tmp_path)).train()
    assert (tmp_path / "adapter_model.safetensors").is_file()
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in first.items())


def test_same_seed_same_patch(faces: DemoFaces, tmp_path: Path) -> None:
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(0)
        model = get_peft_model(DemoEditor(conv_dim=4, num_blocks=1), GatedLoraConfig(r=2))
        PatchTrainer(model, faces, arguments(tmp_path / name, seed=seed)).train()
        weights.append((tmp_path / name / "adapter_model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


@pytest.mark.parametrize("form", ["tensor", "pair", "dict"])
def test_forms_of_data(form: str, faces: DemoFaces, tmp_path: Path) -> None:
    samples = [faces[i] for i in range(4)]
    if form == "tensor":
        network, items = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1)), [s["image"] for s in samples]
    else:
        network = DemoEditor(conv_dim=4, num_blocks=1)
        items = samples if form == "dict" else [(s["image"], s["labels"]) for s in samples]
    model = get_peft_model(network, GatedLoraConfig(r=2))
    assert len(PatchTrainer(model, Pictures(items), arguments(tmp_path)).train().log) == 3


def test_epochs_and_steps(faces: DemoFaces, tmp_path: Path, patched: PeftModel) -> None:
    settings = arguments(tmp_path, max_train_steps=None, num_train_epochs=2, adversary=RandomNoise(0.05))
    assert len(PatchTrainer(patched, faces, settings).train().log) == 2 * 3
    settings = arguments(tmp_path, max_train_steps=7, adversary=RandomNoise(0.05))
    assert len(PatchTrainer(patched, faces, settings).train().log) == 7


def test_the_conditions_of_a_network_of_ones_own(faces: DemoFaces, tmp_path: Path) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, images: Tensor, strength: Tensor) -> Tensor:
            return self.conv(images) * strength[:, None, None, None]

    seen = []

    def edits(labels: Tensor) -> dict:
        seen.append(labels.shape)
        return {"weak": {"strength": labels[:, 0]}, "strong": {"strength": labels[:, 0] + 1}}

    model = get_peft_model(Own(), GatedLoraConfig(r=2))
    PatchTrainer(model, faces, arguments(tmp_path), conditions=edits).train()
    assert seen[-1] == (4, 5)


@pytest.mark.parametrize("gate_type", GATES)
def test_every_gate_trains_and_loads_again(
    gate_type: str, editor: DemoEditor, faces: DemoFaces, tmp_path: Path
) -> None:
    bare = copy.deepcopy(editor)
    model = get_peft_model(editor, GatedLoraConfig(r=2, gate_type=gate_type))
    result = PatchTrainer(model, faces, arguments(tmp_path)).train()
    again = PeftModel.from_pretrained(bare, result.output_dir).eval()
    images, condition = faces[0]["image"][None], {"labels": faces[0]["labels"][None]}
    with torch.no_grad():
        assert torch.equal(model(images, **condition), again(images, **condition))
    assert all(0 < value <= 1 for values in result.gates.values() for value in values)


def test_gates_have_a_learning_rate_of_their_own(faces: DemoFaces, tmp_path: Path) -> None:
    """Adam's first step is as long as its learning rate, whatever the gradient."""
    torch.manual_seed(0)
    config = GatedLoraConfig(r=2, init_lora_weights="paper")
    model = get_peft_model(DemoEditor(conv_dim=4, num_blocks=1), config)
    before = {name: value.clone() for name, value in model.named_parameters()}
    settings = arguments(tmp_path, max_train_steps=1, learning_rate=1e-3, gate_learning_rate=0.1)
    PatchTrainer(model, faces, settings).train()
    moved = {name: (value - before[name]).abs().max().item() for name, value in model.named_parameters()}
    assert all(moved[name] == pytest.approx(0.1, rel=1e-2) for name in moved if "lora_gate" in name)
    assert all(moved[name] == pytest.approx(1e-3, rel=1e-2) for name in moved if "lora_A" in name)


def test_an_adversary_of_ones_own(patched: PeftModel, faces: DemoFaces, tmp_path: Path) -> None:
    class Shift:
        eps = 0.1

        def __call__(
            self, generator: nn.Module, images: Tensor, condition: dict, clean: Tensor | None = None
        ) -> Tensor:
            return (images + self.eps).clamp(-1, 1)

    result = PatchTrainer(patched, faces, arguments(tmp_path, adversary=Shift())).train()
    log = json.loads((result.output_dir / "training_log.json").read_text())
    assert log["settings"]["adversary"] == {"class": "Shift"}


@pytest.mark.parametrize("noise", [nn.Dropout(0.5), StochasticDepth(0.5, "row")], ids=["dropout", "depth"])
def test_dropout_of_the_base_network_is_no_noise_to_learn(noise: nn.Module, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), noise)
    model = get_peft_model(network, GatedLoraConfig(r=2, lora_dropout=0.1))
    items = [torch.rand(3, 16, 16) - 0.5 for _ in range(4)]
    result = PatchTrainer(model, Pictures(items), arguments(tmp_path, max_train_steps=1)).train()
    assert result.log[0]["loss_clean"] == 0


def test_adapters_on_different_layers(editor: DemoEditor, faces: DemoFaces, tmp_path: Path) -> None:
    model = get_peft_model(editor, GatedLoraConfig(r=2), adapter_name="all")
    model.add_adapter("one", GatedLoraConfig(r=2, target_modules=r"main\.0"))
    model.set_adapter("one")
    assert list(PatchTrainer(model, faces, arguments(tmp_path)).train().gates) == ["base_model.model.main.0"]


def test_the_seed_is_that_of_training(faces: DemoFaces, tmp_path: Path) -> None:
    weights = []
    for draws in (0, 7):
        torch.manual_seed(0)
        model = get_peft_model(DemoEditor(conv_dim=4, num_blocks=1), GatedLoraConfig(r=2))
        trainer = PatchTrainer(model, faces, arguments(tmp_path))
        torch.rand(draws)
        weights.append((trainer.train().output_dir / "adapter_model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_gradients_that_are_not_finite_stop_the_run(patched: PeftModel, faces: DemoFaces, tmp_path: Path) -> None:
    def distance(outputs: Tensor, target: Tensor) -> Tensor:
        return (outputs - outputs.detach()).square().sum().sqrt()  # 0, with an infinite slope

    weights = {k: v.clone() for k, v in patched.state_dict().items()}
    with pytest.raises(FloatingPointError, match=r"gradient's norm is (nan|inf)"):
        PatchTrainer(patched, faces, arguments(tmp_path), loss=distance).train()
    assert all(torch.equal(value, weights[key]) for key, value in patched.state_dict().items())


def test_mixed_precision_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    done = forked(train_in_bfloat16, tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "training_log.json").read_text())["settings"]["mixed_precision"] == "bf16"


def test_a_compiled_generator_trains_alike(faces: DemoFaces, tmp_path: Path, monkeypatch) -> None:
    """With accumulation; torch's own graphs stand in for compiled code, which takes a minute to build."""
    graphs, losses = [], []

    def counted(graph: torch.fx.GraphModule, _: list) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    compiles = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiles(module, backend=counted))
    for compiled in (False, True):
        torch.manual_seed(0)
        model = get_peft_model(DemoEditor(conv_dim=4, num_blocks=1), GatedLoraConfig(r=2))
        settings = arguments(tmp_path, max_train_steps=2, gradient_accumulation_steps=2, torch_compile=compiled)
        log = PatchTrainer(model, faces, settings).train().log
        losses.append([entry["loss_adversarial"] for entry in log])
        assert bool(graphs) == compiled
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)  # the step between them changes the second by 8e-3


def test_targets_features_are_kept_between_epochs(editor: DemoEditor, tmp_path: Path) -> None:
    """Each image with each edit is encoded once as a target, and training is the same as without the cache.

    In float64: with the cache, features are of a target as an earlier batch rounded it.
    """
    weights = []
    for cache in (None, FeatureCache()):
        torch.manual_seed(0)
        model = get_peft_model(copy.deepcopy(editor).double(), GatedLoraConfig(r=2))
        network = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
        loss = MMFALoss([FeatureEncoder(network, lambda images: images, name="thumbnail")], cache=cache)
        settings = arguments(tmp_path, max_train_steps=6, train_batch_size=2, edits_per_step=5)
        PatchTrainer(model, Faces(4, size=16), settings, loss=loss).train()
        weights.append(load_file(tmp_path / "adapter_model.safetensors"))
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=1e-5)
    assert (cache.misses, cache.hits) == (4 * 5, 2 * 4 * 5)
    log = json.loads((tmp_path / "training_log.json").read_text())
    assert log["settings"]["loss"]["encoders"][0]["name"] == "thumbnail"
