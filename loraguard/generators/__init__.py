"""Networks that edit images."""

from loraguard.registry import Registry

from .base import Condition, Conditions, conditions_of, expand
from .demo import DemoEditor
from .published import PublishedGenerator

GENERATORS = Registry(
    "loraguard.generators",
    {
        "demo": "loraguard.generators.demo:DemoEditor",
    },
)
"""Generators by the name that the command line takes."""

__all__ = ["GENERATORS", "Condition", "Conditions", "DemoEditor", "PublishedGenerator", "conditions_of", "expand"]
