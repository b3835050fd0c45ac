"""Proactive defenses: perturbations of photos that make a generator fail on them."""

from loraguard.registry import Registry

from .base import Defense, Fittable, sign_ascent
from .disrupting import Disrupting
from .mixture import Mixture
from .noise import RandomNoise

DEFENSES = Registry(
    "loraguard.defenses",
    {
        "disrupting": "loraguard.defenses.disrupting:Disrupting",
        "noise": "loraguard.defenses.noise:RandomNoise",
        "cmua": "loraguard.defenses.cmua:CMUA",
        "tsdf": "loraguard.defenses.tsdf:TSDF",
        "tafim": "loraguard.defenses.tafim:TAFIM",
        "id-guard": "loraguard.defenses.idguard:IDGuard",
    },
)
"""Defenses by the name that the command line takes."""

__all__ = ["DEFENSES", "Defense", "Disrupting", "Fittable", "Mixture", "RandomNoise", "sign_ascent"]
