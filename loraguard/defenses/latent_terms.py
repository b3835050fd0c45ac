"""What protections against latent editors have in common: latents, the denoiser's error, and a target to move to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from loraguard.generators.base import Condition
from loraguard.generators.diffusion.base import LatentDiffusion
from loraguard.generators.layers import latent_of, up_to
from loraguard.pixels import from_picture

from .terms import Term

_LETTERS = 12
"""Height of the texture's letters in pixels, of an image of 64."""


@dataclass(frozen=True)
class Toward(Term):
    """The same distance, which is to shrink: `-|F(C(x), c) - r|^2`.

    Example:
        >>> Toward(nn.Identity(), {}, reference=torch.zeros(1, 3, 2, 2))(torch.ones(1, 3, 2, 2)).tolist()
        [-12.0]
    """

    def _once(self, images: Tensor) -> Tensor:
        return -super()._once(images)


@dataclass(frozen=True)
class TowardByNorm(Term):
    """The distance itself, not squared, which is to shrink: `-|F(C(x), c) - r|`.

    Example:
        >>> TowardByNorm(nn.Identity(), {}, reference=torch.zeros(1, 3, 3, 3))(torch.ones(1, 3, 3, 3)).tolist()
        [-5.196...]
    """

    def _once(self, images: Tensor) -> Tensor:
        squared = super()._once(images)
        return -squared.clamp_min(torch.finfo(squared.dtype).tiny).sqrt()


def latents_in(generator: nn.Module, layer: str | None = None) -> Callable[..., Tensor]:
    """The generator as far as its latents: of a layer by name, or of its `latent_layer`."""
    return up_to(generator, layer or latent_of(generator))


def find_editor(generator: nn.Module) -> LatentDiffusion | None:
    """The latent-diffusion editor that a generator is, whatever it is wrapped in; None where it is none."""
    return next((module for module in generator.modules() if isinstance(module, LatentDiffusion)), None)


def editor_in(generator: nn.Module) -> LatentDiffusion:
    """The latent-diffusion editor that a generator is, whatever it is wrapped in.

    Raises:
        ValueError: if it is none.
    """
    found = find_editor(generator)
    if found is None:
        raise ValueError(
            f"{type(generator).__name__} is no latent-diffusion editor: it has no denoiser, which this defense asks. "
            "Use one against latents or outputs, such as photoguard, texture, leat or disrupting."
        )
    return found


def draw_noised(editor: LatentDiffusion, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Latents noised to times drawn uniformly, one for each: `a z + b n`, the times (N,) and the noise n."""
    times = torch.randint(editor.num_timesteps, (len(latents),), device=latents.device)
    noise = torch.randn_like(latents)
    kept, added = editor.levels(times)
    return kept.to(latents) * latents + added.to(latents) * noise, times, noise


def noise_error(generator: nn.Module, layer: str | None = None, weight: float | None = None) -> Callable[..., Tensor]:
    """From images and a condition to what the denoiser mistakes, `eps_theta(z_t, t) - n` (N, c, h, w), one draw a call.

    Args:
        generator: an editor, wrapped or not.
        layer: of the latents.
        weight: of the mean of squares; None leaves it their sum.
    """
    editor, latents = editor_in(generator), latents_in(generator, layer)

    def error(images: Tensor, **condition: Any) -> Tensor:
        z = latents(images, **condition)
        noised, times, noise = draw_noised(editor, z)
        mistaken = editor.predict_noise(noised, times, z, **condition) - noise
        return mistaken if weight is None else mistaken * (weight / z[0].numel()) ** 0.5

    return error


def zeros_for(network: Callable[..., Tensor], images: Tensor, condition: Condition) -> Tensor:
    """Zeros of the shape that a network gives."""
    with torch.no_grad():
        return torch.zeros_like(network(images, **condition))


def target_latents(latents: Callable[..., Tensor], images: Tensor, condition: Condition, target: str | None) -> Tensor:
    """The latents of a target picture, (N, ...): of a file, or of :func:`texture`."""
    picture = target_picture(target, images)
    with torch.no_grad():
        return latents(picture.expand_as(images), **condition)


def target_picture(target: str | None, images: Tensor) -> Tensor:
    """A target (1, 3, H, W) in [-1, 1] of the images' sides: the picture in a file, or the texture.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    height, width = images.shape[-2:]
    if target is None:
        return texture(height, width).to(images)
    if not Path(target).expanduser().is_file():
        raise FileNotFoundError(f"There is no picture {target} to move latents to.")
    picture = Image.open(Path(target).expanduser()).convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    return from_picture(picture)[None].to(images)


def texture(height: int, width: int) -> Tensor:
    """A texture of text, black on white and white on black in turns: (1, 3, height, width) in [-1, 1].

    The papers use one of their own making of this kind, with high contrast everywhere.

    Example:
        >>> texture(64, 64).std() > 0.7
        tensor(True)
    """
    letters = max(8, _LETTERS * min(height, width) // 64)
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(letters)
    for row, top in enumerate(range(0, height, letters)):
        dark = row % 2 == 1
        draw.rectangle((0, top, width, top + letters), fill="black" if dark else "white")
        words = "PROTECTED " * (1 + width // letters)
        draw.text((-row * letters // 2, top - letters // 5), words, fill="white" if dark else "black", font=font)
    return from_picture(picture)[None]
