"""What every channel promises, chains of them and their names."""

import re
from functools import cache

import pytest
import torch
from sending import decibels, sent
from torch import Tensor, nn

from loraguard.channels import (
    CHANNELS,
    JPEG,
    Chain,
    Channel,
    DifferentiableJPEG,
    GaussianBlur,
    GaussianNoise,
    Grey,
    Identity,
    Quantize,
    Resize,
    Through,
    parse_channel,
)
from loraguard.commands.info import registered
from loraguard.describing import describe

FURTHER = ("jpeg:71,100", "jpeg:71,100+crop:0.8+noise")
"""Beside every name as it is, which the registry has: a new channel adds nothing to this file but its own tests."""
FASTER = {"webp": "webp:50", "quantize": "quantize:3", "tv": "tv:steps=5"}
NETWORKS = ("autoencoder", "impress", "diffpure")
"""Those that are what a network makes of them; test_purifiers.py has them."""
NAMES = tuple(name for name in CHANNELS.ours if name not in NETWORKS)
SPECS = (*(FASTER.get(name, name) for name in NAMES), *FURTHER)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


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


@pytest.mark.parametrize("name", NAMES)
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
    assert torch.autograd.gradcheck(lambda images: sent(channel, images), some, fast_mode=True)


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
    for name, where, sentence in registered("channels")[: len(CHANNELS.ours)]:
        assert where.startswith("loraguard.channels."), name
        assert sentence.endswith("."), name
        assert "`" not in sentence, name
