"""Networks that make perturbations, and how they are trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from loraguard.channels.base import clip
from loraguard.channels.purifiers import extended
from loraguard.data import collate
from loraguard.generators import Condition, CycleGAN

from .fitted import FittedDefense, Perturber, Target, batches

P = TypeVar("P", bound="TrainedDefense")


class UNet(nn.Module):
    """An encoder and a decoder with connections between maps of the same size, as pix2pix has it (arXiv 1611.07004).

    Maps are enlarged by nearest neighbour to the size of the encoder's, so that images of any size go through, and
    normalised in groups, as one of a single pixel has nothing for instance norm to normalise.

    Args:
        channels_in: of the input.
        width: feature maps of the first layer; they double from layer to layer, up to eight times as many.
        depth: how often the size is halved.

    Example:
        >>> UNet(6, width=4, depth=3)(torch.zeros(1, 6, 18, 22)).shape
        torch.Size([1, 3, 18, 22])
    """

    def __init__(self, channels_in: int, width: int, depth: int) -> None:
        super().__init__()
        widths = [min(2**i, 8) * width for i in range(depth)]

        def stage(convolution: nn.Conv2d, activation: nn.Module) -> nn.Sequential:
            return nn.Sequential(convolution, nn.GroupNorm(4, convolution.out_channels), activation)

        self.down = nn.ModuleList(
            stage(nn.Conv2d(wide_in, wide_out, 4, 2, 1), nn.LeakyReLU(0.2))
            for wide_in, wide_out in zip([channels_in, *widths[:-1]], widths, strict=True)
        )
        self.up = nn.ModuleList(
            stage(nn.Conv2d(widths[i] * (1 if i == depth - 1 else 2), widths[i - 1], 3, padding=1), nn.ReLU())
            for i in reversed(range(1, depth))
        )
        self.last = nn.Conv2d(widths[0] * (2 if depth > 1 else 1) + channels_in, 3, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, channels_in, H, W), each side at least 2^depth, to (N, 3, H, W) in [-1, 1]."""
        maps = [images]
        for layer in self.down:
            maps.append(layer(maps[-1]))
        features = maps.pop()
        for layer in self.up:
            skip = maps.pop()
            features = torch.cat([F.interpolate(layer(features), skip.shape[-2:]), skip], 1)
        features = torch.cat([F.interpolate(features, images.shape[-2:]), images], 1)
        return torch.tanh(self.last(features))


