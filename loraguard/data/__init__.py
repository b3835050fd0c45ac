"""Images with labels, as torch data sets whose items are `{"image": (3, H, W) in [-1, 1], "labels": (A,)}`."""

from .batches import collate
from .celeba import CelebA
from .demo_faces import DemoFaces
from .folder import ImageFolder
from .hub import HubImages
from .perturbed import PerturbedPhotos, names_of
from .photos import PhotoDataset
from .reading import ImageReadError, read_image
from .source import DATA, open_data
from .splits import Part, split_photos
from .transforms import default_transform

__all__ = [
    "DATA",
    "CelebA",
    "DemoFaces",
    "HubImages",
    "ImageFolder",
    "ImageReadError",
    "Part",
    "PerturbedPhotos",
    "PhotoDataset",
    "collate",
    "default_transform",
    "names_of",
    "open_data",
    "read_image",
    "split_photos",
]
