"""Networks that edit images."""

from loraguard.registry import Registry

from .base import Condition, Conditions, conditions_of, expand
from .demo import DemoEditor
from .hisd import HiSD
from .published import PublishedGenerator

GENERATORS = Registry(
    "loraguard.generators",
    {
        "demo": "loraguard.generators.demo:DemoEditor",
        "hisd": "loraguard.generators.hisd:HiSD",
    },
)
"""Generators by the name that the command line takes."""

__all__ = [
    "GENERATORS",
    "Condition",
    "Conditions",
    "DemoEditor",
    "HiSD",
    "PublishedGenerator",
    "conditions_of",
    "expand",
]
