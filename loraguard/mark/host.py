"""One call for a host: a generator whose outputs are stamped, marked, signed and logged."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from itertools import count, islice
from pathlib import Path
from typing import Any

from torch import Tensor

from loraguard.files import alone_in, whole_files, writable_folder
from loraguard.pixels import from_picture, to_picture
from loraguard.stamp import Stamp, StampDetector

from .credentials import Signer, check_signer, has_credentials, sign_bytes
from .mark import Mark
from .reader import MarkReader
from .xmp import SOURCE_TYPES

LOG = "outputs.jsonl"


@dataclass
class MarkedOutputs:
    """Writes images into a folder with every layer that is asked for, and a line about each into `outputs.jsonl`.

    A layer that a patch has put into the generator's weights is not put on once more: with `in_weights` stamp and mark
    are only looked for. Where an output lacks one, a warning says so. Give the images that a generator or a pipeline
    has made, or files. Of a file, the colour profile is kept, and credentials that it carries become those of the
    parent where there is a signer; other metadata are not: `loraguard mark sign` keeps them all.

    Args:
        output_dir: where to; several processes may have the same.
        stamp: a visible stamp to compose, or None.
        mark: an invisible mark to compose, or None.
        in_weights: whether a patch puts stamp and mark there already.
        signer: who signs, or None for no signed metadata.
        origin: what is signed of generator and patch.
        kind: "generated" or "edited".

    Raises:
        OSError: if the folder cannot be written to.
        TypeError: for a stamp or a mark that is none, an extractor that only reads, or an origin that JSON cannot hold.
        ValueError: for another kind, or a signer who cannot sign.

    Example:
        >>> import tempfile, torch
        >>> outputs = MarkedOutputs(tempfile.mkdtemp(), mark=Mark("c0de"))
        >>> rows = outputs.save(torch.zeros(2, 3, 64, 64))
        >>> [(row["file"], row["mark"]["found"], row["signed"]) for row in rows]
        [('000000.png', True, False), ('000001.png', True, False)]
    """

    output_dir: str | Path
    stamp: Stamp | None = None
    mark: Mark | None = None
    in_weights: bool = False
    signer: Signer | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "generated"

    def __post_init__(self) -> None:
        for name, kind in (("stamp", Stamp), ("mark", Mark)):
            if not isinstance(given := getattr(self, name), kind | None):
                raise TypeError(f"{name} must be a {kind.__name__} or None, got {given!r:.100}.")
        if self.mark is not None and not self.in_weights and not self.mark.composes:
            raise TypeError("This mark's extractor only reads; give one that writes, or in_weights=True.")
        if self.kind not in SOURCE_TYPES:
            raise ValueError(f"kind={self.kind!r} must be one of {', '.join(SOURCE_TYPES)}.")
        json.dumps(dict(self.origin))  # says what it cannot hold
        if self.signer is not None:
            check_signer(self.signer)
        self.folder = writable_folder(self.output_dir)
        self._reader = None if self.mark is None else MarkReader(self.mark.extractor, messages=[self.mark], crops=False)
        self._detector = None if self.stamp is None else StampDetector(self.stamp)

    def save(self, images: Tensor | Sequence[Any], names: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Put the layers on images and write them as PNG.

        Args:
            images: (N, 3, H, W) in [-1, 1], or a list of tensors (3, H, W), Pillow images or files, as pipelines give
                them.
            names: of the files, .png; by default they are counted on from what the folder holds. A file of such a name
                that is in the log is replaced.

        Returns:
            What the log has of each: file, SHA-256, time, whether it is signed, and what is found of stamp and mark in
            the very file.

        Raises:
            ValueError: for other images; for names that are not as many, not different or no names of PNG files.
            FileExistsError: for the name of a file that is not in the log.
            OSError: if something cannot be written; what was there before is as it was.
        """
        if isinstance(images, (str, Path, Mapping)) or not isinstance(images, Iterable):
            raise ValueError(f"Give a list of images, as in save([image]), got {images!r:.100}.")
        images = list(images)
        if names is not None:
            _check_names(names, len(images))
        made = [self._layered(*_given(image)) for image in images]
        with alone_in(self.folder), whole_files(self.folder, "outputs", first=LOG) as draft:
            log = self.folder / LOG
            earlier = log.read_text(encoding="utf-8") if log.is_file() else ""
            names = self._free(names, earlier.splitlines(), len(images))
            rows = [{"file": name, **row} for name, (_, row) in zip(names, made, strict=True)]
            for name, (written, _) in zip(names, made, strict=True):
                (draft / name).write_bytes(written)
            (draft / LOG).write_text(earlier + "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        for layer in ("stamp", "mark"):
            if lacking := [row["file"] for row in rows if row[layer] and not row[layer]["found"]]:
                warnings.warn(
                    f"No {layer} is found in {len(lacking)} of {len(rows)} outputs, {lacking[0]} among them: they do "
                    "not carry what they should.", stacklevel=2,
                )  # fmt: skip
        return rows

    def _free(self, names: Sequence[str] | None, log: Sequence[str], images: int) -> Sequence[str]:
        """Names, given or counted on, under which nothing stands that the log does not name."""
        if names is None:
            counted = (f"{i:06d}.png" for i in count(len(log)))
            return list(islice((name for name in counted if not (self.folder / name).exists()), images))
        there = {name for name in names if (self.folder / name).exists()}
        if there and (foreign := there - {json.loads(line)["file"] for line in log}):
            raise FileExistsError(f"{self.folder} holds {min(foreign)!r}, which is not from here; choose another name.")
        return names

    def wrap(self, generator: Callable[..., Any]) -> Callable[..., list[dict[str, Any]]]:
        """The call of a generator or a diffusers pipeline, whose outputs are saved; it gives their lines of the log.

        The call raises ValueError where a pipeline gives tensors, which are in [0, 1], and as :meth:`save` does.
        """

        def saved(*given: Any, **named: Any) -> list[dict[str, Any]]:
            made = generator(*given, **named)
            images = getattr(made, "images", made)
            if images is not made and isinstance(images, Tensor):
                raise ValueError("A pipeline's tensors are in [0, 1]: ask it for Pillow images, output type 'pil'.")
            return self.save(images)

        return saved

    def _layered(self, image: Tensor, profile: bytes | None, file: bytes | None) -> tuple[bytes, dict[str, Any]]:
        image = image[None]
        if self.stamp is not None and not self.in_weights:
            image = self.stamp.compose(image)
        if self.mark is not None and not self.in_weights:
            image = self.mark.compose(image)
        to_picture(image[0]).save(png := BytesIO(), "PNG", icc_profile=profile)
        written = png.getvalue()
        if self.signer is not None:
            parent = file if file and has_credentials(file) else None
            written = sign_bytes(written, "image/png", self.signer, self.kind, dict(self.origin), parent)
        stamp = mark = None
        pixels = _pixels(written)
        if self._detector is not None:
            look = self._detector.stamp
            name = look.text or Path(str(look.image)).name
            stamp = {"found": bool(self._detector(pixels[None])), "name": name}
        if self._reader is not None:
            (read,) = self._reader([pixels])
            mark = {"found": read.found, "message": read.message, "agreeing": read.agreeing, "bits": read.bits}
        made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        digest = hashlib.sha256(written).hexdigest()
        about = {"sha256": digest, "time": made, "stamp": stamp, "mark": mark, "signed": self.signer is not None}
        return written, about


def _pixels(file: bytes) -> Tensor:
    """An image file, (3, H, W) in [-1, 1]."""
    from PIL import Image

    with Image.open(BytesIO(file)) as picture:
        return from_picture(picture.convert("RGB"))


def _check_names(names: Sequence[str], images: int) -> None:
    if isinstance(names, str) or len(names) != images:
        raise ValueError(f"There must be a name for each image, got {names!r:.100} for {images}.")
    if len(set(names)) < images:
        raise ValueError(f"Names must be different, got {names!r:.200}.")
    for name in names:
        if Path(name).name != name or Path(name).suffix.lower() != ".png" or name.startswith("."):
            raise ValueError(
                f"The name {name!r:.100} must be a file's in the folder, and end in .png, as it will be one."
            )


def _given(image: Any) -> tuple[Tensor, bytes | None, bytes | None]:
    """One image (3, H, W) in [-1, 1], the profile of its colours if it has one, and of a file what it holds."""
    from PIL import Image

    from loraguard.data.reading import read_image

    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(f"Expected images (3, H, W), got {tuple(image.shape)}.")
        if not image.is_floating_point():
            raise ValueError(f"Expected images in [-1, 1], got {image.dtype}; of bytes, pixels.from_bytes makes some.")
        return image.detach().float().cpu().clamp(-1, 1), None, None
    if not isinstance(image, (str, Path, Image.Image)):
        raise ValueError(f"Expected tensors, Pillow images or files, got {type(image).__name__}.")
    file = None if isinstance(image, Image.Image) else Path(image).expanduser().read_bytes()
    picture = read_image(image if file is None else file, name=None if file is None else str(image))
    profile = picture.info.get("icc_profile") or b""
    return from_picture(picture), profile if profile[16:20] == b"RGB " else None, file
