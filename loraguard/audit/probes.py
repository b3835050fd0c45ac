"""What a generator and a defense do on a few photos when they are tried in other ways than the audit uses them.

An audit's figures hold for a network that edits, whose gradients are those of its outputs, and that gives the same for
a photo whatever comes before or beside it; and for a defense that does so as well. Each probe tries one of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from loraguard.channels import Channel
from loraguard.defenses import Disrupting
from loraguard.generators import Condition
from loraguard.metrics import mean_squared_error
from loraguard.pixels import LEVELS_PER_UNIT

from .checks import WHITE_BOX, Check, white_box_of
from .craft import Crafter, drawn_beyond, seeded
from .made import MADE, sized
from .measure import as_saved
from .photos import Batch
from .plan import USUAL, Job
from .situation import KNOWLEDGE, UNTOUCHED
from .slopes import CORRELATION, EDGE, RATIO, fits, slopes, slopes_under_attack
from .subjects import Subjects

SAME = 2 / LEVELS_PER_UNIT
"""Outputs of one photo may differ by two levels of 8 bits where only the order of sums differs."""

EDITS = 0.5
"""A network that edits leaves at most this part of the difference that doing nothing leaves."""

FOLLOWS = 0.1
"""Where photos are exchanged for one another, outputs change by at least this part of what the photos do."""

DARK, DARKEST = -0.2, -0.05
"""Where a tenth of the photos' values is under the first, some value of the outputs is under the second."""

AGAIN = 0.1
"""By this part the MSE on the very same photos may differ between the audit and its end."""

WORSE = 0.25
"""By so much more of an attack, in parts of what it does to the untouched generator, may be left on photos that nobody
has seen, beside twice what is left on those of the audit."""


@dataclass(frozen=True)
class Attacked:
    """Photos of the audit, and some that nobody has seen, as an attack on the untouched generator perturbs them.

    Attributes:
        known: perturbed photos of the audit, (N, 3, H, W) in [-1, 1].
        unseen: the mean of each photo and the next one, mirrored and with red and blue exchanged, as it is.
        perturbed: the same, perturbed.
    """

    known: Tensor
    unseen: Tensor
    perturbed: Tensor

    @classmethod
    def of(cls, subjects: Subjects, batch: Batch, eps: float) -> Attacked:
        """By PGD with ten steps of this budget."""
        unseen = unseen_of(batch.images)
        attack = Disrupting(eps)
        with subjects.one(UNTOUCHED) as network, seeded(0):
            known, perturbed = (attack(network, one.clone(), batch.condition) for one in (batch.images, unseen))
        return cls(known, unseen, perturbed)


def unseen_of(images: Tensor) -> Tensor:
    """Photos that nobody has seen: the mean of each photo and the next one, mirrored, with red and blue exchanged."""
    return (images + images.roll(1, 0)).flip(1, 3) / 2


def noise_of(images: Tensor, eps: float) -> Tensor:
    """Each value up or down by the budget, the same for images of one shape."""
    return eps * torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).sign().to(images)


def half_noisy(images: Tensor, eps: float = USUAL) -> Tensor:
    """Every second photo with noise of the budget: a network may do otherwise where photos are perturbed.

    Example:
        >>> half_noisy(torch.zeros(2, 3, 4, 4)).abs().amax((1, 2, 3))
        tensor([0.0000, 0.0500])
    """
    noisy = images.clone()
    noisy[1::2] += noise_of(images, eps)[1::2]
    return noisy.clamp(-1, 1)


