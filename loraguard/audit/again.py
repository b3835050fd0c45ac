"""Whether what is computed again is what was stored, but for what other processors round otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .situation import SHARES
from .store import number


def agree(stored: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """Whether figures are the same but for what another number of threads or another processor rounds otherwise.

    The means of each metric may differ by a tenth, and images by a fifth on average, so that nothing was moved from one
    to another; of what is 0 or 1 on each image, two images may differ.
    """
    made = {(name, metric): values for name, metrics in _figures(found).items() for metric, values in metrics.items()}
    for (name, metric), values in made.items():
        before = _figures(stored).get(name, {}).get(metric)
        if before is None or len(before) != len(values):
            return False
        a, b = (torch.tensor([number(one) for one in them], dtype=torch.float64) for them in (before, values))
        if not torch.equal(a.isfinite(), b.isfinite()):
            if "psnr" in metric:  # which is infinite where nothing differs
                continue
            return False
        rate = metric in SHARES
        off, size = (a - b).nan_to_num(), float(b[b.isfinite()].abs().mean().nan_to_num())
        allowed = 2 / len(a) if rate else 0.2 * size + 1e-4
        if float(off.abs().mean()) > allowed or (not rate and abs(float(off.mean())) > 0.1 * size + 1e-4):
            return False
    return True


def _figures(piece: Mapping[str, Any]) -> dict[str, Any]:
    """A piece's figures by what they are of: each forward pass, and the photos."""
    return {**piece.get("passes", {}), "photo": piece.get("photo", {})}


def alike(stored: Tensor | None, found: Tensor) -> bool:
    """Whether pictures or features are the same but for rounding: on average a tenth of a value may differ."""
    if stored is None or stored.shape != found.shape:
        return False
    off, size = (stored.double() - found.double()).abs().mean(), found.double().abs().mean()
    return bool(off <= 0.1 * size + 1e-4) or not bool((off + size).isfinite())


def flagged(probed: Mapping[str, Any]) -> list[Any]:
    """What a probe has found, without figures that other processors round otherwise."""
    checks = probed.get("checks", ())
    return [probed.get("objective"), *([one["name"], one["passed"]] for one in checks)]