class ResNet(nn.Module):
    """CycleGAN's generator with batch norm, on more channels than three; images of any size from 8 pixels.

    Args:
        channels_in: of the input.
        width: feature maps of the first layer.
        blocks: residual blocks.

    Example:
        >>> ResNet(6, width=4, blocks=1)(torch.zeros(2, 6, 18, 22)).shape
        torch.Size([2, 3, 18, 22])
    """

    def __init__(self, channels_in: int, width: int, blocks: int) -> None:
        super().__init__()
        self.layers = CycleGAN(width, blocks, norm="batch").model
        self.layers[1] = nn.Conv2d(channels_in, width, 7, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, channels_in, H, W) to (N, 3, H, W) in [-1, 1]."""
        height, width = images.shape[-2:]
        return self.layers(extended(images, 4))[..., :height, :width]


class Protector(Perturber):
    """A network that makes each image's perturbation from the image and a pattern that is learnt with it.

    Args:
        network: from (N, 6, H, W) to (N, 3, H, W) in [-1, 1].
        pattern: (3, H, W) to start from.
        eps: what the network's outputs are multiplied by.

    Attributes:
        history: the loss at each step of training, averaged over generators; not saved.
    """

    def __init__(self, network: nn.Module, pattern: Tensor, eps: float) -> None:
        super().__init__()
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.network, self.eps = network, eps
        self.history: list[float] = []
        self.pattern = nn.Parameter(pattern)

    def forward(self, images: Tensor) -> Tensor:
        """Perturbations within +-eps for images (N, 3, H, W)."""
        return self.eps * self.network(torch.cat([images, self.shared(images).expand_as(images)], 1))


@dataclass(frozen=True)
class TrainedDefense(FittedDefense):
    """A defense whose network is trained: subclasses give the network and what it has to minimise.

    The pattern is a perturbation of its own beside the network's and has the same loss. The network's last layer, a
    tanh, is scaled to +-eps, and the pattern is put back within +-eps after each step: where values are clipped on the
    way to the loss, as the official codes do, no gradient ever moves them back. Adam has the betas 0.5 and 0.999. Each
    step makes one edit of each generator, in turn.

    Args:
        eps: the budget, L-infinity, in units of images in [-1, 1].
        steps: of the optimizer.
        batch_size: photos a step.
        learning_rate: of Adam.
        width: feature maps of the network's first layer, a multiple of 4.
    """

    steps: int = 5000
    batch_size: int = 1
    learning_rate: float = 1e-4
    width: int = 64

    recipe: ClassVar[str]
    """The folder in demo_weights with what :meth:`pretrained` loads."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.steps, self.batch_size) < 1 or self.learning_rate <= 0 or self.width < 4 or self.width % 4:
            raise ValueError(
                f"Expected steps and batch_size >= 1, learning_rate > 0 and width a multiple of 4, got {self.steps}, "
                f"{self.batch_size}, {self.learning_rate} and {self.width}."
            )

    def network(self) -> nn.Module:
        """An untrained network from (N, 6, H, W), images and pattern, to perturbations (N, 3, H, W) in [-1, 1]."""
        raise NotImplementedError

    def blank(self, size: tuple[int, int]) -> Protector:
        """An untrained network."""
        return Protector(self.network(), torch.zeros(3, *size), self.eps)

    def loss(self, target: Target, images: Tensor, perturbed: Tensor, condition: Condition) -> Tensor:
        """What to minimise for one generator.

        Args:
            target: the generator.
            images: photos, (N, 3, H, W).
            perturbed: the same twice, (2N, 3, H, W): first perturbed by the network, then by the pattern.
            condition: the edit of each photo.
        """
        raise NotImplementedError

    def weights(self, losses: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
        """Of each generator's loss, (M,); equal by default."""
        return torch.full((len(losses),), 1 / len(losses))

    def learn(self, targets: Sequence[Target], photos: Dataset[Any], *, disable_tqdm: bool) -> Protector:
        """Train a network."""
        if not len(photos):  # type: ignore[arg-type]
            raise ValueError("There are no photos to fit a defense to.")
        height, width = collate([photos[0]])["image"].shape[-2:]
        device, title = targets[0].device, None if disable_tqdm else type(self).__name__
        protector = self.blank((height, width)).to(device)
        with torch.no_grad():
            protector.pattern.uniform_(-self.eps, self.eps)
        parameters = list(protector.parameters())
        optimizer = torch.optim.Adam(parameters, self.learning_rate, betas=(0.5, 0.999))
        count = self.steps * self.batch_size
        for turn, batch in enumerate(batches(photos, self.batch_size, count=count, device=device, title=title)):
            images = batch["image"]
            moves = torch.cat([protector(images), protector.shared(images).expand_as(images)])
            perturbed = clip(torch.cat([images, images]) + moves)
            losses = []
            for target in targets:
                edits = target.edits(batch)
                losses.append(self.loss(target, images, perturbed, edits[turn % len(edits)]))
            weights = self.weights(losses, parameters)
            optimizer.zero_grad()
            (torch.stack(losses) * weights.to(device)).sum().backward()
            optimizer.step()
            protector.history.append(float(torch.stack(losses).detach().mean()))
            with torch.no_grad():
                protector.pattern.clamp_(-self.eps, self.eps)
        return protector

    @classmethod
    def pretrained(cls: type[P]) -> P:
        """The one that ships with the package, against `DemoEditor` at 64 pixels and eps 0.1.

        `examples/train_protection.py` made it; its recipe.json, beside it, says what it achieves.
        """
        with as_file(files("loraguard.defenses").joinpath(f"demo_weights/{cls.recipe}/model.safetensors")) as path:
            return cls.load(path)


def twice(condition: Condition) -> dict[str, Tensor]:
    """The condition of a batch that is there twice."""
    return {key: torch.cat([value, value]) for key, value in condition.items()}
