"""What a mark that is trained into a generator withstands, what it costs, and what removes it.

    python benchmarks/marks.py --output-dir docs --work-dir work  # writes docs/marks.json, docs/images/mark-*.png

Five patches: of the demo's generator at 64 pixels one that marks, one that stamps and marks; one that marks corners
at every size; and of the decoder of `DemoDiffusion`, so that every edit that ends in it is marked, one at 64 pixels and
one at every size. All is measured on other faces with combinations of edits, on the network with the patch merged into
its weights. With --work-dir a training that was interrupted (--minutes) goes on, and finished parts are kept. Times are
the processor's.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from pieces import counted, stop_after
from sizes import FacesOfSizes
from torch import Tensor, nn

from loraguard import GatedLoraConfig, Mark, MarkReader, PatchTrainer, PatchTrainingArguments, Stamp, StampReader
from loraguard.audit.marks import MarkAudit, MarkRow, as_table
from loraguard.audit.photos import pick_edits
from loraguard.channels import (
    JPEG,
    Channel,
    CropResize,
    GaussianBlur,
    GaussianNoise,
    Identity,
    MedianBlur,
    Resize,
    WebP,
    quantize,
)  # fmt: skip
from loraguard.data import DemoFaces, collate
from loraguard.defenses import APGD, Disrupting, RandomNoise
from loraguard.files import whole_files, writable_folder, write_json
from loraguard.generators import Condition, DemoDiffusion, DemoEditor
from loraguard.mark import CornerNetwork
from loraguard.metrics import LPIPS, psnr
from loraguard.pixels import to_picture
from loraguard.training.marking import MarkedLoss
from loraguard.training.sampling import EndlessBatches

EPS = 0.05
CHANNELS: dict[str, Channel] = {
    "JPEG 50": JPEG(50), "JPEG 75": JPEG(75), "half the size": Resize(0.5), "blur, sigma 1.5": GaussianBlur(1.5),
    "noise, 0.1": GaussianNoise(0.1), "WebP 50, unseen": WebP(50), "median of 3x3, unseen": MedianBlur(3),
}  # fmt: skip
CROPS: dict[str, Channel] = {"crop of 10%": CropResize(0.9)}
NOISE = RandomNoise(eps=EPS)
DEFENSES = {
    "noise": NOISE,
    "disrupting": Disrupting(eps=EPS, steps=15, step_size=0.01),
    "apgd, 20 steps": APGD(eps=EPS, steps=20),
}
STEPS = (1, 10, 20, 50, 100, 200, 500, 1000)
SLOW_STEPS = (100, 200, 500, 1000, 2000)
FACTORS = tuple(round(1.3 - 0.05 * i, 2) for i in range(17))
"""Of a patch's update as it is merged: which trades what is seen for what is read."""
DECIBELS = 35.1
"""PSNR to the untouched network's outputs, on faces that nothing else is measured on."""
CALIBRATED = 200  # outputs of the untouched network, for the reader of stamps
ATTACKER = 100  # faces of whoever fine-tunes
FORGED = 24  # photos that a mark is copied onto
WRITER_STEPS = 80  # of Adam, for the best writer
PLATE = Stamp("AI", place="bottom-left", size=0.4, margin=0.12, background="#b00020", outline=None, of_width=64)