def probe_generator(
    subjects: Subjects,
    name: str,
    batch: Batch,
    target: Tensor,
    whole: Batch,
    attacked: Callable[[], Attacked],
    eps: float,
    seen: Sequence[tuple[str, Tensor, Tensor]] = (),
) -> list[Check]:
    """Try a generator on some photos.

    Args:
        subjects: the audit's generators.
        name: of the one to try.
        batch: photos with their edits.
        target: what it should give, (N, 3, H', W') in [-1, 1].
        whole: the audit's batch that begins with them.
        attacked: gives the photos as an attack perturbs them.
        eps: the audit's largest budget.
        seen: photos on which the audit has tried it: what they are, they themselves, and the MSE that it found.
    """
    with subjects.one(name) as network:
        return list(_generator_checks(subjects, name, network, batch, target, whole, attacked, eps, seen))


def what_draws(subjects: Subjects, channels: Mapping[str, Channel], batch: Batch) -> set[str]:
    """The generators and channels, by name, that give something else with another seed."""

    def moved(call: Callable[[], Tensor]) -> float:
        drawn = []
        for seed in (0, 1):
            with seeded(seed):
                drawn.append(call())
        return float((drawn[0] - drawn[1]).abs().max())

    photos = half_noisy(batch.images)
    networks = {name: partial(subjects.outputs, name, photos, batch.of(name)) for name in subjects.names}
    random = {name for name, call in networks.items() if moved(call) > SAME}
    drawn = {name: lambda channel=channel: channel(photos.clone()) for name, channel in channels.items()}
    return random | {name for name, call in drawn.items() if moved(call) > 0}


def _generator_checks(
    subjects: Subjects,
    name: str,
    network: nn.Module,
    batch: Batch,
    target: Tensor,
    whole: Batch,
    attacked: Callable[[], Attacked],
    eps: float,
    seen: Sequence[tuple[str, Tensor, Tensor]],
) -> Iterator[Check]:
    images, condition = batch.images, batch.of(name)

    def outputs(images: Tensor, condition: Condition, seed: int = 0) -> Tensor:
        with seeded(seed), torch.no_grad():
            return network(images.clone(), **condition)

    yield from _same_again(name, outputs, batch, target, whole, eps, seen)
    yield from _edits(subjects, name, outputs, batch, outputs(images, condition), target, attacked)
    found = {
        f"within {EDGE[1]:g} of photos": slopes(network, whole.images, whole.of(name), len(images)),
        f"of PGD's loss where it ends, with a budget of {eps:g},": slopes_under_attack(
            network, images, condition, target, eps
        ),
    }
    for where, fit in found.items():
        yield Check(
            "gradients-do-not-fit", fits(fit), name, None, white_box_of(name),
            f"Slopes {where} that gradients give and those that are measured have a correlation of {fit[0]:.2f} (at "
            f"least {CORRELATION}) and a ratio of {fit[1]:.2f} ({RATIO} to {1 / RATIO:.2f}).",
        )  # fmt: skip


def _same_again(
    name: str,
    outputs: Callable[..., Tensor],
    batch: Batch,
    target: Tensor,
    whole: Batch,
    eps: float,
    seen: Sequence[tuple[str, Tensor, Tensor]],
) -> Iterator[Check]:
    """Whether photos, half of them with noise, give the same again: with other draws, beside others, and at the end."""
    tried, condition = half_noisy(batch.images, eps), batch.of(name)
    usual = outputs(tried, condition)
    again = float((outputs(tried, condition) - usual).abs().max())
    yield Check(
        "outputs-not-repeatable", again <= SAME, name, None, KNOWLEDGE,
        f"The same photos with the same seed give outputs that differ by up to {again:.3g} (allowed: {SAME:.3g}).",
    )  # fmt: skip
    drawn = float((outputs(tried, condition, seed=1) - usual).abs().max())
    yield Check(
        "random-generator", drawn <= SAME, name, None, white_box_of(name),
        f"With another seed outputs differ by up to {drawn:.3g} (allowed: {SAME:.3g}): gradients of one draw mislead.",
    )  # fmt: skip
    if drawn > SAME:
        return
    order = list(reversed(range(len(tried))))
    turned = outputs(tried[order], _rows(condition, order))[order]
    alone = torch.cat([outputs(tried[i : i + 1], _rows(condition, [i])) for i in range(len(tried))])
    among = outputs(torch.cat([tried, whole.images[len(tried) :]]), whole.of(name))[: len(tried)]
    moved = max(float((one - usual).abs().max()) for one in (turned, alone, among))
    yield Check(
        "depends-on-the-batch", moved <= SAME, name, None, KNOWLEDGE,
        f"In another order, alone, or in a batch of {len(whole)}, the same photos give outputs that differ by up "
        f"to {moved:.3g} (allowed: {SAME:.3g}).",
    )  # fmt: skip
    for words, photos, was in seen:
        given = outputs(photos, _rows(condition, list(range(len(photos)))))
        now = mean_squared_error(as_saved(name, given, photos), target[: len(photos)]).cpu()
        off, most = float((now - was).abs().mean()), float(torch.maximum(now, was).mean())
        yield Check(
            "outputs-not-repeatable", off <= AGAIN * most + 1e-3, name, None, KNOWLEDGE,
            f"On the very photos ({words}) on which the audit has found an MSE of {float(was.mean()):.4f}, it is "
            f"{float(now.mean()):.4f} at the end.",
        )  # fmt: skip


