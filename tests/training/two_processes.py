"""Trains in one process or two and saves the adapter, for test_processes.py."""

from pathlib import Path

import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F

from loraguard import GatedLoraConfig, PatchTrainer, PatchTrainingArguments
from loraguard.data import DemoFaces
from loraguard.defenses import Disrupting, sign_ascent, undisturbed
from loraguard.generators import DemoEditor


class Faces(DemoFaces):
    """In double precision, as sign() amplifies rounding."""

    def __getitems__(self, indices: list[int]) -> list[dict[str, Tensor]]:
        return [{key: value.double() for key, value in item.items()} for item in super().__getitems__(indices)]


class Steady:
    """Sign ascent from a start that is the same for an image whatever batch it is in."""

    eps = 0.1

    def __call__(self, generator: nn.Module, images: Tensor, condition: dict, clean: Tensor | None = None) -> Tensor:
        start = (images + self.eps * torch.sin(40 * images)).clamp(-1, 1)
        with undisturbed(generator):
            return sign_ascent(
                lambda x: (generator(x, **condition) - clean).square().sum(),
                images, start=start, eps=self.eps, steps=2, step_size=0.05,
            )  # fmt: skip


def train(folder: Path, batch: int, accumulation: int = 1, loss=F.mse_loss) -> PatchTrainer:
    torch.manual_seed(0)
    model = get_peft_model(DemoEditor(conv_dim=4, num_blocks=1).double(), GatedLoraConfig(r=2))
    arguments = PatchTrainingArguments(
        folder, adversary=Steady(), max_train_steps=5, train_batch_size=batch, gradient_accumulation_steps=accumulation,
        learning_rate=1e-2, lr_scheduler="linear", max_grad_norm=0.1, checkpointing_steps=2, cpu=True,
        disable_tqdm=True,
    )  # fmt: skip
    trainer = PatchTrainer(model, Faces(13, size=16), arguments, loss=loss)
    trainer.train()
    return trainer


def train_and_say(folder: Path) -> None:
    """With 2 photos in each process' batch."""
    trainer = train(folder, batch=2)
    print(f"processes {trainer.accelerator.num_processes} {trainer.accelerator.distributed_type.value}")


def train_with_a_tracker(folder: Path) -> None:
    """With checkpoints, validation and a tracker; then both processes still work together."""
    torch.manual_seed(0)
    model = get_peft_model(DemoEditor(conv_dim=4, num_blocks=1), GatedLoraConfig(r=2))
    arguments = PatchTrainingArguments(
        folder, adversary=Disrupting(steps=1), max_train_steps=2, train_batch_size=1, checkpointing_steps=1,
        validation_steps=1, num_validation_images=2, report_to="tensorboard", cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = PatchTrainer(model, DemoFaces(8, size=16), arguments, validation_dataset=DemoFaces(2, size=16))
    for _ in range(2):
        trainer.train()
    print("together", int(trainer.accelerator.reduce(torch.ones(()), "sum")))
