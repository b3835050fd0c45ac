"""Networks that edit images."""

from loraguard.registry import Registry

from .attgan import AttGAN
from .base import Condition, Conditions, conditions_of, expand
from .cyclegan import CycleGAN
from .demo import DemoEditor
from .hisd import HiSD
from .published import PublishedGenerator
from .stargan import StarGAN

GENERATORS = Registry(
    "loraguard.generators",
    {
        "demo": "loraguard.generators.demo:DemoEditor",
        "stargan": "loraguard.generators.stargan:StarGAN",
        "attgan": "loraguard.generators.attgan:AttGAN",
        "hisd": "loraguard.generators.hisd:HiSD",
        "cyclegan": "loraguard.generators.cyclegan:CycleGAN",
    },
)
"""Generators by the name that the command line takes."""

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
]