class Reconstruction(nn.Module):
    """What the autoencoder of an editor makes of images, unedited."""

    def __init__(self) -> None:
        super().__init__()
        self.editor = DemoDiffusion.pretrained()

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1], encoded and decoded."""
        return self.editor.decode(self.editor.encode(images))


@dataclass(frozen=True)
class Case:
    """A patch.

    Attributes:
        sizes: of the images that it is measured on, in pixels.
        trained: of those that it is trained on, in turn.
        extractor: that reads the mark.
        adversary: perturbs photos in the training.
        stamp: beside the mark, or None.
        batch_size: photos of a step, each with one edit.
        generator: what is patched.
        exclude: names of layers that are not, as a regular expression.
        network: from the patched network, merged, to what is measured.
        untouched: the same without a patch.
        crops: how outputs are cropped.
        removal: whether to measure, at the first size, what removes the mark at a rate of 1e-3.
        thorough: whether to measure that and everything else: other sizes, defenses, a smaller rate, forging.
    """

    sizes: tuple[int, ...] = (64,)
    trained: tuple[int, ...] = (64,)
    extractor: str = "loraguard"
    adversary: Any = NOISE
    stamp: Stamp | None = None
    batch_size: int = 4
    generator: Callable[[], nn.Module] = DemoEditor.pretrained
    exclude: str | None = None
    network: Callable[[nn.Module], nn.Module] = lambda merged: merged
    untouched: Callable[[], nn.Module] = DemoEditor.pretrained
    crops: Mapping[str, Channel] = field(default_factory=lambda: CROPS)
    removal: bool = False
    thorough: bool = False


EVERY_SIZE: dict[str, Any] = {
    "sizes": (64, 128, 256), "trained": (64, 128, 64, 256), "extractor": "corners", "batch_size": 2,
    "crops": {"crop of 5%": CropResize(0.95), **CROPS},
}  # fmt: skip
DECODER: dict[str, Any] = {
    "generator": Reconstruction, "exclude": r".*\.(encoder|denoiser)\..*",
    "network": lambda merged: merged.editor, "untouched": DemoDiffusion.pretrained,
}  # fmt: skip
CASES = {
    "mark": Case(thorough=True),
    "stamp and mark": Case(stamp=PLATE, adversary=Disrupting(eps=EPS, steps=1, step_size=EPS), thorough=True),
    "every size": Case(**EVERY_SIZE),
    "decoder": Case(**DECODER),
    "decoder at every size": Case(**EVERY_SIZE, **DECODER, removal=True),
}  # fmt: skip


def patched(case: Case, mark: Mark, folder: Path, steps: int) -> PeftModel:
    """The generator with a patch; from the folder if an earlier run left it there, or its checkpoint."""
    if not (folder / "adapter_model.safetensors").is_file():
        torch.manual_seed(0)
        config = GatedLoraConfig(r=32, lora_alpha=8, exclude_modules=case.exclude)
        arguments = PatchTrainingArguments(
            folder, stamp=case.stamp, mark=mark, adversary=case.adversary,
            train_batch_size=case.batch_size, edits_per_step=1, max_train_steps=steps, cpu=True, disable_tqdm=True,
            resume_from_checkpoint="latest",
        )  # fmt: skip
        with counted(writable_folder(folder) / "processor_seconds.json"):
            faces = FacesOfSizes(10_000, case.trained)
            PatchTrainer(get_peft_model(case.generator(), config), faces, arguments).train()
    return PeftModel.from_pretrained(case.generator(), str(folder)).eval()


def scaled(model: PeftModel, factor: float) -> PeftModel:
    """The patch with its update times a factor: fainter, and read less surely."""
    for module in model.modules():
        if isinstance(scaling := getattr(module, "scaling", None), dict):
            scaling.update({name: value * factor for name, value in scaling.items()})
    return model


@torch.no_grad()
def largest_factor(case: Case, make: Callable[[], PeftModel], n: int) -> float:
    """The largest of :data:`FACTORS` that keeps :data:`DECIBELS` on faces of its own; 1 where there is a stamp."""
    if case.stamp is not None:
        return 1.0
    untouched = case.untouched()
    every = [(images, edit, untouched(images, **edit).clamp(-1, 1)) for images, edit in
             (photos(n, "scale", size)[:2] for size in case.sizes)]  # fmt: skip
    for factor in FACTORS:
        network = case.network(scaled(make(), factor).merge_and_unload())
        if all(float(psnr(network(images, **edit).clamp(-1, 1), reference).mean()) >= DECIBELS
               for images, edit, reference in every):  # fmt: skip
            break
    return factor


def photos(n: int, split: str = "test", size: int = 64) -> tuple[Tensor, Condition, Tensor]:
    """Faces, an edit of each that patches were not trained on, and what the drawing says the edit should give."""
    faces = DemoFaces(n, size=size, split=split)
    batch = collate(faces.__getitems__(list(range(n))))
    draws = torch.rand(n, generator=torch.Generator().manual_seed(0))
    _, edit = pick_edits(DemoEditor.combined_conditions(batch["labels"]), draws)
    return batch["image"], dict(edit), torch.stack([faces.truth(i, edit["labels"][i]) for i in range(n)])


def attacker() -> Iterator[tuple[Tensor, Condition, Tensor]]:
    """True pairs of some faces, in batches of eight."""
    images, edit, truth = photos(ATTACKER, "attacker")
    for some in EndlessBatches(ATTACKER, 8, seed=0):
        yield images[some], {key: value[some] for key, value in edit.items()}, truth[some]


def kept(file: Path, make: Callable[[], Iterable[MarkRow]]) -> list[MarkRow]:
    """What an earlier run left in a JSON file, or what is made now, printed as it comes and left there."""
    if not file.is_file():
        rows = []
        for row in make():
            rows.append(row.to_dict())
            print(f"{file.parent.name}: {row}", flush=True)
        write_json(file, rows)
    return [MarkRow(**row) for row in json.loads(file.read_text(encoding="utf-8"))]


def measure(case: Case, audit: MarkAudit, folder: Path, quick: bool) -> list[MarkRow]:
    """Every row of a patch at one size; `quick` leaves out what takes longest."""
    rows = kept(folder / "layers.json", audit.layers)
    rows += kept(folder / "channels.json", lambda: audit.channels(CHANNELS, crops=False) + audit.channels(case.crops))
    first = audit.images.shape[-1] == case.sizes[0]
    if quick or not (case.thorough or (case.removal and first)):
        return rows
    if case.thorough:
        rows += kept(folder / "sizes.json", lambda: audit.sizes((0.5, 2.0, 4.0)))
    rows += kept(folder / "weights.json", lambda: [*audit.changed_weights(), *audit.regenerated()])
    rows += kept(folder / "tuned.json", lambda: audit.fine_tuned(attacker(), STEPS))
    rows += kept(folder / "adapted.json", lambda: audit.another_adapter(attacker(), STEPS))
    if not case.thorough:
        return rows
    rows += kept(folder / "forged.json", lambda: audit.forged(photos(FORGED, "forged")[0]))
    rows += kept(folder / "defenses.json", lambda: audit.defenses(DEFENSES))
    slow = {"learning_rate": 1e-4, "steps": SLOW_STEPS}
    for file, attack, name in (("tuned", audit.fine_tuned, "fine-tuning of all weights"),
                               ("adapted", audit.another_adapter, "another adapter")):  # fmt: skip
        make = partial(attack, attacker(), name=f"{name} at 1e-4", **slow)
        rows += kept(folder / f"slowly-{file}.json", make)
    return rows


def informed(mark: Mark, images: Tensor, decibels: float) -> Tensor:
    """What the best writer there can be makes of images: pixels that Adam moves until the word is read.

    The change is held at this PSNR, and is damaged as in a patch's training.
    """
    change = (0.01 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))).requires_grad_()
    adam = torch.optim.Adam([change], 0.02)
    loss = MarkedLoss(lambda outputs, _: outputs.new_zeros(()), mark)
    for step in range(WRITER_STEPS + 1):
        scaled = change / change.square().mean((1, 2, 3), keepdim=True).sqrt()
        written = (images + 2 * 10 ** (-decibels / 20) * scaled).clamp(-1, 1)
        if step < WRITER_STEPS:
            adam.zero_grad()
            loss(written, None).backward()
            adam.step()
    return written.detach()


def bound(mark: Mark, n: int, decibels: float = 35.0) -> dict[str, list[dict[str, Any]]]:
    """How well the extractor reads at all: the pattern laid on, and the best writer, on the editor's outputs."""
    editor, (faces, edit, _) = DemoEditor.pretrained(), photos(n)
    audit = MarkAudit(editor, editor, mark, faces, edit)
    made = {
        "pattern": replace(mark, psnr=decibels).compose(audit.reference),
        "best writer": informed(mark, audit.reference, decibels),
    }
    torch.manual_seed(0)
    return {
        name: [audit.row("bound", what, channel(quantize(images))).to_dict() for what, channel in every.items()]
        for every in [{"as it is": Identity(), **CHANNELS}]
        for name, images in made.items()
    }


