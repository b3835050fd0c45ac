"""What each process that tests run in begins with: pytest's own, and the fork server (imported.py)."""

import functools
import logging
import os
from types import SimpleNamespace

import jinja2
import torch
from _pytest.logging import catching_logs


def prepare() -> None:
    """One thread, as several processes share the cores; no words of DeepSpeed; and nothing done over and over."""
    torch.set_num_threads(1)
    # Where it is installed, Accelerate imports DeepSpeed, which logs to stdout: what it is and that it chose the CPU.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # for processes that tests start, too
    # `torch.manual_seed` formats its callers' stack for each kind of device that may be initialized later, to name them
    # where that fails. As deep as pytest's stack is, that takes longer than a small network.
    for device in (torch.cuda, torch.xpu, torch.mtia):
        device.traceback = SimpleNamespace(format_stack=list)
    # PEFT compiles the template of its card whenever an adapter is saved.
    jinja2.Environment.compile = functools.lru_cache(jinja2.Environment.compile)
    # No test cuts the power, so that nothing has to wait until a disk has what is written.
    os.fsync = lambda handle: None


def let_loggers_propagate() -> None:
    """To the root, or pytest puts its handlers on each of torch's loggers, and takes them off, six times a test."""
    for name, logger in logging.root.manager.loggerDict.items():
        if name.partition(".")[0] == "torch" and isinstance(logger, logging.Logger):
            logger.propagate = True
    if not hasattr(catching_logs, "attached_loggers"):  # an earlier pytest, which puts its handlers on the root alone
        return
    loggers = [one for one in logging.root.manager.loggerDict.values() if isinstance(one, logging.Logger)]
    apart = [logging.root, *(logger for logger in loggers if not logger.propagate)]
    look = catching_logs.__enter__

    def enter(self: catching_logs) -> logging.Handler:
        """As pytest's own, which looks through all loggers, some thousands, as often."""
        if self.level is not None:
            return look(self)
        for logger in apart:
            logger.addHandler(self.handler)
        self.attached_loggers += apart
        return self.handler

    catching_logs.__enter__ = enter
