"""The audit: the same images, edits and budget in every situation, untouched and patched generator side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import peft
import torch
import torchmetrics
from peft import PeftModel
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

import loraguard
from loraguard.channels import published
from loraguard.data import collate
from loraguard.defenses import Defense, RandomNoise
from loraguard.defenses.base import check_images
from loraguard.files import describe
from loraguard.fingerprint import fingerprint
from loraguard.generators import Condition, Conditions, conditions_of, labels_of
from loraguard.metrics import DSR_THRESHOLD, Estimate, defense_succeeds, estimate, mean_squared_error, psnr, ssim
from loraguard.stamp import Stamp, StampDetector
from loraguard.tuner import folded

UNTOUCHED = "untouched"
SHARES = ("dsr", "stamp_rate")
PERTURBATIONS = ("clean", "noise", "no-leak", "leak")
"""Of a photo: none, random noise, crafted on the untouched generator, crafted on the generator at hand."""


@dataclass(frozen=True)
class Situation:
    """One row of the audit: a generator, what was done to the photos, and what came of it on each image.

    Attributes:
        generator: "untouched" or the name of a patch.
        perturbation: one of :data:`PERTURBATIONS`.
        values: by metric, one figure for each image, (n,).
    """

    generator: str
    perturbation: str
    values: dict[str, Tensor]

    @cached_property
    def estimates(self) -> dict[str, Estimate]:
        """By metric, the mean over images and its 95% interval."""
        return {metric: estimate(values, share=metric in SHARES) for metric, values in self.values.items()}


@dataclass
class AuditResult:
    """Everything an audit found.

    Attributes:
        situations: one for each generator and perturbation.
        edits: the edit that was asked for on each image.
        pictures: for the first images, what each situation looked like, (k, 3, H, W) in [-1, 1]: photos and perturbed
            photos under ("photo", perturbation), outputs, at their own size, under (generator, perturbation).
        settings: all that the figures depend on.
    """

    situations: list[Situation]
    edits: list[str]
    pictures: dict[tuple[str, str], Tensor]
    settings: dict[str, Any]

    def __getitem__(self, key: tuple[str, str]) -> Situation:
        """The situation of a generator and a perturbation."""
        for situation in self.situations:
            if (situation.generator, situation.perturbation) == key:
                return situation
        raise KeyError(f"{key} was not audited; there is {[(s.generator, s.perturbation) for s in self.situations]}.")

    def to_dict(self) -> dict[str, Any]:
        """Settings, figures with intervals, and every image's figures, as strict JSON takes them."""
        rows = [
            {
                "generator": situation.generator,
                "perturbation": situation.perturbation,
                "metrics": {metric: asdict(value) for metric, value in situation.estimates.items()},
                "per_image": {metric: _jsonable(values) for metric, values in situation.values.items()},
            }
            for situation in self.situations
        ]
        return {"settings": self.settings, "edits": self.edits, "situations": rows}


