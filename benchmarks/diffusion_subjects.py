"""The editors of `diffusion.py`, with the photos to train on and to audit on, and what they are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from loraguard.data import DemoFaces
from loraguard.generators import TAEF2, CelebaVAE, DemoDiffusion
from loraguard.pixels import from_picture

OTHERS = ("VAE", "betaB", "betaH", "factor")
PARTS = ("encoder", "decoder", "encoder+decoder")
LEARN_ON = ("coffee.png", "rocket.jpg", "motorcycle_left.png", "retina.jpg")
"""Of scikit-image."""
JUDGE_ON = ("astronaut.png", "chelsea.png", "china.jpg", "flower.jpg")
"""Two of scikit-image, two of scikit-learn."""


class Photos(Dataset[dict[str, Tensor]]):
    """Images (N, 3, H, W) as a data set; those that were made of photos with labels have theirs."""

    def __init__(self, images: Tensor, of: Any = None) -> None:
        self.images, self.of = images, of

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One photo."""
        item = {} if self.of is None else self.of[index]
        return {**item, "image": self.images[index]}


@dataclass(frozen=True)
class Subject:
    """What is audited.

    Attributes:
        editor: the network.
        train: photos to train adapters on.
        held_out: photos to audit on.
        elsewhere: another network with latents, by name, and the condition that it takes for one photo: protections are
            also crafted on it.
        others: networks like the editor, by name, which photos are carried to and from.
        parts: that get a GATED_LORA patch each.
        learning_rate: of these; chosen among 1e-2, 3e-3 and 1e-3 on other photos.
        cat_learning_rate: CAT's, chosen among 1e-2, 3e-3, 1e-3 and its own 1e-4 likewise.
        purifiers: channels by what the page calls them.
    """

    editor: Any
    train: Any
    held_out: Any
    learning_rate: float
    cat_learning_rate: float
    purifiers: dict[str, str]
    elsewhere: dict[str, tuple[nn.Module, dict[str, Tensor]]] = field(default_factory=dict)
    others: dict[str, nn.Module] = field(default_factory=dict)
    parts: Sequence[str] = PARTS


def celeba(weights: Path, train: int, photos: int, size: int, pictures: Path | None) -> Subject:
    """Faces of nobody: random latents, decoded by the very autoencoder that is audited."""
    editor = CelebaVAE.from_checkpoint(weights / "btcvae_celeba.pt")

    def faces(count: int, seed: int) -> Photos:
        with torch.no_grad():
            return Photos(editor.decode(torch.randn(count, 10, generator=torch.Generator().manual_seed(seed))))

    others: dict[str, nn.Module] = {name: CelebaVAE.from_checkpoint(weights / f"{name}_celeba.pt") for name in OTHERS}
    purifiers = {
        "JPEG 75": "jpeg:75", "noisy upscaling": "noisy-upscale",
        "another autoencoder (VAE)": f"autoencoder:celeba_vae,{weights / 'VAE_celeba.pt'}",
        "IMPRESS": f"impress:celeba_vae,{weights / 'btcvae_celeba.pt'},steps=40",
    }  # fmt: skip
    return Subject(editor, faces(train, 1), faces(photos, 3), 1e-2, 1e-2, purifiers, others=others)


def taef2(weights: Path, train: int, photos: int, size: int, pictures: Path | None) -> Subject:
    """Crops of real photos; adapters learn on other photos than they are judged on."""
    editor = TAEF2.from_checkpoint(weights / "taef2_encoder.pth")
    learn, judge = (Photos(crops(names, n, size, seed, pictures)) for names, n, seed in
                    ((LEARN_ON, train, 1), (JUDGE_ON, photos, 3)))  # fmt: skip
    purifiers = {
        "JPEG 75": "jpeg:75", "noisy upscaling": "noisy-upscale",
        "another autoencoder (the demo's)": "autoencoder:demo_diffusion",
        "IMPRESS": f"impress:taef2,{weights / 'taef2_encoder.pth'},steps=10",
    }  # fmt: skip
    elsewhere = {"the demo's encoder": (DemoDiffusion.pretrained(), {"labels": torch.zeros(1, 5)})}
    return Subject(editor, learn, judge, 3e-3, 1e-3, purifiers, elsewhere)


def demo(weights: Path, train: int, photos: int, size: int, pictures: Path | None) -> Subject:
    """The embedded editor, on drawn faces."""
    editor = DemoDiffusion.pretrained()
    editor.steps = 4
    purifiers = {
        "JPEG 75": "jpeg:75", "noisy upscaling": "noisy-upscale",
        "another autoencoder (TAEF2)": f"autoencoder:taef2,{weights / 'taef2_encoder.pth'}",
        "IMPRESS": "impress:demo_diffusion,steps=10",
    }  # fmt: skip
    elsewhere: Any = {"TAEF2's encoder": (TAEF2.from_checkpoint(weights / "taef2_encoder.pth"), {})}
    judged = Subset(DemoFaces(100 + photos, split="test"), range(100, 100 + photos))
    return Subject(editor, DemoFaces(train), judged, 3e-3, 1e-3, purifiers, elsewhere, parts=(*PARTS, "denoiser"))


SUBJECTS = {"celeba": celeba, "taef2": taef2, "demo": demo}


def crops(names: Sequence[str], count: int, size: int, seed: int, pictures: Path | None) -> Tensor:
    """Random crops (N, 3, size, size) of photos, which are made so small first that a crop shows much of one.

    Args:
        names: of files.
        count: of crops.
        size: of their sides.
        seed: of where they are.
        pictures: a folder with files that scikit-image or scikit-learn would bring.
    """
    found = [Image.open(_file(name, pictures)).convert("RGB") for name in names]
    stream, made = torch.Generator().manual_seed(seed), []
    for i in range(count):
        picture = found[i % len(found)]
        picture = picture.resize([round(side * 1.5 * size / min(picture.size)) for side in picture.size])
        left, top = (int(torch.randint(side - size + 1, (), generator=stream)) for side in picture.size)
        made.append(from_picture(picture.crop((left, top, left + size, top + size))))
    return torch.stack(made)


def _file(name: str, pictures: Path | None) -> Path:
    folders = [] if pictures is None else [pictures]
    for package, inside in (("skimage", "data"), ("sklearn", "datasets/images")):
        if (spec := find_spec(package)) is not None and spec.origin is not None:
            folders.append(Path(spec.origin).parent / inside)
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"There is no photo {name}: pip install scikit-image scikit-learn, or give --pictures FOLDER with it."
    )
