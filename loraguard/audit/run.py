"""One pass through an audit's photos: each job's photos are crafted, measured and stored before the next begins."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from loraguard.channels import Channel, Identity, quantize
from loraguard.data import PhotoHashes, PhotoVersions
from loraguard.generators import Conditions
from loraguard.metrics import psnr
from loraguard.pixels import from_bytes, to_bytes

from .again import agree, alike, flagged
from .channel_probes import probe_channel, probe_stamp
from .checks import Check
from .craft import Crafter, check_images, check_likeness, drawn_beyond, farthest, seeded
from .keys import Names
from .measure import Measures, as_saved, check_encoder
from .overlap import perturbed_alike
from .photos import Batch, Photos
from .plan import USUAL, Job
from .probes import Attacked, probe_defense, probe_generator, probe_leak
from .share import Share
from .situation import NO_CHANNEL, UNTOUCHED
from .store import Store, jsonable, key_of, number
from .subjects import Subjects

PROBED = 4
"""Photos that the probes try."""

TARGETS = 2**31
"""The seed of targets, which no row's outputs have: a draw of a generator is compared with another, always the same."""


@dataclass
class Piece:
    """Where a job's findings on a batch are stored.

    Attributes:
        job: what was done.
        start: of the batch.
        key: of the piece in the store.
        passes: for each forward pass, a pair of a generator and a channel, the name of what it found; channels that are
            the same share it.
    """

    job: Job
    start: int
    key: str
    passes: dict[tuple[str, str], str]

    @property
    def row(self) -> str:
        """The name of all pieces that differ in photos and seed alone."""
        t = self.job.treatment
        through = "" if self.job.through == NO_CHANNEL else f" through {self.job.through}"
        return f"{t.words}, {t.role}, eps {t.eps}, steps {t.steps}, on {self.job.crafted_on}{through}"


@dataclass
class Log:
    """What a pass through the photos leaves behind, beside what is stored.

    Attributes:
        edits: the edit of each photo, by the start of the batch.
        hashes: what each photo with its edit is, likewise.
        pieces: where findings are stored, in the order of the jobs, likewise.
        probes: keys of what the probes have found; what an earlier run has found is not believed.
        likeness: the photos as they are looked for among others, likewise.
        alike: whose perturbed versions are the same ones, likewise.
        anew: the rows whose stored figures did not come out again, so that all of them were computed anew.
    """

    edits: dict[int, list[str]] = field(default_factory=dict)
    hashes: dict[int, list[str]] = field(default_factory=dict)
    pieces: dict[int, list[Piece]] = field(default_factory=dict)
    probes: list[str] = field(default_factory=list)
    likeness: dict[int, PhotoVersions] = field(default_factory=dict)
    alike: dict[int, dict[tuple[str, str], Tensor]] = field(default_factory=dict)
    anew: list[str] = field(default_factory=list)