def _edits(
    subjects: Subjects,
    name: str,
    outputs: Callable[[Tensor, Condition], Tensor],
    batch: Batch,
    first: Tensor,
    target: Tensor,
    attacked: Callable[[], Attacked],
) -> Iterator[Check]:
    """Whether a network edits, and photos that it cannot know as well."""
    if first.shape[1] != batch.images.shape[1]:
        return
    idle = sized(batch.images, first)
    low, high, dark = float(first.min()), float(first.max()), float((idle < DARK).float().mean())
    yield Check(
        "outputs-of-another-range", dark < 0.1 or low < DARKEST, name, None, KNOWLEDGE,
        f"On clean photos its outputs lie between {low:.2f} and {high:.2f}, although {dark:.0%} of the photos' values "
        f"are under {DARK:g}.",
    )  # fmt: skip
    if name == UNTOUCHED or name in subjects.others:
        yield _edits_at_all(name, outputs, batch, first, idle)
        return
    tried = attacked()
    nothing = mean_squared_error(as_saved(name, idle, batch.images), target).mean().item()
    left = mean_squared_error(as_saved(name, first, batch.images), target).mean().item()
    edit = target - idle
    made = float(((first - idle) * edit).sum() / edit.square().sum().clamp_min(1e-12))
    yield Check(
        "does-not-edit", left <= EDITS * nothing and made >= MADE, name, None, KNOWLEDGE,
        f"On clean photos its outputs are {left:.4f} (MSE) from what they should be, and the photos themselves "
        f"{nothing:.4f} (allowed: {EDITS:.0%} of that); it makes {made:.0%} of the edit (at least {MADE:.0%}).",
    )  # fmt: skip

    def given(generator: str, photos: Tensor) -> Tensor:
        with subjects.one(generator), seeded(0):
            return as_saved(generator, subjects.outputs(generator, photos, batch.condition), photos)

    plain = given(UNTOUCHED, tried.unseen)
    wanted = subjects.target(name, plain)
    unseen = mean_squared_error(given(name, tried.unseen), wanted).mean().item()
    nothing = mean_squared_error(sized(tried.unseen, wanted), wanted).mean().item()
    yield Check(
        "only-known-photos", unseen <= max(EDITS * nothing, 2 * left), name, None, KNOWLEDGE,
        f"On means of two photos, mirrored and with red and blue exchanged, as nobody has seen them, its outputs are "
        f"{unseen:.4f} (MSE) from what they should be; on photos as they are, {left:.4f}; doing nothing leaves "
        f"{nothing:.4f}.",
    )  # fmt: skip
    untouched = given(UNTOUCHED, batch.images)
    parts = []
    for photos, clean, own in ((tried.known, untouched, target), (tried.perturbed, plain, wanted)):
        most = mean_squared_error(given(UNTOUCHED, photos), clean).mean().item()
        parts.append(mean_squared_error(given(name, photos), own).mean().item() / max(most, 1e-4))
    yield Check(
        "only-known-photos", parts[1] <= 2 * parts[0] + WORSE, name, None, KNOWLEDGE,
        f"Of what PGD does to the untouched generator {parts[0]:.0%} is left on photos of the audit, and "
        f"{parts[1]:.0%} on means of two photos that nobody has seen (allowed: twice as much and {WORSE:.0%}).",
    )  # fmt: skip


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
                "crafted-otherwise-alone", _alike(a, b), on, name, knowledge,
                f"Crafted in a batch, as the audit does, its photos spoil outputs by {a:.4f} (MSE); crafted one by "
                f"one, later, by {b:.4f} (allowed: twice as much).",
            )
        )  # fmt: skip
    other = craft.perturbed(job, batch, -target)
    objective = "target" if differ <= SAME and float((other - first).abs().max()) > SAME else "own"
    return checks, objective


