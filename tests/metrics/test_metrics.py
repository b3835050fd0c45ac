"""Metrics and intervals against scikit-image, SciPy, and the packages of LPIPS' and FID's authors."""

import copy
import hashlib
import importlib.util
import sys
import warnings
from pathlib import Path

import lpips as published_lpips
import numpy as np
import pytest
import pytorch_fid.inception
import scipy.linalg
import scipy.stats
import skimage.metrics
import torch
from safetensors.torch import save_file
from torch import nn
from torchmetrics.functional.image.lpips import _NoTrainLpips
from torchvision.models import AlexNet, alexnet, inception_v3

from loraguard.metrics import (
    LPIPS,
    Inception,
    defense_succeeds,
    estimate,
    frechet_distance,
    masked_squared_error,
    mean_interval,
    mean_squared_error,
    perceptual,
    psnr,
    ssim,
)
from loraguard.weights import load_published


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    smooth = torch.nn.functional.interpolate(torch.rand(5, 3, 6, 6), 32, mode="bicubic").clamp(0, 1) * 2 - 1
    return (smooth + 0.1 * torch.randn_like(smooth)).clamp(-1, 1), smooth


def test_mse_and_dsr_against_numpy(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    preds, target = pair
    scales = torch.tensor([0.0, 1.0, 2.0, 5.0, 9.0]).view(5, 1, 1, 1)
    preds = target + (preds - target) * scales
    expected = np.square(preds.double().numpy() - target.double().numpy()).mean((1, 2, 3))
    np.testing.assert_allclose(mean_squared_error(preds, target).numpy(), expected, rtol=1e-5)
    assert defense_succeeds(preds, target).tolist() == (expected > 0.05).astype(float).tolist()
    assert 0 < defense_succeeds(preds, target).sum() < 5


def test_masked_error_against_a_loop(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    preds, target = pair
    photos = target + torch.tensor([0.0, 0.1, 0.15, 0.25, 0.5]).view(5, 1, 1, 1) * torch.rand(5, 3, 32, 32)
    expected = []
    for i in range(5):
        squares = [
            ((preds[i, :, y, x] - target[i, :, y, x]) ** 2).sum().item() / 3
            for y in range(32)
            for x in range(32)
            if (target[i, :, y, x] - photos[i, :, y, x]).abs().sum() > 0.5
        ]
        expected.append(np.mean(squares) if squares else 0.0)
    assert masked_squared_error(preds, target, photos).tolist() == pytest.approx(expected, rel=1e-5)
    assert expected[:2] == [0, 0]
    assert min(expected[3:]) > 0


def test_a_mask_that_is_everywhere_is_the_plain_error(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    preds, target = pair
    assert torch.allclose(masked_squared_error(preds, target, target + 1), mean_squared_error(*pair))


@pytest.mark.parametrize("shape", [(5, 3, 16, 16), (1, 3, 32, 32)])
def test_a_mask_needs_photos_of_the_outputs_size(pair: tuple[torch.Tensor, torch.Tensor], shape: tuple) -> None:
    with pytest.raises(ValueError, match=rf"outputs' size.*images \({shape[0]}, 3"):
        masked_squared_error(*pair, torch.zeros(shape))


def test_psnr_and_ssim_against_scikit_image(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    for i, (mine_psnr, mine_ssim) in enumerate(zip(psnr(*pair), ssim(*pair), strict=True)):
        a, b = ((images[i].permute(1, 2, 0).double().numpy() + 1) / 2 for images in pair)
        assert mine_psnr.item() == pytest.approx(skimage.metrics.peak_signal_noise_ratio(b, a, data_range=1), rel=1e-5)
        theirs = skimage.metrics.structural_similarity(
            a, b, data_range=1, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert mine_ssim.item() == pytest.approx(theirs, abs=1e-4)


def test_equal_images() -> None:
    images = torch.rand(3, 3, 16, 16)
    assert torch.isinf(psnr(images, images)).all()
    assert estimate(psnr(images, images)).mean is None
    assert torch.allclose(ssim(images, images), torch.ones(3), atol=1e-4)


def test_one_equal_image_does_not_make_a_row_equal() -> None:
    values = estimate(torch.tensor([float("inf"), 12.0, 14.0]))
    assert values.mean == 13
    assert values.n == 3
    assert values.method.endswith("1 equal images left out")


def test_interval_of_a_mean_against_numpy() -> None:
    """Bootstrap-t, resample by resample in a loop; other draws move an end by less than six of its deviations."""
    draws = np.random.default_rng(0)
    values = draws.exponential(3, 60)
    unit = values.std(ddof=1) / 60**0.5
    scores = []
    for _ in range(20_000):
        again = draws.choice(values, 60)
        scores.append((again.mean() - values.mean()) / (again.std(ddof=1) / 60**0.5))
    low, high = np.quantile(scores, [0.025, 0.975])
    mine = estimate(torch.from_numpy(values), resamples=20_000)
    assert mine.method == "bootstrap-t, 20000 resamples"
    assert mine.low == pytest.approx(values.mean() - unit * max(high, scipy.stats.t.ppf(0.975, 59)), abs=0.15 * unit)
    assert mine.high == pytest.approx(values.mean() - unit * low, abs=0.35 * unit)


def test_interval_is_never_narrower_than_students() -> None:
    values = torch.tensor([0.1, 0.2, 0.4, 0.8], dtype=torch.float64)
    theirs = scipy.stats.t.interval(0.95, 3, values.mean(), scipy.stats.sem(values))
    mine = mean_interval(values - 1, confidence=0.95, resamples=500, seed=0)
    assert mine[0] <= theirs[0] - 1 + 1e-9
    assert mine[1] >= theirs[1] - 1 - 1e-9


@pytest.mark.parametrize("k", [0, 3, 200])
def test_interval_of_a_share_against_scipy(k: int) -> None:
    mine = estimate((torch.arange(200) < k).float(), share=True)
    theirs = scipy.stats.binomtest(k, 200).proportion_ci(0.95, "exact")
    assert (mine.low, mine.high) == pytest.approx((theirs.low, theirs.high))
    assert mine.method == "Clopper-Pearson"


@pytest.mark.parametrize("values", [torch.zeros(9), torch.tensor([0.0653])])
def test_no_spread_no_interval(values: torch.Tensor) -> None:
    """An interval of no width would be a certainty that nobody has."""
    found = estimate(values)
    assert (found.low, found.high) == (None, None)
    assert found.method.startswith("none: ")


@pytest.mark.parametrize("n", [5, 20, 100])
@pytest.mark.parametrize("skewed", [False, True])
def test_intervals_cover_the_truth_as_often_as_they_say(n: int, skewed: bool) -> None:
    """Where the truth is held in 93%, as for 5 skewed values, 400 draws give less than 89% once in a thousand times."""
    stream = torch.Generator().manual_seed(n)
    hits = 0
    for draw in range(400):
        values = torch.rand(n, generator=stream, dtype=torch.float64).clamp_min(1e-12)
        values = -values.log() if skewed else values
        interval = estimate(values, resamples=400, seed=draw)
        hits += interval.low <= (1.0 if skewed else 0.5) <= interval.high
    assert hits / 400 >= 0.89


def test_intervals_of_shares_cover_the_truth() -> None:
    """Exactly: summed over every outcome of 20 images."""
    for p in (0.02, 0.3, 0.5):
        outcomes = [(k, estimate((torch.arange(20) < k).float(), share=True)) for k in range(21)]
        held = sum(scipy.stats.binom.pmf(k, 20, p) for k, one in outcomes if one.low <= p <= one.high)
        assert held >= 0.95


@pytest.fixture(scope="module")
def backbone() -> AlexNet:
    with torch.device("meta"):
        network = alexnet()
    with torch.random.fork_rng():
        torch.manual_seed(5)
        features = network.features.to_empty(device="cpu")
        for layer in features:
            if isinstance(layer, nn.Conv2d):
                layer.reset_parameters()
    for name, parameter in network.classifier.named_parameters():  # LPIPS does not use it: one zero in the file
        network.classifier.get_submodule(name[0]).register_parameter(
            name[2:], nn.Parameter(torch.zeros(1).expand(parameter.shape))
        )
    return network


@pytest.fixture
def images() -> torch.Tensor:
    """Two sets of images, (2, 3, 3, 64, 64), noise over slopes."""
    return (torch.rand(2, 3, 3, 64, 64) + torch.linspace(-1, 0, 64)).clamp(-1, 1)


def lpips_by_formula(backbone: AlexNet, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Arxiv 1801.03924, eq. 1 with squares inside the weights, as the authors' code has it, in float64.

    The features are those after each of AlexNet's five convolutions; shift and scale are ImageNet's mean and standard
    deviation for images in [-1, 1].
    """
    file = Path(published_lpips.__file__).parent / "weights" / "v0.1" / "alex.pth"
    weights = [one.double() for one in torch.load(file, map_location="cpu", weights_only=True).values()]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    layers, (x, y) = (
        copy.deepcopy(backbone.features).double(),
        ((one.double() - (2 * mean - 1).view(3, 1, 1)) / (2 * std).view(3, 1, 1) for one in (x, y)),
    )
    total = torch.zeros(len(x), dtype=torch.float64)
    for layer in layers[:12]:
        x, y = layer(x), layer(y)
        if isinstance(layer, nn.ReLU):
            units = [one / (torch.linalg.vector_norm(one, dim=1, keepdim=True) + 1e-10) for one in (x, y)]
            total = total + ((units[0] - units[1]).square() * weights.pop(0)).sum(1).mean((1, 2))
    assert not weights
    return total


@pytest.mark.parametrize(("number", "size"), [(1, 31), (3, 64), (2, 100)])
def test_lpips_against_its_formula_and_torchmetrics(number: int, size: int, backbone: AlexNet, tmp_path: Path) -> None:
    """In float64, where other kernels are 1e-12 apart; in float32 within the rounding of five convolutions.

    Each sums up to 3,456 products, so that features are off by 5 * 3456 ** 0.5 * 2 ** -24, 2e-5 of themselves, and what
    is left of their difference, about half of them, by 1e-4.
    """
    torch.save(backbone.state_dict(), tmp_path / "alexnet.pth")
    preds, target = torch.rand(2, number, 3, size, size) * 2 - 1
    mine = LPIPS.load(tmp_path / "alexnet.pth")
    distance, expected = mine(preds, target), lpips_by_formula(backbone, preds, target)
    assert distance.shape == (number,)
    assert distance.min() > 0
    assert torch.allclose(distance.double(), expected, rtol=1e-4)
    wide = copy.deepcopy(mine.network).double()(preds.double(), target.double()).flatten()
    assert torch.allclose(wide, expected, rtol=1e-6)  # the package's shift is rounded to float32

    theirs = _NoTrainLpips(net="alex", pnet_rand=True).double()  # what figures were made with before
    theirs.net.load_state_dict(mine.network.net.state_dict())
    before = theirs(preds.double(), target.double()).flatten()
    assert torch.allclose(wide, before, rtol=1e-6)  # it adds 1e-8 to the sums of squares, which are 0.1 or more


def test_lpips_leaves_the_world_as_it_was(backbone: AlexNet, capfd: pytest.CaptureFixture, monkeypatch) -> None:
    """No number drawn, no word said, nothing downloaded or unpickled, the backbone neither changed nor shared."""
    opened = []

    def load(*args: object, weights_only: bool | None = None, **more: object) -> object:
        opened.append(weights_only)
        return torch_load(*args, weights_only=weights_only, **more)

    torch_load, drawn = torch.load, torch.get_rng_state()
    monkeypatch.setattr(torch, "load", load)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mine = LPIPS(backbone).train()
    assert torch.equal(torch.get_rng_state(), drawn)
    assert capfd.readouterr() == ("", "")
    assert opened == [True]
    assert not any(module.training for module in mine.modules())
    assert not any(parameter.requires_grad for parameter in mine.parameters())
    assert all(one.device.type == "cpu" for one in (*mine.parameters(), *mine.buffers()))
    kept = backbone.features[0].weight.detach().clone()
    mine.network.net.slice1[0].weight.zero_()
    assert torch.equal(backbone.features[0].weight, kept)


def test_lpips_is_imported_when_one_is_made(backbone: AlexNet, monkeypatch: pytest.MonkeyPatch) -> None:
    """It brings SciPy, which is not needed before; here the module is loaded once more, where there is no lpips."""
    monkeypatch.setitem(sys.modules, "lpips", None)
    spec = importlib.util.spec_from_file_location("perceptual_again", perceptual.__file__)
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    with pytest.raises(ImportError, match="lpips"):
        again.LPIPS(backbone)


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled", "ignore:Error detected in SqrtBackward0")
def test_lpips_has_a_gradient_where_features_are_all_0(backbone: AlexNet, images: torch.Tensor) -> None:
    """Half of each image is flat there, below what any unit answers to; the authors' package has none."""
    blind, (preds, target) = copy.deepcopy(backbone), images
    with torch.no_grad():
        blind.features[0].weight.sub_(blind.features[0].weight.mean((2, 3), keepdim=True))
        blind.features[0].bias.fill_(-0.05)
    preds[..., 32:] = 0
    mine = LPIPS(blind)
    with torch.no_grad():
        seen = mine.network.net(mine.network.scaling_layer(preds))[0]
    assert 0 < (seen.amax(1) < 1e-9).float().mean() < 1

    preds.requires_grad_()
    with torch.autograd.detect_anomaly(check_nan=True):
        (found,) = torch.autograd.grad(mine(preds, target).sum(), preds)
    wide = preds.detach().double().requires_grad_()
    expected, ours = (
        torch.autograd.grad(distance.sum(), wide)[0]
        for distance in (
            lpips_by_formula(blind, wide, target),
            copy.deepcopy(mine.network).double()(wide, target.double()),
        )
    )
    assert expected.abs().max() > 0
    assert torch.allclose(ours, expected, rtol=1e-4, atol=1e-6 * expected.abs().max().item())
    assert (found - expected).abs().mean() < 0.01 * expected.abs().mean()

    for part in mine.network.net.children():
        part._forward_hooks.clear()
    with pytest.raises(RuntimeError, match="SqrtBackward0"), torch.autograd.detect_anomaly(check_nan=True):
        torch.autograd.grad(mine(preds, target).sum(), preds)


def test_lpips_refuses_images_that_alexnet_cannot_pool(backbone: AlexNet) -> None:
    with pytest.raises(ValueError, match=r"31 pixels a side or more, got \(1, 3, 40, 30\)"):
        LPIPS(backbone)(torch.zeros(1, 3, 40, 30), torch.zeros(1, 3, 40, 30))
    with pytest.raises(RuntimeError):
        LPIPS(backbone).network(torch.zeros(1, 3, 40, 30), torch.zeros(1, 3, 40, 30))


def test_lpips_weights_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"checkpoints/alexnet-owt-7be5be79\.pth .*nothing may be .* path="):
        LPIPS.load(local_files_only=True)
    torch.save(nn.Linear(1, 1), tmp_path / "object.pth")
    with pytest.raises(ValueError, match="no whole state dict of torchvision's AlexNet, or objects beside tensors"):
        LPIPS.load(tmp_path / "object.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"12345")
    with pytest.raises(ValueError, match="no whole state dict of torchvision's AlexNet"):
        LPIPS.load(tmp_path / "cut.safetensors")


def test_weights_are_downloaded_once_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a file's URL, as there is no network here."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "cache"))
    published, here = nn.Linear(2, 1), nn.Linear(2, 1)
    torch.save(published.state_dict(), tmp_path / "layer")
    digest = hashlib.sha256((tmp_path / "layer").read_bytes()).hexdigest()
    right, wrong = (tmp_path / f"layer-{prefix}.pth" for prefix in (digest[:8], "00000000"))
    for url in (right, wrong):
        url.write_bytes((tmp_path / "layer").read_bytes())
    file = load_published(here, right.as_uri(), None, name="a layer")
    assert file == tmp_path / "cache" / "checkpoints" / right.name
    assert torch.equal(here.weight, published.weight)
    with pytest.raises(OSError, match=r"cannot be downloaded \(invalid hash value.*pass path="):
        load_published(here, wrong.as_uri(), None, name="a layer")
    right.unlink()
    load_published(here, right.as_uri(), None, name="a layer")
    save_file({"weight": torch.ones(1, 2), "bias": torch.ones(1)}, tmp_path / "mine.safetensors")
    load_published(here, right.as_uri(), tmp_path / "mine.safetensors", name="a layer")
    assert here.bias.item() == 1
    with pytest.raises(OSError, match=r"gone-12345678\.pth cannot be downloaded .*pass path="):
        load_published(here, (tmp_path / "gone-12345678.pth").as_uri(), None, name="a layer")


def test_frechet_distance_against_the_closed_form() -> None:
    stream = np.random.default_rng(2)
    real = stream.normal(size=(3000, 8)) @ stream.normal(size=(8, 8)) + 50
    fake = stream.normal(size=(2100, 8)) @ stream.normal(size=(8, 8)) + 51
    (m1, c1), (m2, c2) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (real, fake))
    expected = np.square(m1 - m2).sum() + np.trace(c1 + c2 - 2 * scipy.linalg.sqrtm(c1 @ c2).real)
    assert frechet_distance(torch.tensor(real), torch.tensor(fake)) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(torch.tensor(real), torch.tensor(real)) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_fewer_images_than_features() -> None:
    """The trace of (C1 C2)^(1/2) is then the nuclear norm of the centred features' product."""
    real, fake = torch.randn(12, 40), torch.randn(9, 40) * 2
    (m1, a), (m2, b) = ((x.mean(0), (x - x.mean(0)) / (len(x) - 1) ** 0.5) for x in (real.double(), fake.double()))
    expected = (m1 - m2).square().sum() + a.square().sum() + b.square().sum() - 2 * torch.linalg.svdvals(a @ b.T).sum()
    assert frechet_distance(real, fake) == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("real", "fake", "words"),
    [
        (torch.zeros(1, 4), torch.zeros(5, 4), "at least 2 images a set, got 1 and 5"),
        (torch.zeros(5, 4), torch.zeros(5, 3), r"got \(5, 4\) and \(5, 3\)"),
        (torch.zeros(5, 4, 2), torch.zeros(5, 4, 2), r"Expected features \(N, D\)"),
        (torch.zeros(5, 4), torch.full((5, 4), float("nan")), "not finite"),
    ],
)
def test_features_without_a_distance(real: torch.Tensor, fake: torch.Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        frechet_distance(real, fake)


def test_inception_against_pytorch_fid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With made-up weights in torch's cache, where both look."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"pt_inception-2015-12-05-6726825d\.pth .*nothing may be downloaded"):
        Inception.load(local_files_only=True)
    (tmp_path / "checkpoints").mkdir()
    network = inception_v3(num_classes=1008, aux_logits=False, init_weights=False)
    torch.save(network.state_dict(), tmp_path / "checkpoints" / "pt_inception-2015-12-05-6726825d.pth")
    images = torch.rand(2, 3, 64, 48)
    mine = Inception.load().train()
    with torch.no_grad():
        expected = pytorch_fid.inception.InceptionV3().eval()(images)[0].flatten(1)
        assert torch.allclose(mine(2 * images - 1), expected, atol=1e-5 * expected.abs().max().item())
    assert not any(parameter.requires_grad for parameter in mine.parameters())
