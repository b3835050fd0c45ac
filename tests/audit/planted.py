"""What cheats are planted in: a small editor, photos, and a small audit of both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from setups import Flip
from torch import Tensor, nn

from loraguard import GatedLoraConfig
from loraguard.audit import AuditResult, run_audit
from loraguard.data import DemoFaces
from loraguard.generators import Condition

EPS = 0.2


class Editor(nn.Module):
    """An editor that can be read: it paints the upper half of each photo by the edit that is asked for.

    A perturbation of the photo is carried into the output, `gain` times.
    """

    gain = 4.0

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(3).reshape(3, 3, 1, 1))

    def forward(self, images: Tensor, c: Tensor) -> Tensor:
        edited = torch.tanh(self.gain * self.conv(images))
        upper = torch.zeros_like(images)
        upper[:, :, : images.shape[2] // 2] = 1
        return torch.clamp(edited * (1 - 0.5 * upper) - upper * (0.4 + 0.1 * c[:, :1, None, None]), -1, 1)

    def conditions(self, labels: Tensor | None) -> dict[str, Condition]:
        n = 1 if labels is None else len(labels)
        return {"paint": {"c": torch.zeros(n, 1)}, "paint more": {"c": torch.ones(n, 1)}}


class Faces(DemoFaces):
    """Photos, with how often each was read."""

    def __init__(self, n: int = 12, size: int = 16) -> None:
        super().__init__(n, size=size)
        self.reads: list[int] = []

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        self.reads += indices
        return super().__getitems__(indices)


def audit(
    defenses: Any = None,
    *,
    generators: dict[str, nn.Module] | None = None,
    model: PeftModel | None = None,
    n: int = 12,
    **more: Any,
) -> AuditResult:
    if model is None:
        torch.manual_seed(0)
        model = get_peft_model(Editor(), GatedLoraConfig(r=1, target_modules=["conv"]))
    defenses = Flip(EPS) if defenses is None else defenses
    more = {"batch_size": 5, "disable_tqdm": True, "patches": {}, **more}
    return run_audit(model, Faces(n), defenses=defenses, generators=generators, **more)


def flags(result: AuditResult, generator: str | None = None) -> set[str]:
    return {one.name for one in result.checks if not one.passed and generator in (None, one.generator)}


class Wrapped(nn.Module):
    """The editor behind a function on its outputs, of the photos and the edit."""

    def __init__(self, change: Callable[..., Tensor], editor: nn.Module | None = None) -> None:
        super().__init__()
        self.editor, self.change = editor or Editor(), change

    def forward(self, images: Tensor, **condition: Tensor) -> Tensor:
        return self.change(images, lambda x: self.editor(x, **condition))


def returning(change: Callable[[Tensor], Any], eps: float = 0.05) -> Any:
    class Defense:
        def __call__(self, generator: Any, images: Tensor, condition: Any, clean: Any = None) -> Any:
            return change(images)

    defense = Defense()
    defense.eps = eps  # type: ignore[attr-defined]
    return defense
