"""What the tests of audits share beside fixtures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from loraguard import Stamp
from loraguard.audit import AuditResult
from loraguard.generators import Condition

STAMP = Stamp("AI", size=0.8)

Audit = Callable[..., AuditResult]


@dataclass(frozen=True)
class Flip:
    """A defense without randomness that knows which generator it was crafted on."""

    eps: float = 0.2

    def __call__(
        self, generator: nn.Module, images: Tensor, condition: Condition, clean: Tensor | None = None
    ) -> Tensor:
        with torch.no_grad():
            return (images + self.eps * torch.sign(generator(images, **condition))).clamp(-1, 1)
