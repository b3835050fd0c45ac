"""Attacks and trainings that end sooner, and a smaller network, where a test is not about what they find."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from loraguard.defenses import APGD, Disrupting, Square
from loraguard.generators import DemoEditor


def at_most(monkeypatch: pytest.MonkeyPatch, cls: type, **limits: int) -> None:
    """No object of the class has more of these than the limit, whatever it was made with."""
    for name in ("__post_init__", "__init__"):
        if name in vars(cls):
            made: Callable[..., None] = vars(cls)[name]
            break

    def limited(self: Any, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        for attribute, limit in limits.items():
            value = getattr(self, attribute)
            object.__setattr__(self, attribute, limit if value is None else min(limit, value))

    monkeypatch.setattr(cls, name, limited)


def short_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """An audit compares slopes along 2 directions for each photo, in place of 8: most of what a tiny audit takes."""
    monkeypatch.setattr("loraguard.audit.slopes.DIRECTIONS", 2)


def no_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """An audit tries generators and defenses for its figures alone: half of what a tiny one takes is probes."""
    monkeypatch.setattr("loraguard.audit.run.Run._probed", lambda *args: [])


def short_attacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every attack that an audit's checks try takes its first steps, of its usual budget; and probes are short."""
    short_probes(monkeypatch)
    at_most(monkeypatch, Disrupting, steps=2, restarts=2)
    at_most(monkeypatch, APGD, steps=2)
    at_most(monkeypatch, Square, queries=4)


def without_probes() -> None:
    """Audits of this process, a fork, have no probes."""
    no_probes(pytest.MonkeyPatch())


def with_short_attacks() -> None:
    """Attacks of this process, a fork, are short."""
    short_attacks(pytest.MonkeyPatch())


def small_demo_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the network that ships: 4 feature maps and one block, and weights that a seed draws."""

    def pretrained() -> DemoEditor:
        with torch.random.fork_rng():
            torch.manual_seed(7)
            return DemoEditor(**DemoEditor.small).eval()

    monkeypatch.setattr(DemoEditor, "pretrained", staticmethod(pretrained))
