from .detector import FEWEST_OUTPUTS as FEWEST_OUTPUTS
from .detector import StampDetector as StampDetector
from .fonts import find_font as find_font
from .fonts import missing_characters as missing_characters
from .reader import StampReader as StampReader
from .stamp import PLACES as PLACES
from .stamp import Stamp as Stamp
