"""Noise schedules of diffusers' schedulers: which times an edit takes, how much noise there is, and what it is.

At time t, noised latents are `z_t = a z + b n`. With `alphas_cumprod`, `a^2` is its value at t and `b^2 = 1 - a^2`
(arXiv 2006.11239, equation 4). In flow matching, `a = 1 - s` and `b = s` for s = (t + 1) / T (arXiv 2210.02747).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from .denoisers import Denoising, Flux


def timesteps(scheduler: Any, denoising: Denoising, steps: int, strength: float, latents: Tensor) -> Tensor:
    """The times of an edit, from the one where the photo is noised to; the scheduler is set to begin there.

    Where `steps * strength` is no whole number, pipelines with a UNet do fewer steps, and those of SD3 and Flux more.
    """
    scheduler.set_timesteps(**_how_many(scheduler, denoising, steps, latents))
    skipped = int(steps - steps * strength) if denoising.flow else steps - int(steps * strength)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(skipped * scheduler.order)
    return scheduler.timesteps[skipped * scheduler.order :]


def _how_many(scheduler: Any, denoising: Denoising, steps: int, latents: Tensor) -> dict[str, Any]:
    """What a pipeline passes to `set_timesteps`."""
    settings = scheduler.config
    given: dict[str, Any] = {"num_inference_steps": steps}
    if not denoising.flow:
        return given
    if settings.get("use_dynamic_shifting"):
        tokens = latents.shape[-2] * latents.shape[-1] // 4
        low, high = settings.get("base_image_seq_len", 256), settings.get("max_image_seq_len", 4096)
        least, most = settings.get("base_shift", 0.5), settings.get("max_shift", 1.15)
        given["mu"] = least + (most - least) * (tokens - low) / (high - low)
    if isinstance(denoising, Flux):
        given["sigmas"] = np.linspace(1.0, 1 / steps, steps)
    return given


def levels_of(scheduler: Any, denoising: Denoising, times: Tensor) -> tuple[Tensor, Tensor]:
    """The levels a and b, each (N, 1, 1, 1), at times (N,) below the number of the scheduler's training steps."""
    if denoising.flow:
        noise = (times.float() + 1) / scheduler.config.num_train_timesteps
        return (1 - noise)[:, None, None, None], noise[:, None, None, None]
    kept = scheduler.alphas_cumprod.to(times.device)[times][:, None, None, None]
    return kept.sqrt(), (1 - kept).sqrt()


def noise_of(scheduler: Any, denoising: Denoising, made: Tensor, noised: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The noise, from what a denoiser gives for `z_t = a z + b n`.

    Raises:
        ValueError: for a kind of prediction that is not known.
    """
    a, b = a.to(noised), b.to(noised)
    if denoising.flow:
        return noised + a * made
    return predicted_noise(scheduler.config.prediction_type, made, noised, a, b)


def predicted_noise(kind: str, made: Tensor, noised: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The noise in `a z + b n`, from what a denoiser gives for it, by the kind of prediction as diffusers calls it.

    Raises:
        ValueError: for a kind that is not known.

    Example:
        >>> import torch
        >>> one = torch.ones(1)
        >>> predicted_noise("sample", made=one, noised=3 * one, a=one, b=2 * one)
        tensor([1.])
    """
    if kind == "epsilon":
        return made
    if kind == "v_prediction":  # v = a n - b z (arXiv 2202.00512)
        return a * made + b * noised
    if kind == "sample":
        return (noised - a * made) / b
    raise ValueError(f"The scheduler says that the denoiser predicts {kind!r}, which is not known.")
