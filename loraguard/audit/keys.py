"""Names of what an audit stores, made of all that it depends on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from loraguard.channels import Channel
from loraguard.data import PhotoHashes
from loraguard.fingerprint import digest

from .craft import must_fit
from .identity import architecture, identity, is_own
from .measure import Measures
from .photos import Batch
from .plan import Job
from .situation import UNTOUCHED
from .store import key_of
from .subjects import Subjects

_SCHEMA = 5
"""Of what is stored; another number makes what lies there be done again."""


class Names:
    """Names of what is stored: hashes of all that it depends on.

    Things are told apart by their :func:`~loraguard.audit.identity.identity`; what is not one of this package's own
    settings also by the name that it has in the audit, so that two things never share what was found.
    """

    def __init__(
        self,
        subjects: Subjects,
        channels: Mapping[str, Channel],
        measures: Measures,
        jobs: Sequence[Job],
        fit_on: Dataset[Any] | None,
        kept: PhotoHashes | None = None,
    ) -> None:
        self.subjects = subjects
        self.hashes = subjects.hashes()
        self.networks = {name: identity(one) for name, one in subjects.networks.items()}
        self.base = architecture(subjects.model)
        self.patches = {name: settings_of(subjects.adapters[name]) for name in subjects.patched}
        self.defenses = {id(job.defense): _named(job.treatment.defense, job.defense) for job in jobs}
        self.channels = {name: _named(name, one) for name, one in channels.items()}
        self.fit_on: list[Any] | None = None
        if fit_on is not None:  # photos as well: files change, and the name of their folder does not
            photos = None if kept is None else digest({"exact": kept.exact})
            self.fit_on = [identity(fit_on), len(fit_on), photos]  # type: ignore[arg-type]
        self.detectors = set(measures.detectors)
        self.measures = [measures.settings(), *map(identity, measures.made_by)]

    @property
    def opaque(self) -> list[str]:
        """What could not be looked into, so that no other run uses what was found with it."""
        return [name for name, one in self._all() if isinstance(one, dict) and one.get("opaque")]

    @property
    def code(self) -> dict[str, str]:
        """By name, the hash of what each generator and channel does beside its weights, where it can be told."""
        everything = {UNTOUCHED: self.base, **self.networks, **{name: one[-1] for name, one in self.channels.items()}}
        return {name: one["sha256"] for name, one in everything.items() if not one.get("opaque")}

    @property
    def fitted_on(self) -> dict[str, Any]:
        """What the photos for fitting are, where that can be told."""
        told = self.fit_on is not None and not self.fit_on[0].get("opaque")
        if self.fit_on is None or not told:
            return {}
        return {"sha256": self.fit_on[0]["sha256"], "n": self.fit_on[1], "photos_sha256": self.fit_on[2]}

    @property
    def measured_by(self) -> str | None:
        """The hash of what computes the figures, its code and weights, where it can be told."""
        makers = self.measures[1:]
        return None if any(one.get("opaque") for one in makers) else key_of(*(one["sha256"] for one in makers))

    def _all(self) -> Iterator[tuple[str, Any]]:
        yield UNTOUCHED, self.base
        yield from self.networks.items()
        for one in (*self.defenses.values(), *self.channels.values()):
            if len(one) == 2:
                yield one[0], one[1]
        if self.fit_on is not None:
            yield "fit_on", self.fit_on[0]

    def piece(self, job: Job, batch: Batch) -> str:
        """Of what a job finds on a batch."""
        control = ["control"] if job.treatment.role == "control" else []
        if (given := batch.given.get(job.treatment.defense)) is not None:
            return key_of(_SCHEMA, batch.hashes, digest({"image": given}), job.seed, *control)
        return key_of(
            _SCHEMA,
            torch.__version__,
            batch.hashes,
            self.defenses[id(job.defense)],
            None if job.defense is None else [self.weights(job.crafted_on), self._target(job.crafted_on, batch)],
            self.channels[job.through],
            job.seed,
            self.fit_on if must_fit(job) else None,
            *control,
        )

    def forward(self, generator: str, channel: str, batch: Batch) -> str:
        """Of what a forward pass of a batch through a channel and a generator finds."""
        own = [generator] if generator in self.detectors else []  # the stamp of this one alone is looked for
        return key_of(
            self.weights(generator), self.channels[channel], self._target(generator, batch), self.measures, *own
        )

    def weights(self, generator: str) -> list[Any]:
        """Of a generator."""
        own: list[Any] = []
        if generator in self.networks:
            own = [generator, self.hashes[generator], self.networks[generator]]
        elif generator != UNTOUCHED:
            own = [self.hashes[generator], self.patches[generator]]
        return [self.hashes["generator"], self.base, *own]

    def _target(self, generator: str, batch: Batch) -> list[Any]:
        if generator in self.subjects.others:
            return ["its own", digest(batch.of(generator))]
        stamp = self.subjects.stamps.get(generator)
        return [self.hashes["generator"], None if stamp is None else identity(stamp)]


def settings_of(config: Any) -> dict[str, Any]:
    """A patch's settings that its outputs depend on, as JSON takes them."""
    unimportant = ("provenance", "base_model_name_or_path", "revision", "inference_mode")
    settings = {name: value for name, value in config.to_dict().items() if name not in unimportant}
    return json.loads(json.dumps(settings, default=lambda value: sorted(map(str, value))))


def _named(name: str, thing: Any) -> list[Any]:
    return [identity(thing)] if is_own(thing) or thing is None else [name, identity(thing)]
