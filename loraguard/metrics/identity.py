"""How much of a face's identity a defense takes from an edit."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cosine_similarity


def identity_disruption(preds: Tensor, target: Tensor, images: Tensor) -> Tensor:
    """CIDR of each image, the calibrated identity disruption rate of the Proactive Defense Benchmark (ICML 2026).

    `max(0, 1 - d(x, G(x)) / d(x, G(x + p)))`, where d is 1 less the cosine between the embeddings of two faces: what
    the edit itself does to the identity is divided out. It is 0 where the output on the perturbed photo is no further
    from the photo than the output on the clean one. The formula is that of the benchmark's published code
    (`evaluation/evaluate_id.py`), which takes ArcFace on the middle of the face at 112 pixels; figures by another face
    encoder are not comparable with theirs.

    Args:
        preds: embeddings of the outputs on perturbed photos, (N, D).
        target: embeddings of the outputs on the photos as they are, (N, D).
        images: embeddings of the photos, (N, D).

    Returns:
        (N,), from 0 to 1; high is good for the defender.

    Example:
        >>> import torch
        >>> photo, edit, spoilt = torch.tensor([[1.0, 0]]), torch.tensor([[3.0, 4]]), torch.tensor([[0, 1.0]])
        >>> identity_disruption(spoilt, edit, photo)  # distances of 1 and of 0.4
        tensor([0.6000])
    """
    by_edit, by_both = (1 - cosine_similarity(images, one) for one in (target, preds))
    return (1 - by_edit / by_both.clamp_min(1e-12)).clamp(0, 1).where(by_both > 0, by_both.new_zeros(()))
