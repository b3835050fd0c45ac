"""GATED_LORA, gated low-rank adaptation (arXiv 2510.03747), as a tuner of PEFT; `import loraguard` registers it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
