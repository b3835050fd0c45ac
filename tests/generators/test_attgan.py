"""AttGAN against its description."""

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from loraguard.generators import AttGAN

NORM = ("weight", "bias", "running_mean", "running_var")
FIVE = ("Bald", "Bangs", "Receding_Hairline", "Straight_Hair", "Wavy_Hair")


def official_shapes(inputs: list[int]) -> dict[str, tuple[int, ...]]:
    """Every tensor of a published network, from the channels that go into each layer of its decoder."""
    encoder = [3, 64, 128, 256, 512, 1024]
    outputs = [1024, 512, 256, 128, 3]
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(5):
        shapes[f"enc_layers.{i}.layers.0.weight"] = (encoder[i + 1], encoder[i], 4, 4)
        shapes[f"dec_layers.{i}.layers.0.weight"] = (inputs[i], outputs[i], 4, 4)
        for tensor in NORM:
            shapes[f"enc_layers.{i}.layers.1.{tensor}"] = (encoder[i + 1],)
            shapes[f"dec_layers.{i}.layers.1.{tensor}"] = (outputs[i],)
        shapes[f"enc_layers.{i}.layers.1.num_batches_tracked"] = ()
        shapes[f"dec_layers.{i}.layers.1.num_batches_tracked"] = ()
    shapes = {name: shape for name, shape in shapes.items() if not name.startswith("dec_layers.4.layers.1")}
    return {**shapes, "dec_layers.4.layers.0.bias": (3,)}


def by_hand(state: dict[str, Tensor], images: Tensor, labels: Tensor, shortcuts: int, injections: int) -> Tensor:
    """The forward pass as described, with the norms' running statistics."""

    def norm(x: Tensor, name: str) -> Tensor:
        weight, bias, mean, variance = (state[f"{name}.layers.1.{tensor}"][:, None, None] for tensor in NORM)
        return (x - mean) / (variance + 1e-5).sqrt() * weight + bias

    def tiled(x: Tensor) -> Tensor:
        return labels[:, :, None, None].repeat(1, 1, *x.shape[2:])

    layers = sum(name.startswith("enc_layers") and name.endswith("layers.0.weight") for name in state)
    z, zs = images, []
    for i in range(layers):
        z = F.conv2d(z, state[f"enc_layers.{i}.layers.0.weight"], stride=2, padding=1)
        z = F.leaky_relu(norm(z, f"enc_layers.{i}"), 0.01)
        zs.append(z)
    z = torch.cat([z, tiled(z)], 1)
    for i in range(layers - 1):
        z = F.conv_transpose2d(z, state[f"dec_layers.{i}.layers.0.weight"], stride=2, padding=1)
        z = F.relu(norm(z, f"dec_layers.{i}"))
        if i < shortcuts:
            z = torch.cat([z, zs[layers - 2 - i]], 1)
        if i < injections:
            z = torch.cat([z, tiled(z)], 1)
    last = f"dec_layers.{layers - 1}.layers.0"
    return torch.tanh(F.conv_transpose2d(z, state[f"{last}.weight"], state[f"{last}.bias"], stride=2, padding=1))


@pytest.mark.parametrize(
    ("settings", "inputs", "parameters"),
    [
        ({}, [1037, 1536, 512, 256, 128], 43_352_707),
        ({"size": 128, "inject_layers": 1}, [1037, 1549, 512, 256, 128], 43_352_707 + 13 * 512 * 16),
    ],
    ids=["256_shortcut1_inject0_none", "128_shortcut1_inject1_none"],
)
def test_the_official_tensors(settings, inputs: list[int], parameters: int) -> None:
    with torch.device("meta"):
        generator = AttGAN(**settings)
    shapes = {name: tuple(tensor.shape) for name, tensor in generator.state_dict().items()}
    assert shapes == official_shapes(inputs)
    assert len(shapes) == 56
    assert sum(parameter.numel() for parameter in generator.parameters()) == parameters
    assert AttGAN.settings_from(generator.state_dict()) == {
        "dim": 64,
        "layers": 5,
        "shortcut_layers": 1,
        "inject_layers": settings.get("inject_layers", 0),
        "n_attrs": 13,
    }


@pytest.mark.parametrize(
    ("dim", "layers", "shortcuts", "injections"),
    [(64, 5, 1, 0), (4, 3, 0, 0), (4, 3, 1, 1), (4, 3, 0, 2), (4, 4, 3, 2), (4, 4, 2, 3), (3, 2, 1, 0)],
)
def test_outputs_are_the_official_ones(scramble, tmp_path, dim, layers, shortcuts, injections) -> None:
    generator = scramble(AttGAN(dim, layers, shortcuts, injections)).double().eval()
    images, labels = torch.rand(2, 3, 64, 32).double() * 2 - 1, torch.rand(2, 13).double() * 2 - 1
    with torch.no_grad():
        truth = by_hand(generator.state_dict(), images, labels, shortcuts, injections)
        torch.testing.assert_close(generator(images, labels), truth, rtol=0, atol=1e-10)
    assert truth.std() > 0.1
    if dim < 64:
        torch.save({"G": generator.state_dict()}, tmp_path / "weights.pth")
        assert AttGAN.from_checkpoint(tmp_path / "weights.pth").config == generator.config


