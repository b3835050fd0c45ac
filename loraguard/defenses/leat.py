"""LEAT: move a photo's latent, whatever is to be edited (latent ensemble attack, arXiv 2307.01520)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from loraguard.generators.base import Condition
from loraguard.generators.layers import latent_of, up_to

from .ascent import Objective
from .disrupting import Disrupting
from .terms import Term, away_from, in_turn, together
from .transferable import check_edits, for_each


@dataclass(frozen=True)
class LEAT(Disrupting):
    """Perturb each photo to maximise `MSE(E(x + d), E(x))`, E the generator up to its latent.

    White-box, per image. What the decoder is asked for does not matter, so the defense holds for any edit as far as E
    does not see the condition: StarGAN's does (its labels go in beside the photo), AttGAN's and HiSD's do not. Against
    several generators the gradients are added up, each divided by its L2 norm, so that none drowns the others.

    Known from a re-implementation, not from code of the authors; sizes and steps are from there. The paper has no
    layer's name for "latent" in networks without an encoder of their own: for those of StarGAN's kind it is taken to be
    what the last strided convolution gives.

    Args:
        layer: the latent, by a layer's name in the generator; by default the generator's `latent_layer`.
        also: further generators to be effective against, each with a condition of one row, `{}` where it takes none.
            They have to have a `latent_layer`, and be on the photos' device.
        eps, steps, step_size, method, restarts: as :class:`~loraguard.defenses.Disrupting` has them.

    Raises:
        ValueError: on a call, for a generator whose latent is not known.

    Example:
        >>> import torch
        >>> from loraguard.generators import CycleGAN, DemoEditor
        >>> photos, labels = torch.zeros(2, 3, 16, 16), torch.eye(5)[:2]
        >>> other = CycleGAN(ngf=4, n_blocks=1)
        >>> LEAT(steps=2, also=((other, {}),))(DemoEditor(conv_dim=4), photos, {"labels": labels}).shape
        torch.Size([2, 3, 16, 16])
    """

    steps: int = 30
    also: tuple[tuple[nn.Module, Condition], ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_edits({type(generator).__name__: condition for generator, condition in self.also})

    def terms(self, generator: nn.Module, images: Tensor, condition: Condition, clean: Tensor | None) -> Sequence[Term]:
        """The distance in each generator's latent."""
        return [
            away_from(up_to(generator, self.layer or latent_of(generator)), images, condition),
            *(away_from(up_to(other, latent_of(other)), images, for_each(images, edit)) for other, edit in self.also),
        ]

    def objective(self, terms: Sequence[Term]) -> Objective:
        """All generators in each step."""
        return together(terms, balanced=True) if self.also else in_turn(terms)
