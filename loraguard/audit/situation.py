"""What an audit looks at: photos as they were perturbed, and the outputs of generators on them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from loraguard.metrics import Estimate as Estimate
from loraguard.metrics import estimate as estimate

from .names import UNTOUCHED as UNTOUCHED

NO_CHANNEL = "none"
"""The name of the channel that leaves photos as they are."""

SHARES = ("dsr", "masked_dsr", "dsr_without_cast", "stamp_rate")
"""Metrics that are 0 or 1 on each image."""

KNOWLEDGE = ("clean", "noise", "no-leak", "leak", "leak+channel", "transfer")
"""What whoever perturbed a photo knew: nothing was perturbed; random noise; a defense was crafted on the untouched
generator; on the very generator that is used; on that generator behind the very channel; on another one."""

KNOWLEDGE_WORDS = {
    "clean": "as it is",
    "noise": "random noise",
    "no-leak": "no leak",
    "leak": "leak",
    "leak+channel": "channel known",
    "transfer": "crafted on another",
}

ROLES = ("main", "budget", "steps", "check", "transfer", "control")
"""Why a situation was looked at: for itself, as a point of a curve over budgets or over steps, to check whether the
others can be trusted, for the transfer matrix, or as noise of the size of one defense's perturbations."""


@dataclass(frozen=True)
class Treatment:
    """What was done to a photo before a generator sees it.

    Attributes:
        defense: its name; "none" for the photo as it is, "noise" for the control.
        knowledge: one of :data:`KNOWLEDGE`.
        eps: the budget, in units of images in [-1, 1]; None where nothing was perturbed or nobody said.
        steps: of an iterative defense.
        role: one of :data:`ROLES`.
        crafted_on: with the knowledge "transfer", the generator that it was crafted on.
    """

    defense: str
    knowledge: str
    eps: float | None = None
    steps: int | None = None
    role: str = "main"
    crafted_on: str | None = None

    def fields(self) -> dict[str, Any]:
        """All of it by name; `crafted_on` only where it says something."""
        return {name: value for name, value in asdict(self).items() if name != "crafted_on" or value is not None}

    @property
    def words(self) -> str:
        """What was done to it: "random noise", or "disrupting, no leak"."""
        if self.role == "control":
            return f"noise as large as {self.defense}"
        if self.crafted_on is not None:
            return f"{self.defense}, crafted on {self.crafted_on}"
        words = KNOWLEDGE_WORDS[self.knowledge]
        return words if self.knowledge in ("clean", "noise") else f"{self.defense}, {words}"


@dataclass(frozen=True)
class Situation:
    """One row of the audit: a generator, what was done to the photos, and what came of it on each image.

    Attributes:
        generator: "untouched", or the name of a patch or of a further network.
        treatment: what was done to the photos.
        channel: what they went through before the generator saw them, by name; "none" for nothing.
        values: by metric, figures of each seed and image, (seeds, n).
        frechet: the Fréchet distance between the features of outputs and of what they should have been; None where no
            features were measured.
    """

    generator: str
    treatment: Treatment
    channel: str
    values: dict[str, Tensor] = field(repr=False)
    frechet: float | None = None

    @cached_property
    def estimates(self) -> dict[str, Estimate]:
        """By metric, the mean over images (averaged over seeds) and its 95% interval."""
        return {name: estimate(values.mean(0), share=name in SHARES) for name, values in self.values.items()}
