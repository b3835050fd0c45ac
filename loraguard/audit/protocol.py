"""The audit: the same images and edits in every situation, untouched and patched generators side by side."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn
from torch.utils.data import Dataset

from loraguard.channels import Channel, parse_channel
from loraguard.data import PhotoHashes
from loraguard.defenses import AnyDefense, Fittable, as_defense
from loraguard.files import writable_folder
from loraguard.generators import Conditions
from loraguard.metrics import LPIPS
from loraguard.stamp import Stamp, StampDetector

from .checks import examine
from .craft import must_fit
from .gather import gather
from .measure import Measures
from .names import SUCCESS
from .overlap import hashes_in, overlaps
from .photos import Photos
from .plan import plan
from .probes import what_draws
from .result import AuditResult
from .run import PROBED, Run
from .share import Share
from .store import Store
from .subjects import Subjects
from .success import Success


def run_audit(
    model: PeftModel,
    dataset: Dataset[Any],
    *,
    defenses: AnyDefense | Mapping[str, AnyDefense | Dataset[Any]],
    patches: Mapping[str, Stamp | None],
    generators: Mapping[str, nn.Module] | None = None,
    channels: Sequence[str] | Mapping[str, Channel] = (),
    adaptive_channels: bool = True,
    budgets: Sequence[float] = (),
    steps: Sequence[int] = (),
    seeds: Sequence[int] = (0,),
    no_leak_only: Sequence[str] = (),
    fit_on: Dataset[Any] | None = None,
    conditions: Conditions | None = None,
    detectors: Mapping[str, StampDetector | None] | None = None,
    lpips: LPIPS | None = None,
    features: nn.Module | None = None,
    identity: nn.Module | None = None,
    checks: int = 0,
    output_dir: str | Path | None = None,
    batch_size: int = 25,
    pictures: int = 6,
    share: Share | None = None,
    allow_large_change: bool = False,
    success: str = SUCCESS,
    trained_on: Mapping[str, PhotoHashes] | None = None,
    disable_tqdm: bool = False,
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
        model: the generator with all patches as adapters.
        dataset: images never trained on, as :class:`~loraguard.PatchTrainer` takes them.
        defenses: by name; or a single one. A data set in place of a defense holds the same photos, perturbed by
            somebody else, in the same order.
        patches: the adapters' names, with the stamp of each or None for a standard patch; a name of `generators` says
            what that one stamps.
        generators: further networks to audit, by name, called as the generator is: one that was fine-tuned, say.
        channels: by name, or specs such as "jpeg:75+resize:0.5", whose names they are.
        adaptive_channels: defenses are crafted through each channel as well.
        budgets: further values of `eps` for defenses that have it, as a curve.
        steps: further values of `steps` for defenses that have them, as a curve.
        seeds: of the defenses' random starts, of noise and of channels; the first one also draws the edits.
        no_leak_only: defenses, by name, that are not crafted anew with a leak: networks whose training would take too
            long, for example.
        fit_on: photos for defenses that have to be fitted; not those of `dataset`.
        conditions: from labels to edits, by default the generator's own.
        detectors: by patch, what looks for its stamp in every output, or None; without any no stamp rate is measured.
        lpips: from `LPIPS.load`, to measure LPIPS.
        features: an encoder, images (N, 3, H, W) to (N, D), to measure the Fréchet distance between the outputs and
            what they should have been.
        identity: a face encoder, images (N, 3, H, W) to embeddings (N, D), to measure the cosine between the embeddings
            of outputs and of what they should have been.
        checks: on how many images to try stronger and other attacks (see docs/audit-checks.md); 0 for none.
        output_dir: where what is found is kept; in memory only where there is none.
        batch_size: images at a time.
        pictures: how many images are kept for showing.
        share: this process' part of an audit that several processes do together, each with the same arguments and
            `output_dir`; by default what `accelerate launch` or `torchrun` say.
        allow_large_change: take perturbed photos (data sets in `defenses`) that are not like their originals, under
            20 dB PSNR, which are refused otherwise: other people's, or turned ones.
        success: when a defense counts as having succeeded on a photo, as
            :class:`~loraguard.audit.success.Success` reads it: "mse:0.05", "lpips:T", "ssim:T", "noise:Q".
        trained_on: by patch or network, hashes of the photos that it was trained on; audited photos among them, or
            versions of them, are flagged. The trainer leaves them beside a patch, in `photos.safetensors`.
        disable_tqdm: no progress bar.

    Returns:
        Figures for each image in each situation.

    Raises:
        TypeError: for a model without adapters.
        ValueError: for a name in `patches` that is no adapter of the model, images of wrong shape or range, no images,
            a defense that has to be fitted and no photos for that, an unknown channel.
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
    if not isinstance(defenses, Mapping):
        defenses = {type(defenses).__name__.lower(): defenses}
    if taken := {"none", "noise"} & set(defenses):
        raise ValueError(f"The names {sorted(taken)} are those of the controls; call the defense something else.")
    if unknown := sorted(set(no_leak_only) - set(defenses)):
        raise ValueError(f"no_leak_only names {unknown}; the defenses are {sorted(defenses)}.")
    if not isinstance(channels, Mapping):
        channels = {spec: parse_channel(spec) for spec in channels}
    counts = Success(success)
    if (counts.metric, None) in (("lpips", lpips), ("identity", identity)):
        how = "from LPIPS.load; on the command line --lpips" if counts.metric == "lpips" else "a face encoder"
        raise ValueError(f"success={success!r} needs {counts.metric}=, {how}.")
    subjects = Subjects(model, patches, generators)
    given = {name: one for name, one in defenses.items() if hasattr(one, "__getitem__")}
    defenses = {
        name: one if name in given or isinstance(one, Dataset) else as_defense(one) for name, one in defenses.items()
    }
    photos = Photos(
        dataset, model, conditions, given, batch_size=batch_size, seed=seeds[0], device=next(model.parameters()).device
    )
    random: set[str] = set()
    if checks:
        with subjects.in_eval_mode():
            random = what_draws(subjects, channels, photos.peek().first(PROBED))
    jobs = plan(
        defenses,
        subjects.names,
        no_leak_only=[*given, *no_leak_only],
        channels=list(channels),
        adaptive_channels=list(channels) if adaptive_channels else (),
        budgets=budgets,
        more_steps=steps,
        seeds=seeds,
        checks=min(checks, len(photos)),
        random=random,
    )
    for name, one in defenses.items():
        if (
            isinstance(one, Fittable)
            and fit_on is None
            and any(must_fit(j) for j in jobs if j.treatment.defense == name)
        ):
            raise ValueError(f"The defense {name!r} has to be fitted: pass fit_on=, photos beside those of the audit.")
    found = {name: one for name, one in (detectors or {}).items() if one is not None}
    measures = Measures(found, lpips, features, identity)

    with ExitStack() as stack:
        share = share or Share.launched()
        if output_dir is None:
            if share.of > 1:
                raise ValueError(f"{share.of} processes need an output_dir to share what they find.")
            output_dir = stack.enter_context(tempfile.TemporaryDirectory(prefix="loraguard-"))
        store = Store(writable_folder(output_dir) / "cells")
        stack.enter_context(subjects.in_eval_mode())
        run = Run(
            subjects,
            photos,
            channels,
            measures,
            store,
            jobs,
            fit_on,
            conditions,
            pictures,
            allow_large_change=allow_large_change,
        )
        log = run.go(share, disable_tqdm)
        result = gather(run, log, defenses, seeds, counts)
    known, kept = dict(trained_on or {}), None if fit_on is None else hashes_in(fit_on)
    result.settings["trained_on"] = {name: len(one) for name, one in known.items()}
    result.checks += subjects.made_for_others(run.names.hashes)
    result.checks += overlaps(list(log.likeness.values()), known, kept, subjects.names)
    result.checks += examine(result)
    return result
