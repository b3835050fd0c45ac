"""Callables that are no Defense, taken as one."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from loraguard.defenses import Disrupting, Fittable, Mixture, RandomNoise, WorstOf, as_defense


@dataclass(frozen=True)
class Darker:
    """A plain dataclass."""

    eps: float = 0.1
    steps: int = 2
    step_size: float | None = 0.05

    def __call__(self, generator: nn.Module, images: Tensor, condition: dict, clean: Tensor | None = None) -> Tensor:
        return (images - self.eps).clamp(-1, 1)


def brighter(generator: nn.Module, images: Tensor, condition: dict, clean: Tensor | None = None) -> Tensor:
    """A function."""
    return (images + 0.2).clamp(-1, 1)


brighter.eps = 0.2  # type: ignore[attr-defined]


class Learnt:
    """With `fit`, and no base."""

    eps, fitted = 0.5, None

    def fit(self, generators: Any, photos: Any, conditions: Any = None, *, disable_tqdm: bool = False) -> "Learnt":
        other = Learnt()
        other.fitted = 1 / len(photos)
        return other

    def __call__(self, generator: nn.Module, images: Tensor, condition: dict, clean: Tensor | None = None) -> Tensor:
        return images + self.fitted


def test_any_callable_with_a_budget_is_a_defense() -> None:
    images = torch.zeros(2, 3, 4, 4)
    function, plain = as_defense(brighter), as_defense(Darker())
    assert function(nn.Identity(), images, {}).unique().tolist() == pytest.approx([0.2])
    assert (function.eps, function.steps, function.restarts, function.passes) == (0.2, None, 1, 0)
    assert function.budget is None
    assert function.varied(eps=0.1) is None
    assert function.settings() == {"class": "function", "name": "brighter"}
    assert (plain.eps, plain.steps, plain.step_size, plain.passes) == (0.1, 2, 0.05, 4)
    assert plain.settings() == {"class": "Darker", "eps": 0.1, "steps": 2, "step_size": 0.05}
    varied = plain.varied(eps=0.2)
    assert varied is not None
    assert varied.settings() == {"class": "Darker", "eps": 0.2, "steps": 2, "step_size": 0.05 * 0.2 / 0.1}
    assert as_defense(plain) is plain
    for one in (Mixture((brighter,)), WorstOf((brighter, Darker()))):
        assert one.eps == 0.2
        assert not one.must_be_fitted
        assert one(nn.Identity(), images, {}).unique().tolist() == pytest.approx([0.2])


def test_a_callable_with_fit_is_fittable() -> None:
    one = as_defense(Learnt())
    assert isinstance(one, Fittable)
    assert one.must_be_fitted
    assert Mixture((RandomNoise(), Learnt())).must_be_fitted
    fitted = one.fit(nn.Identity(), range(4))  # type: ignore[arg-type]
    assert not fitted.must_be_fitted
    assert fitted(nn.Identity(), torch.zeros(1, 3, 2, 2), {}).unique().tolist() == [0.25]


@pytest.mark.parametrize(
    "wrong", [3, "disrupting", Disrupting, lambda *arguments: None], ids=["number", "name", "class", "function"]
)
def test_what_is_no_defense_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="is no defense: expected a Defense, or a callable"):
        as_defense(wrong)
