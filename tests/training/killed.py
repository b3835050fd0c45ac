"""Trainings for test_checkpoints.py, some of which are stopped at exactly chosen moments in forks."""

import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from moments import signal_at_call, signal_at_change
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from loraguard import GatedLoraConfig, PatchTrainer, PatchTrainingArguments
from loraguard.data import DemoFaces
from loraguard.defenses import Disrupting
from loraguard.generators import DemoEditor
from loraguard.training.checkpoints import Checkpoints

STEPS = 18
WHOLE = 77
"""The exit code where a checkpoint was written before the moment to be killed came."""


def model() -> PeftModel:
    torch.manual_seed(0)
    return get_peft_model(DemoEditor(conv_dim=4, num_blocks=1), GatedLoraConfig(r=2))


def arguments(folder: Path, **changes: Any) -> PatchTrainingArguments:
    defaults = {
        "adversary": Disrupting(steps=1), "max_train_steps": 6, "train_batch_size": 2, "learning_rate": 1e-2,
        "lr_scheduler": "cosine", "cpu": True, "disable_tqdm": True,
    }  # fmt: skip
    return PatchTrainingArguments(folder, **{**defaults, **changes})


class Deeds:
    """An adversary that does something at some of its calls, counted from 1."""

    eps = 0.05

    def __init__(self, deeds: dict[int, Callable[[], object]]) -> None:
        self.deeds, self.calls = deeds, 0

    def __call__(self, generator: nn.Module, images: Tensor, condition: dict, clean: Tensor | None = None) -> Tensor:
        self.calls += 1
        self.deeds.get(self.calls, int)()
        return Disrupting(steps=1)(generator, images, condition, clean)


class Once(Deeds):
    """An adversary that does something at its n-th call."""

    def __init__(self, call: int, deed: Callable[[], object] | None) -> None:
        super().__init__({} if deed is None else {call: deed})


def train(folder: Path) -> None:
    """With all that draws at random: dropout, edits, starts of the attack, the order of photos."""
    torch.manual_seed(3)
    network = get_peft_model(DemoEditor(conv_dim=4, num_blocks=1), GatedLoraConfig(r=2, lora_dropout=0.1))
    settings = PatchTrainingArguments(
        folder, adversary=Disrupting(steps=2), max_train_steps=STEPS, train_batch_size=2, learning_rate=1e-2,
        lr_scheduler="cosine", edits_per_step=2, checkpointing_steps=1, checkpoints_total_limit=2,
        resume_from_checkpoint="latest", cpu=True, disable_tqdm=True,
    )  # fmt: skip
    PatchTrainer(network, DemoFaces(11, size=16), settings).train()


def killed_in_a_step(folder: Path, nth: int) -> None:
    """Of this process, as it begins."""
    signal_at_call(signal.SIGKILL, PatchTrainer, "_backward", nth)
    train(folder)


def killed_before_a_change(folder: Path, nth: int) -> None:
    """Before the n-th change to files that this process' first checkpoint makes; or else right after all of them."""

    def first() -> None:
        change, save = signal_at_change(signal.SIGKILL, nth), torch.save

        def announced(*args: Any, **kwargs: Any) -> None:  # which opens files in compiled code
            change()
            save(*args, **kwargs)

        torch.save = announced

    _in_the_first_checkpoint(first)
    train(folder)


def killed_within_a_file(folder: Path, size: int) -> None:
    """By the system, as soon as this process' first checkpoint writes more than `size` bytes to a file."""

    def first() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # nobody wants to look into it
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    _in_the_first_checkpoint(first)
    train(folder)


def _in_the_first_checkpoint(deed: Callable[[], None]) -> None:
    save = Checkpoints.save

    def first(self: Checkpoints, step: int, state: dict[str, Any]) -> None:
        deed()
        save(self, step, state)
        os._exit(WHOLE)

    Checkpoints.save = first
