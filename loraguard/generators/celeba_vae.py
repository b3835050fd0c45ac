"""Five variational autoencoders of faces, and the editor that moves one of their latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from .preprocessing import preprocessing
from .published import PublishedGenerator

SHIFT = 2.5
"""How far an edit moves a latent; over the data, each has about standard deviation 1."""

_INNER = 4
"""Side of the feature maps that the convolutions end at."""


class Encoder(nn.Module):
    """From images (N, 3, size, size) in [0, 1] to means and log variances (N, 2 * latent_dim)."""

    def __init__(self, size: int, width: int, hidden: int, latent_dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 4, stride=2, padding=1)
        self.conv2 = nn.Conv2d(width, width, 4, stride=2, padding=1)
        self.conv3 = nn.Conv2d(width, width, 4, stride=2, padding=1)
        self.conv_64 = nn.Conv2d(width, width, 4, stride=2, padding=1) if size == 64 else None
        self.lin1 = nn.Linear(width * _INNER**2, hidden)
        self.lin2 = nn.Linear(hidden, hidden)
        self.mu_logvar_gen = nn.Linear(hidden, 2 * latent_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Encode; the layers in their order."""
        features = images
        for layer in (self.conv1, self.conv2, self.conv3, self.conv_64):
            features = features if layer is None else F.relu(layer(features))
        features = F.relu(self.lin2(F.relu(self.lin1(features.flatten(1)))))
        return self.mu_logvar_gen(features)


class Decoder(nn.Module):
    """From latents (N, latent_dim) to images (N, 3, size, size) in [0, 1]."""

    def __init__(self, size: int, width: int, hidden: int, latent_dim: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(latent_dim, hidden)
        self.lin2 = nn.Linear(hidden, hidden)
        self.lin3 = nn.Linear(hidden, width * _INNER**2)
        self.convT_64 = nn.ConvTranspose2d(width, width, 4, stride=2, padding=1) if size == 64 else None
        self.convT1 = nn.ConvTranspose2d(width, width, 4, stride=2, padding=1)
        self.convT2 = nn.ConvTranspose2d(width, width, 4, stride=2, padding=1)
        self.convT3 = nn.ConvTranspose2d(width, 3, 4, stride=2, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """Decode; the layers in their order."""
        features = latents
        for linear in (self.lin1, self.lin2, self.lin3):
            features = F.relu(linear(features))
        features = features.unflatten(1, (-1, _INNER, _INNER))
        for layer in (self.convT_64, self.convT1, self.convT2):
            features = features if layer is None else F.relu(layer(features))
        return torch.sigmoid(self.convT3(features))


class CelebaVAE(
    PublishedGenerator,
    license="mit",
    paper_url="https://arxiv.org/abs/1804.03599",
    repo_url="https://github.com/YannDubs/disentangling-vae",
    tags=["vae"],
):
    """Variational autoencoders trained on CelebA, as an editor: `D(E(x) + shift)`, E the mean.

    The networks of Burgess et al. (arXiv 1804.03599), of which disentangling-vae publishes five, trained by five
    losses: VAE, betaB, betaH, btcvae and factor. `CelebaVAE.from_checkpoint("btcvae_celeba.pt")` loads any; see
    docs/generators/celeba_vae.md.

    Args:
        width: feature maps of the convolutions.
        hidden: length of the hidden vectors.
        latent_dim: latents.
        size: side of the square images that it takes, 64 or 32.

    Raises:
        ValueError: for another size.

    Example:
        >>> editor = CelebaVAE(width=4, hidden=8)
        >>> edits = editor.conditions(torch.zeros(2, 0))
        >>> edits["latent_3"]["shift"][0].tolist()
        [0.0, 0.0, 0.0, 2.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
        >>> editor(torch.zeros(2, 3, 64, 64), **edits["latent_3"]).shape
        torch.Size([2, 3, 64, 64])
    """

    latent_layer = "latents"
    model_tags: ClassVar[list[str]] = [*PublishedGenerator.model_tags, "vae"]
    small: ClassVar[dict[str, Any]] = {"width": 4, "hidden": 8, "latent_dim": 3}

    def __init__(self, width: int = 32, hidden: int = 256, latent_dim: int = 10, *, size: int = 64) -> None:
        super().__init__()
        if size not in (32, 64):
            raise ValueError(f"size={size!r} must be 32 or 64: the official code has no other networks.")
        self.size, self.size_multiple, self.latent_dim = size, size, latent_dim
        self.encoder = Encoder(size, width, hidden, latent_dim)
        self.decoder = Decoder(size, width, hidden, latent_dim)
        self.latents = nn.Identity()

    def forward(self, images: Tensor, shift: Tensor | None = None) -> Tensor:
        """Edit images.

        Args:
            images: (N, 3, size, size) in [-1, 1].
            shift: added to the latents, (N, latent_dim); nothing by default.

        Returns:
            Images of the same shape and range.
        """
        latents = self.encode(images)
        return self.decode(latents if shift is None else latents + shift.to(latents))

    def encode(self, images: Tensor) -> Tensor:
        """Images (N, 3, size, size) in [-1, 1] to the means of their latents (N, latent_dim)."""
        if images.shape[1:] != (3, self.size, self.size):
            raise ValueError(f"Expected images (N, 3, {self.size}, {self.size}), got {tuple(images.shape)}.")
        return self.latents(self.encoder((images + 1) / 2).view(len(images), self.latent_dim, 2)[:, :, 0])

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (N, latent_dim) to images (N, 3, size, size) in [-1, 1]; those drawn from N(0, 1) are nobody's."""
        return 2 * self.decoder(latents) - 1

    def conditions(self, labels: Tensor) -> dict[str, dict[str, Tensor]]:
        """One edit for each latent, which moves it by 2.5; of labels (N, anything) only the number is read."""
        shifts = SHIFT * torch.eye(self.latent_dim, device=labels.device)
        return {f"latent_{i}": {"shift": shift.expand(len(labels), -1)} for i, shift in enumerate(shifts)}

    def transform(self) -> Callable[[Image.Image], Tensor]:
        """The official preprocessing: the whole photo, resized to a square, which does not keep its shape."""
        return preprocessing((self.size, self.size), interpolation="lanczos")

    @classmethod
    def settings_from(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """`width`, `hidden`, `latent_dim` and `size`."""
        first, last = state.get("encoder.conv1.weight"), state.get("decoder.lin1.weight")
        if first is None or last is None or last.ndim != 2:
            return {}
        return {
            "width": first.shape[0],
            "hidden": last.shape[0],
            "latent_dim": last.shape[1],
            "size": 64 if "encoder.conv_64.weight" in state else 32,
        }
