"""Disrupting generators that blur photos first (Ruiz et al., arXiv 2003.01279, section 3.4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from loraguard.generators.base import Condition

from .ascent import Objective
from .disrupting import Disrupting
from .terms import Term, in_turn, together

MODES = ("blur-aware", "spread-spectrum", "eot")
GAUSSIAN_SIZE = 11
KNOWN_SIGMA = 1.5
SIGMAS = (1.0, 1.5, 2.0, 2.5, 3.0)
AVERAGE_SIZES = (5, 7, 9)


@dataclass(frozen=True)
class BlurRobust(Disrupting):
    """Perturb each photo to maximise `MSE(G(blur(x + d), c), G(x, c))`, for one blur or for eight.

    White-box, per image, for a photo that may be blurred to be rid of its perturbation. *Blur-aware* knows the blur: a
    Gaussian of sigma 1.5. *Spread-spectrum* does not, and takes each step through another one: Gaussians of sigma 1,
    1.5, 2, 2.5, 3, then averages over 5, 7 and 9 pixels, then the first again. *EOT* (expectation over transformation)
    takes each step against the sum over all eight, at eight times the cost.

    The order and the sizes are those of the released code, in pixels of a photo of 256. There, EOT sums nine blurs a
    step, of which one is there twice; here each counts once. Gaussians are cut off at 11 pixels; at the border photos
    are mirrored, which the released code may do otherwise.

    Args:
        mode: "blur-aware", "spread-spectrum" or "eot".
        eps, steps, step_size, method, restarts, layer: as :class:`~loraguard.defenses.Disrupting` has them.

    Raises:
        ValueError: for an unknown mode; on a call, for photos of fewer than 6 pixels a side.

    Example:
        >>> import torch
        >>> photos = torch.zeros(2, 3, 16, 16)
        >>> BlurRobust(steps=8)(nn.Conv2d(3, 3, 3, padding=1), photos, {}).abs().max() <= 0.05
        tensor(True)
    """

    mode: str = "spread-spectrum"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in MODES:
            raise ValueError(f"mode={self.mode!r} is unknown; choose one of {', '.join(MODES)}.")

    def terms(self, generator: nn.Module, images: Tensor, condition: Condition, clean: Tensor | None) -> Sequence[Term]:
        """The distance behind each blur."""
        if min(images.shape[-2:]) <= GAUSSIAN_SIZE // 2:
            raise ValueError(f"Expected photos of at least {GAUSSIAN_SIZE // 2 + 1} pixels a side, got {images.shape}.")
        (plain,) = super().terms(generator, images, condition, clean)
        blurs = [gaussian(KNOWN_SIGMA)] if self.mode == "blur-aware" else all_blurs()
        return [Term(plain.network, plain.condition, plain.reference, blur) for blur in blurs]

    def objective(self, terms: Sequence[Term]) -> Objective:
        """One blur a step, or all in each."""
        return together(terms) if self.mode == "eot" else in_turn(terms)


def gaussian(sigma: float) -> Callable[[Tensor], Tensor]:
    """A Gaussian blur of 11 pixels a side, by kornia."""
    from kornia.filters import gaussian_blur2d

    return partial(gaussian_blur2d, kernel_size=(GAUSSIAN_SIZE, GAUSSIAN_SIZE), sigma=(sigma, sigma))


def average(size: int) -> Callable[[Tensor], Tensor]:
    """The mean over so many pixels a side, by kornia."""
    from kornia.filters import box_blur

    return partial(box_blur, kernel_size=(size, size))


def all_blurs() -> list[Callable[[Tensor], Tensor]]:
    """All eight, in the order that spread-spectrum takes them."""
    return [*map(gaussian, SIGMAS), *map(average, AVERAGE_SIZES)]
