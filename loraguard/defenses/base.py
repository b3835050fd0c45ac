"""The interface that every defense shares, and projected gradient ascent, which most of them are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from loraguard.generators.base import Condition, Conditions

Objective = Callable[[Tensor], Tensor]
"""From perturbed images (N, 3, H, W) to how badly the generator fails, summed over the batch: a scalar to maximise."""


class Defense(Protocol):
    """A way to perturb photos so that a generator fails on them.

    `defense(generator, images, condition)` takes images (N, 3, H, W) in [-1, 1] and returns perturbed ones of the same
    shape and range, no further than `eps` (L-infinity, in the same units) from the originals. Whoever has the clean
    outputs G(x, c) already passes them as `clean` and saves computing them again. Parameters of the generator get no
    gradients, and its mode (train or eval) stays as it was. What it draws comes from torch's global generator.

    A defense is a frozen dataclass of its settings, so that an audit can vary them: `eps`, and `steps` where it is
    iterative, whose `step_size` then follows from `eps` unless it is given. One whose budget is not L-infinity on
    images says in a class attribute `budget` what it is.
    """

    @property
    def eps(self) -> float:
        """The budget, L-infinity, in units of images in [-1, 1]."""
        ...

    def __call__(
        self, generator: nn.Module, images: Tensor, condition: Condition, clean: Tensor | None = None
    ) -> Tensor:
        """Perturb images."""
        ...


@runtime_checkable
class Fittable(Protocol):
    """A defense that has to see photos, and the generators that it is against, before it can perturb any.

    Called before it is fitted it raises a ValueError that says so. What was fitted is its attribute `fitted`, None
    before. An audit fits it anew for each generator that is attacked with a leak, unless a class attribute
    `fits_every_generator` is true.
    """

    def fit(
        self,
        generators: nn.Module | Sequence[nn.Module],
        photos: Dataset[Any],
        conditions: Conditions | None = None,
        *,
        disable_tqdm: bool = False,
    ) -> Defense:
        """The same defense, fitted to one generator or several.

        Args:
            generators: networks from images to images; the first is the one whose `conditions` apply.
            photos: items as :class:`~loraguard.PatchTrainer` takes them; not the photos to protect.
            conditions: from labels to edits, by default each generator's own.
            disable_tqdm: no progress bar.

        Returns:
            A new defense; this one stays as it was.
        """
        ...


def needs_fitting(defense: Any) -> bool:
    """Whether a defense, or one of several that it is made of, has to be fitted before it can be called.

    Example:
        >>> from loraguard.defenses import CMUA, Disrupting, Mixture
        >>> needs_fitting(Disrupting()), needs_fitting(Mixture((Disrupting(), CMUA())))
        (False, True)
    """
    if parts := getattr(defense, "defenses", None):
        return any(map(needs_fitting, parts))
    return isinstance(defense, Fittable) and getattr(defense, "fitted", None) is None


def check_images(images: Tensor) -> None:
    """Refuse what no generator takes: images must be floating, (N, 3, H, W), finite and in [-1, 1]."""
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(
            f"Expected floating images of shape (N, 3, H, W) in [-1, 1], got {images.dtype} {tuple(images.shape)}; "
            "make bytes floating by x / 127.5 - 1."
        )
    if not len(images):
        raise ValueError("Expected at least one image, got an empty batch.")
    low, high = float(images.min()), float(images.max())
    if not (low >= -1 - 1e-4 and high <= 1 + 1e-4):
        raise ValueError(
            f"Expected images in [-1, 1], got values from {low:.4g} to {high:.4g}. Scale them first: photos in "
            "[0, 255] by x / 127.5 - 1, photos in [0, 1] by 2 * x - 1."
        )


def check_budget(eps: float) -> None:
    """Refuse a budget that is no distance between two different images."""
    if not 0 < eps <= 2:
        raise ValueError(f"eps={eps!r} must be in (0, 2]: it is a distance between images in [-1, 1].")


def check_settings(eps: float, steps: int, step_size: float | None) -> None:
    """Refuse a budget, a number of steps or a step size that no iterative defense can have."""
    check_budget(eps)
    if steps < 1 or (step_size is not None and step_size <= 0):
        raise ValueError(f"Expected steps >= 1 and step_size > 0, got steps={steps}, step_size={step_size}.")


@contextmanager
def frozen(generator: nn.Module) -> Iterator[None]:
    """Within the block no parameter of the generator asks for a gradient, so that only images get one."""
    learning = [parameter for parameter in generator.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def jitter(images: Tensor, radius: float) -> Tensor:
    """Images moved by uniform noise in [-radius, radius], kept in [-1, 1]."""
    return (images + radius * (2 * torch.rand_like(images) - 1)).clamp(-1, 1)


def sign_ascent(
    objective: Objective, images: Tensor, *, start: Tensor, eps: float, steps: int, step_size: float
) -> Tensor:
    """Maximise an objective within an L-infinity ball around images by steps along the sign of its gradient.

    Only the images' gradients are computed. `x <- clip(x + step_size * sign(dJ/dx))`, where clip keeps x within `eps`
    of the originals and in [-1, 1] (PGD; Madry et al., arXiv 1706.06083).

    Args:
        objective: what to maximise; called once a step, so that it may be another one in each.
        images: originals, (N, 3, H, W) in [-1, 1], the ball's centre.
        start: where to begin, within the ball.
        eps: radius of the ball, in units of the images.
        steps: how many.
        step_size: of one step, in units of the images.

    Returns:
        Perturbed images, (N, 3, H, W) in [-1, 1].

    Example:
        >>> photo = torch.zeros(1, 3, 2, 2)
        >>> perturbed = sign_ascent(lambda x: -x.sum(), photo, start=photo, eps=0.05, steps=10, step_size=0.01)
        >>> torch.allclose(perturbed, photo - 0.05)
        True
    """
    low, high = (images - eps).clamp_min(-1), (images + eps).clamp_max(1)
    perturbed = start.detach()
    for _ in range(steps):
        perturbed = perturbed.detach().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(objective(perturbed), perturbed)
        perturbed = torch.clamp(perturbed.detach() + step_size * gradient.sign(), low, high)
    return perturbed.detach()
