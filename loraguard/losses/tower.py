"""The image encoder of a pretrained model, and which of its features are compared."""

from __future__ import annotations

from typing import Any, cast

import transformers
from torch import Tensor, nn

FEATURES = ("pooled", "cls", "patch", "projected")
"""What an encoder can give: see :class:`VisionTower`."""

CLASS_TOKENS = ("cls_token", "class_embedding", "class_token")


class VisionTower(nn.Module):
    """The image side of a model of `transformers`, as features; its text side is let go.

    - `pooled`, (N, D): the model's own `pooler_output`.
    - `cls`, (N, D): the first token of `last_hidden_state`, where that is a class token.
    - `patch`, (N, L, D): all of `last_hidden_state`: every patch, and class and register tokens where the model has
      them; the positions of a convolutional network.
    - `projected`, (N, D): the image's embedding in the space that it shares with text.

    Args:
        model: a vision model (ResNet, ViT, DINOv2, ...), with a head or without, or a vision-language model whose image
            side is called `vision_model` (BLIP, CLIP, SigLIP, ...).
        features: one of `FEATURES`.
        name: of the model, for errors.

    Raises:
        ValueError: if the model is none of these or has no such features.

    Example:
        >>> import torch
        >>> from transformers import Dinov2Config, Dinov2Model
        >>> config = Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=28)
        >>> tower = VisionTower(Dinov2Model(config).eval(), "patch", "tiny")
        >>> tower({"pixel_values": torch.zeros(2, 3, 28, 28)}).shape
        torch.Size([2, 5, 8])
    """

    def __init__(self, model: Any, features: str, name: str) -> None:
        super().__init__()
        if features not in FEATURES:
            raise ValueError(f"There are no features {features!r}; choose from {', '.join(map(repr, FEATURES))}.")
        self.features, self.name = features, name
        self.projection: nn.Module | None = None
        headless = type(model) is cast(type | None, transformers.MODEL_MAPPING.get(type(model.config), None))
        tower = getattr(model, "vision_model", model if headless else model.base_model)
        if getattr(tower, "main_input_name", None) != "pixel_values":
            raise ValueError(f"{name}, a {type(model).__name__}, has no image side that loraguard knows how to use.")
        if features == "projected":
            tower = self._projected(model)
        if features == "cls" and not any(key.endswith(CLASS_TOKENS) for key, _ in tower.named_parameters()):
            raise ValueError(
                f"{name}, a {type(model).__name__}, has no class token; take 'pooled' or 'patch' features."
            )
        self.tower = tower

    def _projected(self, model: Any) -> Any:
        if hasattr(model, "vision_proj"):  # BLIP for retrieval: its forward wants a text too
            self.projection = model.vision_proj
            return model.vision_model
        if hasattr(model, "get_image_features") and hasattr(model, "vision_model"):
            for part in [name for name, _ in (*model.named_children(), *model.named_parameters(recurse=False))]:
                if part.startswith(("text", "logit")):
                    setattr(model, part, None)
            return model
        if hasattr(model, "visual_projection"):
            return model
        raise ValueError(
            f"{self.name}, a {type(model).__name__}, has no projection into a space shared with text; take 'pooled' or "
            "'patch' features."
        )

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """An encoder's inputs, such as `pixel_values` (N, 3, h, w), to features (N, D) or (N, L, D).

        Raises:
            ValueError: if the model gives no such features.
        """
        if self.features == "projected" and hasattr(self.tower, "get_image_features"):
            found = self.tower.get_image_features(**inputs).pooler_output
        else:
            outputs = self.tower(**inputs)
            if self.features == "pooled":
                found = getattr(outputs, "pooler_output", None)
            elif self.features == "projected" and self.projection is None:
                found = outputs.image_embeds
            else:
                found = self._tokens(outputs, inputs)
        if found is None:
            other = "'patch'" if self.features == "pooled" else "'pooled'"
            raise ValueError(
                f"{self.name}, a {type(self.tower).__name__}, has no {self.features!r} features; take {other}."
            )
        return found if self.features == "patch" else found.flatten(1)

    def _tokens(self, outputs: Any, inputs: dict[str, Tensor]) -> Tensor | None:
        """All tokens, or the class token alone, projected where features are."""
        tokens = getattr(outputs, "last_hidden_state", None)
        if tokens is None:
            return None
        if tokens.ndim == 4:
            tokens = tokens.flatten(2).transpose(1, 2)
        if "spatial_shapes" in inputs:  # images of one size have one number of patches; the rest is padding
            tokens = tokens[:, : int(inputs["spatial_shapes"][0].prod())]
        if self.features == "patch":
            return tokens
        return tokens[:, 0] if self.projection is None else self.projection(tokens[:, 0])
