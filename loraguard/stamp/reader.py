"""Which of several stamps (visible watermarks) an image carries, wherever it stands, after whatever happened to it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

import torch
from torch import Tensor
from torch.nn import functional as F

from .detector import FEWEST_OUTPUTS
from .stamp import Stamp, sprite

SCALES = tuple(0.45 * 1.1**i for i in range(14))
"""Widths that a stamp is looked for at, of the one that it has by its `size`: from 0.45 to 1.55."""

_AREA = 800  # pixels that the stamp covers on the copy of an image that is searched
_FRAME = 2  # pixels around it that count as well: a plate without letters is seen by its edge
_OVERHANG = 0.25  # of its area, that may have been cropped off
_FLAT = 1e-4  # variance below which nothing can be seen: (1.3 / 255)^2
_CHUNK = 16  # images at a time, which stay in the cache


@dataclass
class StampReader:
    """Says which of several stamps an image carries, if any.

    A stamp is looked for at every place of the image, at sizes from 0.45 to 1.55 times its own, and with up to a
    quarter of its area cropped off. Its score is the highest zero-mean normalised cross-correlation that is found
    (Lewis 1995, Fast Normalized Cross-Correlation; over the part inside the image, as in Padfield, CVPR 2010): near 1
    for the stamp itself, whatever its contrast and brightness. :class:`StampDetector` looks at the stamp's own place
    alone; it is faster, and blind to an image that was cropped.

    Args:
        stamps: by name.
        thresholds: by name; a stamp counts as read where its score is above its own. 0.6 each until :meth:`calibrate`
            has set them.
        checked_on: how many unstamped images, other than those that set the thresholds, :meth:`calibrate` read.
        false_positives: on how many of them it read a stamp.

    Raises:
        ValueError: for no stamp, or thresholds of others.

    Example:
        >>> from loraguard.channels import JPEG
        >>> from loraguard.data import DemoFaces
        >>> stamps = {text: Stamp(text, size=0.5, background="#b00020") for text in ("AI", "ИИ")}
        >>> faces = torch.stack([face["image"] for face in DemoFaces(40).__getitems__(list(range(40)))])
        >>> reader = StampReader(stamps).calibrate(faces)
        >>> reader(JPEG(50)(stamps["ИИ"].compose(faces[:2]))), reader(faces[:2])
        (['ИИ', 'ИИ'], [None, None])
    """

    stamps: Mapping[str, Stamp]
    thresholds: Mapping[str, float] = field(default_factory=dict)
    checked_on: int = 0
    false_positives: int = 0

    def __post_init__(self) -> None:
        if not self.stamps:
            raise ValueError("There is no stamp to read; give at least one, as in StampReader({'AI': Stamp('AI')}).")
        self.thresholds = dict(self.thresholds) or dict.fromkeys(self.stamps, 0.6)
        if self.thresholds.keys() != self.stamps.keys():
            raise ValueError(f"Thresholds are for {sorted(self.thresholds)}, the stamps are {sorted(self.stamps)}.")

    @property
    def false_positive_bound(self) -> float | None:
        """What the share of unstamped images on which any stamp is read is at most, with 95% confidence.

        The exact (Clopper-Pearson) one-sided bound from `false_positives` of `checked_on`; None before `calibrate`.
        """
        return most_likely_share(self.false_positives, self.checked_on) if self.checked_on else None

    def scores(self, images: Tensor) -> Tensor:
        """How strongly each stamp is present in images (N, 3, H, W) in [-1, 1]: (N, stamps), from -1 to 1."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"A stamp is read from images of shape (N, 3, H, W), got {tuple(images.shape)}.")
        each = [
            torch.stack([_search(stamp, part) for stamp in self.stamps.values()], 1) for part in images.split(_CHUNK)
        ]
        return torch.cat(each)

    def _scores(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        return self.scores(images) if isinstance(images, Tensor) else torch.cat([self.scores(x[None]) for x in images])

    def __call__(self, images: Tensor) -> list[str | None]:
        """The name of the stamp that each of the images (N, 3, H, W) carries, or None.

        Where several scores are above their thresholds, it is the stamp that is furthest above.
        """
        return self.names(self.scores(images))

    def names(self, scores: Tensor) -> list[str | None]:
        """What :meth:`scores` (N, stamps) say: a stamp's name for each image, or None."""
        above = self._above(scores).amax(1) > 0
        return [name if carried else None for name, carried in zip(self.nearest(scores), above.tolist(), strict=True)]

    def nearest(self, scores: Tensor) -> list[str]:
        """The name of the stamp whose score is the furthest above its threshold, or the least below it."""
        names = list(self.stamps)
        return [names[i] for i in self._above(scores).argmax(1).tolist()]

    def _above(self, scores: Tensor) -> Tensor:
        return scores - torch.tensor([self.thresholds[name] for name in self.stamps]).to(scores)

    def calibrate(self, unstamped: Tensor | Sequence[Tensor], false_positive_rate: float = 0.01) -> StampReader:
        """Set the thresholds from images (N, 3, H, W) that carry no stamp, or a list of (3, H, W); returns itself.

        The rate is that of reading any stamp at all, so each of K stamps gets a K-th of it (Bonferroni). Every second
        image sets the thresholds: a third of the way from what a stamp's scores exceed at its rate (the higher of the
        empirical quantile and of the normal one) to what nearly all of 20 images score with it laid onto them. The
        other images are then read: they give `false_positives`, `checked_on` and the bound.

        Raises:
            ValueError: for fewer than 20 images, a stamp so faint that it cannot be told from none at this rate, or one
                that is read as another.
        """
        if len(unstamped) < FEWEST_OUTPUTS:
            raise ValueError(f"Calibration needs at least {FEWEST_OUTPUTS} unstamped images, got {len(unstamped)}.")
        scores = self._scores(unstamped).double()
        seen, rate = scores[::2], false_positive_rate / len(self.stamps)
        normal = seen.mean(0) + NormalDist().inv_cdf(1 - rate) * seen.std(0)
        bounds = torch.maximum(seen.quantile(1 - rate, dim=0), normal).tolist()
        some = unstamped[:FEWEST_OUTPUTS]
        parts = [some] if isinstance(some, Tensor) else [one[None] for one in some]
        stamped = [torch.cat([self.scores(stamp.compose(part)) for part in parts]) for stamp in self.stamps.values()]
        thresholds = {}
        for i, (name, bound) in enumerate(zip(self.stamps, bounds, strict=True)):
            own = float(stamped[i][:, i].double().quantile(0.01))
            if own <= bound:
                raise ValueError(
                    f"The stamp {name!r} cannot be told from none: images with it score {own:.2f}, others up to "
                    f"{bound:.2f} at a false-positive rate of {rate:.2g}. Make it larger, give it an outline or a "
                    "background, or make it less transparent."
                )
            thresholds[name] = bound + (own - bound) / 3
        self.thresholds = thresholds
        for name, found in zip(self.stamps, stamped, strict=True):
            for other in self.names(found):
                if other != name:
                    raise ValueError(f"An image with the stamp {name!r} is read as {other!r}: they are too much alike.")
        read = self.names(scores[1::2])
        self.checked_on, self.false_positives = len(read), sum(name is not None for name in read)
        return self


def most_likely_share(count: int, n: int, confidence: float = 0.95) -> float:
    """The Clopper-Pearson one-sided upper bound of a share of which `count` in n were seen.

    The share at which so few or fewer would be seen with probability `1 - confidence`; a quantile of a beta
    distribution.

    Example:
        >>> round(most_likely_share(0, 200), 4)  # 1 - 0.05^(1/200)
        0.0149
    """
    from scipy.special import betaincinv

    return 1.0 if count >= n else float(betaincinv(count + 1, n - count, confidence))


def _search(stamp: Stamp, images: Tensor) -> Tensor:
    """The highest correlation of a stamp at any place and scale of images (N, 3, H, W): (N,)."""
    height, width = sprite(stamp, 256)[0].shape[1:]
    nominal = math.sqrt(_AREA * width / height)
    factor = nominal / stamp.size / (stamp.of_width or images.shape[-1])
    size = [max(1, round(side * factor)) for side in images.shape[-2:]]
    images = F.interpolate(images.float(), size, mode="bicubic", antialias=True).clamp(-1, 1)
    widths = sorted({round(nominal * scale) for scale in SCALES})
    templates = []
    for one in widths:
        colour, alpha = sprite(stamp, one)
        template = F.pad(alpha * colour, (_FRAME,) * 4)
        templates.append((template - template.mean((1, 2), keepdim=True)).to(images))
    margin = [math.ceil(max(t.shape[axis] for t in templates) * _OVERHANG) for axis in (1, 2)]
    return _Correlator(images, margin).highest(templates)


class _Correlator:
    """What correlating images (N, 3, H, W) with any template needs: their spectrum and their integral images."""

    def __init__(self, images: Tensor, margin: list[int]) -> None:
        from scipy.fft import next_fast_len

        around = (margin[1], margin[1], margin[0], margin[0])
        padded = F.pad(images, around)
        inside = F.pad(torch.ones_like(images[:1, :1]), around)
        self.size = padded.shape[-2:]
        self.fast = [next_fast_len(side, real=True) for side in self.size]  # a transform of a prime takes several times
        self.spectrum, self.inside_spectrum = (torch.fft.rfft2(x, s=self.fast) for x in (padded, inside))
        summed = (padded, padded.square().sum(1, keepdim=True), inside)
        self.sums, self.squares, self.counts = (F.pad(x.double().cumsum(-1).cumsum(-2), (1, 0, 1, 0)) for x in summed)

    def highest(self, templates: list[Tensor]) -> Tensor:
        """The highest correlation with any template at any place: (N,)."""
        found = [
            self._highest(t) for t in templates if all(a <= b for a, b in zip(t.shape[1:], self.size, strict=True))
        ]
        none = torch.full((len(self.sums),), -1.0).to(self.sums)
        return torch.stack([none, *found]).amax(0).float()

    def _highest(self, template: Tensor) -> Tensor:
        """Covariance over the root of both variances, each over the part of the template that is inside the image."""
        height, width = template.shape[1:]
        pattern = torch.fft.rfft2(template, s=self.fast).conj()
        together = self._correlation((self.spectrum * pattern).sum(1), template)
        part = self._correlation(self.inside_spectrum * pattern, template)
        own = self._correlation(self.inside_spectrum * torch.fft.rfft2(template.square(), s=self.fast).conj(), template)
        count, sums, squares = (_boxes(x, height, width) for x in (self.counts, self.sums, self.squares))
        count = count.clamp_min(1)
        covariance = together - (sums * (part / count)).sum(1)
        seen = (squares - sums.square().sum(1, keepdim=True) / count)[:, 0].maximum(3 * _FLAT * count[:, 0])
        shown = (own - part.square() / count).sum(1).clamp_min(1e-9)
        enough = (count[:, 0] > (1 - _OVERHANG) * height * width - 0.5) & (shown > 0.5 * template.square().sum())
        return torch.where(enough, covariance / (seen * shown).sqrt(), -1.0).flatten(1).amax(1)

    def _correlation(self, product: Tensor, template: Tensor) -> Tensor:
        rows, columns = (side - length + 1 for side, length in zip(self.size, template.shape[1:], strict=True))
        return torch.fft.irfft2(product, s=self.fast)[..., :rows, :columns].double()


def _boxes(integral: Tensor, height: int, width: int) -> Tensor:
    """Sums over all boxes of this size, from an integral image."""
    rows = integral[..., height:, :] - integral[..., :-height, :]
    return rows[..., width:] - rows[..., :-width]
