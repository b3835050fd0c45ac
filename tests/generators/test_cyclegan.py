"""The ResNet generator of CycleGAN and pix2pix against its description."""

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from loraguard.generators import CycleGAN

NORM = ("weight", "bias", "running_mean", "running_var")
MODES = {"reflect": "reflect", "replicate": "replicate", "zero": "constant"}
PLACES = {("reflect", False): (1, 5), ("reflect", True): (1, 6), ("zero", False): (0, 3), ("zero", True): (0, 4)}
"""Where the convolutions of a residual block are."""


def official_shapes(blocks: int, norm: str, places: tuple[int, int], d: int = 64) -> dict[str, tuple[int, ...]]:
    """Every tensor of the official network."""
    up = 10 + blocks
    convolutions = {
        "model.1": (d, 3, 7, 7), "model.4": (2 * d, d, 3, 3), "model.7": (4 * d, 2 * d, 3, 3),
        **{f"model.{i}.conv_block.{j}": (4 * d, 4 * d, 3, 3) for i in range(10, up) for j in places},
        f"model.{up}": (4 * d, 2 * d, 3, 3), f"model.{up + 3}": (2 * d, d, 3, 3),
    }  # fmt: skip
    shapes = {f"{name}.weight": shape for name, shape in convolutions.items()}
    for name, shape in convolutions.items():
        outputs = shape[1] if name in (f"model.{up}", f"model.{up + 3}") else shape[0]
        if norm == "instance":
            shapes[f"{name}.bias"] = (outputs,)
            continue
        stem, _, index = name.rpartition(".")
        shapes |= {f"{stem}.{int(index) + 1}.{tensor}": (outputs,) for tensor in NORM}
        shapes[f"{stem}.{int(index) + 1}.num_batches_tracked"] = ()
    return {**shapes, f"model.{up + 7}.weight": (3, d, 7, 7), f"model.{up + 7}.bias": (3,)}


def by_hand(state: dict[str, Tensor], x: Tensor, blocks: int, places: tuple[int, int], mode: str) -> Tensor:
    """The forward pass as described."""

    def norm(x: Tensor, stem: str, index: int) -> Tensor:
        name = f"{stem}.{index + 1}"
        if f"{name}.weight" not in state:
            mean = x.mean((2, 3), keepdim=True)
            return (x - mean) / (((x - mean) ** 2).mean((2, 3), keepdim=True) + 1e-5).sqrt()
        weight, bias, mean, variance = (state[f"{name}.{tensor}"][:, None, None] for tensor in NORM)
        return (x - mean) / (variance + 1e-5).sqrt() * weight + bias

    def layer(convolve, x: Tensor, stem: str, index: int, **settings: int) -> Tensor:
        name = f"{stem}.{index}"
        return norm(convolve(x, state[f"{name}.weight"], state.get(f"{name}.bias"), **settings), stem, index)

    x = F.relu(layer(F.conv2d, F.pad(x, (3, 3, 3, 3), "reflect"), "model", 1))
    for i in (4, 7):
        x = F.relu(layer(F.conv2d, x, "model", i, stride=2, padding=1))
    for i in range(10, 10 + blocks):
        y = F.relu(layer(F.conv2d, F.pad(x, (1, 1, 1, 1), mode), f"model.{i}.conv_block", places[0]))
        x = x + layer(F.conv2d, F.pad(y, (1, 1, 1, 1), mode), f"model.{i}.conv_block", places[1])
    for i in (10 + blocks, 13 + blocks):
        x = F.relu(layer(F.conv_transpose2d, x, "model", i, stride=2, padding=1, output_padding=1))
    last = f"model.{17 + blocks}"
    return torch.tanh(F.conv2d(F.pad(x, (3, 3, 3, 3), "reflect"), state[f"{last}.weight"], state[f"{last}.bias"]))


