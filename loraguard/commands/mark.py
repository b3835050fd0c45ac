"""Marks for the command line: read them in files, and which one a patch was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loraguard.data.names import recorded
from loraguard.data.reading import ImageReadError
from loraguard.mark import EXTRACTORS, Mark, MarkReader, MarkReading, load_extractor
from loraguard.mark.mark import same_reader

from .stamp import image_files, read_each


@dataclass(frozen=True)
class MarkedFile:
    """What was read in an image file.

    Attributes:
        file: its path.
        reading: what :class:`~loraguard.mark.MarkReader` says of it.
    """

    file: str
    reading: MarkReading


@dataclass(frozen=True)
class MarkReadings:
    """What :func:`read_marks` found.

    Attributes:
        images: one for each file that could be read, in order.
        unreadable: files that are damaged or no images, and why.
        extractor: its name or class.
        messages: that were looked for, in hexadecimal; None for any.
        false_positive_rate: at which a mark counts as found.
        sizes: of the shorter side, at which images were read beside their own.
    """

    images: list[MarkedFile]
    unreadable: dict[str, str]
    extractor: str
    messages: list[str] | None
    false_positive_rate: float
    sizes: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it: a row for each image, its reading beside its name."""
        rows = [{"file": one.file, **asdict(one.reading)} for one in self.images]
        return {**asdict(self), "images": rows}


def read_marks(paths: Sequence[str | Path], reader: MarkReader) -> MarkReadings:
    """Read the marks (invisible watermarks) of image files of any size.

    Args:
        paths: files, and folders of which every image is taken.
        reader: what reads.

    Raises:
        FileNotFoundError: for a path that is not there, or a folder without images.
        ValueError: where no file can be read as an image.

    Example:
        >>> import tempfile
        >>> from loraguard.commands.stamp import write_png
        >>> from loraguard.data import DemoFaces
        >>> file = Path(tempfile.mkdtemp(), "face.png")
        >>> write_png(Mark("c0de").compose(DemoFaces(1, size=96)[0]["image"][None])[0], file)
        >>> found = read_marks([file], MarkReader(messages=["c0de"]))
        >>> found.images[0].reading.message, found.images[0].reading.bits
        ('c0de', 48)
    """
    errors: dict[str, ImageReadError] = {}
    images = read_each(image_files(*paths), errors)
    found = [MarkedFile(recorded(str(file)), reader([image])[0]) for file, image in images]
    if not found and errors:
        raise next(iter(errors.values()))
    extractor = reader.extractor if isinstance(reader.extractor, str) else type(reader.extractor).__name__
    reasons = {file: error.reason for file, error in errors.items()}
    return MarkReadings(found, reasons, extractor, reader.names, reader.false_positive_rate, tuple(reader.sizes))


def patch_mark(patch: str | Path, extractor: str | None = None) -> Mark:
    """The mark that a patch was trained to write, as it records.

    Args:
        patch: a folder, or an id of the Hub.
        extractor: what reads it, as :class:`Mark` takes it, where that is no registered name: a patch records its hash
            and does not say where it is, as no file is opened because a patch names it. Of a registered name it must
            be what the patch records.

    Raises:
        OSError, ValueError: as :func:`~loraguard.load_patch`; for a patch without a mark, an extractor that is needed
            and not given, or one of other weights than the mark was trained for.
    """
    from loraguard.fingerprint import generator_fingerprint
    from loraguard.hub.local import read_patch
    from loraguard.hub.pull import patch_folder
    from loraguard.hub.recorded import settings_in

    mark = settings_in(read_patch(patch_folder(patch), str(patch)).config).get("mark")
    if not isinstance(mark, dict):
        raise ValueError(f"The patch {patch} records no mark: it was trained without one, or not by PatchTrainer.")
    settings = {key: value for key, value in mark.items() if key != "class"}
    recorded = settings.get("extractor")
    if isinstance(recorded, str):
        if recorded not in EXTRACTORS:
            raise ValueError(f"{patch} records the extractor {recorded!r:.100}, which is not installed here.")
        if extractor is not None and not same_reader(load_extractor(extractor), load_extractor(recorded)):
            raise ValueError(f"The mark of {patch} is read by the extractor {recorded!r}, and not by {extractor!r}.")
    if isinstance(recorded, dict):
        if extractor is None:
            raise ValueError(
                f"The mark of {patch} is read by a network of its maker's own ({recorded.get('class')}), which its "
                "record does not hold: give it as --extractor, a file, folder or Hub id; in Python, as "
                "MarkReader(extractor=...)."
            )
        network = load_extractor(extractor)
        if generator_fingerprint(network) != recorded.get("sha256"):
            raise ValueError(f"The extractor {extractor} has other weights than the one that {patch} was trained for.")
        if (kind := type(network).__name__) != recorded.get("class"):
            raise ValueError(
                f"The extractor {extractor} is a {kind}, which reads otherwise than the {recorded.get('class')} of the "
                f"same weights that {patch} was trained for: give that, in Python as MarkReader(extractor=...)."
            )
        settings["extractor"] = extractor
    try:
        return Mark(**settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{patch}: its mark, as adapter_config.json has it, cannot be read here: {error}") from error
