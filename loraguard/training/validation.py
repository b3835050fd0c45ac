"""What a patch is worth on held-out images while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftModel
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from loraguard.defenses import AnyDefense
from loraguard.files import whole_files, writable_folder
from loraguard.generators import Condition
from loraguard.metrics import defense_succeeds, mean_squared_error, psnr
from loraguard.pixels import as_rgb, to_picture
from loraguard.tuner import folded
from loraguard.tuner.switching import without_adapters

from .batches import Batch
from .step import Overlay, target_of

ROWS = ("photo", "target", "patched, clean", "patched, no leak", "patched, leak")
"""What the rows of a validation picture show."""


def validate(
    model: PeftModel, images: Tensor, condition: Condition, *, adversary: AnyDefense, stamp: Overlay | None, seed: int
) -> tuple[dict[str, float], Tensor]:
    """Clean utility and robustness of a patch, against the training's own adversary; an audit tells more.

    The global random state is as before afterwards.

    Args:
        model: the generator with its patch.
        images: held-out images (N, 3, H, W) in [-1, 1].
        condition: an edit for each.
        adversary: crafts the perturbations, on the untouched generator (no leak) and on the patched one (leak).
        stamp: of a defensive patch.
        seed: of the adversary's random starts.

    Returns:
        Means over the images, by name: `clean_mse`, `clean_psnr` in dB, and for both kinds of perturbations the MSE to
        the target and the share of images on which it is over 0.05, `no_leak_dsr` and `leak_dsr`. And outputs to show,
        (5, N, 3, H, W), in the order of :data:`ROWS`.

    Example:
        >>> from peft import get_peft_model
        >>> from loraguard import GatedLoraConfig
        >>> from loraguard.defenses import Disrupting
        >>> model = get_peft_model(torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1)), GatedLoraConfig(r=2))
        >>> metrics, shown = validate(model, torch.zeros(2, 3, 8, 8), {}, adversary=Disrupting(), stamp=None, seed=0)
        >>> metrics["clean_mse"], shown.shape
        (0.0, torch.Size([5, 2, 3, 8, 8]))
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    devices = [images.device.index or 0] if images.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices), folded(model):
            target = target_of(model, images, condition, stamp)
            torch.manual_seed(seed)
            with without_adapters(model):
                no_leak = adversary(model, images, condition)
            torch.manual_seed(seed)
            leak = adversary(model, images, condition)
            with torch.no_grad():
                outputs = {
                    name: model(photos, **condition)
                    for name, photos in (("clean", images), ("no_leak", no_leak), ("leak", leak))
                }
    finally:
        for module, mode in modes.items():
            module.training = mode
    metrics = {"clean_mse": mean_squared_error(outputs["clean"], target), "clean_psnr": psnr(outputs["clean"], target)}
    for name in ("no_leak", "leak"):
        metrics[f"{name}_mse"] = mean_squared_error(outputs[name], target)
        metrics[f"{name}_dsr"] = defense_succeeds(outputs[name], target)
    finite = {name: values[torch.isfinite(values)] for name, values in metrics.items()}
    means = {name: values.mean().item() for name, values in finite.items() if len(values)}
    size = target.shape[-2:]
    photo = images if images.shape[-2:] == size else torch.nn.functional.interpolate(images, size)
    return means, torch.stack([as_rgb(one) for one in (photo, target, *outputs.values())])


def one_edit_each(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Each photo of a batch with one of its edits, in turn: images (N, 3, H, W) and their condition."""
    n = len(batch.images) // len(batch.edits)
    rows = [(i % len(batch.edits)) * n + i for i in range(n)]
    return batch.images[rows], {key: value[rows] for key, value in batch.condition.items()}


def draw_grid(shown: Tensor, most: int = 8) -> Image.Image:
    """What :func:`validate` shows as one picture, a column for each image."""
    rows = shown[:, :most].float().cpu()
    rows = rows.nan_to_num(nan=-1)  # of a training that went astray, what there is to see
    return to_picture(make_grid(rows.flatten(0, 1), nrow=rows.shape[1], padding=2, pad_value=1))


def save_picture(picture: Image.Image, folder: Path, name: str) -> None:
    """Write a picture, whole or not at all; makes the folder if need be."""
    with whole_files(writable_folder(folder), "validation's picture", "Its figures are in the log.") as draft:
        picture.save(draft / name)


def describe(metrics: Mapping[str, float]) -> str:
    """One line of text for a progress bar or a log."""
    return ", ".join(f"{name} {value:.3g}" for name, value in metrics.items())
