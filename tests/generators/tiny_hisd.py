"""A small HiSD whose parameters are all random."""

import math

import torch
from torch import nn

from loraguard.generators import HiSD

TINY = {
    "size": 16,
    "encoder_channels": (4, 6, 8),
    "decoder_channels": (8, 6, 4),
    "extractor_channels": (4, 6, 8),
    "translator_channels": (4, 6, 4),
    "mapper_pre_channels": (5, 6),
    "mapper_post_channels": (6, 7),
    "style_dim": 6,
    "noise_dim": 3,
}

TAGS = {"Bangs": 2, "Eyeglasses": 2, "HairColor": 3}


def drawn(network: nn.Module, seed: int = 3) -> HiSD:
    """With every parameter random, norms and biases too, so that none can be left out unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        spread = 1 / math.sqrt(parameter[0].numel()) if parameter.ndim != 1 else 0.3
        parameter.data = spread * torch.randn(parameter.shape, generator=generator).to(parameter)
    return network.eval()
