"""What a training refuses, or warns of, before it starts or before it writes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed import DeepSpeedEngine
from peft import PeftModel, get_peft_model
from processes import forked
from sharded import shard_and_say
from small import Pictures, arguments
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from loraguard import GatedLoraConfig, PatchTrainer, PatchTrainingArguments, Stamp
from loraguard.data import DemoFaces
from loraguard.defenses import CMUA, ClassTransferable, Defense, Disrupting, Mixture
from loraguard.fingerprint import generator_fingerprint
from loraguard.generators import DemoEditor
from loraguard.training.untouched import wrapper_of


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (
            {"image": torch.zeros(1, 16, 16), "labels": torch.zeros(5)},
            r"take images \(5, 1, 16, 16\): .* as many channels",
        ),
        ({"image": torch.zeros(3, 16), "labels": torch.zeros(5)}, r"\(C, H, W\)"),
        ({"image": torch.full((3, 16, 16), 200.0), "labels": torch.zeros(5)}, "127.5"),
        ({"image": torch.full((3, 16, 16), float("nan")), "labels": torch.zeros(5)}, "nan"),
        ({"image": torch.zeros(3, 16, 16, dtype=torch.uint8), "labels": torch.zeros(5)}, "uint8"),
        ({"image": torch.zeros(3, 16, 16)}, "labels"),
    ],
)
def test_bad_data_is_refused_before_training(item: dict, words: str, patched: PeftModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        PatchTrainer(patched, Pictures([item] * 4), arguments(tmp_path))


@pytest.mark.parametrize("item", ["a.png", {"picture": 1}, (1, 2, 3)])
def test_items_that_are_no_images(item: object, patched: PeftModel, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="must be an image tensor"):
        PatchTrainer(patched, Pictures([item] * 4), arguments(tmp_path))


@pytest.mark.parametrize("adversary", [CMUA(), Mixture((Disrupting(), ClassTransferable()))])
def test_an_adversary_that_is_not_fitted_is_refused_before_training(
    adversary: Defense, patched: PeftModel, faces: DemoFaces, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"has to be fitted before training starts.*fit\(generator, photos\)"):
        PatchTrainer(patched, faces, PatchTrainingArguments(tmp_path, adversary=adversary, cpu=True))


def test_bad_data_in_the_middle_leaves_what_was_there(patched: PeftModel, faces: DemoFaces, tmp_path: Path) -> None:
    PatchTrainer(patched, faces, arguments(tmp_path)).train()
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    items = [faces[0]] * 3 + [{**faces[1], "image": faces[1]["image"] * 300}]
    with pytest.raises(ValueError, match="in \\[-1, 1\\]"):
        PatchTrainer(patched, Pictures(items), arguments(tmp_path)).train()
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_nan_losses_stop_the_run_before_the_step(patched: PeftModel, faces: DemoFaces, tmp_path: Path) -> None:
    PatchTrainer(patched, faces, arguments(tmp_path)).train()
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    weights = {k: v.clone() for k, v in patched.state_dict().items()}
    trainer = PatchTrainer(patched, faces, arguments(tmp_path), loss=lambda a, b: F.mse_loss(a, b) * float("nan"))
    with pytest.raises(FloatingPointError, match="loss_clean is nan"):
        trainer.train()
    assert all(torch.equal(value, weights[key]) for key, value in patched.state_dict().items())
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_generator_in_half_precision_says_what_to_do(faces: DemoFaces, tmp_path: Path) -> None:
    model = get_peft_model(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1)).half(), GatedLoraConfig(r=2))
    with pytest.raises(ValueError, match=r"weights in torch.float16.*generator.float\(\).*mixed_precision"):
        PatchTrainer(model, faces, arguments(tmp_path))


def test_a_generator_whose_outputs_are_in_another_range(faces: DemoFaces, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Sigmoid())
    with pytest.warns(UserWarning, match="outputs .* none below 0.* 2 \\* y - 1"):
        PatchTrainer(get_peft_model(network, GatedLoraConfig(r=2)), faces, arguments(tmp_path))


def test_a_generator_that_gives_nan(patched: PeftModel, faces: DemoFaces, tmp_path: Path) -> None:
    with torch.no_grad():
        patched.get_base_model().main[0].base_layer.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="untouched generator"):
        PatchTrainer(patched, faces, arguments(tmp_path))


def test_a_generator_that_gives_no_images(tmp_path: Path) -> None:
    model = get_peft_model(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten()), GatedLoraConfig(r=2))
    with pytest.raises(ValueError, match=r"\(1, 3, 16, 16\) into \(1, 1024\); .*\(1, C, H', W'\)"):
        PatchTrainer(model, Pictures([torch.zeros(3, 16, 16)] * 4), arguments(tmp_path))


def test_a_model_without_an_adapter(editor: DemoEditor, faces: DemoFaces, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="get_peft_model"):
        PatchTrainer(editor, faces, arguments(tmp_path))


def test_an_output_folder_that_is_a_file(patched: PeftModel, faces: DemoFaces, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here first")
    with pytest.raises(OSError, match="Cannot write to the output folder"):
        PatchTrainer(patched, faces, arguments(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "here first"


def test_an_output_folder_that_cannot_be_written(patched: PeftModel, faces: DemoFaces) -> None:
    with pytest.raises(OSError, match="Cannot write to the output folder"):
        PatchTrainer(patched, faces, arguments(Path("/proc/loraguard")))


@pytest.mark.parametrize(
    "changes", [{"learning_rate": 0}, {"train_batch_size": -1}, {"max_train_steps": 0}, {"mixed_precision": "fp8"}]
)
def test_bad_settings(changes: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        arguments(tmp_path, **changes)


def test_a_text_is_no_stamp(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"Stamp\('AI'\)"):
        arguments(tmp_path, stamp="AI")


def test_a_text_is_no_adversary(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"adversary must be a defense.*'disrupting'.*parse_defense"):
        arguments(tmp_path, adversary="disrupting")


def test_a_stamp_that_does_not_fit_is_refused_before_training(
    patched: PeftModel, faces: DemoFaces, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="larger than the 16x16 image"):
        PatchTrainer(patched, faces, arguments(tmp_path, stamp=Stamp("A\nB\nC\nD", size=1.0)))


def test_images_in_0_1_are_warned_about(patched: PeftModel, faces: DemoFaces, tmp_path: Path) -> None:
    items = [{**faces[i], "image": faces[i]["image"] / 2 + 0.5} for i in range(4)]
    with pytest.warns(UserWarning, match="2 \\* x - 1"):
        PatchTrainer(patched, Pictures(items), arguments(tmp_path))


def test_conditions_that_do_not_fit(patched: PeftModel, faces: DemoFaces, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"cannot be called with images and \['style'\]"):
        PatchTrainer(patched, faces, arguments(tmp_path), conditions=lambda labels: {"a": {"style": labels}})
    for nothing in ({}, {"a": 1}):
        with pytest.raises(ValueError, match="edits by name"):
            PatchTrainer(patched, faces, arguments(tmp_path), conditions=lambda labels, given=nothing: given)


# What lies beneath the adapter.


def convolutions() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 3, 1))


def within(wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """A network one of whose parts is wrapped."""
    return nn.Sequential(wrap(convolutions()), nn.Conv2d(3, 3, 1))


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "OptimizedModule": torch.compile,
    "PeftModel": lambda network: get_peft_model(network, GatedLoraConfig(r=1), adapter_name="inner"),
    "AveragedModel": AveragedModel,
    "CheckpointWrapper": checkpoint_wrapper,
}


@pytest.mark.filterwarnings("ignore:You are trying to modify a model with PEFT for a second time")
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_beneath_the_adapter_are_refused_by_name(name: str, inside: bool, tmp_path: Path) -> None:
    """A patch would have their prefixes in its names, and fit no plain network."""
    network = within(WRAPPERS[name]) if inside else WRAPPERS[name](convolutions())
    model = get_peft_model(network, GatedLoraConfig(r=1, target_modules="1" if inside else None))
    with pytest.raises(ValueError, match=rf"{name}.*plain network") as refused:
        PatchTrainer(model, Pictures([torch.zeros(3, 16, 16) - 0.5] * 4), arguments(tmp_path))
    assert len(str(refused.value)) <= 600


def test_wrappers_of_packages_are_known_by_their_classes() -> None:
    """DeepSpeed's without the process group that it would make; a network that has only the name is none."""
    engine = DeepSpeedEngine.__new__(DeepSpeedEngine)
    nn.Module.__init__(engine)
    assert wrapper_of(engine) == "DeepSpeedEngine"
    for name in ("DeepSpeedEngine", "FullyShardedDataParallel", "FSDPModule", "DataParallel"):
        assert wrapper_of(type(name, (nn.Sequential,), {})(nn.Linear(1, 1))) is None
    own = nn.Sequential()
    own.add_module("_orig_mod", nn.Linear(1, 1))
    assert wrapper_of(own) is None


