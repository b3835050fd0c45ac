"""What protections and audits ask of an editor that works on latents.

`G(x, c) = D(denoise(a E(x) + b n, c))`: E and D are an autoencoder, n is Gaussian noise, the same for every version of
a photo, and a and b are those of the noise schedule at the time that the edit begins at.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class LatentNetwork(nn.Module):
    """Base of networks from images to images that have latents.

    Latents are scaled, as a denoiser sees them. They go through the layer `latents`, whose output
    :func:`~loraguard.generators.up_to` gives whatever the network is wrapped in.

    Attributes:
        latent_layer: "latents".
        parts: by name, the beginnings of the names of a part's layers; see :func:`~loraguard.generators.layers_in`.
    """

    latent_layer = "latents"
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {"encoder": ("encoder",), "decoder": ("decoder",)}

    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.Identity()

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1] to scaled latents (N, c, h, w): the mean, where the encoder gives more."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (N, c, h, w) to images (N, 3, H, W) in [-1, 1]."""


class LatentDiffusion(LatentNetwork):
    """Base of latent-diffusion editors: latents, and a denoiser with its noise schedule.

    Attributes:
        num_timesteps: how many times the denoiser knows; they are integers from 0, where there is least noise.
        seed: of the noise of photos for which no seeds are given.
    """

    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {**LatentNetwork.parts, "denoiser": ("denoiser",)}
    num_timesteps: int = 1000
    seed: int = 0

    @abstractmethod
    def levels(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """How much of the latents, and how much noise, there is at times (N,): a and b, each (N, 1, 1, 1)."""

    @abstractmethod
    def predict_noise(self, noised: Tensor, times: Tensor, photo: Tensor, **condition: Any) -> Tensor:
        """The noise that the denoiser finds.

        Args:
            noised: `a z + b n`, (N, c, h, w).
            times: (N,), integers below `num_timesteps`.
            photo: latents of the photo (N, c, h, w), for editors whose denoiser sees them.
            condition: the edit, as it is passed to `forward`.
        """

    def first_output(self, noise: Tensor, photo: Tensor, **condition: Any) -> Tensor:
        """What the denoiser gives for noise (N, c, h, w) at the last time: noise, or what else it predicts."""
        last = torch.full((len(photo),), self.num_timesteps - 1, device=photo.device)
        return self.predict_noise(noise, last, photo, **condition)

    def streams(self, count: int, seeds: Tensor | None = None) -> list[torch.Generator]:
        """Random streams on the CPU: each photo's, from its seed (count,), or from the editor's for all of them."""
        chosen = [self.seed] * count if seeds is None else [int(seed) for seed in seeds.tolist()]
        return [torch.Generator().manual_seed(seed) for seed in chosen]

    def noise_like(self, latents: Tensor, seeds: Tensor | None = None) -> Tensor:
        """The noise (N, c, h, w) of photos: the first draw of their :meth:`streams`.

        It depends on the seed and the shape alone: not on the device, the batch, or torch's global generator.

        Example:
            >>> from loraguard.generators import DemoDiffusion
            >>> editor, latents = DemoDiffusion(**DemoDiffusion.small), torch.zeros(3, 4, 2, 2)
            >>> noise = editor.noise_like(latents, torch.tensor([7, 8, 7]))
            >>> bool((noise[0] == noise[2]).all()), bool((noise[0] == noise[1]).all())
            (True, False)
        """
        return drawn(self.streams(len(latents), seeds), latents)


def drawn(streams: list[torch.Generator], latents: Tensor) -> Tensor:
    """Standard normal noise of the shape of latents (N, ...), a row from each stream."""
    rows = [torch.randn(latents.shape[1:], generator=stream) for stream in streams]
    return torch.stack(rows).to(latents)
