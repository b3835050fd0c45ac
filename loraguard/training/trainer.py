"""The patch trainer, on Accelerate."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, set_seed
from peft import PeftModel
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from transformers import get_scheduler

from loraguard.data import DemoFaces, collate
from loraguard.defenses import needs_fitting
from loraguard.defenses.base import check_image_batch
from loraguard.files import whole_files, writable_folder, write_json
from loraguard.generators import Conditions, conditions_of, expand, labels_of
from loraguard.hub.card import patch_card
from loraguard.hub.local import read_patch, save_adapter
from loraguard.hub.names import CARD, LOG
from loraguard.hub.provenance import describe_generator, training_record
from loraguard.tuner import GatedLoraConfig, GatedLoraLayer, parameter_groups

from .arguments import PatchTrainingArguments
from .compiling import compiled
from .gradients import asked_for, set_up_zero
from .interruption import Interruption
from .run import TrainingRun
from .sampling import EndlessBatches, mixed
from .step import Loss, settings_of, target_of
from .tracking import Tracking


@dataclass(frozen=True)
class TrainingResult:
    """What a training run leaves behind.

    Attributes:
        output_dir: where the patch is; `PeftModel.from_pretrained(generator, output_dir)` loads it.
        log: one entry a step: `step`, `loss_clean`, `loss_adversarial`, `gradient_norm`, `learning_rate`, `gate_mean`;
            and `skipped`, why, where a step was.
        gates: by adapted layer, the gate's value sigmoid(g) after each step.
        validation: one entry each time: `step` and the figures of :func:`~loraguard.training.validate`.
    """

    output_dir: Path
    log: list[dict[str, Any]]
    gates: dict[str, list[float]]
    validation: list[dict[str, float]] = field(default_factory=list)


class PatchTrainer:
    """Trains the adapter of a generator to be a patch: *standard*, or with a stamp *defensive* (arXiv 2510.03747).

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
            generator does not give one image (3, H', W') for each image, or no gradient reaches the adapter.
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
        adapted = {name: m for name, m in model.named_modules() if isinstance(m, GatedLoraLayer)}
        if not isinstance(model, PeftModel) or not adapted:
            raise TypeError(
                f"{type(model).__name__} has no GATED_LORA adapter to train; wrap the generator first: "
                "get_peft_model(generator, GatedLoraConfig())."
            )
        if args.validation_steps and validation_dataset is None:
            raise ValueError(f"validation_steps={args.validation_steps} needs a validation_dataset.")
        if args.adversary is not None and needs_fitting(args.adversary):
            raise ValueError(
                f"{type(args.adversary).__name__} has to be fitted before training starts: give what its "
                "fit(generator, photos) returns; for a Mixture, that of each part."
            )
        self.model, self.args, self.conditions, self.loss = model, args, conditions, loss
        self.dataset, self.validation_dataset = dataset, validation_dataset
        self.adapter = model.active_adapter
        self.generator = describe_generator(model.get_base_model())  # as it is before training
        self.layers = {name: layer for name, layer in adapted.items() if self.adapter in layer.lora_gate}
        self.output_dir = writable_folder(args.output_dir)
        self.tracking = Tracking(args, self.output_dir)
        self.accelerator = self._accelerator()
        if isinstance(loss, torch.nn.Module):
            loss.to(self.accelerator.device)
        self._check_data(dataset)
        if validation_dataset is not None:
            self._check_data(validation_dataset)

    # Before training.

    def _accelerator(self) -> Accelerator:
        args = self.args
        zero = asked_for("DEEPSPEED")
        for kind, name in (("FSDP", "FSDP"), ("MEGATRON_LM", "Megatron-LM")):
            if asked_for(kind):  # Accelerate itself ignores it on a CPU
                raise ValueError(
                    f"{name} is not supported: it shards the network, and a step runs that three ways (untouched, "
                    "folded, learning). What learns is small; use DDP (examples/configs/multi_gpu.yaml)."
                )
        if zero and args.cpu:
            raise ValueError("cpu=True has Accelerate ignore DeepSpeed; without it, CPUs are used where no GPU is.")
        # A step need not reach every layer: HiSD's translators, for one, each serve one kind of edit.
        handlers: list[Any] = [DistributedDataParallelKwargs(find_unused_parameters=True)]
        if zero and not torch.accelerator.is_available():
            handlers.append(InitProcessGroupKwargs(backend="gloo"))  # or each process would be on its own
        try:
            accelerator = Accelerator(
                mixed_precision=args.mixed_precision,
                cpu=args.cpu,
                log_with=self.tracking.trackers or None,
                project_dir=self.output_dir,
                kwargs_handlers=handlers,
            )
        except ValueError as error:
            raise ValueError(
                f"Accelerate refuses mixed_precision={args.mixed_precision!r}, cpu={args.cpu}: {error} It keeps one "
                "precision and device for each process; train with another in a new process (or restarted notebook)."
            ) from error
        if accelerator.distributed_type == "DEEPSPEED":
            set_up_zero(accelerator, args.train_batch_size, cast(float, args.max_grad_norm))
        if (steps := accelerator.gradient_accumulation_steps) != 1:
            raise ValueError(
                f"Accelerate's configuration has gradient_accumulation_steps={steps}, which would shrink gradients on "
                "top of PatchTrainingArguments' own. Leave it out there."
            )
        return accelerator

    def _check_data(self, dataset: Dataset[Any]) -> None:
        """Run the untouched generator once, so that what cannot work is said before training starts."""
        if not len(cast(Any, dataset)):
            raise ValueError(f"The data set is empty: {type(dataset).__name__} has no images.")
        batch = collate([dataset[0]])
        images, condition, _ = self.edits(batch)
        self.model.to(self.accelerator.device)
        if images.min() >= 0:
            warnings.warn(
                f"The first image has values from {images.min():.3g} to {images.max():.3g} and none below 0. Images "
                "are expected in [-1, 1]: if yours are in [0, 1], scale them by 2 * x - 1.",
                stacklevel=3,
            )
        try:
            output = target_of(self.model, images, condition, stamp=None)
        except TypeError as error:
            raise TypeError(
                f"{type(self.model.get_base_model()).__name__} cannot be called with images and {sorted(condition)}: "
                f"{error}. Pass `conditions`, a function from labels to the generator's inputs."
            ) from error
        except RuntimeError as error:
            kinds = {one.dtype for one in self.model.get_base_model().parameters() if one.is_floating_point()}
            if kinds <= {images.dtype}:
                raise
            raise ValueError(
                f"The generator has weights in {', '.join(sorted(map(str, kinds)))} and images are in {images.dtype}: "
                f"{error}. Call generator.float() before get_peft_model; mixed_precision= saves time and memory."
            ) from error
        if not isinstance(output, Tensor):
            raise TypeError(
                f"The generator gives {type(output).__name__}; a patch needs one that gives images alone. Give it a "
                "forward that does, as docs/own-network.md shows."
            )
        if output.ndim != 4 or output.shape[:2] != (len(images), 3):
            raise ValueError(
                f"The generator turns images {tuple(images.shape)} into {tuple(output.shape)}; a patch needs a "
                f"generator that gives an image for each, ({len(images)}, 3, H', W') of any height and width."
            )
        if not torch.isfinite(output).all():
            raise FloatingPointError("The untouched generator's own outputs are not finite (NaN or infinity).")
        if images.min() < 0 <= output.min():
            warnings.warn(
                f"The generator's outputs on the first image are from {output.min():.3g} to {output.max():.3g}, none "
                "below 0. They are expected in [-1, 1]: if they are in [0, 1], give it a forward with 2 * y - 1.",
                stacklevel=3,
            )
        if self.args.stamp is not None:
            self.args.stamp.compose(output)  # a stamp that does not fit says so
        if not self.model(images, **condition).requires_grad:
            raise ValueError(
                "No gradient reaches the adapter: the generator's forward runs under torch.no_grad, detaches what it "
                "gives, or recomputes by torch.utils.checkpoint with use_reentrant=True (use False)."
            )

    def edits(self, batch: dict[str, Tensor], step: int | None = None) -> tuple[Tensor, dict[str, Tensor], list[str]]:
        """Every image with every edit, on the device, and the edits' names; in a step, with those drawn for it.

        The draw depends on seed and step alone: all processes, and all batches that make a step, have the same edits.
        """
        batch = {key: value.to(self.accelerator.device, non_blocking=True) for key, value in batch.items()}
        check_image_batch(batch["image"])
        edits = conditions_of(self.model, labels_of(batch, self.conditions), self.conditions)
        if step is not None and self.args.edits_per_step is not None:
            names = list(edits)
            draws = torch.Generator().manual_seed(mixed(self.args.seed, step))
            drawn = torch.randperm(len(names), generator=draws)[: self.args.edits_per_step].tolist()
            edits = {names[i]: edits[names[i]] for i in sorted(drawn)}
        return *expand(batch["image"], edits), list(edits)

    def batches(self, start: int) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """Indices and items of batches without end, after the first `start`."""
        args, accelerator = self.args, self.accelerator
        workers = args.dataloader_num_workers
        if workers is None:
            cores = os.cpu_count() or 1
            drawn = isinstance(getattr(self.dataset, "dataset", self.dataset), DemoFaces)
            workers = 0 if drawn or cores < 4 else min(4, cores // 2)
        order = EndlessBatches(
            len(cast(Any, self.dataset)),
            args.train_batch_size,
            seed=args.seed,
            start=start,
            process=accelerator.process_index,
            processes=accelerator.num_processes,
        )
        loader = DataLoader(
            self.dataset,
            batch_sampler=order,
            generator=torch.Generator().manual_seed(args.seed + accelerator.process_index),
            collate_fn=collate,
            num_workers=workers,
            pin_memory=accelerator.device.type == "cuda",
        )
        return zip(order, loader, strict=True)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        args = self.args
        images = args.train_batch_size * args.gradient_accumulation_steps * self.accelerator.num_processes
        return args.max_train_steps or math.ceil((args.num_train_epochs or 1) * len(cast(Any, self.dataset)) / images)

    # Training.

    def train(self) -> TrainingResult:
        """Train the patch and save it.

        Returns:
            Where it is and how training went.

        Raises:
            FloatingPointError: if losses or gradients are not finite or explode, `max_skipped_steps` times in a row.
            KeyboardInterrupt: after SIGINT, once a checkpoint is saved.
            SystemExit: after SIGTERM, likewise.
            OSError: if a checkpoint or the patch cannot be written; what was written before is as it was.
        """
        args: Any = self.args
        accelerator = self.accelerator
        accelerator.free_memory()  # of what a call before this one prepared, or checkpoints would hold that as well
        set_seed(args.seed, device_specific=True)
        groups = parameter_groups(self.model, args.learning_rate, args.gate_learning_rate or args.learning_rate)
        adam = torch.optim.Adam(groups, betas=(args.adam_beta1, args.adam_beta2))
        # Accelerate moves the schedule on once for each process.
        moves = (count * accelerator.num_processes for count in (args.lr_warmup_steps, self.total_steps))
        schedule = get_scheduler(args.lr_scheduler, adam, *moves)
        network, optimizer, scheduler = accelerator.prepare(self.model, adam, schedule)
        run = TrainingRun(self, network, optimizer, scheduler)
        self.train_mode()
        try:
            with compiled(self.model) if args.torch_compile else nullcontext(), Interruption() as interruption:
                run.go(interruption)
            result = TrainingResult(self.output_dir, run.log, run.gates, run.validation)
            self._save(network, result, run.watch.skipped)
        finally:
            self.tracking.end(accelerator)
            run.gradients.close()
            accelerator.unwrap_model(network, keep_fp32_wrapper=False)  # mixed precision wraps forward ...
            vars(self.model).pop("forward", None)  # ... and unwrapping leaves a copy of the class's own
            self.model.eval()
        accelerator.wait_for_everyone()
        if run.stopped:
            interruption.leave(f"Asked to stop in the last step; the patch in {self.output_dir} is complete.")
        return result

    def train_mode(self) -> None:
        """Train mode, but for what draws in the host: targets, outputs and the adversary would each see another mask.

        These are its layers without parameters or buffers, dropout and stochastic depth; the adapter's own still drop.
        """
        self.model.train()
        own = {id(layer.lora_dropout[self.adapter]) for layer in self.layers.values()}
        for module in self.model.modules():
            leaf = not any(True for _ in module.children())
            if leaf and id(module) not in own and not module._parameters and not module._buffers:
                module.eval()

    def gate_openings(self) -> dict[str, float]:
        """By adapted layer, its gate's value sigmoid(g), averaged over channels; 1 for a layer without a gate."""
        openings = [cast(Any, layer.lora_gate[self.adapter]).opening.detach().mean() for layer in self.layers.values()]
        return dict(zip(self.layers, torch.stack([one.float() for one in openings]).tolist(), strict=True))

    def learning(self, openings: dict[str, float]) -> dict[str, float]:
        """Those of the layers whose gate has parameters."""
        gates = {name: layer.lora_gate[self.adapter] for name, layer in self.layers.items()}
        return {name: value for name, value in openings.items() if len(list(gates[name].parameters()))}

    def _save(self, network: Any, result: TrainingResult, skipped: list[dict[str, Any]]) -> None:
        if not self.accelerator.is_main_process:
            return
        config = cast(GatedLoraConfig, self.model.peft_config[self.adapter])
        settings = {**self.args.to_dict(), "loss": settings_of(self.loss)}
        config.provenance = training_record(settings, self.generator, self.dataset, len(result.log))
        earlier = self.output_dir / CARD
        with whole_files(self.output_dir) as draft:
            save_adapter(self.model, self.adapter, draft)
            card = patch_card(
                config,
                read_patch(draft).sha256,
                earlier=earlier.read_text(encoding="utf-8") if earlier.is_file() else None,
            )
            (draft / CARD).write_text(str(card), encoding="utf-8")
            log = {"settings": settings, "steps": result.log, "gates": result.gates}
            write_json(draft / LOG, {**log, "validation": result.validation, "skipped": skipped})
        if self.args.push_to_hub:
            self.tracking.push(self.output_dir)
