"""TSDF, stage 1: one perturbation against an ensemble (Zheng et al., arXiv 2508.07795)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset, Subset

from loraguard.channels.base import clip

from .features import watched, with_layers
from .fitted import Perturber, Target, batches, outputs_of
from .universal import Pattern, UniversalDefense

FEATURE_SIZE = 32
"""Height and width to which feature maps are resized, so that those of different generators can be added."""


@dataclass(frozen=True)
class TSDF(UniversalDefense):
    """The interruption stage of the two-stage defense framework: features first, then features and outputs together.

    P starts at uniform noise and takes sign steps, clipped to +-eps. For each batch there are `feature_steps` on the
    MSE between the sums of all feature maps over maps and generators at 32x32, and then one step with momentum on
    `sum over m of w_m * ((1 - feature_weight) * MSE of outputs + feature_weight * MSE of features)`. The weights
    `w = softmax(EMA of the negative damage / temperature)` go to the generators that resist most. In every step, half
    the time, photos are shrunk into a padded frame at random (diverse inputs, arXiv 1803.06978).

    Equations and numbers are those of the official code, with these differences: its term on normalised features
    (weight 0.001) is left out, and clean photos are transformed as the perturbed ones are, so that nothing but P is
    measured. Each step makes one edit, in turn. The second stage, which poisons face detectors, is not here.

    Args:
        eps: the budget, L-infinity, in units of images in [-1, 1].
        steps: passes through the photos.
        feature_steps: on features alone, for each batch.
        step_size: of one step; 0.02 * `eps` by default, 0.001 at the paper's budget.
        feature_weight: of the feature term beside outputs; at 0 no features are looked at, and no feature steps taken.
        temperature: of the softmax.
        decay: of the moving averages that it sees.
        momentum: share of the last gradient in a step on outputs.
        layers: the layer of each generator whose output counts as its features, by name as in `named_modules`; by
            default each generator's own `latent_layer`.
        photos: how many photos P is fitted to.
        batch_size: photos at a time.

    Raises:
        ValueError: for settings out of range, and in `fit` for a layer that a generator does not have.

    Example:
        >>> from torch import nn
        >>> from loraguard.data import DemoFaces
        >>> generator = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1))
        >>> defense = TSDF(steps=2, layers=("0",), photos=8)
        >>> defense = defense.fit(generator, DemoFaces(8, size=16), disable_tqdm=True)
        >>> defense.perturbation.shape
        torch.Size([3, 16, 16])
    """

    steps: int = 30
    feature_steps: int = 3
    step_size: float | None = None
    feature_weight: float = 0.3
    temperature: float = 0.1
    decay: float = 0.9
    momentum: float = 0.8
    layers: tuple[str, ...] | None = None
    photos: int = 128
    batch_size: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.steps, self.photos, self.batch_size) < 1 or self.feature_steps < 0:
            raise ValueError(
                f"Expected steps, photos and batch_size >= 1 and feature_steps >= 0, got steps={self.steps}, "
                f"photos={self.photos}, batch_size={self.batch_size}, feature_steps={self.feature_steps}."
            )
        if not (0 <= self.feature_weight <= 1 and 0 <= self.decay < 1 and self.momentum >= 0 and self.temperature > 0):
            raise ValueError(
                f"Expected feature_weight in [0, 1], decay in [0, 1), momentum >= 0 and temperature > 0, got "
                f"{self.feature_weight}, {self.decay}, {self.momentum} and {self.temperature}."
            )
        if self.step_size is not None and self.step_size <= 0:
            raise ValueError(f"step_size={self.step_size!r} must be > 0.")

    def learn(self, targets: Sequence[Target], photos: Dataset[Any], *, disable_tqdm: bool) -> Perturber:
        """P; see the class."""
        ensemble = Ensemble(with_layers(targets, self.layers) if self.feature_weight else targets)
        kinds = [True] * (self.feature_steps if self.feature_weight else 0) + [False]
        chosen = Subset(photos, torch.randperm(len(photos))[: self.photos].tolist())  # type: ignore[arg-type]
        device, title = targets[0].device, None if disable_tqdm else "tsdf"
        step = self.step_size or 0.02 * self.eps
        balance = Balance(len(targets), self.decay, self.temperature)
        pattern, velocity = torch.empty(0), torch.zeros(())
        for batch in batches(chosen, self.batch_size, count=self.steps * len(chosen), device=device, title=title):
            if not len(pattern):
                pattern = self.eps * (2 * torch.rand_like(batch["image"][0]) - 1)
            for on_features in kinds:
                pattern.requires_grad_()
                pairs = ensemble.pairs(batch, pattern)
                if on_features:
                    (direction,) = torch.autograd.grad(feature_distance(pairs), pattern)
                else:
                    damage = torch.stack([self._damage(pair) for pair in pairs])
                    (gradient,) = torch.autograd.grad((balance.weights.to(damage) * damage).sum(), pattern)
                    balance.update(damage.detach().cpu())
                    velocity = gradient / (gradient.abs().mean() + 1e-12) + self.momentum * velocity.to(gradient)
                    direction = velocity
                pattern = (pattern.detach() + step * direction.sign()).clamp(-self.eps, self.eps)
        return Pattern(pattern)

    def _damage(self, pair: Pair) -> Tensor:
        damage = (1 - self.feature_weight) * F.mse_loss(*pair.outputs)
        return damage + self.feature_weight * F.mse_loss(*pair.features) if pair.features else damage


class Pair(NamedTuple):
    """What one generator makes of perturbed and of clean photos: images, and features at 32x32 if any."""

    outputs: tuple[Tensor, Tensor]
    features: tuple[Tensor, Tensor] | None


class Balance:
    """How much each generator counts: the more, the less it was damaged of late; equally at first.

    Example:
        >>> balance = Balance(2, decay=0.9, temperature=0.1)
        >>> balance.update(torch.tensor([1.0, 0.0]))
        >>> balance.weights  # softmax([-1, 0])
        tensor([0.2689, 0.7311])
    """

    def __init__(self, generators: int, decay: float, temperature: float) -> None:
        self.decay, self.temperature = decay, temperature
        self.average = torch.zeros(generators)

    def update(self, damage: Tensor) -> None:
        """Take in each generator's damage, (M,)."""
        self.average = self.decay * self.average - (1 - self.decay) * damage

    @property
    def weights(self) -> Tensor:
        """(M,), together 1."""
        return (self.average / self.temperature).softmax(0)


