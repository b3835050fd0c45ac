"""Proactive defenses: perturbations of photos that make a generator fail on them."""

from loraguard.registry import Registry

from .apgd import APGD
from .base import Defense, Fittable, sign_ascent
from .disrupting import Disrupting
from .mixture import Mixture
from .noise import RandomNoise
from .square import Square
from .worst import WorstOf

DEFENSES = Registry(
    "loraguard.defenses",
    {
        "apgd": "loraguard.defenses.apgd:APGD",
        "disrupting": "loraguard.defenses.disrupting:Disrupting",
        "noise": "loraguard.defenses.noise:RandomNoise",
        "square": "loraguard.defenses.square:Square",
    },
)
"""Defenses by the name that the command line takes."""

__all__ = [
    "APGD",
    "DEFENSES",
    "Defense",
    "Disrupting",
    "Fittable",
    "Mixture",
    "RandomNoise",
    "Square",
    "WorstOf",
    "sign_ascent",
]
