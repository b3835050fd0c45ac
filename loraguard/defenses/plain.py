"""Callables that are no :class:`~loraguard.defenses.base.Defense`, taken as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset

from loraguard.describing import describe
from loraguard.generators.base import Condition, Conditions

from .base import Defense, Fittable, replaced

AnyDefense = Defense | Callable[..., Tensor]
"""What is taken for a defense: a :class:`Defense`, or a callable of the same arguments with an attribute `eps`."""


def as_defense(given: AnyDefense) -> Defense:
    """A defense as it is, or any callable with a budget `eps` as a defense.

    The one place that looks for what a callable has: `eps`, and perhaps `steps`, `step_size`, `restarts` and `budget`;
    with `fit` it is :class:`~loraguard.defenses.base.Fittable`. A plain dataclass can be varied as any other defense.

    Raises:
        TypeError: for something that cannot be called, or has no `eps`.

    Example:
        >>> def invert(generator, images, condition, clean=None):
        ...     return -images
        >>> invert.eps = 2.0
        >>> import torch
        >>> as_defense(invert)(nn.Identity(), torch.full((1, 3, 2, 2), 0.5), {}).unique()
        tensor([-0.5000])
    """
    if isinstance(given, Defense):
        return given
    if isinstance(given, type) or not callable(given) or not isinstance(getattr(given, "eps", None), float | int):
        raise TypeError(
            f"{given!r} is no defense: expected a Defense, or a callable (generator, images, condition, clean=None) "
            "with its budget as an attribute `eps`, a number."
        )
    return FittableCallable(given) if callable(getattr(given, "fit", None)) else PlainCallable(given)


@dataclass(frozen=True)
class PlainCallable(Defense):
    """A callable that is no :class:`Defense`, as one; :func:`as_defense` makes it."""

    given: Any

    def __post_init__(self) -> None:
        for name in ("eps", "steps", "step_size", "restarts", "budget"):
            if hasattr(self.given, name):
                object.__setattr__(self, name, getattr(self.given, name))

    def perturb(self, generator: nn.Module, images: Tensor, condition: Condition, clean: Tensor | None) -> Tensor:
        """What the callable gives."""
        perturbed: Tensor = self.given(generator, images, condition, clean=clean)
        return perturbed

    def varied(self, *, eps: float | None = None, steps: int | None = None) -> Defense | None:
        """The callable with another value, where it is a dataclass."""
        made = replaced(self.given, eps, steps)
        return None if made is None else as_defense(made)

    def settings(self) -> dict[str, Any]:
        """The callable's own, and the name of a function."""
        name = getattr(self.given, "__qualname__", None)
        return {**describe(self.given), **({"name": name} if name else {})}


@dataclass(frozen=True)
class FittableCallable(PlainCallable, Fittable):
    """The same with `fit`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("fitted", "fits_every_generator"):
            if hasattr(self.given, name):
                object.__setattr__(self, name, getattr(self.given, name))

    def fit(
        self,
        generators: nn.Module | Sequence[nn.Module],
        photos: Dataset[Any],
        conditions: Conditions | None = None,
        *,
        disable_tqdm: bool = False,
    ) -> Defense:
        """What its own `fit` gives."""
        return as_defense(self.given.fit(generators, photos, conditions, disable_tqdm=disable_tqdm))


def needs_fitting(defense: AnyDefense) -> bool:
    """Whether a defense, or one of several that it is made of, has to be fitted before it can be called.

    Example:
        >>> from loraguard.defenses import CMUA, Disrupting, Mixture
        >>> needs_fitting(Disrupting()), needs_fitting(Mixture((Disrupting(), CMUA())))
        (False, True)
    """
    return as_defense(defense).must_be_fitted
