"""The options of an audit: as an object or by name, and what is refused before any work."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest
from peft import PeftModel
from planted import returning
from torch import nn

from loraguard import run_audit
from loraguard.audit import AuditExtent, AuditOptions
from loraguard.channels import JPEG
from loraguard.cli.flags import documented
from loraguard.commands import AuditSettings
from loraguard.data import DemoFaces
from loraguard.defenses import Disrupting, RandomNoise

SMALL: dict[str, Any] = {"defenses": Disrupting(0.1, 1), "patches": {"standard": None}, "disable_tqdm": True}


def test_an_object_and_keywords_say_the_same(model: PeftModel) -> None:
    """And a keyword overrides the object, which stays as it was."""
    faces, options = DemoFaces(3, size=16), AuditOptions(**SMALL, seeds=[1])
    by_name, by_object = run_audit(model, faces, **SMALL, seeds=[1]), run_audit(model, faces, options)
    assert by_object.to_dict() == by_name.to_dict()
    other = run_audit(model, faces, options, budgets=[0.05])
    assert {one.treatment.eps for one in other.situations} >= {0.05, 0.1}
    assert options.budgets == ()


def test_what_is_given_is_named() -> None:
    photos = DemoFaces(2, size=16)
    options = AuditOptions(defenses={"a": Disrupting(), "theirs": photos}, patches={}, channels=("jpeg:75",))
    assert options.perturbed == {"theirs": photos}
    assert options.channels == {"jpeg:75": JPEG(75)}
    own = {"jpeg:75": JPEG(75), "jpeg": JPEG(50), "a: b": JPEG(50)}  # what it is, and what is no spec
    assert AuditOptions(defenses=Disrupting(), patches={}, channels=own).channels == own
    assert list(AuditOptions(defenses=RandomNoise(0.1), patches={}).defenses) == ["randomnoise"]


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"seeds": []}, ValueError, r"seeds=\(\) must have at least 1 item"),
        ({"seeds": [-1]}, ValueError, r"seeds\[0\]=-1 must be greater than or equal to 0"),
        ({"steps": [0]}, ValueError, r"steps\[0\]=0 must be greater than or equal to 1"),
        ({"budgets": [-0.1]}, ValueError, r"budgets\[0\]=-0.1 must be greater than 0"),
        ({"batch_size": 0}, ValueError, r"batch_size=0 must be greater than or equal to 1"),
        ({"checks": True}, ValueError, r"checks=True must be a whole number"),
        ({"success": "psnr:20"}, ValueError, r"success='psnr:20' must be METRIC:NUMBER"),
        ({"success": "lpips:0.1"}, ValueError, r"needs lpips="),
        ({"channels": ["jpg:75"]}, ValueError, r"Did you mean 'jpeg'"),
        ({"defenses": {"none": Disrupting()}}, ValueError, r"defenses: the name 'none' is taken"),
        ({"defenses": {"Noise": Disrupting()}}, ValueError, r"defenses: the name 'Noise' is taken, looks like one"),
        *(
            ({"defenses": {"d": returning(abs, eps)}}, ValueError, r"'d' has eps=.*; expected the largest change")
            for eps in (math.nan, math.inf, -0.05, 3)
        ),
        ({"channels": {"none": JPEG(75)}}, ValueError, r"channels: the name 'none' is taken"),
        ({"channels": {"jpeg:70": JPEG(95)}}, ValueError, r"channels: 'jpeg:70' is JPEG\(quality=70.* and not JPEG\(q"),
        ({"generators": {"generator": nn.Identity()}}, ValueError, r"patches: the name 'generator' is taken"),
        (
            {"generators": {"untouched\u200b": nn.Identity()}},
            ValueError,
            r"patches: the name 'untouched.u200b' is taken",
        ),
        ({"others": {" untouched": nn.Identity()}}, ValueError, r"patches: the name ' untouched' is taken"),
        ({"no_leak_only": ["pgd"]}, ValueError, r"no_leak_only names \['pgd'\]; the defenses are \['disrupting'\]"),
        ({"defenses": 3}, TypeError, r"3"),
        ({"defences": Disrupting()}, TypeError, r"'defences'"),
    ],
)
def test_what_cannot_be(change: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        AuditOptions(**{**SMALL, **change})


@pytest.mark.parametrize("options", [AuditExtent, AuditOptions, AuditSettings])
def test_every_option_is_documented(options: type) -> None:
    assert documented(options).keys() == {one.name for one in fields(options)}
