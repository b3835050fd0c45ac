"""For tests and doctests alike: one thread for each test process, as several processes share the cores."""

import logging

import torch

# Where it is installed, Accelerate imports DeepSpeed, which logs to stdout: into the output of doctests.
logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)

torch.set_num_threads(1)
