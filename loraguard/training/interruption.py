"""Leaving in good order when asked to: SIGINT from the keyboard, SIGTERM from a scheduler."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Interruption:
    """Within the block, the first SIGINT or SIGTERM is only noted; a second SIGINT interrupts at once.

    In a thread that is not the main one, where Python allows no handlers, signals do what they did before.

    Attributes:
        signal: the signal that came, or None.

    Example:
        >>> import os
        >>> with Interruption() as interruption:
        ...     os.kill(os.getpid(), signal.SIGTERM)
        ...     interruption.signal.name
        'SIGTERM'
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for one in (signal.SIGINT, signal.SIGTERM):
                self._before[one] = signal.signal(one, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for one, handler in self._before.items():
            signal.signal(one, handler)

    def leave(self, message: str) -> None:
        """End the program, or the notebook's cell, as the signal would have: `KeyboardInterrupt` or `SystemExit`."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt(message)
        if self.signal is not None:
            print(message, flush=True)  # noqa: T201 -- SystemExit with a status has no words
            raise SystemExit(128 + self.signal)
