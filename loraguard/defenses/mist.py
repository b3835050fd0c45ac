"""AdvDM, Mist and the target texture: latents that the denoiser mistakes, or that look like text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from loraguard.generators.base import Condition

from .ascent import Objective
from .latent_terms import Toward, latents_in, noise_error, target_latents, zeros_for
from .photoguard import Falling
from .terms import Term, together

DIRECTIONS = ("+", "-")


def check_direction(direction: str) -> None:
    """Refuse a direction that is neither up nor down."""
    if direction not in DIRECTIONS:
        raise ValueError(f"direction={direction!r} must be '+', which makes the denoiser's error larger, or '-'.")


class Sixteenths(Falling):
    """Steps of a sixteenth of the budget at first: 1/255 at 16/255."""

    first_step = 1 / 16


@dataclass(frozen=True)
class AdvDM(Sixteenths):
    """Perturb each photo to maximise the denoiser's error, `E over t, n of |eps_theta(z_t, t) - n|^2`, z = E(x + d).

    White-box, per image; "-" minimises it. AdvDM is Liang et al., arXiv 2302.04578; checked in Diff-Protect
    (arXiv 2311.12832): one draw of time and noise a step, 8 or 16/255, steps of 1/255 that fall to a hundredth, a
    uniform start, 100 steps.

    Args:
        eps: the budget, L-infinity, in units of images in [-1, 1]; the text "16/255" is 16 levels of 255.
        steps: sign steps.
        step_size: of the first step; `eps` / 16 by default.
        direction: "+" or "-".
        layer: the latents, by a layer's name in the editor; by default its `latent_layer`.
        restarts: attacks from as many starts.
        eot: draws of time and noise in each step.

    Raises:
        ValueError: on a call, for a generator that is no latent-diffusion editor.

    Example:
        >>> import torch
        >>> from loraguard.generators import DemoDiffusion
        >>> editor, photos = DemoDiffusion(**DemoDiffusion.small), torch.zeros(1, 3, 16, 16)
        >>> AdvDM("16/255", steps=2)(editor, photos, {"labels": torch.zeros(1, 5)}).shape
        torch.Size([1, 3, 16, 16])
    """

    eps: float = 0.05
    steps: int = 100
    step_size: float | None = None
    direction: str = "+"
    layer: str | None = None
    restarts: int = 1
    eot: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_direction(self.direction)

    def terms(self, generator: nn.Module, images: Tensor, condition: Condition, clean: Tensor | None) -> Sequence[Term]:
        """The denoiser's error, or how far it is from none."""
        error = noise_error(generator, self.layer)
        kind = Term if self.direction == "+" else Toward
        return [kind(error, condition, zeros_for(latents_in(generator, self.layer), images, condition))]


@dataclass(frozen=True)
class TextureOnly(Sixteenths):
    """Perturb each photo to minimise `|E(x + d) - E(target)|^2`, the target a texture of text.

    White-box, per image; what is left of Mist without the denoiser. Sizes and steps are AdvDM's.

    Args:
        target: the path of a picture; a texture drawn here by default.
        eps, steps, step_size, layer, restarts, eot: as :class:`AdvDM` has them.

    Example:
        >>> import torch
        >>> from loraguard.generators import TAEF2
        >>> TextureOnly(steps=2)(TAEF2(**TAEF2.small), torch.zeros(1, 3, 16, 16), {}).shape
        torch.Size([1, 3, 16, 16])
    """

    eps: float = 0.05
    steps: int = 100
    step_size: float | None = None
    target: str | None = None
    layer: str | None = None
    restarts: int = 1
    eot: int = 1

    def terms(self, generator: nn.Module, images: Tensor, condition: Condition, clean: Tensor | None) -> Sequence[Term]:
        """The distance to the target's latents, which is to shrink."""
        latents = latents_in(generator, self.layer)
        return [Toward(latents, condition, target_latents(latents, images, condition, self.target))]


@dataclass(frozen=True)
class Mist(TextureOnly):
    """Perturb each photo to minimise `|E(x + d) - E(target)|^2 - rate * error`, the error of AdvDM as a mean.

    White-box, per image (Liang & Wu, arXiv 2305.12683; checked): 16/255, 100 steps of 1/255, rate 1e4. The first
    distance is a sum over the latents' values, the second a mean, as in the official code.

    Args:
        rate: of the denoiser's error.
        eps, steps, step_size, target, layer, restarts, eot: as :class:`TextureOnly` has them.

    Raises:
        ValueError: on a call, for a generator that is no latent-diffusion editor.
    """

    rate: float = 1e4

    def terms(self, generator: nn.Module, images: Tensor, condition: Condition, clean: Tensor | None) -> Sequence[Term]:
        """The distance to the target's latents, and the denoiser's error."""
        error = noise_error(generator, self.layer, self.rate)
        zeros = zeros_for(latents_in(generator, self.layer), images, condition)
        return [*super().terms(generator, images, condition, clean), Term(error, condition, zeros)]

    def objective(self, terms: Sequence[Term]) -> Objective:
        """Both in each step."""
        return together(terms)
