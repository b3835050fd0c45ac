"""From photos to protected photos: what `loraguard protect` does."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from loraguard.channels import published, quantize
from loraguard.data import ImageFolder, collate, names_of, open_data
from loraguard.defenses import Fittable, parse_defense
from loraguard.files import alone_in, whole_files, writable_folder, write_json
from loraguard.generators import conditions_of, labels_of, transform_of
from loraguard.hub.provenance import describe_generator
from loraguard.metrics import defense_succeeds, psnr
from loraguard.pixels import to_picture
from loraguard.training.sampling import mixed

RECORD = "protect.json"
"""In the folder of protected photos: what was done, and which files are ours."""


_KEPT = "Photos that are done are kept; the same command starts with the first one again."


@dataclass(frozen=True)
class Protected:
    """One protected photo.

    Attributes:
        file: where it is.
        edit: what the generator was asked for.
        size: width and height, in pixels: what the generator sees.
        psnr: to the photo at the size that the generator sees, in dB; infinite where nothing was changed.
        spoilt: whether that edit, by this generator as it is, is spoilt (MSE over 0.05).
    """

    file: Path
    edit: str
    size: tuple[int, int]
    psnr: float
    spoilt: bool


def protect_photos(
    generator: nn.Module,
    photos: str | Path | Sequence[str | Path],
    defense: str,
    output_dir: str | Path,
    *,
    edit: str | None = None,
    fit_on: str | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    say: Callable[[str], None] = print,
    disable_tqdm: bool = False,
) -> list[Protected]:
    """Perturb photos, and write each as a PNG of the size that the generator sees.

    Whether that protects anybody is what an audit tells: whoever runs the generator can adapt it.

    Args:
        generator: what the photos are protected from; its `transform` crops and resizes them.
        photos: files, or a folder, or what else `open_data` takes.
        defense: a spec, as :func:`~loraguard.defenses.parse_defense` takes it.
        output_dir: gets the photos, under their names and folders (of several files from the folder that holds all),
            and `protect.json` with settings and figures.
        edit: which of the generator's edits to craft against; by default all in turn, photo by photo. Where the photos
            have no labels, all labels are taken to be 0.
        fit_on: photos that a defense is fitted on, if it has to be.
        seed: of what is drawn.
        device: where to compute.
        say: called with a line of text where something is taken for granted.
        disable_tqdm: no progress bar.

    Returns:
        What became of each photo. Those that are done when it is interrupted are kept.

    Raises:
        ValueError: for an unknown edit, photos that would get one name, or a defense that has to be fitted and nothing
            to do it on.
        FileExistsError: if a file is in the way that is not from here, or the output would lie, or lies, among the
            photos of a folder.
        OSError: if photos or output folder cannot be used, or another process is writing there. All of it before any
            photo is written.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from loraguard.generators import DemoEditor
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (300, 200), "white").save(folder / "a.jpg")
        >>> out = Path(tempfile.mkdtemp())
        >>> done = protect_photos(DemoEditor.pretrained(), folder, "noise:0.1", out, say=len, disable_tqdm=True)
        >>> done[0].file.name, Image.open(done[0].file).size, done[0].psnr > 20
        ('a.png', (64, 64), True)
    """
    made = parse_defense(defense)
    to_fit = made if isinstance(made, Fittable) and made.must_be_fitted else None
    if to_fit and fit_on is None:
        raise ValueError(f"{defense!r} has to be fitted: pass photos to fit it on (--fit-on), or {defense}@FILE.")
    generator = generator.to(device)
    notes: list[str] = []  # said once nothing stands in the way
    given = [photos] if isinstance(photos, (str, Path)) else list(photos)
    dataset = _opened([str(one) for one in given], generator, notes.append)
    names = names_of(dataset) if hasattr(dataset, "names") else [f"{i:05}" for i in range(len(dataset))]
    folder = Path(output_dir).expanduser()
    files, _ = _files(names, folder, None if _are_files(given) else getattr(dataset, "root", None))
    load = getattr(dataset, "load", dataset.__getitem__)  # no neighbour in place of a photo that breaks
    edits = _edits(generator, load(0))[1]
    if edit is not None and edit not in edits:
        raise ValueError(f"There is no edit {edit!r}; the generator has {', '.join(edits)}.")
    with alone_in(writable_folder(folder), wait=False):
        _, earlier = _files(names, folder, None)  # what another process has done by now is known, too
        for note in notes:
            say(note)
        torch.manual_seed(seed)
        if to_fit:
            assert fit_on is not None
            made = to_fit.fit(generator, _opened([fit_on], generator, say), disable_tqdm=disable_tqdm)
        about = {"defense": made.settings(), "generator": describe_generator(generator), "seed": seed}
        record = _Record(folder, about, earlier)
        record.write(files[:1])
        try:
            for index, file in enumerate(tqdm(files, desc="protect", unit="photo", disable=disable_tqdm)):
                images, edits = _edits(generator, load(index))
                name = edit or list(edits)[index % len(edits)]
                torch.manual_seed(mixed(seed, index))  # the same whatever photos are before it
                perturbed, one = _protected(generator, made, images, name, edits[name], folder / file)
                with whole_files(folder, f"protected photo {file}", _KEPT) as draft:
                    (draft / file).parent.mkdir(parents=True, exist_ok=True)
                    to_picture(perturbed[0]).save(draft / file)
                record.add(one)
                record.write(files[index + 1 : index + 2])
        except KeyboardInterrupt:
            record.write()
            raise KeyboardInterrupt(
                f"Interrupted after {len(record.done)} of {len(files)} photos, which are kept in {folder}. The same "
                "command starts with the first one again."
            ) from None
    _say_what_did_not_move(record.done, defense, say)
    return record.done


def _say_what_did_not_move(done: Sequence[Protected], defense: str, say: Callable[[str], None]) -> None:
    if same := sum(math.isinf(one.psnr) for one in done):
        say(
            f"{same} of {len(done)} photos are as they were: what {defense!r} adds is less than a level of 8 bits "
            "(eps=0.0079 is one)."
        )


@dataclass
class _Record:
    """What `protect.json` says. Each photo is announced there before it is written: after a kill it is known as ours.

    Attributes:
        folder: where it is.
        about: what was done.
        earlier: files that are from here and not from this run.
        done: the photos of this run.
    """

    folder: Path
    about: dict[str, Any]
    earlier: set[str]
    done: list[Protected] = field(default_factory=list)

    def add(self, one: Protected) -> None:
        self.done.append(one)
        self.earlier.discard(one.file.relative_to(self.folder).as_posix())

    def write(self, announced: Sequence[str] = ()) -> None:
        rows = [_row(one, self.folder) for one in self.done]
        with whole_files(self.folder, "record", _KEPT) as draft:
            write_json(draft / RECORD, {**self.about, "photos": rows, "earlier": sorted({*self.earlier, *announced})})


def _protected(
    generator: nn.Module, defense: Any, images: Tensor, edit: str, condition: Any, file: Path
) -> tuple[Tensor, Protected]:
    """A photo, perturbed and as 8 bits hold it, and what became of it."""
    with torch.no_grad():
        clean = generator(images, **condition)
    perturbed = published(defense(generator, images, condition, clean=clean), images)
    with torch.no_grad():
        spoilt = bool(defense_succeeds(generator(perturbed, **condition), clean))
    height, width = perturbed.shape[-2:]
    return perturbed, Protected(file, edit, (width, height), psnr(perturbed, quantize(images)).item(), spoilt)


def _are_files(given: Sequence[str | Path]) -> bool:
    """Whether single photos are meant; a .parquet file holds many."""
    return all(Path(one).expanduser().is_file() and Path(one).suffix != ".parquet" for one in given)


def _photos(given: Sequence[str], **options: Any) -> Any:
    """Files as a part of the folder that holds them all, or what else `open_data` takes."""
    if len(given) == 1 and not _are_files(given):
        return open_data(given[0], **options)
    paths = [Path(one).expanduser().absolute() for one in given]
    if folders := [one for one, path in zip(given, paths, strict=True) if path.is_dir()]:
        raise ValueError(f"{folders[0]} is a folder; give a folder alone, or files.")
    root = Path(os.path.commonpath([path.parent for path in paths]))
    return ImageFolder(root, files=[path.relative_to(root) for path in paths], **options)


def _opened(given: Sequence[str], generator: nn.Module, say: Callable[[str], None]) -> Any:
    """The data set with its labels, or with zeros where it has none that the generator takes."""
    attributes, transform = tuple(getattr(generator, "attributes", ())), transform_of(generator)
    try:
        return _photos(given, attributes=attributes, transform=transform)
    except (ValueError, FileNotFoundError) as error:
        if not attributes:
            raise
        dataset: Any = _photos(given, transform=transform)
        dataset.labels = torch.zeros(len(dataset), len(attributes))
        say(f"Without labels every photo is taken to have none of them. {error}")
        return dataset


def _edits(generator: nn.Module, item: Any) -> tuple[Tensor, dict[str, Any]]:
    """A photo as a batch of one, and every edit of it, on the generator's device."""
    device = next((p.device for p in generator.parameters()), torch.device("cpu"))
    batch = {key: value.to(device) for key, value in collate([item]).items()}
    return batch["image"], conditions_of(generator, labels_of(batch, generator=generator))