def test_sharded_networks_are_known(tmp_path: Path) -> None:
    """FSDP's both forms, in a group of one process."""
    done = forked(shard_and_say, tmp_path / "meeting")
    assert done.stdout.split() == ["FullyShardedDataParallel", "FSDPSequential"], done.stderr


@pytest.mark.parametrize("name", ["DataParallel", "OptimizedModule"])
def test_a_wrapper_around_the_model_is_named(name: str, patched: PeftModel, faces: DemoFaces, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=rf"{name} wraps the model.*give the model itself"):
        PatchTrainer(WRAPPERS[name](patched), faces, arguments(tmp_path))


def elsewhere() -> nn.Module:
    with torch.device("meta"):
        return convolutions()


def inferring() -> nn.Module:
    with torch.inference_mode():
        return convolutions()


@pytest.mark.parametrize(
    ("make", "words"),
    [(elsewhere, r"not in memory \(its device is 'meta'\)"), (inferring, "within torch.inference_mode")],
)
def test_weights_that_cannot_be_computed_with_are_named(
    make: Callable[[], nn.Module], words: str, tmp_path: Path
) -> None:
    model = get_peft_model(make(), GatedLoraConfig(r=1))
    with pytest.raises(ValueError, match=rf"0\.base_layer\.weight.*{words}"):
        PatchTrainer(model, Pictures([torch.zeros(3, 16, 16) - 0.5] * 4), arguments(tmp_path))


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (DataLoader([1]), r"A DataLoader is no data set .* give its \.dataset"),
        (iter([1]), "make a list of it"),
        ({"train": [1], "test": [1]}, "A dict is no .* give one of 'train', 'test'"),
    ],
)
def test_what_is_no_data_set(dataset: Any, words: str, patched: PeftModel, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=words):
        PatchTrainer(patched, dataset, arguments(tmp_path))


