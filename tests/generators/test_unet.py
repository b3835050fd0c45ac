"""Pix2pix's U-Net against its description."""

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from loraguard.generators import CycleGAN, UNet

NORM = ("weight", "bias", "running_mean", "running_var")


def stem(level: int) -> str:
    """Of the names of a level's layers, 0 being the outermost."""
    return "model.model" if level == 0 else "model.model.1.model" + ".3.model" * (level - 1)


def official_shapes(
    downs: int, norm: str, d: int = 64, inputs: int = 3, outputs: int = 3
) -> dict[str, tuple[int, ...]]:
    """Every tensor of the official network."""
    widths = [d * min(2**level, 8) for level in range(downs)]  # inside of each level
    shapes: dict[str, tuple[int, ...]] = {}

    def convolution(name: str, shape: tuple[int, ...], bias: int) -> None:
        shapes[f"{name}.weight"] = shape
        if norm == "instance":
            shapes[f"{name}.bias"] = (bias,)

    def normed(name: str, channels: int) -> None:
        if norm == "batch":
            shapes.update({f"{name}.{tensor}": (channels,) for tensor in NORM})
            shapes[f"{name}.num_batches_tracked"] = ()

    convolution("model.model.0", (d, inputs, 4, 4), d)
    for level in range(1, downs):
        outer, inner, innermost = widths[level - 1], widths[level], level == downs - 1
        convolution(f"{stem(level)}.1", (inner, outer, 4, 4), inner)
        if not innermost:
            normed(f"{stem(level)}.2", inner)
        up = 3 if innermost else 5
        convolution(f"{stem(level)}.{up}", (inner if innermost else 2 * inner, outer, 4, 4), outer)
        normed(f"{stem(level)}.{up + 1}", outer)
    shapes["model.model.3.weight"], shapes["model.model.3.bias"] = (2 * d, outputs, 4, 4), (outputs,)
    return shapes


def by_hand(state: dict[str, Tensor], x: Tensor, downs: int) -> Tensor:
    """The forward pass as described, without a block within a block: all the way down, then all the way up."""

    def norm(x: Tensor, name: str) -> Tensor:
        if f"{name}.weight" not in state:
            mean = x.mean((2, 3), keepdim=True)
            return (x - mean) / (((x - mean) ** 2).mean((2, 3), keepdim=True) + 1e-5).sqrt()
        weight, bias, mean, variance = (state[f"{name}.{tensor}"][:, None, None] for tensor in NORM)
        return (x - mean) / (variance + 1e-5).sqrt() * weight + bias

    def layer(convolve, x: Tensor, name: str) -> Tensor:
        return convolve(x, state[f"{name}.weight"], state.get(f"{name}.bias"), stride=2, padding=1)

    maps = [layer(F.conv2d, x, "model.model.0")]
    for level in range(1, downs):
        x = layer(F.conv2d, F.leaky_relu(maps[-1], 0.2), f"{stem(level)}.1")
        maps.append(x if level == downs - 1 else norm(x, f"{stem(level)}.2"))
    x = maps.pop()
    for level in reversed(range(1, downs)):
        up = 3 if level == downs - 1 else 5
        x = norm(layer(F.conv_transpose2d, F.relu(x), f"{stem(level)}.{up}"), f"{stem(level)}.{up + 1}")
        x = torch.cat([maps.pop(), x], 1)
    return torch.tanh(layer(F.conv_transpose2d, F.relu(x), "model.model.3"))


