"""PhotoGuard: latents, or outputs, that are moved to a target (Salman et al., arXiv 2302.06588)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from loraguard.generators.base import Condition

from .ascent import normalized
from .base import check_settings
from .iterative import IterativeDefense
from .latent_terms import Toward, TowardByNorm, find_editor, latents_in, target_latents, target_picture, zeros_for
from .terms import Term

ZERO = "zero"


class Falling(IterativeDefense):
    """Steps whose length falls linearly to a hundredth, from anywhere in the ball, as PhotoGuard's code has them."""

    first_step = 1 / 3
    reach = 1.0

    def step_length(self, step: int) -> float:
        """`a (1 - 0.99 k / K)` for step k of K, where a is `step_size` or the default."""
        return super().step_length(step) * (1 - 0.99 * step / self.steps)


@dataclass(frozen=True)
class PhotoGuard(Falling):
    """The encoder attack: perturb each photo to minimise `|E(x + d) - z|`, z zero or the latents of a target.

    White-box, per image. Checked in the official code: the L2 norm of the mean of the encoder's distribution, sign
    steps of 0.02 that fall linearly to a hundredth, a uniform start, 1,000 steps at L-infinity 0.06 on [-1, 1]. Here,
    latents are as the denoiser sees them, so zero is what it takes for no picture at all.

    Args:
        eps: the budget, L-infinity, in units of images in [-1, 1]; the text "16/255" is 16 levels of 255.
        steps: sign steps.
        step_size: of the first step; a third of `eps` by default.
        target: "zero", None for the texture of Mist, or the path of a picture.
        layer: the latents, by a layer's name in the generator; by default its `latent_layer`.
        restarts: attacks from as many starts.
        eot: draws of each step's gradient.

    Raises:
        ValueError: on a call, for a generator whose latents are not known.

    Example:
        >>> from loraguard.generators import TAEF2
        >>> network, photos = TAEF2(**TAEF2.small), torch.rand(1, 3, 16, 16)
        >>> defended = PhotoGuard("8/255", steps=2)(network, photos, {})
        >>> round((defended - photos).abs().max().item(), 3)
        0.063
    """

    eps: float = 0.05
    steps: int = 100
    step_size: float | None = None
    target: str | None = ZERO
    layer: str | None = None
    restarts: int = 1
    eot: int = 1

    def terms(self, generator: nn.Module, images: Tensor, condition: Condition, clean: Tensor | None) -> Sequence[Term]:
        """The distance to the target, which is to shrink."""
        latents = latents_in(generator, self.layer)
        zero = self.target == ZERO
        goal = zeros_for(latents, images, condition) if zero else target_latents(
            latents, images, condition, self.target
        )  # fmt: skip
        return [Toward(latents, condition, goal)]


@dataclass(frozen=True)
class PhotoGuardDiffusion(IterativeDefense):
    """The diffusion attack: perturb each photo to minimise `|G(x + d, c) - target|` through the whole editor.

    White-box, per image, for any generator. Checked in the official code: a zero image as target (grey, on [-1, 1]),
    four steps of the editor, gradients averaged over ten draws of its noise; L-infinity 0.1 with steps of 0.006, or L2,
    which is :class:`PhotoGuardL2`. Memory grows with the editor's steps unless it checkpoints activations.

    Args:
        eps: the budget, L-infinity, in units of images in [-1, 1]; the text "16/255" is 16 levels of 255.
        steps: sign steps.
        step_size: of one step; 0.06 * `eps` by default.
        target: "zero", None for the texture of Mist, or the path of a picture.
        restarts: attacks from as many starts.
        eot: draws of the editor's noise in each step.

    Example:
        >>> from loraguard.generators import DemoDiffusion
        >>> editor, photos = DemoDiffusion(**DemoDiffusion.small), torch.zeros(1, 3, 16, 16)
        >>> PhotoGuardDiffusion(steps=2, eot=2)(editor, photos, {"labels": torch.zeros(1, 5)}).shape
        torch.Size([1, 3, 16, 16])
    """

    first_step = 0.06

    eps: float = 0.05
    steps: int = 200
    step_size: float | None = None
    target: str | None = ZERO
    restarts: int = 1
    eot: int = 10

    def terms(self, generator: nn.Module, images: Tensor, condition: Condition, clean: Tensor | None) -> Sequence[Term]:
        """The distance to the target, which is to shrink, under noise drawn anew."""
        network = with_drawn_noise(generator)
        with torch.no_grad():
            goal = torch.zeros_like(generator(images, **condition) if clean is None else clean)
        if self.target != ZERO:
            goal = target_picture(self.target, goal).expand_as(goal)
        return [Toward(network, condition, goal)]


