"""Photos as a defense publishes them, held to the threat model that the audit states."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from loraguard.channels import Channel, Through, published, quantize
from loraguard.data import collate
from loraguard.defenses import Defense, Fittable
from loraguard.fingerprint import digest
from loraguard.generators import Conditions
from loraguard.metrics import psnr
from loraguard.pixels import LEVELS_PER_UNIT
from loraguard.training.sampling import mixed

from .identity import is_own
from .photos import Batch
from .plan import Job
from .situation import NO_CHANNEL
from .subjects import Subjects
from .unharmed import Unharmed, settings_kept

LEAST_LIKENESS = 20.0
"""In dB (PSNR): random signs of 25 of 255 levels on every value keep as much; other people's faces have 5 to 15."""

MOVED = 1 / LEVELS_PER_UNIT
"""A generator whose output on one photo moves further than a level of 8 bits is another one."""

TOLERANCE = 1e-4
"""By so much a perturbation may pass its budget or its range for rounding: a hundredth of a level of 8 bits."""

_BEYOND = 0x5BD1E995


@dataclass(frozen=True)
class Crafted:
    """Photos that a defense has perturbed.

    Attributes:
        photos: as they are published, 8 bits a value, within the budget, (N, 3, H, W) in [-1, 1].
        moved: how far the defense itself moved each photo, L-infinity, before anything was held to the budget, (N,).
    """

    photos: Tensor
    moved: Tensor


def drawn_beyond(seed: int, start: int) -> int:
    """The seed of what channels and generators draw on a batch: whoever crafted its photos has drawn nothing of it.

    From the same seed noise and a channel's noise would be the same, so that one adds to the other or takes it away.
    """
    return mixed(seed, start) ^ _BEYOND


def must_fit(job: Job) -> bool:
    """Whether a job's defense is to be fitted: one that was fitted beforehand is taken so for its own main job."""
    as_it_is = (job.treatment.knowledge, job.treatment.role) in (("no-leak", "main"), ("noise", "control"))
    if not isinstance(job.defense, Fittable):
        return False
    return job.defense.must_be_fitted or not (as_it_is or job.defense.fits_every_generator)


