"""ID-Guard: a network that breaks identities in several generators' outputs (Qu et al., arXiv 2409.13349)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import combinations
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from loraguard.generators import Condition

from .base import undisturbed
from .features import grad_cam_plus_plus, watched, with_layers
from .fitted import Target, outputs_of
from .protector import Protector, ResNet, TrainedDefense, twice


@dataclass(frozen=True)
class IDGuard(TrainedDefense):
    """Cross-model protection by one forward pass: a ResNet on a photo and a learnt prior P.

    For x' = clip(x + d), with d once the network's and once P, each generator's term to maximise is
    `MSE(M * G(x', c), M * G(x, c)) - 0.1 * cos(E(G(x', c)), E(G(x, c))) + 0.01 * MSE of features`, and the terms are
    weighted by MGDA, the combination of least gradient (Sener and Koltun, arXiv 1810.04650). Weights and settings are
    those of the official code. What differs, because what it needs cannot be had here:

    - E, which recognises faces there (ArcFace), is any encoder that is given. Without one the term is left out.
    - M is there a hand-made mask of eyes, brows, nose and mouth times the Grad-CAM++ map of a face classifier. Here it
      is the map alone: of `identity`, for its largest output, at its last convolution; without one, of the generator at
      its latent layer, for how far it moves the photo. That last one is ours: it weights what the edit changes.
    - P starts at uniform noise; the official one comes from a file.
    - Activations are ReLU, not SELU.

    Args:
        eps: the budget, L-infinity, in units of images in [-1, 1].
        steps: of the optimizer; once through the 30,000 photos of CelebAMask-HQ.
        batch_size: photos a step.
        learning_rate: of Adam.
        width: feature maps of the ResNet's first layer.
        blocks: residual blocks.
        identity: E, from images (N, 3, H, W) in [-1, 1] to (N, D), in the mode that it is to be used in; None leaves
            the identity term out.
        layers: the layer of each generator that gives its features, by name as in `named_modules`; by default each
            generator's own `latent_layer`.

    Raises:
        ValueError: for settings out of range, and in `fit` for a layer that a generator does not have.

    Example:
        >>> from loraguard.data import DemoFaces
        >>> generator = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1))
        >>> defense = IDGuard(steps=2, batch_size=2, width=4, blocks=1, layers=("0",))
        >>> defense = defense.fit(generator, DemoFaces(4, size=16), disable_tqdm=True)
        >>> photos = torch.zeros(1, 3, 16, 16)
        >>> bool(((defense(generator, photos, {}) - photos).abs() <= 0.05).all())
        True
    """

    steps: int = 10000
    batch_size: int = 3
    blocks: int = 6
    identity: nn.Module | str | None = None
    layers: tuple[str, ...] | None = None

    unsaved: ClassVar[tuple[str, ...]] = ("identity",)
    recipe: ClassVar[str] = "idguard"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blocks < 1:
            raise ValueError(f"blocks={self.blocks!r} must be >= 1.")

    def network(self) -> nn.Module:
        """The ResNet."""
        return ResNet(6, self.width, self.blocks)

    def learn(self, targets: Sequence[Target], photos: Dataset[Any], *, disable_tqdm: bool) -> Protector:
        """Train a network; E gets no gradients."""
        with undisturbed(self.identity) if isinstance(self.identity, nn.Module) else nullcontext():
            return super().learn(with_layers(targets, self.layers), photos, disable_tqdm=disable_tqdm)

    def loss(self, target: Target, images: Tensor, perturbed: Tensor, condition: Condition) -> Tensor:
        """Minus the term to maximise."""
        assert target.layer is not None
        mask = self.mask(target, images, condition)
        with watched(target.layer) as seen:
            clean = outputs_of(target, images, condition)
            outputs = target.generator(perturbed, **twice(condition))
        clean, features = torch.cat([clean, clean]), torch.cat([seen[0], seen[0]])
        mask = torch.cat([mask, mask])
        damage = F.mse_loss(mask * outputs, mask * clean) + 0.01 * F.mse_loss(
            _resized(mask, features) * seen[1], _resized(mask, features) * features
        )
        if isinstance(self.identity, nn.Module):
            damage = damage - 0.1 * F.cosine_similarity(self.identity(outputs), self.identity(clean)).mean()
        return -damage

    def weights(self, losses: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
        """MGDA's."""
        if len(losses) == 1:
            return torch.ones(1)
        gradients = [
            torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters, retain_graph=True)])
            for loss in losses
        ]
        return least_norm(torch.stack(gradients))

    def mask(self, target: Target, images: Tensor, condition: Condition) -> Tensor:
        """M, in [0, 1], (N, 1, H, W) at the size of the generator's outputs; see the class."""
        images = images.detach().requires_grad_()
        with torch.enable_grad():
            if isinstance(self.identity, nn.Module):
                with watched(last_convolution(self.identity)) as seen:
                    score = self.identity(images).amax(1)
                size = outputs_of(target, images, condition).shape[-2:]
            else:
                assert target.layer is not None
                with watched(target.layer) as seen:
                    outputs = target.generator(images, **condition)
                size = outputs.shape[-2:]
                score = (outputs - _resized(images, outputs)).square().flatten(1).sum(1)
            (gradients,) = torch.autograd.grad(score.sum(), seen[0])
        return grad_cam_plus_plus(seen[0].detach(), gradients, size)


def _resized(images: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(images, like.shape[-2:], mode="bilinear") if images.shape[-2:] != like.shape[-2:] else images


def last_convolution(network: nn.Module) -> nn.Module:
    """The last convolution of a network, which Grad-CAM++ looks at.

    Raises:
        ValueError: if it has none.
    """
    found = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    if not found:
        raise ValueError(f"identity: {type(network).__name__} has no Conv2d for Grad-CAM++ to look at.")
    return found[-1]


def least_norm(gradients: Tensor) -> Tensor:
    """The weights, each >= 0 and together 1, whose combination of gradients (M, D) is shortest, (M,).

    What MGDA takes (arXiv 1810.04650, equation 3); exact, by trying which of the few weights are not 0.

    Example:
        >>> least_norm(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        tensor([0.8000, 0.2000])
    """
    count = len(gradients)
    gram = (gradients.double() @ gradients.double().T).cpu()
    best, shortest = torch.zeros(count).double(), float("inf")
    for size in range(1, count + 1):
        for chosen in map(list, combinations(range(count), size)):
            # Least length under "together 1": gram w + mu = 0 and sum w = 1.
            system = torch.ones(size + 1, size + 1).double()
            system[:size, :size], system[size, size] = gram[chosen][:, chosen], 0
            right = torch.zeros(size + 1, 1).double()
            right[size] = 1
            weights = torch.zeros(count).double()
            weights[chosen] = torch.linalg.lstsq(system, right, driver="gelsd").solution[:size, 0]
            length = float(weights @ gram @ weights)
            if bool((weights >= 0).all()) and length < shortest:
                best, shortest = weights, length
    return best.to(gradients.dtype)
