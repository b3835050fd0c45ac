"""Tiny networks of diffusers, and something to run each with."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from torch import Tensor, nn

BLOCKS = {"block_out_channels": (4, 8), "norm_num_groups": 2, "layers_per_block": 1}
DOWN, UP = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
HEADS = {"attention_head_dim": 4, "num_attention_heads": 2, "joint_attention_dim": 6, "pooled_projection_dim": 5}


def autoencoder() -> nn.Module:
    down, up = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
    return AutoencoderKL(**BLOCKS, down_block_types=down, up_block_types=up, latent_channels=2, sample_size=8)


def unet() -> nn.Module:
    width = {"cross_attention_dim": 6, "attention_head_dim": 2}
    return UNet2DConditionModel(**BLOCKS, **width, down_block_types=DOWN, up_block_types=UP, sample_size=8)


def controlnet() -> nn.Module:
    width = {"cross_attention_dim": 6, "attention_head_dim": 2, "conditioning_embedding_out_channels": (4, 8)}
    net = ControlNetModel(**BLOCKS, **width, down_block_types=DOWN)
    for block in (*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out):
        nn.init.normal_(block.weight)  # which start at 0
    return net


def sd3() -> nn.Module:
    return SD3Transformer2DModel(**HEADS, sample_size=8, in_channels=4, num_layers=2, caption_projection_dim=8)


def flux() -> nn.Module:
    return FluxTransformer2DModel(**HEADS, in_channels=4, num_layers=1, num_single_layers=1, axes_dims_rope=(0, 2, 2))


def _run_autoencoder(net: Any) -> Tensor:
    return net(draw(2, 3, 8, 8), return_dict=False)[0]


def _run_unet(net: Any) -> Tensor:
    return net(draw(2, 4, 8, 8), 3, draw(2, 5, 6), return_dict=False)[0]


def _run_controlnet(net: Any) -> Tensor:
    return net(draw(2, 4, 8, 8), 3, draw(2, 5, 6), draw(2, 3, 16, 16), return_dict=False)[1]


def _run_sd3(net: Any) -> Tensor:
    return net(draw(2, 4, 8, 8), draw(2, 5, 6), draw(2, 5), torch.tensor([3, 3]), return_dict=False)[0]


def _run_flux(net: Any) -> Tensor:
    given = {"timestep": torch.tensor([0.3, 0.3]), "img_ids": torch.zeros(6, 3), "txt_ids": torch.zeros(5, 3)}
    return net(draw(2, 6, 4), draw(2, 5, 6), draw(2, 5), **given, return_dict=False)[0]


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], Tensor]]] = {
    "autoencoder": (autoencoder, _run_autoencoder),
    "unet": (unet, _run_unet),
    "controlnet": (controlnet, _run_controlnet),
    "sd3": (sd3, _run_sd3),
    "flux": (flux, _run_flux),
}


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def network(kind: str) -> Any:
    torch.manual_seed(0)
    return NETWORKS[kind][0]().eval()


@torch.no_grad()
def run(kind: str, net: Any) -> Tensor:
    return NETWORKS[kind][1](net)
