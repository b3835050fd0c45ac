"""From what is stored to figures."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import accelerate
import peft
import torch
import torchmetrics
from torch import Tensor

import loraguard
from loraguard.defenses import Defense
from loraguard.describing import describe
from loraguard.metrics import frechet_distance
from loraguard.pixels import from_bytes

from .checks import Check
from .result import AuditResult
from .run import Log, Piece, Run
from .situation import NO_CHANNEL, UNTOUCHED, Situation, Treatment
from .store import key_of, number
from .success import Success
from .words import budget_words

Row = tuple[str, Treatment, str]


def gather(run: Run, log: Log, defenses: Mapping[str, Any], seeds: Sequence[int], success: Success) -> AuditResult:
    """Everything that a run has found, as a result without the checks among its rows.

    Args:
        run: that is finished.
        log: what it left behind.
        defenses: by name.
        seeds: of what is drawn, in order.
        success: when a defense counts as having succeeded on a photo.

    Raises:
        FileNotFoundError: if a stored piece is gone.
    """
    found: dict[Row, dict[str, dict[int, list[float]]]] = {}
    pictures: dict[tuple[str, str, str, str], dict[Treatment, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
    features: dict[Row, list[dict[str, Tensor]]] = defaultdict(list)
    for piece, stored, kept in _stored(run, log):
        main, first = piece.job.treatment, piece.job.seed == seeds[0]
        if "photo" in kept and first:
            pictures["photo", main.defense, main.knowledge, piece.job.crafted_on][main].append(
                from_bytes(kept["photo"])
            )
        for (generator, channel), name in piece.passes.items():
            t = piece.job.treatment_on(generator)
            figures = found.setdefault((generator, t, channel), {})
            for metric, values in {**stored["passes"][name], **stored["photo"]}.items():
                figures.setdefault(metric, defaultdict(list))[piece.job.seed] += map(number, values)
            if name in kept and first and t == main:
                pictures[generator, t.defense, t.knowledge, channel][t].append(from_bytes(kept[name]))
            if f"is {name}" in kept:
                features[generator, t, channel].append({k: kept[f"{k} {name}"] for k in ("is", "ought")})
    order = {name: at for at, name in enumerate(run.subjects.names)}
    values = {
        row: {metric: torch.tensor(list(by_seed.values())) for metric, by_seed in found[row].items()}
        for row in sorted(found, key=lambda row: order[row[0]])
    }
    noise = _noise(values)
    situations = [
        Situation(row[0], row[1], row[2], _judged(figures, success, noise(row[1])), _frechet(features.get(row)))
        for row, figures in values.items()
    ]
    probes = [run.store.read(key) or {} for key in log.probes]
    starts = sorted(log.edits)
    settings = _settings(run, defenses, seeds)
    settings["success"] = success.text
    settings["data_sha256"] = key_of([one for start in starts for one in log.hashes[start]])
    settings["objectives"] = {one["defense"]: one["objective"] for one in probes if "defense" in one}
    settings["computed_anew"] = log.anew
    _say(settings)
    return AuditResult(
        situations,
        [one for start in starts for one in log.edits[start]],
        {key: torch.cat(next(iter(budgets.values()))) for key, budgets in pictures.items()},
        settings,
        [
            Check(**{**check, "knowledge": tuple(check["knowledge"])})
            for one in probes
            for check in one.get("checks", ())
        ],
    )


def _noise(values: Mapping[Row, Mapping[str, Tensor]]) -> Callable[[Treatment], Tensor | None]:
    """By treatment, the MSE under random noise of its size, or of its budget, or of the largest where there is none."""
    there: dict[float, Tensor] = {}
    of_size: dict[tuple[str, float | None], Tensor] = {}
    for (generator, treatment, channel), figures in values.items():
        if (generator, treatment.knowledge, channel) == (UNTOUCHED, "noise", NO_CHANNEL):
            if treatment.role == "control":
                of_size[treatment.defense, treatment.eps] = figures["mse"]
            else:
                there[treatment.eps or 0.0] = figures["mse"]

    def noise(treatment: Treatment) -> Tensor | None:
        same = of_size.get((treatment.defense, treatment.eps))
        if same is not None or not there:
            return same
        return there.get(treatment.eps or 0.0, there[max(there)])

    return noise


def _judged(figures: dict[str, Tensor], success: Success, noise: Tensor | None) -> dict[str, Tensor]:
    """Figures with what counts as success: on the whole output, where the edit is, and but for a colour cast."""
    judged = {**figures, "dsr": success.of(figures, noise)}
    if success.metric == "mse":
        for name, metric in (("masked_dsr", "masked_mse"), ("dsr_without_cast", "mse_without_cast")):
            if metric in figures:
                judged[name] = success.of(figures, noise, metric)
    return judged


def _stored(run: Run, log: Log) -> Iterator[tuple[Piece, dict[str, Any], dict[str, Tensor]]]:
    """Every piece, its figures and its tensors, batch after batch."""
    for start in sorted(log.pieces):
        for piece in log.pieces[start]:
            stored = run.store.read(piece.key)
            if stored is None:
                raise FileNotFoundError(f"A piece of the audit is gone from {run.store.folder}; run it again.")
            yield piece, stored, run.store.pictures(piece.key)


def _settings(run: Run, defenses: Mapping[str, Any], seeds: Sequence[int]) -> dict[str, Any]:
    """All that the figures depend on, as JSON takes it."""
    dataset, subjects = run.photos.dataset, run.subjects
    own = {k: v for k, v in getattr(dataset, "__dict__", {}).items() if isinstance(v, (str, int, float))}
    return {
        "n": len(run.photos),
        "seeds": list(seeds),
        "batch_size": run.photos.batch_size,
        "data": describe(dataset) | own,
        "budget": budget_words(defenses),
        "own_budgets": [
            job.treatment.defense
            for job in run.jobs
            if (job.treatment.knowledge, job.treatment.role, job.seed) == ("no-leak", "main", seeds[0])
            and isinstance(job.defense, Defense)
            and not job.bounded
        ],
        "defenses": {name: _described(one, run.names.defenses.get(id(one))) for name, one in defenses.items()},
        "fit_on": None if run.fit_on is None else describe(run.fit_on) | run.names.fitted_on,
        "channels": {name: describe(one) for name, one in run.channels.items() if name != NO_CHANNEL},
        "patches": {
            name: None if one is None else describe(one)
            for name, one in subjects.stamps.items()
            if one is not None or name not in subjects.networks
        },
        "adapters": run.names.patches,
        "code_sha256": run.names.code,
        "measured_by": run.names.measured_by,
        "networks": list(subjects.networks),
        "others": list(subjects.others),
        "weights_sha256": run.names.hashes,
        "not_described": run.names.opaque,
        **run.measures.settings(),
        "device": str(run.photos.device),
        "versions": {one.__name__: one.__version__ for one in (loraguard, torch, peft, torchmetrics, accelerate)}
        | {"lpips": version("lpips")},
    }


def _say(settings: Mapping[str, Any]) -> None:
    """Warn of what was not taken from disk although it was there, or never will be."""
    if settings["computed_anew"]:
        warnings.warn(
            f"Stored figures of {'; '.join(settings['computed_anew'])} did not come out again; all of these were "
            "computed anew.", stacklevel=4,
        )  # fmt: skip
    if settings["not_described"]:
        warnings.warn(
            f"What {', '.join(settings['not_described'])} does cannot be told from its code and attributes; its "
            "figures are computed anew in each run.", stacklevel=4,
        )  # fmt: skip


def _described(defense: Any, identity: list[Any] | None) -> dict[str, Any]:
    """A defense's settings, and its identity as it was when the run began; photos that were given have none."""
    known = {} if identity is None else {"identity": identity[-1]["sha256"]}
    return {**(defense.settings() if isinstance(defense, Defense) else describe(defense)), **known}


def _frechet(features: list[dict[str, Tensor]] | None) -> float | None:
    """Between outputs and what they should have been, over all images and seeds."""
    if not features or sum(len(one["is"]) for one in features) < 2:
        return None
    return frechet_distance(torch.cat([f["ought"] for f in features]), torch.cat([f["is"] for f in features]))
