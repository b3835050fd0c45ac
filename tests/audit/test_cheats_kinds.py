"""Further members of known kinds of cheats: an edit that is made weakly, a figure that is no number."""

from __future__ import annotations

import pytest
from planted import Wrapped, audit, flags
from torch import Tensor, nn


@pytest.mark.usefixtures("probed")
def test_an_edit_that_is_made_weakly_is_flagged() -> None:
    """E. A part of the photo is kept: what a perturbation does to the rest counts less, and so does the edit."""
    networks: dict[str, nn.Module] = {
        f"{share:.0%}": Wrapped(lambda x, edit, share=share: share * edit(x) + (1 - share) * x)
        for share in (0.85, 0.97)
    }
    result = audit(generators=networks, n=4)
    assert {name for name in networks if "does-not-edit" in flags(result, name)} == {"85%"}


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