def without_stamp(stamp: Stamp, size: int) -> Tensor:
    """1 where the stamp is not, 0 on its box and two pixels around it: (1, size, size)."""
    _, alpha = stamp.layer(size, size)
    rows, columns = (alpha[0].amax(axis).nonzero() for axis in (1, 0))
    free = torch.ones(1, size, size)
    free[
        :, max(int(rows.min()) - 2, 0) : int(rows.max()) + 3, max(int(columns.min()) - 2, 0) : int(columns.max()) + 3
    ] = 0
    return free


def figures(case: Case, audit: MarkAudit, lpips: LPIPS | None) -> dict[str, Any]:
    """What rows do not hold: reading without the message, LPIPS, PSNR in the corners, how often the stamp is read."""
    torch.manual_seed(0)
    outputs, reader = audit.outputs(), MarkReader(audit.mark.extractor, crops=False)
    every = {"as it is": outputs, **{name: channel(outputs) for name, channel in CHANNELS.items()}}
    readers = {name: (reader, images) for name, images in every.items()}
    readers |= {name: (replace(reader, crops=True), channel(outputs)) for name, channel in case.crops.items()}
    found: dict[str, Any] = {
        "message read without knowing it": {
            name: sum(one.found and one.message == audit.mark.message for one in read(images))
            for name, (read, images) in readers.items()
        },
        "lpips": None if lpips is None else float(lpips(outputs, audit.reference).mean()),
    }
    if isinstance(network := audit.mark.network, CornerNetwork):
        found["psnr in the corners"] = float(psnr(network.view(outputs), network.view(audit.reference)).mean())
    if case.stamp is not None:
        size = audit.images.shape[-1]
        free = without_stamp(case.stamp, size)
        error = ((outputs - audit.reference).square() * free).mean((1, 2, 3)) / free.mean()
        found["psnr outside of the stamp"] = float((10 * (4 / error).log10()).mean())
        others, edit, _ = photos(CALIBRATED, "unstamped", size)
        with torch.no_grad():
            stamps = StampReader({"AI": case.stamp}).calibrate(audit.untouched(others, **edit))
        every |= {name: images for name, (_, images) in readers.items()}
        found["stamp read"] = {name: sum(one == "AI" for one in stamps(images)) for name, images in every.items()}
        found["stamp read after"] = {}
        for name, defense in DEFENSES.items():
            torch.manual_seed(0)
            perturbed = defense(audit.network, audit.images, audit.condition)
            with torch.no_grad():
                stamped = audit.network(perturbed, **audit.condition).clamp(-1, 1)
            found["stamp read after"][name] = sum(one == "AI" for one in stamps(stamped))
    return found


