"""Denoisers of diffusers, each asked in its own way: what a prompt becomes, and how noise is predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Inputs = Mapping[str, Tensor]
"""What a denoiser gets beside latents and times, a row for each."""


class Denoising:
    """How a kind of denoiser is asked; subclasses say what differs.

    Attributes:
        flow: whether it predicts velocities `n - z` of `(1 - s) z + s n`.
        embedded_guidance: whether guidance is an input of the network, and no second prediction.
    """

    flow = False
    embedded_guidance = False

    def encode(self, pipe: Any, prompt: str, negative: str) -> tuple[Inputs, Inputs]:
        """What the denoiser gets for a prompt, and for the one to be guided away from, each (1, ...)."""
        raise NotImplementedError

    def predict(
        self, denoiser: nn.Module, latents: Tensor, times: Tensor, inputs: Inputs, guidance: float, size: Sequence[int]
    ) -> Tensor:
        """The denoiser's output for latents (N, c, h, w) at times (N,); `size` is (height, width) of the images."""
        raise NotImplementedError


class TextUNet(Denoising):
    """UNet2DConditionModel, of Stable Diffusion 1, 2 and XL."""

    def encode(self, pipe: Any, prompt: str, negative: str) -> tuple[Inputs, Inputs]:
        """Text embeddings; of XL the pooled ones, too."""
        settings = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
        if not hasattr(pipe, "encode_prompt"):  # InstructPix2Pix
            text, without, _ = pipe._encode_prompt(prompt, **settings, negative_prompt=negative or None).chunk(3)
            return {"text": text}, {"text": without}
        text, without, *pooled = pipe.encode_prompt(prompt, **settings, negative_prompt=negative or None)
        if not pooled:
            return {"text": text}, {"text": without}
        return {"text": text, "pooled": pooled[0]}, {"text": without, "pooled": pooled[1]}

    def predict(
        self, denoiser: nn.Module, latents: Tensor, times: Tensor, inputs: Inputs, guidance: float, size: Sequence[int]
    ) -> Tensor:
        """XL also gets the sizes before and after cropping, here those of the photo, and where it was cropped."""
        further: dict[str, Any] = {}
        if "pooled" in inputs:
            sizes = inputs["pooled"].new_tensor([*size, 0, 0, *size]).expand(len(latents), -1)
            further["added_cond_kwargs"] = {"text_embeds": inputs["pooled"], "time_ids": sizes}
        return denoiser(latents, times, encoder_hidden_states=inputs["text"], return_dict=False, **further)[0]


class ClassDenoiser(Denoising):
    """DiTTransformer2DModel and UNet2DModel with class labels; prompts are the labels' numbers or names."""

    def encode(self, pipe: Any, prompt: str, negative: str) -> tuple[Inputs, Inputs]:
        """The label, and the one past the last, which stands for none where the network was trained for guidance."""
        names = dict(getattr(pipe, "labels", None) or {})
        network: Any = _denoiser_of(pipe)
        settings = network.config
        count = getattr(settings, "num_embeds_ada_norm", None) or getattr(settings, "num_class_embeds", None)
        label = names.get(prompt, int(prompt) if prompt.isdigit() else None)
        if label is None or (count is not None and not 0 <= label < count):
            some = ", ".join(list(names)[:5]) or f"0 to {(count or 1) - 1}"
            raise ValueError(f"{prompt!r} is no class of {type(pipe).__name__}; it has {some}.")
        return {"label": torch.tensor([label])}, {"label": torch.tensor([count or 0])}

    def predict(
        self, denoiser: nn.Module, latents: Tensor, times: Tensor, inputs: Inputs, guidance: float, size: Sequence[int]
    ) -> Tensor:
        """A network that predicts the noise's variance, too, gives twice the channels; the first half is noise."""
        made = denoiser(latents, times, class_labels=inputs["label"], return_dict=False)[0]
        return made[:, : latents.shape[1]]