def _files(names: list[str], folder: Path, photos: Path | None) -> tuple[list[str], set[str]]:
    """Where each photo goes in the folder, and what is there from earlier runs.

    Refuses what would be lost, or be taken for an original the next time.
    """
    files = [Path(name).with_suffix(".png").as_posix() for name in names]
    if twice := [file for file, count in Counter(files).items() if count > 1]:
        same = [name for name, file in zip(names, files, strict=True) if file == twice[0]]
        raise ValueError(f"{' and '.join(same)} would both become {twice[0]}; rename one.")
    if photos is not None:
        if folder.resolve().is_relative_to(photos.resolve()):
            own = folder.resolve() == photos.resolve()
            there = "is the folder of the originals" if own else f"lies in {photos}, among the originals"
            raise FileExistsError(f"{folder} {there}; choose a folder outside of it.")
        if (inside := next(photos.rglob(RECORD), None)) is not None:
            raise FileExistsError(f"{inside.parent} holds protected photos, among the originals; move it elsewhere.")
    earlier: set[str] = set()
    if (record := folder / RECORD).is_file():
        try:
            known = json.loads(record.read_text(encoding="utf-8"))
            listed = {*known["earlier"], *(row["file"] for row in known["photos"])}
            earlier = {file for file in listed if (folder / file).exists()}  # the last one may never have been written
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{record} is not what was written here; choose another folder.") from None
    if foreign := [file for file in files if (folder / file).exists() and file not in earlier]:
        raise FileExistsError(f"{folder} holds {foreign[0]}, which is not from here; choose another folder.")
    return files, earlier


def _row(one: Protected, folder: Path) -> dict[str, Any]:
    decibel = None if math.isinf(one.psnr) else round(one.psnr, 2)
    file = one.file.relative_to(folder).as_posix()
    return {"file": file, "edit": one.edit, "psnr_db": decibel, "spoilt": one.spoilt}
