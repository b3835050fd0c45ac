"""The embedded default of latent-diffusion editors: a small one, trained on drawn faces."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any, ClassVar

import torch
from PIL import Image
from safetensors.torch import load
from torch import Tensor

from loraguard.data import default_transform
from loraguard.data.demo_faces import ATTRIBUTES
from loraguard.generators.demo import DemoEditor
from loraguard.generators.published import PublishedGenerator

from .base import LatentDiffusion
from .demo_layers import Denoiser, decoder_layers, encoder_layers


class DemoDiffusion(LatentDiffusion, PublishedGenerator, license="apache-2.0"):
    """Edits hair colour, glasses and smile of drawn faces (:class:`~loraguard.data.DemoFaces`) by latent diffusion.

    What InstructPix2Pix is (arXiv 2211.09800), smaller, with labels for its text: the denoiser starts from noise and
    sees the photo's latents beside it. It is trained by flow matching (arXiv 2210.02747): `z_s = (1 - s) z + s n` for s
    in [0, 1], and it predicts the velocity `n - z`. An edit takes `steps` Euler steps from s = 1 to 0.

    Args:
        channels: of latents, which have a quarter of the image's sides.
        width: feature maps of the autoencoder at half of the image's sides; twice as many inside.
        denoiser_width: feature maps of the denoiser at the latents' size; twice as many at half of it.
        blocks: residual blocks of the denoiser at half the latents' size.
        num_labels: labels, (N, num_labels) in {0, 1}, in the order of `DemoFaces.attributes`.
        steps: of an edit.

    Raises:
        ValueError: for no step.

    Example:
        >>> from loraguard.data import DemoFaces
        >>> editor = DemoDiffusion.pretrained()
        >>> face = DemoFaces(split="test")[0]
        >>> edits = editor.conditions(face["labels"][None])
        >>> editor(face["image"][None], **edits["Eyeglasses"]).shape
        torch.Size([1, 3, 64, 64])
    """

    attributes = ATTRIBUTES
    latent_layer = "latents"
    size_multiple = 8
    shift: Tensor
    scale: Tensor
    small: ClassVar[dict[str, Any]] = {"width": 8, "denoiser_width": 8, "blocks": 1, "steps": 2}
    conditions = staticmethod(DemoEditor.conditions)
    combined_conditions = staticmethod(DemoEditor.combined_conditions)

    def __init__(
        self,
        channels: int = 4,
        width: int = 32,
        denoiser_width: int = 48,
        blocks: int = 6,
        num_labels: int = len(ATTRIBUTES),
        *,
        steps: int = 6,
    ) -> None:
        super().__init__()
        if steps < 1:
            raise ValueError(f"steps={steps!r} must be at least 1: the denoiser's steps of an edit.")
        self.num_labels, self.steps = num_labels, steps
        self.encoder, self.decoder = encoder_layers(channels, width), decoder_layers(channels, width)
        self.denoiser = Denoiser(channels, denoiser_width, blocks, num_labels)
        self.register_buffer("shift", torch.zeros(1, channels, 1, 1))
        self.register_buffer("scale", torch.ones(1, channels, 1, 1))

    def forward(self, images: Tensor, labels: Tensor, seeds: Tensor | None = None) -> Tensor:
        """Edit images.

        Args:
            images: (N, 3, H, W) in [-1, 1], H and W multiples of 8.
            labels: what the faces are to look like, (N, num_labels) in {0, 1}.
            seeds: of the noise of each photo, (N,) integers; one noise for all photos by default.

        Returns:
            Images of the same shape and range.
        """
        if labels.shape != (len(images), self.num_labels):
            raise ValueError(
                f"Expected labels {(len(images), self.num_labels)}, a row for each image, got {tuple(labels.shape)}."
            )
        photo = self.encode(images)
        latents = self.noise_like(photo, seeds)
        for step in range(self.steps):
            times = latents.new_full((len(latents),), 1 - step / self.steps)
            latents = latents - self.denoiser(latents, times, photo, labels) / self.steps
        return self.decode(latents)

    def encode(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1] to latents (N, c, H / 4, W / 4) of mean 0 and standard deviation 1."""
        return self.latents((self.encoder(images) - self.shift) * self.scale)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (N, c, h, w) to images (N, 3, 4 h, 4 w) in [-1, 1]."""
        return self.decoder(latents / self.scale + self.shift)

    def levels(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """`1 - s` and `s` for s = (t + 1) / `num_timesteps`, each (N, 1, 1, 1)."""
        noise = self._continuous(times)[:, None, None, None]
        return 1 - noise, noise

    def predict_noise(self, noised: Tensor, times: Tensor, photo: Tensor, **condition: Any) -> Tensor:
        """`z_s + (1 - s) v`, which is the noise where v is the true velocity."""
        clean, _ = self.levels(times)
        velocity = self.denoiser(noised, self._continuous(times), photo, condition["labels"])
        return noised + clean.to(noised) * velocity

    def first_output(self, noise: Tensor, photo: Tensor, **condition: Any) -> Tensor:
        """The velocity at s = 1, where the noise itself is known and nothing is left to predict."""
        return self.denoiser(noise, noise.new_ones(len(noise)), photo, condition["labels"])

    def _continuous(self, times: Tensor) -> Tensor:
        return (times.float() + 1) / self.num_timesteps

    def transform(self) -> Callable[[Image.Image], Tensor]:
        """From a photo to what it was trained on: the middle square at 64 pixels, (3, 64, 64) in [-1, 1]."""
        return default_transform(64)

    @classmethod
    def settings_from(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """`channels`, `width`, `denoiser_width`, `blocks` and `num_labels`."""
        first, inner, embed = (state.get(f"{n}.weight") for n in ("encoder.1", "denoiser.conv_in", "denoiser.embed.0"))
        if first is None or inner is None or embed is None:
            return {}
        blocks = {name.split(".")[2] for name in state if name.startswith("denoiser.middle.")}
        return {
            "channels": inner.shape[1] // 2,
            "width": len(first),
            "denoiser_width": len(inner),
            "blocks": len(blocks),
            "num_labels": embed.shape[1] - 32,
        }

    @classmethod
    def pretrained(cls) -> DemoDiffusion:
        """The network that ships with the package, in evaluation mode; `examples/train_demo_diffusion.py` made it."""
        editor = cls()
        weights = files("loraguard.generators").joinpath("diffusion/demo_weights/model.safetensors").read_bytes()
        editor.load_state_dict(load(weights))
        return editor.eval()