class Run:
    """The jobs of an audit on its photos.

    Args:
        subjects: the generators.
        photos: in batches.
        channels: by name, beside none.
        measures: what is measured on each output.
        store: where findings go, piece by piece.
        jobs: what is to be done.
        fit_on: photos for defenses that have to be fitted.
        conditions: from labels to edits.
        pictures: so many of the first photos are kept for showing.
        allow_large_change: take photos that somebody else has perturbed even if they are not like their originals.
        kept: hashes of `fit_on`.
    """

    def __init__(
        self,
        subjects: Subjects,
        photos: Photos,
        channels: Mapping[str, Channel],
        measures: Measures,
        store: Store,
        jobs: Sequence[Job],
        fit_on: Dataset[Any] | None,
        conditions: Conditions | None,
        pictures: int,
        *,
        allow_large_change: bool = False,
        kept: PhotoHashes | None = None,
    ) -> None:
        self.subjects, self.photos, self.measures = subjects, photos, measures
        self.channels: dict[str, Channel] = {NO_CHANNEL: Identity(), **channels}
        self.store, self.jobs, self.pictures = store, jobs, pictures
        self.fit_on = fit_on
        self.craft = Crafter(subjects, self.channels, fit_on, conditions)
        self.allow_large_change = allow_large_change
        self.names = Names(subjects, self.channels, measures, jobs, fit_on, kept)

    def go(self, share: Share, disable_tqdm: bool) -> Log:
        """Do what is not stored yet of this process' share of the batches, and say where everything is."""
        silent = self.craft.silent = disable_tqdm or share.number > 0
        log = Log()
        starts = list(self.photos.starts)
        first: tuple[Batch, Clean] | None = None
        own = starts[share.number :: share.of]
        if self.photos.given and not self.allow_large_change:
            self._check_given(own)
        stored: dict[str, list[Piece]] = {}
        total = sum(job.cost for start in own for job in self.jobs if job.first is None or start < job.first)
        with tqdm(total=total, desc="audit", unit="pass", disable=silent) as bar:
            for start in own:
                whole = self.photos.batch(start)
                self._enter(log, whole)
                clean = Clean(self.subjects, whole)
                for piece in log.pieces[start]:
                    treatment = piece.job.treatment
                    bar.set_postfix_str(f"{treatment.defense}, {treatment.knowledge}", refresh=False)
                    if self._is_stored(piece):
                        stored.setdefault(piece.row, []).append(piece)
                    else:
                        self.store.write(piece.key, *self._found(piece, whole, clean))
                    bar.update(piece.job.cost)
                if start == starts[0]:
                    first = whole, clean
            log.anew = self._again(stored)
            # At the end, when a network that counts its calls has been called most; by who has fewest batches.
            if share.number == min(share.of, len(starts)) - 1:
                log.probes = self._probed(*(first or self._first()), log.anew)
        share.wait()
        for start in set(starts) - set(own):  # what the other processes have done
            self._enter(log, self.photos.batch(start))
        log.probes = log.probes or self._probed(*self._first())
        return log

    def _check_given(self, starts: Sequence[int]) -> None:
        """Refuse photos that are no perturbed versions of these, before any long work."""
        for batch in map(self.photos.batch, starts):
            for name, perturbed in batch.given.items():
                check_likeness(name, perturbed, batch.images, batch.start)

    def _enter(self, log: Log, whole: Batch) -> None:
        log.edits[whole.start], log.hashes[whole.start] = whole.edits, whole.each
        log.likeness[whole.start] = PhotoVersions.of(whole.images)
        log.alike[whole.start] = perturbed_alike(whole.given, whole.images)
        log.pieces[whole.start] = [
            Piece(
                job,
                batch.start,
                self.names.piece(job, batch),
                {one: self.names.forward(*one, batch) for one in job.passes},
            )
            for job, batch in self._parts(whole)
        ]

    def _parts(self, whole: Batch) -> Iterator[tuple[Job, Batch]]:
        """Every job with its part of a batch."""
        for job in self.jobs:
            batch = whole if job.first is None else whole.first(job.first)
            if len(batch):
                yield job, batch

    def _is_stored(self, piece: Piece) -> bool:
        found = self.store.read(piece.key)
        return found is not None and {*piece.passes.values()} <= found["passes"].keys()

    def _again(self, stored: Mapping[str, Sequence[Piece]]) -> list[str]:
        """Compute one stored piece of each row again, drawn at random; where it differs, compute the whole row anew.

        Returns:
            The rows that were computed anew.
        """
        drawn = {row: random.SystemRandom().choice(pieces) for row, pieces in stored.items()}
        anew: list[str] = []
        by_start: dict[int, list[Piece]] = defaultdict(list)
        for piece in drawn.values():
            by_start[piece.start].append(piece)
        for start, pieces in by_start.items():
            whole = self.photos.batch(start)
            clean = Clean(self.subjects, whole)
            for piece in pieces:
                found, tensors = self._found(piece, whole, clean)
                kept = self.store.pictures(piece.key)
                if not (
                    agree(self.store.read(piece.key) or {}, found)
                    and all(alike(kept.get(name), one) for name, one in tensors.items())
                ):
                    anew.append(piece.row)
        for row in anew:
            for piece in stored[row]:
                whole = self.photos.batch(piece.start)
                self.store.write(piece.key, *self._found(piece, whole, Clean(self.subjects, whole)))
        return anew

    def _first(self) -> tuple[Batch, Clean]:
        whole = self.photos.batch(0)
        return whole, Clean(self.subjects, whole)

    def _probed(self, whole: Batch, clean: Clean, anew: list[str] | None = None) -> list[str]:
        """Try every generator and every defense on some photos; what came out is stored under these keys.

        Args:
            whole: the first batch.
            clean: of that batch.
            anew: gets the names of those of which another run has stored something else; without it, what is stored is
                what another process of this run has found.
        """
        keys = []
        sample = whole.first(whole.start + PROBED)

        def probe(key: str, name: str, found: Callable[[], Iterable[Check] | dict[str, Any]]) -> None:
            keys.append(key)
            stored = self.store.read(key)
            if stored is not None and anew is None:
                return
            tried = found()
            made = tried if isinstance(tried, dict) else _listed(tried)
            if stored is not None and anew is not None and flagged(stored) != flagged(made):
                anew.append(f"{name}, as it was probed")
            self.store.write(key, made, {})

        eps = self._largest_budget()

        @cache
        def attacked() -> Attacked:
            return Attacked.of(self.subjects, sample, eps)

        def of_generator(name: str) -> list[Check]:
            target = clean.target(name)[: len(sample)]
            seen = list(self._earlier(name, whole, len(sample)))
            return probe_generator(self.subjects, name, sample, target, whole, attacked, eps, seen)

        def of_defense(job: Job) -> dict[str, Any]:
            tried = (
                self.craft,
                job,
                sample,
                clean.target(job.crafted_on)[: len(sample)],
                self._seen(job, job.crafted_on, whole, len(sample)),
            )
            if job.treatment.knowledge == "leak":
                return _listed(probe_leak(*tried))
            checks, objective = probe_defense(*tried)
            return {**_listed(checks), "defense": job.treatment.defense, "objective": objective}

        for name in self.subjects.names:
            key = key_of("probe", self.names.weights(name), sample.hashes)
            probe(key, name, partial(of_generator, name))
        names = self.subjects.names
        for name, channel in self.channels.items():
            if name != NO_CHANNEL:
                through = any(job.through == name for job in self.jobs)
                key = key_of("probe", self.names.channels[name], whole.hashes, names, through)
                probe(key, name, partial(probe_channel, name, channel, sample, names, through, whole))
        for name, stamp in self.subjects.stamps.items():
            if stamp is not None and (detector := self.measures.detectors.get(name)) is not None:
                key = key_of("probe", self.names.forward(name, NO_CHANNEL, whole), whole.hashes)
                probe(key, name, partial(probe_stamp, name, detector, clean.target(name)))
        for job in self.jobs:
            treatment, first = job.treatment, job.seed == self.jobs[0].seed and job.treatment.role == "main"
            if first and treatment.knowledge in ("no-leak", "leak") and treatment.defense not in sample.given:
                probe(key_of("probe", self.names.piece(job, sample)), treatment.defense, partial(of_defense, job))
        return keys

    def _largest_budget(self) -> float:
        """Of noise, and so of every defense whose budget is L-infinity."""
        noise = [job.treatment for job in self.jobs if job.treatment.knowledge == "noise"]
        return max((one.eps for one in noise if one.role == "main" and one.eps is not None), default=USUAL)

    def _seen(self, job: Job, generator: str, whole: Batch, count: int) -> Tensor | None:
        """The MSE of a generator that was found on the first photos of a batch; None where nobody has looked yet."""
        stored = self.store.read(self.names.piece(job, whole)) or {"passes": {}}
        found = stored["passes"].get(self.names.forward(generator, NO_CHANNEL, whole))
        return None if found is None else torch.tensor([number(one) for one in found["mse"][:count]])

    def _earlier(self, generator: str, whole: Batch, count: int) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Photos on which a generator was tried, of the first of a batch: what they are, (n, 3, H, W), and the MSE."""
        for job in self.jobs:
            known = job.treatment.knowledge in ("clean", "no-leak") and job.seed == self.jobs[0].seed
            if known and job.treatment.role == "main" and (generator, NO_CHANNEL) in job.passes:
                photos = self.store.pictures(self.names.piece(job, whole)).get("photo")
                mse = self._seen(job, generator, whole, count)
                if mse is not None and photos is not None:
                    yield job.treatment.words, from_bytes(photos[:count]).to(whole.images), mse[: len(photos)]

    def _found(self, piece: Piece, whole: Batch, clean: Clean) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What a job finds on a batch: figures, and pictures and features as tensors."""
        job = piece.job
        batch = whole if job.first is None else whole.first(job.first)
        crafted = self.craft(job, batch, clean.target(job.crafted_on)[: len(batch)])
        photos = crafted.photos
        shown = {"photo": photos} if batch.start < self.pictures and job.treatment.role == "main" else {}
        features: dict[str, Tensor] = {}
        passes: dict[str, dict[str, list[float | None]]] = {}
        for (generator, channel), name in piece.passes.items():
            if name in passes:
                continue
            with seeded(drawn_beyond(job.seed, batch.start)):
                sent = self.channels[channel](photos.clone())  # a copy: a channel may work in place
                check_images(f"The channel {channel!r} gives", sent, photos)
                outputs = self.subjects.outputs(generator, sent.clamp(-1, 1), batch.of(generator))
            preds = as_saved(generator, outputs, batch.images)
            target = clean.target(generator)[: len(batch)]
            encoded = partial(clean.encoded, generator, len(batch))
            edited = clean.edited(generator)[: len(batch)]
            figures = self.measures(generator, preds, target, edited, batch.images, encoded, batch.edits)
            passes[name] = {metric: jsonable(values) for metric, values in figures.items()}
            if shown and job.treatment_on(generator) == job.treatment:
                shown[name] = preds
            if self.measures.features is not None:
                with torch.no_grad():
                    features |= {f"is {name}": self.measures.features(preds.clone()).cpu().float()}
                features |= {f"ought {name}": encoded(self.measures.features, "target").cpu().float()}
                check_encoder("features", encoded(self.measures.features, "photo"), batch.images)
        pictures = {name: to_bytes(images[: self.pictures - batch.start]).cpu() for name, images in shown.items()}
        on_photos = {
            "photo_linf": farthest(photos, batch.images),
            "photo_psnr": psnr(photos, quantize(batch.images)),
            "photo_moved": crafted.moved,
        }
        found = {"photo": {metric: jsonable(values) for metric, values in on_photos.items()}, "passes": passes}
        return found, {**pictures, **features}


