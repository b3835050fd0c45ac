"""Each channel against another library or a closed form."""

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from safetensors.torch import save_file
from scipy import ndimage, stats
from sending import as_bytes, decibels, pillow, reread
from skimage.restoration import denoise_tv_chambolle
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resized_crop

from loraguard.channels import (
    JPEG,
    AverageBlur,
    CropResize,
    Denoiser,
    DifferentiableJPEG,
    GaussianBlur,
    GaussianNoise,
    Grey,
    MedianBlur,
    Quantize,
    Resize,
    SaltPepper,
    TotalVariation,
    Unsharp,
    WebP,
    parse_channel,
)
from loraguard.channels.denoiser import DnCNN
from loraguard.data import DemoFaces


@pytest.mark.parametrize("quality", [1, 30, 75, 100])
def test_jpeg_and_webp_are_pillow_s_to_the_byte(quality: int, drawn: Tensor) -> None:
    for images in (drawn, drawn[:, :, :61, :37], drawn.double(), drawn.flip(-1)):
        for channel, name in ((JPEG(quality), "JPEG"), (WebP(quality), "WEBP")):
            for image, back in zip(images, as_bytes(channel(images)), strict=True):
                assert torch.equal(back, reread(image, format=name, quality=quality))


@pytest.mark.parametrize(("quality", "least"), [(10, 35), (50, 38), (75, 39), (95, 41)])
def test_differentiable_jpeg_is_close_to_the_codec(quality: int, least: float, drawn: Tensor) -> None:
    real, soft = JPEG(quality)(drawn), JPEG(quality).differentiable()(drawn)
    assert (decibels(soft, real) > least).all()
    assert (decibels(soft, real) > decibels(real, drawn) + 6).all()


@pytest.mark.parametrize("kind", [JPEG, DifferentiableJPEG])
def test_each_image_has_a_jpeg_quality_of_its_own(kind: type[JPEG], drawn: Tensor) -> None:
    """Every outcome is that of one quality in the range, and both ends of the range occur."""
    single = [kind(quality)(drawn[:1])[0] for quality in (90, 91, 92)]
    out = kind(90, 92)(drawn[:1].expand(40, -1, -1, -1))
    apart = torch.stack([(out - one).abs().amax((1, 2, 3)) for one in single])
    assert (apart.amin(0) < 1e-4).all()
    assert (apart.sort(0).values[1] > 0.01).all()
    assert set(apart.argmin(0).tolist()) == {0, 1, 2}


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_quantize_takes_the_nearest_of_its_levels(bits: int, images: Tensor) -> None:
    steps = torch.linspace(-1, 1, 2**bits)
    nearest = steps[(images[..., None] - steps).abs().argmin(-1)]
    assert torch.allclose(Quantize(bits)(images), nearest, atol=1e-5)


@pytest.mark.parametrize(("sigma", "kernel"), [(1.5, None), (1.5, 11), (0.8, 5), (3, 7), (2.2, None)])
def test_gaussian_blur_is_scipy_s(sigma: float, kernel: int | None, images: Tensor) -> None:
    radius = (kernel or {1.5: 11, 2.2: 15}[sigma]) // 2
    expected = ndimage.gaussian_filter(images.double().numpy(), sigma, mode="nearest", radius=radius, axes=(2, 3))
    assert np.allclose(GaussianBlur(sigma, kernel)(images.double()), expected)


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_average_and_median_are_scipy_s(kernel: int, images: Tensor) -> None:
    array = images.double().numpy()
    average = ndimage.uniform_filter(array, kernel, mode="nearest", axes=(2, 3))
    assert np.allclose(AverageBlur(kernel)(images.double()), average)
    median = ndimage.median_filter(array, kernel, mode="nearest", axes=(2, 3))
    assert np.array_equal(MedianBlur(kernel)(images.double()), median)


@pytest.mark.parametrize(("scale", "small"), [(0.5, (10, 6)), (0.25, (5, 3)), (0.9, (17, 12)), (1, (19, 13))])
def test_resize_is_pillow_s_there_and_back(scale: float, small: tuple[int, int], images: Tensor) -> None:
    images = images / 2  # far enough from the ends of the range for nothing to be clipped
    for got, image in zip(Resize(scale)(images), images, strict=True):
        for plane, colour in zip(got, image, strict=True):
            photo = Image.fromarray(colour.numpy())
            back = photo.resize(small[::-1], Image.Resampling.BICUBIC).resize((13, 19), Image.Resampling.BICUBIC)
            assert np.allclose(plane, np.array(back), atol=1e-4)  # both compute in float32


def test_crops_are_torchvision_s_at_every_place() -> None:
    image = torch.rand(1, 3, 10, 8) - 0.5
    places = [(top, left) for top in range(3) for left in range(3)]
    bicubic = {"interpolation": InterpolationMode.BICUBIC, "antialias": True}
    crops = torch.cat([resized_crop(image, *place, 8, 6, [10, 8], **bicubic) for place in places])
    out = CropResize(0.75)(image.expand(200, -1, -1, -1))
    distance = (out[:, None] - crops.clamp(-1, 1)).abs().amax((2, 3, 4))
    assert (distance.amin(1) < 1e-5).all()
    assert set(distance.argmin(1).tolist()) == set(range(9))


def test_noise_is_gaussian_and_clipped() -> None:
    noise = GaussianNoise(0.1)(torch.zeros(2, 3, 64, 64))
    assert stats.kstest(noise.flatten().numpy(), "norm", (0, 0.1)).pvalue > 0.01
    assert abs(np.corrcoef(noise[0].flatten(), noise[1].flatten())[0, 1]) < 0.03
    white = GaussianNoise(0.1)(torch.ones(1, 3, 64, 64))
    assert (white == 1).float().mean().item() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(("amount", "salt"), [(0.05, 0.5), (0.3, 0.2), (1.0, 1.0), (0.0, 0.5)])
