"""Trains in two processes over DDP or ZeRO, skips a bad step, and goes on from a checkpoint; for test_processes.py."""

import sys
from pathlib import Path

import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F

from loraguard import GatedLoraConfig, PatchTrainer, PatchTrainingArguments
from loraguard.data import DemoFaces
from loraguard.defenses.base import frozen
from loraguard.generators import DemoEditor


class Slope:
    """Along the gradient and not its signs, which amplify rounding."""

    eps = 0.1

    def __call__(self, generator: nn.Module, images: Tensor, condition: dict, clean: Tensor | None = None) -> Tensor:
        with frozen(generator), torch.enable_grad():
            moved = (images + 0.05 * torch.sin(40 * images)).requires_grad_()
            (slope,) = torch.autograd.grad((generator(moved, **condition) - clean).square().sum(), moved)
        return (images + 0.1 * slope / slope.abs().amax()).clamp(-1, 1)


class Faulty:
    """Pixel MSE, but for the ninth call, which is the third step's first."""

    calls = 0

    def __call__(self, outputs: Tensor, target: Tensor) -> Tensor:
        self.calls += 1
        return F.mse_loss(outputs, target) * (float("nan") if self.calls == 9 else 1)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    torch.manual_seed(0)
    model = get_peft_model(DemoEditor(conv_dim=4, num_blocks=1), GatedLoraConfig(r=2))
    arguments = PatchTrainingArguments(
        folder, adversary=Slope(), max_train_steps=6, train_batch_size=1, gradient_accumulation_steps=2,
        learning_rate=1e-2, lr_scheduler="linear", max_grad_norm=0.1, checkpointing_steps=2, cpu="cpu" in sys.argv,
        disable_tqdm=True,
    )  # fmt: skip
    trainer = PatchTrainer(model, DemoFaces(13, size=16), arguments, loss=Faulty())
    trained = [trainer.train()]
    first = (folder / "adapter_model.safetensors").read_bytes()
    trainer.accelerator.wait_for_everyone()
    trainer.loss.calls, arguments.resume_from_checkpoint = 8, "checkpoint-2"
    trained.append(trainer.train())
    assert [["skipped" in entry for entry in one.log] for one in trained] == [[step == 3 for step in range(1, 7)]] * 2
    assert trained[0].log == trained[1].log
    assert (folder / "adapter_model.safetensors").read_bytes() == first
    print("processes", trainer.accelerator.num_processes, trainer.accelerator.distributed_type.value, flush=True)
