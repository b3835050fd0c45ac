"""Photos and linear generators whose best perturbations are known."""

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

EPS = 0.05


class Tensors(Dataset[Tensor]):
    """Grey photos without labels, far from both ends of the range."""

    def __init__(self, n: int = 8, size: int = 8) -> None:
        self.photos = torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(5)) - 0.5

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> Tensor:
        return self.photos[index]


class Scale(nn.Module):
    """G(x) = a * x: the best perturbation is +-eps everywhere, whatever its signs."""

    def __init__(self, *factors: float) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.tensor(factors))

    def forward(self, images: Tensor) -> Tensor:
        return images * self.factors[:, None, None]


class Inner(nn.Module):
    """G(x) = <w, x>: the best perturbation is eps * sign(w) or its negative, for every photo the same."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)

    def forward(self, images: Tensor) -> Tensor:
        return (self.weights * images).sum((1, 2, 3), keepdim=True).expand_as(images)
