"""What a checkpoint of HiSD says about the network that it is for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count, takewhile
from typing import Any

from torch import Tensor

Tags = Sequence[tuple[str, Sequence[str]]]
"""Names of tags, each with the names of its attributes."""

CELEBA_TAGS = (
    ("Bangs", ("with", "without")),
    ("Eyeglasses", ("with", "without")),
    ("HairColor", ("black", "blond", "brown")),
)
"""The tags of the official checkpoints."""


def settings_from(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The settings of :class:`~loraguard.generators.HiSD`, from the shapes in a state dict.

    Names of tags are not in there: two, two and three attributes are taken for the official tags, others are numbered.
    Nor is the image size: both official networks' extractors end on 4x4, and so is this one's taken to.

    Returns:
        All settings; none at all if the state dict is another network's.

    Example:
        >>> import torch
        >>> settings_from({"main.0.weight": torch.zeros(3)})
        {}
    """

    def widths(name: str, start: int = 0) -> list[int]:
        names = (name.format(i) for i in count(start))
        return [len(state[name]) for name in takewhile(state.__contains__, names)]

    def children(name: str) -> int:
        return len({key.removeprefix(name).partition(".")[0] for key in state if key.startswith(name)})

    try:
        extractor = [len(state["extractors.model.0.weight"]), *widths("extractors.model.{}.conv2.weight", 1)]
        shared = [len(state["mappers.0.pre_model.0.weight"]), *widths("mappers.0.pre_model.{}.linear.weight", 1)]
        attributes = [children(f"mappers.{tag}.post_models.") for tag in range(children("mappers."))]
        numbered = [[f"tag{i}", [f"attribute{j}" for j in range(n)]] for i, n in enumerate(attributes)]
        return {
            "tags": CELEBA_TAGS if attributes == [len(names) for _, names in CELEBA_TAGS] else numbered,
            "size": 4 * 2 ** (len(extractor) - 1),
            "encoder_channels": [len(state["encoder.0.weight"]), *widths("encoder.{}.conv2.weight", 1)],
            "decoder_channels": [state["decoder.0.sc.weight"].shape[1], *widths("decoder.{}.conv2.weight")],
            "extractor_channels": extractor,
            "translator_channels": [
                len(state["translators.0.model.0.weight"]), *widths("translators.0.model.{}.conv2.weight", 1)
            ],
            "mapper_pre_channels": shared,
            "mapper_post_channels": [shared[-1], *widths("mappers.0.post_models.0.{}.linear.weight")],
            "style_dim": state["translators.0.style_to_params.weight"].shape[1],
            "noise_dim": state["mappers.0.pre_model.0.weight"].shape[1],
        }  # fmt: skip
    except (KeyError, IndexError, TypeError):
        return {}  # no checkpoint of HiSD: loading it will say what is missing
