"""Images with labels, as torch data sets whose items are `{"image": (3, H, W) in [-1, 1], "labels": (A,)}`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
