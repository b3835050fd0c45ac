"""Metrics and intervals against scikit-image and SciPy."""

import numpy as np
import pytest
import scipy.stats
import skimage.metrics
import torch

from loraguard.metrics import defense_succeeds, estimate, mean_squared_error, psnr, ssim


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    smooth = torch.nn.functional.interpolate(torch.rand(5, 3, 6, 6), 32, mode="bicubic").clamp(0, 1) * 2 - 1
    return (smooth + 0.1 * torch.randn_like(smooth)).clamp(-1, 1), smooth


def test_mse_and_dsr_against_numpy(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    outputs, reference = pair
    scales = torch.tensor([0.0, 1.0, 2.0, 5.0, 9.0]).view(5, 1, 1, 1)
    outputs = reference + (outputs - reference) * scales
    expected = np.square(outputs.numpy() - reference.numpy()).mean((1, 2, 3))
    np.testing.assert_allclose(mean_squared_error(outputs, reference).numpy(), expected, rtol=1e-6)
    assert defense_succeeds(outputs, reference).tolist() == (expected > 0.05).astype(float).tolist()
    assert 0 < defense_succeeds(outputs, reference).sum() < 5


def test_psnr_and_ssim_against_scikit_image(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    for i, (mine_psnr, mine_ssim) in enumerate(zip(psnr(*pair), ssim(*pair), strict=True)):
        a, b = ((images[i].permute(1, 2, 0).double().numpy() + 1) / 2 for images in pair)
        assert mine_psnr.item() == pytest.approx(skimage.metrics.peak_signal_noise_ratio(b, a, data_range=1), rel=1e-5)
        theirs = skimage.metrics.structural_similarity(
            a, b, data_range=1, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert mine_ssim.item() == pytest.approx(theirs, abs=1e-5)


def test_equal_images() -> None:
    images = torch.rand(3, 3, 16, 16)
    assert torch.isinf(psnr(images, images)).all()
    assert estimate(psnr(images, images)).mean is None
    assert torch.allclose(ssim(images, images), torch.ones(3))


def test_one_equal_image_does_not_make_a_row_equal() -> None:
    values = estimate(torch.tensor([float("inf"), 12.0, 14.0]))
    assert values.mean == 13
    assert values.n == 3
    assert values.method.endswith("1 equal images left out")


def test_interval_of_a_mean_against_scipy() -> None:
    values = torch.randn(150, dtype=torch.float64) * 3 + 1
    mine = estimate(values, resamples=5000)
    theirs = scipy.stats.bootstrap((values.numpy(),), np.mean, method="percentile", n_resamples=5000, rng=1)
    assert mine.n == 150
    assert mine.mean == pytest.approx(values.mean().item())
    assert mine.low == pytest.approx(theirs.confidence_interval.low, abs=0.05)
    assert mine.high == pytest.approx(theirs.confidence_interval.high, abs=0.05)


@pytest.mark.parametrize("k", [0, 200])
def test_interval_of_an_unanimous_share_against_scipy(k: int) -> None:
    mine = estimate(torch.full((200,), float(k > 0)), share=True)
    theirs = scipy.stats.binomtest(k, 200).proportion_ci(0.95, "exact")
    assert (mine.low, mine.high) == pytest.approx((theirs.low, theirs.high))
    assert mine.method == "Clopper-Pearson"


def test_a_constant_that_is_no_share_has_an_interval_of_no_width() -> None:
    assert (estimate(torch.zeros(9)).low, estimate(torch.zeros(9)).high) == (0, 0)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    stream = torch.Generator().manual_seed(3)
    hits = 0
    for draw in range(300):
        interval = estimate((torch.rand(100, generator=stream) < 0.3).float(), share=True, resamples=500, seed=draw)
        hits += interval.low <= 0.3 <= interval.high
    assert 0.90 <= hits / 300 <= 0.98
