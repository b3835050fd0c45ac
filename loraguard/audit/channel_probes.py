"""What channels and detectors do on a few photos, beside the generator that stands between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from loraguard.channels import Channel, published
from loraguard.pixels import LEVELS_PER_UNIT
from loraguard.stamp import StampDetector

from .checks import FALSE_STAMPS, Check
from .craft import seeded
from .photos import Batch
from .plan import USUAL
from .probes import WORSE, noise_of, unseen_of
from .situation import KNOWLEDGE
from .slopes import STAND_IN, stand_in_fit

STAMPS = 0.95
"""A detector finds a stamp on at least this part of the outputs that it was laid onto."""

STAMPED = 0.5
"""Outputs on which a detector finds the stamp make at least this part of what the stamp itself changes."""


def probe_channel(
    name: str, channel: Channel, batch: Batch, generators: Sequence[str], crafted_through: bool
) -> Iterator[Check]:
    """What a channel does to photos, as they are published with noise of the usual budget on them.

    Args:
        name: of the channel.
        channel: itself.
        batch: photos of the audit.
        generators: all names.
        crafted_through: whether attacks go through what stands in for it.
    """
    left = []
    for images in (batch.images, unseen_of(batch.images)):
        photos = published((images + noise_of(images, USUAL)).clamp(-1, 1), images)
        with seeded(0):
            sent = channel(photos.clone())
        left.append(float((sent - images).square().mean() / (photos - images).square().mean().clamp_min(1e-12)))
        if images is batch.images:
            moved, noisy = float((sent - photos).abs().max()), photos
    fit = stand_in_fit(channel, noisy) if crafted_through else 1.0
    for generator in generators:
        yield Check(
            "channel-does-nothing", moved > 1.01 / LEVELS_PER_UNIT, generator, None, KNOWLEDGE,
            f"{name} changes values by at most {moved * LEVELS_PER_UNIT:.2f} of 255 levels: its rows are those without "
            "a channel.", name,
        )  # fmt: skip
        yield Check(
            "only-known-photos", left[1] <= 2 * left[0] + WORSE, generator, None, KNOWLEDGE,
            f"Behind {name}, noise leaves photos of the audit {left[0]:.0%} as far from the originals as it had made "
            f"them, and means of two photos that nobody has seen {left[1]:.0%} (allowed: twice as much and "
            f"{WORSE:.0%}).", name,
        )  # fmt: skip
        yield Check(
            "gradients-do-not-fit", fit >= STAND_IN, generator, None, ("leak+channel",),
            f"The slopes of {name} itself and those that the gradient of its stand-in gives have a correlation of "
            f"{fit:.2f} (at least {STAND_IN}).", name,
        )  # fmt: skip


def probe_stamp(name: str, detector: StampDetector, plain: Tensor, stamped: Tensor, given: Tensor) -> Iterator[Check]:
    """Whether a generator's detector finds the stamp where it is, and only there.

    Args:
        name: of the generator.
        detector: what looks for its stamp.
        plain: the untouched generator's outputs on photos as they are, (N, 3, H, W) in [-1, 1].
        stamped: the same with the stamp itself laid onto them.
        given: the generator's own.
    """
    rate, found = (detector(one).float().mean().item() for one in (stamped, given))
    stamp = stamped - plain
    made = float(((given - plain) * stamp).sum() / stamp.square().sum().clamp_min(1e-12))
    yield Check(
        "stamp-not-found", rate >= STAMPS, name, None, KNOWLEDGE,
        f"With the stamp itself laid onto the untouched generator's outputs, the detector finds it on {rate:.1%} (at "
        f"least {STAMPS:.0%}).",
    )  # fmt: skip
    yield Check(
        "stamp-not-there", found <= FALSE_STAMPS or made >= STAMPED, name, None, KNOWLEDGE,
        f"The detector finds the stamp on {found:.1%} of its outputs on photos as they are, and these make {made:.0%} "
        f"of the change that the stamp is (at least {STAMPED:.0%}).",
    )  # fmt: skip
