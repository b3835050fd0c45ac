"""What every defense is: one call, a stated budget, and typed answers to what an audit asks of it."""

from __future__ import annotations

import inspect
import math
from abc import ABCMeta, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from loraguard.describing import describe
from loraguard.generators.base import Condition, Conditions
from loraguard.kinds import as_number


class _ReadsBudgets(ABCMeta):
    """Takes the text "16/255" for `eps` and `step_size`, in levels of 8 bits, wherever a defense is made."""

    def __call__(cls, *values: Any, **settings: Any) -> Any:
        for name in ("eps", "step_size"):
            if name in settings:
                settings[name] = as_number(settings[name])
        return super().__call__(*map(as_number, values), **settings)

    @property
    def __signature__(cls) -> inspect.Signature:
        """Of the class's own `__init__`, which inspect would not look for behind `__call__`."""
        start: Any = type.__getattribute__(cls, "__init__")
        return inspect.Signature(
            [] if start is object.__init__ else [*inspect.signature(start).parameters.values()][1:]
        )


class Defense(metaclass=_ReadsBudgets):
    """A way to perturb photos so that a generator fails on them.

    `defense(generator, images, condition)` takes images (N, C, H, W) in [-1, 1] and returns perturbed ones of the same
    shape and range, no further than `eps` (L-infinity, in the same units) from the originals. Whoever has the clean
    outputs G(x, c) already passes them as `clean` and saves computing them again. The generator stays as it was: its
    parameters get no gradients, its mode (train or eval) stays, and running statistics that a network in train mode
    would move are put back. What a defense draws comes from torch's global generator.

    A subclass is a frozen dataclass of its settings, so that an audit can vary them, and says in :meth:`perturb` what
    it does. Everything else has a default that it overrides where it differs.

    Attributes:
        eps: the budget, L-infinity, in units of images in [-1, 1]; the only setting that every defense has. The text
            "16/255" is taken for 16 levels of 8 bits, 16 / 127.5.
        budget: what the budget is where it is not L-infinity on images, in words; None where it is.
        steps: how many steps it takes; None for one that is not iterative.
        step_size: the length of a step; None where it follows from `eps`.
        restarts: how often it starts anew, of which the worst for the generator is kept.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Brighten(Defense):
        ...     eps: float = 0.05
        ...     def perturb(self, generator, images, condition, clean=None):
        ...         return (images + self.eps).clamp(-1, 1)
        >>> Brighten(0.1)(nn.Identity(), torch.zeros(1, 3, 2, 2), {}).unique()
        tensor([0.1000])
        >>> Brighten().steps, Brighten().varied(eps=0.2)
        (None, Brighten(eps=0.2))
    """

    eps: float
    budget: ClassVar[str | None] = None
    steps: int | None = None
    step_size: float | None = None
    restarts: int = 1

    def __call__(
        self, generator: nn.Module, images: Tensor, condition: Condition, clean: Tensor | None = None
    ) -> Tensor:
        """Perturbed images (N, C, H, W) in [-1, 1].

        Args:
            generator: what is to fail.
            images: photos, (N, C, H, W) in [-1, 1].
            condition: the edit of each photo, batch-first; `{}` for none.
            clean: the outputs G(x, c), if they are known already.

        Raises:
            ValueError: for images of another shape, type or range.
        """
        check_image_batch(images)
        with undisturbed(generator):
            return self.perturb(generator, images, condition, clean)

    @abstractmethod
    def perturb(self, generator: nn.Module, images: Tensor, condition: Condition, clean: Tensor | None) -> Tensor:
        """What a call returns; images are checked already, and the generator is kept as it was."""

    def movement(self, perturbed: Tensor, images: Tensor) -> Tensor:
        """How far each photo was moved, in the unit of `eps`: (N,)."""
        return (perturbed - images).abs().flatten(1).amax(1)

    @property
    def passes(self) -> int:
        """About how many forward and backward passes through the generator a batch of photos takes."""
        return 2 * (self.steps or 0) * self.restarts

    @property
    def must_be_fitted(self) -> bool:
        """Whether it has to be fitted before it can be called."""
        return False

    def varied(self, *, eps: float | None = None, steps: int | None = None) -> Defense | None:
        """The defense with another budget, whose step size goes along, or another number of steps.

        Returns:
            A new defense; None for one that has no such setting.

        Example:
            >>> from loraguard.defenses import Disrupting, RandomNoise
            >>> Disrupting(eps=0.05, step_size=0.01).varied(eps=0.1)
            Disrupting(eps=0.1, steps=10, step_size=0.02, method='pgd', restarts=1, layer=None, eot=1)
            >>> RandomNoise().varied(steps=3) is None
            True
        """
        return replaced(self, eps, steps)

    def settings(self) -> dict[str, Any]:
        """What tells it from other defenses, as JSON takes it."""
        return describe(self)


