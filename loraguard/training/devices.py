"""Accelerate, set up for one training; what it would pass over in silence is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from .arguments import PatchTrainingArguments
from .gradients import asked_for, set_up_zero


def refuse_several_processes(what: str) -> None:
    """Say so where `accelerate launch` or torchrun started more than one."""
    if (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise ValueError(f"{what} runs in one process, and there are {processes}: start it without a launcher.")


def accelerator_for(args: PatchTrainingArguments, folder: Path) -> Accelerator:
    """The device, the processes and the precision of a training.

    Args:
        args: of the training.
        folder: where trackers write.

    Raises:
        ValueError: if `accelerate launch` was told what a step cannot do, or what Accelerate would ignore here.
    """
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
            log_with=args.trackers or None,
            project_dir=folder,
            kwargs_handlers=handlers,
        )
    except ValueError as error:
        raise ValueError(
            f"Accelerate refuses mixed_precision={args.mixed_precision!r}, cpu={args.cpu}: {error!s:.250} It keeps one "
            "precision and device for each process; train with another in a new process (or restarted notebook)."
        ) from error
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError(
            "mixed_precision='fp16' needs an accelerator, and this training is on the CPU, where Accelerate would "
            "compute in float32. Use 'bf16' or 'no' (the launcher's configuration counts too)."
        )
    if accelerator.distributed_type == "DEEPSPEED":
        set_up_zero(accelerator, args.train_batch_size, args.max_grad_norm)
    if (steps := accelerator.gradient_accumulation_steps) != 1:
        raise ValueError(
            f"Accelerate's configuration has gradient_accumulation_steps={steps}, which would shrink gradients on "
            "top of PatchTrainingArguments' own. Leave it out there."
        )
    return accelerator


def failure_of(deed: Callable[[], object]) -> Exception | None:
    """What an attempt raises, or None."""
    try:
        deed()
    except Exception as error:
        return error
    return None


def on_main(accelerator: Accelerator, deed: Callable[[], object]) -> None:
    """Have the main process write something; where that fails, all processes leave together.

    Raises:
        Exception: what it raises there, and an OSError in the others.
    """
    failure = failure_of(deed) if accelerator.is_main_process else None
    if anywhere(accelerator, failure is not None):
        raise failure or OSError("The first process could not write or push; it says why.")


def anywhere(accelerator: Accelerator, here: bool) -> bool:
    """Whether something holds in any of the processes."""
    if accelerator.num_processes == 1:
        return here
    flag = torch.tensor(float(here), device=accelerator.device)
    return bool(cast(torch.Tensor, accelerator.reduce(flag, "sum")) > 0)
