"""What is watched while a patch trains: steps that must not reach the weights."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any, NamedTuple

EXPLOSION = 1000.0
"""A step explodes when its loss and its gradient's norm are both over this many times their recent median."""
_ENOUGH = 10  # good steps before a median says anything
_OVERFLOWS = 25
"""Lowerings of fp16's scale in a row, each by half, after which nothing is left of it."""


class Verdict(NamedTuple):
    """What becomes of a step.

    Attributes:
        take: whether the optimizer takes it. One whose gradients overflow fp16 it takes too: there the gradient scaler
            skips it by itself, and lowers its scale.
        skipped: why it does not reach the weights; None for a good one.
    """

    take: bool
    skipped: str | None


class StepWatch:
    """Decides which steps may reach the weights.

    Args:
        max_skipped_steps: skipped steps in a row after which the run stops.
        scaled: whether gradients are scaled, as in fp16.

    Attributes:
        skipped: what was skipped: `step` and `reason` of each.

    Example:
        >>> watch = StepWatch(max_skipped_steps=2)
        >>> watch.judge(1, {"loss_clean": 0.1}, norm=1.0, learning_rate=0.1)
        Verdict(take=True, skipped=None)
        >>> watch.judge(2, {"loss_clean": float("nan")}, norm=1.0, learning_rate=0.1)
        Verdict(take=False, skipped='loss_clean is nan')
        >>> watch.skipped
        [{'step': 2, 'reason': 'loss_clean is nan'}]
    """

    def __init__(self, max_skipped_steps: int, *, scaled: bool = False) -> None:
        self.max_skipped_steps, self.scaled = max_skipped_steps, scaled
        self.skipped: list[dict[str, Any]] = []
        self._in_a_row = self._overflows = 0
        self._losses: deque[float] = deque(maxlen=50)
        self._norms: deque[float] = deque(maxlen=50)

    def judge(self, step: int, losses: Mapping[str, float], norm: float, learning_rate: float) -> Verdict:
        """Whether a step is to be taken.

        Args:
            step: its number.
            losses: by name, the same on all processes.
            norm: of the gradient, before it is clipped.
            learning_rate: of the step, for the diagnosis.

        Raises:
            FloatingPointError: if it was the last that may be skipped in a row.
        """
        if self.scaled and not math.isfinite(norm) and all(map(math.isfinite, losses.values())):
            return self._overflow(step)
        reason = self._reason(losses, norm)
        if reason is None:
            self._in_a_row = self._overflows = 0
            self._losses.append(sum(losses.values()))
            self._norms.append(norm)
            return Verdict(True, None)
        self.skipped.append({"step": step, "reason": reason})
        self._in_a_row += 1
        if self._in_a_row >= self.max_skipped_steps:
            raise FloatingPointError(self._diagnosis(step, reason, learning_rate))
        return Verdict(False, reason)

    def finish(self, steps: int) -> None:
        """At the end of a run.

        Raises:
            FloatingPointError: if not one of its steps was taken.
        """
        if steps and len(self.skipped) == steps:
            raise FloatingPointError(self._diagnosis(steps, self.skipped[-1]["reason"], None))

    def _overflow(self, step: int) -> Verdict:
        self._overflows += 1
        if self._overflows >= _OVERFLOWS:
            raise FloatingPointError(
                f"Stopped at step {step}: gradients were over the range of fp16 {self._overflows} times in a row, "
                "although their scale was lowered each time. Use mixed_precision='bf16' or 'no'."
            )
        return Verdict(True, "the gradients were over the range of fp16; its scale is lowered")

    def _reason(self, losses: Mapping[str, float], norm: float) -> str | None:
        for name, value in losses.items():
            if not math.isfinite(value):
                return f"{name} is {value}"
        if not math.isfinite(norm):
            return f"the gradient's norm is {norm}"
        if len(self._losses) >= _ENOUGH:
            usual_loss, usual_norm = median(self._losses), median(self._norms)
            loss = sum(losses.values())
            if loss > EXPLOSION * usual_loss and norm > EXPLOSION * usual_norm:
                return f"loss {loss:.3g} and gradient {norm:.3g}, usually {usual_loss:.3g} and {usual_norm:.3g}"
        return None

    def _diagnosis(self, step: int, reason: str, learning_rate: float | None) -> str:
        good = f"the last good losses were {list(self._losses)[-3:]}" if self._losses else "no step was good"
        rate = "" if learning_rate is None else f", at learning rate {learning_rate:.3g}"
        if "loss" not in reason:
            advice = "look for a loss or generator whose derivative is infinite somewhere, or lower the learning rate"
        elif not self._losses:
            advice = (
                "look at the loss function and the generator: nothing has been learnt yet that could have done this"
            )
        else:
            advice = (
                "lower the learning rate, clip gradients (max_grad_norm=1.0; loraguard train: --max-grad-norm 1), or "
                "train from a fresh adapter"
            )
        return (
            f"Stopped at step {step}: {self._in_a_row} steps in a row were skipped, the last because {reason}; "
            f"{good}{rate}. No skipped step has changed the patch. What may help: {advice}."
        )

    def state_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "skipped": self.skipped,
            "in_a_row": self._in_a_row,
            "losses": list(self._losses),
            "norms": list(self._norms),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.skipped, self._in_a_row = list(state["skipped"]), state["in_a_row"]
        self._losses.extend(state["losses"])
        self._norms.extend(state["norms"])
