"""Proactive defenses: perturbations of photos that make a generator fail on them."""

from loraguard.registry import Registry

from .anti_forgery import AntiForgery
from .apgd import APGD
from .base import Defense, Fittable, sign_ascent
from .blur_robust import BlurRobust
from .df_rap import DFRAP
from .disrupting import Disrupting
from .leat import LEAT
from .mixture import Mixture
from .noise import RandomNoise
from .square import Square
from .transferable import ClassTransferable, edits_of
from .unperturbed import Unperturbed
from .worst import WorstOf

DEFENSES = Registry(
    "loraguard.defenses",
    {
        "disrupting": "loraguard.defenses.disrupting:Disrupting",
        "class-transferable": "loraguard.defenses.transferable:ClassTransferable",
        "blur-robust": "loraguard.defenses.blur_robust:BlurRobust",
        "anti-forgery": "loraguard.defenses.anti_forgery:AntiForgery",
        "df-rap": "loraguard.defenses.df_rap:DFRAP",
        "leat": "loraguard.defenses.leat:LEAT",
        "cmua": "loraguard.defenses.cmua:CMUA",
        "tsdf": "loraguard.defenses.tsdf:TSDF",
        "tafim": "loraguard.defenses.tafim:TAFIM",
        "id-guard": "loraguard.defenses.idguard:IDGuard",
        "apgd": "loraguard.defenses.apgd:APGD",
        "square": "loraguard.defenses.square:Square",
        "noise": "loraguard.defenses.noise:RandomNoise",
    },
)
"""Defenses by the name that the command line takes."""

__all__ = [
    "APGD",
    "DEFENSES",
    "DFRAP",
    "LEAT",
    "AntiForgery",
    "BlurRobust",
    "ClassTransferable",
    "Defense",
    "Disrupting",
    "Fittable",
    "Mixture",
    "RandomNoise",
    "Square",
    "Unperturbed",
    "WorstOf",
    "edits_of",
    "sign_ascent",
]
