"""The metrics as torchmetrics': over batches and processes they give what the functions give for all images at once."""

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchvision.models import alexnet

from loraguard import metrics
from loraguard.metrics import (
    LPIPS,
    DefenseSuccessRate,
    FrechetDistance,
    LearnedPerceptualSimilarity,
    MaskedSquaredError,
    MeanSquaredError,
    PeakSignalNoiseRatio,
    StructuralSimilarity,
)

SIDE = 32
PERCEPTUAL = LPIPS(alexnet())
CASES: dict[str, tuple[Callable[..., Metric], Callable[..., Tensor]]] = {
    "mse": (MeanSquaredError, metrics.mean_squared_error),
    "dsr": (DefenseSuccessRate, metrics.defense_succeeds),
    "dsr 0.3": (lambda **kwargs: DefenseSuccessRate(0.3, **kwargs), lambda p, t: metrics.defense_succeeds(p, t, 0.3)),
    "masked": (MaskedSquaredError, metrics.masked_squared_error),
    "psnr": (PeakSignalNoiseRatio, metrics.psnr),
    "ssim": (StructuralSimilarity, metrics.ssim),
    "lpips": (lambda **kwargs: LearnedPerceptualSimilarity(PERCEPTUAL, **kwargs), PERCEPTUAL),
}


@pytest.fixture
def images() -> list[Tensor]:
    """Outputs, targets, photos: seven of each, some equal to nothing, one output equal to its target."""
    preds, target, photos = (torch.rand(7, 3, SIDE, SIDE) * 2 - 1 for _ in range(3))
    preds = target + torch.linspace(0, 0.8, 7)[:, None, None, None] * (preds - target)
    return [preds, target, photos]


def given(name: str, images: list[Tensor], rows: slice) -> list[Tensor]:
    return [one[rows] for one in images[: 3 if name == "masked" else 2]]


def mean(values: Tensor) -> float:
    return values[~values.isinf()].double().mean().item()


def together(one: Metric, other: Metric) -> Metric:
    """The first, made to gather from the second as it would from another process."""
    states = iter([state for name in one._defaults for state in _states(other, name)])

    def gather(tensor: Tensor, group: Any) -> list[Tensor]:
        return [tensor, next(states)]

    one.dist_sync_fn, one.distributed_available_fn = gather, lambda: True
    return one


def _states(metric: Metric, name: str) -> list[Tensor]:
    value = getattr(metric, name)
    return [torch.cat(value)] if isinstance(value, list) else [value]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_batches_are_added_up(name: str, reduction: str, images: list[Tensor]) -> None:
    make, function = CASES[name]
    metric, truth = make(reduction=reduction), function(*given(name, images, slice(None)))
    first = metric(*given(name, images, slice(0, 3)))  # of the batch alone
    metric.update(*given(name, images, slice(3, 7)))
    if reduction == "none":
        assert torch.equal(first, truth[:3]) or torch.allclose(first, truth[:3], rtol=1e-5)
        torch.testing.assert_close(metric.compute(), truth, rtol=1e-5, atol=1e-6)
    else:
        assert first.item() == pytest.approx(mean(truth[:3]), rel=1e-5)
        assert metric.compute().item() == pytest.approx(mean(truth), rel=1e-5)
    metric.reset()
    metric.update(*given(name, images, slice(1, 2)))
    assert metric.compute().item() == pytest.approx(mean(truth[1:2]), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_processes_are_gathered(name: str, reduction: str, images: list[Tensor]) -> None:
    make, function = CASES[name]
    one, other = make(reduction=reduction), make(reduction=reduction)
    one.update(*given(name, images, slice(0, 2)))
    other.update(*given(name, images, slice(2, 7)))
    truth = function(*given(name, images, slice(None)))
    found = together(one, other).compute()
    if reduction == "none":
        torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-6)
    else:
        assert found.item() == pytest.approx(mean(truth), rel=1e-5)


def test_frechet_distance_over_batches_and_processes(images: list[Tensor]) -> None:
    features = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    truth = metrics.frechet_distance(features(images[0]), features(images[1]))
    one, other = FrechetDistance(features), FrechetDistance(features)
    one.update(images[0][:3], images[1][:2])  # not as many of each
    one.update(images[0][3:4], images[1][2:4])
    other.update(images[0][4:], images[1][4:])
    assert together(one, other).compute().item() == pytest.approx(truth, rel=1e-5, abs=1e-7)


def test_where_every_image_is_equal_psnr_is_infinite() -> None:
    metric = PeakSignalNoiseRatio()
    metric.update(torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8))
    assert torch.isinf(metric.compute())


def test_in_a_collection_and_a_pickle(images: list[Tensor]) -> None:
    collection = MetricCollection([MeanSquaredError(), DefenseSuccessRate(), StructuralSimilarity()])
    collection.update(images[0], images[1])
    found = pickle.loads(pickle.dumps(collection)).compute()
    assert found["MeanSquaredError"].item() == pytest.approx(mean(metrics.mean_squared_error(*images[:2])), rel=1e-5)
    assert sorted(found) == ["DefenseSuccessRate", "MeanSquaredError", "StructuralSimilarity"]


def test_mistakes_are_told() -> None:
    with pytest.raises(ValueError, match="reduction='sum' must be one of mean, none"):
        MeanSquaredError(reduction="sum")
    with pytest.raises(TypeError, match=r"needs the photos: update\(preds, target, images\)"):
        MaskedSquaredError()(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))
