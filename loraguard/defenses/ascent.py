"""Gradient ascent within a box, and the rules by which a gradient becomes a step.

`x <- clip(x + step_size(k) * update(dJ/dx))` at step k = 0, 1, ...: :func:`ascend` is this loop, an *update rule* is
what a gradient goes through. All gradients are (N, ...), each row an image of its own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Objective = Callable[[Tensor], Tensor]
"""From perturbed images (N, C, H, W) to how badly the generator fails, summed over the batch: a scalar to maximise."""

Update = Callable[[Tensor], Tensor]
"""An update rule: from the gradient of a step to its direction, both (N, ...). One that remembers serves one attack."""

StepSize = Callable[[int], float]
"""From the number of a step, from 0, to its length."""


def sign(gradient: Tensor) -> Tensor:
    """The gradient's sign, the steepest direction where the budget is L-infinity."""
    return gradient.sign()


def normalized(gradient: Tensor) -> Tensor:
    """The gradient of each image at length 1 (L2); 0 where it is 0.

    Example:
        >>> normalized(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    return gradient / _size(gradient, 2)


class Momentum:
    """The sign of gradients that are added up, each at mean absolute value 1 (Dong et al., arXiv 1710.06081, eq. 6).

    `g <- decay * g + gradient / |gradient|_1`, and the step goes along sign(g).

    Args:
        decay: how much of what was added up goes into the next step; at 0 this is :func:`sign`.

    Example:
        >>> momentum = Momentum(decay=1.0)
        >>> momentum(torch.tensor([[1.0, -3.0]])), momentum(torch.tensor([[-1.0, 0.5]]))
        (tensor([[ 1., -1.]]), tensor([[-1., -1.]]))
    """

    def __init__(self, decay: float = 1.0) -> None:
        self.decay = decay
        self.total: Tensor | None = None

    def __call__(self, gradient: Tensor) -> Tensor:
        """The direction of the next step."""
        share = gradient / _size(gradient, 1)
        self.total = share if self.total is None else self.decay * self.total + share
        return self.total.sign()


class Adam:
    """Adam's direction (Kingma & Ba, arXiv 1412.6980, algorithm 1), about 1 in each value.

    Args:
        betas: decays of the moving averages of gradients and of their squares.
        stabilizer: added to the root of the latter.

    Example:
        >>> Adam()(torch.tensor([[2.0, -0.5]]))
        tensor([[ 1., -1.]])
    """

    def __init__(self, betas: tuple[float, float] = (0.9, 0.999), stabilizer: float = 1e-8) -> None:
        self.betas, self.stabilizer, self.taken = betas, stabilizer, 0
        self.mean, self.square = torch.zeros(()), torch.zeros(())

    def __call__(self, gradient: Tensor) -> Tensor:
        """The direction of the next step."""
        first, second = self.betas
        self.taken += 1
        self.mean = first * self.mean.to(gradient) + (1 - first) * gradient
        self.square = second * self.square.to(gradient) + (1 - second) * gradient.square()
        mean, square = self.mean / (1 - first**self.taken), self.square / (1 - second**self.taken)
        return mean / (square.sqrt() + self.stabilizer)


def ascend(
    objective: Objective,
    start: Tensor,
    *,
    low: Tensor | float,
    high: Tensor | float,
    steps: int,
    step_size: float | StepSize,
    update: Update = sign,
) -> Tensor:
    """Maximise an objective within a box; only the gradient of what is moved is computed.

    Args:
        objective: what to maximise; called once a step, so that it may be another one in each.
        start: where to begin, within the box, (N, ...).
        low: the box's lower ends.
        high: its upper ends.
        steps: how many.
        step_size: the length of every step, or of each by its number.
        update: the rule that makes a direction of a gradient.

    Returns:
        The end of the way, of the shape of `start`.

    Example:
        >>> start = torch.zeros(1, 2)
        >>> ascend(lambda x: (x * torch.tensor([1.0, -2.0])).sum(), start, low=-0.05, high=0.05, steps=9, step_size=1)
        tensor([[ 0.0500, -0.0500]])
    """
    lowest, highest = (end if isinstance(end, Tensor) else start.new_tensor(end) for end in (low, high))
    point = start.detach()
    for step in range(steps):
        point = point.detach().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(objective(point), point)
        length = step_size(step) if callable(step_size) else step_size
        point = torch.clamp(point.detach() + length * update(gradient), lowest, highest)
    return point.detach()


def sign_ascent(
    objective: Objective, images: Tensor, *, start: Tensor, eps: float, steps: int, step_size: float
) -> Tensor:
    """Maximise an objective within an L-infinity ball around images by steps along the sign of its gradient.

    `x <- clip(x + step_size * sign(dJ/dx))`, where clip keeps x within `eps` of the originals and in [-1, 1] (PGD;
    Madry et al., arXiv 1706.06083).

    Args:
        objective: what to maximise; called once a step, so that it may be another one in each.
        images: originals, (N, C, H, W) in [-1, 1], the ball's centre.
        start: where to begin, within the ball.
        eps: radius of the ball, in units of the images.
        steps: how many.
        step_size: of one step, in units of the images.

    Returns:
        Perturbed images, (N, C, H, W) in [-1, 1].

    Example:
        >>> photo = torch.zeros(1, 3, 2, 2)
        >>> perturbed = sign_ascent(lambda x: -x.sum(), photo, start=photo, eps=0.05, steps=10, step_size=0.01)
        >>> torch.allclose(perturbed, photo - 0.05)
        True
    """
    low, high = ball(images, eps)
    return ascend(objective, start, low=low, high=high, steps=steps, step_size=step_size)


def ball(images: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The lower and the upper ends of an L-infinity ball around images, within [-1, 1]."""
    return (images - eps).clamp_min(-1), (images + eps).clamp_max(1)


def _size(gradient: Tensor, order: int) -> Tensor:
    """The size of each image's gradient, shaped to divide it; never 0. In the L1 norm, the mean absolute value."""
    rows = gradient.flatten(1)
    size = rows.abs().mean(1) if order == 1 else rows.norm(dim=1)
    return size.clamp_min(torch.finfo(size.dtype).tiny).view(-1, *[1] * (gradient.ndim - 1))