class SD3(Denoising):
    """SD3Transformer2DModel."""

    flow = True

    def encode(self, pipe: Any, prompt: str, negative: str) -> tuple[Inputs, Inputs]:
        """Text embeddings, one for each token and pooled."""
        text, without, pooled, pooled_without = pipe.encode_prompt(
            prompt, None, None, device="cpu", num_images_per_prompt=1, negative_prompt=negative or None
        )
        return {"text": text, "pooled": pooled}, {"text": without, "pooled": pooled_without}

    def predict(
        self, denoiser: nn.Module, latents: Tensor, times: Tensor, inputs: Inputs, guidance: float, size: Sequence[int]
    ) -> Tensor:
        """As the pipeline asks it."""
        return denoiser(
            hidden_states=latents, timestep=times, encoder_hidden_states=inputs["text"],
            pooled_projections=inputs["pooled"], return_dict=False,
        )[0]  # fmt: skip


class Flux(Denoising):
    """FluxTransformer2DModel: latents go in as squares of two by two, each with its place."""

    flow = True
    embedded_guidance = True

    def encode(self, pipe: Any, prompt: str, negative: str) -> tuple[Inputs, Inputs]:
        """Text embeddings, one for each token and pooled."""
        made = []
        for text in (prompt, negative):
            embeddings, pooled, _ = pipe.encode_prompt(text, None, device="cpu")
            made.append({"text": embeddings, "pooled": pooled})
        return made[0], made[1]

    def predict(
        self, denoiser: nn.Module, latents: Tensor, times: Tensor, inputs: Inputs, guidance: float, size: Sequence[int]
    ) -> Tensor:
        """As the pipeline asks it; the network counts time from 0 to 1."""
        network: Any = denoiser
        n, channels, height, width = latents.shape
        squares = latents.view(n, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
        rows, columns = torch.meshgrid(torch.arange(height // 2), torch.arange(width // 2), indexing="ij")
        places = torch.stack([torch.zeros_like(rows), rows, columns], -1).view(-1, 3).to(latents)
        made = network(
            hidden_states=squares.reshape(n, -1, 4 * channels), timestep=times / 1000,
            guidance=latents.new_full((n,), guidance) if network.config.guidance_embeds else None,
            pooled_projections=inputs["pooled"], encoder_hidden_states=inputs["text"],
            txt_ids=latents.new_zeros(inputs["text"].shape[1], 3), img_ids=places, return_dict=False,
        )[0]  # fmt: skip
        made = made.view(n, height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return made.reshape(latents.shape)


KINDS: dict[str, type[Denoising]] = {
    "UNet2DConditionModel": TextUNet,
    "UNet2DModel": ClassDenoiser,
    "DiTTransformer2DModel": ClassDenoiser,
    "SD3Transformer2DModel": SD3,
    "FluxTransformer2DModel": Flux,
}
"""By the class of the denoiser."""

NAMES = ("unet", "transformer")
"""What pipelines call their denoiser."""


def _denoiser_of(pipe: Any) -> nn.Module:
    return next(part for name in NAMES if (part := getattr(pipe, name, None)) is not None)


def find_denoiser(pipe: Any) -> tuple[str, nn.Module, Denoising]:
    """A pipeline's denoiser: its name there, itself, and how it is asked.

    Raises:
        ValueError: if there is none of the kinds in :data:`KINDS`.
    """
    found = [(name, part) for name in NAMES if (part := getattr(pipe, name, None)) is not None]
    kinds = [(name, part, KINDS[type(part).__name__]()) for name, part in found if type(part).__name__ in KINDS]
    if not kinds:
        there = ", ".join(type(part).__name__ for _, part in found) or "none"
        raise ValueError(
            f"{type(pipe).__name__} has no denoiser that loraguard knows how to ask: it has {there}, and known are "
            f"{', '.join(KINDS)}."
        )
    return kinds[0]