def test_salt_and_pepper_are_as_many_as_asked_for(amount: float, salt: float) -> None:
    n = 4 * 100 * 100
    out = SaltPepper(amount, salt)(torch.full((4, 3, 100, 100), 0.25))
    assert torch.equal(out, out[:, :1].expand_as(out))  # whole pixels
    for value, share in ((1.0, amount * salt), (-1.0, amount * (1 - salt)), (0.25, 1 - amount)):
        found = int((out[:, 0] == value).sum())
        assert found == n * share if share in (0, 1) else stats.binomtest(found, n, share).pvalue > 1e-3
    assert amount in (0, 1) or not torch.equal(out[0], out[1])


@pytest.mark.parametrize("radius", [0.5, 1.0, 2.0, 3.3, 7.0])
@pytest.mark.parametrize("percent", [50, 150, 400])
@pytest.mark.parametrize("threshold", [0, 3, 10])
def test_unsharp_is_pillow_s(radius: float, percent: int, threshold: int, drawn: Tensor) -> None:
    """Pillow rounds each of 6 box blurs, half a level each and a hundredth for its fixed point; and the sum, down.

    So the blurred values are up to 6 * 0.51 levels apart, and the outcomes percent / 100 times as far, and one more.
    Where the difference is as near to the threshold as that, either side of it is right.
    """
    apart = 6 * 0.51
    noisy = as_bytes((drawn[:2, :, :37] + 0.3 * torch.randn_like(drawn[:2, :, :37])).clamp(-1, 1))
    got = (Unsharp(radius, percent, threshold)(noisy.double() / 127.5 - 1) + 1) * 127.5
    plain = (Unsharp(radius, 100, 0)(noisy.double() / 127.5 / 4 - 0.5) + 0.5) * 127.5 * 4  # in the middle, unclipped
    close = ((plain - noisy).abs() - threshold).abs() <= apart
    for image, ours, either in zip(noisy, got, close, strict=True):
        photo = Image.fromarray(image.permute(1, 2, 0).numpy())
        theirs = torch.from_numpy(np.array(photo.filter(ImageFilter.UnsharpMask(radius, percent, threshold))))
        difference = (ours - theirs.permute(2, 0, 1).double()).abs()
        assert difference[~either].max() <= percent / 100 * apart + 1
        assert (~either).double().mean() > 0.25
    if percent > 50:
        assert (got - noisy).abs().max() > 20


def test_grey_is_pillow_s(drawn: Tensor) -> None:
    out = Grey()(drawn)
    assert torch.equal(out[:, 0], out[:, 1])
    assert torch.equal(out[:, 0], out[:, 2])
    for image, got in zip(drawn, out, strict=True):
        assert np.abs(np.array(pillow(image).convert("L")) - ((got[0].numpy() + 1) * 127.5)).max() <= 0.51


@pytest.mark.parametrize(("weight", "steps"), [(0.1, 30), (0.4, 7), (2.0, 1)])
def test_total_variation_is_skimage_s(weight: float, steps: int, images: Tensor) -> None:
    """Which returns what the last step but one gave."""
    for got, image in zip(TotalVariation(weight, steps)(images.double()), images.double().numpy(), strict=True):
        expected = denoise_tv_chambolle(image, weight, eps=0, max_num_iter=steps + 1, channel_axis=0)
        assert np.allclose(got, expected, atol=1e-10)


# The denoiser


def test_the_shipped_denoiser_does_what_its_recipe_says() -> None:
    """On other unseen faces than the recipe's."""
    faces = DemoFaces(32, split="test")
    clean = torch.stack([faces[i]["image"] for i in range(32)])
    folder = files("loraguard.channels").joinpath("denoiser_weights")
    figures = json.loads(folder.joinpath("recipe.json").read_text(encoding="utf-8"))["figures"]
    for sigma in (0.05, 0.1):
        noisy = (clean + sigma * torch.randn_like(clean)).clamp(-1, 1)
        gained = (decibels(Denoiser()(noisy), clean) - decibels(noisy, clean)).mean().item()
        told = figures[f"{sigma}"]
        assert gained == pytest.approx(told["denoised_db"] - told["noisy_db"], abs=0.5)
        assert gained > 4
    assert len(folder.joinpath("model.safetensors").read_bytes()) < 300_000


def test_a_denoiser_of_one_s_own(tmp_path: Path, images: Tensor) -> None:
    network = DnCNN(width=4, depth=3)
    save_file(network.state_dict(), tmp_path / "own.safetensors")
    channel = parse_channel(f"denoiser:{tmp_path}/own.safetensors")
    assert channel == Denoiser(f"{tmp_path}/own.safetensors")
    assert torch.allclose(channel(images), (images - network(images)).clamp(-1, 1), atol=1e-5)


def test_what_is_no_denoiser_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors"):
        Denoiser("nowhere.safetensors")
    wrong = tmp_path / "wrong.safetensors"
    for state in ({}, {"a": torch.ones(1)}, {"0.weight": torch.ones(4, 3, 5, 5), "0.bias": torch.ones(4)}):
        save_file(state, wrong)
        with pytest.raises(ValueError, match=r"wrong\.safetensors does not hold the weights of a DnCNN"):
            Denoiser(str(wrong))
    wrong.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="does not hold the weights of a DnCNN"):
        Denoiser(str(wrong))
