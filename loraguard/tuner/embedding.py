"""GATED_LORA on embeddings."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .folding import FoldingLayer


class GatedLoraEmbedding(FoldingLayer):
    """An adapted `nn.Embedding`: the vectors `W[x]` and, of the same numbers x, `gate * s * B A[x]`.

    Input: whole numbers of any shape; output (..., embedding_dim). A is (r, num_embeddings), B is (embedding_dim, r).
    As in PEFT's LoRA there is no dropout and no bias of B; A starts at 0 and B is drawn from N(0, 1), except that
    `init_lora_weights="paper"` draws both.

    Example:
        >>> import torch
        >>> from loraguard.tuner import GatedLoraConfig
        >>> layer = GatedLoraEmbedding(nn.Embedding(9, 4), "default", config=GatedLoraConfig(), r=2, lora_alpha=2)
        >>> layer(torch.tensor([[1, 8]])).shape, layer.get_delta_weight("default").shape
        (torch.Size([1, 2, 4]), torch.Size([9, 4]))
    """

    base_classes = (nn.Embedding,)

    @property
    def batched_dims(self) -> int:
        """A row of numbers has a number for each sample."""
        return 1

    def _get_in_out_features(self, module: Any) -> tuple[int, int]:
        return module.num_embeddings, module.embedding_dim

    @classmethod
    def check_adaptable(cls, base: Any, config: Any) -> None:
        """Refuse what an embedding cannot be right with.

        Raises:
            ValueError: With `lora_bias`, or where the base layer has a `max_norm`.
        """
        if config.lora_bias:
            raise ValueError("lora_bias=True is not supported for Embedding, as in PEFT; leave it out.")
        if base.max_norm is not None:
            raise ValueError(
                f"max_norm={base.max_norm} of an Embedding shortens vectors as they are looked up, so that an adapter "
                "merged into them would give others than one beside them. Leave the layer out."
            )

    def make_factors(self, r: int, bias: bool) -> tuple[nn.Module, nn.Module]:
        """Columns of A are looked up, and mapped by B."""
        return RankFirstEmbedding(self.base_layer, r), nn.Linear(r, self.out_features, bias=False)

    def reset_lora_parameters(self, adapter_name: str, init_lora_weights: bool | str) -> None:
        """As PEFT does for embeddings, but for the paper's way."""
        super().reset_lora_parameters(adapter_name, init_lora_weights)
        if init_lora_weights not in (False, "paper"):
            A, B, _ = self.parts(adapter_name)
            nn.init.zeros_(A.weight)
            nn.init.normal_(B.weight)

    def to_groups(self, weight: Tensor) -> Tensor:
        """The matrix (embedding_dim, num_embeddings), as the only group."""
        return weight.T.unsqueeze(0)

    def from_groups(self, matrices: Tensor) -> Tensor:
        """Undo `to_groups`."""
        return matrices.squeeze(0).T

    def run_base(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """An embedding takes nothing but `x`."""
        return _look_up(self.base_layer, x, weight)

    def drop(self, adapter: str, x: Tensor) -> Tensor:
        """Numbers are not dropped."""
        return x

    def _cast_input_dtype(self, x: Any, dtype: Any) -> Any:
        return x


class RankFirstEmbedding(nn.Module):
    """A of an embedding: a weight (r, num_embeddings) whose columns are looked up."""

    def __init__(self, base: nn.Embedding, r: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(base.weight.new_empty(r, base.num_embeddings))
        self.padding_idx, self.scale_grad_by_freq = base.padding_idx, base.scale_grad_by_freq

    def forward(self, x: Tensor) -> Tensor:
        """From (...) to (..., r)."""
        return _look_up(self, x, self.weight.T)


def _look_up(layer: Any, x: Tensor, weight: Tensor) -> Tensor:
    """The vector of `padding_idx` gets no gradient."""
    return F.embedding(x, weight, padding_idx=layer.padding_idx, scale_grad_by_freq=layer.scale_grad_by_freq)
