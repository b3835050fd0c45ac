"""Purifiers of protections against latent editors: noisy upscaling, and what goes through another autoencoder.

Those that need a network take it by name and checkpoint, as the command line loads generators, or in Python as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import keeps_format
from .resize import bicubic


@dataclass(frozen=True)
class NoisyUpscale:
    """Add Gaussian noise, make the photo small, and enlarge it again (arXiv 2406.12027).

    The published attack enlarges by a diffusion upscaler; bicubic interpolation stands here, unless Python gives one.

    Args:
        sigma: of the noise, in units of images in [-1, 1].
        scale: of the small photo's sides.
        upscaler: from images (N, C, h, w) and a size to images of that size, differentiable; bicubic by default.

    Raises:
        ValueError: for a sigma below 0, or a scale that is not in (0, 1].

    Example:
        >>> photo = torch.zeros(1, 3, 16, 16)
        >>> NoisyUpscale(sigma=0.1)(photo).std() < 0.08
        tensor(True)
    """

    sigma: float = 0.1
    scale: float = 0.5
    upscaler: Callable[[Tensor, tuple[int, int]], Tensor] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.sigma < 0 or not 0 < self.scale <= 1:
            raise ValueError(f"Expected sigma >= 0 and scale in (0, 1], got sigma={self.sigma}, scale={self.scale}.")

    @keeps_format
    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) without their finest details, differentiable."""
        height, width = images.shape[-2:]
        noisy = images + self.sigma * torch.randn_like(images)
        small = bicubic(noisy, (max(1, round(self.scale * height)), max(1, round(self.scale * width))))
        return bicubic(small, (height, width)) if self.upscaler is None else self.upscaler(small, (height, width))

    def differentiable(self) -> NoisyUpscale:
        """Itself, drawn anew."""
        return self


@dataclass(frozen=True)
class RoundTrip:
    """Send the photo through another autoencoder, D(E(x)): what was made for one encoder is not made for another.

    Args:
        generator: by name, such as "taef2" or "latent_autoencoder", or a network with `encode` and `decode`.
        checkpoint: its file, folder or id of the Hub; none for one that ships with the package.

    Raises:
        ValueError: for a network without `encode` and `decode`.
        FileNotFoundError: for a checkpoint that is not there.

    Example:
        >>> from loraguard.generators import TAEF2
        >>> RoundTrip(TAEF2(**TAEF2.small))(torch.zeros(1, 3, 19, 13)).shape
        torch.Size([1, 3, 19, 13])
    """

    generator: str | nn.Module = "demo_diffusion"
    checkpoint: str | None = None

    def __post_init__(self) -> None:
        network = self._network(torch.zeros(()))
        if not (hasattr(network, "encode") and hasattr(network, "decode")):
            raise ValueError(f"{type(network).__name__} has no encode and decode: it is no autoencoder.")

    @keeps_format
    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W), there and back, differentiable; sides that do not fit are extended meanwhile."""
        network = self._network(images)
        height, width = images.shape[-2:]
        fits = extended(images, network.size_multiple)
        return network.decode(network.encode(fits))[..., :height, :width]

    def _network(self, like: Tensor) -> Any:
        if isinstance(self.generator, nn.Module):
            return self.generator.to(like)
        return _loaded(self.generator, self.checkpoint, like.device, like.dtype)

    def differentiable(self) -> RoundTrip:
        """Itself."""
        return self


@dataclass(frozen=True)
class IMPRESS:
    """Change the photo a little until the autoencoder gives it back as it is (Cao et al., arXiv 2310.19248).

    Adam on `|D(E(y)) - y|^2 + weight * max(|y - x|^2 - reach^2, 0)`, means over the pixels; protected photos come back
    other than they are, and plain ones do not. The paper's second distance is LPIPS; a mean square needs no network.

    Args:
        generator: by name, or a network with `encode` and `decode`: the autoencoder of the editor.
        checkpoint: its file, folder or id of the Hub; none for one that ships with the package.
        steps: of Adam.
        learning_rate: of Adam.
        weight: of the distance from the photo.
        reach: how far (root mean square) the photo may go for nothing.

    Raises:
        ValueError: for a network without `encode` and `decode`, or settings out of range.

    Example:
        >>> from loraguard.generators import TAEF2
        >>> IMPRESS(TAEF2(**TAEF2.small), steps=2)(torch.zeros(1, 3, 16, 16)).shape
        torch.Size([1, 3, 16, 16])
    """

    generator: str | nn.Module = "demo_diffusion"
    checkpoint: str | None = None
    steps: int = 100
    learning_rate: float = 1e-2
    weight: float = 10.0
    reach: float = 0.05

    def __post_init__(self) -> None:
        if self.steps < 1 or self.learning_rate <= 0 or self.weight < 0 or self.reach < 0:
            raise ValueError(f"Expected steps >= 1, learning_rate > 0, weight >= 0 and reach >= 0, got {self!r:.200}.")
        RoundTrip(self.generator, self.checkpoint)

    @keeps_format
    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) that the autoencoder gives back; each is optimised on its own."""
        around, photo = RoundTrip(self.generator, self.checkpoint), images.detach()
        with torch.enable_grad():
            changed = photo.clone().requires_grad_()
            optimizer = torch.optim.Adam([changed], self.learning_rate)
            for _ in range(self.steps):
                itself = (around(changed) - changed).square().mean((1, 2, 3))
                beyond = ((changed - photo).square().mean((1, 2, 3)) - self.reach**2).relu()
                (gradient,) = torch.autograd.grad((itself + self.weight * beyond).sum(), changed)
                changed.grad = gradient
                optimizer.step()
        return changed.detach()

    def differentiable(self) -> StraightThrough:
        """Its outcomes, with gradients as if it did nothing."""
        return StraightThrough(self)