class Ensemble:
    """Several generators on the same photos, each making its edits in turn."""

    def __init__(self, targets: Sequence[Target]) -> None:
        self.targets, self.turn = targets, 0

    def pairs(self, batch: dict[str, Tensor], pattern: Tensor) -> list[Pair]:
        """Perturbed and clean for each generator, under one draw of the diverse-input transform."""
        images = batch["image"]
        perturbed, clean = diverse(clip(torch.cat([images + pattern, images]))).chunk(2)
        found = []
        for target in self.targets:
            edits = target.edits(batch)
            edit = edits[self.turn % len(edits)]
            if target.layer is None:
                reference = outputs_of(target, clean, edit)
                found.append(Pair((target.generator(perturbed, **edit), reference), None))
                continue
            with watched(target.layer) as seen:
                reference = outputs_of(target, clean, edit)
                outputs = target.generator(perturbed, **edit)
            before, after = (F.interpolate(x, (FEATURE_SIZE, FEATURE_SIZE), mode="bilinear") for x in seen)
            found.append(Pair((outputs, reference), (after, before)))
        self.turn += 1
        return found


def feature_distance(pairs: Sequence[Pair]) -> Tensor:
    """MSE between the sums of all feature maps, over channels and generators."""
    perturbed, clean = (sum(pair.features[i].sum(1) for pair in pairs if pair.features) for i in (0, 1))
    return F.mse_loss(torch.as_tensor(perturbed), torch.as_tensor(clean))


def diverse(images: Tensor) -> Tensor:
    """Half the time, images (N, 3, H, W) shrunk by up to an eighth into a grey frame at a random place; else as is.

    Arxiv 1803.06978, with the official code's sizes: 256 to 289 of 290 for images of 256. Draws from torch's global
    generator, once for all images.
    """
    if torch.rand(()) > 0.5:
        return images
    side = torch.tensor(images.shape[-2:])
    frame = (side * 290 / 256).round().long()
    inner = side + (torch.rand(()) * (frame - side)).long()
    room = frame - inner
    top, left = (torch.rand(2) * (room + 1)).long().tolist()
    bottom, right = (room - torch.tensor([top, left])).tolist()
    framed = F.pad(F.interpolate(images, inner.tolist()), (left, right, top, bottom))
    return F.interpolate(framed, images.shape[-2:])