class Clean:
    """What the generators give, and should give, on a batch of photos as they are; each computed once."""

    def __init__(self, subjects: Subjects, whole: Batch) -> None:
        self.subjects, self.whole = subjects, whole
        self.found: dict[str, Tensor] = {}
        self.targets: dict[str, Tensor] = {}
        self.codes: dict[tuple[int, str], Tensor] = {}

    def saved(self, generator: str) -> Tensor:
        """A generator's outputs, as a file would hold them."""
        if generator not in self.found:
            with seeded(drawn_beyond(TARGETS, self.whole.start)):
                outputs = self.subjects.outputs(generator, self.whole.images, self.whole.of(generator))
            self.found[generator] = as_saved(generator, outputs, self.whole.images)
        return self.found[generator]

    def edited(self, generator: str) -> Tensor:
        """The photos as they are, edited without any patch: by the untouched generator, or another one by itself."""
        return self.saved(generator if generator in self.subjects.others else UNTOUCHED)

    def target(self, generator: str) -> Tensor:
        """What a generator should give: such edits, with the stamp on them if it is to stamp."""
        if generator not in self.targets:
            made = self.subjects.target(generator, self.edited(generator))
            self.targets[generator] = as_saved(generator, made, self.whole.images)
        return self.targets[generator]

    @torch.no_grad()
    def encoded(self, generator: str, count: int, network: nn.Module, of: str) -> Tensor:
        """What an encoder makes of the first photos, `of` "photo", or of what a generator should give on them."""
        key = id(network), "" if of == "photo" else generator
        if key not in self.codes:
            self.codes[key] = network((self.whole.images if of == "photo" else self.target(generator)).clone())
        return self.codes[key][:count]


def _listed(checks: Iterable[Check]) -> dict[str, Any]:
    """Checks as they are stored."""
    return {"checks": [asdict(one) for one in checks]}