def test_a_learning_rate_that_would_never_be_reached(patched: PeftModel, faces: DemoFaces, tmp_path: Path) -> None:
    steps = {"max_train_steps": 3, "lr_scheduler": "cosine"}
    with pytest.raises(ValueError, match="lr_warmup_steps=3 of 3 steps: the learning rate would never reach"):
        PatchTrainer(patched, faces, arguments(tmp_path, lr_warmup_steps=3, **steps))
    PatchTrainer(patched, faces, arguments(tmp_path, lr_warmup_steps=2, **steps))


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_of_the_base_network_are_not_trained(bias: str, tmp_path: Path) -> None:
    """Without the adapter they would stay as they were trained: no target would be the untouched network's."""
    model = get_peft_model(convolutions(), GatedLoraConfig(r=1, bias=bias))
    with pytest.raises(ValueError, match=rf"0\.base_layer\.bias.*disable_adapter.*bias='{bias}'"):
        PatchTrainer(model, Pictures([torch.zeros(3, 16, 16) - 0.5] * 4), arguments(tmp_path))


def test_weights_that_somebody_thawed_are_not_trained(tmp_path: Path) -> None:
    model = get_peft_model(convolutions(), GatedLoraConfig(r=1, target_modules=["0"]))
    model.get_base_model()[2].weight.requires_grad_(True)
    with pytest.raises(ValueError, match=r"2\.weight.*requires_grad_\(False\)"):
        PatchTrainer(model, Pictures([torch.zeros(3, 16, 16) - 0.5] * 4), arguments(tmp_path))


def test_modules_that_are_saved_with_the_adapter_are_trained(tmp_path: Path) -> None:
    """Copies, that `disable_adapter` leaves aside."""
    network = convolutions()
    images = torch.rand(4, 3, 16, 16) - 0.5
    before = network(images)
    model = get_peft_model(network, GatedLoraConfig(r=1, target_modules=["0"], modules_to_save=["2"]))
    PatchTrainer(model, Pictures(list(images)), arguments(tmp_path, max_train_steps=2)).train()
    with torch.no_grad(), model.disable_adapter():
        assert torch.equal(model(images), before)
        wrapped: Any = model.get_base_model()[2]
        assert not torch.equal(wrapped.modules_to_save["default"].weight, wrapped.original_module.weight)


class Counting(nn.Module):
    """Moves one of its buffers whenever it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return self.conv(images)


def test_buffers_that_move_are_refused_and_put_back(tmp_path: Path) -> None:
    network = Counting()
    model = get_peft_model(network, GatedLoraConfig(r=1))
    modes = [module.training for module in model.modules()]
    with pytest.raises(ValueError, match=r"'calls'.*disable_adapter"):
        PatchTrainer(model, Pictures([torch.zeros(3, 16, 16) - 0.5] * 4), arguments(tmp_path))
    assert network.calls == 0
    assert [module.training for module in model.modules()] == modes


def test_statistics_that_would_move_are_refused(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3))
    model = get_peft_model(network, GatedLoraConfig(r=1, freeze_norm_stats=False))
    with pytest.raises(ValueError, match=r"1\.running_mean.*freeze_norm_stats"):
        PatchTrainer(model, Pictures([torch.rand(3, 16, 16) - 0.5] * 4), arguments(tmp_path))


def test_spectral_norms_stay_where_they_are(tmp_path: Path) -> None:
    """In train mode each call would take a step of power iteration."""
    network = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), spectral_norm(nn.Conv2d(3, 3, 1)))
    before = generator_fingerprint(network)
    model = get_peft_model(network, GatedLoraConfig(r=1, target_modules="0"))
    PatchTrainer(model, Pictures([torch.rand(3, 16, 16) - 0.5] * 4), arguments(tmp_path)).train()
    assert generator_fingerprint(model) == before
