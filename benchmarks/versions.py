"""How many changed photos are found, and how far other photos are: `python benchmarks/versions.py`.

Photos are changed between training and audit in one way after another, on either side, and looked for among the hashes
of their originals, as an audit does (`loraguard.data.PhotoVersions`). Other photos of the same kind must not be found.
Pictures are drawn faces; with `--weights FOLDER` faces that an autoencoder trained on CelebA makes of random latents;
where scikit-image is installed its 100 faces of Labeled Faces in the Wild, at 25 x 25 pixels; and dead leaves.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as changes

from loraguard.channels import JPEG, Grey
from loraguard.data import DemoFaces, PhotoHashes, PhotoVersions
from loraguard.data.shapes import distances
from loraguard.generators import CelebaVAE

SIZE = 64
_DRAWS = torch.Generator().manual_seed(0)


def cropped(images: Tensor, part: float) -> Tensor:
    """Each without this part of height and width, at a place of its own, and scaled back."""
    side = round(SIZE * (1 - part))
    corners = torch.randint(SIZE - side + 1, (len(images), 2), generator=_DRAWS).tolist()
    parts = [one[:, top : top + side, left : left + side] for one, (top, left) in zip(images, corners, strict=True)]
    return F.interpolate(torch.stack(parts), (SIZE, SIZE), mode="bicubic", antialias=True).clamp(-1, 1)


def turned(images: Tensor, degrees: float, *, border: bool) -> Tensor:
    """Turned; with a grey border in the corners, or cropped so far that there is none."""
    made = changes.rotate(images, degrees, InterpolationMode.BILINEAR, fill=[0.0, 0.0, 0.0])
    if border:
        return made
    angle = math.radians(abs(degrees))
    margin = math.ceil(SIZE / 2 * (1 - 1 / (math.cos(angle) + math.sin(angle))))
    return F.interpolate(made[..., margin:-margin, margin:-margin], (SIZE, SIZE), mode="bilinear", antialias=True)


def shifted(images: Tensor, part: float) -> Tensor:
    """Down and to the right; the border repeats."""
    by = round(SIZE * part)
    return F.pad(images, (by, 0, by, 0), mode="replicate")[..., :SIZE, :SIZE]


def toned(images: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """A change of values in [0, 1]."""
    return (2 * change((images + 1) / 2) - 1).clamp(-1, 1)


def noisy(images: Tensor, size: float) -> Tensor:
    """Every value moved by so much, up or down."""
    return (images + size * torch.randn(images.shape, generator=_DRAWS).sign()).clamp(-1, 1)


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "mirrored": lambda x: x.flip(3),
    "turned by 90, 180 or 270 degrees": lambda x: torch.stack(
        [one.rot90(1 + i % 3, (1, 2)) for i, one in enumerate(x)]
    ),
    "cropped by 5%": lambda x: cropped(x, 0.05),
    "cropped by 10%": lambda x: cropped(x, 0.1),
    "cropped by 20%": lambda x: cropped(x, 0.2),
    "cropped by 30%": lambda x: cropped(x, 0.3),
    "turned by 3 degrees, grey corners": lambda x: turned(x, 3, border=True),
    "turned by 10 degrees, grey corners": lambda x: turned(x, -10, border=True),
    "turned by 5 degrees, cropped": lambda x: turned(x, 5, border=False),
    "shifted by 5%": lambda x: shifted(x, 0.05),
    "shifted by 10%": lambda x: shifted(x, 0.1),
    "grey": Grey(),
    "red and blue exchanged": lambda x: x.flip(1),
    "hues turned by a fifth": lambda x: toned(x, lambda y: changes.adjust_hue(y, 0.2)),
    "inverted": lambda x: -x,
    "brighter": lambda x: (x + 0.4).clamp(-1, 1),
    "half as bright": lambda x: toned(x, lambda y: 0.5 * y),
    "gamma 2": lambda x: toned(x, lambda y: y**2),
    "half the size": lambda x: F.interpolate(F.avg_pool2d(x, 2), scale_factor=2.0, mode="bilinear"),
    "JPEG 30": JPEG(30),
    "noise of 0.1": lambda x: noisy(x, 0.1),
    "mirrored, cropped by 10%, JPEG 30": lambda x: JPEG(30)(cropped(x.flip(3), 0.1)),
    "cropped by 10%, grey, half as bright": lambda x: toned(Grey()(cropped(x, 0.1)), lambda y: 0.5 * y),
}


def pictures(weights: Path | None, others: int, seed: int) -> dict[str, Tensor]:
    """By kind, photos (N, 3, 64, 64)."""
    kinds = {"drawn faces": drawn(others + 100, seed)}
    if weights is not None:
        network = CelebaVAE.from_checkpoint(weights / "VAE_celeba.pt").eval()
        with torch.no_grad():
            kinds["decoded faces"] = network.decode(torch.randn(others // 5 + 100, 10, generator=_DRAWS))
    try:
        import skimage.data
    except ImportError:
        print("scikit-image is not installed; no faces of LFW.")
    else:
        found = np.load(Path(skimage.data.__file__).with_name("lfw_subset.npy"))[:100]
        kinds["LFW"] = changes.resize(torch.from_numpy(found).float()[:, None] * 2 - 1, [SIZE, SIZE]).repeat(1, 3, 1, 1)
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    from train_mark_network import leaves

    kinds["dead leaves"] = leaves(others // 10 + 100, _DRAWS)
    return kinds


def drawn(count: int, seed: int) -> Tensor:
    """Drawn faces."""
    faces = DemoFaces(count, size=SIZE, seed=seed)
    return torch.stack([one["image"] for one in faces.__getitems__(list(range(count)))])


def found_of(images: Tensor, changed: Tensor) -> tuple[int, int]:
    """How many are found where the training was on changed photos, and where the audit is."""
    pairs = (images, changed), (changed, images)
    return tuple(int(PhotoVersions.of(a).like(PhotoHashes.of(b)).diagonal().sum()) for a, b in pairs)  # type: ignore[return-value]


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", type=Path, help="folder with VAE_celeba.pt")
    parser.add_argument("--photos", type=int, default=50, help="changed photos of each kind")
    parser.add_argument("--others", type=int, default=10_000, help="other drawn faces; fewer of the other kinds")
    parser.add_argument("--seed", type=int, default=0, help="of drawn faces; bounds were chosen on those of 0")
    asked = parser.parse_args()
    kinds = pictures(asked.weights, asked.others, asked.seed)

    print(
        "| other photos | audited | known | found | nearest, in parts of what a version may be |\n|---|---|---|---|---|"
    )
    for name, images in kinds.items():
        audited, known = images[: min(100, len(images) // 2)], images[min(100, len(images) // 2) :]
        versions, hashes = PhotoVersions.of(audited), PhotoHashes.of(known)
        assert hashes.shape is not None
        false = int(versions.like(hashes).any(1).sum())
        nearest = float(distances(versions.small, hashes.shape).min())
        print(f"| {name} | {len(audited)} | {len(known)} | {false} | {nearest:.2f} |", flush=True)

    print(f"\n| change | {' | '.join(kinds)} |\n|---|{'---|' * len(kinds)}")
    for name, change in CHANGES.items():
        cells = []
        for images in kinds.values():
            rates = found_of(images[: asked.photos], change(images[: asked.photos]))
            cells.append(" / ".join(f"{100 * one / min(asked.photos, len(images)):.0f}%" for one in rates))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
