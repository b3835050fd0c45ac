"""What a patch's training can be told."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from loraguard.kinds import Count, Number, Rate, Seed, checked

from .recipes import RECIPES, check_recipe

if TYPE_CHECKING:  # the command line makes its flags from these settings, before anything heavy is imported
    from loraguard.defenses import AnyDefense
    from loraguard.mark import Mark
    from loraguard.stamp import Stamp

TRACKERS = ("tensorboard", "wandb", "trackio")
Scheduler = Literal[
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt"
]
SCHEDULERS: tuple[Scheduler, ...] = get_args(Scheduler)
BY_RECIPE: Any = None
"""The default of a setting that the recipe has; a `PatchTrainingArguments` never keeps it."""


@dataclass
class PatchTrainingArguments:
    """Settings of :class:`PatchTrainer`, by the names of diffusers' and PEFT's training scripts.

    What is "by the recipe" and is not given, or None, is filled in from :data:`~loraguard.training.RECIPES`: nothing is
    left open afterwards. It counts as given from then on: `dataclasses.replace(arguments, recipe=...)` keeps it.

    Each setting is a flag of `examples/train_patch.py` and some are flags of `loraguard train`, with what is said here
    as their help (`loraguard/cli/flags.py`).

    Args:
        output_dir: a folder for the patch (`adapter_model.safetensors`, `adapter_config.json`), its card, the log
            `training_log.json`, checkpoints and validation pictures.
        recipe: where settings come from that are not given: fast, paper or cat. "paper" has those of arXiv 2510.03747;
            "cat" is another method (arXiv 2502.07225): plain LoRA of an autoencoder, from protected photos alone.
        stamp: what the patch stamps on every output: a *defensive* patch. None trains a *standard* one.
        mark: the invisible watermark that every output is to carry, beside or without a stamp.
        adversary: crafts the perturbed images of each step on the network as it is patched so far; by the recipe. Any
            defense, or a :class:`~loraguard.defenses.Mixture` of several.
        edits_per_step: how many of a batch's edits, drawn anew each step, are trained on; by the recipe. None in the
            paper's: all of them.
        num_train_epochs: passes through the data; by the recipe.
        max_train_steps: steps, in place of the recipe's epochs. Overrides `num_train_epochs`.
        train_batch_size: photos in each step, with every edit. A process has this many.
        gradient_accumulation_steps: batches whose gradients make one step.
        learning_rate: of Adam; by the recipe.
        gate_learning_rate: of the gates, if they are to have one of their own.
        lr_scheduler: one of :data:`SCHEDULERS`, as `transformers.get_scheduler` has them; by the recipe.
        lr_warmup_steps: steps over which the learning rate grows to its value.
        adam_beta1: of Adam.
        adam_beta2: of Adam.
        max_grad_norm: clips the gradient of all adapter parameters together; by the recipe, infinity leaves it.
        seed: what everything drawn at random depends on. That is the order of the data, the adversary's random starts
            and whatever else training draws; `get_peft_model` drew the adapter's first weights before.
        dataloader_num_workers: processes that load images; 0 loads in this one. None takes up to 4, and 0 for data
            that is drawn rather than read, or on a machine with fewer than 4 cores.
        mixed_precision: "no", "fp16" or "bf16"; by default what `accelerate launch` was told, and "no" elsewhere.
        torch_compile: compile the generator (`torch.compile`); pays off in long runs.
        cpu: stay on the CPU even where there is an accelerator.
        checkpointing_steps: save a checkpoint every so many steps. It is `checkpoint-STEP` in `output_dir`; without
            this setting one is saved only when the run is interrupted (SIGINT, SIGTERM).
        checkpoints_total_limit: deletes the oldest ones beyond this number.
        resume_from_checkpoint: a checkpoint's folder, or "latest" for the newest in `output_dir`, from the start where
            there is none.
        validation_steps: measures clean utility and robustness on held-out images every so many steps.
        num_validation_images: how many of them.
        max_skipped_steps: a step whose loss or gradient is not finite, or explodes, is skipped and counted; the run
            stops with a diagnosis when this many in a row were.
        report_to: trackers that get losses, gates and validation pictures: "tensorboard", "wandb", "trackio", several
            of them with commas, or None.
        push_to_hub: uploads the patch in the end.
        hub_model_id: to this repository; by default the name of `output_dir`.
        hub_private_repo: made private if it is made anew.
        hub_token: in place of the one that `hf auth login` stored; it is written nowhere.
        disable_tqdm: no progress bar.

    Raises:
        ValueError: for a value that cannot be.
        TypeError: for a stamp, a mark or an adversary that is none.

    Example:
        >>> from loraguard import Stamp
        >>> arguments = PatchTrainingArguments("out", stamp=Stamp("AI-EDITED"), recipe="paper")
        >>> arguments.kind, arguments.adversary.eps, arguments.adversary.steps, arguments.num_train_epochs
        ('defensive', 0.05, 10, 5)
    """

    output_dir: str | Path
    recipe: str = "fast"
    stamp: Stamp | None = None
    mark: Mark | None = None
    adversary: AnyDefense = BY_RECIPE
    edits_per_step: Number | None = None
    num_train_epochs: Number = BY_RECIPE
    max_train_steps: Number | None = None
    train_batch_size: Number = 4
    gradient_accumulation_steps: Number = 1
    learning_rate: Rate = BY_RECIPE
    gate_learning_rate: Rate | None = None
    lr_scheduler: Scheduler = BY_RECIPE
    lr_warmup_steps: Count = 0
    adam_beta1: float = 0.5
    adam_beta2: float = 0.999
    max_grad_norm: Rate = BY_RECIPE
    seed: Seed = 0
    dataloader_num_workers: Count | None = None
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    torch_compile: bool = False
    cpu: bool = False
    checkpointing_steps: Number | None = None
    checkpoints_total_limit: Number | None = None
    resume_from_checkpoint: str | Path | None = None
    validation_steps: Number | None = None
    num_validation_images: Number = 16
    max_skipped_steps: Number = 5
    report_to: str | None = None
    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_private_repo: bool = False
    hub_token: str | None = None
    disable_tqdm: bool = False

    def __post_init__(self) -> None:
        from loraguard.mark import Mark
        from loraguard.stamp import Stamp

        if self.mark is not None and not isinstance(self.mark, Mark):
            raise TypeError(f"mark must be a Mark or None, got {self.mark!r:.100}; write Mark({self.mark!r:.100}).")
        if self.stamp is not None and not isinstance(self.stamp, Stamp):
            raise TypeError(
                f"stamp must be a Stamp or None, got {self.stamp!r}; write Stamp({self.stamp!r}) for a text."
            )
        check_recipe(self.recipe)
        if self.adversary is not BY_RECIPE and not callable(self.adversary):
            raise TypeError(
                f"adversary must be a defense, such as Disrupting(), got {self.adversary!r:.100}; parse_defense makes "
                "one of a text."
            )
        for name, value in RECIPES[self.recipe](self.kind).items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        checked(type(self), vars(self))
        if self.lr_scheduler == "constant" and self.lr_warmup_steps:
            raise ValueError(
                f"lr_warmup_steps={self.lr_warmup_steps} does nothing with lr_scheduler='constant'; take "
                "'constant_with_warmup'."
            )
        if unknown := set(self.trackers) - set(TRACKERS):
            raise ValueError(f"report_to={self.report_to!r}: {sorted(unknown)} is none of {', '.join(TRACKERS)}.")
        json.dumps(self.to_dict(), allow_nan=False)  # it is written in the end; better to fail now

    @property
    def kind(self) -> str:
        """Either "defensive", with a stamp or a mark, or "standard", without."""
        return "standard" if self.stamp is None and self.mark is None else "defensive"

    @property
    def trackers(self) -> list[str]:
        """The trackers in `report_to`."""
        names = (name.strip() for name in (self.report_to or "").split(","))
        return [name for name in names if name and name != "none"]

    def to_dict(self) -> dict[str, Any]:
        """Every setting, as JSON takes it; the token is left out."""
        from loraguard.describing import describe

        settings: dict[str, Any] = {"kind": self.kind}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "hub_token":
                continue
            if field.name in ("stamp", "mark", "adversary") and value is not None:
                value = value.settings() if field.name == "mark" else describe(value)
            settings[field.name] = str(value) if isinstance(value, Path) or value == float("inf") else value
        return settings
