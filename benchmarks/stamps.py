"""What stamps that are trained into a generator withstand, what they cost, and what removes them.

    python benchmarks/stamps.py --output-dir docs       # writes docs/stamps.json and docs/images/stamps.png

On one CPU thread each of three defensive patches for the demo's generator trains for about four minutes, and measuring
takes about ten. With --work-dir patches are kept, and a later run goes on from them.

The patches see faces at 48, 64 and 112 pixels with single edits. Everything is measured on other faces with
combinations of edits, at 56, 64, 96 and 128 pixels, on the network with the patch merged into its weights. The
reader is calibrated on what the untouched network makes of a third set of faces.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from PIL import Image, ImageDraw
from sizes import FacesOfSizes
from skimage.restoration import inpaint_biharmonic
from stamps_page import draw_picture, tables
from torch import Tensor, nn
from torch.nn import functional as F

from loraguard import GatedLoraConfig, PatchTrainer, PatchTrainingArguments, Stamp, StampReader
from loraguard.audit.photos import pick_edits
from loraguard.channels import JPEG, Channel, CropResize, GaussianBlur, GaussianNoise, Identity, Resize, WebP
from loraguard.data import DemoFaces, collate
from loraguard.defenses import APGD, DEFENSES, Disrupting, Fittable, parse_defense, sign_ascent, undisturbed
from loraguard.files import whole_files, writable_folder, write_json
from loraguard.generators import DemoEditor
from loraguard.stamp.reader import most_likely_share
from loraguard.training.sampling import EndlessBatches

TRAINED, SIZE, SIZES = (48, 64, 112), 64, (56, 64, 96, 128)
EPS = 0.05
CHANNELS: dict[str, Channel] = {
    "as it is": Identity(),
    "JPEG 50": JPEG(50),
    "WebP 50": WebP(50),
    "half the size": Resize(0.5),
    "crop of 10%": CropResize(0.9),
    "blur, sigma 1.5": GaussianBlur(1.5),
    "noise, 0.1": GaussianNoise(0.1),
}
SPECS = {"square": "square:queries=300", "cmua": "cmua:photos=32,batch_size=16", "tsdf": "tsdf:photos=16,steps=10"} | {
    name: f"{name}@pretrained" for name in ("tafim", "id-guard")
}
"""Defenses that are not as their defaults have them; the pretrained ones have a budget of their own."""
STRONGER = {"disrupting, 0.1": Disrupting(eps=0.1, steps=15, step_size=0.03), "apgd, 0.1": APGD(eps=0.1)}
"""Twice the budget that the patches were trained for."""
ATTACKER_IMAGES, ATTACKER_STEPS, ATTACKER_RATE = (10, 100, 1000), (0, 1, 2, 3, 5, 10, 20, 40, 80, 160), 1e-3


def stamps(folder: Path) -> dict[str, Stamp]:
    """A Latin and a Cyrillic text and a logo, which is drawn into the folder, all in the same corner."""
    logo = Image.new("RGBA", (256, 256))
    draw = ImageDraw.Draw(logo)
    draw.ellipse((2, 2, 253, 253), fill="#10207a", outline="white", width=16)
    for x, y, r in ((112, 142, 82), (176, 78, 40)):  # the four-pointed stars that stand for generated pictures
        w = r * 0.24
        points = [(0, -r), (w, -w), (r, 0), (w, w), (0, r), (-w, w), (-r, 0), (-w, -w)]
        draw.polygon([(x + dx, y + dy) for dx, dy in points], fill="white")
    logo.save(folder / "logo.png")
    plate: dict[str, Any] = {"place": "bottom-left", "size": 0.4, "margin": 0.12, "outline": None, "of_width": 64}
    return {
        "AI": Stamp("AI", background="#b00020", **plate),
        "ИИ": Stamp("ИИ", background="#b00020", **plate),
        "logo": Stamp(image=folder / "logo.png", **{**plate, "size": 0.36}),
    }


def patched(stamp: Stamp, folder: Path, steps: int) -> PeftModel:
    """The demo's generator with a patch; from the folder if an earlier run left it there."""
    if not (folder / "adapter_model.safetensors").is_file():
        torch.manual_seed(0)
        model = get_peft_model(DemoEditor.pretrained(), GatedLoraConfig(r=16, lora_alpha=8))
        arguments = PatchTrainingArguments(
            folder, stamp=stamp, adversary=Disrupting(eps=EPS, steps=1, step_size=EPS), max_train_steps=steps,
            cpu=True, disable_tqdm=True,
        )  # fmt: skip
        PatchTrainer(model, FacesOfSizes(10_000, TRAINED), arguments).train()
    return PeftModel.from_pretrained(DemoEditor.pretrained(), str(folder)).eval()


