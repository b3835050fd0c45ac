"""StarGAN against its description, and against torch's own instance norm as the official code uses it."""

from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from loraguard.generators import StarGAN
from loraguard.generators.instance_norm import InstanceNorm, written_out

NORM = ("weight", "bias", "running_mean", "running_var")


def official_shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor of `200000-G.ckpt`."""
    convolutions = {
        "main.0": (64, 8, 7, 7), "main.3": (128, 64, 4, 4), "main.6": (256, 128, 4, 4),
        **{f"main.{i}.main.{j}": (256, 256, 3, 3) for i, j in product(range(9, 15), (0, 3))},
        "main.15": (256, 128, 4, 4), "main.18": (128, 64, 4, 4), "main.21": (3, 64, 7, 7),
    }  # fmt: skip
    norms = {
        "main.1": 64, "main.4": 128, "main.7": 256,
        **{f"main.{i}.main.{j}": 256 for i, j in product(range(9, 15), (1, 4))},
        "main.16": 128, "main.19": 64,
    }  # fmt: skip
    return {
        **{f"{name}.weight": shape for name, shape in convolutions.items()},
        **{f"{name}.{tensor}": (size,) for name, size in norms.items() for tensor in NORM},
        **{f"{name}.num_batches_tracked": () for name in norms},
    }


def by_hand(state: dict[str, Tensor], images: Tensor, labels: Tensor, blocks: int) -> Tensor:
    """The forward pass as described, with instance statistics everywhere."""

    def norm(x: Tensor, name: str) -> Tensor:
        own = nn.InstanceNorm2d(x.shape[1], affine=True, track_running_stats=True).double()  # train mode
        own.load_state_dict({tensor: state[f"{name}.{tensor}"] for tensor in (*NORM, "num_batches_tracked")})
        return own(x)

    x = torch.cat([images, labels.view(*labels.shape, 1, 1).repeat(1, 1, *images.shape[2:])], 1)
    for i, (stride, padding) in enumerate([(1, 3), (2, 1), (2, 1)]):
        x = F.relu(norm(F.conv2d(x, state[f"main.{3 * i}.weight"], None, stride, padding), f"main.{3 * i + 1}"))
    for i in range(9, 9 + blocks):
        y = F.relu(norm(F.conv2d(x, state[f"main.{i}.main.0.weight"], padding=1), f"main.{i}.main.1"))
        x = x + norm(F.conv2d(y, state[f"main.{i}.main.3.weight"], padding=1), f"main.{i}.main.4")
    for i in (9 + blocks, 12 + blocks):
        x = F.relu(norm(F.conv_transpose2d(x, state[f"main.{i}.weight"], None, 2, 1), f"main.{i + 1}"))
    return torch.tanh(F.conv2d(x, state[f"main.{15 + blocks}.weight"], padding=3))


def test_the_official_tensors() -> None:
    with torch.device("meta"):
        generator = StarGAN()
    assert {name: tuple(tensor.shape) for name, tensor in generator.state_dict().items()} == official_shapes()
    assert len(official_shapes()) == 103
    assert sum(parameter.numel() for parameter in generator.parameters()) == 8_430_528


@pytest.mark.parametrize("settings", [{}, {"conv_dim": 6, "repeat_num": 2, "c_dim": 3, "attributes": ("a", "b", "c")}])
@pytest.mark.parametrize("training", [True, False])
def test_outputs_are_the_official_ones_in_both_modes(scramble, settings, training: bool) -> None:
    generator = scramble(StarGAN(**settings)).double().train(training)
    images, labels = torch.rand(2, 3, 16, 24).double() * 2 - 1, torch.rand(2, generator.c_dim).round()
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    with torch.no_grad():
        truth = by_hand(before, images, labels.double(), settings.get("repeat_num", 6))
        torch.testing.assert_close(generator(images, labels), truth, rtol=0, atol=1e-10)
    assert truth.std() > 0.1
    for name, tensor in generator.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_the_norm_in_train_and_eval_mode(scramble) -> None:
    norm = scramble(InstanceNorm(5)).double()
    torchs = nn.InstanceNorm2d(5, affine=True, track_running_stats=True).double()
    torchs.load_state_dict(norm.state_dict())
    features = torch.randn(3, 5, 7, 9).double()
    truth = torchs(features)
    torch.testing.assert_close(norm.train()(features), truth)
    torch.testing.assert_close(norm.eval()(features), truth)
    assert (torchs.eval()(features) - truth).abs().mean() > 0.1  # what an eval() of the official code would do
    assert not torch.equal(torchs.running_mean, norm.running_mean)


def test_edits() -> None:
    labels = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 0, 0, 1]])
    edits = {name: edit["labels"].tolist() for name, edit in StarGAN(4, repeat_num=1).conditions(labels).items()}
    assert edits == {
        "Black_Hair": [[1, 0, 0, 1, 0], [1, 0, 0, 0, 1]],
        "Blond_Hair": [[0, 1, 0, 1, 0], [0, 1, 0, 0, 1]],
        "Brown_Hair": [[0, 0, 1, 1, 0], [0, 0, 1, 0, 1]],
        "Male": [[1, 0, 0, 0, 0], [0, 0, 0, 1, 1]],
        "Young": [[1, 0, 0, 1, 1], [0, 0, 0, 0, 0]],
    }
    assert labels.tolist() == [[1, 0, 0, 1, 0], [0, 0, 0, 0, 1]]


def test_edits_of_other_attributes() -> None:
    """Hair colours are known by name, wherever they are."""
    generator = StarGAN(4, 3, 1, attributes=["Gray_Hair", "Smiling", "Black_Hair"])
    edits = generator.conditions(torch.tensor([[0.0, 1.0, 1.0]]))
    assert {name: edit["labels"].tolist() for name, edit in edits.items()} == {
        "Gray_Hair": [[1, 1, 0]],
        "Smiling": [[0, 0, 1]],
        "Black_Hair": [[0, 1, 1]],
    }


@pytest.mark.parametrize("size", [256, 128])
def test_preprocessing(photo, as_tensor, size: int) -> None:
    truth = as_tensor(photo.crop((0, 20, 178, 198)).resize((size, size), Image.Resampling.BILINEAR))
    image = StarGAN(4, repeat_num=1, size=size).transform()(photo)
    assert image.dtype == torch.float32
    torch.testing.assert_close(image.double(), truth, rtol=0, atol=1e-6)


def test_a_checkpoint_tells_its_settings(tmp_path) -> None:
    names = [f"attribute {i}" for i in range(7)]
    torch.save(StarGAN(5, 7, 4, attributes=names).state_dict(), tmp_path / "G.ckpt")
    with pytest.raises(ValueError, match=r"takes 7 labels, but has 5 names .* attributes="):
        StarGAN.from_checkpoint(tmp_path / "G.ckpt")
    config = StarGAN.from_checkpoint(tmp_path / "G.ckpt", attributes=names, size=128).config
    assert config == {
        "model_type": "stargan", "conv_dim": 5, "c_dim": 7, "repeat_num": 4, "size": 128, "attributes": names,
    }  # fmt: skip


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="size=130 must be a positive multiple of 4"):
        StarGAN(size=130)
    generator = StarGAN(4, repeat_num=1)
    with pytest.raises(ValueError, match=r"Labels must be 0 or 1, got values from -1 to 1"):
        generator.conditions(torch.tensor([[1, -1, -1, 1, 1]]))
    with pytest.raises(ValueError, match=r"Expected labels \(N, 5\) in this order: Black_Hair.* got \(2, 40\)"):
        generator.conditions(torch.zeros(2, 40))
    with pytest.raises(ValueError, match=r"Expected labels \(2, 5\), a row for each image, got \(1, 5\)"):
        generator(torch.zeros(2, 3, 8, 8), torch.zeros(1, 5))


class TestChannelsLast:
    """The path of features in channels_last through the norm, and of the network that takes it."""

    @pytest.fixture(params=[False, True], ids=["norm", "relu"])
    def norm(self, request: pytest.FixtureRequest, scramble) -> InstanceNorm:
        return scramble(InstanceNorm(5, relu=request.param))

    @staticmethod
    def features(offset: float = 0.0, dtype: torch.dtype = torch.float64, n: int = 3) -> torch.Tensor:
        features = torch.randn(n, 5, 2 * n + 1, 3 * n, dtype=dtype) + offset
        return features.contiguous(memory_format=torch.channels_last).requires_grad_()

    def test_same_function(self, norm: InstanceNorm) -> None:
        norm, x = norm.double(), self.features()
        sources = [x, norm.weight, norm.bias]
        fast = norm(x)
        assert fast.is_contiguous(memory_format=torch.channels_last)
        truth = F.instance_norm(x, weight=norm.weight, bias=norm.bias)
        truth = truth.relu() if norm.relu else truth
        torch.testing.assert_close(fast, truth, rtol=0, atol=1e-11)
        gradient = torch.randn_like(truth)
        for one, other in zip(*(torch.autograd.grad(y, sources, gradient) for y in (fast, truth)), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-11)

    @pytest.mark.parametrize("learns", [True, False])
    def test_derivatives(self, norm: InstanceNorm, learns: bool) -> None:
        norm, x = norm.double().requires_grad_(learns), self.features(n=2)
        assert torch.autograd.gradcheck(norm, x, fast_mode=True)
        assert torch.autograd.gradgradcheck(norm, x, fast_mode=True)

    def test_images_that_are_taken_apart(self, norm: InstanceNorm, monkeypatch: pytest.MonkeyPatch) -> None:
        norm, x = norm.double(), self.features()
        together = torch.autograd.grad(norm(x).square().sum(), [x, norm.weight, norm.bias])
        monkeypatch.setattr("loraguard.generators.instance_norm._AT_ONCE", 2 * x[0].numel())
        apart = torch.autograd.grad(norm(x).square().sum(), [x, norm.weight, norm.bias])
        for one, other in zip(apart, together, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-11)

    def test_rounding_where_the_mean_is_far_from_zero(self, norm: InstanceNorm) -> None:
        x = self.features(100.0, torch.float32)
        truth = norm.double()(x.detach().double().contiguous())
        error = (norm.float()(x).double() - truth).abs().max()
        assert error < 5e-4  # 40 eps of the mean; mean(x^2) - mean(x)^2 would be 4e-3 off

    def test_the_network_is_the_same_function(self, scramble, monkeypatch: pytest.MonkeyPatch) -> None:
        generator = scramble(StarGAN(8, repeat_num=1)).double()
        images = (torch.rand(2, 3, 16, 24).double() * 2 - 1).requires_grad_()
        labels = torch.rand(2, generator.c_dim).round()
        results = []
        for last in (True, False):
            monkeypatch.setattr("loraguard.generators.stargan._PIXELS", 2 * 16 * 24 + (not last))
            formats = []
            hook = generator.main[3].register_forward_hook(
                lambda _, __, y, formats=formats: formats.append(y.stride(1))
            )
            y = generator(images, labels)
            hook.remove()
            assert (formats == [1]) == last
            assert y.is_contiguous()
            results.append((y, *torch.autograd.grad(y.square().sum(), [images, *generator.parameters()])))
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)

    def test_torchs_own_way_under_transforms(self, scramble, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("loraguard.generators.stargan._PIXELS", 0)
        generator, labels = scramble(StarGAN(4, repeat_num=1)).double(), torch.ones(2, 5)
        images = torch.rand(2, 3, 16, 16).double() * 2 - 1
        mapped = torch.func.vmap(lambda one, label: generator(one[None], label[None])[0])(images, labels)
        torch.testing.assert_close(mapped, generator(images, labels))
        _, tangent = torch.func.jvp(lambda x: generator(x, labels), (images,), (torch.ones_like(images),))
        assert tangent.isfinite().all()


@pytest.mark.parametrize("relu", [False, True])
def test_the_norm_written_out_for_compilers(relu: bool) -> None:
    x = (3 * torch.randn(2, 4, 5, 6, dtype=torch.float64) + 1).requires_grad_()
    weight, bias = (torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    mine, theirs = written_out(x, weight, bias, 1e-5, relu), F.instance_norm(x, None, None, weight, bias)
    theirs = theirs.relu() if relu else theirs
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    slope = torch.randn_like(x)
    for one, other in zip(*(torch.autograd.grad(y, (x, weight, bias), slope) for y in (mine, theirs)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert written_out(x.bfloat16(), weight.float(), bias.float(), 1e-5, relu).dtype == torch.bfloat16


def test_the_discriminator_s_file_is_called_that(tmp_path) -> None:
    """200000-D.ckpt lies beside 200000-G.ckpt, and its names begin alike."""
    layers = {f"main.{2 * i}": nn.Conv2d(3 if i == 0 else 4, 4, 4) for i in range(3)}
    heads = {"conv1": nn.Conv2d(4, 1, 3, bias=False), "conv2": nn.Conv2d(4, 5, 2, bias=False)}
    state = {f"{name}.{key}": v for name, layer in {**layers, **heads}.items() for key, v in layer.state_dict().items()}
    torch.save(state, tmp_path / "200000-D.ckpt")
    with pytest.raises(
        ValueError, match=r"D\.ckpt does not fit StarGAN\. It holds StarGAN's discriminator; give the file"
    ):
        StarGAN.from_checkpoint(tmp_path / "200000-D.ckpt")


def test_classes_of_one_s_own_are_asked_for_by_name(tmp_path) -> None:
    names = tuple("abcdefgh")
    torch.save(StarGAN(4, 8, 1, attributes=names).state_dict(), tmp_path / "rafd-G.ckpt")
    with pytest.raises(ValueError, match=r"rafd-G\.ckpt: The network takes 8 labels, but has 5"):
        StarGAN.from_checkpoint(tmp_path / "rafd-G.ckpt")
    assert StarGAN.from_checkpoint(tmp_path / "rafd-G.ckpt", attributes=names).attributes == names


@pytest.mark.parametrize("around", [lambda state: [state, 3], lambda state: (state,), lambda state: {"nets": [state]}])
def test_a_state_dict_in_a_list_is_read(around: Callable[[dict], object], tmp_path: Path) -> None:
    network = StarGAN(conv_dim=4, repeat_num=1)
    torch.save(around(network.state_dict()), tmp_path / "G.ckpt")
    loaded = StarGAN.from_checkpoint(tmp_path / "G.ckpt")
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in loaded.state_dict().items())


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize(
    "odd",
    [
        lambda value: value.to("meta"),
        lambda value: value.to_sparse(),
        lambda value: value.to(torch.complex64),
        lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
    ],
)
def test_tensors_that_are_no_plain_numbers_are_named(odd: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    """Their values are not there, or would be taken for others: of complex ones the real part."""
    state = StarGAN(conv_dim=4, repeat_num=1).state_dict()
    torch.save({**state, "main.0.weight": odd(state["main.0.weight"])}, tmp_path / "G.ckpt")
    with pytest.raises(ValueError, match=r"does not fit StarGAN.*No plain numbers: main\.0\.weight\.") as error:
        StarGAN.from_checkpoint(tmp_path / "G.ckpt")
    assert len(str(error.value)) <= 600


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "holds no state dict but an empty dict; expected names with tensors"),
        (None, "holds no state dict but a NoneType;"),
        ({"shadow_params": [torch.zeros(3)]}, "a dict of 'shadow_params', without tensors;"),
        ({"main.0.weight": np.zeros(3)}, "a dict of 'main.0.weight', without tensors;"),
    ],
)
def test_what_is_no_state_dict(content: object, said: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "G.ckpt")
    with pytest.raises(ValueError, match=said):
        StarGAN.from_checkpoint(tmp_path / "G.ckpt")


def test_an_empty_file_is_called_that(tmp_path: Path) -> None:
    (tmp_path / "G.ckpt").touch()
    with pytest.raises(ValueError, match="is empty"):
        StarGAN.from_checkpoint(tmp_path / "G.ckpt")
