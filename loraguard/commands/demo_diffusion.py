"""The demo's other half: today's protections against a latent-diffusion editor, and a patch of its encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from peft import get_peft_model

from loraguard.audit import run_audit, write_report
from loraguard.data import DemoFaces
from loraguard.defenses import SDS, Defense, Mist, PhotoGuard
from loraguard.files import writable_folder
from loraguard.generators import DemoDiffusion, layers_in
from loraguard.pixels import LEVELS_PER_UNIT
from loraguard.training import PatchTrainer, PatchTrainingArguments
from loraguard.tuner import GatedLoraConfig

from .demo import DemoResult, resumed

BUDGET = 16 / LEVELS_PER_UNIT
PATCH = "standard"
ADVERSARY = PhotoGuard(BUDGET, 2, step_size=BUDGET)


def protections(steps: int = 20) -> dict[str, Defense]:
    """What is audited, at 16/255, with steps in proportion to their number."""
    length = 2.5 * BUDGET / steps
    return {
        "photoguard": PhotoGuard(BUDGET, steps),
        "mist": Mist(BUDGET, steps, step_size=length),
        "sds": SDS(BUDGET, steps, step_size=length),
    }


@dataclass(frozen=True)
class DiffusionDemoSettings:
    """What the figures depend on; the defaults are those of `loraguard demo --editor diffusion`.

    Attributes:
        defenses: what is audited, with and without the leak.
        adversary: of the training; it is crafted anew against the patch in each step.
        adapt: what gets the adapter.
        r: the patch's rank.
        steps: of the training.
        editor_steps: of an edit.
        test_images: faces of the audit, of the split "test".
        success: what counts as success; outputs of this editor are no matter of a fixed MSE.
        seed: of everything that is drawn.
    """

    defenses: Mapping[str, Defense] = field(default_factory=protections)
    adversary: Defense = ADVERSARY
    adapt: str = "encoder"
    r: int = 8
    steps: int = 60
    editor_steps: int = 4
    test_images: int = 32
    success: str = "noise:0.95"
    seed: int = 0

    def quick(self) -> DiffusionDemoSettings:
        """Enough to see that everything runs; the figures mean little."""
        return replace(self, defenses=protections(2), steps=2, editor_steps=1, test_images=4)


def run_diffusion_demo(
    output_dir: str | Path,
    settings: DiffusionDemoSettings | None = None,
    *,
    device: str = "cpu",
    say: Callable[[str], None] = print,
    disable_tqdm: bool = False,
) -> DemoResult:
    """Protect drawn faces from a latent-diffusion editor, patch its encoder, audit both, write the report.

    Args:
        output_dir: gets `report.html`, `audit.json`, `grid.png` and the patch in `standard/`.
        settings: by default those of `loraguard demo --editor diffusion`.
        device: "cpu", or "auto" for the accelerator that Accelerate finds.
        say: called with a line of text as each part begins.
        disable_tqdm: no progress bars.

    Raises:
        OSError: if the folder cannot be written to; before anything else is done.
    """
    settings = settings or DiffusionDemoSettings()
    folder = writable_folder(output_dir)
    writable_folder(folder / PATCH)
    torch.manual_seed(settings.seed)
    editor = DemoDiffusion.pretrained()
    editor.steps = settings.editor_steps
    config = GatedLoraConfig(r=settings.r, lora_alpha=16, target_modules=layers_in(editor, settings.adapt))
    model = get_peft_model(editor, config, adapter_name=PATCH)
    say(f"Training a patch of the {settings.adapt} in {settings.steps} steps")
    arguments = PatchTrainingArguments(
        folder / PATCH,
        recipe="fast",
        adversary=settings.adversary,
        max_train_steps=settings.steps,
        train_batch_size=2,
        edits_per_step=1,
        seed=settings.seed,
        cpu=device == "cpu",
        disable_tqdm=disable_tqdm,
    )
    training = PatchTrainer(model, DemoFaces(10_000, seed=settings.seed), resumed(arguments)).train()
    names = ", ".join(settings.defenses)
    say(f"Auditing {names} on {settings.test_images} faces that the patch was not trained on")
    audit = run_audit(
        model,
        DemoFaces(settings.test_images, seed=settings.seed, split="test"),
        defenses=settings.defenses,
        patches={PATCH: None},
        success=settings.success,
        seeds=[settings.seed],
        disable_tqdm=disable_tqdm,
    )
    audit.settings["demo"] = {
        name: value for name, value in asdict(settings).items() if name not in ("defenses", "adversary")
    }
    report = write_report(audit, folder, training={PATCH: training})
    return DemoResult(model, {PATCH: training}, audit, report)
