"""Named sets of settings for patch training; what they are made of is imported when one is used."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from loraguard.tuner import GatedLoraConfig

    from .arguments import PatchTrainingArguments


def paper(kind: str) -> dict[str, Any]:
    """The settings of arXiv 2510.03747: PGD with ten steps, Adam at 1e-3, one epoch (five for a defensive patch)."""
    from loraguard.defenses import Disrupting

    return {
        "adversary": Disrupting(eps=0.05, steps=10, step_size=0.01),
        "num_train_epochs": 5 if kind == "defensive" else 1,
        "learning_rate": 1e-3,
        "lr_scheduler": "constant",
        "max_grad_norm": math.inf,
    }


def fast(kind: str) -> dict[str, Any]:
    """As robust as the paper's in a fraction of the time (`benchmarks/training.py`).

    Two edits of each image a step, in one batch; PGD with four steps of half the budget; a learning rate ten times as
    high that falls to zero on a cosine; clipped gradients.
    """
    from loraguard.defenses import Disrupting

    return {
        "adversary": Disrupting(eps=0.05, steps=4, step_size=0.025),
        "edits_per_step": 2,
        "num_train_epochs": 2,
        "learning_rate": 1e-2,
        "lr_scheduler": "cosine",
        "max_grad_norm": 1.0,
    }


def cat(kind: str) -> dict[str, Any]:
    """The settings of CAT's released code (arXiv 2502.07225), for photos that are protected: see `training/cat.py`.

    The paper trains for 10,000 steps. Its AdamW decays weights by 0.01 of the learning rate, which is left out. The
    adversary is for validation alone.

    Raises:
        ValueError: for a defensive patch, which CAT has none of.
    """
    from loraguard.defenses import PhotoGuard
    from loraguard.pixels import LEVELS_PER_UNIT

    if kind != "standard":
        raise ValueError("recipe='cat' takes no stamp and no mark: CAT learns from protected photos alone.")
    return {
        "adversary": PhotoGuard(16 / LEVELS_PER_UNIT, steps=30),
        "edits_per_step": 1,
        "num_train_epochs": 100,
        "learning_rate": 1e-4,
        "lr_scheduler": "cosine",
        "max_grad_norm": 1.0,
    }


RECIPES: dict[str, Callable[[str], dict[str, Any]]] = {"fast": fast, "paper": paper, "cat": cat}
"""From "standard" or "defensive" to the settings of each recipe."""


def check_recipe(name: str) -> None:
    """Refuse a recipe that there is none of.

    Raises:
        ValueError: with those that there are.
    """
    if name not in RECIPES:
        raise ValueError(f"recipe={name!r} must be one of {', '.join(RECIPES)}.")


def adapter_config(
    generator: nn.Module, args: PatchTrainingArguments, r: int | None = None, gate_type: str | None = None
) -> GatedLoraConfig:
    """The adapter that goes with a recipe: the paper's, or one whose update starts from zero and grows faster.

    Args:
        generator: layers that it says never see the photo (`unseeing`) are left out.
        args: their recipe and kind count.
        r: the rank; by default the paper's, 8 for a standard patch and 16 for a defensive one; 128 for CAT.
        gate_type: what scales each layer's update, a name in `loraguard.tuner.GATES`; "scalar" by default, and "none"
            for CAT.

    Raises:
        ValueError: for another gate, or CAT and a generator that has no autoencoder.

    Example:
        >>> from torch.nn import Identity
        >>> from loraguard import PatchTrainingArguments
        >>> config = adapter_config(Identity(), PatchTrainingArguments("out", recipe="paper"))
        >>> config.r, config.lora_alpha, config.init_lora_weights
        (8, 2, 'paper')
    """
    from loraguard.tuner import GatedLoraConfig

    if args.recipe == "cat":
        from .cat import cat_config

        config = cat_config(generator, r or 128)
        config.gate_type = gate_type or config.gate_type
        return config
    paper = args.recipe == "paper"
    return GatedLoraConfig(
        r=r or (8 if args.kind == "standard" else 16),
        lora_alpha=2 if paper else 8,
        gate_type=gate_type or "scalar",
        init_lora_weights="paper" if paper else True,
        exclude_modules=getattr(generator, "unseeing", None),
    )
