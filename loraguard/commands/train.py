"""From a generator and photos to a trained and audited patch: what `loraguard train` does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from loraguard.audit import AuditResult, calibrate_detector, place, run_audit, write_report
from loraguard.data import split_photos
from loraguard.defenses import AnyDefense, Disrupting, as_defense
from loraguard.generators import Conditions
from loraguard.training import PatchTrainer, PatchTrainingArguments, TrainingResult, adapter_config
from loraguard.tuner import GatedLoraConfig


@dataclass(frozen=True)
class TrainedPatch:
    """What :func:`train_patch` made.

    Attributes:
        model: the generator with its patch.
        training: how training went; the patch lies in its `output_dir`.
        audit: what the audit found, or None where none was asked for.
        report: the audit's page, or None; the main process alone writes one.
    """

    model: PeftModel
    training: TrainingResult
    audit: AuditResult | None
    report: Path | None


def train_patch(
    generator: nn.Module,
    dataset: Dataset[Any],
    args: PatchTrainingArguments,
    *,
    config: GatedLoraConfig | None = None,
    train_size: int | None = None,
    test_size: int = 100,
    conditions: Conditions | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = F.mse_loss,
    defense: AnyDefense | None = None,
    say: Callable[[str], None] = print,
) -> TrainedPatch:
    """Train a patch on some photos, audit it on others, and write both into `args.output_dir`.

    Several processes (`accelerate launch`, `torchrun`) share both; the main one speaks and writes the report.

    Args:
        generator: a network without adapters.
        dataset: photos, as :class:`~loraguard.PatchTrainer` takes them; split by person where people are known.
        args: of the training.
        config: of the adapter; by default what the recipe says (:func:`~loraguard.training.adapter_config`).
        train_size: photos to train on; all but the audit's by default.
        test_size: photos of the audit; 0 for none.
        conditions: from labels to edits, by default the generator's own.
        loss: D.
        defense: what is audited; by default 50 steps of PGD, at the budget of the training's adversary.
        say: called with a line of text as each part begins.

    Raises:
        ValueError: if there are too few photos, or the generator does not take them.
        OSError: if the output folder cannot be written to.

    Example:
        >>> import tempfile
        >>> from loraguard.data import DemoFaces
        >>> from loraguard.generators import DemoEditor
        >>> args = PatchTrainingArguments(tempfile.mkdtemp(), max_train_steps=2, cpu=True, disable_tqdm=True)
        >>> editor, defense = DemoEditor(conv_dim=4, num_blocks=1), Disrupting(steps=2)
        >>> made = train_patch(editor, DemoFaces(24, size=16), args, test_size=4, defense=defense)
        Training a standard patch for DemoEditor on 20 photos: 2 steps
        Auditing it on 4 photos that it was not trained on
        >>> made.report.name
        'report.html'
    """
    torch.manual_seed(args.seed)
    photos, held_out = split_photos(dataset, train_size=train_size, test_size=test_size or None, seed=args.seed)
    model = get_peft_model(generator, config or adapter_config(generator, args), adapter_name=args.kind)
    unseen = held_out if test_size else None
    trainer = PatchTrainer(model, photos, args, conditions=conditions, loss=loss, validation_dataset=unseen)
    main = place()[0] == 0  # which is known once the trainer has set up its processes
    say = say if main else lambda _: None
    name, steps = type(generator).__name__, trainer.total_steps
    say(f"Training a {args.kind} patch for {name} on {len(photos)} photos: {steps} steps")
    training = trainer.train()
    if unseen is None:
        return TrainedPatch(model, training, None, None)
    say(f"Auditing it on {len(held_out)} photos that it was not trained on")
    audit = _audited(model, photos, held_out, args, folder := training.output_dir / "audit", conditions, defense)
    report = write_report(audit, folder, training={args.kind: training}) if main else None
    return TrainedPatch(model, training, audit, report)


def _audited(
    model: PeftModel,
    photos: Dataset[Any],
    held_out: Dataset[Any],
    args: PatchTrainingArguments,
    folder: Path,
    conditions: Conditions | None,
    defense: AnyDefense | None,
) -> AuditResult:
    """Audit a patch on photos that were held out; its stamp's detector is calibrated on those of the training."""
    eps = as_defense(args.adversary).eps
    detector = None if args.stamp is None else calibrate_detector(model, photos, args.stamp, conditions)
    return run_audit(
        model,
        held_out,
        defenses=defense or Disrupting(eps=eps, steps=50, step_size=eps / 5),
        patches={args.kind: args.stamp},
        conditions=conditions,
        detectors={args.kind: detector},
        batch_size=min(25, args.train_batch_size * 4),
        seeds=[args.seed],
        output_dir=folder,
        disable_tqdm=args.disable_tqdm,
    )
