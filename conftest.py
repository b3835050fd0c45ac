"""For tests and doctests alike: one thread for each test process, as several processes share the cores."""

import torch

torch.set_num_threads(1)