def run_audit(
    model: PeftModel,
    dataset: Dataset[Any],
    *,
    defense: Defense,
    leak_defense: Defense | None = None,
    patches: Mapping[str, Stamp | None],
    conditions: Conditions | None = None,
    detector: StampDetector | None = None,
    batch_size: int = 25,
    pictures: int = 6,
    seed: int = 0,
    disable_tqdm: bool = False,
) -> AuditResult:
    """Measure what a defense is still worth against a generator as it is and as it is patched.

    For each image one edit is drawn. The photo is taken as it is, with random noise of the defense's budget, defended
    with knowledge of the untouched generator (*no-leak*), and defended with knowledge of the very generator that is
    used (*leak*); each is rounded to 8 bits within its budget, as a published photo is. Outputs are compared with what
    the generator should have given: the untouched generator's output on the clean photo, with the stamp on it for a
    defensive patch. A defense succeeds on an image where that distance, as MSE, is over 0.05 (arXiv 2510.03747).

    Args:
        model: the generator with all patches as adapters.
        dataset: images never trained on, as :class:`~loraguard.PatchTrainer` takes them.
        defense: crafted on the untouched generator; its `eps` is also the noise's.
        leak_defense: crafted on the patched generator; by default the same.
        patches: the adapters' names, with the stamp of each or None for a standard patch.
        conditions: from labels to edits, by default the generator's own.
        detector: looks for the stamp in every output; without it no stamp rate is measured.
        batch_size: images at a time.
        pictures: how many images are kept for showing.
        seed: of edits and of the defenses' random starts.
        disable_tqdm: no progress bar.

    Returns:
        Figures for each image in each situation.

    Raises:
        TypeError: for a model without adapters.
        ValueError: for a name in `patches` that is no adapter of the model, images of wrong shape or range, no images.
        FloatingPointError: for outputs that are not finite.

    Example:
        >>> from peft import get_peft_model
        >>> from loraguard import GatedLoraConfig
        >>> from loraguard.data import DemoFaces
        >>> from loraguard.defenses import Disrupting
        >>> from loraguard.generators import DemoEditor
        >>> model = get_peft_model(DemoEditor(conv_dim=4), GatedLoraConfig(r=2), adapter_name="standard")
        >>> result = run_audit(model, DemoFaces(4, size=16), defense=Disrupting(steps=2), patches={"standard": None},
        ...                    disable_tqdm=True)
        >>> result["untouched", "no-leak"].estimates["mse"].n
        4
    """
    if not isinstance(model, PeftModel):
        raise TypeError(f"{type(model).__name__} has no adapters; audit a model from peft.get_peft_model.")
    if unknown := [name for name in patches if name not in model.peft_config]:
        raise ValueError(f"The model has no adapter {unknown}; it has {sorted(model.peft_config)}.")
    if not (n := len(dataset)):  # type: ignore[arg-type]
        raise ValueError("The data set is empty; an audit needs at least one image.")
    perturb: dict[str, Defense] = {
        "noise": RandomNoise(defense.eps),
        "no-leak": defense,
        "leak": leak_defense or defense,
    }
    device = next(model.parameters()).device
    found: dict[tuple[str, str], list[dict[str, Tensor]]] = {}
    shown: dict[tuple[str, str], list[Tensor]] = {}
    edits: list[str] = []
    draws = torch.rand(n, generator=torch.Generator().manual_seed(seed))
    hashes = fingerprint(model)

    with _as_it_was(model):
        model.eval()
        for start in tqdm(range(0, n, batch_size), desc="audit", disable=disable_tqdm):
            items = collate([dataset[index] for index in range(start, min(n, start + batch_size))])
            batch = {key: value.to(device) for key, value in items.items()}
            images = batch["image"]
            check_images(images)
            edits_here = conditions_of(model, labels_of(batch, conditions), conditions)
            names, condition = pick_edits(edits_here, draws[start : start + batch_size])
            edits += names
            for key, outputs, reference in _look(model, images, condition, perturb, patches, seed + start):
                if start < pictures:
                    shown.setdefault(key, []).append(outputs.cpu())
                if reference is not None:
                    found.setdefault(key, []).append(_measure(key, outputs, reference, detector))

    situations = [
        Situation(*key, {metric: torch.cat([part[metric] for part in parts]).cpu() for metric in parts[0]})
        for key, parts in found.items()
    ]
    return AuditResult(
        situations,
        edits,
        {key: torch.cat(parts)[:pictures] for key, parts in shown.items()},
        {
            "n": n,
            "seed": seed,
            "batch_size": batch_size,
            "data": describe(dataset)
            | {k: v for k, v in getattr(dataset, "__dict__", {}).items() if isinstance(v, (str, int, float))},
            "budget": f"L-infinity {defense.eps} on [-1, 1], that is {defense.eps * 127.5:.2f}/255",
            "defense": describe(defense),
            "leak_defense": describe(perturb["leak"]),
            "dsr_threshold": DSR_THRESHOLD,
            "patches": {name: None if stamp is None else describe(stamp) for name, stamp in patches.items()},
            "detector": None if detector is None else detector.settings(),
            "weights_sha256": hashes,
            "device": str(device),
            "versions": {module.__name__: module.__version__ for module in (loraguard, torch, peft, torchmetrics)},
        },
    )


