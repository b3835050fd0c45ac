"""Proactive defenses: perturbations of photos that make a generator fail on them."""

from loraguard.registry import Registry

from .anti_forgery import AntiForgery
from .apgd import APGD
from .base import Defense, Fittable, sign_ascent
from .blur_robust import BlurRobust
from .cmua import CMUA
from .df_rap import DFRAP
from .disrupting import Disrupting
from .idguard import IDGuard
from .leat import LEAT
from .mixture import Mixture
from .noise import RandomNoise
from .square import Square
from .tafim import TAFIM
from .transferable import ClassTransferable, edits_of
from .tsdf import TSDF
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
    "CMUA",
    "DEFENSES",
    "DFRAP",
    "LEAT",
    "TAFIM",
    "TSDF",
    "AntiForgery",
    "BlurRobust",
    "ClassTransferable",
    "Defense",
    "Disrupting",
    "Fittable",
    "IDGuard",
    "Mixture",
    "RandomNoise",
    "Square",
    "Unperturbed",
    "WorstOf",
    "edits_of",
    "sign_ascent",
]
