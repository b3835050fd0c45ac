"""HiSD: one tag of a face edited after a reference photo or a latent code (Li et al., arXiv 2103.01456)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any, ClassVar, TypeVar, cast

import torch
from PIL import Image
from torch import Tensor, nn

from loraguard.pixels import from_picture

from .base import Condition, Conditions
from .hisd_blocks import DownBlock, Extractors, Mapper, Translator, UpBlock
from .hisd_settings import CELEBA_TAGS, Tags, settings_from
from .published import PublishedGenerator

Key = TypeVar("Key", int, tuple[int, int])


class HiSD(
    PublishedGenerator,
    license="cc-by-nc-sa-4.0",
    paper_url="https://arxiv.org/abs/2103.01456",
    repo_url="https://github.com/imlixinyang/HiSD",
    tags=["hisd"],
):
    """HiSD's generator with the names, shapes and outputs of the official checkpoints, at 256 and at 128 pixels.

    Every setting but `tags` and `size` follows from a checkpoint's shapes, and :meth:`from_checkpoint` reads it
    there. The defaults are those of the official 256-pixel network.

    Args:
        tags: what can be edited, each with its attributes.
        size: height and width that :meth:`transform` gives, in pixels.
        encoder_channels: from the first layer on; each further one halves height and width.
        decoder_channels: likewise, doubling; the last is followed by the image.
        extractor_channels: likewise, halving.
        translator_channels: likewise, at the encoder's last size.
        mapper_pre_channels: of the mappers' layers that a tag's attributes share.
        mapper_post_channels: of their layers for each attribute; the first is the last of those shared.
        style_dim: length of a style.
        noise_dim: length of a latent code.

    Raises:
        ValueError: if a tag or an attribute is missing or named twice, or if parts do not fit together.

    Example:
        >>> hisd = HiSD(encoder_channels=(4, 8), decoder_channels=(8, 4), extractor_channels=(4, 8), style_dim=4,
        ...             translator_channels=(4, 4), mapper_pre_channels=(4,), mapper_post_channels=(4,), noise_dim=2)
        >>> photos, glasses = torch.zeros(2, 3, 16, 16), torch.zeros(2, 3, 16, 16)
        >>> hisd(photos, tag=1, reference=glasses).shape
        torch.Size([2, 3, 16, 16])
        >>> edits = hisd.reference_conditions({"Eyeglasses": glasses[0]})(photos)
        >>> {name: {key: tuple(rows.shape) for key, rows in edit.items()} for name, edit in edits.items()}
        {'Eyeglasses': {'tag': (2,), 'reference': (2, 3, 16, 16)}}
        >>> hisd(photos, tag=torch.tensor([0, 2]), latent=torch.randn(2, 2), attribute=torch.tensor([1, 2])).shape
        torch.Size([2, 3, 16, 16])
    """

    attributes = ("Bangs", "Eyeglasses", "Black_Hair", "Blond_Hair", "Brown_Hair")
    unseeing = r"(extractors|mappers)\..*"
    latent_layer = "encoder"
    checkpoint_keys = ("gen_test",)
    small: ClassVar[dict[str, Any]] = {
        "size": 16, "encoder_channels": [4, 6, 8], "decoder_channels": [8, 6, 4], "extractor_channels": [4, 6, 8],
        "translator_channels": [4, 6, 4], "mapper_pre_channels": [5, 6], "mapper_post_channels": [6, 7], "style_dim": 6,
        "noise_dim": 3,
    }  # fmt: skip
    model_tags: ClassVar[list[str]] = [*PublishedGenerator.model_tags, "hisd"]

    def __init__(
        self,
        tags: Tags = CELEBA_TAGS,
        size: int = 256,
        encoder_channels: Sequence[int] = (64, 128, 256),
        decoder_channels: Sequence[int] = (256, 128, 64),
        extractor_channels: Sequence[int] = (32, 64, 128, 256, 512, 512, 512),
        translator_channels: Sequence[int] = (64,) * 8,
        mapper_pre_channels: Sequence[int] = (256,) * 3,
        mapper_post_channels: Sequence[int] = (256,) * 3,
        style_dim: int = 256,
        noise_dim: int = 32,
    ) -> None:
        super().__init__()
        for what, ends, meets in (
            ("decoder_channels must begin with the encoder's last", encoder_channels, decoder_channels),
            ("mapper_post_channels must begin with the shared layers' last", mapper_pre_channels, mapper_post_channels),
        ):  # fmt: skip
            if ends[-1] != meets[0]:
                raise ValueError(f"{what} number of channels, {ends[-1]}, got {tuple(meets)}.")
        self.tags = tuple((name, tuple(names)) for name, names in tags)
        for names in ([name for name, _ in self.tags], *(names for _, names in self.tags)):
            if not names or len(set(names)) < len(names):
                raise ValueError(f"Each tag and each of its attributes needs a name of its own, got tags={self.tags}.")
        self.size, self.noise_dim = size, noise_dim
        self.encoder_stride = 2 ** (len(encoder_channels) - 1)
        self.smallest_reference = 2 ** (len(extractor_channels) - 1)

        content = encoder_channels[-1]
        self.encoder = nn.Sequential(
            nn.Conv2d(3, encoder_channels[0], 1), *(DownBlock(*pair, norms=True) for pair in pairwise(encoder_channels))
        )
        self.decoder = nn.Sequential(
            *(UpBlock(*pair) for pair in pairwise(decoder_channels)), nn.Conv2d(decoder_channels[-1], 3, 1)
        )
        self.extractors = Extractors(extractor_channels, style_dim, len(self.tags))
        self.translators = nn.ModuleList(Translator(content, translator_channels, style_dim) for _ in self.tags)
        self.mappers = nn.ModuleList(
            Mapper(noise_dim, mapper_pre_channels, mapper_post_channels, style_dim, len(names))
            for _, names in self.tags
        )

    def forward(
        self,
        images: Tensor,
        tag: Tensor | int,
        reference: Tensor | None = None,
        latent: Tensor | None = None,
        attribute: Tensor | int | None = None,
    ) -> Tensor:
        """Edit one tag of each image, after a reference photo or by a latent code.

        Args:
            images: (N, 3, H, W) in [-1, 1], H and W multiples of 4 (of 2 for each halving in the encoder).
            tag: which tag, its position in `tags`: integers (N,), or one for all images.
            reference: photos (N, 3, h, w) in [-1, 1] whose style of that tag the images take over.
            latent: in place of a reference, standard normal codes (N, noise_dim), each a style of that attribute.
            attribute: with `latent`, its position among the tag's attributes: integers (N,), or one for all.

        Returns:
            Images of the same shape. The network ends without a tanh: values may lie slightly outside [-1, 1].

        Raises:
            ValueError: if not exactly one of `reference` and `latent` is given, if `attribute` is not given with
                `latent` or with it alone, if a tag or an attribute does not exist, or if a shape is wrong.
        """
        if (reference is None) == (latent is None):
            raise ValueError(
                f"An edit is made after a reference or by a latent code: give `reference` or `latent` (with "
                f"`attribute`), got {'neither' if latent is None else 'both'}."
            )
        if (latent is None) != (attribute is None):
            raise ValueError(
                "`attribute` says what a latent code is to become: give it with `latent`, and not with `reference`."
            )
        n, height, width = len(images), *images.shape[-2:]
        if height % self.encoder_stride or width % self.encoder_stride:
            raise ValueError(f"Expected height and width in multiples of {self.encoder_stride}, got {height}x{width}.")
        tags = _positions("tag", tag, [len(self.tags)] * n)
        if latent is None or attribute is None:
            style = self._extracted(cast(Tensor, reference).to(images), tags)
        else:
            style = self._mapped(latent.to(images), tags, attribute)
        features = self.encoder(images)
        return self.decoder(_in_groups(lambda i, *rows: self.translators[i](*rows), tags, features, style))

    def _extracted(self, reference: Tensor, tags: list[int]) -> Tensor:
        """The style (N, style_dim) that each reference has in its row's tag."""
        if reference.ndim != 4 or reference.shape[:2] != (len(tags), 3):
            raise ValueError(f"Expected reference photos ({len(tags)}, 3, h, w), got {tuple(reference.shape)}.")
        if min(reference.shape[-2:]) < self.smallest_reference:
            raise ValueError(
                f"Expected reference photos of at least {self.smallest_reference} pixels a side, got "
                f"{tuple(reference.shape[-2:])}."
            )
        return _in_groups(lambda i, rows: rows[:, i], tags, self.extractors(reference))

    def _mapped(self, latent: Tensor, tags: list[int], attribute: Tensor | int) -> Tensor:
        """The style (N, style_dim) that each latent code has as this attribute of its row's tag."""
        if latent.shape != (len(tags), self.noise_dim):
            raise ValueError(f"Expected latent codes ({len(tags)}, {self.noise_dim}), got {tuple(latent.shape)}.")
        attributes = _positions("attribute", attribute, [len(self.tags[i][1]) for i in tags])
        return _in_groups(
            lambda key, z: self.mappers[key[0]](z, key[1]), list(zip(tags, attributes, strict=True)), latent
        )

    def conditions(self, labels: Tensor, seed: int = 0) -> dict[str, Condition]:
        """The five edits of faces with these labels: bangs and glasses switched, and each hair colour.

        The latent code of an edit depends on its name and the seed alone, so that a photo gets the same edit in every
        epoch and in every row of an audit. Another seed gives other styles (other bangs, other glasses) that a patch
        has not been trained on.

        Args:
            labels: (N, 5) in {0, 1}, in the order of `attributes`.
            seed: of the latent codes.

        Returns:
            By the label's name, `tag` and `attribute` (N,) and `latent` (N, noise_dim).

        Raises:
            ValueError: if the labels have another shape, or the network has other tags than the official ones.
        """
        if self.tags != CELEBA_TAGS:
            raise ValueError(
                f"Edits by CelebA's labels are for the tags {CELEBA_TAGS}; this network has {self.tags}. Pass "
                "`conditions`, a function from labels to edits, such as reference_conditions(...) gives."
            )
        if labels.ndim != 2 or labels.shape[1] != len(self.attributes):
            raise ValueError(f"Expected labels (N, 5): {', '.join(self.attributes)}; got {tuple(labels.shape)}.")
        worn = (labels > 0.5).long()  # "with" is at 0 and "without" at 1: a label's opposite is at the label itself
        where = [(0, worn[:, 0]), (1, worn[:, 1]), *((2, torch.full_like(worn[:, 0], colour)) for colour in range(3))]
        return {
            name: {
                "tag": torch.full_like(attribute, tag),
                "latent": _code(f"{seed}/{name}", self.noise_dim).to(labels.device).expand(len(labels), -1),
                "attribute": attribute,
            }
            for name, (tag, attribute) in zip(self.attributes, where, strict=True)
        }

    def reference_conditions(self, references: Mapping[str, Tensor]) -> Conditions:
        """Edits after photos, one for each tag that there is a photo for, as CMUA (arXiv 2105.10872) attacks HiSD.

        Args:
            references: by a tag's name, a photo (3, h, w) in [-1, 1] for all images, or (N, 3, h, w), one for each.
                All of one size.

        Returns:
            From labels, whatever they are, or from the images themselves, the edits by tag: only their number N and
            their device are read.

        Raises:
            ValueError: if a tag does not exist, or photos have another shape or differ in size.
        """
        names = [name for name, _ in self.tags]
        unknown = [name for name in references if name not in names]
        if unknown or not references:
            raise ValueError(f"Expected references for some of the tags {', '.join(names)}; got {list(references)}.")
        if any(photo.ndim not in (3, 4) or photo.shape[-3] != 3 for photo in references.values()) or (
            len({photo.shape[-2:] for photo in references.values()}) > 1
        ):
            shapes = {name: tuple(photo.shape) for name, photo in references.items()}
            raise ValueError(f"Expected reference photos (3, h, w) or (N, 3, h, w), all of one size, got {shapes}.")

        def conditions(rows: Tensor) -> dict[str, Condition]:
            n, edits = len(rows), dict[str, Condition]()
            for name, photo in references.items():
                if photo.ndim == 4 and len(photo) != n:
                    raise ValueError(f"There are {n} images and {len(photo)} reference photos for {name}.")
                edits[name] = {
                    "tag": torch.full((n,), names.index(name), device=rows.device),
                    "reference": photo.to(rows.device).expand(n, -1, -1, -1),
                }
            return edits

        return conditions

    def transform(self) -> Callable[[Image.Image], Tensor]:
        """The official preprocessing: the shorter side resized to `size`, and what is longer cut at both ends.

        CelebA-HQ, which HiSD was trained on, is square, and nothing is cut there. The official code asks to crop other
        photos beforehand.
        """
        from torchvision import transforms

        return transforms.Compose([transforms.Resize(self.size), transforms.CenterCrop(self.size), from_picture])

    @classmethod
    def settings_from(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """All settings, from a checkpoint's shapes; see :func:`~loraguard.generators.hisd_settings.settings_from`."""
        return settings_from(state)


def _positions(name: str, value: Tensor | int, counts: list[int]) -> list[int]:
    """One position for each row, each below its row's count."""
    if isinstance(value, int):
        positions = [value] * len(counts)
    elif value.is_floating_point() or value.shape != (len(counts),):
        raise ValueError(
            f"Expected `{name}` as an integer or as integers ({len(counts)},), got {value.dtype} {tuple(value.shape)}."
        )
    else:
        positions = value.tolist()
    for position, number in zip(positions, counts, strict=True):
        if not 0 <= position < number:
            raise ValueError(f"There is no {name} {position}: expected 0 to {number - 1}.")
    return positions


def _in_groups(function: Callable[..., Tensor], keys: list[Key], *inputs: Tensor) -> Tensor:
    """Rows of `function(key, *rows)`, called once for each key with all of its rows; in the order of the inputs."""
    order = sorted(range(len(keys)), key=keys.__getitem__)
    moved = order != list(range(len(keys)))  # edits come one after another, and then nothing needs moving
    there = torch.tensor(order, device=inputs[0].device) if moved else None
    if there is not None:
        inputs = tuple(rows[there] for rows in inputs)
    groups = {key: len(list(rows)) for key, rows in groupby(sorted(keys))}
    parts = zip(*(rows.split(list(groups.values())) for rows in inputs), strict=True)
    results = torch.cat([function(key, *rows) for key, rows in zip(groups, parts, strict=True)])
    return results if there is None else results[there.argsort()]


def _code(name: str, length: int) -> Tensor:
    """A standard normal code (length,) that belongs to this name."""
    digest = hashlib.sha256(name.encode()).digest()
    return torch.randn(length, generator=torch.Generator().manual_seed(int.from_bytes(digest[:7], "big")))
