"""What the tests of audits share beside fixtures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from loraguard import Stamp
from loraguard.audit import AuditResult, Situation, Treatment
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


def situation(
    generator: str,
    defense: str,
    knowledge: str,
    dsr: float,
    *,
    mse: float | None = None,
    n: int = 20,
    seeds: int = 1,
    channel: str = "none",
    eps: float | None = 0.1,
    steps: int | None = None,
    role: str = "main",
    frechet: float | None = None,
    **more: float,
) -> Situation:
    """A row of known figures: the first images are spoilt, as many as `dsr` says, and MSE varies around `mse`."""
    spoilt = (torch.arange(n) < round(dsr * n)).float()
    around = torch.linspace(0.9, 1.1, n)
    mse = 0.2 * dsr + 0.001 if mse is None else mse
    values = {"mse": mse * around, "dsr": spoilt, "psnr": 30 * around, "ssim": 0.9 * around, "photo_psnr": 35 * around}
    values |= {name: (torch.arange(n) < round(value * n)).float() for name, value in more.items()}
    eps = None if knowledge == "clean" else eps
    return Situation(
        generator,
        Treatment(defense, knowledge, eps, steps, role),
        channel,
        {name: one.repeat(seeds, 1) for name, one in values.items()},
        frechet,
    )


def made(
    situations: Sequence[Situation],
    *,
    patches: Mapping[str, Any] | None = None,
    pictures: int = 2,
    size: int = 8,
    **settings: Any,
) -> AuditResult:
    """An audit that nobody ran: these situations, and a picture of each that differs from the others."""
    n, seeds = situations[0].values["mse"].shape[::-1]
    main = [one for one in situations if one.treatment.role == "main"]
    draws = torch.Generator().manual_seed(0)
    shown: dict[tuple[str, str, str, str], Tensor] = {}
    for one in main:
        key = one.treatment.defense, one.treatment.knowledge
        for name in (("photo", *key, "untouched"), (one.generator, *key, one.channel)):
            shown[name] = torch.rand(pictures, 3, size, size, generator=draws) * 2 - 1
    return AuditResult(
        list(situations),
        [("Smiling", "Blond")[at % 2] for at in range(n)],
        shown if pictures else {},
        {
            "n": n,
            "seeds": list(range(seeds)),
            "budget": "L-infinity 0.1 on [-1, 1], that is 12.75/255",
            "own_budgets": [],
            "defenses": {
                d: {"eps": 0.1} for d in dict.fromkeys(s.treatment.defense for s in main) if d not in CONTROLS
            },
            "channels": {one.channel: {} for one in main if one.channel != "none"},
            "patches": {} if patches is None else dict(patches),
            **settings,
        },
    )


CONTROLS = ("none", "noise")


def rows(
    generator: str, shares: Mapping[str, tuple[float, ...]], clean: float = 0.0, noise: float | None = 0.0, **more: Any
) -> list[Situation]:
    """A generator's main rows: controls, and by defense the share that is spoilt without a leak, and with one."""
    found = [situation(generator, "none", "clean", clean, **more)]
    found += [] if noise is None else [situation(generator, "noise", "noise", noise, **more)]
    for defense, given in shares.items():
        found += [
            situation(generator, defense, knowledge, share, **more)
            for knowledge, share in zip(("no-leak", "leak"), given, strict=False)
        ]
    return found
