"""Patches that travel: a true card, pushing to the Hugging Face Hub, and loading what was checked first.

What travels is safetensors and JSON; no pickle is read or written.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
