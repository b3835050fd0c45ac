"""What a patch's training can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loraguard.defenses import Defense, Disrupting
from loraguard.files import describe
from loraguard.stamp import Stamp


@dataclass
class PatchTrainingArguments:
    """Settings of :class:`PatchTrainer`; the defaults are those of arXiv 2510.03747 for a standard patch.

    Args:
        output_dir: where the patch (`adapter_model.safetensors`, `adapter_config.json`) and `training_log.json` go.
        stamp: what the patch stamps on every output: a *defensive* patch. None trains a *standard* one.
        adversary: crafts the perturbed images of each step on the network as it is patched so far.
        num_train_epochs: passes through the data.
        max_train_steps: ends earlier, or goes on over as many epochs as it takes; overrides `num_train_epochs`.
        train_batch_size: images a step; each goes through the network with every edit.
        learning_rate: of Adam.
        gate_learning_rate: of the gates, if they are to have one of their own.
        lr_scheduler: by its name in `transformers.get_scheduler` ("constant", "cosine", "linear", ...).
        lr_warmup_steps: steps over which the learning rate grows to its value.
        adam_beta1: of Adam.
        adam_beta2: of Adam.
        max_grad_norm: clips the gradient of all adapter parameters together; None leaves it.
        seed: of the order of the data, the adversary's random starts and whatever else training draws. The adapter's
            first weights were drawn before, by `get_peft_model`.
        dataloader_num_workers: processes that load images; 0 loads in this one.
        mixed_precision: "no", "fp16" or "bf16".
        cpu: stay on the CPU even where there is an accelerator.
        disable_tqdm: no progress bar.

    Example:
        >>> arguments = PatchTrainingArguments("out", stamp=Stamp("AI-EDITED"), num_train_epochs=5)
        >>> arguments.kind, arguments.adversary.eps
        ('defensive', 0.05)
    """

    output_dir: str | Path
    stamp: Stamp | None = None
    adversary: Defense = field(default_factory=lambda: Disrupting(eps=0.05, steps=10, step_size=0.01))
    num_train_epochs: int = 1
    max_train_steps: int | None = None
    train_batch_size: int = 4
    learning_rate: float = 1e-3
    gate_learning_rate: float | None = None
    lr_scheduler: str = "constant"
    lr_warmup_steps: int = 0
    adam_beta1: float = 0.5
    adam_beta2: float = 0.999
    max_grad_norm: float | None = None
    seed: int = 0
    dataloader_num_workers: int = 0
    mixed_precision: str = "no"
    cpu: bool = False
    disable_tqdm: bool = False

    def __post_init__(self) -> None:
        for name in (
            "num_train_epochs",
            "train_batch_size",
            "learning_rate",
            "gate_learning_rate",
            "max_train_steps",
            "max_grad_norm",
        ):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}={value!r} must be greater than 0.")
        if self.mixed_precision not in ("no", "fp16", "bf16"):
            raise ValueError(f"mixed_precision={self.mixed_precision!r} must be 'no', 'fp16' or 'bf16'.")
        if self.stamp is not None and not isinstance(self.stamp, Stamp):
            raise TypeError(
                f"stamp must be a Stamp or None, got {self.stamp!r}; write Stamp({self.stamp!r}) for a text."
            )

    @property
    def kind(self) -> str:
        """Either "defensive", with a stamp, or "standard", without."""
        return "standard" if self.stamp is None else "defensive"

    def to_dict(self) -> dict[str, Any]:
        """Every setting, as JSON takes it."""
        things = ("stamp", "adversary")
        settings = {name: describe(v) if name in things and v is not None else v for name, v in vars(self).items()}
        return {"kind": self.kind, **settings, "output_dir": str(self.output_dir)}
