"""Going on from a checkpoint, and what that is compared with."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .checkpoints import Checkpoints

MATTERS = (
    "stamp",
    "adversary",
    "edits_per_step",
    "train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "gate_learning_rate",
    "lr_scheduler",
    "lr_warmup_steps",
    "adam_beta1",
    "adam_beta2",
    "max_train_steps",
    "num_train_epochs",
    "max_grad_norm",
    "seed",
    "mixed_precision",
    "loss",
)
"""Settings that make a resumed run another than the one that was interrupted."""


def resume(
    checkpoints: Checkpoints,
    wanted: str | Path | None,
    settings: Mapping[str, Any],
    about: Mapping[str, Any],
    total_steps: int,
) -> dict[str, Any] | None:
    """Load the checkpoint that `resume_from_checkpoint` means. What this run is told to do otherwise, it does.

    Args:
        checkpoints: of the run's folder.
        wanted: which one; None for none.
        settings: of the run, as it records them.
        about: the number of `images`, and the `generator`'s fingerprint.
        total_steps: of the run.

    Returns:
        The state that it was saved with, or None to start anew. Its list "resumed" says where it went on with which
        settings before; what changes now is added there, and said in a warning.

    Raises:
        FileNotFoundError: if a folder is named that holds no checkpoint.
        ValueError: if it is damaged, or of a run that this one cannot go on with.
    """
    settings = json.loads(json.dumps(settings))  # as the checkpoint's are
    checkpoint = None if wanted is None else checkpoints.find(wanted)
    if checkpoint is None:
        return None
    state = checkpoints.read(checkpoint)
    _check(checkpoint, state, settings, about, total_steps)
    checkpoints.load(checkpoint)
    before = {name: then for name, then in _used(state).items() if _differ(name, then, settings.get(name))}
    state.setdefault("resumed", [])
    if before:
        state["resumed"].append({"step": state["step"], "before": before})
        changed = "; ".join(f"{name}: {then!r:.80} then, {settings[name]!r:.80} now" for name, then in before.items())
        warnings.warn(f"Resuming {checkpoint} with other settings, used from here on: {changed:.400}.", stacklevel=3)
    return state


def _used(state: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as they were used; earlier versions wrote them as they were given."""
    return dict(state.get("used", state["settings"]))


def _differ(name: str, then: Any, now: Any) -> bool:
    """Whether a setting matters and is another one; what earlier versions wrote in another way is none."""
    if name == "num_train_epochs" and now is None:  # overridden by the number of steps
        return False
    return name in MATTERS and (then or "no" if name == "mixed_precision" else then) != now


def _check(
    checkpoint: Path, state: Mapping[str, Any], settings: Mapping[str, Any], about: Mapping[str, Any], total_steps: int
) -> None:
    """Refuse what cannot be gone on with, and settings that would not be used."""
    then = _used(state)
    if state["images"] != about["images"]:
        raise ValueError(f"{checkpoint} was trained on {state['images']} images, this run has {about['images']}.")
    if state.get("generator", about["generator"]) != about["generator"]:
        raise ValueError(
            f"{checkpoint} is of a run with other weights of the generator: their SHA-256 began "
            f"{state['generator'][:12]} then and begins {about['generator'][:12]} now. Load the generator that it was "
            "trained on, or start anew: resume_from_checkpoint=None (loraguard train: no --resume), in another folder."
        )
    if then["seed"] != settings["seed"]:
        raise ValueError(
            f"{checkpoint} is of a run with seed={then['seed']}, and this one has seed={settings['seed']}: what is "
            "drawn goes on from where the checkpoint was, so that another seed would not be used. Give the same."
        )
    scaled = {"fp16"} & {then["mixed_precision"], settings["mixed_precision"]}
    if scaled and then["mixed_precision"] != settings["mixed_precision"]:
        raise ValueError(
            f"{checkpoint} is of a run in mixed_precision={then['mixed_precision']!r}, and this one is in "
            f"{settings['mixed_precision']!r}: fp16's gradient scaler would be missing or left over. Give the same."
        )
    if state["step"] > total_steps:
        raise ValueError(
            f"{checkpoint} is of step {state['step']}, and this run has {total_steps} steps, which it is beyond. Raise "
            "max_train_steps, or resume from an earlier checkpoint."
        )


class GivenRates:
    """Rates of an optimizer and a schedule as a run was given them, to be put back once a checkpoint is loaded.

    A checkpoint holds the rates of the run that wrote it, and loading puts them over those of this run. The moments of
    Adam and the position in the schedule are the checkpoint's.

    Args:
        optimizer: before loading.
        scheduler: likewise; a `LambdaLR`, as all of `transformers.get_scheduler` that a training takes.

    Example:
        >>> import torch
        >>> def made(lr, steps):
        ...     adam = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr)
        ...     return adam, torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1 - step / steps)
        >>> (_, before), (adam, schedule) = made(1.0, 2), made(0.5, 4)
        >>> before.optimizer.step(); before.step()
        >>> given = GivenRates(adam, schedule)
        >>> schedule.load_state_dict(before.state_dict()); adam.load_state_dict(before.optimizer.state_dict())
        >>> given.put_back()
        >>> adam.param_groups[0]["lr"], schedule.get_last_lr()  # three quarters of 0.5, not half of 1.0
        (0.375, [0.375])
    """

    def __init__(self, optimizer: Any, scheduler: Any) -> None:
        self._optimizer, self._scheduler = optimizer, getattr(scheduler, "scheduler", scheduler)
        self._groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        self._rates = list(self._scheduler.base_lrs)

    def put_back(self) -> None:
        """Have the run's own rates, at the checkpoint's position in the schedule."""
        self._scheduler.base_lrs = list(self._rates)
        position = self._scheduler.last_epoch
        now = [rate * at(position) for rate, at in zip(self._rates, self._scheduler.lr_lambdas, strict=True)]
        for group, own, rate in zip(self._optimizer.param_groups, self._groups, now, strict=True):
            group.update({**own, "lr": rate})
        self._scheduler._last_lr = now


def warn_of_later(checkpoints: Checkpoints, step: int) -> None:
    """Say that an earlier run left checkpoints of later steps, which "latest" would take."""
    if later := checkpoints.later_than(step):
        warnings.warn(
            f"{checkpoints.folder} holds checkpoints of an earlier run, {later[-1].name} the last, and this one starts "
            f"at step {step}: resume_from_checkpoint='latest' would take that one until this run is beyond it. Delete "
            "them, or choose another output folder.",
            stacklevel=3,
        )