def draw(audit: MarkAudit, file: Path) -> None:
    """Two outputs of the untouched network, the same with the mark, and five times the difference, in rows."""
    reference, marked = audit.reference[:2].clamp(-1, 1), audit.outputs()[:2]
    rows = [torch.cat(list(images), 2) for images in (reference, marked, (5 * (marked - reference)).clamp(-1, 1))]
    with whole_files(writable_folder(file.parent)) as draft:
        to_picture(torch.cat(rows, 1)).save(draft / file.name)


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True, help="for marks.json")
    parser.add_argument("--work-dir", type=Path, help="where patches and finished parts are kept")
    parser.add_argument("--steps", type=int, default=1000, help="of each patch's training")
    parser.add_argument("--images", type=int, default=100, help="to measure on")
    parser.add_argument("--only", choices=CASES, action="append", help="of the patches; repeatable")
    parser.add_argument("--minutes", type=float, help="stop a training after them, with a checkpoint")
    scale = f"of the patch's update as it is merged; by default what keeps {DECIBELS} dB on other faces, 1 with a stamp"
    parser.add_argument("--scale", type=float, help=scale)
    parser.add_argument("--quick", action="store_true", help="leave out defenses, removal and forging")
    parser.add_argument("--lpips", type=Path, help="AlexNet's weights, to measure LPIPS as well")
    given = parser.parse_args()
    torch.set_num_threads(1)
    stop_after(given.minutes)
    out, mark = writable_folder(given.output_dir), Mark("c0de", psnr=38.0, weight=0.015)
    lpips = None if given.lpips is None else LPIPS.load(given.lpips)
    settings = {"eps": EPS, "images": given.images, "mark": mark.settings()}
    result: dict[str, Any] = {"settings": settings, "patches": {}}
    with tempfile.TemporaryDirectory() as temporary:
        work = writable_folder(given.work_dir or temporary)
        if not (work / "bound.json").is_file():
            write_json(work / "bound.json", bound(mark, min(given.images, 20)))
        result["bound"] = json.loads((work / "bound.json").read_text(encoding="utf-8"))
        print({name: {row["name"]: round(row["bits"], 3) for row in rows} for name, rows in result["bound"].items()})
        for name in given.only or CASES:
            case, folder = CASES[name], work / name.replace(" ", "-")
            carried = replace(mark, extractor=case.extractor)
            again = partial(patched, case, carried, folder, given.steps)
            model = again()
            log = json.loads((folder / "training_log.json").read_text(encoding="utf-8"))["steps"]
            seconds = json.loads((folder / "processor_seconds.json").read_text(encoding="utf-8"))
            factor = given.scale or largest_factor(case, again, given.images)
            merged = scaled(model, factor).merge_and_unload().requires_grad_(False).eval()
            for size in case.sizes:
                images, edit, _ = photos(given.images, size=size)
                audit = MarkAudit(case.network(merged), case.untouched(), carried, images, edit)
                many = len(case.sizes) > 1
                place = writable_folder(folder / str(size)) if many else folder
                rows = measure(case, audit, place, given.quick)
                found = {"steps": len(log), "processor_seconds": seconds, "factor": factor}
                found |= figures(case, audit, lpips)
                title = f"{name}, {size} px" if many else name
                result["patches"][title] = {**found, "rows": [row.to_dict() for row in rows]}
                print(f"{title}: {found}\n\n{as_table(rows)}\n", flush=True)
                draw(audit, out / "images" / f"mark-{title.replace(',', '').replace(' ', '-')}.png")
        with whole_files(out) as draft:
            write_json(draft / "marks.json", result)


if __name__ == "__main__":
    main()
