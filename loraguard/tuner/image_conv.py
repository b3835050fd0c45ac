"""Convolutions with tall kernels to and from images on GPUs, whose few channels leave most of a matrix unit idle."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .fast_conv import is_of_images, is_plain


def pays(layer: Any, x: Tensor) -> bool:
    """Whether `by_rows` computes a layer faster than torch does.

    That is on CUDA, for convolutions of stride 1 without dilation, groups and padding modes, of at least 5 rows, with
    at most 8 channels on one side and at least four times as many on the other.
    """
    if x.device.type != "cuda" or x.dim() != 4 or not is_plain(layer):
        return False
    return layer.padding_mode == "zeros" and not isinstance(layer.padding, str) and is_of_images(layer)


def by_rows(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
    """`F.conv2d` of stride 1 as a convolution one row high, with k times as many channels on the side that has few.

    To few channels, each of the kernel's k rows has outputs of its own, which are then shifted and added up. From few
    channels, k shifted copies of the input are what a kernel of one row reads. The same products are added up in
    another order.

    Args:
        x: (N, in, H, W).
        weight: (out, in, k, l).
        bias: (out,).
        padding: with zeros, of height and width.

    Example:
        >>> for size in ((2, 9, 7, 5), (9, 2, 7, 5)):
        ...     weight, x = torch.randn(size).double(), torch.randn(1, size[1], 12, 10).double()
        ...     torch.allclose(by_rows(x, weight, None, (3, 2)), F.conv2d(x, weight, padding=(3, 2)))
        True
        True
    """
    rows, columns = padding
    tall = weight.shape[2]
    height = x.shape[2] + 2 * rows - tall + 1
    channels_last = weight.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    if len(weight) > weight.shape[1]:
        x = F.pad(x, (0, 0, rows, rows))
        x = torch.cat([x[:, :, row : row + height] for row in range(tall)], dim=1).contiguous(memory_format=layout)
        kernel = weight.transpose(1, 2).flatten(1, 2).unsqueeze(2).contiguous(memory_format=layout)
        return F.conv2d(x, kernel, bias, padding=(0, columns))
    kernel = weight.permute(2, 0, 1, 3).flatten(0, 1).unsqueeze(2)
    # cuDNN wants multiples of 8 channels in half precision, or copies the output to have them.
    kernel = F.pad(kernel, (0, 0, 0, 0, 0, 0, 0, -len(kernel) % 8)).contiguous(memory_format=layout)
    parts = F.conv2d(x, kernel, padding=padding).split(len(weight), dim=1)
    result = parts[0][:, :, :height]
    for row in range(1, tall):
        result = result + parts[row][:, :, row : row + height]
    return result if bias is None else result + bias[:, None, None].to(result.dtype)
