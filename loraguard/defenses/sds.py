"""SDS and SDST: the denoiser's error, pulled back through the encoder alone (Xue et al., arXiv 2311.12832)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from loraguard.generators.base import Condition
from loraguard.generators.diffusion.base import LatentDiffusion

from .ascent import Objective
from .iterative import IterativeDefense
from .latent_terms import draw_noised, editor_in, latents_in, target_latents, zeros_for
from .mist import check_direction
from .terms import Term


@dataclass(frozen=True)
class SDS(IterativeDefense):
    """Perturb each photo along `(eps_theta(z_t, t) - n) dE(x + d)/dx`: the denoiser's error without its gradient.

    White-box, per image. Score distillation sampling: the denoiser is run forwards alone, which takes half the time and
    memory of AdvDM. "-" goes down, which makes photos that the denoiser finds too easy, and looks more natural; "+"
    goes up. Checked in the official code: 16/255, 100 steps of 1/255, from the photo itself.

    Args:
        eps: the budget, L-infinity, in units of images in [-1, 1]; the text "16/255" is 16 levels of 255.
        steps: sign steps.
        step_size: of one step; `eps` / 16 by default.
        direction: "-" or "+".
        layer: the latents, by a layer's name in the editor; by default its `latent_layer`.

    Raises:
        ValueError: on a call, for a generator that is no latent-diffusion editor.

    Example:
        >>> from loraguard.generators import DemoDiffusion
        >>> editor, photos = DemoDiffusion(**DemoDiffusion.small), torch.zeros(1, 3, 16, 16)
        >>> SDS(steps=2)(editor, photos, {"labels": torch.zeros(1, 5)}).shape
        torch.Size([1, 3, 16, 16])
    """

    first_step = 1 / 16

    eps: float = 0.05
    steps: int = 100
    step_size: float | None = None
    direction: str = "-"
    layer: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_direction(self.direction)

    def terms(self, generator: nn.Module, images: Tensor, condition: Condition, clean: Tensor | None) -> Sequence[Term]:
        """What the steps go along; the score's direction is in its gradient, and its value means nothing."""
        latents, goal = latents_in(generator, self.layer), self.goal(generator, images, condition)
        reference = zeros_for(latents, images, condition) if goal is None else goal
        return [Distilled(latents, condition, reference, editor=editor_in(generator), weight=self.weight,
                          to_reference=goal is not None)]  # fmt: skip

    def objective(self, terms: Sequence[Term]) -> Objective:
        """The score in each step."""
        (term,) = terms
        return lambda images: term(images).sum()

    def start(self, images: Tensor) -> Tensor:
        """The photo itself."""
        return images

    def goal(self, generator: nn.Module, images: Tensor, condition: Condition) -> Tensor | None:
        """What the latents are to come near; None for nothing."""
        return None

    @property
    def weight(self) -> float:
        """Of the score."""
        return 1.0 if self.direction == "+" else -1.0


@dataclass(frozen=True)
class SDST(SDS):
    """SDS together with the target texture: along `rate * (eps_theta - n) dE/dx`, and down `|E(x + d) - E(target)|^2`.

    White-box, per image. Checked in the official code: direction "-", rate 5, sizes and steps as :class:`SDS`.

    Args:
        rate: of the score.
        target: the path of a picture; a texture drawn here by default.
        eps, steps, step_size, direction, layer: as :class:`SDS` has them.
    """

    rate: float = 5.0
    target: str | None = None

    def goal(self, generator: nn.Module, images: Tensor, condition: Condition) -> Tensor:
        """The target's latents."""
        return target_latents(latents_in(generator, self.layer), images, condition, self.target)

    @property
    def weight(self) -> float:
        """Of the score."""
        return self.rate * super().weight


@dataclass(frozen=True)
class Distilled(Term):
    """A term whose gradient is the score's, pulled back through the encoder.

    Args:
        network: from images and a condition to latents.
        condition: as the editor takes it.
        reference: of the latents' shape.
        editor: whose denoiser is asked.
        weight: of the score; negative to go down.
        to_reference: whether the latents are to come near the reference, too.
    """

    editor: LatentDiffusion | None = None
    weight: float = 1.0
    to_reference: bool = False

    def _once(self, images: Tensor) -> Tensor:
        assert self.editor is not None
        latents = self.network(images, **self.condition)
        with torch.no_grad():
            noised, times, noise = draw_noised(self.editor, latents)
            score = self.editor.predict_noise(noised, times, latents, **self.condition) - noise
        along = self.weight * (latents * score).flatten(1).sum(1)
        return along - (latents - self.reference).square().flatten(1).sum(1) if self.to_reference else along
