"""Every channel against what it promises, and each against another library or a closed form."""

import json
import re
from functools import cache
from importlib.resources import files
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from safetensors.torch import save_file
from scipy import ndimage, stats
from skimage.restoration import denoise_tv_chambolle
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resized_crop

from loraguard.channels import (
    CHANNELS,
    JPEG,
    AverageBlur,
    Chain,
    Channel,
    CropResize,
    Denoiser,
    DifferentiableJPEG,
    GaussianBlur,
    GaussianNoise,
    Grey,
    Identity,
    MedianBlur,
    Quantize,
    Resize,
    SaltPepper,
    Through,
    TotalVariation,
    Unsharp,
    WebP,
    parse_channel,
)
from loraguard.channels.denoiser import DnCNN
from loraguard.data import DemoFaces
from loraguard.describing import describe
from loraguard.info import info

FURTHER = ("jpeg:71,100", "jpeg:71,100+crop:0.8+noise")
"""Beside every name as it is, which the registry has: a new channel adds nothing to this file but its own tests."""
FASTER = {"webp": "webp:50", "quantize": "quantize:3", "tv": "tv:steps=5"}
SPECS = (*(FASTER.get(name, name) for name in CHANNELS.ours), *FURTHER)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(scope="module")
def drawn() -> Tensor:
    """Four faces of 64 pixels, as 8-bit photos."""
    faces = DemoFaces(4, split="test")
    return ((torch.stack([faces[i]["image"] for i in range(4)]) + 1) * 127.5).round() / 127.5 - 1


@pytest.fixture
def images() -> Tensor:
    """Three images of odd sizes, over the whole range."""
    return (torch.randn(3, 3, 19, 13) * 0.7).clamp(-1, 1)


def sent(channel: Channel, images: Tensor, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return channel(images)


def pillow(image: Tensor) -> Image.Image:
    """A photo (3, H, W) in [-1, 1], rounded to 8 bits."""
    return Image.fromarray(((image.permute(1, 2, 0).double().numpy() + 1) * 127.5).round().astype(np.uint8))


def reread(image: Tensor, **settings: object) -> Tensor:
    """What comes back from a file in memory, as bytes (3, H, W)."""
    file = BytesIO()
    pillow(image).save(file, **settings)
    return torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)


def as_bytes(images: Tensor) -> Tensor:
    return ((images + 1) * 127.5).round().byte()


def decibels(images: Tensor, reference: Tensor) -> Tensor:
    return 10 * torch.log10(4 / (images - reference).square().flatten(1).mean(1))


# What every channel promises


@cache
def draws(spec: str) -> bool:
    """Whether a channel draws at random: another seed gives another outcome."""
    photo = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(3)) - 0.5
    return not all(
        torch.equal(sent(parse_channel(spec), photo, seed), sent(parse_channel(spec), photo)) for seed in (1, 2)
    )


def passes_through(spec: str) -> bool:
    """Whether the stand-in has the identity's gradient, whatever it gives; other stand-ins must have their own."""
    images = (torch.rand(2, 3, 9, 9, dtype=torch.float64) - 0.5).requires_grad_()
    upstream = torch.randn_like(images)
    out = sent(parse_channel(spec).differentiable(), images)
    return (
        spec != "identity" and not draws(spec) and torch.equal(torch.autograd.grad(out, images, upstream)[0], upstream)
    )


@pytest.mark.parametrize("name", CHANNELS.ours)
def test_every_name_is_a_channel(name: str) -> None:
    channel = parse_channel(name)
    assert isinstance(channel, Channel)
    assert isinstance(channel.differentiable(), Channel)
    assert hash(channel) == hash(parse_channel(name))


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_same_shape_range_dtype_and_device(spec: str, device: str, dtype: torch.dtype, images: Tensor) -> None:
    images = images.to(device, dtype)
    before = images.clone()
    for channel in (parse_channel(spec), parse_channel(spec).differentiable()):
        for some in (images, images[:1, :, :1, :1], images[:, :, :, :2], images[:0]):
            out = channel(some)
            assert (out.shape, out.dtype, out.device) == (some.shape, some.dtype, some.device)
            assert (out.abs() <= 1).all()
            out.zero_()
        assert torch.equal(images, before)


@pytest.mark.parametrize("spec", SPECS)
def test_half_precision_and_autocast_change_nothing_but_the_last_rounding(spec: str, images: Tensor) -> None:
    channel, images = parse_channel(spec), images.bfloat16()
    wide = sent(channel, images.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sent(channel, images.float()), wide)
    if not draws(spec):  # noise that is drawn for another dtype is another noise
        assert torch.equal(sent(channel, images), wide.bfloat16())