def test_channels_double_up_to_1024() -> None:
    with torch.device("meta"):
        shapes = [tuple(layer.layers[0].weight.shape[:2]) for layer in AttGAN(256, 4, size=16).dec_layers]
    assert shapes == [(1024 + 13, 1024), (1024 + 1024, 1024), (1024, 512), (512, 3)]


def edited(labels: dict[str, int], attribute: str) -> dict[str, float]:
    """What the decoder gets for an edit, by name."""
    names = AttGAN.attributes
    row = torch.tensor([[labels.get(name, 0) for name in names]])
    (intensities,) = AttGAN(4, 2).conditions(row)[attribute]["labels"].tolist()
    return dict(zip(names, intensities, strict=True))


@pytest.mark.parametrize(
    ("labels", "attribute", "on"),
    [
        ({"Bangs": 1, "Young": 1}, "Bald", {"Young"}),
        ({"Bald": 1, "Male": 1}, "Bangs", {"Male"}),
        ({"Black_Hair": 1, "Brown_Hair": 1}, "Blond_Hair", set()),
        ({"Black_Hair": 1, "Blond_Hair": 1}, "Brown_Hair", set()),
        ({"Blond_Hair": 1}, "Black_Hair", set()),
        ({"No_Beard": 1}, "Mustache", set()),
        ({"Mustache": 1}, "No_Beard", set()),
        ({"Bangs": 1, "Black_Hair": 1, "No_Beard": 1}, "Eyeglasses", {"Bangs", "Black_Hair", "No_Beard"}),
    ],
)
def test_switching_on(labels, attribute: str, on: set[str]) -> None:
    intensities = edited(labels, attribute)
    assert intensities.pop(attribute) == 1
    assert intensities == {name: 0.5 if name in on else -0.5 for name in intensities}


@pytest.mark.parametrize(
    ("labels", "attribute"),
    [({"Bald": 1, "Bangs": 1}, "Bald"), ({"Black_Hair": 1, "Brown_Hair": 1}, "Black_Hair"), ({"Young": 1}, "Young")],
)
def test_switching_off_leaves_the_others(labels, attribute: str) -> None:
    intensities = edited(labels, attribute)
    assert intensities.pop(attribute) == -1
    assert intensities == {name: 0.5 if labels.get(name) else -0.5 for name in intensities}


def test_edits_of_other_attributes() -> None:
    """Two attributes that exclude a third do not exclude each other."""
    generator = AttGAN(4, 2, n_attrs=5, attributes=FIVE)
    edits = generator.conditions(torch.tensor([[0, 1, 1, 0, 1]]))
    assert {name: edit["labels"].tolist() for name, edit in edits.items()} == {
        "Bald": [[1, -0.5, 0.5, -0.5, 0.5]],
        "Bangs": [[-0.5, -1, 0.5, -0.5, 0.5]],
        "Receding_Hairline": [[-0.5, 0.5, -1, -0.5, 0.5]],
        "Straight_Hair": [[-0.5, 0.5, 0.5, 1, -0.5]],
        "Wavy_Hair": [[-0.5, 0.5, 0.5, -0.5, -1]],
    }
    # A face may have Bangs and a Receding_Hairline by its labels; switching either on removes the other.
    bangs = generator.conditions(torch.tensor([[1, 0, 1, 0, 0]]))["Bangs"]["labels"]
    assert bangs.tolist() == [[-0.5, 1, -0.5, -0.5, -0.5]]


def test_preprocessing(photo, as_tensor) -> None:
    truth = as_tensor(photo.crop((4, 24, 174, 194)).resize((128, 128), Image.Resampling.BILINEAR))
    torch.testing.assert_close(AttGAN(4, 2, size=128).transform()(photo).double(), truth, rtol=0, atol=1e-6)
    square = photo.crop((0, 0, 150, 150))
    truth = as_tensor(square.resize((64, 64), Image.Resampling.BILINEAR))
    uncropped = AttGAN(4, 2, size=64, crop=None).transform()
    torch.testing.assert_close(uncropped(square).double(), truth, rtol=0, atol=1e-6)


def test_bad_input(tmp_path) -> None:
    with pytest.raises(ValueError, match="shortcut_layers=5 must be at least 0 and less than the number of layers, 5"):
        AttGAN(shortcut_layers=5)
    with pytest.raises(ValueError, match="inject_layers=-1 must be at least 0"):
        AttGAN(inject_layers=-1)
    with pytest.raises(ValueError, match="size=100 must be a positive multiple of 32"):
        AttGAN(size=100)
    torch.save(AttGAN(4, 2, n_attrs=5, attributes=FIVE).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"takes 5 labels, but has 13 names .* attributes="):
        AttGAN.from_checkpoint(tmp_path / "weights.pth")
    assert AttGAN.from_checkpoint(tmp_path / "weights.pth", attributes=FIVE).attributes == FIVE
