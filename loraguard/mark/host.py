"""One call for a host: a generator whose outputs are stamped, marked, signed and logged."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from torch import Tensor

from loraguard.files import whole_files, writable_folder
from loraguard.pixels import from_picture, to_picture
from loraguard.stamp import Stamp

from .credentials import Signer, sign_bytes
from .mark import Mark
from .reader import MarkReader

LOG = "outputs.jsonl"


@dataclass
class MarkedOutputs:
    """Writes images into a folder with every layer that is asked for, and a line about each into `outputs.jsonl`.

    A layer that a patch has put into the generator's weights is not put on once more: with `in_weights` the mark is
    only checked. Give the images that a generator or a pipeline has made, or files.

    Args:
        output_dir: where to.
        stamp: a visible stamp to compose, or None.
        mark: an invisible mark to compose, or None.
        in_weights: whether a patch puts stamp and mark there already.
        signer: who signs, or None for no signed metadata.
        origin: what is signed of generator and patch.
        kind: "generated" or "edited".

    Raises:
        OSError: if the folder cannot be written to.

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
        self.folder = writable_folder(self.output_dir)
        self._reader = None if self.mark is None else MarkReader(self.mark.extractor, messages=[self.mark], crops=False)

    def save(self, images: Tensor | Sequence[Any], names: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Put the layers on images and write them as PNG.

        Args:
            images: (N, 3, H, W) in [-1, 1], or a list of tensors (3, H, W), Pillow images or files, as pipelines give
                them.
            names: of the files; by default they are counted on from what the folder holds.

        Returns:
            What the log has of each: file, SHA-256, time, what was put on, and how the mark reads in the very file.

        Raises:
            ValueError: for other images, or names that are not as many.
            OSError: if something cannot be written; what was there before is as it was.
        """
        known = len((self.folder / LOG).read_text().splitlines()) if (self.folder / LOG).is_file() else 0
        names = names or [f"{known + i:06d}.png" for i in range(len(images))]
        if len(names) != len(images):
            raise ValueError(f"There must be a name for each image, got {len(names)} for {len(images)}.")
        rows = []
        with whole_files(self.folder) as draft:
            for name, image in zip(names, images, strict=True):
                written, row = self._layered(_tensor(image)[None])
                (draft / name).write_bytes(written)
                rows.append({"file": name, **row})
            earlier = (self.folder / LOG).read_text() if known else ""
            (draft / LOG).write_text(earlier + "".join(json.dumps(row) + "\n" for row in rows))
        return rows

    def wrap(self, generator: Callable[..., Any]) -> Callable[..., list[dict[str, Any]]]:
        """The call of a generator or a diffusers pipeline, whose outputs are saved; it gives their lines of the log."""

        def saved(*given: Any, **named: Any) -> list[dict[str, Any]]:
            made = generator(*given, **named)
            return self.save(getattr(made, "images", made))

        return saved

    def _layered(self, image: Tensor) -> tuple[bytes, dict[str, Any]]:
        if self.stamp is not None and not self.in_weights:
            image = self.stamp.compose(image)
        if self.mark is not None and not self.in_weights:
            image = self.mark.compose(image)
        to_picture(image[0]).save(file := BytesIO(), "PNG")
        written = file.getvalue()
        if self.signer is not None:
            written = sign_bytes(written, "image/png", self.signer, self.kind, dict(self.origin))
        mark = None
        if self._reader is not None:
            (read,) = self._reader([_pixels(written)])
            mark = {"found": read.found, "message": read.message, "agreeing": read.agreeing, "bits": read.bits}
        made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        digest = hashlib.sha256(written).hexdigest()
        stamped = None if self.stamp is None else self.stamp.text or Path(str(self.stamp.image)).name
        about = {"sha256": digest, "time": made, "stamp": stamped, "mark": mark, "signed": self.signer is not None}
        return written, about


def _pixels(file: bytes) -> Tensor:
    """An image file, (3, H, W) in [-1, 1]."""
    from PIL import Image

    with Image.open(BytesIO(file)) as picture:
        return from_picture(picture.convert("RGB"))


def _tensor(image: Any) -> Tensor:
    """One image, (3, H, W) in [-1, 1]."""
    from PIL import Image

    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(f"Expected images (3, H, W), got {tuple(image.shape)}.")
        return image.detach().float().cpu().clamp(-1, 1)
    if isinstance(image, Image.Image):
        return from_picture(image.convert("RGB"))
    if isinstance(image, (str, Path)):
        from loraguard.data.reading import read_image

        return from_picture(read_image(Path(image)))
    raise ValueError(f"Expected tensors, Pillow images or files, got {type(image).__name__}.")
