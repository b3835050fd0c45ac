"""Networks that edit images."""

from .attgan import AttGAN
from .base import Condition, Conditions, conditions_of, expand, labels_of, transform_of
from .cyclegan import CycleGAN
from .demo import DemoEditor
from .hisd import HiSD
from .layers import find_layer, up_to
from .loading import GENERATORS, load_generator
from .published import PublishedGenerator
from .stargan import StarGAN

__all__ = [
    "GENERATORS",
    "AttGAN",
    "Condition",
    "Conditions",
    "CycleGAN",
    "DemoEditor",
    "HiSD",
    "PublishedGenerator",
    "StarGAN",
    "conditions_of",
    "expand",
    "find_layer",
    "labels_of",
    "load_generator",
    "transform_of",
    "up_to",
]
