"""Networks that edit images."""

from .base import Condition, Conditions, conditions_of, expand
from .demo import DemoEditor

__all__ = ["Condition", "Conditions", "DemoEditor", "conditions_of", "expand"]
