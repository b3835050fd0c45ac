"""Marks, invisible watermarks that machines read: compose them onto images, read them, sign what they are on.

Images are (N, 3, H, W) in [-1, 1] throughout.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