class Crafter:
    """Makes each job's photos, and holds whoever makes them to the threat model.

    A defense gets copies of photos, condition and target. It may move each value by its budget, and nothing else: where
    it moves further its photos are brought back into the budget, and how far they were goes into the record. One that
    changes the generators (weights, buffers, modes, hooks, methods), after which they give other outputs for whatever
    reason, or that gives something that is no photo of these is refused. Settings of the process are put back.

    Args:
        subjects: the audit's generators.
        channels: by name.
        fit_on: photos for defenses that have to be fitted.
        conditions: from labels to edits.
    """

    def __init__(
        self,
        subjects: Subjects,
        channels: Mapping[str, Channel],
        fit_on: Dataset[Any] | None,
        conditions: Conditions | None,
    ) -> None:
        self.subjects, self.channels = subjects, channels
        self.fit_on, self.conditions = fit_on, conditions
        self.unharmed = Unharmed([subjects.model, *subjects.networks.values()])
        self.fits: dict[tuple[int, str, str, int], Defense] = {}
        self.known: dict[tuple[str, str], tuple[Batch, Tensor, bool]] = {}
        self.undrawn: tuple[tuple[Any, ...], Tensor] | None = None
        self.silent = True
        self.drew = True

    def __call__(self, job: Job, batch: Batch, target: Tensor) -> Crafted:
        """A batch as the job's defense publishes it.

        Args:
            job: what is to be made.
            batch: the photos.
            target: what the generator that is attacked should give on them; the defense's `clean`.

        Raises:
            ValueError: for a defense that does not keep to the threat model; the message names it.
        """
        images, name = batch.images, job.treatment.defense
        if job.treatment.role == "control":
            own = replace(job, treatment=replace(job.treatment, knowledge="no-leak", role="main"))
            with seeded(drawn_beyond(job.seed, batch.start)):
                noise = as_noise(self(own, batch, target).photos, images)
            return Crafted(noise, farthest(noise, images))
        if name in batch.given:
            given = batch.given[name]
            return Crafted(quantize(given), farthest(given, images))
        if job.defense is None:
            return Crafted(images, torch.zeros(len(batch)))
        return self.held(job, self._for_any_seed(job, batch, target), images)

    def held(self, job: Job, perturbed: Tensor, images: Tensor) -> Crafted:
        """What the defense itself gives as it is published, within the budget that the audit states."""
        moved = farthest(perturbed, images)
        eps = job.treatment.eps
        if job.bounded and eps is not None and float(moved.max()) > eps + TOLERANCE:
            perturbed = torch.clamp(perturbed, images - eps, images + eps)
        return Crafted(published(perturbed, images), moved)

    def _for_any_seed(self, job: Job, batch: Batch, target: Tensor) -> Tensor:
        """:meth:`perturbed`; of a defense that draws nothing once, and for the next seeds what it gave then."""
        same = (id(job.defense), job.treatment, job.crafted_on, job.through, batch.start, len(batch))
        if self.undrawn is not None and self.undrawn[0] == same:
            return self.undrawn[1]
        perturbed = self.perturbed(job, batch, target)
        self.undrawn = None if self.drew or must_fit(job) else (same, perturbed)
        return perturbed

    def perturbed(self, job: Job, batch: Batch, target: Tensor) -> Tensor:
        """What the defense itself gives, checked but for its budget; :attr:`drew` says whether it drew at random."""
        who = f"The defense {job.treatment.defense!r}"
        trusted = is_own(job.defense)
        attacked = job.crafted_on, job.through
        if not trusted and attacked not in self.known:
            one = batch.rows([0])
            first, again = (self._output(*attacked, one) for _ in range(2))
            self.known[attacked] = one, first, float((again - first).abs().max()) <= MOVED
        with self.subjects.one(job.crafted_on) as network, settings_kept():
            through = self.channels[job.through].differentiable()
            generator = network if job.through == NO_CHANNEL else Through(network, through)
            defense = self._fitted(job, generator) if must_fit(job) else job.defense
            condition = {key: value.clone() for key, value in batch.of(job.crafted_on).items()}
            with seeded(mixed(job.seed, batch.start)):  # the same random start whatever else is audited
                before = draws_from(batch.images.device)
                with nullcontext() if trusted else self.subjects.watched(job.crafted_on, who):
                    perturbed = defense(generator, batch.images.clone(), condition, clean=target.clone())
                self.drew = draws_from(batch.images.device) != before
        self.unharmed.check(who)
        if not trusted:
            self._check_output(*attacked, who)
        if isinstance(perturbed, Tensor):
            perturbed = perturbed.detach().as_subclass(Tensor)
        check_perturbed(job.treatment.defense, perturbed, batch.images)
        return perturbed.to(batch.images.dtype).clamp(-1, 1)

    def _output(self, generator: str, through: str, one: Batch) -> Tensor:
        """What a generator gives for a photo that went through a channel, and through what stands in for it."""
        channel = self.channels[through]
        ways = [channel] if through == NO_CHANNEL else [channel, channel.differentiable()]
        with seeded(0), torch.no_grad():
            sent = [way(one.images.clone()) for way in ways]
            return torch.cat([self.subjects.outputs(generator, images, one.of(generator)) for images in sent])

    def _check_output(self, generator: str, through: str, who: str) -> None:
        """Compare a generator's output on one photo with what it was before anybody had attacked it.

        Of one that is not repeatable this says nothing; the probes flag it.

        Raises:
            ValueError: if it is another one.
        """
        one, was, repeatable = self.known[generator, through]
        off = float((self._output(generator, through, one) - was).abs().max())
        if repeatable and not off <= MOVED:
            where, or_channel = ("", "") if through == NO_CHANNEL else (f" behind {through!r}", " or the channel")
            raise ValueError(
                f"{who} changed the generator{or_channel}: since it was called {generator!r}{where} gives an output "
                f"for the same photo that is off by {off:.3g}, which would spoil every figure after it. No defense may "
                "change what it attacks (attributes, classes, torch's own functions); let it work on a copy. If the "
                "generator changes by itself between calls, it cannot be audited."
            )

    def _fitted(self, job: Job, generator: Any) -> Defense:
        key = (id(job.defense), job.crafted_on, job.through, job.seed)
        if key not in self.fits:
            assert self.fit_on is not None
            who = f"Fitting the defense {job.treatment.defense!r}"
            before = self._first_item()
            with seeded(mixed(job.seed, 2**31)), self.subjects.watched(job.crafted_on, who):
                conditions = self._conditions_of(job.crafted_on)
                self.fits[key] = job.defense.fit(generator, self.fit_on, conditions, disable_tqdm=self.silent)
            self.unharmed.check(who)
            if self._first_item() != before:
                raise ValueError(
                    f"{who} changed the photos that it is fitted on, which other defenses and detectors get as well. "
                    "Let it work on copies, as image.clone() makes them."
                )
        return self.fits[key]

    def _first_item(self) -> str:
        """What the first item to fit on is; of a data set that draws at random, with the same seed."""
        with seeded(0):
            return digest(collate([self.fit_on[0]]))  # type: ignore[index]

    def _conditions_of(self, generator: str) -> Conditions | None:
        """From labels to edits as a generator takes them; further networks take them as the audit's own one does."""
        if generator in self.subjects.others:
            return None
        if generator in self.subjects.networks:
            return self.conditions or getattr(self.subjects.model, "conditions", None)
        return self.conditions


