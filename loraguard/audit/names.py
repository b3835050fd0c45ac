"""Names that an audit uses itself, without what it is made of: commands know them before anything heavy is loaded."""

from __future__ import annotations

from typing import Literal, get_args

UNTOUCHED = "untouched"
"""The name of the generator without a patch."""

Control = Literal["ungated", "clean-only", "fine-tune"]
Adversary = Literal["standard", Control]
KINDS: tuple[Control, ...] = get_args(Control)
PATCH = "standard"
"""Beside these, the patch itself, trained as it is."""