class Fittable(Defense):
    """A defense that has to see photos, and the generators that it is against, before it can perturb any.

    Called before it is fitted it raises a ValueError that says so.

    Attributes:
        fitted: what was fitted; None before.
        fits_every_generator: whether one fit serves all generators; else an audit fits anew for each generator that is
            attacked with a leak.
    """

    fitted: Any = None
    fits_every_generator: ClassVar[bool] = False

    @property
    def must_be_fitted(self) -> bool:
        """Whether it was not fitted yet."""
        return self.fitted is None

    @abstractmethod
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


def replaced(thing: Any, eps: float | None, steps: int | None) -> Any:
    """A dataclass with another budget, its step size in proportion, or other steps; None where it has no such field."""
    changes = {key: value for key, value in (("eps", eps), ("steps", steps)) if value is not None}
    own = {one.name for one in fields(thing) if one.init} if is_dataclass(thing) else set()
    if not changes.keys() <= own:
        return None
    if eps is not None and (step_size := getattr(thing, "step_size", None)) is not None:
        changes["step_size"] = step_size * eps / thing.eps
    return replace(thing, **changes)


def check_image_batch(images: Tensor) -> None:
    """Refuse what no generator takes: images must be floating, (N, C, H, W), finite and in [-1, 1]."""
    if images.ndim != 4 or 0 in images.shape[1:] or not images.is_floating_point():
        raise ValueError(
            f"Expected floating images of shape (N, C, H, W) in [-1, 1], got {images.dtype} {tuple(images.shape)}; "
            "make bytes floating by x / 127.5 - 1."
        )
    if not len(images):
        raise ValueError("Expected at least one image, got an empty batch.")
    low, high = float(images.min()), float(images.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"Expected images in [-1, 1], got values from {low} to {high}: some are no numbers.")
    if not (low >= -1 - 1e-4 and high <= 1 + 1e-4):
        raise ValueError(
            f"Expected images in [-1, 1], got values from {low:.4g} to {high:.4g}. Scale them first: photos in "
            "[0, 255] by x / 127.5 - 1, photos in [0, 1] by 2 * x - 1."
        )


def check_budget(eps: float) -> None:
    """Refuse a budget that is no distance between two different images."""
    if not 0 < eps <= 2:
        raise ValueError(f"eps={eps!r} must be in (0, 2]: it is a distance between images in [-1, 1].")


def check_settings(eps: float, steps: int, step_size: float | None, restarts: int = 1) -> None:
    """Refuse a budget, a number of steps, a step size or restarts that no iterative defense can have."""
    check_budget(eps)
    if steps < 1 or restarts < 1 or (step_size is not None and step_size <= 0):
        raise ValueError(
            f"Expected steps >= 1, restarts >= 1 and step_size > 0, got steps={steps}, restarts={restarts}, "
            f"step_size={step_size}."
        )


@contextmanager
def undisturbed(generator: nn.Module) -> Iterator[None]:
    """Keep a generator as it is: within the block no parameter asks for a gradient, and then buffers are as before.

    A network in train mode moves buffers with each forward pass: running statistics of batch norm, vectors of spectral
    norm. It computes as always within the block, and they are put back.

    Example:
        >>> norm = nn.BatchNorm2d(3)
        >>> with undisturbed(norm):
        ...     _ = norm(torch.ones(1, 3, 2, 2))
        >>> norm.running_mean
        tensor([0., 0., 0.])
    """
    learning = [parameter for parameter in generator.parameters() if parameter.requires_grad]
    kept = [
        (module, name, buffer, buffer.clone())
        for module in generator.modules()
        if module.training
        for name, buffer in module.named_buffers(recurse=False)
    ]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
        for module, name, buffer, before in kept:
            # By `.data`, as norms write them, too: a graph from before the block may hold the buffer.
            buffer.data.copy_(before)
            setattr(module, name, buffer)


def jitter(images: Tensor, radius: float) -> Tensor:
    """Images moved by uniform noise in [-radius, radius], kept in [-1, 1]."""
    return (images + radius * (2 * torch.rand_like(images) - 1)).clamp(-1, 1)