def draws_from(device: torch.device) -> list[bytes]:
    """Where torch, NumPy and Python stand in what they draw: the same after a call that has drawn nothing."""
    states = [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]
    others = np.random.get_state(), random.getstate()  # noqa: NPY002 - what defenses draw from is this very state
    return [*(one.numpy().tobytes() for one in states), pickle.dumps(others)]


def farthest(perturbed: Tensor, images: Tensor) -> Tensor:
    """The largest change of any value of each photo, L-infinity in units of images in [-1, 1]: (N,).

    Example:
        >>> farthest(torch.full((2, 3, 4, 4), 0.25), torch.zeros(2, 3, 4, 4))
        tensor([0.2500, 0.2500])
    """
    return (perturbed - images).abs().flatten(1).amax(1).cpu()


def as_noise(photos: Tensor, images: Tensor) -> Tensor:
    """Noise of the size of a perturbation: each photo's changes at random places, up or down at random.

    Args:
        photos: perturbed, 8 bits a value, (N, 3, H, W) in [-1, 1].
        images: the originals.

    Example:
        >>> images = torch.zeros(1, 3, 4, 4)
        >>> noise = as_noise(images + torch.tensor([0.0, 0.2]).repeat(24).reshape(1, 3, 4, 4), images)
        >>> (noise - quantize(images)).abs().unique(return_counts=True)[1].tolist()
        [24, 24]
    """
    original = quantize(images)
    sizes = (photos - original).flatten(1)
    places = torch.rand(sizes.shape).argsort(1).to(sizes.device)
    signs = torch.randint(0, 2, sizes.shape).to(sizes) * 2 - 1
    return (original + (sizes.gather(1, places) * signs).view_as(images)).clamp(-1, 1)


def check_perturbed(name: str, perturbed: Any, images: Tensor) -> None:
    """Refuse what is no perturbed version of images: another type, shape or range, or values that are not finite.

    Raises:
        ValueError: naming the defense and what it gave.

    Example:
        >>> check_perturbed("loud", 3 * torch.ones(1, 3, 4, 4), torch.ones(1, 3, 4, 4))
        Traceback (most recent call last):
        ...
        ValueError: The defense 'loud' gives values from 3 to 3; photos are in [-1, 1], so clip what it returns.
    """
    who = f"The defense {name!r} gives"
    check_images(who, perturbed, images)
    low, high = float(perturbed.min()), float(perturbed.max())
    if low < -1 - TOLERANCE or high > 1 + TOLERANCE:
        raise ValueError(f"{who} values from {low:.4g} to {high:.4g}; photos are in [-1, 1], so clip what it returns.")


def check_images(who: str, given: Any, images: Tensor) -> None:
    """Refuse what are no images of the same shape as these, floating and finite.

    Raises:
        ValueError: that begins with `who`.
    """
    if not isinstance(given, Tensor):
        raise ValueError(f"{who} {type(given).__name__}; expected a tensor of shape {tuple(images.shape)}.")
    if given.shape != images.shape or not given.is_floating_point():
        raise ValueError(
            f"{who} {str(given.dtype).removeprefix('torch.')} {tuple(given.shape)} for photos of "
            f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}; expected floating images of that shape."
        )
    if not torch.isfinite(given).all():
        raise ValueError(f"{who} values that are not finite.")


def check_likeness(name: str, perturbed: Tensor, images: Tensor, start: int = 0) -> None:
    """Refuse photos of others as perturbed versions: each must be a small change of its own original.

    Args:
        name: of the defense that is said to have perturbed them.
        perturbed: (N, 3, H, W) in [-1, 1].
        images: the originals, likewise.
        start: the number of the first photo, for the message.

    Raises:
        ValueError: for a photo under :data:`LEAST_LIKENESS`.
    """
    likeness = psnr(perturbed, images)
    worst = int(likeness.argmin())
    if float(likeness[worst]) < LEAST_LIKENESS:
        levels = float(farthest(perturbed, images)[worst]) * LEVELS_PER_UNIT
        raise ValueError(
            f"Photo {start + worst} that {name!r} is said to have perturbed is {float(likeness[worst]):.1f} dB (PSNR) "
            f"from its original, with values up to {levels:.0f} of 255 "
            f"levels away; a small change keeps {LEAST_LIKENESS:g} dB. Is it the same photo, in the same orientation "
            "and order? If the change is so large, allow_large_change (--allow-large-change) goes on and flags it."
        )


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within the block torch, NumPy and Python draw from this seed; NumPy and Python go on afterwards as before.

    Torch's own state is for the caller to keep: an audit keeps it over its whole length.
    """
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - what defenses draw from is this very state
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
