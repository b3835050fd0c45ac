"""What a mark that is trained into a generator withstands, what it costs, and what removes it.

    python benchmarks/marks.py --output-dir docs --work-dir work      # writes docs/marks.json

Patches for the demo's generator, at 64 pixels: one that marks, one that stamps and marks. Everything is measured on
other faces with combinations of edits, on the network with the patch merged into its weights. With --work-dir a
training that was interrupted (--minutes) goes on, and finished parts are kept.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor

from loraguard import GatedLoraConfig, Mark, MarkReader, PatchTrainer, PatchTrainingArguments, Stamp, StampReader
from loraguard.audit.marks import MarkAudit, MarkRow, as_table
from loraguard.audit.photos import pick_edits
from loraguard.channels import JPEG, Channel, CropResize, GaussianBlur, GaussianNoise, MedianBlur, Resize, WebP
from loraguard.data import DemoFaces, collate
from loraguard.defenses import APGD, Disrupting, RandomNoise
from loraguard.files import whole_files, writable_folder, write_json
from loraguard.generators import Condition, DemoEditor
from loraguard.training.sampling import EndlessBatches

EPS, SIZE = 0.05, 64
CHANNELS: dict[str, Channel] = {
    "JPEG 50": JPEG(50), "JPEG 75": JPEG(75), "half the size": Resize(0.5), "blur, sigma 1.5": GaussianBlur(1.5),
    "noise, 0.1": GaussianNoise(0.1), "WebP 50, unseen": WebP(50), "median of 3x3, unseen": MedianBlur(3),
}  # fmt: skip
CROPS: dict[str, Channel] = {"crop of 10%": CropResize(0.9)}
DEFENSES = {
    "noise": RandomNoise(eps=EPS),
    "disrupting": Disrupting(eps=EPS, steps=15, step_size=0.01),
    "apgd": APGD(eps=EPS),
}
STEPS = (1, 2, 5, 10, 20, 50, 100)
PLATE = Stamp("AI", place="bottom-left", size=0.4, margin=0.12, background="#b00020", outline=None, of_width=64)


def patched(mark: Mark, stamp: Stamp | None, folder: Path, steps: int) -> PeftModel:
    """The demo's generator with a patch; from the folder if an earlier run left it there, or its checkpoint."""
    if not (folder / "adapter_model.safetensors").is_file():
        torch.manual_seed(0)
        model = get_peft_model(DemoEditor.pretrained(), GatedLoraConfig(r=16, lora_alpha=8))
        arguments = PatchTrainingArguments(
            folder, stamp=stamp, mark=mark, adversary=Disrupting(eps=EPS, steps=1, step_size=EPS),
            max_train_steps=steps, cpu=True, disable_tqdm=True, resume_from_checkpoint="latest",
        )  # fmt: skip
        PatchTrainer(model, DemoFaces(10_000), arguments).train()
    return PeftModel.from_pretrained(DemoEditor.pretrained(), str(folder)).eval()


def photos(n: int, split: str = "test") -> tuple[Tensor, Condition, Tensor]:
    """Faces, an edit of each that patches were not trained on, and what the drawing says the edit should give."""
    faces = DemoFaces(n, size=SIZE, split=split)
    batch = collate(faces.__getitems__(list(range(n))))
    draws = torch.rand(n, generator=torch.Generator().manual_seed(0))
    _, edit = pick_edits(DemoEditor.combined_conditions(batch["labels"]), draws)
    return batch["image"], dict(edit), torch.stack([faces.truth(i, edit["labels"][i]) for i in range(n)])


def attacker() -> Iterator[tuple[Tensor, Condition, Tensor]]:
    """True pairs of a hundred faces, in batches of eight."""
    images, edit, truth = photos(100, "attacker")
    for some in EndlessBatches(100, 8, seed=0):
        yield images[some], {key: value[some] for key, value in edit.items()}, truth[some]


def kept(file: Path, make: Callable[[], list[MarkRow]]) -> list[MarkRow]:
    """What an earlier run left in a JSON file, or what is made now and left there."""
    if not file.is_file():
        write_json(file, [row.to_dict() for row in make()])
    return [MarkRow(**row) for row in json.loads(file.read_text(encoding="utf-8"))]


def measure(audit: MarkAudit, folder: Path, merged: torch.nn.Module) -> list[MarkRow]:
    """Every row of a patch."""
    rows = kept(folder / "layers.json", audit.layers)
    rows += kept(folder / "channels.json", lambda: audit.channels(CHANNELS, crops=False) + audit.channels(CROPS))
    rows += kept(folder / "defenses.json", lambda: audit.defenses(DEFENSES))
    rows += kept(folder / "weights.json", lambda: [*audit.changed_weights(), *audit.regenerated({})])

    def tuned() -> list[MarkRow]:
        found = audit.fine_tuned(attacker(), STEPS, name="fine-tuning of all weights")
        plain, audit.network = audit.network, get_peft_model(copy.deepcopy(merged), GatedLoraConfig(r=16, lora_alpha=8))
        try:
            return found + audit.fine_tuned(attacker(), STEPS, name="another adapter")
        finally:
            audit.network = plain

    rows += kept(folder / "tuned.json", tuned)
    return rows + kept(folder / "forged.json", lambda: audit.forged(photos(24, "forged")[0]))


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True, help="for marks.json")
    parser.add_argument("--work-dir", type=Path, help="where patches and finished parts are kept")
    parser.add_argument("--steps", type=int, default=600, help="of each patch's training")
    parser.add_argument("--images", type=int, default=100, help="to measure on")
    parser.add_argument("--only", choices=("mark", "stamp and mark"), help="of the two patches")
    parser.add_argument("--minutes", type=float, help="stop a training after them, with a checkpoint")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.minutes:
        alarm = threading.Timer(60 * given.minutes, lambda: os.kill(os.getpid(), signal.SIGINT))
        alarm.daemon = True
        alarm.start()
    out, mark, untouched = writable_folder(given.output_dir), Mark("c0de"), DemoEditor.pretrained()
    images, edit, _ = photos(given.images)
    result: dict[str, Any] = {"settings": {"steps": given.steps, "eps": EPS, "mark": mark.settings()}, "rows": {}}
    with tempfile.TemporaryDirectory() as temporary:
        work = writable_folder(given.work_dir or temporary)
        for name, stamp in (("mark", None), ("stamp and mark", PLATE)):
            if given.only not in (None, name):
                continue
            folder = work / name.replace(" ", "-")
            merged = patched(mark, stamp, folder, given.steps).merge_and_unload().requires_grad_(False).eval()
            audit = MarkAudit(merged, untouched, mark, images, edit)
            rows = measure(audit, folder, merged)
            blind = MarkReader(mark.extractor)(audit.outputs())
            result["rows"][name] = [row.to_dict() for row in rows]
            result[f"{name}, unknown message"] = sum(one.found and one.message == "c0de" for one in blind)
            if stamp is not None:
                reader = StampReader({"AI": stamp}).calibrate(audit.reference)
                result["stamp read"] = sum(one == "AI" for one in reader(audit.outputs()))
            print(f"{name}\n{as_table(rows)}", flush=True)
        with whole_files(out) as draft:
            write_json(draft / "marks.json", result)


if __name__ == "__main__":
    main()
