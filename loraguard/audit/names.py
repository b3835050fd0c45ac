"""Names that an audit uses itself, without what it is made of: commands know them before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

UNTOUCHED = "untouched"
"""The name of the generator without a patch."""

OWN = {"defenses": ("none", "noise"), "channels": ("none",), "patches": (UNTOUCHED, "generator", "photo")}
"""What an audit calls things of its own: its controls, no channel, and the generator and photos in its records."""

Control = Literal["ungated", "clean-only", "fine-tune"]
Adversary = Literal["standard", Control]
KINDS: tuple[Control, ...] = get_args(Control)
PATCH = "standard"
"""Beside these, the patch itself, trained as it is."""

SUCCESS = "mse:0.05"
"""When a defense counts as having succeeded, unless somebody says otherwise."""

Preset = Literal["proactive-benchmark-2026"]
PRESETS: dict[str, tuple[str, ...]] = {
    "proactive-benchmark-2026": ("jpeg:70", "jpeg:90", "blur:1.0,kernel=3", "noise:0.001", "noise:0.003",
                                 "salt-pepper:0.001,each=value", "salt-pepper:0.003,each=value"),
}  # fmt: skip
"""By preset, the channels that it brings."""

RANGES = {"mse": (0.0, 4.0), "lpips": (0.0, 2.0), "ssim": (-1.0, 1.0), "identity": (-1.0, 1.0), "clip": (-1.0, 1.0),
          "noise": (0.0, 1.0)}  # fmt: skip
"""What success may be said by, and between which numbers."""


def check_success(text: str) -> str:
    """The text, if it says when a defense succeeds; `loraguard.audit.success.Success` reads it.

    Raises:
        ValueError: if it does not.

    Example:
        >>> check_success("psnr:20")
        Traceback (most recent call last):
        ...
        ValueError: success='psnr:20' must be METRIC:NUMBER with one of mse, lpips, ...
    """
    metric, _, number = text.partition(":")
    if metric not in RANGES:
        raise ValueError(f"success={text!r} must be METRIC:NUMBER with one of {', '.join(RANGES)}, as in {SUCCESS}.")
    low, high = RANGES[metric]
    try:
        value = float(number)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise ValueError(f"success={text!r}: the number of {metric} must be between {low:g} and {high:g}.")
    return text


def check_names(kind: str, names: Iterable[str]) -> None:
    """Refuse names that are those of an audit's own things, look like them, or cannot be read.

    Args:
        kind: one of :data:`OWN`; networks are among patches.
        names: of what somebody gives.

    Raises:
        ValueError: for the first such name.

    Example:
        >>> check_names("patches", ["standard", "Untouched"])
        Traceback (most recent call last):
        ...
        ValueError: patches: the name 'Untouched' is taken, looks like one that is (untouched, generator, photo), or ...
    """
    for name in names:
        if not name.isprintable() or name != " ".join(name.split()) or not name or name.casefold() in OWN[kind]:
            raise ValueError(
                f"{kind}: the name {name!r} is taken, looks like one that is ({', '.join(OWN[kind])}), or has odd "
                "spaces or signs; call yours something else."
            )
