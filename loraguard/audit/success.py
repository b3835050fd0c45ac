"""When a defense counts as having succeeded on a photo: the choice behind every DSR."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .names import SUCCESS, check_success

LARGER_IS_WORSE = {"mse": True, "lpips": True, "ssim": False, "identity": False, "clip": False}
"""Whether a larger figure is a worse output."""


@dataclass(frozen=True)
class Success:
    """What counts as success, read from a text such as "mse:0.05".

    - `mse:T`: the output's MSE is over T. The papers on face generators take 0.05 (arXiv 2003.01279 and after it).
    - `lpips:T`: its LPIPS is over T.
    - `ssim:T`: its SSIM is under T.
    - `identity:T`: the cosine between the embeddings of output and target, by a face encoder, is under T.
    - `clip:T`: the cosine between the embeddings of output and of the edit asked for, by CLIP or SigLIP, is under T.
    - `noise:Q`: its MSE is over what random noise of the same budget does to the share Q of the photos. It asks nothing
      of the scale of the generator's outputs.

    It is applied to figures that are stored, so that another choice costs nothing.

    Args:
        text: as above.

    Raises:
        ValueError: for a metric that is unknown, or a number out of range.

    Example:
        >>> Success("ssim:0.5").of({"ssim": torch.tensor([0.2, 0.9])})
        tensor([1., 0.])
    """

    text: str = SUCCESS

    def __post_init__(self) -> None:
        check_success(self.text)

    @property
    def metric(self) -> str:
        """Which figure it looks at."""
        name = self.text.partition(":")[0]
        return "mse" if name == "noise" else name

    @property
    def number(self) -> float:
        """The threshold, or the share of photos for `noise`."""
        return float(self.text.partition(":")[2])

    def of(self, figures: Mapping[str, Tensor], noise: Tensor | None = None, metric: str | None = None) -> Tensor:
        """Whether the defense succeeded, 0 or 1, in the shape of the figures.

        Args:
            figures: by metric, of each image.
            noise: the MSE of each image under random noise of the same budget; for `noise` alone.
            metric: look at this figure in place of its own, of the same scale, such as "masked_mse".

        Raises:
            KeyError: where the figures lack the metric.
        """
        values = figures[metric or self.metric]
        threshold = torch.tensor(self.number, dtype=values.dtype)
        if self.text.startswith("noise:"):
            noise = torch.zeros(1) if noise is None else noise
            threshold = noise.double().flatten().quantile(self.number).to(values.dtype)
        return (values > threshold if LARGER_IS_WORSE[self.metric] else values < threshold).to(values.dtype)

    @property
    def words(self) -> str:
        """What counts, for people: "MSE over 0.05"."""
        name, number = self.text.split(":")
        if name == "noise":
            return f"MSE over what random noise does to {float(number):.0%} of the photos"
        shown = "identity" if name == "identity" else name.upper()
        return f"{shown} {'over' if LARGER_IS_WORSE[name] else 'under'} {float(number):g}"