def photos(n: int, size: int, split: str = "test") -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Faces, an edit of each that patches were not trained on, and what the drawing says the edit should give."""
    faces = DemoFaces(n, size=size, split=split)
    batch = collate(faces.__getitems__(list(range(n))))
    draws = torch.rand(n, generator=torch.Generator().manual_seed(0))
    _, edit = pick_edits(DemoEditor.combined_conditions(batch["labels"]), draws)
    return batch["image"], dict(edit), torch.stack([faces.truth(i, edit["labels"][i]) for i in range(n)])


def share(count: int, n: int) -> dict[str, float]:
    """A share with its exact (Clopper-Pearson) bounds, each with 97.5% confidence."""
    low = 1 - most_likely_share(n - count, n, 0.975)
    return {"count": count, "n": n, "low": low, "high": most_likely_share(count, n, 0.975)}


def read_as(reader: StampReader, images: Tensor, name: str) -> dict[str, float]:
    """On how many images this stamp is read."""
    return share(sum(found == name for found in reader(images)), len(images))


def outside(stamp: Stamp, size: int) -> Tensor:
    """1 where the stamp is not, 0 on its box and two pixels around it, (1, size, size).

    A convolutional network stamps so many pixels from the corner, whatever the size of the image.
    """
    _, alpha = stamp.layer(SIZE, SIZE)
    rows, columns = (alpha[0].amax(axis).nonzero() for axis in (1, 0))
    free = torch.ones(1, size, size)
    free[:, size - SIZE + int(rows.min()) - 2 : size - SIZE + int(rows.max()) + 3, : int(columns.max()) + 3] = 0
    return free


def psnr(images: Tensor, reference: Tensor, where: Tensor) -> Tensor:
    """Of each image in dB, over the pixels where `where` is 1."""
    squares = ((images.clamp(-1, 1) - reference) / 2).square() * where
    return -10 * (squares.sum((1, 2, 3)) / (3 * where.sum())).log10()


@torch.no_grad()
def unperturbed(reader: StampReader, network: nn.Module, name: str | None, n: int) -> list[dict[str, Any]]:
    """At every size: on how many outputs the stamp (of the untouched network: any) is read after each channel."""
    rows = []
    for size in SIZES:
        images, edit, _ = photos(n, size)
        outputs, reference = network(images, **edit), DemoEditor.pretrained()(images, **edit)
        row: dict[str, Any] = {"stamp": name, "size": size, "read": {}}
        for channel, make in CHANNELS.items():
            torch.manual_seed(0)
            found = reader(make(outputs))
            row["read"][channel] = share(sum(one is not None if name is None else one == name for one in found), n)
        if name is not None:
            values = psnr(outputs, reference, outside(reader.stamps[name], size))
            row |= {"psnr": float(values.mean()), "lowest_psnr": float(values.min())}
        rows.append(row)
    return rows


def on_the_stamp(
    network: nn.Module, images: Tensor, edit: dict[str, Tensor], reference: Tensor, region: Tensor
) -> Tensor:
    """An attack made to erase the stamp: the region is to look as the untouched network leaves it; PGD, 100 steps."""
    with undisturbed(network):
        return sign_ascent(
            lambda x: -((network(x, **edit) - reference) * region).square().sum(),
            images, start=images, eps=EPS, steps=100, step_size=EPS / 10,
        )  # fmt: skip


def perturbed(reader: StampReader, network: nn.Module, name: str, n: int) -> dict[str, Any]:
    """On how many photos that each defense has perturbed the stamp is read; crafted on the shipped network."""
    images, edit, _ = photos(n, SIZE)
    with torch.no_grad():
        reference = DemoEditor.pretrained()(images, **edit)
    attacks: dict[str, Tensor] = {}
    for key, defense in {**{key: parse_defense(SPECS.get(key, key)) for key in DEFENSES}, **STRONGER}.items():
        torch.manual_seed(0)
        if isinstance(defense, Fittable) and "@" not in SPECS.get(key, ""):
            faces = DemoFaces(64, size=SIZE, split="fit")
            defense = defense.fit(network, faces, DemoEditor.combined_conditions, disable_tqdm=True)
        attacks[key] = defense(network, images, edit)
    region = 1 - outside(reader.stamps[name], SIZE)
    attacks["on the stamp itself"] = on_the_stamp(network, images, edit, reference, region)
    with torch.no_grad():
        return {key: read_as(reader, network(attack, **edit), name) for key, attack in attacks.items()}


def fine_tuned_away(
    reader: StampReader, shipped: DemoEditor, untouched: nn.Module, name: str, n: int
) -> dict[str, list[dict[str, Any]]]:
    """All weights of the shipped network, trained on true edits of a few faces: what is left of the stamp.

    The attacker has no untouched network: targets are drawn, as one would collect photos before and after an edit.
    """
    images, edit, _ = photos(n, SIZE)
    with torch.no_grad():
        reference = untouched(images, **edit)
    free, found = outside(reader.stamps[name], SIZE), {}
    for count in ATTACKER_IMAGES:
        network = DemoEditor()
        network.load_state_dict(shipped.state_dict())
        optimizer = torch.optim.Adam(network.parameters(), ATTACKER_RATE, betas=(0.5, 0.999))
        theirs, their_edits, truth = photos(count, SIZE, "attacker")
        batches, rows = iter(EndlessBatches(count, 8, seed=0)), []
        for step in range(max(ATTACKER_STEPS) + 1):
            if step in ATTACKER_STEPS:
                with torch.no_grad():
                    outputs = network(images, **edit)
                quality = float(psnr(outputs, reference, free).mean())
                rows.append({"step": step, "read": read_as(reader, outputs, name), "psnr": quality})
            some = next(batches)
            outputs = network(theirs[some], **{key: value[some] for key, value in their_edits.items()})
            optimizer.zero_grad()
            F.mse_loss(outputs, truth[some]).backward()
            optimizer.step()
        found[str(count)] = rows
    return found


@torch.no_grad()
def removed(
    reader: StampReader, model: PeftModel, shipped: DemoEditor, name: str, n: int
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What somebody who holds the adapter, the shipped network or only its outputs can do."""
    untouched = DemoEditor.pretrained()
    images, edit, _ = photos(n, SIZE)
    reference, outputs = untouched(images, **edit), shipped(images, **edit)
    with model.disable_adapter():
        disabled = model(images, **edit)
    free = outside(reader.stamps[name], SIZE)
    hole = 1 - free
    mask = hole[0].bool().numpy()
    painted = torch.stack([
        torch.from_numpy(inpaint_biharmonic(one.permute(1, 2, 0).double().numpy(), mask, channel_axis=2))
        for one in outputs
    ]).permute(0, 3, 1, 2).float().clamp(-1, 1)  # fmt: skip
    top = int(hole[0].amax(1).nonzero().min())
    results = {"adapter disabled": disabled, "merged, as it is shipped": outputs, "in-painted": painted}
    rows: dict[str, dict[str, Any]] = {key: {"read": read_as(reader, each, name)} for key, each in results.items()}
    rows["in-painted"]["psnr"] = float(psnr(painted, reference, hole).mean())
    rows["cropped off"] = {"read": read_as(reader, outputs[..., :top, :], name), "kept": top / SIZE}
    same = shipped.state_dict().keys() == untouched.state_dict().keys()
    gap = float((shipped(images, **edit) - model(images, **edit)).abs().max())
    return {"rows": rows, "same_keys": same, "largest_difference": gap}, {"in-painted": painted[:6]}


