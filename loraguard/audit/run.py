"""One pass through an audit's jobs, and the way from what is stored to figures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import accelerate
import peft
import torch
import torchmetrics
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

import loraguard
from loraguard.channels import Channel, Identity, Through, published, quantize
from loraguard.defenses import Defense, Fittable
from loraguard.describing import describe
from loraguard.fingerprint import digest
from loraguard.generators import Conditions
from loraguard.metrics import frechet_distance, psnr
from loraguard.pixels import from_bytes, to_bytes
from loraguard.training.sampling import mixed

from .measure import Measures
from .photos import Batch, Photos
from .plan import Job
from .result import AuditResult
from .share import Share
from .situation import NO_CHANNEL, UNTOUCHED, Photo, Situation
from .store import Store, key_of
from .subjects import Subjects
from .words import budget_words

_SCHEMA = 1
"""Of what is stored; another number makes what lies there be done again."""


def must_fit(job: Job) -> bool:
    """Whether a job's defense is to be fitted: one that was fitted beforehand is taken so for its own main job."""
    as_it_is = job.photo.knowledge == "no-leak" and job.photo.role == "main"
    if not isinstance(job.defense, Fittable):
        return False
    return job.defense.must_be_fitted or not (as_it_is or job.defense.fits_every_generator)


class Run:
    """Photos are taken batch by batch; of each batch, every job's findings are stored before the next is done."""

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
    ) -> None:
        self.subjects, self.photos, self.measures = subjects, photos, measures
        self.channels: dict[str, Channel] = {NO_CHANNEL: Identity(), **channels}
        self.store, self.jobs, self.fit_on, self.conditions = store, jobs, fit_on, conditions
        self.pictures = pictures
        self.hashes = subjects.hashes()
        self.identities = {id(job.defense): _identity(job.defense) for job in jobs}
        self.fits: dict[str, Defense] = {}
        self.silent = True

    def go(self, share: Share, disable_tqdm: bool) -> None:
        """Do what is not stored yet: this process' share of the batches."""
        self.silent = disable_tqdm or share.number > 0
        starts = list(self.photos.starts)[share.number :: share.of]
        total = sum(job.cost for start in starts for job in self.jobs if job.first is None or start < job.first)
        with tqdm(total=total, desc="audit", unit="pass", disable=self.silent) as bar:
            for start in starts:
                whole = self.photos.batch(start)
                clean: dict[str, Tensor] = {}  # outputs on the photos as they are, by generator
                for job, batch in self._parts(whole):
                    bar.set_postfix_str(f"{job.photo.defense}, {job.photo.knowledge}", refresh=False)
                    self._do(job, batch, whole, clean)
                    bar.update(job.cost)
        share.wait()

    def _parts(self, whole: Batch) -> Iterator[tuple[Job, Batch]]:
        """Every job with its part of a batch."""
        for job in self.jobs:
            batch = whole if job.first is None else whole.first(job.first)
            if len(batch):
                yield job, batch

    # One job on one batch.

    def _do(self, job: Job, batch: Batch, whole: Batch, clean: dict[str, Tensor]) -> None:
        key = self._key(job, batch)
        piece = self.store.read(key)
        wanted = {self._look_key(*look): look for look in job.looks}
        if piece and wanted.keys() <= piece["looks"].keys():
            return

        def on_clean(generator: str) -> Tensor:
            if generator not in clean:
                clean[generator] = self.subjects.outputs(generator, whole.images, whole.condition)
            return clean[generator][: len(batch)]

        photo = self._photo(job, batch, on_clean(job.crafted_on))
        shown = {"photo": photo} if batch.start < self.pictures and job.photo.role == "main" else {}
        features: dict[str, Tensor] = {}
        looks: dict[str, dict[str, list[float | None]]] = {}
        for name, (generator, channel) in wanted.items():
            torch.manual_seed(mixed(job.seed, batch.start))
            outputs = self.subjects.outputs(generator, self.channels[channel](photo), batch.condition)
            untouched = on_clean(UNTOUCHED)
            target = self.subjects.target(generator, untouched)
            figures = self.measures(generator, outputs, target, untouched, batch.images)
            looks[name] = {metric: _jsonable(values) for metric, values in figures.items()}
            if shown:
                shown[name] = outputs
            if self.measures.features is not None:
                with torch.no_grad():
                    features |= {f"is {name}": self.measures.features(outputs).cpu().float()}
                    features |= {f"ought {name}": self.measures.features(target).cpu().float()}
        pictures = {name: to_bytes(images[: self.pictures - batch.start]).cpu() for name, images in shown.items()}
        difference = (photo - batch.images).flatten(1)
        on_photos = {"photo_linf": difference.abs().amax(1), "photo_psnr": psnr(photo, quantize(batch.images))}
        found = {"photo": {metric: _jsonable(values) for metric, values in on_photos.items()}, "looks": looks}
        self.store.write(key, found, {**pictures, **features})

    def _photo(self, job: Job, batch: Batch, clean: Tensor) -> Tensor:
        """Photos as the job's defense publishes them."""
        if job.photo.defense in batch.given:
            return quantize(batch.given[job.photo.defense])
        if job.defense is None:
            return batch.images
        with self.subjects.one(job.crafted_on) as network:
            through = self.channels[job.through].differentiable()
            generator = network if job.through == NO_CHANNEL else Through(network, through)
            defense = self._fitted(job, generator) if must_fit(job) else job.defense
            torch.manual_seed(mixed(job.seed, batch.start))  # the same random start whatever else is audited
            return published(defense(generator, batch.images, batch.condition, clean=clean), batch.images)

    def _fitted(self, job: Job, generator: Any) -> Defense:
        key = key_of(self.identities[id(job.defense)], job.crafted_on, job.through, job.seed)
        if key not in self.fits:
            assert self.fit_on is not None
            torch.manual_seed(mixed(job.seed, 2**31))
            self.fits[key] = job.defense.fit(generator, self.fit_on, self.conditions, disable_tqdm=self.silent)
        return self.fits[key]

    # Names of what is stored.

    def _key(self, job: Job, batch: Batch) -> str:
        if (given := batch.given.get(job.photo.defense)) is not None:
            return key_of(_SCHEMA, batch.hashes, digest({"image": given}), job.seed)
        fit_on = [describe(self.fit_on), len(self.fit_on)] if must_fit(job) else None  # type: ignore[arg-type]
        crafted_on = None if job.defense is None else self._weights(job.crafted_on)
        through = describe(self.channels[job.through])
        return key_of(_SCHEMA, batch.hashes, self.identities[id(job.defense)], crafted_on, through, job.seed, fit_on)

    def _look_key(self, generator: str, channel: str) -> str:
        stamp = self.subjects.stamps.get(generator)
        target = [self.hashes["generator"], None if stamp is None else describe(stamp)]
        return key_of(self._weights(generator), describe(self.channels[channel]), target, self.measures.settings())

    def _weights(self, generator: str) -> list[str]:
        own = [] if generator == UNTOUCHED else [self.hashes[generator]]
        return [self.hashes["generator"], *own]

    # From what is stored to figures.

    def result(self, defenses: Mapping[str, Any], seeds: Sequence[int]) -> AuditResult:
        """Everything that the jobs have found."""
        found: dict[tuple[str, Photo, str], dict[str, dict[int, list]]] = {}
        pictures: dict[tuple[str, str, str, str], dict[Photo, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
        features: dict[tuple[str, Photo, str], list[dict[str, Tensor]]] = defaultdict(list)
        edits: list[str] = []
        hashes: list[str] = []
        for whole in self.photos:
            edits += whole.edits
            hashes += whole.each
            for job, batch in self._parts(whole):
                key = self._key(job, batch)
                piece = self.store.read(key)
                if piece is None:
                    raise FileNotFoundError(f"A piece of the audit is gone from {self.store.folder}; run it again.")
                kept = self.store.pictures(key)
                p = job.photo
                if "photo" in kept and job.seed == seeds[0]:
                    pictures["photo", p.defense, p.knowledge, job.crafted_on][p].append(from_bytes(kept["photo"]))
                for generator, channel in job.looks:
                    name = self._look_key(generator, channel)
                    figures = found.setdefault((generator, p, channel), {})
                    for metric, values in {**piece["looks"][name], **piece["photo"]}.items():
                        figures.setdefault(metric, defaultdict(list))[job.seed] += map(_number, values)
                    if name in kept and job.seed == seeds[0]:
                        pictures[generator, p.defense, p.knowledge, channel][p].append(from_bytes(kept[name]))
                    if f"is {name}" in kept:
                        features[generator, p, channel].append({k: kept[f"{k} {name}"] for k in ("is", "ought")})
        order = {name: at for at, name in enumerate(self.subjects.names)}
        situations = [
            Situation(
                *key,
                values={metric: torch.tensor(list(by_seed.values())) for metric, by_seed in figures.items()},
                frechet=_frechet(features.get(key)),
            )
            for key, figures in sorted(found.items(), key=lambda item: order[item[0][0]])
        ]
        return AuditResult(
            situations,
            edits,
            {key: torch.cat(next(iter(budgets.values()))) for key, budgets in pictures.items()},
            self._settings(defenses, seeds, key_of(hashes)),
        )

    def _settings(self, defenses: Mapping[str, Any], seeds: Sequence[int], data: str) -> dict[str, Any]:
        dataset = self.photos.dataset
        own = {k: v for k, v in getattr(dataset, "__dict__", {}).items() if isinstance(v, (str, int, float))}
        return {
            "n": len(self.photos),
            "seeds": list(seeds),
            "batch_size": self.photos.batch_size,
            "data": describe(dataset) | own,
            "data_sha256": data,
            "budget": budget_words(defenses),
            "own_budgets": [
                name for name, one in defenses.items() if isinstance(one, Defense) and one.budget is not None
            ],
            "defenses": {name: _identity(one) for name, one in defenses.items()},
            "fit_on": None if self.fit_on is None else describe(self.fit_on),
            "channels": {name: describe(one) for name, one in self.channels.items() if name != NO_CHANNEL},
            "patches": {
                name: None if one is None else describe(one)
                for name, one in self.subjects.stamps.items()
                if one is not None or name not in self.subjects.networks
            },
            "networks": list(self.subjects.networks),
            "weights_sha256": self.hashes,
            **self.measures.settings(),
            "device": str(self.photos.device),
            "versions": {one.__name__: one.__version__ for one in (loraguard, torch, peft, torchmetrics, accelerate)}
            | {"lpips": version("lpips")},
        }


def _identity(defense: Any) -> dict[str, Any]:
    """What tells a defense from others, as JSON takes it."""
    return defense.settings() if isinstance(defense, Defense) else describe(defense)


def _jsonable(values: Tensor) -> list[float | None]:
    return [value if abs(value) != float("inf") else None for value in values.tolist()]


def _number(value: float | None) -> float:
    return float("inf") if value is None else value


def _frechet(features: list[dict[str, Tensor]] | None) -> float | None:
    """Between outputs and what they should have been, over all images and seeds."""
    if not features or sum(len(one["is"]) for one in features) < 2:
        return None
    return frechet_distance(torch.cat([f["ought"] for f in features]), torch.cat([f["is"] for f in features]))