@runtime_checkable
class Pipeline(Protocol):
    """A pipeline of diffusers with an unconditional model."""

    unet: Any
    scheduler: Any


@dataclass(frozen=True)
class DiffPure:
    """Noise the photo to a time and denoise it by an unconditional diffusion model (Nie et al., arXiv 2205.07460).

    Args:
        path: a folder or an id of the Hub with a pipeline of diffusers whose `unet` takes images without a condition,
            such as DDPMPipeline's; or, in Python, such a pipeline.
        time: how far, in parts of the model's times, in (0, 1]; the paper's 0.1 to 0.15.
        steps: of deterministic sampling (DDIM) back from there.

    Raises:
        ValueError: for a time or steps out of range, or a pipeline without such a model.

    Example:
        >>> from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
        >>> unet = UNet2DModel(in_channels=3, out_channels=3, block_out_channels=(4,), norm_num_groups=2,
        ...     down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), layers_per_block=1,
        ...     attention_head_dim=2)
        >>> purify = DiffPure(DDPMPipeline(unet, DDPMScheduler()), steps=2)
        >>> purify(torch.zeros(1, 3, 16, 16)).shape
        torch.Size([1, 3, 16, 16])
    """

    path: str | Pipeline
    time: float = 0.1
    steps: int = 5

    def __post_init__(self) -> None:
        if not 0 < self.time <= 1 or self.steps < 1:
            raise ValueError(f"Expected time in (0, 1] and steps >= 1, got time={self.time}, steps={self.steps}.")
        unet = getattr(self._pipeline(), "unet", None)
        if unet is None or unet.config.in_channels != 3:
            raise ValueError(f"{self.path!r:.100} has no `unet` that takes images (N, 3, H, W); give such a pipeline.")

    def _pipeline(self) -> Any:
        return _pipeline(self.path) if isinstance(self.path, str) else self.path

    @keeps_format
    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) that the model finds likely, differentiable; the noise is drawn anew."""
        from loraguard.generators.diffusion.schedules import predicted_noise

        pipeline = self._pipeline()
        kept = pipeline.scheduler.alphas_cumprod.to(images)
        unet: Any = pipeline.unet.to(images).eval().requires_grad_(False)
        multiple = 2 ** (len(unet.config.block_out_channels) - 1)
        height, width = images.shape[-2:]
        fits = extended(images, multiple)
        last = max(round(self.time * len(kept)), self.steps) - 1
        times = torch.linspace(last, 0, self.steps + 1)[:-1].round().long().tolist()
        state = kept[times[0]].sqrt() * fits + (1 - kept[times[0]]).sqrt() * torch.randn_like(fits)
        for time, following in zip(times, [*times[1:], None], strict=True):
            made = unet(state, time, return_dict=False)[0]
            a, b = kept[time].sqrt(), (1 - kept[time]).sqrt()
            noise = predicted_noise(pipeline.scheduler.config.prediction_type, made, state, a, b)
            clean = (state - b * noise) / a
            state = (
                clean if following is None else kept[following].sqrt() * clean + (1 - kept[following]).sqrt() * noise
            )
        return state[..., :height, :width]

    def differentiable(self) -> DiffPure:
        """Itself, drawn anew."""
        return self


@dataclass(frozen=True)
class StraightThrough:
    """Another channel's outcomes, with gradients as if it did nothing.

    Example:
        >>> images = torch.zeros(1, 3, 2, 2, requires_grad=True)
        >>> torch.autograd.grad(StraightThrough(NoisyUpscale())(images).sum(), images)[0].unique()
        tensor([1.])
    """

    channel: Any

    def __call__(self, images: Tensor) -> Tensor:
        """The channel's outcome (N, C, H, W)."""
        return self.channel(images).detach() + (images - images.detach())

    def differentiable(self) -> StraightThrough:
        """Itself."""
        return self


def extended(images: Tensor, multiple: int) -> Tensor:
    """Images whose sides are multiples, their last row and column repeated.

    Example:
        >>> extended(torch.zeros(1, 3, 9, 16), 8).shape
        torch.Size([1, 3, 16, 16])
    """
    height, width = images.shape[-2:]
    return F.pad(images, (0, -width % multiple, 0, -height % multiple), mode="replicate")


@lru_cache(maxsize=4)
def _loaded(name: str, checkpoint: str | None, device: torch.device, dtype: torch.dtype) -> nn.Module:
    from loraguard.generators import load_generator

    return load_generator(name, checkpoint).to(device, dtype).requires_grad_(False)


@lru_cache(maxsize=2)
def _pipeline(path: str) -> Any:
    from loraguard.generators.diffusion.loading import load_pipeline

    return load_pipeline(path)