@pytest.mark.parametrize("spec", SPECS)
def test_draws_come_from_the_global_generator_anew_for_each_image(spec: str) -> None:
    channel, same = parse_channel(spec), torch.randn(1, 3, 24, 24).clamp(-1, 1).expand(6, -1, -1, -1)
    out = sent(channel, same)
    assert torch.equal(out, sent(channel, same))
    assert torch.equal(out, sent(channel, same, seed=1)) == (not draws(spec))
    spread = (out - out[:1]).abs().max()
    assert spread > 0.01 if draws(spec) else spread < 1e-4  # float32 rounds images of a batch each in its own way


@pytest.mark.parametrize("spec", [spec for spec in SPECS if not draws(spec)])
def test_images_of_a_batch_do_not_meet(spec: str, images: Tensor) -> None:
    channel, images = parse_channel(spec), images.double()
    alone = torch.cat([channel(image[None]) for image in images])
    assert torch.allclose(channel(images), alone, rtol=0, atol=1e-11)


@pytest.mark.parametrize("spec", SPECS)
def test_the_stand_in_gives_gradients_and_the_channel_s_outcome(spec: str, drawn: Tensor) -> None:
    channel = parse_channel(spec)
    stand_in = channel.differentiable()
    assert stand_in.differentiable() == stand_in
    images = drawn.double().requires_grad_()
    out, real = sent(stand_in, images), sent(channel, images.detach())
    if "jpeg" in spec:
        assert (decibels(out.detach(), real) > 35).all()
    else:
        assert torch.allclose(out, real, rtol=0, atol=1e-12)
    gradient = torch.autograd.grad((out * torch.randn_like(out)).sum(), images)[0]
    assert gradient.isfinite().all()
    assert (gradient.flatten(1).abs().sum(1) > 0).all()


@pytest.mark.parametrize("spec", SPECS)
def test_gradients_are_those_of_finite_differences_or_pass_straight_through(spec: str, images: Tensor) -> None:
    channel = parse_channel(spec).differentiable()
    if passes_through(spec):
        real = parse_channel(spec)(images.requires_grad_())
        assert torch.equal(channel(images), real)
        assert not real.requires_grad
        return
    some = (0.4 * (torch.rand(2, 3, 5, 6, dtype=torch.float64) - 0.5)).requires_grad_()  # so that nothing is clipped
    assert torch.autograd.gradcheck(lambda images: sent(channel, images), some)


@pytest.mark.parametrize("spec", SPECS)
def test_white_and_black_areas_are_not_out_of_sight(spec: str) -> None:
    """A gradient at every pixel but those that a random crop leaves out, and those that a median is not."""
    images = torch.ones(2, 3, 24, 24)
    images[0, :, :8] = -1
    out = sent(parse_channel(spec).differentiable(), images.requires_grad_())
    gradient = torch.autograd.grad((out * torch.rand_like(out)).sum(), images)[0]
    assert (gradient != 0).float().mean() > (0.05 if spec == "median" else 0.6)


def test_a_generator_behind_a_channel_is_attacked_through_it(drawn: Tensor) -> None:
    images = drawn.clone().requires_grad_()
    through = Through(nn.Conv2d(3, 3, 3), parse_channel("jpeg:75+resize:0.5").differentiable())
    assert torch.autograd.grad(through(images).sum(), images)[0].abs().sum() > 0


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize(
    "wrong",
    [torch.zeros(3, 8, 8), torch.zeros(1, 3, 0, 8), torch.zeros(1, 3, 8, 8).byte()],
    ids=["no batch", "empty", "bytes"],
)
def test_other_things_than_images_are_refused(spec: str, wrong: Tensor) -> None:
    with pytest.raises(ValueError, match=r"Expected floating-point images \(N, C, H, W\)"):
        parse_channel(spec)(wrong)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("channels", [1, 6])
def test_images_of_other_than_three_colours(spec: str, channels: int) -> None:
    """Go through, each by itself where the channel does not mix colours; or are refused in words."""
    images = torch.rand(2, channels, 12, 10) - 0.5
    try:
        out = sent(parse_channel(spec), images)
    except ValueError as error:
        words = str(error)
    else:
        words = ""
    if words:
        assert channels == 6
        assert re.search(r"works on colours: expected images \(N, 3, H, W\), .* got \(2, 6, 12, 10\)", words)
        return
    assert out.shape == images.shape
    if channels == 1 and not draws(spec):
        in_colour = sent(parse_channel(spec), images.expand(-1, 3, -1, -1)).mean(1, keepdim=True)
        assert torch.allclose(out, in_colour, rtol=0, atol=1e-5)


# Each against another library or a closed form


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


# Chains and names


