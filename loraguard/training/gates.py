"""The gates of the adapter that is trained, step by step."""

from __future__ import annotations

from typing import Any, cast

import torch
from peft import PeftModel

from loraguard.tuner import GatedLoraLayer

SHUT, OPEN = 0.01, 0.99
"""Openings of a gate, sigmoid(g), beyond which it hardly learns: the sigmoid's slope is under 0.01 there."""


class Gates:
    """How far the gates of an adapter are open.

    Args:
        model: a generator with adapters.
        adapter: the one whose gates they are.

    Example:
        >>> from peft import get_peft_model
        >>> from loraguard import GatedLoraConfig
        >>> model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(3, 3)), GatedLoraConfig(r=2))
        >>> {name: round(opening, 3) for name, opening in Gates(model, "default").openings().items()}
        {'base_model.model.0': 0.269}
    """

    def __init__(self, model: PeftModel, adapter: str) -> None:
        layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, GatedLoraLayer)}
        self._gates = {
            name: cast(Any, layer.lora_gate[adapter]) for name, layer in layers.items() if adapter in layer.lora_gate
        }

    @property
    def learn(self) -> bool:
        """Whether any of them has parameters that learn."""
        return any(parameter.requires_grad for gate in self._gates.values() for parameter in gate.parameters())

    def openings(self) -> dict[str, float]:
        """By adapted layer, its gate's value sigmoid(g), averaged over feature channels; 1 where there is no gate."""
        means = [gate.opening.detach().mean().float() for gate in self._gates.values()]
        return dict(zip(self._gates, torch.stack(means).tolist(), strict=True))

    def stuck(self, openings: dict[str, float]) -> str | None:
        """What to say of those that learn and are all but shut or open, or None."""
        learn = {name for name, gate in self._gates.items() if any(True for _ in gate.parameters())}
        return stuck_gates({name: value for name, value in openings.items() if name in learn})


def stuck_gates(openings: dict[str, float]) -> str | None:
    """What to say of gates that are all but shut or open, or None.

    Args:
        openings: by layer, the gate's value sigmoid(g).

    Example:
        >>> stuck_gates({"a": 0.5, "b": 0.001})
        "1 of 2 gates are all but shut (below 0.01), 'b' for one: ..."
    """
    for what, stuck in (
        (f"shut (below {SHUT})", [name for name, value in openings.items() if value < SHUT]),
        (f"open (above {OPEN})", [name for name, value in openings.items() if value > OPEN]),
    ):
        if stuck:
            return (
                f"{len(stuck)} of {len(openings)} gates are all but {what}, {stuck[0]!r} for one: there they hardly "
                "learn, and a layer behind a shut gate does not learn at all. A lower gate_learning_rate helps "
                "(loraguard train: --gate-learning-rate), or gate_type='none' (--gate-type none) for no gates."
            )
    return None
