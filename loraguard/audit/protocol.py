"""The audit: the same images and edits in every situation, untouched and patched generators side by side."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from peft import PeftModel
from torch import nn
from torch.utils.data import Dataset

from loraguard.data import PhotoVersions
from loraguard.defenses import Fittable
from loraguard.files import temporary_folder, writable_folder
from loraguard.stamp import StampDetector

from .checks import examine
from .craft import must_fit
from .detectability import detections
from .gather import gather
from .made import of_what_is_made
from .measure import Measures
from .options import AuditOptions
from .overlap import distinct, fitted_before, given_twice, hashes_in, overlaps
from .photos import Photos
from .plan import Job, plan
from .power import planned
from .probes import what_draws
from .result import AuditResult
from .run import PROBED, Run
from .share import Share
from .store import Store
from .subjects import Subjects, device_of
from .success import Success


def run_audit(
    model: nn.Module, dataset: Dataset[Any], options: AuditOptions | None = None, **given: Any
) -> AuditResult:
    """Measure what defenses are still worth against a generator as it is and as it is patched.

    For each image one edit is drawn. The photo is taken as it is, with random noise of the budget, defended with
    knowledge of the untouched generator (*no-leak*), and defended with knowledge of the very generator that is used
    (*leak*); each is rounded to 8 bits within its budget, as a published photo is, and may go through a channel before
    the generator sees it, of which the defender may know as well (*leak+channel*: crafted through the channel or its
    differentiable stand-in). Outputs are compared with what the generator should have given: the untouched generator's
    output on the clean photo, with the stamp on it for a defensive patch. A defense succeeds on an image where that
    distance, as MSE, is over 0.05 (arXiv 2510.03747).

    What is found is kept in `output_dir` piece by piece. The same audit again reads what is there, one that was killed
    goes on, and one with a further defense or patch adds what is missing. Several processes (`accelerate launch`,
    `torchrun`) share the batches.

    Args:
        model: the generator with all patches as adapters; or as it is, where defenses alone are audited.
        dataset: images never trained on, as :class:`~loraguard.PatchTrainer` takes them.
        options: all else, as :class:`~loraguard.audit.AuditOptions` describes it.
        given: options by name; they make an `AuditOptions`, or override those of `options`.

    Returns:
        Figures for each image in each situation.

    Raises:
        TypeError: for a model that is no network, or an option that does not exist.
        ValueError: for what :class:`~loraguard.audit.AuditOptions` refuses, a name in `patches` that is no adapter,
            images of wrong shape or range, no images, a defense that has to be fitted and no photos for that.
        FloatingPointError: for outputs that are not finite.
        OSError: if the folder cannot be written to.

    Example:
        >>> from peft import get_peft_model
        >>> from loraguard import GatedLoraConfig
        >>> from loraguard.data import DemoFaces
        >>> from loraguard.defenses import Disrupting
        >>> from loraguard.generators import DemoEditor
        >>> model = get_peft_model(DemoEditor(conv_dim=4), GatedLoraConfig(r=2), adapter_name="standard")
        >>> result = run_audit(model, DemoFaces(4, size=16), defenses=Disrupting(steps=2), patches={"standard": None},
        ...                    disable_tqdm=True)
        >>> result["untouched", "no-leak"].estimates["mse"].n
        4
    """
    options = AuditOptions(**given) if options is None else replace(options, **given)
    if options.patches is None and isinstance(model, PeftModel):
        raise ValueError(
            f"Say which of the adapters {sorted(model.peft_config)} are patches: patches={{NAME: None}}, or its Stamp "
            "in place of None; {} audits the network beneath them alone."
        )
    subjects = Subjects(model, options.patches or {}, options.generators, options.others)
    known = dict(options.trained_on or {})
    if unknown := sorted({*known} - {*subjects.names}):
        raise ValueError(f"trained_on names {unknown}; the audit has {', '.join(subjects.names)}.")
    photos = Photos(
        dataset,
        model,
        options.conditions,
        options.perturbed,
        options.others,
        batch_size=options.batch_size,
        seed=options.seeds[0],
        device=device_of(model),
    )
    jobs = _jobs(subjects, photos, options)
    kept = None if options.fit_on is None else hashes_in(options.fit_on)
    measures = Measures(_detectors(options), options.lpips, options.features, options.identity, options.brisque,
                        options.clip)  # fmt: skip
    with ExitStack() as stack:
        share = options.share or Share.launched()
        folder = options.output_dir
        if folder is None:
            if share.of > 1:
                raise ValueError(f"{share.of} processes need an output_dir to share what they find.")
            folder = stack.enter_context(temporary_folder())
        store = Store(writable_folder(folder) / "cells")
        stack.enter_context(subjects.in_eval_mode(options.channels, measures.made_by))
        run = Run(
            subjects,
            photos,
            options.channels,
            measures,
            store,
            jobs,
            options.fit_on,
            options.conditions,
            options.pictures,
            allow_large_change=options.allow_large_change,
            kept=kept,
        )
        log = run.go(share, options.disable_tqdm)
        detected = []
        if options.detect:
            assert options.fit_on is not None
            detected = detections(run, options.fit_on, options.detect, options.conditions, share, log.anew)
        result = gather(run, log, options.defenses, options.seeds, Success(options.success))
        result.detections = detected
    result.settings |= {"preset": options.preset, "transfer": carried(options.transfer, subjects.names)}
    result.settings["trained_on"] = {name: len(one) for name, one in known.items()}
    adapted = [name for name in subjects.names[1:] if name not in subjects.others]
    seen = fitted_before(options.defenses)
    fitted = {name: hashes_in(photos) for name, photos in seen.items() if photos is not None}
    learned = {**known, **fitted}
    result.settings["unknown_photos"] = [name for name in (*adapted, *seen) if not learned.get(name)]
    result.checks += subjects.made_for_others(run.names.hashes)
    audited = PhotoVersions.joined(log.likeness[start] for start in sorted(log.likeness))
    result.settings["distinct_photos"] = once = distinct(audited)
    result.settings["power"] = planned(once, len(options.defenses))
    result.checks += overlaps(audited, once, known, kept, subjects.names, fitted)
    result.checks += given_twice([log.alike[start] for start in sorted(log.alike)], subjects.names)
    result.checks += examine(result)
    for name in subjects.names:
        result.checks += of_what_is_made(result, name)
    return result


def _detectors(options: AuditOptions) -> dict[str, StampDetector]:
    """What looks for each patch's stamp; where there is any, a patch without one gets one as it is, not calibrated."""
    given: dict[str, StampDetector] = options.detectors
    stamps = {name: stamp for name, stamp in (options.patches or {}).items() if stamp is not None and given}
    return {**{name: StampDetector(stamp) for name, stamp in stamps.items()}, **given}