@dataclass(frozen=True)
class PhotoGuardL2(PhotoGuardDiffusion):
    """The diffusion attack within an L2 ball: each step goes along the gradient at length 1, from the photo itself.

    `x <- clip(x_0 + P(x - a g / |g| - x_0))`, where g is the mean over draws of the gradient of `|G(x, c) - target|`
    and P shortens what is longer than `eps`. White-box, per image. The setting of the official code: L2 16 on photos of
    512 pixels in [-1, 1], a root mean square of 0.018; 200 steps of 1; ten draws. In proportion to the sides of a
    photo that is 2 at 64 pixels.

    Args:
        eps: the budget, the L2 norm over all values of a photo's change, in units of images in [-1, 1].
        steps: normalised gradient steps.
        step_size: of one step, in L2; a sixteenth of `eps` by default.
        target, restarts, eot: as :class:`PhotoGuardDiffusion` has them.

    Raises:
        ValueError: for a budget that is not positive and finite.

    Example:
        >>> photo = torch.zeros(1, 3, 4, 4)
        >>> moved = PhotoGuardL2(eps=1.0, steps=40, eot=1)(nn.Conv2d(3, 3, 1), photo, {})
        >>> round(moved.norm().item(), 3) <= 1.0
        True
    """

    budget: ClassVar[str | None] = "L2 over all values of a photo in [-1, 1]; the paper's is 16 at 512 pixels"
    first_step = 1 / 16
    reach = 0.0

    eps: float = 16.0

    def __post_init__(self) -> None:
        if not 0 < self.eps < math.inf:
            raise ValueError(f"eps={self.eps!r} must be positive: the L2 norm of a photo's change, 16 at 512 pixels.")
        check_settings(1.0, self.steps, self.step_size, self.restarts)

    def terms(self, generator: nn.Module, images: Tensor, condition: Condition, clean: Tensor | None) -> Sequence[Term]:
        """The same distance, not squared: what draws count for in the mean of their gradients depends on that."""
        return [
            TowardByNorm(one.network, condition, one.reference)
            for one in super().terms(generator, images, condition, clean)
        ]

    def movement(self, perturbed: Tensor, images: Tensor) -> Tensor:
        """The L2 norm of each photo's change: (N,)."""
        return (perturbed - images).flatten(1).norm(dim=1)

    def _attack(self, terms: Sequence[Term], images: Tensor) -> Tensor:
        objective, point = self.objective(terms), images.detach()
        for step in range(self.steps):
            point = point.detach().requires_grad_()
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(objective(point), point)
            change = point.detach() + self.step_length(step) * normalized(gradient) - images
            point = (images + torch.renorm(change, p=2, dim=0, maxnorm=self.eps)).clamp(-1, 1)
        return point.detach()


def with_drawn_noise(generator: nn.Module) -> Callable[..., Tensor]:
    """The generator with other noise in each call, where it is an editor whose noise has seeds; itself otherwise."""
    if find_editor(generator) is None:
        return generator

    def edited(images: Tensor, **condition: Any) -> Tensor:
        return generator(images, **{**condition, "seeds": torch.randint(2**31, (len(images),))})

    return edited
