"""A small ResNet that reads the labels of drawn faces, for ablations that need features that mean something.

The paper's loss compares features of ResNet-50 and BLIP, whose weights do not ship with the package. What is learnt
from drawn faces stands in for them, and a second reader, trained from another seed on other faces, judges outputs.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ResNetConfig, ResNetModel

from loraguard.data import DemoFaces
from loraguard.losses import FeatureEncoder

STEPS, BATCH, UNSEEN_FACES = 300, 32, 500


class FaceReader(nn.Module):
    """Logits of the five labels, a linear function of the pooled features of a `transformers` ResNet."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [16, 32, 64]
        self.network = ResNetModel(ResNetConfig(embedding_size=16, hidden_sizes=sizes, depths=[1, 1, 1]))
        self.head = nn.Linear(sizes[-1], len(DemoFaces.attributes))

    def features(self, images: Tensor) -> Tensor:
        """Pooled features (N, 64) of images (N, 3, H, W) in [-1, 1]."""
        return self.network(images).pooler_output.flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, 5) of :data:`loraguard.data.demo_faces.ATTRIBUTES`."""
        return self.head(self.features(images))

    @torch.no_grad()
    def read(self, images: Tensor) -> Tensor:
        """Labels (N, 5), true or false."""
        return self(images) > 0


@cache
def trained_reader(seed: int) -> FaceReader:
    """A reader trained on the faces of its seed, frozen; a minute or less on one thread."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = FaceReader().train()
    optimizer = torch.optim.Adam(reader.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, STEPS)
    faces = DemoFaces(STEPS * BATCH, seed=seed, split="reader")
    for step in range(STEPS):
        images, labels = batch(faces, range(step * BATCH, (step + 1) * BATCH))
        loss = F.binary_cross_entropy_with_logits(reader(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return reader.eval().requires_grad_(False)


def batch(faces: DemoFaces, indices: range) -> tuple[Tensor, Tensor]:
    """Images (N, 3, size, size) and labels (N, 5)."""
    items = faces.__getitems__(list(indices))
    return torch.stack([item["image"] for item in items]), torch.stack([item["labels"] for item in items])


def accuracy(reader: FaceReader) -> tuple[float, float]:
    """On faces that no reader has seen: the share of labels that are right, and of faces with all five right."""
    images, labels = batch(DemoFaces(UNSEEN_FACES, split="unseen"), range(UNSEEN_FACES))
    right = reader.read(images) == labels.bool()
    return right.float().mean().item(), right.all(1).float().mean().item()


def encoder(distance: str) -> FeatureEncoder:
    """The first reader's pooled features, compared by "mse" or "cosine" with the paper's weight, 0.1."""
    reader = trained_reader(0)
    return FeatureEncoder(Features(reader), lambda images: images, distance=distance, weight=0.1, name=distance)


class Features(nn.Module):
    """Pooled features alone."""

    def __init__(self, reader: FaceReader) -> None:
        super().__init__()
        self.reader = reader

    def forward(self, images: Tensor) -> Tensor:
        """Features (N, 64)."""
        return self.reader.features(images)
