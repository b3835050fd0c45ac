"""Whether an edited photo shows what was asked for, to a network that knows images and text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

Texts = Callable[[Sequence[str]], Tensor]
"""From texts to embeddings (M, D)."""


class ClipSimilarity(nn.Module):
    """The cosine between the embeddings of an image and of the edit that was asked for (arXiv 2104.08718, without w).

    Args:
        images: from images (N, 3, H, W) in [-1, 1] to embeddings (N, D).
        texts: from texts to embeddings (M, D) in the same space; each text is embedded once.

    Example:
        >>> colours = {"red": [1.0, 0, 0], "blue": [0, 0, 1.0]}
        >>> similarity = ClipSimilarity(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        ...                             lambda texts: torch.tensor([colours[text] for text in texts]))
        >>> red = torch.zeros(2, 3, 4, 4)
        >>> red[:, 0] = 1
        >>> similarity(red, ["red", "blue"])
        tensor([1., 0.])
    """

    def __init__(self, images: nn.Module, texts: Texts) -> None:
        super().__init__()
        self.images, self.texts, self.known = images, texts, dict[str, Tensor]()

    @torch.no_grad()
    def forward(self, preds: Tensor, edits: Sequence[str]) -> Tensor:
        """Cosines (N,) of images (N, 3, H, W) with the text of each."""
        for text in dict.fromkeys(edits):
            if text not in self.known:
                self.known[text] = self.texts([text])[0].detach().cpu()
        wanted = torch.stack([self.known[text] for text in edits])
        found = self.images(preds)
        return cosine_similarity(found, wanted.to(found))

    @classmethod
    def from_pretrained(cls, source: str | Path, *, local_files_only: bool = False) -> ClipSimilarity:
        """CLIP, SigLIP or another model of transformers with both sides, from a folder or the Hub; safetensors alone.

        Raises:
            OSError: if a file cannot be had.
            ValueError: if the model has no embedding of text beside that of images.
        """
        from transformers import AutoModel, AutoTokenizer

        from loraguard.losses import FeatureEncoder

        images = FeatureEncoder.from_pretrained(
            source, features="projected", name="clip", local_files_only=local_files_only
        )
        where: dict[str, Any] = {"local_files_only": local_files_only}
        model: Any = AutoModel.from_pretrained(str(source), use_safetensors=True, **where).eval()
        if not hasattr(model, "get_text_features"):
            raise ValueError(
                f"{source} holds a {type(model).__name__}, which does not embed text; give a CLIP or SigLIP."
            )
        tokenizer = AutoTokenizer.from_pretrained(str(source), **where)
        # SigLIP was trained on texts of full length.
        padding = "max_length" if "siglip" in model.config.model_type else True

        def texts(given: Sequence[str]) -> Tensor:
            made = model.get_text_features(
                **tokenizer(list(given), padding=padding, truncation=True, return_tensors="pt")
            )
            return made if isinstance(made, Tensor) else made.pooler_output

        return cls(images, texts)
