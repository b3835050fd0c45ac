"""The whole idea on real input, offline and without a GPU: protect, patch, stamp, audit, report."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from accelerate import PartialState
from peft import PeftModel, get_peft_model
from torch import Tensor

from loraguard.audit import AuditResult, Share, run_audit, write_report
from loraguard.audit.photos import pick_edits
from loraguard.data import DemoFaces, collate
from loraguard.defenses import Disrupting
from loraguard.files import temporary_folder, writable_folder
from loraguard.generators import DemoEditor
from loraguard.stamp import Stamp, StampDetector
from loraguard.training import PatchTrainer, PatchTrainingArguments, TrainingResult
from loraguard.training.checkpoints import STATE, whole_checkpoints
from loraguard.tuner import GatedLoraConfig

from .side_by_side import SecondProcess, Sender, one_thread

DEFENSE = Disrupting(eps=0.1, steps=10, step_size=0.03)
STAMP = Stamp("AI", place="bottom-left", size=0.4, margin=0.0, background="#b00020", outline=None)


@dataclass(frozen=True)
class PatchRecipe:
    """How one of the demo's patches is made; each step sees `batch_size` faces, each with `edits` of the five edits.

    The adversary of the training has a budget that is a fifth larger than the audited one, and takes one or two steps
    of twice that, which end in its corners whatever the random start. That was enough for patches that withstand the
    audit's attacks of many steps, at a fraction of the time.
    """

    stamp: Stamp | None
    r: int
    steps: int
    attack_steps: int
    eps: float = 0.12
    step_size: float = 0.24
    lora_alpha: int = 16
    learning_rate: float = 1e-2
    batch_size: int = 2
    edits: int = 2


@dataclass(frozen=True)
class DemoSettings:
    """What the demo's figures depend on; the defaults are those of `loraguard demo`.

    Attributes:
        defense: what is audited, with and without the leak.
        standard: how the standard patch is made.
        defensive: how the defensive patch is made.
        test_images: faces of the audit, of the split "test".
        calibration_images: faces whose untouched outputs the detector's threshold comes from.
        seed: of everything that is drawn.
    """

    defense: Disrupting = DEFENSE
    standard: PatchRecipe = PatchRecipe(None, r=8, steps=105, attack_steps=2)
    defensive: PatchRecipe = PatchRecipe(STAMP, r=16, steps=135, attack_steps=1)
    test_images: int = 100
    calibration_images: int = 200
    seed: int = 0

    def quick(self) -> DemoSettings:
        """Enough to see that everything runs; the figures mean little."""
        return replace(
            self,
            defense=replace(self.defense, steps=5),
            standard=replace(self.standard, steps=4),
            defensive=replace(self.defensive, steps=4),
            test_images=24,
            calibration_images=40,
        )

    @property
    def patches(self) -> dict[str, PatchRecipe]:
        """The recipes by the names of their adapters."""
        return {"standard": self.standard, "defensive": self.defensive}


@dataclass(frozen=True)
class DemoResult:
    """What the demo made.

    Attributes:
        model: the generator with both patches as adapters.
        training: how each patch was trained.
        audit: what the audit found.
        report: the page, beside `audit.json`, `grid.png` and the patches in folders of their names.
    """

    model: PeftModel
    training: dict[str, TrainingResult]
    audit: AuditResult
    report: Path


@dataclass(frozen=True)
class Work:
    """What there is to do, for a process that does all of it or a part; it travels to the second one.

    Attributes:
        folder: of the demo.
        settings: of the demo.
        device: "cpu" or "auto".
        disable_tqdm: no progress bars.
    """

    folder: Path
    settings: DemoSettings
    device: str
    disable_tqdm: bool

    def arguments(self, name: str) -> PatchTrainingArguments:
        """How one of the patches is trained."""
        recipe = self.settings.patches[name]
        return PatchTrainingArguments(
            self.folder / name,
            recipe="paper",  # for what is not given here
            stamp=recipe.stamp,
            adversary=Disrupting(recipe.eps, recipe.attack_steps, recipe.step_size),
            max_train_steps=recipe.steps,
            train_batch_size=recipe.batch_size,
            edits_per_step=recipe.edits,
            learning_rate=recipe.learning_rate,
            lr_scheduler="cosine",
            max_grad_norm=1.0,
            seed=self.settings.seed,
            cpu=self.device == "cpu",
            disable_tqdm=self.disable_tqdm,
        )

    def train(self, name: str) -> TrainingResult:
        """Train one of the patches, from its checkpoint where it was interrupted."""
        recipe, seed = self.settings.patches[name], self.settings.seed
        torch.manual_seed(seed)
        config = GatedLoraConfig(r=recipe.r, lora_alpha=recipe.lora_alpha)
        model = get_peft_model(DemoEditor.pretrained(), config, adapter_name=name)
        return PatchTrainer(model, DemoFaces(10_000, seed=seed), resumed(self.arguments(name))).train()

    @property
    def on(self) -> torch.device:
        """Where the generators are."""
        return PartialState().device if self.device == "auto" else torch.device("cpu")

    def model(self) -> PeftModel:
        """The generator with both patches, from their folders."""
        model: PeftModel | None = None
        for name in self.settings.patches:
            if model is None:
                model = PeftModel.from_pretrained(DemoEditor.pretrained(), self.folder / name, adapter_name=name)
            else:
                model.load_adapter(self.folder / name, adapter_name=name)
        assert model is not None
        return model.to(self.on)

    @torch.no_grad()
    def detector(self) -> StampDetector:
        """One whose threshold comes from the untouched generator's outputs, on faces of their own."""
        generator, settings = DemoEditor.pretrained().to(self.on), self.settings
        number, seed = settings.calibration_images, settings.seed
        faces = DemoFaces(number, seed=seed, split="calibration")
        draws = torch.rand(number, generator=torch.Generator().manual_seed(seed))
        outputs = []
        for rows in torch.arange(number).split(50):  # all at once would take half a gigabyte
            batch = collate(faces.__getitems__(rows.tolist()))
            _, condition = pick_edits(every_edit(batch["labels"].to(self.on)), draws[rows])
            outputs.append(generator(batch["image"].to(self.on), **condition))
        return StampDetector(STAMP).calibrate(torch.cat(outputs))

    def audit(self, model: PeftModel, detector: StampDetector, cells: Path, share: Share) -> AuditResult:
        """Audit all three generators, or do a share of it."""
        settings = self.settings
        return run_audit(
            model,
            DemoFaces(settings.test_images, seed=settings.seed, split="test"),
            defenses=settings.defense,
            patches={name: recipe.stamp for name, recipe in settings.patches.items()},
            conditions=every_edit,
            detectors={"defensive": detector},
            seeds=[settings.seed],
            batch_size=20,  # five batches: three for one process, two and the probes for the other
            output_dir=cells,
            share=share,
            disable_tqdm=self.disable_tqdm,
        )