def carried(wanted: Sequence[str], there: Sequence[str]) -> list[str]:
    """The generators between which photos are carried, in the audit's order; "all" is each of them.

    Raises:
        ValueError: for a name that is none of an audited generator, or a single one.

    Example:
        >>> carried(["all"], ["untouched", "mine"])
        ['untouched', 'mine']
    """
    if unknown := sorted({*wanted} - {*there, "all"}):
        raise ValueError(f"transfer names {unknown}; the audit has {', '.join(there)}, or say all.")
    names = list(there) if "all" in wanted else [name for name in there if name in wanted]
    if len(names) == 1:
        raise ValueError(f"transfer={list(wanted)} is one generator; it takes two to carry a photo. Name another one.")
    return names


def _jobs(subjects: Subjects, photos: Photos, options: AuditOptions) -> list[Job]:
    """Everything that is to be done; refuses defenses that would have to be fitted and have nothing to do it on."""
    random: set[str] = set()
    if options.checks:
        with subjects.in_eval_mode(options.channels):
            random = what_draws(subjects, options.channels, photos.peek().first(PROBED))
    jobs = plan(
        options.defenses,
        subjects.names,
        no_leak_only=[*options.perturbed, *options.no_leak_only],
        channels=list(options.channels),
        adaptive_channels=options.adaptive,
        budgets=options.budgets,
        more_steps=options.steps,
        seeds=options.seeds,
        checks=min(options.checks, len(photos)),
        random=random,
        transfer=carried(options.transfer, subjects.names),
    )
    if options.fit_on is None:
        for job in jobs:
            name = job.treatment.defense
            if isinstance(options.defenses.get(name), Fittable) and must_fit(job):
                raise ValueError(
                    f"The defense {name!r} has to be fitted: pass fit_on=, photos beside those of the audit."
                )
    return jobs
