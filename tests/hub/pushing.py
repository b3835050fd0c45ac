"""A training that pushes its patch to the local Hub, in forks; for test_push.py."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from huggingface_hub import constants
from peft import get_peft_model

from loraguard import GatedLoraConfig, PatchTrainer, PatchTrainingArguments
from loraguard.data import DemoFaces
from loraguard.defenses import Disrupting
from loraguard.generators import DemoEditor


def train_and_push(url: str, home: Path, folder: Path, tracker: str) -> None:
    """With checkpoints, validation and a tracker; afterwards the processes still work together."""
    vars(constants).update(
        ENDPOINT=url,
        HUGGINGFACE_CO_URL_TEMPLATE=url + "/{repo_id}/resolve/{revision}/{filename}",
        HF_HUB_CACHE=str(home / "hub"),
        HF_HUB_OFFLINE=False,
        HF_HUB_DISABLE_XET=True,
        HF_HUB_DISABLE_TELEMETRY=True,
    )
    os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true", TRACKIO_DIR=str(home / "trackio"))
    torch.manual_seed(0)
    model = get_peft_model(DemoEditor(conv_dim=4, num_blocks=1), GatedLoraConfig(r=2))
    arguments = PatchTrainingArguments(
        folder, adversary=Disrupting(steps=1), max_train_steps=2, train_batch_size=1, checkpointing_steps=1,
        validation_steps=1, num_validation_images=2, report_to=tracker, push_to_hub=True, hub_model_id="me/together",
        hub_token="token-of-me", cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = PatchTrainer(model, DemoFaces(8, size=16), arguments, validation_dataset=DemoFaces(2, size=16))
    try:
        trainer.train()
    except OSError as error:
        print(f"{type(error).__name__}: {error}")
    print("together", int(trainer.accelerator.reduce(torch.ones(()), "sum")))
