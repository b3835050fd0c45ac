"""For tests and doctests alike: one thread for each test process, as several processes share the cores."""

import gc
import logging
import os

import torch

# Where it is installed, Accelerate imports DeepSpeed, which logs to stdout: what it is and that it chose the CPU.
logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # for processes that tests start

torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """By now everything is imported: collecting garbage, as each training does, need not look through it again."""
    gc.collect()
    gc.freeze()
