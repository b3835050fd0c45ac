"""A process' part of an audit that several processes do together."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from accelerate import PartialState


def _nobody() -> None:
    """Wait for nobody."""


@dataclass(frozen=True)
class Share:
    """Every `of`-th batch of photos, from number `number` on.

    Args:
        number: this process', from 0; number 0 is the one that reports.
        of: how many processes there are.
        wait: returns once every process has done its part; a process that has nothing more to do may leave here.
    """

    number: int = 0
    of: int = 1
    wait: Callable[[], None] = _nobody

    @classmethod
    def launched(cls) -> Share:
        """As `accelerate launch` or `torchrun` started this process; the whole audit where neither did."""
        if PartialState._shared_state or int(os.environ.get("WORLD_SIZE", "1")) > 1:
            state = PartialState()
            return cls(state.process_index, state.num_processes, state.wait_for_everyone)
        return cls()


def place() -> tuple[int, int]:
    """This process' number, and how many there are that share an audit; 0 is the one that reports."""
    share = Share.launched()
    return share.number, share.of
