"""Whether protected photos can be told from plain ones: whoever detects a protection can filter or purify it.

A small network learns the difference on other photos than those of the audit, kept apart by content, and is then asked
about the audited ones. It is no steganalyst: what it finds anybody can find, and what it does not find others may.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from loraguard.channels import quantize
from loraguard.data import Part, PhotoVersions
from loraguard.generators import Conditions
from loraguard.metrics import Estimate, estimate

from .craft import seeded
from .overlap import hashes_in
from .photos import Photos
from .plan import Job
from .run import Clean, Run
from .share import Share
from .situation import UNTOUCHED
from .store import key_of

FALSE_ALARMS = 0.01
"""The share of plain photos that may be taken for protected ones."""

STEPS, PAIRS, CROP = 200, 16, 64
"""Of the network's training: steps, photos in a batch (each plain and protected), and the size of what it sees."""

_VERSION = 1


@dataclass(frozen=True)
class Detection:
    """How well the photos of a defense are told from plain ones.

    Attributes:
        defense: its name; "none" for the control, plain photos that are called protected; "noise" for random noise.
        eps: its budget.
        found: the share of protected photos that are found.
        false_alarms: the share of plain ones that are taken for protected, at the same threshold.
        trained_on: how many other photos the network has seen.
    """

    defense: str
    eps: float | None
    found: Estimate
    false_alarms: Estimate
    trained_on: int


class Telltale(nn.Module):
    """A network of 25,000 weights that sees an image and what a blur takes from it."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(6, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.last = nn.Linear(4 * width, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1] to scores (N,), high for protected ones."""
        blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
        found = self.layers(torch.cat([images, 8 * (images - blurred)], 1)).flatten(2)
        return self.last(torch.cat([found.mean(2), found.std(2)], 1)).flatten()


def found_at(plain: Tensor, protected: Tensor, false_alarms: float = FALSE_ALARMS) -> tuple[Tensor, Tensor]:
    """Which protected photos score above the threshold that no more than a share of the plain ones exceeds.

    Args:
        plain: scores (N,).
        protected: scores (M,).
        false_alarms: that share.

    Returns:
        0 or 1 for each protected photo, (M,), and for each plain one, (N,).

    Example:
        >>> found, alarms = found_at(torch.arange(200.0), torch.tensor([150.0, 198.0, 300.0]))
        >>> found.tolist(), int(alarms.sum())
        ([0.0, 1.0, 1.0], 2)
    """
    allowed = int(false_alarms * len(plain))
    threshold = plain.sort(descending=True).values[allowed]
    return (protected > threshold).double(), (plain > threshold).double()


