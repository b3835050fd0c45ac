"""Trainings in mixed precision, for forks: Accelerate keeps one precision for each process."""

from pathlib import Path

import torch
from peft import get_peft_model

from loraguard import GatedLoraConfig, PatchTrainer, PatchTrainingArguments
from loraguard.data import DemoFaces
from loraguard.defenses import Disrupting
from loraguard.generators import DemoEditor


def say_the_precision(folder: Path) -> None:
    model = get_peft_model(DemoEditor(conv_dim=4), GatedLoraConfig(r=2))
    settings = PatchTrainingArguments(folder, cpu=True)
    print(PatchTrainer(model, DemoFaces(4, size=16), settings).accelerator.mixed_precision)


def train_in_bfloat16(folder: Path) -> None:
    """And see to it that the model without its adapter gives afterwards what it gave before."""
    model = get_peft_model(DemoEditor(conv_dim=4, num_blocks=1), GatedLoraConfig(r=2))
    face = DemoFaces(8, size=16)[0]
    given = face["image"][None], face["labels"][None]
    with torch.no_grad(), model.disable_adapter():
        before = model(*given)
    settings = PatchTrainingArguments(
        folder, adversary=Disrupting(steps=1), max_train_steps=2, cpu=True, disable_tqdm=True, mixed_precision="bf16"
    )
    PatchTrainer(model, DemoFaces(8, size=16), settings).train()
    assert "forward" not in vars(model)
    with torch.no_grad(), model.disable_adapter():
        assert torch.equal(before, model(*given))


def say_the_refusal(folder: Path) -> None:
    model = get_peft_model(DemoEditor(conv_dim=4), GatedLoraConfig(r=2))
    try:
        PatchTrainer(model, DemoFaces(4, size=16), PatchTrainingArguments(folder, cpu=True, mixed_precision="fp16"))
    except ValueError as error:
        print(error)
