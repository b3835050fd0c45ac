"""How much an audit does: the options that Python, YAML files and flags share. It imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt, Le, MinLen

from loraguard.kinds import Count, First, Many, Number, Seed, Then, as_number, checked

from .names import SUCCESS, Preset, check_success

Budget = Annotated[float, First(as_number), Gt(0), Le(2)]
"""A distance between two images in [-1, 1] that are not the same; "16/255" is 16 levels of 8 bits."""


@dataclass(frozen=True, kw_only=True)
class AuditExtent:
    """How much an audit does, and what counts as success. A field that takes several values is described for one.

    Args:
        no_leak_only: a defense that is not made anew against each patch. Such as a network whose training would take
            too long.
        allow_large_change: take perturbed photos that are not like their originals. That is, under 20 dB PSNR: other
            people's photos, or turned ones.
        adaptive_channels: make defenses through each channel, too.
        budgets: a further budget, for a curve: the largest change on [-1, 1], or as 8/255 of the scale to 255. Of
            defenses that have `eps`.
        steps: a further number of a defense's steps, for a curve. Of defenses that take steps.
        seeds: what everything drawn at random depends on. One run of random starts, noise and channels for each; the
            first one also draws photos and edits.
        success: when a defense counts as having succeeded: mse:T, lpips:T, ssim:T, identity:T, clip:T or noise:Q. As
            :class:`~loraguard.audit.success.Success` reads it.
        preset: measure as a published benchmark does, and lay its table beside ours. It brings its channels.
        transfer: a generator or patch between which photos are carried: crafted on one, judged on each. By its name in
            the audit, or all.
        detect: on how many other photos a small network learns to tell protected photos from plain ones. 0 for not at
            all; it takes photos of `fit_on` that are no versions of audited ones.
        checks: on how many photos to try other attacks, which takes most of the time. docs/audit-checks.md says which.
        batch_size: photos at a time.
        pictures: photos to show in the report.

    Raises:
        ValueError: for a value of the wrong kind or out of range.

    Example:
        >>> AuditExtent(seeds=[0, 1, 1]).seeds
        (0, 1)
        >>> AuditExtent(budgets=[3.0])
        Traceback (most recent call last):
        ...
        ValueError: budgets[0]=3.0 must be less than or equal to 2.
    """

    no_leak_only: Many[str] = ()
    allow_large_change: bool = False
    adaptive_channels: bool = True
    budgets: Many[Budget] = ()
    steps: Many[Number] = ()
    seeds: Annotated[Many[Seed], MinLen(1)] = (0,)
    success: Annotated[str, Then(check_success)] = SUCCESS
    preset: Preset | None = None
    transfer: Many[str] = ()
    detect: Count = 0
    checks: Count = 0
    batch_size: Number = 25
    pictures: Number = 6

    def __post_init__(self) -> None:
        extent = {name: vars(self)[name] for name in AuditExtent.__dataclass_fields__}
        for name, value in checked(AuditExtent, extent).items():
            object.__setattr__(self, name, value)