@pytest.mark.parametrize(("blocks", "parameters"), [(9, 11_378_179), (6, 7_837_699)])
def test_the_official_tensors(blocks: int, parameters: int) -> None:
    with torch.device("meta"):
        generator = CycleGAN(n_blocks=blocks)
    shapes = {name: tuple(tensor.shape) for name, tensor in generator.state_dict().items()}
    assert shapes == official_shapes(blocks, "instance", (1, 5))
    assert sum(parameter.numel() for parameter in generator.parameters()) == parameters


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("padding_type", ["reflect", "replicate", "zero"])
@pytest.mark.parametrize("use_dropout", [False, True])
def test_variants(scramble, tmp_path, norm: str, padding_type: str, use_dropout: bool) -> None:
    settings = {"norm": norm, "use_dropout": use_dropout, "padding_type": padding_type}
    generator = scramble(CycleGAN(4, 2, **settings)).double().eval()
    places = PLACES["zero" if padding_type == "zero" else "reflect", use_dropout]
    state = generator.state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == official_shapes(2, norm, places, 4)
    images = torch.rand(2, 3, 16, 24).double() * 2 - 1
    with torch.no_grad():
        truth = by_hand(state, images, 2, places, MODES[padding_type])
        torch.testing.assert_close(generator(images), truth, rtol=0, atol=1e-10)
    assert truth.std() > 0.1

    torch.save(state, tmp_path / "latest_net_G.pth")
    given = {"padding_type": padding_type} if padding_type == "replicate" else {}  # no tensor shows it
    assert CycleGAN.from_checkpoint(tmp_path / "latest_net_G.pth", **given).config == generator.config


def test_the_full_network(scramble) -> None:
    generator = scramble(CycleGAN()).double().eval()
    images = torch.rand(1, 3, 16, 16).double() * 2 - 1
    with torch.no_grad():
        truth = by_hand(generator.state_dict(), images, 9, (1, 5), "reflect")
        torch.testing.assert_close(generator(images), truth, rtol=0, atol=1e-10)


def test_dropout_acts_in_train_mode() -> None:
    generator, images = CycleGAN(4, 2, use_dropout=True), torch.rand(1, 3, 16, 16)
    assert not torch.equal(generator(images), generator(images))
    assert torch.equal(generator.eval()(images), generator(images))


def test_relics_of_old_checkpoints_are_dropped(scramble, tmp_path) -> None:
    """Instance norms of torch < 0.4 had running statistics, those of 0.4 a counter as well."""
    generator = scramble(CycleGAN(4, 1))
    state = generator.state_dict()
    for name in ("model.2", "model.5", "model.8", "model.10.conv_block.2", "model.10.conv_block.6"):
        relics = {"running_mean": torch.randn(8), "running_var": torch.rand(8), "num_batches_tracked": torch.tensor(3)}
        state |= {f"{name}.{tensor}": value for tensor, value in relics.items()}
    torch.save(state, tmp_path / "old.pth")
    loaded = CycleGAN.from_checkpoint(tmp_path / "old.pth")
    images = torch.rand(1, 3, 16, 16)
    assert torch.equal(loaded(images), generator(images))
    assert loaded.config == generator.config

    batch = CycleGAN(4, 1, "batch").state_dict()
    del batch["model.5.running_mean"]
    torch.save(batch, tmp_path / "broken.pth")
    with pytest.raises(ValueError, match=r"Missing: model\.5\.running_mean"):
        CycleGAN.from_checkpoint(tmp_path / "broken.pth")


def test_preprocessing(photo, as_tensor) -> None:
    truth = as_tensor(photo.resize((64, 64), Image.Resampling.BICUBIC))
    torch.testing.assert_close(CycleGAN(4, 1, size=64).transform()(photo).double(), truth, rtol=0, atol=1e-6)


def test_unconditional() -> None:
    assert not hasattr(CycleGAN(4, 1), "conditions")
    assert CycleGAN.attributes == ()


@pytest.mark.parametrize("settings", [{"norm": "group"}, {"padding_type": "circular"}, {"size": 255}])
def test_bad_settings(settings) -> None:
    (name,) = settings
    with pytest.raises(ValueError, match=f"{name}={settings[name]!r} must be"):
        CycleGAN(4, 1, **settings)
