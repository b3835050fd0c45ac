"""Further members of known kinds of cheats: an edit that is made weakly, a figure that is no number."""

from __future__ import annotations

import pytest
import torch
from limits import short_probes
from peft import get_peft_model
from planted import Editor, Wrapped, audit, flags
from torch import Tensor, nn

from loraguard import GatedLoraConfig
from loraguard.defenses import RandomNoise

CONFIG = GatedLoraConfig(r=1, target_modules="(.*\\.)?conv")


@pytest.mark.usefixtures("probed")
def test_an_edit_that_is_made_weakly_is_flagged() -> None:
    """E. A part of the photo is kept: what a perturbation does to the rest counts less, and so does the edit."""
    networks: dict[str, nn.Module] = {
        f"{share:.0%}": Wrapped(lambda x, edit, share=share: share * edit(x) + (1 - share) * x)
        for share in (0.85, 0.97)
    }
    result = audit(generators=networks, n=4)
    assert {name for name in networks if "does-not-edit" in flags(result, name)} == {"85%"}


@pytest.mark.usefixtures("probed")
def test_what_gives_photos_back_is_no_edit_whatever_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """E. As another generator, or at another size; and one that gives the same for any photo."""
    short_probes(monkeypatch)

    class Idle(Editor):
        def forward(self, images: Tensor, c: Tensor) -> Tensor:
            return images * 1.0

    class Grey(Editor):
        def forward(self, images: Tensor, c: Tensor) -> Tensor:
            return 0 * images + 0.3

    def twice(images: Tensor) -> Tensor:
        return nn.functional.interpolate(images, scale_factor=2.0)

    noise = RandomNoise(0.1)
    result = audit(noise, others={"idle": Idle(), "grey": Grey(), "other": Editor()}, n=4)
    flagged = {one.generator for one in result.checks if one.name == "does-not-edit" and not one.passed}
    assert flagged == {"idle", "grey"}

    large = get_peft_model(Wrapped(lambda x, edit: twice(edit(x)), Editor()), CONFIG)
    networks = {"idle": Wrapped(lambda x, edit: twice(x)), "twin": Wrapped(lambda x, edit: twice(edit(x)))}
    edits = {"conditions": lambda labels: {"paint": {"c": torch.zeros(len(labels), 1)}}}
    found = audit(noise, model=large, generators=networks, n=4, **edits)
    assert {name for name in ("untouched", *networks) if "does-not-edit" in flags(found, name)} == {"idle"}


@pytest.mark.parametrize("metric", ["identity", "features"])
def test_an_encoder_that_tells_nothing_apart_is_refused(metric: str) -> None:
    """H. It would say that everybody is the same person, or that sets of outputs are equal."""

    class Blind(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.full((len(images), 4), 2.0)

    with pytest.raises(ValueError, match=f"The encoder of {metric} gives the same for 4 different photos"):
        audit(n=4, **{metric: Blind()})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_figure_that_is_no_number_ends_the_audit(value: float) -> None:
    """H. An encoder that gives none for a single output would hide that photo, or all of them, in a mean."""

    class Encoder(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            found = images.mean((2, 3))
            found[0] = value
            return found

    with pytest.raises(FloatingPointError, match=r"The identity of 1 of 4 outputs of 'untouched' is no number \(nan"):
        audit(identity=Encoder(), n=4)