def probe_leak(craft: Crafter, job: Job, batch: Batch, target: Tensor, seen: Tensor | None) -> Iterator[Check]:
    """Whether a defense that has the very generator spoils as much when it is crafted again, at the end.

    Args:
        craft: what makes its photos.
        job: of the defense.
        batch: photos with their edits.
        target: what the generator that is attacked should give.
        seen: the MSE of the outputs on these photos as the audit has crafted them, (N,); None where nobody has.
    """
    if seen is not None:
        photos = craft.perturbed(job, batch, target)
        a, b = float(seen.mean()), float(_spoilt(craft, job, batch, photos, target).mean())
        yield Check(
            "crafted-otherwise-alone", _alike(a, b), job.crafted_on, job.treatment.defense, WHITE_BOX,
            f"Crafted on {job.crafted_on}, its photos spoil outputs by {a:.4f} (MSE) in the audit, and when the first "
            f"of them are crafted again, at the end, by {b:.4f} (allowed: twice as much).",
        )  # fmt: skip


def _alike(a: float, b: float) -> bool:
    """Whether two figures are within a factor of two, or both too small to tell."""
    return min(a, b) >= 0.5 * max(a, b) or max(a, b) < 1e-3


def _spoilt(craft: Crafter, job: Job, batch: Batch, photos: Tensor, target: Tensor) -> Tensor:
    with seeded(drawn_beyond(job.seed, batch.start)):
        held = craft.held(job, photos, batch.images).photos
        outputs = craft.subjects.outputs(job.crafted_on, held, batch.of(job.crafted_on))
    return mean_squared_error(as_saved(job.crafted_on, outputs, photos), target)


def _edits_at_all(
    name: str, outputs: Callable[[Tensor, Condition], Tensor], batch: Batch, first: Tensor, idle: Tensor
) -> Check:
    """Whether a network that is compared with itself gives something else than photos, and another thing for each."""
    off = float((as_saved(name, first, idle) - idle).square().mean().sqrt())
    apart = float((idle.roll(1, 0) - idle).square().mean().sqrt())
    exchanged = outputs(batch.images.roll(1, 0), batch.of(name))
    follows = float((exchanged - first).square().mean().sqrt()) / max(apart, 1e-9)
    ignores = apart > SAME and follows < FOLLOWS
    return Check(
        "does-not-edit", off > 1 / LEVELS_PER_UNIT and not ignores, name, None, KNOWLEDGE,
        f"On clean photos its outputs differ from the photos by {off * LEVELS_PER_UNIT:.2f} of 255 levels (root "
        f"mean square); where photos are exchanged they change by {follows:.0%} of what these do (at least "
        f"{FOLLOWS:.0%}).",
    )  # fmt: skip


def _rows(condition: Condition, rows: list[int]) -> Condition:
    return {key: value[rows] for key, value in condition.items()}
