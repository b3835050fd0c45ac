"""What a training leaves in writing: its figures step by step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TrainingResult:
    """What a training run leaves behind.

    Attributes:
        output_dir: where the patch is; `PeftModel.from_pretrained(generator, output_dir)` loads it.
        log: one entry a step: `step`, `loss_clean`, `loss_adversarial`, `gradient_norm`, `learning_rate`, `gate_mean`;
            and `skipped`, why, where a step was.
        gates: by adapted layer, the gate's value sigmoid(g) after each step.
        validation: one entry each time: `step` and the figures of :func:`~loraguard.training.validate`.
    """

    output_dir: Path
    log: list[dict[str, Any]]
    gates: dict[str, list[float]]
    validation: list[dict[str, float]] = field(default_factory=list)


class TrainingLog:
    """The figures of a run so far.

    Attributes:
        steps: as :class:`TrainingResult`'s `log`.
        gates: by adapted layer, the gate's value after each step.
        validation: one entry each time.
        resumed: where the run went on with other settings: `step`, and what was `before`.

    Example:
        >>> log = TrainingLog()
        >>> log.add(1, {"loss_clean": 0.5}, {"a": 0.25, "b": 0.75}, gradient_norm=float("inf"), learning_rate=0.1)
        {'step': 1, 'loss_clean': 0.5, 'gradient_norm': inf, 'learning_rate': 0.1, 'gate_mean': 0.5}
        >>> log.step, log.steps[0]["gradient_norm"], log.gates
        (1, None, {'a': [0.25], 'b': [0.75]})
    """

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []
        self.gates: dict[str, list[float]] = {}
        self.validation: list[dict[str, float]] = []
        self.resumed: list[dict[str, Any]] = []

    @property
    def step(self) -> int:
        """The last step; 0 before the first."""
        return self.steps[-1]["step"] if self.steps else 0

    def add(
        self,
        step: int,
        losses: Mapping[str, float],
        openings: Mapping[str, float],
        *,
        gradient_norm: float,
        learning_rate: float,
        skipped: str | None = None,
    ) -> dict[str, Any]:
        """Note a step, with the gates after it; gives its entry, in which figures that are not finite still stand."""
        for name, value in openings.items():
            self.gates.setdefault(name, []).append(value)
        entry: dict[str, Any] = {"step": step, **losses}
        if skipped is not None:
            entry["skipped"] = skipped
        entry |= {"gradient_norm": gradient_norm, "learning_rate": learning_rate}
        entry["gate_mean"] = sum(openings.values()) / len(openings)
        self.steps.append({k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in entry.items()})
        return entry

    def state_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {"log": self.steps, "gates": self.gates, "validation": self.validation, "resumed": self.resumed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.steps, self.gates, self.validation = state["log"], state["gates"], state["validation"]
        self.resumed = state["resumed"]
