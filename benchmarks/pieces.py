"""Long measurements in pieces: a piece ends early, and the same command goes on."""

from __future__ import annotations

import os
import signal
import threading


def stop_after(minutes: float | None) -> None:
    """Interrupt this process after so many minutes, as Ctrl-C would; never for None or 0."""
    if minutes:
        alarm = threading.Timer(60 * minutes, lambda: os.kill(os.getpid(), signal.SIGINT))
        alarm.daemon = True
        alarm.start()
