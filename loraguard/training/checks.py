"""What is tried before a training starts, so that what cannot work is said then."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from loraguard.pixels import LEVELS_PER_UNIT
from loraguard.tuner import GatedLoraLayer

from .batches import Batch, Batches
from .modes import adapter_training
from .step import Overlay, target_of
from .untouched import buffers_stay, wrapper_of


def check_adapter(model: Any) -> None:
    """Refuse a model without a GATED_LORA adapter.

    Raises:
        TypeError: if it has none.
    """
    if not isinstance(model, PeftModel) or not any(isinstance(module, GatedLoraLayer) for module in model.modules()):
        if isinstance(model, torch.nn.Module) and (wrapper := wrapper_of(model)):
            raise TypeError(
                f"A {wrapper} wraps the model: give the model itself, as get_peft_model made it. PatchTrainer compiles "
                "it (torch_compile=True) and spreads it over processes (accelerate launch)."
            )
        raise TypeError(
            f"{type(model).__name__} has no GATED_LORA adapter to train; wrap the generator first: "
            "get_peft_model(generator, GatedLoraConfig())."
        )


def check_data(model: PeftModel, adapter: str, batches: Batches, stamp: Overlay | None) -> list[str]:
    """Run the network on the first photo with every edit, as training will: untouched, stamped, and with its adapter.

    Returns:
        The edits' names.

    Raises:
        ValueError: if there is no photo, or a photo, the output or the stamp has a wrong shape, type or range, no
            gradient reaches the adapter, or calling the network changes it.
        TypeError: if the generator cannot be called with the edits, or gives no tensor.
        FloatingPointError: if its output is not finite.
    """
    if not len(batches):
        raise ValueError(f"The data set is empty: {type(batches.dataset).__name__} has no images.")
    batch = batches.first(1)
    if batch.images.min() >= 0:
        warnings.warn(
            f"The first image has values from {batch.images.min():.3g} to {batch.images.max():.3g} and none below 0. "
            "Images are expected in [-1, 1]: if yours are in [0, 1], scale them by 2 * x - 1.",
            stacklevel=3,
        )
    with buffers_stay(model.to(batch.images.device)), adapter_training(model, adapter):
        output = _untouched(model, batch)
        _check_output(output, batch.images)
        learns = model(batch.images, **batch.condition).requires_grad
    if stamp is not None:
        moved = float((stamp.compose(output) - output).abs().max())  # a stamp that does not fit says so
        if moved < 1 / LEVELS_PER_UNIT:
            raise ValueError(
                f"The stamp moves no pixel of the generator's outputs for the first image (by {moved:.2g} at most, on "
                "[-1, 1]): it has their colour. Give it another colour, an outline or a background."
            )
    if not learns:
        raise ValueError(
            "No gradient reaches the adapter: the generator's forward runs under torch.no_grad, detaches what it "
            "gives, or recomputes by torch.utils.checkpoint with use_reentrant=True (use False)."
        )
    return batch.edits


def _untouched(model: PeftModel, batch: Batch) -> Tensor:
    """What the untouched generator gives; of its errors, those whose cause is known are explained."""
    try:
        return target_of(model, batch.images, batch.condition, stamp=None)
    except TypeError as error:
        raise TypeError(
            f"{type(model.get_base_model()).__name__} cannot be called with images and {sorted(batch.condition)}: "
            f"{error!s:.250}. Pass `conditions`, a function from labels to the generator's inputs."
        ) from error
    except RuntimeError as error:
        if "channels" in str(error):
            raise ValueError(
                f"The generator does not take images {tuple(batch.images.shape)}: {error!s:.250}. Give a data set "
                "whose images have as many channels as its first layer takes."
            ) from error
        kinds = {one.dtype for one in model.get_base_model().parameters() if one.is_floating_point()}
        if kinds <= {batch.images.dtype}:
            raise
        raise ValueError(
            f"The generator has weights in {', '.join(sorted(map(str, kinds)))} and images are in "
            f"{batch.images.dtype}: {error!s:.250}. Call generator.float() before get_peft_model; mixed_precision= "
            "saves time and memory."
        ) from error


def _check_output(output: Any, images: Tensor) -> None:
    if not isinstance(output, Tensor):
        raise TypeError(
            f"The generator gives {type(output).__name__}; a patch needs one that gives images alone. Give it a "
            "forward that does, as docs/own-network.md shows."
        )
    if output.ndim != 4 or len(output) != len(images):
        raise ValueError(
            f"The generator turns images {tuple(images.shape)} into {tuple(output.shape)}; a patch needs a "
            f"generator that gives an image for each, ({len(images)}, C, H', W') of any height and width."
        )
    if not torch.isfinite(output).all():
        raise FloatingPointError("The untouched generator's own outputs are not finite (NaN or infinity).")
    if images.min() < 0 <= output.min():
        warnings.warn(
            f"The generator's outputs on the first image are from {output.min():.3g} to {output.max():.3g}, none "
            "below 0. They are expected in [-1, 1]: if they are in [0, 1], give it a forward with 2 * y - 1.",
            stacklevel=4,
        )
