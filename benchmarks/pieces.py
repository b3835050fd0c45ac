"""Long measurements in pieces: a piece ends early, and the same command goes on."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loraguard.files import write_json


def stop_after(minutes: float | None) -> None:
    """Interrupt this process after so many minutes, as Ctrl-C would; never for None or 0."""
    if minutes:
        alarm = threading.Timer(60 * minutes, lambda: os.kill(os.getpid(), signal.SIGINT))
        alarm.daemon = True
        alarm.start()


@contextmanager
def counted(file: Path) -> Iterator[None]:
    """Add the processor time of what is done within it to that in a JSON file, interrupted or not."""
    started = time.process_time()
    try:
        yield
    finally:
        before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else 0.0
        write_json(file, before + time.process_time() - started)
