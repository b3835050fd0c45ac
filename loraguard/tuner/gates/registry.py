"""Gates by the name that a config gives them. A new gate is one file, one line below, and one row in docs/tuner.md."""

from .base import Gate
from .channel import ChannelGate
from .input import InputGate
from .input_channel import InputChannelGate
from .none import NoGate
from .rank import RankGate
from .scalar import ScalarGate

GATES: dict[str, type[Gate]] = {
    "scalar": ScalarGate,
    "channel": ChannelGate,
    "rank": RankGate,
    "input": InputGate,
    "input_channel": InputChannelGate,
    "none": NoGate,
}
"""Gates by the name that a config gives them."""