def test_a_chain_is_the_composition_of_its_channels(drawn: Tensor) -> None:
    chain = parse_channel("jpeg:71,100+noise:0.1+resize:0.5")
    out = sent(chain, drawn)
    torch.manual_seed(0)
    assert torch.equal(out, Resize(0.5)(GaussianNoise(0.1)(JPEG(71, 100)(drawn))))
    assert not torch.equal(parse_channel("jpeg+grey")(drawn), parse_channel("grey+jpeg")(drawn))
    assert torch.equal(Chain(())(drawn), drawn)
    assert chain.differentiable() == Chain((DifferentiableJPEG(71, 100), GaussianNoise(0.1), Resize(0.5)))


@pytest.mark.parametrize(
    ("spec", "channel"),
    [
        ("identity", Identity()),
        ("jpeg", JPEG(75)),
        ("jpeg:40", JPEG(40)),
        ("jpeg:quality=71,highest=100", JPEG(71, 100)),
        ("blur:2,kernel=9", GaussianBlur(2, 9)),
        ("jpeg:75+resize:0.5", Chain((JPEG(75), Resize(0.5)))),
        ("jpeg:75 + resize:0.5 + grey", Chain((JPEG(75), Resize(0.5), Grey()))),
        ("noise:1e+0+quantize:3", Chain((GaussianNoise(1.0), Quantize(3)))),
    ],
)
def test_specs(spec: str, channel: Channel) -> None:
    assert parse_channel(spec) == channel


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ("jpg:75", ValueError, r"no 'jpg' among loraguard\.channels: identity, jpeg, .*Did you mean 'jpeg'\?"),
        ("jpeg:75+resise:0.5", ValueError, "Did you mean 'resize'"),
        ("", ValueError, "no '' among"),
        ("jpeg+", ValueError, r"no 'jpeg\+' among"),
        ("grey:3", ValueError, r"'grey:3'.*\(grey takes no settings"),
        ("jpeg:qualty=75", ValueError, "unexpected keyword argument 'qualty'"),
        ("jpeg:0", ValueError, "quality=0 must be a whole number from 1 to 100"),
        ("jpeg:101", ValueError, "quality=101"),
        ("jpeg:7.5", ValueError, r"quality=7\.5"),
        ("jpeg:high", ValueError, "quality='high'"),
        ("jpeg:75,60", ValueError, "highest=60 must not be below quality=75"),
        ("jpeg:75,101", ValueError, "quality=101"),
        ("webp:0", ValueError, "quality=0"),
        ("quantize:0", ValueError, "bits=0 must be"),
        ("resize:0", ValueError, r"scale=0 must be above 0 and at most 1"),
        ("resize:1.5", ValueError, r"scale=1\.5"),
        ("crop:0", ValueError, "part=0 must be"),
        ("crop:1.1", ValueError, r"part=1\.1"),
        ("blur:0", ValueError, "sigma=0 must be above 0"),
        ("blur:1e999", ValueError, "sigma=inf"),
        ("blur:1,4", ValueError, "kernel=4 must be an odd number"),
        ("average:2", ValueError, "kernel=2"),
        ("median:-1", ValueError, "kernel=-1"),
        ("noise:-0.1", ValueError, r"sigma=-0\.1 must be 0 or more"),
        ("salt-pepper:1.1", ValueError, r"amount and salt in \[0, 1\], got 1\.1"),
        ("salt-pepper:0.1,-1", ValueError, r"got 0\.1 and -1"),
        ("unsharp:0", ValueError, "radius=0 must be above 0"),
        ("unsharp:1e6", ValueError, "radius=1000000.0 must be above 0 and at most 170"),
        ("blur:1e6", ValueError, "at most 170"),
        ("average:100001", ValueError, "kernel=100001 must be at most 1025 pixels"),
        ("median:101", ValueError, "kernel=101 must be at most 31 pixels"),
        ("unsharp:1,-1", ValueError, "percent >= 0"),
        ("unsharp:1,50,-1", ValueError, "threshold >= 0"),
        ("tv:0", ValueError, "weight=0 must be above 0"),
        ("tv:0.1,0", ValueError, "steps=0 must be"),
    ],
)
def test_mistakes_in_specs_are_told(spec: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        parse_channel(spec)


def test_a_chain_takes_channels_only() -> None:
    for wrong in (JPEG, "jpeg", nn.Identity()):
        with pytest.raises(TypeError, match="is not a channel"):
            Chain((Identity(), wrong))


def test_channels_are_told_in_reports_and_lists() -> None:
    told = describe(parse_channel("jpeg:71,100+grey"))
    jpeg = {"class": "JPEG", "quality": 71, "highest": 100}
    assert told == {"class": "Chain", "channels": [jpeg, {"class": "Grey"}]}
    for name, where, sentence in info("channels")[: len(CHANNELS.ours)]:
        assert where.startswith("loraguard.channels."), name
        assert sentence.endswith("."), name
        assert "`" not in sentence, name
