"""Purifiers that need a network, or stand in for one."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from sending import sent
from torch import Tensor, nn

from loraguard.channels import IMPRESS, DiffPure, NoisyUpscale, RoundTrip, parse_channel
from loraguard.generators import TAEF2


class Halving(nn.Module):
    """An autoencoder that gives back half of the first colour, and the others as they are."""

    size_multiple = 4

    def encode(self, images: Tensor) -> Tensor:
        return images

    def decode(self, latents: Tensor) -> Tensor:
        return latents * torch.tensor([0.5, 1, 1]).to(latents)[:, None, None]


def pipeline(**settings) -> DDPMPipeline:
    torch.manual_seed(0)
    unet = UNet2DModel(
        in_channels=3, out_channels=3, block_out_channels=(4, 8), norm_num_groups=2, layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    return DDPMPipeline(unet.eval(), DDPMScheduler(**settings))


def test_a_round_trip_is_the_autoencoder_s(tmp_path, images: Tensor) -> None:
    torch.manual_seed(0)
    network = TAEF2(**TAEF2.small).eval()
    whole = images[:, :, :16, :8]
    with torch.no_grad():
        assert torch.equal(RoundTrip(network)(whole), network(whole))
    assert RoundTrip(network)(images).shape == images.shape
    torch.save(network.state_dict(), tmp_path / "taef2.pth")
    by_name = parse_channel(f"autoencoder:taef2,{tmp_path / 'taef2.pth'}")
    assert torch.equal(by_name(images), RoundTrip(network)(images).detach())
    point = images.clone().requires_grad_()
    assert (torch.autograd.grad(by_name(point).sum(), point)[0] != 0).float().mean() > 0.5
    with pytest.raises(ValueError, match="Identity has no encode and decode"):
        RoundTrip(nn.Identity())


def test_impress_finds_what_comes_back() -> None:
    """What comes back of this network has no first colour; of the photo's, as much goes as may."""
    photo = torch.full((2, 3, 8, 8), 0.4)
    free = IMPRESS(Halving(), steps=300, weight=0.0)(photo)
    assert free[:, 0].abs().max() < 0.02
    torch.testing.assert_close(free[:, 1:], photo[:, 1:], rtol=0, atol=1e-6)
    # Bound to the photo: minimise (y/2)^2 + w ((y - 0.4)^2 - reach^2) / 1, at y = 0.4 w / (w + 1/4).
    bound = IMPRESS(Halving(), steps=300, weight=1.0, reach=0.0)(photo)
    torch.testing.assert_close(bound[:, 0], torch.full((2, 8, 8), 0.4 / 1.25), rtol=0, atol=5e-3)
    point = photo.clone().requires_grad_()
    stand_in = IMPRESS(Halving(), steps=3).differentiable()
    assert torch.equal(torch.autograd.grad(stand_in(point).sum(), point)[0], torch.ones_like(photo))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@torch.no_grad()
def test_diffpure_is_ddim_of_diffusers(prediction: str, images: Tensor) -> None:
    made, images = pipeline(prediction_type=prediction), images[:, :, :16, :8]
    channel = DiffPure(made, time=0.2, steps=4)
    torch.manual_seed(1)
    found = channel(images)
    scheduler = DDIMScheduler(prediction_type=prediction, clip_sample=False)
    times = [199, 149, 100, 50]
    torch.manual_seed(1)
    state = scheduler.add_noise(images, torch.randn_like(images), torch.tensor(times[:1]))
    for time, following in zip(times, [*times[1:], None], strict=True):
        # DDIM of diffusers goes down by equal steps: each of these is one with its own number of steps.
        predicted = made.unet(state, time).sample
        kept = scheduler.alphas_cumprod
        scheduler.num_inference_steps = 1000 // (time - following) if following is not None else 1
        if following is not None and 1000 % (time - following):
            noise = torch.zeros_like(state)
            noise = {
                "epsilon": predicted,
                "v_prediction": kept[time].sqrt() * predicted + (1 - kept[time]).sqrt() * state,
                "sample": (state - kept[time].sqrt() * predicted) / (1 - kept[time]).sqrt(),
            }[prediction]
            clean = (state - (1 - kept[time]).sqrt() * noise) / kept[time].sqrt()
            state = kept[following].sqrt() * clean + (1 - kept[following]).sqrt() * noise
        else:
            state = scheduler.step(predicted, time, state).prev_sample
    torch.testing.assert_close(found, state.clamp(-1, 1), rtol=0, atol=1e-4)


def test_diffpure_from_a_folder(tmp_path, images: Tensor) -> None:
    made = pipeline()
    made.save_pretrained(tmp_path)
    channel = parse_channel(f"diffpure:{tmp_path},time=0.1,steps=2")
    assert torch.equal(sent(channel, images), sent(DiffPure(made, 0.1, 2), images))
    assert not torch.equal(sent(channel, images), sent(channel, images, 1))
    point = images.clone().requires_grad_()
    assert torch.autograd.grad(sent(channel, point).sum(), point)[0].abs().sum() > 0
    with pytest.raises(ValueError, match=r"time in \(0, 1\]"):
        DiffPure(made, time=0.0)


def test_noisy_upscaling_takes_fine_noise_off() -> None:
    smooth = torch.linspace(-0.8, 0.8, 64).expand(1, 3, 64, 64)
    perturbed = smooth + 0.1 * torch.sign(torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    torch.manual_seed(0)
    purified = NoisyUpscale(sigma=0.0)(perturbed)
    assert (purified - smooth).square().mean() < 0.4 * (perturbed - smooth).square().mean()
    repeated = NoisyUpscale(0.0, 0.5, lambda small, size: small.repeat_interleave(2, 2).repeat_interleave(2, 3))
    blocks = repeated(perturbed)
    assert torch.equal(blocks[..., ::2, ::2], blocks[..., 1::2, 1::2])
