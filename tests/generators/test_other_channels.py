"""Networks that take or give other images than RGB: greyscale, and photos with a mask or with further layers."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from loraguard import GatedLoraConfig, PatchTrainer, PatchTrainingArguments, Stamp, run_audit
from loraguard.audit import write_report
from loraguard.data import collate
from loraguard.defenses import Disrupting
from loraguard.generators import CycleGAN, UNet

CHANNELS = [(1, 1), (1, 3), (3, 1), (6, 3), (6, 6), (4, 2)]


class Mapped(nn.Sequential):
    """A network of one's own: two convolutions at 32 pixels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.Conv2d(inputs, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, outputs, 3, padding=1), nn.Tanh())


def images(channels: int, n: int = 4) -> list[Tensor]:
    return [torch.rand(channels, 32, 32) * 2 - 1 for _ in range(n)]


@pytest.mark.parametrize(("inputs", "outputs"), CHANNELS)
def test_a_patch_is_trained_validated_and_audited(inputs: int, outputs: int, tmp_path: Path) -> None:
    model = get_peft_model(Mapped(inputs, outputs), GatedLoraConfig(r=2))
    data, defense = images(inputs), Disrupting(0.1, steps=1)
    arguments = PatchTrainingArguments(
        tmp_path / "patch", adversary=defense, max_train_steps=1, train_batch_size=2, validation_steps=1, cpu=True,
        disable_tqdm=True,
    )  # fmt: skip
    result = PatchTrainer(model, data, arguments, validation_dataset=data).train()
    assert "clean_mse" in result.validation[0]
    assert isinstance(PeftModel.from_pretrained(Mapped(inputs, outputs), result.output_dir), PeftModel)
    audit = run_audit(model, data, defenses=defense, patches={"default": None}, channels=["resize"], disable_tqdm=True)
    assert audit["untouched", "no-leak"].estimates["mse"].n == 4
    assert write_report(audit, tmp_path / "report").is_file()


@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (6, 1), (6, 3)])
def test_a_stamp_goes_onto_grey_and_colour(inputs: int, outputs: int, tmp_path: Path) -> None:
    model, data = get_peft_model(Mapped(inputs, outputs), GatedLoraConfig(r=2)), images(inputs)
    stamp = Stamp("AI", size=0.5)
    arguments = PatchTrainingArguments(
        tmp_path, stamp=stamp, adversary=Disrupting(0.1, steps=1), max_train_steps=1, train_batch_size=2, cpu=True,
        disable_tqdm=True,
    )  # fmt: skip
    PatchTrainer(model, data, arguments).train()
    with torch.no_grad(), model.disable_adapter():
        plain = model(collate(data)["image"])
    stamped = stamp.compose(plain)
    assert stamped.shape == plain.shape
    assert (stamped != plain).any()
    if outputs == 1:
        in_colour = stamp.compose(plain.expand(-1, 3, -1, -1))
        luma = (in_colour * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
        torch.testing.assert_close(stamped, luma, rtol=0, atol=1e-5)


def test_a_stamp_on_other_images_is_refused_before_training(tmp_path: Path) -> None:
    model = get_peft_model(Mapped(6, 6), GatedLoraConfig(r=2))
    arguments = PatchTrainingArguments(tmp_path, stamp=Stamp("AI"), max_train_steps=1, cpu=True, disable_tqdm=True)
    with pytest.raises(ValueError, match=r"onto images of shape \(N, 3, H, W\), or \(N, 1, H, W\) in grey"):
        PatchTrainer(model, images(6), arguments)


@pytest.mark.parametrize(("inputs", "outputs"), [(1, 3), (6, 1)])
def test_published_networks_of_other_channels(scramble, tmp_path: Path, inputs: int, outputs: int) -> None:
    for generator in (
        UNet(5, 2, input_nc=inputs, output_nc=outputs),
        CycleGAN(2, 1, input_nc=inputs, output_nc=outputs),
        CycleGAN(2, 1, "batch", input_nc=inputs, output_nc=outputs, padding_type="zero"),
    ):
        scramble(generator).eval()
        torch.save(generator.state_dict(), tmp_path / "net.pth")
        loaded = type(generator).from_checkpoint(tmp_path / "net.pth")
        assert loaded.config == generator.config
        given = torch.rand(2, inputs, 32, 32)
        with torch.no_grad():
            assert torch.equal(loaded(given), generator(given))
            assert loaded(given).shape == (2, outputs, 32, 32)


def test_images_of_a_batch_have_one_shape() -> None:
    assert collate(images(6, 2))["image"].shape == (2, 6, 32, 32)
    with pytest.raises(ValueError, match=r"must all have one shape \(C, H, W\), got \[\(1, 32, 32\), \(3, 32, 32\)\]"):
        collate([*images(1, 1), *images(3, 1)])
