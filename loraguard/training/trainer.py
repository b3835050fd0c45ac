"""The patch trainer, on Accelerate."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from peft import PeftModel
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import get_scheduler

from loraguard.data import collate
from loraguard.defenses.base import check_images
from loraguard.files import whole_files, writable_folder, write_json
from loraguard.generators import Conditions, conditions_of, expand
from loraguard.tuner import GatedLoraLayer, parameter_groups

from .arguments import PatchTrainingArguments
from .card import patch_card
from .step import Loss, patch_step, target_of


@dataclass(frozen=True)
class TrainingResult:
    """What a training run leaves behind.

    Attributes:
        output_dir: where the patch is; `PeftModel.from_pretrained(generator, output_dir)` loads it.
        log: one entry a step: `step`, `loss_clean`, `loss_adversarial`, `learning_rate`, `gate_mean`.
        gates: by adapted layer, the gate's value sigmoid(g) after each step.
    """

    output_dir: Path
    log: list[dict[str, float]]
    gates: dict[str, list[float]]


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

    Raises:
        TypeError: if the model has no GATED_LORA adapter, or the generator cannot be called with the edits.
        ValueError: if the data yields wrong shapes or ranges, the generator does not give one image (3, H', W') for
            each image, or no gradient reaches the adapter.
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
    ) -> None:
        adapted = {name: m for name, m in model.named_modules() if isinstance(m, GatedLoraLayer)}
        if not isinstance(model, PeftModel) or not adapted:
            raise TypeError(
                f"{type(model).__name__} has no GATED_LORA adapter to train; wrap the generator first: "
                "get_peft_model(generator, GatedLoraConfig())."
            )
        self.model, self.args, self.conditions, self.loss = model, args, conditions, loss
        self.adapter = model.active_adapter
        self.layers = {name: layer for name, layer in adapted.items() if self.adapter in layer.lora_gate}
        self.output_dir = writable_folder(args.output_dir)
        self.accelerator = Accelerator(mixed_precision=args.mixed_precision, cpu=args.cpu)
        json.dumps(args.to_dict(), allow_nan=False)  # it is written in the end; better to fail now
        self.loader = DataLoader(
            dataset,
            args.train_batch_size,
            shuffle=True,
            generator=torch.Generator().manual_seed(args.seed),
            collate_fn=collate,
            num_workers=args.dataloader_num_workers,
            pin_memory=self.accelerator.device.type == "cuda",
        )
        self._check_data(dataset)

    def _check_data(self, dataset: Dataset[Any]) -> None:
        """Run the untouched generator once, so that what cannot work is said before training starts."""
        batch = collate([dataset[0]])
        images, condition = self._edits(batch)
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
        if self.args.stamp is not None:
            self.args.stamp.compose(output)  # a stamp that does not fit says so
        if not self.model(images, **condition).requires_grad:
            raise ValueError(
                "No gradient reaches the adapter: the generator's forward runs under torch.no_grad, detaches what it "
                "gives, or recomputes by torch.utils.checkpoint with use_reentrant=True (use False)."
            )

    def _edits(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Every image with every edit, on the device."""
        batch = {key: value.to(self.accelerator.device) for key, value in batch.items()}
        check_images(batch["image"])
        return expand(batch["image"], conditions_of(self.model, batch.get("labels"), self.conditions))

    def train(self) -> TrainingResult:
        """Train the patch and save it.

        Returns:
            Where it is and how training went.

        Raises:
            FloatingPointError: if a loss or a gradient is not finite; nothing is written then.
        """
        args, accelerator = self.args, self.accelerator
        set_seed(args.seed)
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        groups = parameter_groups(self.model, args.learning_rate, args.gate_learning_rate or args.learning_rate)
        optimizer = torch.optim.Adam(groups, betas=(args.adam_beta1, args.adam_beta2))
        network, optimizer, loader = accelerator.prepare(self.model, optimizer, self.loader)
        steps = args.max_train_steps or math.ceil(args.num_train_epochs * len(loader))
        # Accelerate moves the schedule on once for each process.
        moves = (count * accelerator.num_processes for count in (args.lr_warmup_steps, steps))
        scheduler = accelerator.prepare(get_scheduler(args.lr_scheduler, optimizer, *moves))
        self._train_mode()
        log: list[dict[str, float]] = []
        gates: dict[str, list[float]] = {name: [] for name in self.layers}
        bar = tqdm(
            _endless(loader, steps), total=steps, desc=f"{args.kind} patch",
            disable=args.disable_tqdm or not accelerator.is_main_process,
        )  # fmt: skip
        try:
            for step, batch in enumerate(bar, 1):
                images, condition = self._edits(batch)
                losses = patch_step(
                    self.model, images, condition, adversary=args.adversary, stamp=args.stamp, loss=self.loss,
                    backward=accelerator.backward, network=network,
                )  # fmt: skip
                norm = accelerator.clip_grad_norm_(parameters, args.max_grad_norm or math.inf)
                if args.mixed_precision != "fp16" and not torch.isfinite(norm):  # fp16's scaler skips such steps
                    raise FloatingPointError(
                        f"The gradient of step {step} is not finite, at losses {losses}. Lower the learning rate, or "
                        "look for a loss or generator whose derivative is infinite somewhere."
                    )
                entry = {"step": step, **losses, "learning_rate": scheduler.get_last_lr()[0]}
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
                log.append({**entry, "gate_mean": self._read_gates(gates)})
                bar.set_postfix(clean=f"{losses['loss_clean']:.4f}", adv=f"{losses['loss_adversarial']:.4f}",
                                gate=f"{log[-1]['gate_mean']:.3f}")  # fmt: skip
        finally:
            accelerator.unwrap_model(network, keep_fp32_wrapper=False)  # mixed precision wraps forward ...
            vars(self.model).pop("forward", None)  # ... and unwrapping leaves a copy of the class's own
            self.model.eval()
        if accelerator.is_main_process:
            self._save(log, gates)
        accelerator.wait_for_everyone()
        return TrainingResult(self.output_dir, log, gates)

    def _train_mode(self) -> None:
        """Train mode, but for the host's dropout: targets, outputs and the adversary would each see another mask."""
        self.model.train()
        own = {id(layer.lora_dropout[self.adapter]) for layer in self.layers.values()}
        for module in self.model.modules():
            if isinstance(module, _DropoutNd) and id(module) not in own:
                module.eval()

    def _read_gates(self, gates: dict[str, list[float]]) -> float:
        """Append each layer's gate to its curve; returns their mean."""
        openings = [cast(Any, layer.lora_gate[self.adapter]).opening.detach().mean() for layer in self.layers.values()]
        values = torch.stack([opening.float().cpu() for opening in openings]).tolist()
        for curve, value in zip(gates.values(), values, strict=True):
            curve.append(value)
        return sum(values) / len(values)

    def _save(self, log: list[dict[str, float]], gates: dict[str, list[float]]) -> None:
        with whole_files(self.output_dir) as draft:
            self.model.save_pretrained(str(draft), selected_adapters=[self.adapter])
            if self.adapter != "default":  # PEFT puts every other adapter into a folder of its name
                for file in (draft / self.adapter).iterdir():
                    file.rename(draft / file.name)
            generator = type(self.model.get_base_model()).__name__
            (draft / "README.md").write_text(str(patch_card(self.args, generator)), encoding="utf-8")
            write_json(draft / "training_log.json", {"settings": self.args.to_dict(), "steps": log, "gates": gates})


def _endless(loader: DataLoader[Any], steps: int) -> Iterator[dict[str, Tensor]]:
    """`steps` batches, over as many epochs as it takes."""
    done = 0
    while done < steps:
        for batch in loader:
            yield batch
            done += 1
            if done == steps:
                return
