"""A run of the patch trainer: its steps, its log, and how it goes on after an interruption."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from tqdm.auto import tqdm

from loraguard.data import collate
from loraguard.files import writable_folder

from .checkpoints import Checkpoints
from .coverage import warn_of_unreached_layers
from .gradients import Gradients, ZeroGradients
from .interruption import Interruption
from .step import patch_step
from .validation import describe, save_grid, validate
from .watch import StepWatch, stuck_gates

if TYPE_CHECKING:
    from .trainer import PatchTrainer

MATTERS = (
    "stamp",
    "adversary",
    "edits_per_step",
    "train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "gate_learning_rate",
    "lr_scheduler",
    "lr_warmup_steps",
    "adam_beta1",
    "adam_beta2",
    "max_train_steps",
    "num_train_epochs",
    "max_grad_norm",
    "seed",
    "mixed_precision",
)
"""Settings that make a resumed run another than the one that was interrupted."""


_OVERFLOWS = 25
"""Lowerings of fp16's scale in a row, each by half, after which nothing is left of it."""


class TrainingRun:
    """Where a run is and what it has seen; made by `PatchTrainer.train` for one pass through it."""

    def __init__(self, trainer: PatchTrainer, network: Any, optimizer: Any, scheduler: Any) -> None:
        self.trainer, self.accelerator = trainer, trainer.accelerator
        self.args: Any = trainer.args  # whose recipe has filled in what was None
        self.network, self.scheduler = network, scheduler
        parameters = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
        sharded = self.accelerator.distributed_type == "DEEPSPEED"
        self.gradients = (ZeroGradients if sharded else Gradients)(self.accelerator, network, optimizer, parameters)
        self.step = self.overflows = 0
        self.log: list[dict[str, Any]] = []
        self.gates: dict[str, list[float]] = {name: [] for name in trainer.layers}
        self.validation: list[dict[str, float]] = []
        self.watch = StepWatch(self.args.max_skipped_steps)
        self.warned = self.stopped = False
        self.checkpoints = Checkpoints(
            trainer.output_dir, self.accelerator, trainer.model, trainer.adapter, self.args.checkpoints_total_limit
        )

    def go(self, interruption: Interruption) -> None:
        """Train from where the run is to its end."""
        args, total = self.args, self.trainer.total_steps
        if args.resume_from_checkpoint is not None:
            self._resume(args.resume_from_checkpoint)
        if self.accelerator.is_main_process and (later := self.checkpoints.later_than(self.step)):
            warnings.warn(
                f"{self.trainer.output_dir} holds checkpoints of an earlier run, {later[-1].name} the last, and this "
                f"one starts at step {self.step}: resume_from_checkpoint='latest' would take that one until this "
                "run is beyond it. Delete them, or choose another output folder.",
                stacklevel=2,
            )
        self.trainer.tracking.start(self.accelerator)
        batches = self.trainer.batches(self.step * args.gradient_accumulation_steps)
        hidden = args.disable_tqdm or not self.accelerator.is_main_process
        with tqdm(total=total, initial=self.step, desc=f"{args.kind} patch", disable=hidden) as bar:
            while self.step < total:
                self.step += 1
                entry = self._train_step(batches)
                bar.update()
                bar.set_postfix({k: f"{entry[k]:.4f}" for k in ("loss_clean", "loss_adversarial", "gate_mean")})
                if args.validation_steps and (self.step % args.validation_steps == 0 or self.step == total):
                    bar.write(f"Step {self.step}: {describe(self._validate())}")
                due = args.checkpointing_steps and self.step % args.checkpointing_steps == 0
                stop = self._anyone(interruption.signal is not None)
                if due or (stop and self.step < total):
                    saved = self.checkpoints.save(self.step, self.state_dict())
                if stop and self.step < total:
                    interruption.leave(
                        f"Interrupted after step {self.step} of {total}; {saved} has all of it. To go on: "
                        "resume_from_checkpoint='latest' (loraguard train: --resume)."
                    )
                    raise SystemExit(1)  # another process got the signal
        self.watch.finish(self.step)
        self.stopped = interruption.signal is not None

    def _train_step(self, batches: Iterator[tuple[list[int], dict[str, Tensor]]]) -> dict[str, Any]:
        args, accelerator, trainer, gradients = self.args, self.accelerator, self.trainer, self.gradients
        several = args.gradient_accumulation_steps
        losses: dict[str, Tensor] = {}
        with gradients.collecting():
            for part in range(several):
                indices, batch = next(batches)
                images, condition, edits = trainer.edits(batch, self.step)
                found = patch_step(
                    trainer.model, images, condition, adversary=args.adversary, stamp=args.stamp, loss=trainer.loss,
                    backward=lambda value: gradients.backward(value / several), network=self.network,
                    no_sync=gradients.no_sync, last=part == several - 1,
                    keys=[(index, edit) for edit in edits for index in indices],
                )  # fmt: skip
                losses = {name: losses.get(name, 0) + value / several for name, value in found.items()}
            if not self.log:
                warn_of_unreached_layers(trainer.model, trainer.adapter)
        means = cast(Tensor, accelerator.reduce(torch.stack(list(losses.values())).float(), "mean"))
        entry: dict[str, Any] = {"step": self.step, **dict(zip(losses, means.tolist(), strict=True))}
        norm = gradients.clip(args.max_grad_norm)
        rate = self.scheduler.get_last_lr()[0]
        scaled = accelerator.mixed_precision == "fp16"
        overflow = scaled and not math.isfinite(norm) and bool(torch.isfinite(means).all())  # the scaler will skip it
        if overflow:
            self.overflows += 1
            entry["skipped"] = "the gradients were over the range of fp16; its scale is lowered"
            if self.overflows >= _OVERFLOWS:
                raise FloatingPointError(
                    f"Stopped at step {self.step}: gradients were over the range of fp16 {self.overflows} times in a "
                    "row, although their scale was lowered each time. Use mixed_precision='bf16' or 'no'."
                )
            gradients.step()
        elif self.watch.look(self.step, {name: entry[name] for name in losses}, norm, rate):
            self.overflows = 0
            gradients.step()
        else:
            entry["skipped"] = self.watch.skipped[-1]["reason"]
            gradients.drop()
        self.scheduler.step()
        return self._note({**entry, "gradient_norm": norm, "learning_rate": rate})

    def _note(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Log a step, with the gates after it."""
        openings = self.trainer.gate_openings()
        for name, value in openings.items():
            self.gates[name].append(value)
        entry["gate_mean"] = sum(openings.values()) / len(openings)
        self.trainer.tracking.log(self.accelerator, entry, openings)
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in entry.items()}
        self.log.append(finite)
        if (
            not self.warned
            and (complaint := stuck_gates(self.trainer.learning(openings)))
            and self.accelerator.is_main_process
        ):
            self.warned = True
            warnings.warn(f"After step {self.step}, {complaint}", stacklevel=2)
        return entry

    def _validate(self) -> dict[str, float]:
        trainer, args = self.trainer, self.args
        data = cast(Any, trainer.validation_dataset)
        batch = collate([data[i] for i in range(min(args.num_validation_images, len(data)))])
        images, condition, edits = trainer.edits(batch)
        n = len(batch["image"])
        rows = [(i % len(edits)) * n + i for i in range(n)]  # each image with one of the edits
        images, condition = images[rows], {key: value[rows] for key, value in condition.items()}
        metrics, shown = validate(
            trainer.model, images, condition, adversary=args.adversary, stamp=args.stamp, seed=args.seed
        )
        trainer.train_mode()
        self.validation.append({"step": self.step, **metrics})
        if self.accelerator.is_main_process:
            path = writable_folder(trainer.output_dir / "validation") / f"step-{self.step}.png"
            trainer.tracking.show(self.accelerator, self.step, metrics, save_grid(shown, path))
        return metrics

    def _anyone(self, here: bool) -> bool:
        """Whether it holds in any process."""
        if self.accelerator.num_processes == 1:
            return here
        flag = torch.tensor(float(here), device=self.accelerator.device)
        return bool(cast(Tensor, self.accelerator.reduce(flag, "sum")) > 0)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs beside weights and random states."""
        return {
            "settings": self.args.to_dict(),
            "images": len(cast(Any, self.trainer.dataset)),
            "log": self.log,
            "gates": self.gates,
            "validation": self.validation,
            "watch": self.watch.state_dict(),
        }

    def _resume(self, wanted: str | Path) -> None:
        checkpoint = self.checkpoints.find(wanted)
        if checkpoint is None:
            return
        state = self.checkpoints.load(checkpoint)
        if state["images"] != (images := len(cast(Any, self.trainer.dataset))):
            raise ValueError(f"{checkpoint} was trained on {state['images']} images, this run has {images}.")
        now = self.args.to_dict()
        changed = [
            f"{name}: {then!r} then, {now.get(name)!r} now"
            for name, then in state["settings"].items()
            if name in MATTERS and then != now.get(name)
        ]
        if changed:
            warnings.warn(f"Resuming {checkpoint} with other settings: {'; '.join(changed)}.", stacklevel=2)
        self.step, self.log, self.gates = state["step"], state["log"], state["gates"]
        self.validation = state["validation"]
        self.watch.load_state_dict(state["watch"])
