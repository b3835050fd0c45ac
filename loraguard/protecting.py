"""From photos to protected photos: what `loraguard protect` does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from .auditing import build_defense
from .channels import published, quantize
from .data import collate, names_of, open_data
from .defenses import Fittable
from .files import describe, whole_files, writable_folder, write_json
from .generators import conditions_of, labels_of, transform_of
from .metrics import defense_succeeds, psnr


@dataclass(frozen=True)
class Protected:
    """One protected photo.

    Attributes:
        file: where it is.
        edit: what the generator was asked for.
        psnr: to the photo, in dB.
        spoilt: whether that edit, by this generator as it is, is spoilt (MSE over 0.05).
    """

    file: Path
    edit: str
    psnr: float
    spoilt: bool


def protect(
    generator: nn.Module,
    photos: str | Path,
    defense: str,
    output_dir: str | Path,
    *,
    edit: str | None = None,
    fit_on: str | None = None,
    seed: int = 0,
    disable_tqdm: bool = False,
) -> list[Protected]:
    """Perturb every photo of a folder, and write each as a PNG of the size that the generator sees.

    Whether that protects anybody is what an audit tells: whoever runs the generator can adapt it.

    Args:
        generator: what the photos are protected from; its `transform` crops and resizes them.
        photos: a folder, or what else `open_data` takes.
        defense: a spec, as :func:`~loraguard.auditing.build_defense` takes it.
        output_dir: gets the photos, and `protect.json` with settings and figures.
        edit: which of the generator's edits to craft against; by default all in turn, photo by photo. Where the photos
            have no labels, all labels are taken to be 0.
        fit_on: photos that a defense is fitted on, if it has to be.
        seed: of what is drawn.
        disable_tqdm: no progress bar.

    Returns:
        What became of each photo.

    Raises:
        ValueError: for an unknown edit, or a defense that has to be fitted and nothing to do it on.
        OSError: if photos or output folder cannot be used.
    """
    made = build_defense(defense)
    transform = transform_of(generator)
    attributes = tuple(getattr(generator, "attributes", ()))
    dataset: Any = _opened(str(photos), attributes, transform)
    folder = writable_folder(output_dir)
    torch.manual_seed(seed)
    if isinstance(made, Fittable) and getattr(made, "fitted", None) is None:
        if fit_on is None:
            raise ValueError(f"{defense!r} has to be fitted: pass photos to fit it on (--fit-on), or {defense}@FILE.")
        made = made.fit(generator, _opened(fit_on, attributes, transform), disable_tqdm=disable_tqdm)
    names = names_of(dataset) if hasattr(dataset, "names") else [f"{i:05}" for i in range(len(dataset))]
    found = []
    for index in tqdm(range(len(dataset)), desc="protect", unit="photo", disable=disable_tqdm):
        batch = collate([dataset[index]])
        images, labels = batch["image"], labels_of(batch)
        if labels is None and attributes:
            labels = torch.zeros(1, len(attributes))
        edits = conditions_of(generator, labels)
        if edit is not None and edit not in edits:
            raise ValueError(f"There is no edit {edit!r}; the generator has {', '.join(edits)}.")
        name = edit or list(edits)[index % len(edits)]
        with torch.no_grad():
            clean = generator(images, **edits[name])
        perturbed = published(made(generator, images, edits[name], clean=clean), images)
        with torch.no_grad():
            spoilt = bool(defense_succeeds(generator(perturbed, **edits[name]), clean))
        file = folder / Path(names[index]).with_suffix(".png")
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_files(file.parent) as draft:
            _picture(perturbed[0]).save(draft / file.name)
        found.append(Protected(file, name, psnr(perturbed, quantize(images)).item(), spoilt))
    rows = [{"file": str(one.file.relative_to(folder)), "edit": one.edit, "psnr_db": _number(one.psnr),
             "spoilt": one.spoilt} for one in found]  # fmt: skip
    with whole_files(folder) as draft:
        about = {"defense": describe(made), "generator": type(generator).__name__, "seed": seed, "photos": rows}
        write_json(draft / "protect.json", about)
    return found


def _opened(where: str, attributes: tuple[str, ...], transform: Any) -> Any:
    """The data set with labels if it has them, and otherwise without."""
    try:
        return open_data(where, attributes=attributes, transform=transform)
    except (ValueError, FileNotFoundError):
        return open_data(where, transform=transform)


def _picture(image: Tensor) -> Image.Image:
    pixels = ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


def _number(value: float) -> float | None:
    return None if value == float("inf") else round(value, 2)
