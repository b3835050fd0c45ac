"""The paper's own figures (arXiv 2510.03747)."""

import pytest
import torch
from peft import get_peft_model
from torch import nn

from loraguard.tuner import GatedLoraConfig, GatedLoraLayer


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(256, 256, 3, padding=1, bias=False),
            nn.InstanceNorm2d(256, affine=True),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1, bias=False),
            nn.InstanceNorm2d(256, affine=True),
        )


def stargan() -> nn.Module:
    def block(conv: nn.Module, channels: int) -> list[nn.Module]:
        return [conv, nn.InstanceNorm2d(channels, affine=True), nn.ReLU()]

    down = [
        *block(nn.Conv2d(8, 64, 7, padding=3, bias=False), 64),
        *block(nn.Conv2d(64, 128, 4, stride=2, padding=1, bias=False), 128),
        *block(nn.Conv2d(128, 256, 4, stride=2, padding=1, bias=False), 256),
    ]
    up = [
        *block(nn.ConvTranspose2d(256, 128, 4, stride=2, padding=1, bias=False), 128),
        *block(nn.ConvTranspose2d(128, 64, 4, stride=2, padding=1, bias=False), 64),
        nn.Conv2d(64, 3, 7, padding=3, bias=False),
    ]
    return nn.Sequential(*down, *(Residual() for _ in range(6)), *up)


def attgan() -> nn.Module:
    down = [(3, 64), (64, 128), (128, 256), (256, 512), (512, 1024)]
    up = [(1037, 1024), (1536, 512), (512, 256), (256, 128), (128, 3)]
    return nn.ModuleList(
        [
            *(nn.Conv2d(i, o, 4, stride=2, padding=1) for i, o in down),
            *(nn.ConvTranspose2d(i, o, 4, stride=2, padding=1) for i, o in up),
        ]
    )


@pytest.mark.parametrize(
    ("generator", "layers", "r", "parameters"),
    [
        (stargan, 18, 8, 352_874),
        (stargan, 18, 16, 705_730),
        (attgan, 10, 8, 598_562),
        (attgan, 10, 16, 1_197_114),
    ],
)
def test_trainable_parameters(generator, layers: int, r: int, parameters: int) -> None:
    with torch.device("meta"):
        model = get_peft_model(generator(), GatedLoraConfig(r=r))
    assert sum(isinstance(module, GatedLoraLayer) for module in model.modules()) == layers
    assert model.get_nb_trainable_parameters()[0] == parameters


def test_a_residual_block_is_not_mistaken_for_its_norm() -> None:
    """PEFT takes names as endings, and the norms of the residual blocks end like convs of the trunk."""
    config = GatedLoraConfig()
    with torch.device("meta"):
        get_peft_model(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), Residual()), config)
    assert config.target_modules == r"0|1|2\.main\.0|2\.main\.3"
