"""The visible warning: render it, compose it onto images, measure how strongly it is present, read which one it is.

Images are (N, 3, H, W) in [-1, 1] throughout.
"""

from .detector import FEWEST_OUTPUTS, StampDetector
from .fonts import find_font, missing_characters
from .reader import StampReader
from .stamp import PLACES, Stamp

__all__ = ["FEWEST_OUTPUTS", "PLACES", "Stamp", "StampDetector", "StampReader", "find_font", "missing_characters"]