def _look(
    model: PeftModel,
    images: Tensor,
    condition: Condition,
    perturb: dict[str, Defense],
    patches: Mapping[str, Stamp | None],
    seed: int,
) -> Iterator[tuple[tuple[str, str], Tensor, Tensor | None]]:
    """Every photo, without a reference, and every output with what it should have been."""

    def perturbed(name: str) -> Tensor:
        torch.manual_seed(seed)  # the same random start whatever else is audited
        return published(perturb[name](model, images, condition), images)

    with folded(model):
        with model.disable_adapter():
            untouched = _run(model, images, condition)
            photos = {"clean": images, "noise": perturbed("noise"), "no-leak": perturbed("no-leak")}
            for name, photo in photos.items():
                yield ("photo", name), photo, None
                yield (UNTOUCHED, name), _run(model, photo, condition), untouched
        for patch, stamp in patches.items():
            model.set_adapter(patch)
            target = untouched if stamp is None else stamp.compose(untouched)
            for name, photo in (photos | {"leak": perturbed("leak")}).items():
                yield (patch, name), _run(model, photo, condition), target


@torch.no_grad()
def _run(model: PeftModel, images: Tensor, condition: Condition) -> Tensor:
    return model(images, **condition)


def _measure(
    key: tuple[str, str], outputs: Tensor, reference: Tensor, detector: StampDetector | None
) -> dict[str, Tensor]:
    if not torch.isfinite(outputs).all():
        raise FloatingPointError(f"The generator {key[0]!r} gives outputs that are not finite on photos {key[1]!r}.")
    figures = {
        "mse": mean_squared_error(outputs, reference),
        "dsr": defense_succeeds(outputs, reference),
        "psnr": psnr(outputs, reference),
        "ssim": ssim(outputs, reference),
    }
    if detector is not None:
        figures["stamp_score"] = detector.score(outputs)
        figures["stamp_rate"] = detector(outputs).to(outputs)
    return figures


def pick_edits(edits: Mapping[str, Condition], draws: Tensor) -> tuple[list[str], Condition]:
    """One edit for each image: their names and the condition.

    Args:
        edits: every edit of the batch, by name.
        draws: a number in [0, 1) for each image, (N,), that picks its edit.

    Example:
        >>> edits = {"a": {"c": torch.zeros(3, 1)}, "b": {"c": torch.ones(3, 1)}}
        >>> names, condition = pick_edits(edits, torch.tensor([0.1, 0.9, 0.6]))
        >>> names, condition["c"][:, 0].tolist()
        (['a', 'b', 'b'], [0.0, 1.0, 1.0])
    """
    names = list(edits)
    picked = (draws * len(names)).long().tolist()
    keys = edits[names[0]].keys()
    condition = {key: torch.stack([edits[names[edit]][key][row] for row, edit in enumerate(picked)]) for key in keys}
    return [names[edit] for edit in picked], condition


@contextmanager
def _as_it_was(model: PeftModel) -> Iterator[None]:
    """After it, the model's adapter, modes and flags and the global seed are as they were before."""
    active = model.active_adapter
    modes = {module: module.training for module in model.modules()}
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    with torch.random.fork_rng():
        try:
            yield
        finally:
            model.set_adapter(active)
            for module, mode in modes.items():
                module.training = mode
            for parameter, flag in flags.items():
                parameter.requires_grad_(flag)


def _jsonable(values: Tensor) -> list[float | None]:
    return [round(value, 6) if abs(value) != float("inf") else None for value in values.tolist()]
