"""Images with labels, as torch data sets whose items are `{"image": (3, H, W) in [-1, 1], "labels": (A,)}`."""

from .demo_faces import DemoFaces

__all__ = ["DemoFaces"]
