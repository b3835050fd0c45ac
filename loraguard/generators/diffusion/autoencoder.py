"""Any autoencoder of diffusers as a generator that changes nothing: what every latent editor begins and ends with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from loraguard.channels.base import clip
from loraguard.data import default_transform

from .base import LatentNetwork
from .loading import load_autoencoder

AUTOENCODER_PARTS = {
    "encoder": ("vae.encoder", "vae.quant_conv"),
    "decoder": ("vae.decoder", "vae.post_quant_conv"),
}


class Autoencoding(LatentNetwork):
    """What editors share that have an autoencoder of diffusers, under the name that pipelines have for it, `vae`.

    Args:
        vae: the autoencoder.
        size: side of the square images that `transform` makes.
        checkpointing: compute activations a second time in the backward pass instead of keeping them.
    """

    attributes: tuple[str, ...] = ()
    components: tuple[str, ...] = ("vae",)
    """Names of the parts that diffusers saves each on its own."""

    def __init__(self, vae: nn.Module, size: int, checkpointing: bool) -> None:
        super().__init__()
        self.vae, self.size, self.checkpointing = vae.eval(), size, checkpointing
        settings: Any = vae.config
        self.scale = getattr(settings, "scaling_factor", None) or 1.0
        self.shift = getattr(settings, "shift_factor", None) or 0.0
        self.size_multiple = int(getattr(vae, "spatial_compression_ratio", 0) or 2 ** (len(_widths(settings)) - 1))

    def encode(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1] to scaled latents; of a distribution, the mean.

        Raises:
            ValueError: for sides that are no multiples of the autoencoder's compression.
        """
        height, width = images.shape[-2:]
        if height % self.size_multiple or width % self.size_multiple:
            raise ValueError(f"Expected height and width in multiples of {self.size_multiple}, got {height}x{width}.")
        return self.latents((self.kept_low(self._encoded, images) - self.shift) * self.scale)

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents to images (N, 3, H, W), clipped to [-1, 1]."""
        return clip(self.kept_low(self._decoded, latents / self.scale + self.shift))

    def _encoded(self, images: Tensor) -> Tensor:
        vae: Any = self.vae
        made = vae.encode(images)
        if hasattr(made, "latent_dist"):
            return made.latent_dist.mode()
        return made.latents if hasattr(made, "latents") else made.latent

    def _decoded(self, latents: Tensor) -> Tensor:
        vae: Any = self.vae
        return vae.decode(latents, return_dict=False)[0]

    def kept_low(self, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """The function of the inputs; with `checkpointing`, its activations are not kept."""
        return checkpoint(function, *inputs, use_reentrant=False) if self.checkpointing else function(*inputs)

    def transform(self) -> Callable[[Image.Image], Tensor]:
        """From a photo to its middle square, (3, size, size) in [-1, 1]."""
        return default_transform(self.size)


def _widths(settings: Any) -> Any:
    return getattr(settings, "block_out_channels", None) or getattr(settings, "encoder_block_out_channels", (0,))


class LatentAutoencoder(Autoencoding):
    """The round trip `D(E(x))` of an autoencoder of diffusers: AutoencoderKL, AutoencoderTiny, AutoencoderDC, ...

    Published work finds the weak point of latent editors here (arXiv 2311.12832).

    Args:
        vae: the autoencoder.
        size: side of the square images that `transform` makes; the network takes any multiple of its compression.
        checkpointing: compute activations a second time in the backward pass instead of keeping them: less memory, a
            third more time.

    Example:
        >>> import torch
        >>> from diffusers import AutoencoderKL
        >>> network = LatentAutoencoder(AutoencoderKL(block_out_channels=(4,), norm_num_groups=2), size=16)
        >>> network(torch.zeros(1, 3, 16, 16)).shape
        torch.Size([1, 3, 16, 16])
    """

    parts: ClassVar[Mapping[str, tuple[str, ...]]] = AUTOENCODER_PARTS
    name_or_path: str

    def __init__(self, vae: nn.Module, *, size: int = 512, checkpointing: bool = False) -> None:
        super().__init__(vae, size, checkpointing)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1] there and back."""
        return self.decode(self.encode(images))

    @classmethod
    def from_pretrained(cls, source: str | Path, **settings: Any) -> LatentAutoencoder:
        """From a local folder or an id of the Hub: an autoencoder's, or a pipeline's; safetensors alone.

        Raises:
            ValueError: if there is no autoencoder, or its weights are no safetensors.
            OSError: if it cannot be had.
        """
        network = cls(load_autoencoder(source), **settings).eval()
        network.name_or_path = str(source)
        return network
