"""Gated LoRA patches for image-editing networks: honest audits of proactive defenses, and visible warnings.

Importing loraguard registers GATED_LORA with PEFT: at once where PEFT is loaded, or else as soon as somebody loads it.
Everything else, torch and PEFT included, is imported when it is first used.
"""

import lazy_loader

from ._registering import register_with_peft

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

register_with_peft()