def learned(plain: Tensor, protected: Tensor, seed: int, steps: int = STEPS) -> Telltale:
    """A network that has learned to tell protected photos from plain ones.

    Args:
        plain: photos (N, 3, H, W) in [-1, 1].
        protected: the same ones, protected.
        seed: of its weights, batches and crops.
        steps: of its training.
    """
    with seeded(seed), torch.enable_grad():
        network = Telltale().to(plain.device)
        optimizer = torch.optim.Adam(network.parameters(), 3e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            rows = torch.randint(len(plain), (min(PAIRS, len(plain)),))
            both = _cropped(torch.cat([plain[rows], protected[rows]]))
            labels = torch.cat([torch.zeros(len(rows)), torch.ones(len(rows))]).to(both)
            loss = F.binary_cross_entropy_with_logits(network(both), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def _cropped(images: Tensor) -> Tensor:
    """A random part of each photo, the same of its two versions, mirrored or not."""
    height, width = images.shape[-2:]
    top, left = (int(torch.randint(max(size - CROP, 0) + 1, ())) for size in (height, width))
    part = images[..., top : top + CROP, left : left + CROP]
    return part.flip(3) if torch.rand(()) < 0.5 else part


def detections(
    run: Run, others: Dataset[Any], count: int, conditions: Conditions | None, share: Share, anew: list[str]
) -> list[Detection]:
    """How well each defense's photos are told from plain ones, without a leak and for the first seed.

    What comes out is kept among the audit's cells; of what an earlier run has kept, one, drawn at random, is learned
    again, and all where it does not come out again. Of photos that somebody else has perturbed there are no others to
    learn from, so that they are left out.

    Args:
        run: an audit's, whose photos are asked about.
        others: photos to learn from; those that are versions of audited ones are left out.
        count: how many of them, at most.
        conditions: from labels to edits.
        share: this process' part of the audit; the first one learns.
        anew: gets a line where what was kept did not come out again.

    Raises:
        ValueError: if fewer than two are left.
    """
    audited = [Clean(run.subjects, batch) for batch in run.photos]
    kept = _apart(others, [PhotoVersions.of(one.whole.images) for one in audited], count)
    photos = Photos(
        Part(others, kept), run.subjects.model, conditions, {}, batch_size=run.photos.batch_size,
        seed=run.jobs[0].seed, device=run.photos.device,
    )  # fmt: skip
    known = [Clean(run.subjects, batch) for batch in photos]
    jobs = [job for job in run.jobs if _counts(run, job)]
    batches = [*known, *audited]
    keys = [key_of("detect", _VERSION, STEPS, *(run.names.piece(job, one.whole) for one in batches)) for job in jobs]
    if share.number == 0:
        stored = {key: job for job, key in zip(jobs, keys, strict=True) if run.store.read(key) is not None}
        if stored:
            key, job = random.SystemRandom().choice([*stored.items()])
            before, found = _read(run.store.read(key) or {}, ""), _detected(run, job, known, audited)
            if not all(_agree(getattr(before, one), getattr(found, one)) for one in ("found", "false_alarms")):
                anew.append("how well protected photos are told from plain ones")
                stored = {}
        for job, key in zip(jobs, keys, strict=True):
            if key not in stored:
                run.store.write(key, asdict(_detected(run, job, known, audited)), {})
    share.wait()
    return [_read(run.store.read(key) or {}, job.treatment.defense) for job, key in zip(jobs, keys, strict=True)]


def _agree(before: Estimate, found: Estimate) -> bool:
    """Whether two shares are the same but for a tenth of the photos, as another processor may learn otherwise."""
    ends = [((getattr(before, one) or 0.0), (getattr(found, one) or 0.0)) for one in ("mean", "low", "high")]
    return before.n == found.n and all(abs(a - b) <= max(0.1, 2 / found.n) for a, b in ends)


def _read(stored: dict[str, Any], defense: str) -> Detection:
    """What was kept, by the name that the defense has in this audit."""
    rates = {name: Estimate(**stored[name]) for name in ("found", "false_alarms")}
    return Detection(**{**stored, **rates, "defense": defense})


def _apart(others: Dataset[Any], audited: Sequence[PhotoVersions], count: int) -> list[int]:
    """The first photos that are no versions of audited ones, by number."""
    known = hashes_in(others)
    versions = PhotoVersions.joined(audited).like(known).any(0)
    kept = [at for at, same in enumerate(versions.tolist()) if not same][:count]
    if len(kept) < 2:
        raise ValueError(
            f"detect={count} needs photos beside those of the audit, and of {len(known)} in fit_on {len(kept)} are no "
            "versions of audited ones. Give more photos (--fit-images)."
        )
    return kept


def _counts(run: Run, job: Job) -> bool:
    treatment = job.treatment
    plain = treatment.role == "main" and treatment.knowledge in ("clean", "noise", "no-leak")
    return plain and job.seed == run.jobs[0].seed and treatment.defense not in run.photos.given


def _detected(run: Run, job: Job, known: Sequence[Clean], audited: Sequence[Clean]) -> Detection:
    plain, protected = _photos(run, job, known)
    network = learned(plain, protected, job.seed)
    of_plain, of_protected = (torch.cat(list(_scores(network, one))) for one in _photos(run, job, audited))
    found, alarms = found_at(of_plain, of_protected)
    rates = [estimate(one, share=True) for one in (found, alarms)]
    return Detection(job.treatment.defense, job.treatment.eps, rates[0], rates[1], len(plain))


def _photos(run: Run, job: Job, batches: Sequence[Clean]) -> tuple[Tensor, Tensor]:
    """Photos as they are and as a job makes them, both of 8 bits."""
    made = [quantize(run.craft(job, one.whole, one.saved(UNTOUCHED)).photos) for one in batches]
    return quantize(torch.cat([one.whole.images for one in batches])), torch.cat(made)


@torch.no_grad()
def _scores(network: nn.Module, images: Tensor) -> Iterator[Tensor]:
    for part in images.split(PAIRS):
        yield network(part).cpu()
