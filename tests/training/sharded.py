"""Trains over ZeRO, goes on from a checkpoint, and trains over DDP, each with a bad step; for test_processes.py."""

import os
from pathlib import Path

import deepspeed
import torch
from accelerate.state import AcceleratorState
from peft import get_peft_model
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn import functional as F

from loraguard import GatedLoraConfig, PatchTrainer, PatchTrainingArguments
from loraguard.data import DemoFaces
from loraguard.defenses import undisturbed
from loraguard.generators import DemoEditor
from loraguard.training.untouched import wrapper_of


class Slope:
    """Along the gradient and not its signs, which amplify rounding."""

    eps = 0.1

    def __call__(self, generator: nn.Module, images: Tensor, condition: dict, clean: Tensor | None = None) -> Tensor:
        with undisturbed(generator), torch.enable_grad():
            moved = (images + 0.05 * torch.sin(40 * images)).requires_grad_()
            (slope,) = torch.autograd.grad((generator(moved, **condition) - clean).square().sum(), moved)
        return (images + 0.1 * slope / slope.abs().amax((1, 2, 3), keepdim=True)).clamp(-1, 1)


class Faulty:
    """Pixel MSE, but for the fifth call, which is the second step's first."""

    calls = 0

    def __call__(self, outputs: Tensor, target: Tensor) -> Tensor:
        self.calls += 1
        return F.mse_loss(outputs, target) * (float("nan") if self.calls == 5 else 1)


def train(folder: Path, cpu: bool) -> PatchTrainer:
    torch.manual_seed(0)
    model = get_peft_model(DemoEditor(conv_dim=4, num_blocks=1), GatedLoraConfig(r=2))
    arguments = PatchTrainingArguments(
        folder, adversary=Slope(), max_train_steps=3, train_batch_size=1, gradient_accumulation_steps=2,
        learning_rate=1e-2, lr_scheduler="linear", max_grad_norm=5e-3, checkpointing_steps=1, cpu=cpu,
        disable_tqdm=True,
    )  # fmt: skip
    trainer = PatchTrainer(model, DemoFaces(13, size=16), arguments, loss=Faulty())
    result = trainer.train()
    assert ["skipped" in entry for entry in result.log] == [False, True, False]
    print(f"processes {trainer.accelerator.num_processes} {trainer.accelerator.distributed_type.value}")
    return trainer


def train_sharded_and_not(folder: Path) -> None:
    """The first over ZeRO, twice: whole, and from the first checkpoint on."""
    # In place of code that DeepSpeed would compile for minutes, where there is a compiler, torch moves what is shared.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    trainer = train(folder / "zero", cpu=False)
    trained = (folder / "zero" / "adapter_model.safetensors").read_bytes()
    trainer.accelerator.wait_for_everyone()
    trainer.loss.calls, trainer.args.resume_from_checkpoint = 4, "checkpoint-1"
    trainer.train()
    assert (folder / "zero" / "adapter_model.safetensors").read_bytes() == trained

    os.environ["ACCELERATE_USE_DEEPSPEED"] = "false"
    AcceleratorState._reset_state(reset_partial_state=True)
    train(folder / "ddp", cpu=True)


def shard_and_say(meeting: Path) -> None:
    """What FSDP makes of a network, by its first form and by its second."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=1)
    first = FullyShardedDataParallel(nn.Sequential(nn.Linear(1, 1)), device_id=torch.device("cpu"))
    second = fully_shard(nn.Sequential(nn.Linear(1, 1)), mesh=init_device_mesh("cpu", (1,)))
    print(wrapper_of(first), wrapper_of(second))
    torch.distributed.destroy_process_group()
