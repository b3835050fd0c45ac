"""The embedded default: a small editor of the StarGAN family, trained on drawn faces."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any, ClassVar

from PIL import Image
from safetensors.torch import load
from torch import Tensor, nn

from loraguard.data import default_transform
from loraguard.data.demo_faces import ATTRIBUTES

from .labels import append_labels, only, switched
from .published import PublishedGenerator
from .stargan import LATENT_LAYER, star_layers

HAIR_COLOURS = (0, 1, 2)
"""Their places among the labels."""


def instance_norm(channels: int, relu: bool) -> list[nn.Module]:
    """Affine instance norm, as group norm with one channel a group: the same function, computed faster on CPUs."""
    return [nn.GroupNorm(channels, channels), *([nn.ReLU(inplace=True)] if relu else [])]


class DemoEditor(PublishedGenerator, license="apache-2.0"):
    """Edits hair colour, glasses and smile of drawn faces (:class:`~loraguard.data.DemoFaces`).

    The layout is StarGAN's (arXiv 1711.09020), smaller: labels tiled and concatenated to the image, two strided
    convolutions, residual blocks, two transposed convolutions, tanh; instance norm after each convolution.

    Args:
        conv_dim: feature maps of the first layer; twice and four times as many follow.
        num_blocks: residual blocks.
        num_labels: labels, (N, num_labels) in {0, 1}, in the order of `DemoFaces.attributes`.

    Example:
        >>> from loraguard.data import DemoFaces
        >>> editor = DemoEditor.pretrained()
        >>> face = DemoFaces(split="test")[0]
        >>> edits = editor.conditions(face["labels"][None])
        >>> sorted(edits)
        ['Black_Hair', 'Blond_Hair', 'Brown_Hair', 'Eyeglasses', 'Smiling']
        >>> editor(face["image"][None], **edits["Eyeglasses"]).shape
        torch.Size([1, 3, 64, 64])
    """

    attributes = ATTRIBUTES
    latent_layer = LATENT_LAYER
    small: ClassVar[dict[str, Any]] = {"conv_dim": 4, "num_blocks": 1}

    def __init__(self, conv_dim: int = 16, num_blocks: int = 3, num_labels: int = len(ATTRIBUTES)) -> None:
        super().__init__()
        self.num_labels = num_labels
        self.main = star_layers(num_labels, conv_dim, num_blocks, instance_norm)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Edit images.

        Args:
            images: (N, 3, H, W) in [-1, 1], H and W multiples of 4.
            labels: what the faces are to look like, (N, num_labels) in {0, 1}.

        Returns:
            Images of the same shape and range.
        """
        return self.main(append_labels(images, labels, self.num_labels))

    @staticmethod
    def conditions(labels: Tensor) -> dict[str, dict[str, Tensor]]:
        """The five single edits of faces with these labels (N, 5): each hair colour, glasses and smile flipped."""
        return {
            name: {"labels": only(labels, i, HAIR_COLOURS) if i in HAIR_COLOURS else switched(labels, i)}
            for i, name in enumerate(ATTRIBUTES)
        }

    @staticmethod
    def combined_conditions(labels: Tensor) -> dict[str, dict[str, Tensor]]:
        """Seven edits that change two or three things at once; patches are not trained on them."""
        both = switched(switched(labels, 3), 4)
        edits = {"Eyeglasses+Smiling": {"labels": both}}
        for i in HAIR_COLOURS:
            edits[f"{ATTRIBUTES[i]}+Eyeglasses"] = {"labels": only(switched(labels, 3), i, HAIR_COLOURS)}
            edits[f"{ATTRIBUTES[i]}+Smiling"] = {"labels": only(switched(labels, 4), i, HAIR_COLOURS)}
        return edits

    def transform(self) -> Callable[[Image.Image], Tensor]:
        """From a photo to what it was trained on: the middle square at 64 pixels, (3, 64, 64) in [-1, 1]."""
        return default_transform(64)

    @classmethod
    def settings_from(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """`conv_dim`, `num_blocks` and `num_labels`; of StarGAN's names, this layout has those of group norm alone."""
        first = state.get("main.0.weight")
        if first is None or first.ndim != 4 or "main.1.running_mean" in state:
            return {}
        blocks = [name for name in state if re.fullmatch(r"main\.\d+\.main\.0\.weight", name)]
        return {"conv_dim": first.shape[0], "num_blocks": len(blocks), "num_labels": first.shape[1] - 3}

    @classmethod
    def pretrained(cls) -> DemoEditor:
        """The network that ships with the package, in evaluation mode; `examples/train_demo_editor.py` made it."""
        editor = cls()
        editor.load_state_dict(
            load(files("loraguard.generators").joinpath("demo_weights/model.safetensors").read_bytes())
        )
        return editor.eval()
