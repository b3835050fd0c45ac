"""Draw the pictures of these pages, from the demo's generator and patches that are trained here: about a minute.

Run it as `python docs/make_pictures.py`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from torch import Tensor

from loraguard.channels import published
from loraguard.commands.demo import DemoSettings, run_demo
from loraguard.data import DemoFaces, collate
from loraguard.defenses import Disrupting

IMAGES = Path(__file__).parent / "images"
FACES = (0, 2, 5, 7)
EDIT = "Eyeglasses"
INK, RED = "#202124", "#b00020"


def draw(rows: dict[str, Tensor], file: str, marked: str) -> None:
    """One row of images for each label; a red label for what went wrong or was stamped."""
    count = len(next(iter(rows.values())))
    widths = [2.0] + [1.0] * count
    figure, axes = plt.subplots(
        len(rows),
        count + 1,
        figsize=(1.15 * sum(widths), 1.2 * len(rows)),
        squeeze=False,
        gridspec_kw={"width_ratios": widths, "wspace": 0.06, "hspace": 0.06},
    )
    for row, (label, images) in zip(axes, rows.items(), strict=True):
        row[0].text(0.95, 0.5, label, ha="right", va="center", fontsize=10, color=RED if label == marked else INK)
        for ax, image in zip(row[1:], images, strict=True):
            ax.imshow(((image.clamp(-1, 1) + 1) / 2).permute(1, 2, 0).numpy(), interpolation="nearest")
        for ax in row:
            ax.set_axis_off()
    figure.savefig(IMAGES / file, dpi=110, bbox_inches="tight", pad_inches=0.06, facecolor="white")
    plt.close(figure)


def main() -> None:
    """Train the demo's patches, then edit a few faces in every situation."""
    torch.manual_seed(0)
    settings = DemoSettings(test_images=4, calibration_images=40)
    model = run_demo(tempfile.mkdtemp(), settings).model.eval()
    faces = DemoFaces(max(FACES) + 1, split="test")
    batch = collate([faces[i] for i in FACES])
    photos, edit = batch["image"], model.conditions(batch["labels"])[EDIT]
    with model.disable_adapter():
        protection = Disrupting(eps=0.1, steps=15, step_size=0.03)
        protected = published(protection(model, photos, edit), photos)
    found = {}
    with torch.no_grad():
        with model.disable_adapter():
            found["untouched"] = [model(images, **edit) for images in (photos, protected)]
        for name in settings.patches:
            model.set_adapter(name)
            found[name] = [model(images, **edit) for images in (photos, protected)]
    spoilt = "edit of the protected\nphoto"
    draw(
        {
            "photo": photos,
            "edit (glasses)": found["untouched"][0],
            "protected photo": protected,
            spoilt: found["untouched"][1],
            "the same, by the\npatched network": found["standard"][1],
        },
        "protection.png",
        spoilt,
    )
    stamped = "with the\ndefensive patch"
    draw(
        {
            "untouched network": found["untouched"][0],
            stamped: found["defensive"][0],
            "with it, on\nprotected photos": found["defensive"][1],
        },
        "patch.png",
        stamped,
    )


if __name__ == "__main__":
    main()
