"""Editors made of diffusers' parts: img2img, InstructPix2Pix and inpainting, differentiable and the same every time."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from .autoencoder import AUTOENCODER_PARTS, Autoencoding
from .base import LatentDiffusion, drawn
from .denoisers import NAMES, find_denoiser
from .loading import load_pipeline
from .schedules import levels_of, noise_of, timesteps

E = TypeVar("E", bound="DiffusersEditor")


class DiffusersEditor(Autoencoding, LatentDiffusion):
    """What the editors share. Prompts are encoded once, here; the text encoders are not kept.

    The latents of a photo are the mean of what the encoder gives, where pipelines draw from its distribution. What else
    is drawn comes from a stream for each photo, as a pipeline draws it that is called with a list of generators.

    Args:
        pipe: a pipeline of diffusers, of which the autoencoder, the denoiser and the scheduler are used.
        prompts: the edits, each also its name; numbers or names of classes for a denoiser with classes.
        negative_prompt: what guidance leads away from.
        steps: of the scheduler, as a pipeline's `num_inference_steps`.
        strength: which part of the steps is done, from how much noise: in (0, 1].
        guidance_scale: of classifier-free guidance; 1 for none.
        seed: of the noise of photos for which no seeds are given.
        size: side of the square images that `transform` makes.
        checkpointing: compute activations a second time in the backward pass instead of keeping them.

    Raises:
        ValueError: for settings out of range, or a pipeline whose parts are not known.
    """

    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {**AUTOENCODER_PARTS, "denoiser": NAMES}
    name_or_path: str
    whole = False
    """Whether an edit takes all steps, whatever its strength."""

    def __init__(
        self,
        pipe: Any,
        prompts: Sequence[str] = ("",),
        *,
        negative_prompt: str = "",
        steps: int = 4,
        strength: float = 0.5,
        guidance_scale: float = 1.0,
        seed: int = 0,
        size: int = 512,
        checkpointing: bool = False,
    ) -> None:
        super().__init__(pipe.vae, size, checkpointing)
        strength = 1.0 if self.whole else strength
        if steps < 1 or not 0 < strength <= 1 or steps * strength < 1 or not prompts:
            raise ValueError(
                f"Expected a prompt, steps >= 1 and 0 < strength <= 1 with steps * strength >= 1, or nothing would be "
                f"edited; got prompts={tuple(prompts)!r:.100}, steps={steps}, strength={strength}."
            )
        prompts = (prompts,) if isinstance(prompts, str) else prompts
        name, denoiser, self.denoising = find_denoiser(pipe)
        self.components = ("vae", name)
        self.add_module(name, denoiser.eval())
        self.scheduler, self.num_timesteps = pipe.scheduler, pipe.scheduler.config.num_train_timesteps
        self.prompts, self.steps, self.strength = tuple(prompts), steps, strength
        self.guidance_scale, self.seed = guidance_scale, seed
        with torch.no_grad():
            made = [self.denoising.encode(pipe, prompt, negative_prompt) for prompt in self.prompts]
        rows = [with_prompt for with_prompt, _ in made] + [made[0][1]]
        self._inputs = tuple(rows[0])
        for key in self._inputs:
            self.register_buffer(f"prompt_{key}", torch.cat([row[key] for row in rows]), persistent=False)

    def forward(
        self, images: Tensor, edit: Tensor | None = None, seeds: Tensor | None = None, **further: Any
    ) -> Tensor:
        """Edit images.

        Args:
            images: (N, 3, H, W) in [-1, 1], H and W multiples of the autoencoder's compression.
            edit: which prompt, (N,) integers; the first by default.
            seeds: of the noise of each photo, (N,) integers; by default the editor's for all of them.
            further: what else a kind of editor takes.

        Returns:
            Images of the same shape and range.
        """
        edit = torch.zeros(len(images), dtype=torch.long) if edit is None else edit
        photo = self.photo_latents(images, **further)
        streams = self.streams(len(images), seeds)
        scheduler = copy.deepcopy(self.scheduler)
        times = timesteps(scheduler, self.denoising, self.steps, self.strength, photo)
        latents = self.begin(scheduler, times, photo, drawn(streams, photo))
        takes = inspect.signature(scheduler.step).parameters
        draws = {"generator": streams} if "generator" in takes else {}
        for time in times:
            seen = scheduler.scale_model_input(latents, time) if hasattr(scheduler, "scale_model_input") else latents
            predicted = self.kept_low(self.guided, seen, time.to(seen.device), photo, edit, further)
            latents = scheduler.step(predicted, time, latents, **draws, return_dict=False)[0]
        return self.decode(latents)

    def conditions(self, labels: Tensor) -> dict[str, dict[str, Tensor]]:
        """One edit for each prompt; of labels (N, anything) only the number and the device are read."""
        return {
            prompt or "output": {"edit": torch.full((len(labels),), i, device=labels.device)}
            for i, prompt in enumerate(self.prompts)
        }

    def photo_latents(self, images: Tensor, **further: Any) -> Tensor:
        """The latents of photos (N, 3, H, W), as the denoiser is to know them."""
        return self.encode(images)

    def begin(self, scheduler: Any, times: Tensor, photo: Tensor, noise: Tensor) -> Tensor:
        """The latents (N, c, h, w) that the steps begin with: the photo's, noised."""
        first = times[:1].repeat(len(photo))
        if self.denoising.flow:
            return scheduler.scale_noise(photo, first, noise)
        return scheduler.add_noise(photo, noise, first)

    def guided(self, seen: Tensor, time: Tensor, photo: Tensor, edit: Tensor, further: Mapping[str, Any]) -> Tensor:
        """The denoiser's output at one time, with guidance where there is any."""
        times = time.expand(len(seen))
        with_prompt = self.asked(self.beside(seen, photo, **further), times, edit)
        if self.guidance_scale <= 1 or self.denoising.embedded_guidance:
            return with_prompt
        without = self.asked(self.beside(seen, photo, **further), times, torch.full_like(edit, len(self.prompts)))
        return without + self.guidance_scale * (with_prompt - without)

    def beside(self, latents: Tensor, photo: Tensor, **further: Any) -> Tensor:
        """What the denoiser sees: latents alone, or with what the photo gives beside them."""
        return latents

    def asked(self, seen: Tensor, times: Tensor, edit: Tensor) -> Tensor:
        """The denoiser's output for prompts by number (N,)."""
        rows = edit.to(seen.device)
        inputs = {key: getattr(self, f"prompt_{key}")[rows] for key in self._inputs}
        size = [self.size_multiple * side for side in seen.shape[-2:]]
        network = self.get_submodule(self.components[1])
        return self.denoising.predict(network, seen, times, inputs, self.guidance_scale, size)

    def levels(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """How much of the latents and how much noise there is at times (N,), by the scheduler's training schedule."""
        return levels_of(self.scheduler, self.denoising, times)

    def predict_noise(
        self, noised: Tensor, times: Tensor, photo: Tensor, edit: Tensor | None = None, **further: Any
    ) -> Tensor:
        """The noise that the denoiser finds; see :class:`LatentDiffusion`. Without guidance."""
        further.pop("seeds", None)
        edit = torch.zeros(len(noised), dtype=torch.long) if edit is None else edit
        asked_at = times + 1 if self.denoising.flow else times
        made = self.kept_low(self.asked, self.beside(noised, photo, **further), asked_at.to(noised.device), edit)
        return noise_of(self.scheduler, self.denoising, made, noised, *self.levels(times))

    def first_output(
        self, noise: Tensor, photo: Tensor, edit: Tensor | None = None, seeds: Tensor | None = None, **further: Any
    ) -> Tensor:
        """What the denoiser gives for noise at the last time, as it gives it; without guidance."""
        edit = torch.zeros(len(noise), dtype=torch.long) if edit is None else edit
        last = noise.new_full((len(noise),), self.num_timesteps - (not self.denoising.flow))
        return self.kept_low(self.asked, self.beside(noise, photo, **further), last, edit)

    @classmethod
    def from_pretrained(cls: type[E], source: str | Path, prompts: Sequence[str] = ("",), **settings: Any) -> E:
        """From a pipeline in a local folder or on the Hub, by diffusers' own loader; safetensors alone.

        Raises:
            ValueError: if there is no such pipeline, or its weights are no safetensors.
            OSError: if it cannot be had.
        """
        editor = cls(load_pipeline(source), prompts, **settings).eval()
        editor.name_or_path = str(source)
        return editor


class LatentEditor(DiffusersEditor):
    """SDEdit (arXiv 2108.01073), or img2img: a photo's latents are noised, and denoised under a prompt.

    Takes any pipeline whose denoiser is a UNet with text or classes (Stable Diffusion 1, 2, XL, and their turbos), a
    DiT with classes, or a flow-matching one of SD3's or Flux's kind. See :class:`DiffusersEditor` for the settings.

    Example:
        >>> from diffusers import AutoencoderKL, DDIMScheduler, UNet2DModel
        >>> from types import SimpleNamespace
        >>> unet = UNet2DModel(in_channels=4, out_channels=4, num_class_embeds=3, block_out_channels=(4,),
        ...     down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), norm_num_groups=2,
        ...     attention_head_dim=2)
        >>> vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2)
        >>> pipe = SimpleNamespace(vae=vae, unet=unet, scheduler=DDIMScheduler())
        >>> editor = LatentEditor(pipe, ["0", "2"], steps=2)
        >>> edits = editor.conditions(torch.zeros(1, 0))
        >>> editor(torch.zeros(1, 3, 16, 16), **edits["2"]).shape
        torch.Size([1, 3, 16, 16])
    """


class InstructEditor(DiffusersEditor):
    """InstructPix2Pix (arXiv 2211.09800): from noise, with the photo's latents beside what is denoised.

    Args:
        image_guidance_scale: how strongly guidance leads to the photo.

    See :class:`DiffusersEditor` for the other settings; all steps are done.
    """

    whole = True

    def __init__(
        self, pipe: Any, prompts: Sequence[str] = ("",), *, image_guidance_scale: float = 1.5,
        negative_prompt: str = "", steps: int = 4, guidance_scale: float = 7.5, seed: int = 0, size: int = 512,
        checkpointing: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(
            pipe, prompts, negative_prompt=negative_prompt, steps=steps, guidance_scale=guidance_scale, seed=seed,
            size=size, checkpointing=checkpointing,
        )  # fmt: skip
        self.image_guidance_scale = image_guidance_scale

    def begin(self, scheduler: Any, times: Tensor, photo: Tensor, noise: Tensor) -> Tensor:
        """Noise alone."""
        return noise * scheduler.init_noise_sigma

    def beside(self, latents: Tensor, photo: Tensor, **further: Any) -> Tensor:
        """Latents, and those of the photo, which this network knows as the encoder gives them."""
        return torch.cat([latents, photo / self.scale + self.shift], 1)

    def guided(self, seen: Tensor, time: Tensor, photo: Tensor, edit: Tensor, further: Mapping[str, Any]) -> Tensor:
        """Equation 3 of the paper: guided to the prompt and, apart from it, to the photo."""
        times, no_prompt = time.expand(len(seen)), torch.full_like(edit, len(self.prompts))
        both = self.asked(self.beside(seen, photo), times, edit)
        if self.guidance_scale <= 1:
            return both
        photo_alone = self.asked(self.beside(seen, photo), times, no_prompt)
        neither = self.asked(torch.cat([seen, torch.zeros_like(photo)], 1), times, no_prompt)
        towards_photo = self.image_guidance_scale * (photo_alone - neither)
        return neither + self.guidance_scale * (both - photo_alone) + towards_photo


class Inpainter(DiffusersEditor):
    """Inpainting by a denoiser that sees a mask and the masked photo's latents: what the mask covers is made anew.

    Args:
        kept: what is not covered, as (top, left, bottom, right) in parts of the photo; by default the middle, which
            holds the face. An edit's `mask` (N, 1, H, W), 1 where it covers, overrides it.

    See :class:`DiffusersEditor` for the other settings.

    Raises:
        ValueError: for a denoiser that takes no mask.
    """

    def __init__(
        self, pipe: Any, prompts: Sequence[str] = ("",), *, kept: Sequence[float] = (0.2, 0.25, 0.8, 0.75),
        negative_prompt: str = "", steps: int = 4, strength: float = 1.0, guidance_scale: float = 1.0, seed: int = 0,
        size: int = 512, checkpointing: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(
            pipe, prompts, negative_prompt=negative_prompt, steps=steps, strength=strength,
            guidance_scale=guidance_scale, seed=seed, size=size, checkpointing=checkpointing,
        )  # fmt: skip
        network: Any = self.get_submodule(self.components[1])
        expected = 2 * pipe.vae.config.latent_channels + 1
        if network.config.in_channels != expected:
            raise ValueError(
                f"An inpainting denoiser takes {expected} channels: latents, mask and masked latents; this one takes "
                f"{network.config.in_channels}. Give an inpainting pipeline, or use LatentEditor."
            )
        if len(kept) != 4 or not (0 <= kept[0] < kept[2] <= 1 and 0 <= kept[1] < kept[3] <= 1):
            raise ValueError(f"kept={tuple(kept)!r} must be (top, left, bottom, right) in parts of the photo.")
        self.kept = tuple(float(end) for end in kept)

    def mask_for(self, images: Tensor) -> Tensor:
        """The mask (N, 1, H, W) of photos for which no other is given: 1 where it covers."""
        height, width = images.shape[-2:]
        top, left, bottom, right = (round(end * side) for end, side in zip(self.kept, (height, width) * 2, strict=True))
        mask = images.new_ones(len(images), 1, height, width)
        mask[:, :, top:bottom, left:right] = 0
        return mask

    def photo_latents(self, images: Tensor, mask: Tensor | None = None, **further: Any) -> Tensor:
        """The latents of photos, grey where the mask covers them."""
        mask = self.mask_for(images) if mask is None else mask.to(images)
        return self.encode(images * (mask < 0.5))

    def begin(self, scheduler: Any, times: Tensor, photo: Tensor, noise: Tensor) -> Tensor:
        """Noise alone at strength 1; otherwise the masked photo's latents, noised."""
        if self.strength == 1:
            return noise * scheduler.init_noise_sigma
        return super().begin(scheduler, times, photo, noise)

    def beside(self, latents: Tensor, photo: Tensor, mask: Tensor | None = None, **further: Any) -> Tensor:
        """Latents, the mask at their size, and the masked photo's latents."""
        height, width = (self.size_multiple * side for side in latents.shape[-2:])
        mask = self.mask_for(latents.new_empty(len(latents), 3, height, width)) if mask is None else mask.to(latents)
        return torch.cat([latents, F.interpolate(mask, size=latents.shape[-2:]), photo], 1)
