"""When a defense counts as having succeeded: by the figure that somebody chooses."""

import functools

import pytest
import torch
from peft import get_peft_model
from setups import Flip, made, rows, situation
from torch import Tensor, nn

from loraguard import GatedLoraConfig
from loraguard.audit import run_audit, verdict
from loraguard.audit.checks import examine
from loraguard.audit.success import Success
from loraguard.data import DemoFaces
from loraguard.generators import DemoEditor


class Encoder(nn.Module):
    """Embeddings that are the colours' means."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) + 1


@functools.cache
def audited(success: str) -> object:
    torch.manual_seed(0)
    model = get_peft_model(DemoEditor(conv_dim=4, num_blocks=1), GatedLoraConfig(r=2))
    return run_audit(
        model, DemoFaces(8, size=16), defenses=Flip(0.1), patches={}, identity=Encoder(), success=success,
        disable_tqdm=True,
    )  # fmt: skip


@pytest.mark.parametrize("success", ["mse:0.001", "ssim:0.9", "identity:0.99", "noise:0.5"])
def test_shares_are_counted_from_the_figures_themselves(success: str) -> None:
    result = audited(success)
    metric, number = success.split(":")
    for row in result.situations:
        values = row.values["mse" if metric == "noise" else metric]
        threshold = float(number)
        if metric == "noise":
            threshold = result["untouched", "noise"].values["mse"].double().quantile(0.5).item()
        spoilt = values < threshold if metric in ("ssim", "identity") else values > threshold
        assert torch.equal(row.values["dsr"], spoilt.to(row.values["dsr"]))
    assert result.settings["success"] == success


def test_noise_spoils_as_many_photos_as_the_quantile_leaves() -> None:
    result = audited("noise:0.5")
    assert result["untouched", "noise"].values["dsr"].sum() == 4  # of 8, half are over their own median


def test_another_choice_needs_nothing_to_be_computed_again() -> None:
    figures = [audited(choice)["untouched", "no-leak"].values["mse"] for choice in ("mse:0.001", "ssim:0.9")]
    assert torch.equal(*figures)


@pytest.mark.parametrize("text", ["psnr:20", "mse", "mse:x", "mse:-1", "noise:2", "ssim:nan", ""])
def test_what_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="success="):
        Success(text)


@pytest.mark.parametrize("success", ["lpips:0.3", "identity:0.5"])
def test_a_figure_that_nobody_measures_is_refused(success: str) -> None:
    model = get_peft_model(DemoEditor(conv_dim=4, num_blocks=1), GatedLoraConfig(r=2))
    with pytest.raises(ValueError, match=f"success='{success}' needs {success.split(':')[0]}="):
        run_audit(model, DemoFaces(2, size=16), defenses=Flip(), patches={}, success=success)


def test_a_threshold_that_cannot_be_reached_is_said_to_be_one() -> None:
    """As on an autoencoder of CelebA: PGD raises the MSE from 0.00007 to 0.017, 240 times, and none is over 0.05."""
    low = {"noise": 0.00007, "clean": 0.0}
    situations = [
        situation("untouched", "none", "clean", 0.0, mse=low["clean"], n=40),
        situation("untouched", "noise", "noise", 0.0, mse=low["noise"], n=40),
        situation("untouched", "pgd", "no-leak", 0.0, mse=0.017, n=40),
    ]
    result = made(situations)
    result.checks = examine(result)
    assert "threshold-out-of-reach" in result.flags(result["untouched", "no-leak"])
    assert verdict(result)[0].startswith("The threshold of success says nothing about this generator: pgd spoils 0.0%")
    weak = made([*situations[:2], situation("untouched", "pgd", "no-leak", 0.0, mse=0.0001, n=40)])
    weak.checks = examine(weak)
    assert verdict(weak)[0].startswith("No protection to speak of")
    strong = made(rows("untouched", {"pgd": (0.9,)}, n=40))
    strong.checks = examine(strong)
    assert "threshold-out-of-reach" not in strong.flags(strong["untouched", "no-leak"])
