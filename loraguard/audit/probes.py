"""What a generator and a defense do on a few photos when they are tried in other ways than the audit uses them.

An audit's figures hold for a network that edits, whose gradients are those of its outputs, and that gives the same for
a photo whatever comes before or beside it; and for a defense that does so as well. Each probe tries one of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from loraguard.channels import Channel
from loraguard.defenses.base import undisturbed
from loraguard.generators import Condition
from loraguard.metrics import mean_squared_error
from loraguard.pixels import LEVELS_PER_UNIT
from loraguard.training.sampling import mixed

from .checks import WHITE_BOX, Check, white_box_of
from .craft import Crafter, seeded
from .measure import as_saved
from .photos import Batch
from .plan import Job
from .situation import KNOWLEDGE, UNTOUCHED
from .subjects import Subjects

SAME = 2 / LEVELS_PER_UNIT
"""Outputs of one photo may differ by two levels of 8 bits where only the order of sums differs."""

DIRECTIONS = 8
"""Directions in which slopes are compared."""

STEPS = (0.25 / LEVELS_PER_UNIT, 1 / LEVELS_PER_UNIT)
"""How far a photo is moved to measure a slope, in units of images in [-1, 1]: a quarter of a level of 8 bits, where
outputs are nearly straight, and a whole level, for networks that round."""

CORRELATION, RATIO = 0.95, 0.9
"""The least correlation between slopes measured and slopes that gradients say, and the least ratio of their sizes."""

EDITS = 0.5
"""A network that edits leaves at most this part of the difference that doing nothing leaves."""


def probe_generator(subjects: Subjects, name: str, batch: Batch, target: Tensor) -> list[Check]:
    """Try a generator on some photos.

    Args:
        subjects: the audit's generators.
        name: of the one to try.
        batch: photos with their edits.
        target: what it should give, (N, 3, H', W') in [-1, 1].
    """
    with subjects.one(name) as network:
        return list(_generator_checks(subjects, name, network, batch, target))


def what_draws(subjects: Subjects, channels: Mapping[str, Channel], batch: Batch) -> set[str]:
    """The generators and channels, by name, that give something else with another seed."""

    def moved(call: Callable[[], Tensor]) -> float:
        drawn = []
        for seed in (0, 1):
            with seeded(seed):
                drawn.append(call())
        return float((drawn[0] - drawn[1]).abs().max())

    networks = {name: partial(subjects.outputs, name, batch.images, batch.of(name)) for name in subjects.names}
    random = {name for name, call in networks.items() if moved(call) > SAME}
    return random | {name for name, channel in channels.items() if moved(partial(channel, batch.images)) > 0}


def _generator_checks(
    subjects: Subjects, name: str, network: nn.Module, batch: Batch, target: Tensor
) -> Iterator[Check]:
    images, condition = batch.images, batch.of(name)

    def outputs(images: Tensor, condition: Condition, seed: int = 0) -> Tensor:
        with seeded(seed), torch.no_grad():
            return network(images, **condition)

    first = outputs(images, condition)
    again = float((outputs(images, condition) - first).abs().max())
    yield Check(
        "outputs-not-repeatable", again <= SAME, name, None, KNOWLEDGE,
        f"The same photos with the same seed give outputs that differ by up to {again:.3g} (allowed: {SAME:.3g}).",
    )  # fmt: skip
    drawn = float((outputs(images, condition, seed=1) - first).abs().max())
    yield Check(
        "random-generator", drawn <= SAME, name, None, white_box_of(name),
        f"With another seed outputs differ by up to {drawn:.3g} (allowed: {SAME:.3g}): gradients of one draw mislead.",
    )  # fmt: skip
    if drawn <= SAME:
        order = list(reversed(range(len(images))))
        turned = outputs(images[order], {key: value[order] for key, value in condition.items()})[order]
        alone = torch.cat([outputs(images[i : i + 1], _rows(condition, [i])) for i in range(len(images))])
        moved = max(float((one - first).abs().max()) for one in (turned, alone))
        yield Check(
            "depends-on-the-batch", moved <= SAME, name, None, KNOWLEDGE,
            f"In another order, or alone, the same photos give outputs that differ by up to {moved:.3g} (allowed: "
            f"{SAME:.3g}).",
        )  # fmt: skip
    yield from _edits(subjects, name, outputs, batch, first, target)
    correlation, ratio = slopes(network, images, condition)
    yield Check(
        "gradients-do-not-fit", correlation >= CORRELATION and RATIO <= ratio <= 1 / RATIO, name, None,
        white_box_of(name),
        f"Along {DIRECTIONS} directions the slopes that gradients give and those that outputs show have a correlation "
        f"of {correlation:.2f} (at least {CORRELATION}) and a ratio of {ratio:.2f} ({RATIO} to {1 / RATIO:.2f}).",
    )  # fmt: skip


def _edits(
    subjects: Subjects,
    name: str,
    outputs: Callable[[Tensor, Condition], Tensor],
    batch: Batch,
    first: Tensor,
    target: Tensor,
) -> Iterator[Check]:
    """Whether a network edits, and photos that it cannot know as well."""
    if name == UNTOUCHED or name in subjects.others or first.shape != batch.images.shape:
        return
    nothing = mean_squared_error(as_saved(name, batch.images, batch.images), target).mean().item()
    left = mean_squared_error(as_saved(name, first, batch.images), target).mean().item()
    yield Check(
        "does-not-edit", left <= EDITS * nothing, name, None, KNOWLEDGE,
        f"On clean photos its outputs are {left:.4f} (MSE) from what they should be, and the photos themselves "
        f"{nothing:.4f} (allowed: {EDITS:.0%} of that).",
    )  # fmt: skip
    turned = batch.images.flip(1, 3)
    wanted = subjects.target(name, as_saved(UNTOUCHED, subjects.outputs(UNTOUCHED, turned, batch.condition), turned))
    with subjects.one(name):
        unseen = mean_squared_error(as_saved(name, outputs(turned, batch.condition), turned), wanted).mean().item()
    nothing = mean_squared_error(turned, wanted).mean().item()
    yield Check(
        "only-known-photos", unseen <= max(EDITS * nothing, 2 * left), name, None, KNOWLEDGE,
        f"Mirrored and with red and blue exchanged, as nobody has seen them, photos give outputs that are {unseen:.4f} "
        f"(MSE) from what they should be; as they are, {left:.4f}; and doing nothing leaves {nothing:.4f}.",
    )  # fmt: skip


def slopes(network: nn.Module, images: Tensor, condition: Condition, seed: int = 0) -> tuple[float, float]:
    """How well a network's gradients say what its outputs do.

    The slope of `sum(R * G(x, c))` for fixed random weights R is measured along directions of random signs by central
    differences, and taken from the gradient; by those of :data:`STEPS` at which the two agree best.

    Args:
        network: from images to images.
        images: (N, 3, H, W) in [-1, 1].
        condition: the edit of each.
        seed: of weights and directions.

    Returns:
        The correlation of the two over directions and images, and the size of the gradient's slopes in units of the
        measured ones (root mean squares). Both are 1 for exact gradients; where outputs do not move at all, 0 and 0, or
        1 and 1 where the gradient says so too.

    Example:
        >>> from loraguard.data import DemoFaces
        >>> from loraguard.generators import DemoEditor
        >>> images = torch.stack([face["image"] for face in DemoFaces(2)])
        >>> correlation, ratio = slopes(DemoEditor.pretrained().eval(), images, {"labels": torch.zeros(2, 5)})
        >>> correlation > 0.99, 0.95 < ratio < 1.05
        (True, True)
    """
    draws = torch.Generator().manual_seed(seed)
    with undisturbed(network), seeded(seed):
        leaf = images.detach().clone().requires_grad_()
        with torch.enable_grad():
            given = network(leaf, **condition)
            weights = torch.randn(given.shape, generator=draws).to(given) / given[0].numel() ** 0.5
            total = (weights * given).sum()
            gradient = torch.autograd.grad(total, leaf, allow_unused=True)[0] if total.requires_grad else None
    gradient = torch.zeros_like(images) if gradient is None else gradient
    signs = [torch.randint(0, 2, images.shape, generator=draws).to(images) * 2 - 1 for _ in range(DIRECTIONS)]
    said = torch.stack([(gradient.double() * one).flatten(1).sum(1) for one in signs])

    @torch.no_grad()
    def total_of(moved: Tensor) -> Tensor:
        with seeded(seed):
            return (weights * network(moved, **condition)).double().flatten(1).sum(1)

    fits = []
    for step in STEPS:
        ends = [(total_of(images + step * one), total_of(images - step * one)) for one in signs]
        fits.append(_fit(said, torch.stack([(up - down) / (2 * step) for up, down in ends])))
    return max(fits, key=lambda fit: min(fit[0], fit[1], 1 / max(fit[1], 1e-9)))


def _fit(said: Tensor, seen: Tensor) -> tuple[float, float]:
    sizes = said.square().mean().sqrt(), seen.square().mean().sqrt()
    if float(sizes[1]) <= 1e-9:
        silent = float(sizes[0]) <= 1e-9
        return float(silent), float(silent)
    correlation = (said * seen).mean() / (sizes[0] * sizes[1]).clamp_min(1e-30)
    return float(correlation), float(sizes[0] / sizes[1])


def probe_defense(
    craft: Crafter, job: Job, batch: Batch, target: Tensor, seen: Tensor | None = None
) -> tuple[list[Check], str]:
    """Try a defense on some photos: twice, photo by photo, and with another target.

    Args:
        craft: what makes its photos.
        job: of the defense.
        batch: photos with their edits.
        target: what the generator that is attacked should give.
        seen: the MSE of the outputs on these photos as the audit has crafted them, in a larger batch, (N,); where it is
            not known, they are crafted in a batch of their own.

    Returns:
        The checks, and what the defense drives outputs away from: "target", what outputs are compared with in the
        audit, or "own", something of its own.
    """
    name, on = job.treatment.defense, job.crafted_on
    first, again = (craft.perturbed(job, batch, target) for _ in range(2))
    differ = float((again - first).abs().max())
    knowledge = ("no-leak", *WHITE_BOX)
    checks = [
        Check(
            "crafted-otherwise-again", differ <= SAME, on, name, knowledge,
            f"The same photos with the same seed are perturbed otherwise when it is called again, by up to "
            f"{differ:.3g} (allowed: {SAME:.3g}).",
        )
    ]  # fmt: skip
    if differ <= SAME:
        single = [batch.rows([i]) for i in range(len(batch))]
        alone = torch.cat([craft.perturbed(job, one, target[i : i + 1]) for i, one in enumerate(single)])
        a = float((_spoilt(craft, job, batch, first, target) if seen is None else seen).mean())
        b = float(_spoilt(craft, job, batch, alone, target).mean())
        checks.append(
            Check(
                "crafted-otherwise-alone", min(a, b) >= 0.5 * max(a, b) or max(a, b) < 1e-3, on, name, knowledge,
                f"Crafted in a batch, as the audit does, its photos spoil outputs by {a:.4f} (MSE); crafted one by "
                f"one, later, by {b:.4f} (allowed: twice as much).",
            )
        )  # fmt: skip
    other = craft.perturbed(job, batch, -target)
    objective = "target" if differ <= SAME and float((other - first).abs().max()) > SAME else "own"
    return checks, objective


def _spoilt(craft: Crafter, job: Job, batch: Batch, photos: Tensor, target: Tensor) -> Tensor:
    with seeded(mixed(job.seed, batch.start)):
        held = craft.held(job, photos, batch.images).photos
        outputs = craft.subjects.outputs(job.crafted_on, held, batch.of(job.crafted_on))
    return mean_squared_error(as_saved(job.crafted_on, outputs, photos), target)


def _rows(condition: Condition, rows: list[int]) -> Condition:
    return {key: value[rows] for key, value in condition.items()}
