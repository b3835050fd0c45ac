"""Full fine-tuning: every weight of a generator learns what a patch would."""

from __future__ import annotations

import copy
from typing import Any

import torch
from accelerate.utils import set_seed
from peft import PeftModel, get_peft_model
from safetensors.torch import save_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers import get_scheduler

from loraguard.files import whole_files, write_json
from loraguard.generators import Conditions

from .arguments import PatchTrainingArguments
from .batches import Batch
from .devices import refuse_several_processes
from .recipes import adapter_config
from .step import Loss, target_of
from .trainer import PatchTrainer
from .watch import StepWatch


def fine_tune(
    generator: nn.Module,
    dataset: Dataset[Any],
    args: PatchTrainingArguments,
    *,
    conditions: Conditions | None = None,
    loss: Loss = F.mse_loss,
) -> nn.Module:
    """Train all weights of a copy of the generator with a patch's losses, adversary, batches and steps.

    Targets come from another copy that stays as it was. The network is in evaluation mode throughout, as the base
    network of a patch is: norms with running statistics keep them, dropout is off. A step that a patch would skip is
    skipped here. The network goes into `args.output_dir` as `model.safetensors`, beside `training_log.json`;
    `safetensors.torch.load_model(generator, file)` loads it. There are no checkpoints in between.

    Args:
        generator: a network, or one with adapters, which are left out; neither changes.
        dataset: as :class:`PatchTrainer` takes it.
        args: the patch's settings, but for a lower `learning_rate`: factors of a low rank take more than all weights.
            At the fast recipe's 1e-2 the demo's generator was worse than untouched after 40 steps; at a tenth it was
            as robust as the patch.
        conditions: as for :class:`PatchTrainer`.
        loss: D, as for :class:`PatchTrainer`.

    Returns:
        The trained copy, frozen, in evaluation mode and on the device of the training.

    Raises:
        ValueError: in one of several processes, or in fp16; and what :class:`PatchTrainer` refuses.
        FloatingPointError: if losses or gradients are not finite or explode, `max_skipped_steps` times in a row.

    Example:
        >>> import tempfile
        >>> from loraguard.data import DemoFaces
        >>> from loraguard.defenses import Disrupting
        >>> from loraguard.generators import DemoEditor
        >>> args = PatchTrainingArguments(tempfile.mkdtemp(), adversary=Disrupting(steps=1), max_train_steps=2,
        ...                               cpu=True, disable_tqdm=True)
        >>> type(fine_tune(DemoEditor(conv_dim=4), DemoFaces(8, size=16), args)).__name__
        'DemoEditor'
    """
    refuse_several_processes("A full fine-tune")
    network, untouched = untouched_copy(generator), untouched_copy(generator)
    # A patch's trainer checks everything and has data, edits and targets; its adapter stays off.
    trainer = PatchTrainer(
        get_peft_model(untouched, adapter_config(untouched, args, r=1)), dataset, args, conditions=conditions, loss=loss
    )
    if trainer.accelerator.mixed_precision == "fp16":
        raise ValueError("mixed_precision='fp16': a full fine-tune runs in 'no' or 'bf16' alone.")
    set_seed(args.seed, device_specific=True)
    return _trained(network.eval().requires_grad_(True), trainer)


def _trained(network: nn.Module, trainer: PatchTrainer) -> nn.Module:
    """The training loop; writes the network and the log, too."""
    args, accelerator, total = trainer.args, trainer.accelerator, trainer.total_steps
    adam = torch.optim.Adam(network.parameters(), args.learning_rate, betas=(args.adam_beta1, args.adam_beta2))
    network, _, optimizer = accelerator.prepare(network, trainer.model, adam)
    scheduler = get_scheduler(args.lr_scheduler, optimizer, args.lr_warmup_steps, total)
    watch, log = StepWatch(args.max_skipped_steps), []
    batches = trainer.batches.after(0)
    for step in tqdm(range(1, total + 1), desc="full fine-tune", disable=args.disable_tqdm):
        losses = torch.zeros(2)
        for _ in range(args.gradient_accumulation_steps):
            losses += _backward(network, trainer, next(batches))
        entry = dict(zip(("loss_clean", "loss_adversarial"), losses.tolist(), strict=True))
        norm = float(accelerator.clip_grad_norm_(network.parameters(), args.max_grad_norm))
        rate = scheduler.get_last_lr()[0]
        if watch.judge(step, entry, norm, rate).take:
            optimizer.step()
            log.append({"step": step, **entry, "gradient_norm": norm, "learning_rate": rate})
        scheduler.step()
        optimizer.zero_grad()
    watch.finish(total)
    return _saved(network, trainer, log, watch)


def _backward(network: nn.Module, trainer: PatchTrainer, batch: Batch) -> Tensor:
    """Add a batch's gradients; gives its clean and its adversarial loss."""
    args, accelerator, loss = trainer.args, trainer.accelerator, trainer.loss
    several = args.gradient_accumulation_steps
    target: Any = target_of(trainer.model, batch.images, batch.condition, trainer.layers)
    if hasattr(loss, "prepare"):
        target = loss.prepare(target, batch.keys)
    clean = network(batch.images, **batch.condition)
    loss_clean = loss(clean, target) / several
    accelerator.backward(loss_clean)
    adversarial = args.adversary(network, batch.images, batch.condition, clean=clean.detach())
    loss_adversarial = loss(network(adversarial, **batch.condition), target) / several
    accelerator.backward(loss_adversarial)
    return torch.stack([loss_clean.detach(), loss_adversarial.detach()]).float().cpu()


def _saved(network: nn.Module, trainer: PatchTrainer, log: list[dict[str, Any]], watch: StepWatch) -> nn.Module:
    """Write the network and the log; gives the network without what Accelerate put around it."""
    network = trainer.accelerator.unwrap_model(network, keep_fp32_wrapper=False)  # as PatchTrainer does
    vars(network).pop("forward", None)
    network.requires_grad_(False)
    with whole_files(trainer.output_dir) as draft:
        save_model(network, str(draft / "model.safetensors"))
        write_json(draft / "training_log.json", {"settings": trainer.record(), "steps": log, "skipped": watch.skipped})
    return network


def untouched_copy(generator: nn.Module) -> nn.Module:
    """A copy of a network without the adapters that it may have."""
    own = copy.deepcopy(generator)
    return own.unload() if isinstance(own, PeftModel) else own