@pytest.mark.parametrize(("downs", "parameters"), [(8, 54_413_955), (7, 41_828_995)])
def test_the_official_tensors(downs: int, parameters: int) -> None:
    """With the sizes that the official code prints: 54.414 and 41.829 million."""
    with torch.device("meta"):
        generator = UNet(downs)
    shapes = {name: tuple(tensor.shape) for name, tensor in generator.state_dict().items()}
    assert shapes == official_shapes(downs, "batch")
    assert sum(parameter.numel() for parameter in generator.parameters()) == parameters
    assert generator.size == 2**downs


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("use_dropout", [False, True])
@pytest.mark.parametrize(("inputs", "outputs"), [(3, 3), (1, 3), (6, 1)])
@pytest.mark.parametrize("downs", [5, 7])
def test_variants(scramble, tmp_path, norm: str, use_dropout: bool, inputs: int, outputs: int, downs: int) -> None:
    settings = {"norm": norm, "use_dropout": use_dropout, "input_nc": inputs, "output_nc": outputs}
    generator = scramble(UNet(downs, 2, **settings)).double().eval()
    state = generator.state_dict()
    assert {n: tuple(v.shape) for n, v in state.items()} == official_shapes(downs, norm, 2, inputs, outputs)
    images = torch.rand(2, inputs, 2**downs, 2 ** (downs + (norm == "batch"))).double() * 2 - 1
    if norm == "instance":  # on a single pixel there is nothing to normalise
        images = torch.rand(1, inputs, 2**downs, 2**downs).double() * 2 - 1
    with torch.no_grad():
        truth = by_hand(state, images, downs)
        torch.testing.assert_close(generator(images), truth, rtol=0, atol=1e-10)
    assert truth.shape == (len(images), outputs, *images.shape[2:])
    assert truth.std() > 0.05

    torch.save(state, tmp_path / "latest_net_G.pth")
    loaded = UNet.from_checkpoint(tmp_path / "latest_net_G.pth", use_dropout=use_dropout)
    assert loaded.config == generator.config
    with torch.no_grad():
        assert torch.equal(loaded.double()(images), generator(images))


def test_dropout_acts_in_train_mode_in_the_middle_levels() -> None:
    """As in the official code: of 8 levels three, those of eight times as many maps but the outer- and innermost."""
    generator = UNet(8, 1)
    places = {name for name, module in generator.named_modules() if isinstance(module, torch.nn.Dropout)}
    assert places == {f"{stem(level)}.7" for level in (4, 5, 6)}
    assert all(generator.get_submodule(place).p == 0.5 for place in places)
    images = torch.rand(2, 3, 256, 256)
    with torch.no_grad():
        assert not torch.equal(generator(images), generator(images))
        assert torch.equal(generator.eval()(images), generator(images))
    assert not any(isinstance(module, torch.nn.Dropout) for module in UNet(8, 1, use_dropout=False).modules())


def test_a_photo_becomes_a_square_of_the_network_s_size(photo, as_tensor) -> None:
    truth = as_tensor(photo.resize((32, 32), Image.Resampling.BICUBIC))
    torch.testing.assert_close(UNet(5, 1).transform()(photo).double(), truth, rtol=0, atol=1e-6)
    grey = UNet(5, 1, input_nc=1, size=64).transform()(photo)
    truth = as_tensor(photo.resize((64, 64), Image.Resampling.BICUBIC).convert("L").convert("RGB"))[:1]
    torch.testing.assert_close(grey.double(), truth, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="the network takes 6; give a data set"):
        UNet(5, 1, input_nc=6).transform()


def test_old_checkpoints_with_statistics_of_instance_norm(scramble, tmp_path) -> None:
    generator = scramble(UNet(5, 1, "instance"))
    relics = {f"{stem(level)}.{6 if level < 4 else 4}.running_mean": torch.zeros(1) for level in range(1, 5)}
    torch.save({**generator.state_dict(), **relics}, tmp_path / "old.pth")
    assert UNet.from_checkpoint(tmp_path / "old.pth").config == generator.config


def test_the_latent_is_the_innermost_convolution(scramble) -> None:
    generator = scramble(UNet(6, 1)).eval()
    assert generator.get_submodule(generator.latent_layer) is generator.get_submodule(f"{stem(5)}.1")


def test_other_networks_of_the_same_code_are_told(tmp_path) -> None:
    torch.save(CycleGAN(4, 1).state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match=r"resnet\.pth does not fit UNet\. It holds CycleGAN's ResNet"):
        UNet.from_checkpoint(tmp_path / "resnet.pth")
    torch.save(UNet(5, 1).state_dict(), tmp_path / "unet.pth")
    with pytest.raises(ValueError, match=r"unet\.pth does not fit CycleGAN\. It holds pix2pix's U-Net"):
        CycleGAN.from_checkpoint(tmp_path / "unet.pth")
    torch.save(
        {"model.0.weight": torch.zeros(8, 6, 4, 4), "model.0.bias": torch.zeros(8)}, tmp_path / "latest_net_D.pth"
    )
    with pytest.raises(ValueError, match="It holds pix2pix's discriminator; give the file of the generator"):
        UNet.from_checkpoint(tmp_path / "latest_net_D.pth")


@pytest.mark.parametrize("settings", [{"norm": "group"}, {"num_downs": 4}, {"size": 48}])
def test_bad_settings(settings) -> None:
    (name,) = settings
    with pytest.raises(ValueError, match=f"{name}={settings[name]!r} must be"):
        UNet(**{"num_downs": 5, **settings})
