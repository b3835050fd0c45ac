"""How strongly a stamp, a visible watermark, is present at its place."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from .stamp import Stamp

FEWEST_OUTPUTS = 20
"""That :meth:`StampDetector.calibrate` takes."""


@dataclass
class StampDetector:
    """Says how strongly a stamp is present in an image.

    The score is the zero-mean normalised cross-correlation between the stamp and the image, in a window around the
    stamp's place and over the three colour channels: 1 for the stamp itself whatever its contrast and brightness, near
    0 where there is none.

    Args:
        stamp: the stamp to look for.
        threshold: scores above it count as stamped. 0.5 until :meth:`calibrate` has set it.
        false_positive_rate: what :meth:`calibrate` was asked for; None before.
        calibrated_on: how many unstamped outputs it saw.

    Raises:
        ValueError: for a threshold that is no score.

    Example:
        >>> stamp = Stamp("AI-EDITED")
        >>> noise = torch.rand(50, 3, 96, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
        >>> detector = StampDetector(stamp).calibrate(noise)
        >>> bool(detector(stamp.compose(noise)).all()), bool(detector(noise).any())
        (True, False)
    """

    stamp: Stamp
    threshold: float = 0.5
    false_positive_rate: float | None = None
    calibrated_on: int = 0

    def __post_init__(self) -> None:
        if not -1 <= self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold!r} must be between -1 and 1, as scores are.")

    def settings(self) -> dict[str, float | int | None]:
        """Threshold, the false-positive rate that it was set for, and on how many outputs."""
        return {
            "threshold": round(self.threshold, 4),
            "false_positive_rate": self.false_positive_rate,
            "calibrated_on": self.calibrated_on,
        }

    def score(self, images: Tensor) -> Tensor:
        """How strongly the stamp is present in images (N, 3, H, W): (N,), from -1 to 1."""
        colour, alpha = self.stamp.layer_on(images)
        rows, columns = (_window(alpha[0].amax(axis)) for axis in (1, 0))
        template = (alpha * colour)[:, rows, columns]
        seen = images[:, :, rows, columns]
        template = template - template.mean((1, 2), keepdim=True)
        seen = seen - seen.mean((2, 3), keepdim=True)
        scale = (template.norm() * seen.flatten(1).norm(dim=1)).clamp_min(1e-6)
        return (seen * template).sum((1, 2, 3)) / scale

    def __call__(self, images: Tensor) -> Tensor:
        """Which of the images (N, 3, H, W) carry the stamp: bool (N,)."""
        return self.score(images) > self.threshold

    def calibrate(self, unstamped: Tensor, false_positive_rate: float = 0.001) -> StampDetector:
        """Set the threshold from outputs (N, 3, H, W) that carry no stamp; returns itself.

        The false-positive rate asks for a score that unstamped outputs exceed no more often: the higher of their
        empirical quantile and of the normal one, mean + z * std, so that a sample smaller than
        `1 / false_positive_rate` supports it too. The threshold is two thirds of the way from there to what nearly all
        (99%) of the same outputs score once the stamp is laid onto them: perturbed outputs do not cross it by chance,
        nor does a smear that nobody can read.

        Raises:
            ValueError: for fewer than 20 outputs, or a stamp so faint that it cannot be told from none at this rate.
        """
        if len(unstamped) < FEWEST_OUTPUTS:
            raise ValueError(f"Calibration needs at least {FEWEST_OUTPUTS} unstamped outputs, got {len(unstamped)}.")
        scores = self.score(unstamped).double()
        normal = scores.mean() + NormalDist().inv_cdf(1 - false_positive_rate) * scores.std()
        bound = float(torch.maximum(scores.quantile(1 - false_positive_rate), normal))
        stamped = float(self.score(self.stamp.compose(unstamped)).double().quantile(0.01))
        if stamped <= bound:
            raise ValueError(
                f"The stamp cannot be told from none: stamped outputs score {stamped:.2f}, unstamped ones up to "
                f"{bound:.2f} at a false-positive rate of {false_positive_rate}. Make it larger or less transparent."
            )
        self.threshold = bound + (stamped - bound) * 2 / 3
        self.false_positive_rate, self.calibrated_on = false_positive_rate, len(scores)
        return self


def _window(presence: Tensor, margin: int = 2) -> slice:
    """The stretch of an axis where a stamp is, and a little around it."""
    where = presence.nonzero()
    return slice(max(0, int(where.min()) - margin), int(where.max()) + 1 + margin)