def kept(file: Path, make: Callable[[], Any]) -> Any:
    """What an earlier run left in a JSON file, or what is made now and left there."""
    if not file.is_file():
        write_json(file, make())
    return json.loads(file.read_text(encoding="utf-8"))


def measure(work: Path, given: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Every figure, and the pictures."""
    every, untouched = stamps(work), DemoEditor.pretrained()
    images, edit, _ = photos(given.calibrated, SIZE, "calibration")
    with torch.no_grad():
        reader = StampReader(every).calibrate(untouched(images, **edit))
    result: dict[str, Any] = {
        "settings": {
            "trained_at": TRAINED, "steps": given.steps, "eps": EPS, "calibrated_on": given.calibrated,
            "attacker_lr": ATTACKER_RATE, "torch": torch.__version__,
        },
        "reader": {
            "thresholds": reader.thresholds, "checked_on": reader.checked_on,
            "false_positives": reader.false_positives, "bound": reader.false_positive_bound,
        },
        "unperturbed": kept(work / "none.json", lambda: unperturbed(reader, untouched, None, given.images)),
        "perturbed": {},
    }  # fmt: skip
    networks: dict[str, nn.Module] = {"untouched": untouched}
    pictures: dict[str, Tensor] = {}
    for name, stamp in every.items():
        model = patched(stamp, work / name, given.steps)
        networks[name] = network = copy.deepcopy(model).merge_and_unload().eval()
        rows = kept(work / name / "unperturbed.json", partial(unperturbed, reader, network, name, given.images))
        result["unperturbed"] += rows
        attacks = kept(work / name / "perturbed.json", partial(perturbed, reader, network, name, given.attacked))
        result["perturbed"][name] = attacks
        if "removal" not in result:  # of the first
            result["removal"], pictures = removed(reader, model, network, name, given.images)
            result["fine_tuned_away"] = kept(
                work / name / "away.json", partial(fine_tuned_away, reader, network, untouched, name, given.images)
            )
    with torch.no_grad():
        for size in SIZES:
            images, edit, _ = photos(8, size)
            for i, (name, network) in enumerate(networks.items()):
                pictures[f"{name}, {size}"] = network(images, **edit)[2 * i : 2 * i + 2]
    return result, pictures


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True, help="for stamps.json and images/stamps.png")
    parser.add_argument("--work-dir", type=Path, help="where patches are kept")
    parser.add_argument("--steps", type=int, default=750, help="of each patch's training")
    parser.add_argument("--calibrated", type=int, default=400, help="untouched outputs that the reader is set by")
    parser.add_argument("--images", type=int, default=24, help="to measure on, at each size")
    parser.add_argument("--attacked", type=int, default=20, help="of them, to perturb by every defense")
    given = parser.parse_args()
    torch.set_num_threads(1)
    folder = writable_folder(given.output_dir)
    with tempfile.TemporaryDirectory() as temporary:
        result, pictures = measure(writable_folder(given.work_dir or temporary), given)
    with whole_files(folder) as draft:
        write_json(draft / "stamps.json", result)
        (draft / "images").mkdir()
        draw_picture(result, pictures, draft / "images/stamps.png")
    print(tables(result))


if __name__ == "__main__":
    main()