def run_demo(
    output_dir: str | Path,
    settings: DemoSettings | None = None,
    *,
    device: str = "cpu",
    processes: int | None = None,
    say: Callable[[str], None] = print,
    disable_tqdm: bool = False,
) -> DemoResult:
    """Protect drawn faces, train a standard and a defensive patch, audit all three generators, write the report.

    On a CPU two processes of one thread train a patch each and share the audit's photos, as the threads of one process
    would wait for each other in every layer. One process finds the same. Training that was interrupted goes on from its
    checkpoint, if the settings are the same.

    Args:
        output_dir: gets `report.html`, `audit.json`, `grid.png` and the patches in `standard/` and `defensive/`.
        settings: by default those of `loraguard demo`.
        device: "cpu", or "auto" for the accelerator that Accelerate finds.
        processes: 1 or 2; by default 2 on a CPU of two cores or more. Where the second one cannot be a copy of this
            one, it imports the script that calls this, which has to do so below `if __name__ == "__main__":`.
        say: called with a line of text as each part begins.
        disable_tqdm: no progress bars.

    Raises:
        OSError: if the folder cannot be written to; before anything else is done.
    """
    settings = settings or DemoSettings()
    work = Work(writable_folder(output_dir), settings, device, disable_tqdm)
    for name in settings.patches:
        writable_folder(work.folder / name)
    if processes is None:
        processes = 2 if device == "cpu" and (os.cpu_count() or 1) > 1 else 1
    patches = [f"a {name} patch in {recipe.steps} steps" for name, recipe in settings.patches.items()]
    say(f"Training {' and '.join(patches)}{', side by side' if processes > 1 else ''}")
    auditing = f"Auditing on {settings.test_images} faces that no patch was trained on"
    training: dict[str, TrainingResult] = {}
    with (
        temporary_folder() as cells,
        one_thread() if device == "cpu" else nullcontext(),
    ):
        if processes == 1:
            training = {name: work.train(name) for name in settings.patches}
            say(auditing)
            audit = work.audit(model := work.model(), work.detector(), cells, Share())
        else:
            with SecondProcess(second_half, work, cells) as second:
                training["standard"] = work.train("standard")
                detector = work.detector()  # while the other one trains on
                training["defensive"] = second.receive()
                second.send(detector)
                say(auditing)
                audit = work.audit(model := work.model(), detector, cells, Share(0, 2, second.receive))
    audit.settings["demo"] = asdict(settings)
    return DemoResult(model, training, audit, write_report(audit, work.folder, training=training))


def second_half(first: Sender, work: Work, cells: Path) -> None:
    """What the second process does: the defensive patch, and its share of the audit."""
    first.send(work.train("defensive"))
    detector = first.receive()

    def leave() -> None:
        first.send("audited")
        raise SystemExit

    work.audit(work.model(), detector, cells, Share(1, 2, leave))


def resumed(arguments: PatchTrainingArguments) -> PatchTrainingArguments:
    """The same settings, to go on from the newest checkpoint if that is of an interrupted run with them."""
    last = next(reversed(whole_checkpoints(Path(arguments.output_dir))), None)
    if last is None:
        return arguments
    then = json.loads((last / STATE).read_text(encoding="utf-8"))["settings"]
    now = json.loads(json.dumps(arguments.to_dict()))
    any_will_do = dict.fromkeys(("resume_from_checkpoint", "disable_tqdm"))
    same = then | any_will_do == now | any_will_do
    return replace(arguments, resume_from_checkpoint=last) if same else arguments


def every_edit(labels: Tensor) -> dict[str, dict[str, Tensor]]:
    """The audit's edits: the five that patches are trained on, and seven combinations that they never saw."""
    return {**DemoEditor.conditions(labels), **DemoEditor.combined_conditions(labels)}
