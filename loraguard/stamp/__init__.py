"""The stamp, a visible watermark that warns: render it, compose it onto images, detect it, read which one it is.

Images are (N, 3, H, W) in [-1, 1] throughout.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
