"""Auto-PGD: projected gradient ascent that chooses its own step sizes (Croce & Hein, arXiv 2003.01690)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from loraguard.generators.base import Condition

from .ascent import ball
from .base import Defense, check_budget, jitter
from .terms import away_from
from .worst import Distance, keep_worst

CHECKPOINTS = (22, 41, 57, 70, 80, 87, 93, 99)
"""In percent of the steps, where step sizes are reconsidered (section 3.2: periods shrink by 3 down to 6 percent)."""
MOMENTUM = 0.75
"""How much of a step is the gradient's; the rest repeats the step before."""


@dataclass(frozen=True)
class APGD(Defense):
    """Perturb each photo on its own to maximise `MSE(G(x + d, c), G(x, c))`, without a step size to tune.

    White-box, per image. Steps along the gradient's sign begin at `2 * eps`, carry momentum, and are halved, image by
    image, where a checkpoint finds the objective stalling; the image then goes on from the best point it has seen
    (arXiv 2003.01690, algorithm 1, with the output distance as objective). It starts at a uniform draw from the ball,
    as the objective's gradient at the photo itself is zero.

    Args:
        eps: the budget, L-infinity, in units of images in [-1, 1] (0.05 is 6.375/255).
        steps: gradient steps; 100 in the paper.
        restarts: attacks from as many starts, of which the worst for the generator is kept, image by image.
        rho: the share of steps in a period that must raise the objective for its step size to last.

    Raises:
        ValueError: for settings outside their range.

    Example:
        >>> generator = nn.Conv2d(3, 3, 3, padding=1)
        >>> photos = torch.rand(2, 3, 16, 16) * 2 - 1
        >>> defended = APGD(eps=0.05, steps=10)(generator, photos, {})
        >>> bool(((defended - photos).abs() <= 0.05 + 1e-6).all()), generator.weight.grad is None
        (True, True)
    """

    eps: float = 0.05
    steps: int = 100
    restarts: int = 1
    rho: float = 0.75

    def __post_init__(self) -> None:
        check_budget(self.eps)
        if self.steps < 1 or self.restarts < 1 or not 0 <= self.rho <= 1:
            raise ValueError(
                f"Expected steps >= 1, restarts >= 1 and rho in [0, 1], got steps={self.steps}, "
                f"restarts={self.restarts}, rho={self.rho}."
            )

    def perturb(self, generator: nn.Module, images: Tensor, condition: Condition, clean: Tensor | None) -> Tensor:
        """The worst of all restarts; see :class:`~loraguard.defenses.base.Defense`."""
        distance = away_from(generator, images, condition, clean)

        def attack() -> Tensor:
            start = jitter(images, self.eps)
            return auto_pgd(distance, images, start=start, eps=self.eps, steps=self.steps, rho=self.rho)

        return keep_worst([attack] * self.restarts, distance, images)


def auto_pgd(distance: Distance, images: Tensor, *, start: Tensor, eps: float, steps: int, rho: float = 0.75) -> Tensor:
    """Maximise a function of each image within an L-infinity ball, each image with a step size of its own.

    Args:
        distance: what to maximise, from images (N, 3, H, W) to (N,).
        images: originals, (N, 3, H, W) in [-1, 1], the ball's centre.
        start: where to begin, within the ball.
        eps: radius of the ball, in units of the images.
        steps: how many.
        rho: see :class:`APGD`.

    Returns:
        For each image the best point seen, the start among them, (N, 3, H, W) in [-1, 1].

    Example:
        >>> photo = torch.zeros(1, 3, 2, 2)
        >>> found = auto_pgd(lambda x: -(x - 0.01).square().sum((1, 2, 3)), photo, start=photo, eps=0.05, steps=40)
        >>> torch.allclose(found, photo + 0.01, atol=1e-3)
        True
    """
    low, high = ball(images, eps)
    checkpoints = {-(-percent * steps // 100) for percent in CHECKPOINTS}
    previous = current = best = start.detach()
    value, gradient = _value_and_gradient(distance, current)
    best_value, best_gradient = value, gradient
    step_size = torch.full_like(value, 2 * eps)
    # Since the last checkpoint: how often the objective rose, the best it was, whether the step size was halved at it.
    rises, last_best, halved, last = torch.zeros_like(value), value, torch.zeros_like(value, dtype=torch.bool), 0
    for step in range(1, steps + 1):
        ahead = torch.clamp(current + _by_image(step_size) * gradient.sign(), low, high)
        share = MOMENTUM if step > 1 else 1.0
        moved = torch.clamp(current + share * (ahead - current) + (1 - share) * (current - previous), low, high)
        previous, current, before = current, moved, value
        value, gradient = _value_and_gradient(distance, current)
        rises += value > before
        better = value > best_value
        best_value = torch.where(better, value, best_value)
        best = torch.where(_by_image(better), current, best)
        best_gradient = torch.where(_by_image(better), gradient, best_gradient)
        if step in checkpoints:
            stalls = (rises < rho * (step - last)) | (~halved & (best_value == last_best))
            step_size = torch.where(stalls, step_size / 2, step_size)
            value = torch.where(stalls, best_value, value)
            current = torch.where(_by_image(stalls), best, current)
            gradient = torch.where(_by_image(stalls), best_gradient, gradient)
            rises, last_best, halved, last = torch.zeros_like(value), best_value, stalls, step
    return best


def _value_and_gradient(distance: Distance, images: Tensor) -> tuple[Tensor, Tensor]:
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        values = distance(images)
        (gradient,) = torch.autograd.grad(values.sum(), images)
    return values.detach(), gradient


def _by_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]
