"""The patch trainer, on Accelerate."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from accelerate.scheduler import AcceleratedScheduler
from accelerate.utils import set_seed
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers import get_scheduler

from loraguard.defenses import needs_fitting
from loraguard.files import writable_folder
from loraguard.fingerprint import generator_fingerprint
from loraguard.generators import Conditions
from loraguard.hub.provenance import describe_generator
from loraguard.tuner import parameter_groups

from .arguments import PatchTrainingArguments
from .batches import Batch, Batches
from .cat import cat_step, check_autoencoder
from .checkpoints import Checkpoints
from .checks import check_adapter, check_data
from .compiling import compiled
from .coverage import warn_of_unreached_layers
from .devices import accelerator_for, anywhere, on_main, refuse_several_processes
from .gates import Gates
from .gradients import Gradients, gradients_of
from .interruption import Interruption
from .log import TrainingLog, TrainingResult
from .marking import Layers, marked
from .modes import train_adapter
from .resuming import GivenRates, resume, warn_of_later
from .saving import rescued, save_or_rescue, save_patch, try_saving
from .step import Loss, patch_step, settings_of
from .tracking import Tracking
from .untouched import check_frozen, check_plain
from .validation import describe, draw_grid, one_edit_each, save_picture, validate
from .watch import StepWatch


class PatchTrainer:
    """Trains the adapter of a generator to be a patch: *standard*, or with a stamp *defensive* (arXiv 2510.03747).

    A stamp is a visible watermark, the warning that a defensive patch puts on every output.

    Args:
        model: a generator with a GATED_LORA adapter, from `get_peft_model(generator, GatedLoraConfig(...))`. Its active
            adapter is trained; everything else stays frozen. Targets come from the same network, adapter disabled.
        dataset: a map-style data set whose items are an image (3, H, W) in [-1, 1], or a pair (image, labels), or a
            dict with "image" and, for generators that need them, "labels" (A,).
        args: the settings.
        conditions: from a batch's labels to the edits to train on, by name; by default the generator's own
            `conditions`, and a single unconditional output where it has none.
        loss: D, the distance between outputs and targets; pixel MSE by default.
        validation_dataset: images that are not trained on, for `validation_steps`.

    Raises:
        TypeError: if the model has no GATED_LORA adapter, or the generator cannot be called with the edits.
        ValueError: if the adversary has to be fitted first, the data is empty or yields wrong shapes or ranges, the
            generator does not give one image (3, H', W') for each image, no gradient reaches the adapter, or what
            `disable_adapter` cannot undo would change: a wrapper, a bias or a buffer of the network beneath.
        OSError: if the output folder cannot be written to. All of it before training starts.

    Example:
        >>> import tempfile
        >>> from peft import get_peft_model
        >>> from loraguard import GatedLoraConfig
        >>> from loraguard.data import DemoFaces
        >>> from loraguard.defenses import Disrupting
        >>> from loraguard.generators import DemoEditor
        >>> model = get_peft_model(DemoEditor(conv_dim=4), GatedLoraConfig(r=2))
        >>> out = tempfile.mkdtemp()
        >>> args = PatchTrainingArguments(out, adversary=Disrupting(steps=2), max_train_steps=2, cpu=True,
        ...                               disable_tqdm=True)
        >>> result = PatchTrainer(model, DemoFaces(16, size=16), args).train()
        >>> len(result.log), (result.output_dir / "adapter_model.safetensors").is_file()
        (2, True)
    """

    def __init__(
        self,
        model: PeftModel,
        dataset: Dataset[Any],
        args: PatchTrainingArguments,
        *,
        conditions: Conditions | None = None,
        loss: Loss = F.mse_loss,
        validation_dataset: Dataset[Any] | None = None,
    ) -> None:
        check_adapter(model)
        check_plain(model.get_base_model())
        check_frozen(model, model.active_adapter)
        if args.validation_steps and validation_dataset is None:
            raise ValueError(f"validation_steps={args.validation_steps} needs a validation_dataset.")
        if needs_fitting(args.adversary):
            raise ValueError(
                f"{type(args.adversary).__name__} has to be fitted before training starts: give what its "
                "fit(generator, photos) returns; for a Mixture, that of each part."
            )
        self.model, self.args, self.adapter = model, args, model.active_adapter
        self.loss, self.layers = marked(loss, args.mark), Layers.of(args.stamp, args.mark)
        self._warned = False  # of stuck gates
        self._write: Callable[[Path], None] | None = None  # what was trained, into a folder
        self.gates = Gates(model, self.adapter)
        self.output_dir = writable_folder(args.output_dir)
        self.tracking = Tracking(args, self.output_dir)
        self.accelerator = accelerator_for(args, self.output_dir)
        if isinstance(self.loss, nn.Module):
            self.loss.to(self.accelerator.device)
        if args.recipe == "cat":
            check_autoencoder(model)
            refuse_several_processes("CAT's training")
        self.batches = Batches(dataset, model, conditions, args, self.accelerator)
        self.edits = check_data(model, self.adapter, self.batches, self.layers)
        if args.lr_warmup_steps >= self.total_steps:
            raise ValueError(
                f"lr_warmup_steps={args.lr_warmup_steps} of {self.total_steps} steps: the learning rate would never "
                f"reach {args.learning_rate}. Give fewer, or train longer."
            )
        self.validation = None
        if validation_dataset is not None:
            self.validation = Batches(validation_dataset, model, conditions, args, self.accelerator)
            check_data(model, self.adapter, self.validation, self.layers)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        args = self.args
        images = args.train_batch_size * args.gradient_accumulation_steps * self.accelerator.num_processes
        return args.max_train_steps or math.ceil(args.num_train_epochs * len(self.batches) / images)

    def train(self) -> TrainingResult:
        """Train the patch and save it.

        Returns:
            Where it is and how training went.

        Raises:
            FloatingPointError: if losses or gradients are not finite or explode, `max_skipped_steps` times in a row.
            KeyboardInterrupt: after SIGINT, once a checkpoint is saved.
            SystemExit: after SIGTERM, likewise.
            OSError: if the patch cannot be written; what was written before is as it was. A checkpoint, a picture or a
                tracker's figures that cannot be are said in a warning, and training goes on.
        """
        on_main(self.accelerator, lambda: try_saving(self.model, self.adapter, self.output_dir, self.total_steps))
        self.generator = describe_generator(self.model.get_base_model())  # as it is before training
        log = TrainingLog()
        watch = StepWatch(self.args.max_skipped_steps, scaled=self.accelerator.mixed_precision == "fp16")
        with self._prepared() as (network, gradients, scheduler):
            with Interruption() as interruption:
                try:
                    with compiled(self.model) if self.args.torch_compile else nullcontext():
                        self._run(network, gradients, scheduler, log, watch, interruption)
                finally:  # whatever ends it, what was learnt can be saved
                    self._write = self._writer(log, watch) if log.step else None
                on_main(self.accelerator, self._save)
            if self.args.push_to_hub:
                on_main(self.accelerator, lambda: self.tracking.push(self.output_dir))
        self.accelerator.wait_for_everyone()
        if interruption.signal is not None:
            interruption.leave(f"Asked to stop after the last step; the patch in {self.output_dir} is complete.")
        return self._result(log)

    def _result(self, log: TrainingLog) -> TrainingResult:
        return TrainingResult(self.output_dir, log.steps, log.gates, log.validation)

    def _writer(self, log: TrainingLog, watch: StepWatch) -> Callable[[Path], None]:
        """What writes the patch as it is now into a folder."""
        return partial(
            save_patch, self.model, self.adapter, self._result(log), settings=self.record(), generator=self.generator,
            dataset=self.batches.dataset, drawn=self.batches.drawn(log.step), skipped=watch.skipped,
            resumed=log.resumed,
        )  # fmt: skip

    def _run(
        self,
        network: nn.Module,
        gradients: Gradients,
        scheduler: AcceleratedScheduler,
        log: TrainingLog,
        watch: StepWatch,
        interruption: Interruption,
    ) -> None:
        """The training loop, from where the log ends; it raises where the run has to stop."""
        args, accelerator, total = self.args, self.accelerator, self.total_steps
        checkpoints = Checkpoints(self.output_dir, accelerator, self.model, self.adapter, args.checkpoints_total_limit)
        self._resume(checkpoints, log, watch, GivenRates(gradients.optimizer, scheduler))
        self.tracking.start(accelerator, self.record())
        batches = self.batches.after(log.step)
        with self._progress_bar(log.step) as bar:
            for step in range(log.step + 1, total + 1):
                losses = self._backward(batches, network, gradients)
                if step == 1:
                    warn_of_unreached_layers(self.model, self.adapter)
                norm, rate = gradients.clip(args.max_grad_norm), scheduler.get_last_lr()[0]
                verdict = watch.judge(step, losses, norm, rate)
                if verdict.take:
                    gradients.step()
                else:
                    gradients.drop()
                scheduler.step()

                openings = self.gates.openings()
                entry = log.add(step, losses, openings, gradient_norm=norm, learning_rate=rate, skipped=verdict.skipped)
                self._show(entry, losses, openings, bar)
                if args.validation_steps and (step % args.validation_steps == 0 or step == total):
                    bar.write(f"Step {step}: {describe(self._validate(step, log))}")

                due = args.checkpointing_steps and step % args.checkpointing_steps == 0
                stop = anywhere(accelerator, interruption.signal is not None) and step < total
                if due or stop:
                    saved = self._checkpoint(checkpoints, log, watch, leaving=stop)
                if stop:
                    interruption.leave(
                        f"Interrupted after step {step} of {total}; {saved} has all of it. To go on: "
                        "resume_from_checkpoint='latest' (loraguard train: --resume)."
                    )
                    raise SystemExit(1)  # another process got the signal
        watch.finish(log.step)

    def _checkpoint(
        self, checkpoints: Checkpoints, log: TrainingLog, watch: StepWatch, *, leaving: bool
    ) -> Path | None:
        """Save one. Where the disk refuses, training goes on; if it was to be left, a copy of the patch stays."""
        try:
            return checkpoints.save(log.step, self._state(log, watch))
        except OSError as error:
            if leaving:
                then = rescued(self._writer(log, watch)) if self.accelerator.is_main_process else ""
                raise OSError(f"{error} The patch as it was then: {then}") from error
            if self.accelerator.is_main_process:
                warnings.warn(f"{error} Training goes on without it.", stacklevel=4)
            return None

    def _backward(self, batches: Iterator[Batch], network: nn.Module, gradients: Gradients) -> dict[str, float]:
        """Collect a step's gradients over its batches; gives its losses, averaged over batches and processes."""
        several = self.args.gradient_accumulation_steps
        losses: dict[str, Any] = {}
        with gradients.collecting():
            for part in range(several):
                found = self._one_batch(next(batches), network, gradients, last=part == several - 1)
                losses = {name: losses.get(name, 0) + value / several for name, value in found.items()}
        means = cast(Tensor, self.accelerator.reduce(torch.stack(list(losses.values())).float(), "mean"))
        return dict(zip(losses, means.tolist(), strict=True))

    def _one_batch(self, batch: Batch, network: nn.Module, gradients: Gradients, *, last: bool) -> dict[str, Tensor]:
        """Collect the gradients of a batch, by the step that the recipe says; gives its losses."""
        args = self.args

        def backward(loss: Tensor) -> None:
            gradients.backward(loss / args.gradient_accumulation_steps)

        if args.recipe == "cat":
            protected = batch.images[: len(batch.images) // len(batch.edits)]
            with self.accelerator.autocast():
                return cat_step(self.model, protected, loss=self.loss, backward=backward)
        return patch_step(
            self.model, batch.images, batch.condition, adversary=args.adversary, stamp=self.layers, loss=self.loss,
            backward=backward, network=network, no_sync=gradients.no_sync, last=last, keys=batch.keys,
        )  # fmt: skip

    @contextmanager
    def _prepared(self) -> Iterator[tuple[nn.Module, Gradients, AcceleratedScheduler]]:
        """Network, gradients and schedule as Accelerate has them, in train mode; afterwards the model is as before."""
        args, accelerator, model = self.args, self.accelerator, self.model
        accelerator.free_memory()  # of what a call before this one prepared, or checkpoints would hold that as well
        set_seed(args.seed, device_specific=True)
        groups = parameter_groups(model, args.learning_rate, args.gate_learning_rate or args.learning_rate)
        adam = torch.optim.Adam(groups, betas=(args.adam_beta1, args.adam_beta2))
        # Accelerate moves the schedule on once for each process.
        moves = (count * accelerator.num_processes for count in (args.lr_warmup_steps, self.total_steps))
        schedule = get_scheduler(args.lr_scheduler, adam, *moves)
        network, optimizer, scheduler = accelerator.prepare(model, adam, schedule)
        gradients = gradients_of(accelerator, network, optimizer, model)
        train_adapter(model, self.adapter)
        try:
            yield network, gradients, scheduler
        finally:
            gradients.close()
            accelerator.unwrap_model(network, keep_fp32_wrapper=False)  # mixed precision wraps forward ...
            vars(model).pop("forward", None)  # ... and unwrapping leaves a copy of the class's own
            model.eval()
            self.tracking.end(accelerator)

    def _resume(self, checkpoints: Checkpoints, log: TrainingLog, watch: StepWatch, given: GivenRates) -> None:
        """Put everything back as it was at the checkpoint that is asked for, if there is one; but for the rates."""
        wanted = self.args.resume_from_checkpoint
        state = resume(checkpoints, wanted, self.record(), self._about(), self.total_steps)
        if state is not None:
            given.put_back()
            log.load_state_dict(state)
            watch.load_state_dict(state["watch"])
        if self.accelerator.is_main_process:
            warn_of_later(checkpoints, log.step)

    def _state(self, log: TrainingLog, watch: StepWatch) -> dict[str, Any]:
        """What a checkpoint needs beside weights and random states."""
        settings = {"settings": self.args.to_dict(), "used": self.record()}  # as they were given, and as they are used
        return {**settings, **self._about(), **log.state_dict(), "watch": watch.state_dict()}

    def _about(self) -> dict[str, Any]:
        """What a checkpoint is for."""
        return {"images": len(self.batches), "generator": self.generator["sha256"]}

    def record(self) -> dict[str, Any]:
        """The settings as they are used, which is what log, checkpoints, trackers and provenance are told."""
        args, accelerator = self.args, self.accelerator
        return {
            **args.to_dict(),
            "edits_per_step": args.edits_per_step and min(args.edits_per_step, len(self.edits)),
            "num_train_epochs": None if args.max_train_steps else args.num_train_epochs,
            "gate_learning_rate": args.gate_learning_rate if self.gates.learn else None,
            "num_validation_images": min(args.num_validation_images, len(self.validation or ())),
            "mixed_precision": accelerator.mixed_precision,
            "dataloader_num_workers": self.batches.workers,
            "device": accelerator.device.type,
            "processes": accelerator.num_processes,
            "loss": settings_of(self.loss),
        }

    def _progress_bar(self, start: int) -> tqdm[NoReturn]:
        hidden = self.args.disable_tqdm or not self.accelerator.is_main_process
        return tqdm(total=self.total_steps, initial=start, desc=f"{self.args.kind} patch", disable=hidden)

    def _show(
        self, entry: dict[str, Any], losses: Iterable[str], openings: dict[str, float], bar: tqdm[NoReturn]
    ) -> None:
        """A step's figures, to whoever watches; gates that are stuck are said once."""
        bar.update()
        bar.set_postfix({key: f"{entry[key]:.4f}" for key in (*losses, "gate_mean")})
        self.tracking.log(self.accelerator, entry, openings)
        if not self._warned and self.accelerator.is_main_process and (complaint := self.gates.stuck(openings)):
            self._warned = True
            warnings.warn(f"After step {entry['step']}, {complaint}", stacklevel=3)

    def _validate(self, step: int, log: TrainingLog) -> dict[str, float]:
        """Measure the patch on held-out images, each with one of the edits."""
        args = self.args
        assert self.validation is not None
        images, condition = one_edit_each(self.validation.first(args.num_validation_images))
        metrics, shown = validate(
            self.model, images, condition, adversary=args.adversary, stamp=self.layers, seed=args.seed
        )
        train_adapter(self.model, self.adapter)
        log.validation.append({"step": step, **metrics})
        if self.accelerator.is_main_process:
            picture = draw_grid(shown)
            self.tracking.show(self.accelerator, step, metrics, picture)
            try:
                save_picture(picture, self.output_dir / "validation", f"step-{step}.png")
            except OSError as error:
                warnings.warn(f"{error} Training goes on without it.", stacklevel=3)
        return metrics

    def save(self, output_dir: str | Path) -> Path:
        """Write the trained patch into another folder, where `train` could not write it for instance.

        Of several processes only the main one is to call it.

        Raises:
            RuntimeError: if nothing was trained yet.
            OSError: if it cannot be written; what was there before is as it was.
        """
        if self._write is None:
            raise RuntimeError("There is no trained patch to save yet: call train() first.")
        folder = writable_folder(output_dir)
        self._write(folder)
        return folder

    def _save(self) -> None:
        assert self._write is not None
        if generator_fingerprint(self.model.get_base_model()) != self.generator["sha256"]:
            warnings.warn(
                "Training has changed the network beneath the adapter, which disable_adapter() does not give back. "
                "Something in its forward does that now and then; load it anew before the patch is audited.",
                stacklevel=4,
            )
        save_or_rescue(self._write, self.output_dir)
