"""What channels and detectors do on a few photos, beside the generator that stands between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from loraguard.channels import Channel, published
from loraguard.pixels import LEVELS_PER_UNIT
from loraguard.stamp import StampDetector

from .checks import Check
from .craft import draws_from, seeded
from .photos import Batch
from .plan import USUAL
from .probes import SAME, WORSE, noise_of, unseen_of
from .situation import KNOWLEDGE
from .slopes import STAND_IN, stand_in_fit

STAMPS = 0.95
"""A detector finds a stamp on at least this part of the outputs that it was laid onto."""


def probe_channel(
    name: str,
    channel: Channel,
    batch: Batch,
    generators: Sequence[str],
    crafted_through: bool,
    whole: Batch | None = None,
) -> Iterator[Check]:
    """What a channel does to photos, as they are published with noise of the usual budget on them.

    Args:
        name: of the channel.
        channel: itself.
        batch: photos of the audit.
        generators: all names.
        crafted_through: whether attacks go through what stands in for it.
        whole: the audit's batch that begins with the photos; by default they are all of it.
    """
    whole = batch if whole is None else whole
    every = published((whole.images + noise_of(whole.images, USUAL)).clamp(-1, 1), whole.images)
    moved, again, among, known, unknown = _tried(channel, batch.images, every)
    fit = stand_in_fit(channel, every, len(batch)) if crafted_through else 1.0
    for generator in generators:
        yield Check(
            "channel-does-nothing", moved > 1.01 / LEVELS_PER_UNIT, generator, None, KNOWLEDGE,
            f"{name} changes values by at most {moved * LEVELS_PER_UNIT:.2f} of 255 levels: its rows are those without "
            "a channel.", name,
        )  # fmt: skip
        yield Check(
            "outputs-not-repeatable", again <= SAME, generator, None, KNOWLEDGE,
            f"The same photos with the same seed come out of {name} with differences of {again:.3g} (root mean square "
            f"of one; allowed: {SAME:.3g}).", name,
        )  # fmt: skip
        yield Check(
            "depends-on-the-batch", among <= SAME, generator, None, KNOWLEDGE,
            f"In a batch of {len(whole)} the same photos come out of {name} with differences of {among:.3g} (root mean "
            f"square of one; allowed: {SAME:.3g}).", name,
        )  # fmt: skip
        yield Check(
            "only-known-photos", unknown <= 2 * known + WORSE, generator, None, KNOWLEDGE,
            f"Behind {name}, noise leaves photos of the audit {known:.0%} as far from the originals as it had made "
            f"them, and means of two photos that nobody has seen {unknown:.0%} (allowed: twice as much and "
            f"{WORSE:.0%}).", name,
        )  # fmt: skip
        yield Check(
            "gradients-do-not-fit", fit >= STAND_IN, generator, None, ("leak+channel",),
            f"The slopes of {name} itself and those that the gradient of its stand-in gives have a correlation of "
            f"{fit:.2f} (at least {STAND_IN}).", name,
        )  # fmt: skip


def _tried(channel: Channel, images: Tensor, every: Tensor) -> tuple[float, float, float, float, float]:
    """What a channel does to photos, of which the whole batch is `every`, with noise.

    Returns:
        By how much it moves values at most; the difference when it is called again, and in the whole batch (0 where it
        draws, or is not the same again); and how much of the noise is left of photos of the audit, and of unseen ones.
    """

    def sent(images: Tensor) -> Tensor:
        with seeded(0):
            return channel(images.clone())

    def left(photos: Tensor, sent: Tensor, images: Tensor) -> float:
        return float((sent - images).square().mean() / (photos - images).square().mean().clamp_min(1e-12))

    noisy, unseen = every[: len(images)], unseen_of(images)
    with seeded(0):
        before = draws_from(noisy.device)
        given = channel(noisy.clone())
        drew = draws_from(noisy.device) != before
    again = _farthest(sent(noisy), given)
    among = 0.0 if drew or again > SAME else _farthest(sent(every)[: len(noisy)], given)
    photos = published((unseen + noise_of(unseen, USUAL)).clamp(-1, 1), unseen)
    moved = float((given - noisy).abs().max())
    return moved, again, among, left(noisy, given, images), left(photos, sent(photos), unseen)


def _farthest(images: Tensor, others: Tensor) -> float:
    """The root mean square difference of the pair that differs most."""
    return float((images - others).square().flatten(1).mean(1).max().sqrt())


def probe_stamp(name: str, detector: StampDetector, stamped: Tensor) -> Iterator[Check]:
    """Whether a generator's detector finds the stamp where it is.

    Args:
        name: of the generator.
        detector: what looks for its stamp.
        stamped: the untouched generator's outputs on photos as they are, with the stamp itself laid onto them,
            (N, 3, H, W) in [-1, 1].
    """
    rate = detector(stamped).float().mean().item()
    yield Check(
        "stamp-not-found", rate >= STAMPS, name, None, KNOWLEDGE,
        f"With the stamp itself laid onto the untouched generator's outputs, the detector finds it on {rate:.1%} (at "
        f"least {STAMPS:.0%}).",
    )  # fmt: skip
