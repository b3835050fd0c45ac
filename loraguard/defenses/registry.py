"""Defenses by the name that the command line takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraguard.registry import Registry, build

if TYPE_CHECKING:
    from .base import Defense

DEFENSES = Registry(
    "loraguard.defenses",
    {
        "disrupting": "loraguard.defenses.disrupting:Disrupting",
        "mi-fgsm": "loraguard.defenses.mi_fgsm:MIFGSM",
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
        "photoguard": "loraguard.defenses.photoguard:PhotoGuard",
        "photoguard-diffusion": "loraguard.defenses.photoguard:PhotoGuardDiffusion",
        "photoguard-l2": "loraguard.defenses.photoguard:PhotoGuardL2",
        "advdm": "loraguard.defenses.mist:AdvDM",
        "texture": "loraguard.defenses.mist:TextureOnly",
        "mist": "loraguard.defenses.mist:Mist",
        "sds": "loraguard.defenses.sds:SDS",
        "sdst": "loraguard.defenses.sds:SDST",
        "editshield": "loraguard.defenses.editshield:EditShield",
        "diffusionguard": "loraguard.defenses.diffusionguard:DiffusionGuard",
        "blurguard": "loraguard.defenses.blurguard:BlurGuard",
        "noise": "loraguard.defenses.noise:RandomNoise",
    },
)
"""Defenses by the name that the command line takes."""


def parse_defense(spec: str) -> Defense:
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
    DEFENSES.check(name.partition(":")[0])
    if not at or ":" in name:
        return _as_defense(build(DEFENSES, spec))
    how = "pretrained" if file == "pretrained" else "load"
    if (loader := getattr(DEFENSES[name], how, None)) is None:
        why = "none ships with the package" if file == "pretrained" else f"{name} is not fitted"
        raise ValueError(f"{spec!r}: {why}, so there is nothing to load; write {name!r}.")
    return _as_defense(loader() if file == "pretrained" else loader(file))


def check_defense(spec: str) -> None:
    """Check the name in a spec, and that the file is there which it names, without importing the defense.

    Raises:
        ValueError: for a name that is not in :data:`DEFENSES`.
        FileNotFoundError: for a file that is not there.

    Example:
        >>> check_defense("cmua@nowhere.safetensors")
        Traceback (most recent call last):
        ...
        FileNotFoundError: There is no file nowhere.safetensors with a fitted cmua.
    """
    name, at, file = spec.partition("@")
    DEFENSES.check(name.partition(":")[0])
    if at and ":" not in name and file != "pretrained" and not Path(file).expanduser().is_file():
        raise FileNotFoundError(f"There is no file {file} with a fitted {name}.")


def _as_defense(made: Any) -> Defense:
    from .plain import as_defense  # on use: it brings torch

    return as_defense(made)
