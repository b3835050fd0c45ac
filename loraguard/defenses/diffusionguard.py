"""DiffusionGuard: the first step of inpainting is made to find large noise (Choi et al., arXiv 2410.05694)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loraguard.generators.base import Condition

from .iterative import IterativeDefense
from .latent_terms import editor_in, latents_in, zeros_for
from .terms import Term

_WIDEST = 8
"""The mask is widened by up to a `_WIDEST`-th of the photo's side on each side."""


@dataclass(frozen=True)
class DiffusionGuard(IterativeDefense):
    """Perturb each photo to maximise `|eps_theta(z_T, T | E(x + d))|^2`, what the denoiser gives first.

    White-box, per image, for editors whose denoiser sees the photo: inpainting, and InstructPix2Pix's kind. z_T is
    noise, drawn anew in each step; a denoiser that predicts velocities gives one of these. For inpainting, what the
    mask leaves of the photo is drawn anew, too: its contour is moved inwards by a random width, so that the protection
    holds for masks that are not known. Checked in the official code: 16/255, steps of 1/255, 800 steps.

    Args:
        eps: the budget, L-infinity, in units of images in [-1, 1]; the text "16/255" is 16 levels of 255.
        steps: sign steps.
        step_size: of one step; `eps` / 16 by default.
        layer: the latents, by a layer's name in the editor; by default its `latent_layer`.
        restarts: attacks from as many starts.
        eot: draws of noise and mask in each step.

    Raises:
        ValueError: on a call, for a generator that is no latent-diffusion editor, or whose denoiser does not see the
            photo.

    Example:
        >>> from loraguard.generators import DemoDiffusion
        >>> editor, photos = DemoDiffusion(**DemoDiffusion.small), torch.zeros(1, 3, 16, 16)
        >>> DiffusionGuard(steps=2)(editor, photos, {"labels": torch.zeros(1, 5)}).shape
        torch.Size([1, 3, 16, 16])
    """

    first_step = 1 / 16
    reach = 1.0

    eps: float = 0.05
    steps: int = 200
    step_size: float | None = None
    layer: str | None = None
    restarts: int = 1
    eot: int = 1

    def terms(self, generator: nn.Module, images: Tensor, condition: Condition, clean: Tensor | None) -> Sequence[Term]:
        """The size of the noise that is found at the earliest step."""
        network = first_noise(generator, self.layer)
        with torch.enable_grad():
            point = images.detach().requires_grad_()
            found = network(point, **condition)
            if not found.requires_grad or torch.autograd.grad(found.sum(), point, allow_unused=True)[0] is None:
                raise ValueError(
                    f"The denoiser of {type(editor_in(generator)).__name__} does not see the photo when it begins, so "
                    "there is nothing for DiffusionGuard to move; use photoguard, mist or sds."
                )
        return [Term(network, condition, zeros_for(latents_in(generator, self.layer), images, condition))]


def first_noise(generator: nn.Module, layer: str | None) -> Callable[..., Tensor]:
    """From images and a condition to the noise (N, c, h, w) that the denoiser finds in noise, given the photo."""
    editor, latents = editor_in(generator), latents_in(generator, layer)
    mask_for: Any = getattr(editor, "mask_for", None)

    def found(images: Tensor, **condition: Any) -> Tensor:
        if mask_for is not None:
            mask = condition["mask"] if condition.get("mask") is not None else mask_for(images)
            condition = {**condition, "mask": widened(mask)}
        photo = latents(images, **condition)
        return editor.first_output(torch.randn_like(photo), photo, **condition)

    return found


def widened(mask: Tensor) -> Tensor:
    """A mask (N, 1, H, W) in {0, 1} that covers a random width more, the same for all.

    Example:
        >>> mask = torch.zeros(1, 1, 16, 16)
        >>> mask[..., 8:, :] = 1
        >>> bool((widened(mask) >= mask).all())
        True
    """
    most = max(1, min(mask.shape[-2:]) // _WIDEST)
    radius = int(torch.randint(most + 1, ()))
    return F.max_pool2d(mask, 2 * radius + 1, stride=1, padding=radius)
