"""Images with labels, as torch data sets whose items are `{"image": (3, H, W) in [-1, 1], "labels": (A,)}`."""

from loraguard.registry import Registry

from .batches import collate
from .demo_faces import DemoFaces

DATA = Registry(
    "loraguard.data",
    {
        "demo": "loraguard.data.demo_faces:DemoFaces",
    },
)
"""Data sets by the name that the command line takes."""

__all__ = ["DATA", "DemoFaces", "collate"]
