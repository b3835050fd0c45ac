"""Drawn faces: an endless, seeded data set with known truth for every edit, and no photo of a person in it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from loraguard.channels import quantize
from loraguard.pixels import from_bytes, to_bytes

from .drawing import Canvas, Point, arc, box, ellipse, moved, per_image, segment, smooth_union, turned

ATTRIBUTES = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Eyeglasses", "Smiling")
"""The labels, in order, under their CelebA names. The first three exclude each other."""

_HAIR = torch.tensor([[0.09, 0.08, 0.10], [0.90, 0.73, 0.38], [0.42, 0.23, 0.12]])
_SKIN = torch.tensor(
    [[0.98, 0.85, 0.75], [0.92, 0.72, 0.57], [0.78, 0.56, 0.40], [0.55, 0.36, 0.25], [0.36, 0.23, 0.16]]
)
_IRIS = torch.tensor([[0.28, 0.17, 0.10], [0.25, 0.45, 0.65], [0.30, 0.48, 0.28]])
_FRAME = torch.tensor([[0.10, 0.10, 0.14]])

# What varies from face to face, each drawn uniformly from [low, high].
_RANGES = {
    "centre_x": (-0.10, 0.10),
    "centre_y": (-0.06, 0.10),
    "scale": (1.0, 1.2),
    "roll": (-0.16, 0.16),
    "yaw": (-0.09, 0.09),
    "head_width": (0.43, 0.51),
    "head_height": (0.58, 0.66),
    "jaw": (0.30, 0.40),
    "skin": (0.0, 3.999),
    "skin_light": (0.94, 1.05),
    "hair_light": (0.90, 1.12),
    "hair_style": (0.0, 3.999),
    "hairline": (-0.40, -0.28),
    "parting": (-0.30, 0.30),
    "fringe": (-0.12, 0.14),
    "hair_volume": (0.07, 0.15),
    "eye_apart": (0.20, 0.24),
    "eye_height": (-0.08, -0.02),
    "eye_size": (0.95, 1.2),
    "iris": (0.0, 2.999),
    "brow_lift": (0.0, 0.05),
    "nose": (0.13, 0.19),
    "nose_width": (0.05, 0.08),
    "mouth_height": (0.31, 0.36),
    "mouth_width": (0.15, 0.19),
    "lip_red": (0.0, 1.0),
    "blush": (0.0, 0.25),
    "light_angle": (-1.2, 1.2),
    "light": (0.10, 0.32),
    "warmth": (-0.06, 0.06),
    "exposure": (0.88, 1.06),
    "back_angle": (0.0, 6.28),
    "back_hue": (0.0, 1.0),
    "back_hue2": (0.0, 1.0),
    "back_light": (0.35, 0.9),
    "back_shape": (0.0, 1.0),
    "blob_x": (-0.9, 0.9),
    "blob_y": (-0.9, 0.9),
    "blob_size": (0.25, 0.6),
    "cloth_hue": (0.0, 1.0),
    "cloth_light": (0.25, 0.9),
    "collar": (0.0, 1.999),
    "hair_colour": (0.0, 2.999),
    "glasses": (0.0, 1.0),
    "smile": (0.0, 1.0),
}
Traits = dict[str, Tensor]

_PIXELS = 2**18  # drawn together: as many as stay in a processor's cache
_MOST_KEPT = 2**25  # bytes of faces that were drawn, as trainings and audits look at each of them many times
_KEPT: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}


def draw_traits(family: str, indices: list[int]) -> Traits:
    """The traits of the faces with these indices, each ``(N,)``; a face depends on (family, index) alone."""
    rows = []
    for index in indices:
        digest = hashlib.sha256(f"{family}/{index}".encode()).digest()
        stream = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        rows.append(torch.rand(len(_RANGES), generator=stream))
    uniform = torch.stack(rows)
    return {name: low + (high - low) * uniform[:, i] for i, (name, (low, high)) in enumerate(_RANGES.items())}


def labels_of(traits: Traits) -> Tensor:
    """The labels that faces were born with, (N, 5) in {0, 1}: one hair colour each, glasses and a smile for half."""
    hair = torch.nn.functional.one_hot(traits["hair_colour"].long(), 3)
    return torch.cat([hair, torch.stack([traits["glasses"], traits["smile"]], 1).round()], 1).float()


def hue_colour(hue: Tensor, light: Tensor | float, strength: float = 0.45) -> Tensor:
    """A colour (N, 3) of a hue in turns and a lightness, washed out by ``1 - strength``."""
    phase = torch.stack([hue, hue + 1 / 3, hue + 2 / 3], 1) * 2 * torch.pi
    wheel = 0.5 + 0.5 * torch.cos(phase)
    light = light[:, None] if isinstance(light, Tensor) else light
    return (wheel * strength + (1 - strength) * 0.7) * light


def _blend(table: Tensor, position: Tensor) -> Tensor:
    """Rows of ``table`` at fractional positions, (N, 3)."""
    low = position.long().clamp_max(len(table) - 2)
    return torch.lerp(table[low], table[low + 1], (position - low)[:, None])


def render(traits: Traits, labels: Tensor, size: int) -> Tensor:
    """Draw faces.

    Args:
        traits: from :func:`draw_traits`, each (N,).
        labels: (N, 5) in {0, 1}, in the order of :data:`ATTRIBUTES`.
        size: height and width of the result in pixels.

    Returns:
        Images (N, 3, size, size) in [-1, 1], on the 256 levels of a photo's file.
    """
    few = max(1, _PIXELS // size**2)
    parts = {name: value.split(few) for name, value in traits.items()}
    return torch.cat([
        _drawn({name: part[i] for name, part in parts.items()}, some, size)
        for i, some in enumerate(labels.split(few))
    ])  # fmt: skip


def _drawn(traits: Traits, labels: Tensor, size: int) -> Tensor:
    t = {name: per_image(value) for name, value in traits.items()}
    axis = (torch.arange(size) + 0.5) * (2 / size) - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    screen: Point = (x.expand(len(labels), -1, -1), y.expand(len(labels), -1, -1))
    on_face = turned(moved(screen, t["centre_x"], t["centre_y"]), t["roll"])
    face: Point = (on_face[0] / t["scale"], on_face[1] / t["scale"])

    canvas = Canvas(_background(traits, t, screen), 2 / size / t["scale"])
    hair = (labels[:, :3] @ _HAIR) * traits["hair_light"][:, None]
    skin = _blend(_SKIN, traits["skin"]) * traits["skin_light"][:, None]
    head = smooth_union(
        ellipse(moved(face, 0, -0.10), t["head_width"], t["head_height"] - 0.12),
        ellipse(moved(face, t["yaw"] * 0.4, 0.22), t["jaw"], t["head_height"] - 0.24),
        0.12,
    )
    _back_hair(canvas, t, face, hair)
    _body(canvas, traits, t, face, skin)
    _head(canvas, t, face, head, skin)
    _front_hair(canvas, t, face, head, hair)
    features = moved(face, t["yaw"], 0.0)
    _nose(canvas, t, features, skin)
    _eyes(canvas, traits, t, features, hair, skin)
    _mouth(canvas, t, features, skin, per_image(labels[:, 4]))
    _glasses(canvas, t, features, per_image(labels[:, 3]))
    return quantize(_lit(canvas.pixels, t, screen) * 2 - 1)


def _background(traits: Traits, t: Traits, p: Point) -> Tensor:
    first = hue_colour(traits["back_hue"], traits["back_light"])[:, :, None, None]
    second = hue_colour(traits["back_hue2"], 1.15 - traits["back_light"])[:, :, None, None]
    along = (0.5 + 0.35 * (p[0] * torch.cos(t["back_angle"]) + p[1] * torch.sin(t["back_angle"]))).clamp(0, 1)
    canvas = Canvas(torch.lerp(first, second, along[:, None]), torch.full_like(t["scale"], 0.03))
    blob = ellipse(moved(p, t["blob_x"], t["blob_y"]), t["blob_size"], t["blob_size"])
    canvas.paint(blob, second[:, :, 0, 0] * 0.8 + 0.15, 0.6 * (t["back_shape"] > 0.4), softness=0.05)
    shelf = box(moved(p, 0, t["blob_y"].abs() - 0.2), 2.0, t["blob_size"] * 0.25, 0.0)
    canvas.paint(shelf, first[:, :, 0, 0] * 0.7, 0.5 * (t["back_shape"] < 0.3), softness=0.02)
    return canvas.pixels


def _strands(hair: Tensor, p: Point, t: Traits) -> Tensor:
    """Hair colour with a sheen and strands that follow the head, (N, 3, H, W)."""
    around = torch.atan2(p[0] - t["parting"] * 0.3, 0.9 - p[1])
    sheen = 0.22 * torch.exp(-(((torch.hypot(p[0], p[1] + 0.05) - 0.56) / 0.07) ** 2))
    strands = 0.07 * torch.sin(around * 46) + 0.05 * torch.sin(around * 23 + 1)
    return hair[:, :, None, None] * (1 + sheen + strands)[:, None] + 0.25 * sheen[:, None] * 0.4


def _back_hair(canvas: Canvas, t: Traits, face: Point, hair: Tensor) -> None:
    style = t["hair_style"]
    volume = t["hair_volume"]
    cap = ellipse(moved(face, 0, -0.16), t["head_width"] + volume, t["head_height"] - 0.12 + volume)
    long = box(moved(face, 0, 0.28), t["head_width"] + volume * 0.9, 0.62, 0.25)
    bob = box(moved(face, 0, 0.08), t["head_width"] + volume * 1.1, 0.42, 0.22)
    angle = torch.atan2(face[1] + 0.2, face[0])
    curls = ellipse(moved(face, 0, -0.18), t["head_width"] + 0.17, t["head_height"] - 0.02) + 0.02 * torch.sin(
        angle * 17
    )
    shape = torch.where(
        style < 1,
        cap,
        torch.where(
            style < 2, smooth_union(cap, long, 0.1), torch.where(style < 3, smooth_union(cap, bob, 0.1), curls)
        ),
    )
    canvas.paint(shape, _strands(hair * 0.82, face, t))


def _body(canvas: Canvas, traits: Traits, t: Traits, face: Point, skin: Tensor) -> None:
    canvas.paint(box(moved(face, 0, 0.75), 0.20, 0.35, 0.08), skin * 0.80)
    cloth = hue_colour(traits["cloth_hue"], traits["cloth_light"], 0.7)
    shoulders = ellipse(moved(face, 0, 1.34), 0.95, 0.62)
    neckline = torch.where(
        t["collar"] < 1, ellipse(moved(face, 0, 0.78), 0.22, 0.16), (face[0].abs() * 1.6 + face[1] - 1.05) / 1.9
    )
    canvas.paint(torch.maximum(shoulders, -neckline), cloth)
    canvas.paint((torch.maximum(shoulders, -neckline) + 0.02).abs() - 0.012, cloth * 0.75, softness=0.01)


def _head(canvas: Canvas, t: Traits, face: Point, head: Tensor, skin: Tensor) -> None:
    ears = ellipse((face[0].abs() - t["head_width"] * 0.97, face[1] - 0.05), 0.07, 0.12)
    canvas.paint(ears, skin * 0.88)
    nx, ny = face[0] / (t["head_width"] * 1.15), face[1] / (t["head_height"] * 1.15)
    nz = (1 - nx**2 - ny**2).clamp_min(0.02).sqrt()
    lambert = nx * torch.sin(t["light_angle"]) - ny * 0.5 * torch.cos(t["light_angle"]) + nz * 0.8
    canvas.paint(head, skin[:, :, None, None] * (0.80 + 0.30 * lambert)[:, None])
    cheek = ellipse(((face[0] - t["yaw"]).abs() - 0.27, face[1] - 0.17), 0.10, 0.08)
    canvas.paint(cheek, skin * torch.tensor([[1.0, 0.72, 0.70]]), t["blush"] * 2, softness=0.12)


def _front_hair(canvas: Canvas, t: Traits, face: Point, head: Tensor, hair: Tensor) -> None:
    swept = t["fringe"] * torch.sin((face[0] - t["parting"]) * 5)
    line = t["hairline"] + 0.9 * (face[0] - t["parting"] * 0.5) ** 2 + swept * 0.6
    cap = ellipse(moved(face, 0, -0.14), t["head_width"] + 0.05, t["head_height"] - 0.08)
    fringe = torch.maximum(cap, (face[1] - line) * 0.8)
    canvas.paint(torch.maximum(fringe - 0.025, head), hair * 0.25, 0.35, softness=0.04)
    canvas.paint(fringe, _strands(hair, face, t))


def _nose(canvas: Canvas, t: Traits, p: Point, skin: Tensor) -> None:
    tip = t["nose"]
    canvas.paint(
        segment(p, (t["yaw"] * 0.3 + 0.03, tip - 0.16), (t["yaw"] * 0.6 + 0.035, tip), 0.012), skin * 0.78, 0.7, 0.03
    )
    canvas.paint(arc((p[0] - t["yaw"] * 0.5, p[1] - tip), t["nose_width"], 0.03, 0.012), skin * 0.62, softness=0.012)


def _eyes(canvas: Canvas, traits: Traits, t: Traits, p: Point, hair: Tensor, skin: Tensor) -> None:
    size = t["eye_size"]
    eye = (p[0].abs() - t["eye_apart"], p[1] - t["eye_height"])
    white = ellipse(eye, 0.092 * size, 0.052 * size)
    canvas.paint(white, torch.tensor([[0.96, 0.96, 0.95]]).expand(len(hair), -1))
    looking = (p[0].abs() - t["eye_apart"] - torch.sign(p[0]) * t["yaw"] * 0.25, eye[1])
    iris = torch.maximum(ellipse(looking, 0.05 * size, 0.05 * size), white)
    canvas.paint(iris, _IRIS[traits["iris"].long()])
    canvas.paint(torch.maximum(ellipse(looking, 0.024 * size, 0.024 * size), white), torch.full_like(hair, 0.04))
    canvas.paint(ellipse((p[0].abs() - t["eye_apart"] + 0.015, eye[1] + 0.018), 0.013, 0.013), torch.ones_like(hair))
    canvas.paint(arc((eye[0], eye[1]), 0.095 * size, -0.058 * size, 0.012), skin * 0.25)
    brow = (eye[0], eye[1] + 0.135 + t["brow_lift"] + 0.1 * eye[0])
    canvas.paint(arc(brow, 0.10, -0.03, 0.020), hair * 0.75 + skin * 0.08)


def _mouth(canvas: Canvas, t: Traits, p: Point, skin: Tensor, smile: Tensor) -> None:
    lips = skin * torch.tensor([[0.86, 0.52, 0.52]]) + torch.tensor([[0.06, 0.0, 0.02]])
    at = (p[0] - t["yaw"] * 0.2, p[1] - t["mouth_height"])
    width = t["mouth_width"]
    # Closed: two lips and the line between them.
    canvas.paint(ellipse(at, width * 0.85, 0.048 + 0.012 * t["lip_red"]), lips, 1 - smile)
    canvas.paint(arc(at, width * 0.88, 0.004, 0.011), lips * 0.45, 1 - smile)
    # Smiling: a crescent between two parabolas, teeth above, dark below.
    wide = width * 1.25
    inner = 1 - (at[0] / wide) ** 2
    upper, lower = 0.015 * inner - 0.045, 0.135 * inner - 0.045
    crescent = torch.maximum((upper - at[1]) * 0.9, (at[1] - lower) * 0.75)
    canvas.paint(crescent - 0.024, lips, smile)
    canvas.paint(crescent, lips * 0.30, smile)
    teeth = torch.maximum(crescent, at[1] - (0.075 * inner - 0.045))
    canvas.paint(teeth, torch.full_like(skin, 0.95), smile)
    crease = arc((at[0].abs() - wide - 0.035, at[1] + 0.05), 0.02, 0.0, 0.045)
    canvas.paint(crease, skin * 0.72, smile * 0.5, softness=0.03)


def _glasses(canvas: Canvas, t: Traits, p: Point, worn: Tensor) -> None:
    lens = box((p[0].abs() - t["eye_apart"] - 0.005, p[1] - t["eye_height"] - 0.01), 0.155, 0.115, 0.06)
    frame = _FRAME.expand(len(p[0]), -1)
    canvas.paint(lens, torch.tensor([[0.80, 0.88, 0.95]]).expand_as(frame), worn * 0.16)
    glint = torch.maximum(
        lens + 0.02, ((p[0].abs() - t["eye_apart"]) * 0.8 + p[1] - t["eye_height"] + 0.07).abs() - 0.014
    )
    canvas.paint(glint, torch.ones_like(frame), worn * 0.45)
    canvas.paint(lens.abs() - 0.024, frame, worn)
    bridge = arc((p[0], p[1] - t["eye_height"] + 0.02), t["eye_apart"] - 0.145, -0.02, 0.020)
    canvas.paint(bridge, frame, worn)
    temple = segment(
        (p[0].abs(), p[1]),
        (t["eye_apart"] + 0.16, t["eye_height"] - 0.03),
        (t["head_width"] + 0.02, t["eye_height"] - 0.05),
        0.018,
    )
    canvas.paint(temple, frame, worn)


def _lit(pixels: Tensor, t: Traits, screen: Point) -> Tensor:
    """Exposure, a light from one side and its colour."""
    side = 1 + t["light"] * (screen[0] * torch.sin(t["light_angle"]) - screen[1] * torch.cos(t["light_angle"])) * 0.6
    warm = torch.cat([1 + t["warmth"], torch.ones_like(t["warmth"]), 1 - t["warmth"]], 1)[:, :, None]
    return (pixels * (side * t["exposure"])[:, None] * warm).clamp(0, 1)


class DemoFaces(Dataset[dict[str, Tensor]]):
    """Drawn faces with labels, made when they are looked at.

    A face depends on ``(seed, split, index)`` alone: the same on every machine and in every order, and the splits have
    no face in common. Because faces are drawn, the true result of every edit is known (:meth:`truth`).

    Args:
        length: how many faces this data set says it has. There is no end to them: any index from 0 on can be drawn.
        size: height and width of the images in pixels.
        seed: of the faces.
        split: any name, usually "train" or "test"; other names give other faces.

    Example:
        >>> faces = DemoFaces(length=100, size=64, split="test")
        >>> sample = faces[3]
        >>> sample["image"].shape, sample["labels"].shape
        (torch.Size([3, 64, 64]), torch.Size([5]))
        >>> bool((faces.truth(3, sample["labels"]) == sample["image"]).all())
        True
    """

    attributes = ATTRIBUTES

    def __init__(self, length: int = 1000, *, size: int = 64, seed: int = 0, split: str = "train") -> None:
        if length < 1 or size < 16:
            raise ValueError(f"DemoFaces needs length >= 1 and size >= 16 pixels, got length={length}, size={size}.")
        self.length, self.size, self.seed, self.split = length, size, seed, split

    @classmethod
    def open(
        cls,
        root: str | None = None,
        *,
        split: str | None = None,
        attributes: Sequence[str] = (),
        transform: object = None,
        **options: Any,
    ) -> DemoFaces:
        """As :func:`open_data` asks for it; the split "train" if none is named.

        Faces are drawn as tensors: `transform`, which is for photos, does nothing to them.

        Raises:
            ValueError: for a root, as faces come from no file, and for other attributes than theirs.
        """
        if root is not None:
            raise ValueError(f"Drawn faces come from no file, so not from {root!r}; give size= for another size.")
        if attributes and tuple(attributes) != ATTRIBUTES:
            raise ValueError(f"Drawn faces have the labels {', '.join(ATTRIBUTES)}, not {', '.join(attributes)}.")
        return cls(split=split or "train", **options)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One face: ``image`` (3, size, size) in [-1, 1] and ``labels`` (5,) in {0, 1}."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Tensor]]:
        """Several faces drawn together, which a DataLoader asks for; see :meth:`__getitem__`."""
        for index in indices:
            if not 0 <= index < self.length:
                raise IndexError(f"index {index} is outside 0..{self.length - 1}")
        keys = [self._key(index) for index in indices]
        kept = {key: face for key in keys if (face := _KEPT.get(key)) is not None}
        if new := [index for index, key in zip(indices, keys, strict=True) if key not in kept]:
            kept |= self._draw(new)
        return [{"image": from_bytes(kept[key][0]), "labels": kept[key][1].clone()} for key in keys]

    def _key(self, index: int) -> tuple[Any, ...]:
        """Under which a face is kept."""
        return type(self), self.seed, self.split, self.size, index

    def _draw(self, indices: list[int]) -> dict[tuple[Any, ...], tuple[Tensor, Tensor]]:
        """Draw faces and keep them; gives each one's bytes and labels."""
        traits = self.traits(indices)
        labels = labels_of(traits)
        images = to_bytes(render(traits, labels, self.size))
        found = {self._key(index): (images[row].clone(), labels[row]) for row, index in enumerate(indices)}
        _KEPT.update(found)
        for oldest in list(_KEPT)[: max(0, len(_KEPT) - _MOST_KEPT // images[0].numel())]:
            _KEPT.pop(oldest, None)  # which another thread may have done
        return found

    def traits(self, indices: list[int]) -> Traits:
        """The traits of the faces with these indices, for :func:`render`."""
        return draw_traits(f"{self.seed}/{self.split}", indices)

    def truth(self, index: int, labels: Tensor) -> Tensor:
        """The face with this index as it looks with other labels (5,): (3, size, size) in [-1, 1]."""
        return render(self.traits([index]), labels[None], self.size)[0]
