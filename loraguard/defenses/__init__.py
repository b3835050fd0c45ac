"""Proactive defenses: perturbations of photos that make a generator fail on them."""

from typing import Any

from loraguard.registry import Registry, build

from .anti_forgery import AntiForgery
from .apgd import APGD
from .base import Defense, Fittable, needs_fitting, sign_ascent
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


def parse_defense(spec: str) -> Any:
    """The defense that a spec on the command line names.

    `NAME`, `NAME:SETTINGS` (:func:`loraguard.registry.build`), `NAME@FILE` for one that was fitted and saved, or
    `NAME@pretrained` for a fitted one that ships with the package.

    Raises:
        ValueError: for a name that is not in :data:`DEFENSES`, or settings or a file that cannot be used.
        FileNotFoundError: for a file that is not there.

    Example:
        >>> parse_defense("disrupting:0.1,steps=15").steps
        15
    """
    name, at, file = spec.partition("@")
    if not at or ":" in name:
        return build(DEFENSES, spec)
    if name not in DEFENSES:
        return build(DEFENSES, name)  # says which there are
    how = "pretrained" if file == "pretrained" else "load"
    if (loader := getattr(DEFENSES[name], how, None)) is None:
        why = "none ships with the package" if file == "pretrained" else f"{name} is not fitted"
        raise ValueError(f"{spec!r}: {why}, so there is nothing to load; write {name!r}.")
    return loader() if file == "pretrained" else loader(file)


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
    "needs_fitting",
    "parse_defense",
    "sign_ascent",
]
