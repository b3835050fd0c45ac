"""How long a patch takes to become robust: the authors' recipe against ours, on the embedded default.

    python benchmarks/robustness.py           # an hour on one core

Both train a standard patch of rank 8 for the demo's generator, from the same 1,000 drawn faces, at the demo's
budget. The authors' recipe is `release.py`'s step at the paper's settings: for each batch of 4 and each of the five
edits PGD with ten steps and one Adam step, for one epoch. What comes out is attacked as no training attacks: PGD with
40 steps and 5 restarts, the worst for each image, on faces of the test split, crafted on the untouched generator (no
leak) and on the patched one (leak). Time is the process' CPU time on one thread, for training alone.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable

import torch
from peft import PeftModel, get_peft_model
from release import Release

from loraguard import GatedLoraConfig, PatchTrainer, PatchTrainingArguments, run_audit
from loraguard.data import DemoFaces, collate
from loraguard.defenses import Disrupting
from loraguard.generators import DemoEditor
from loraguard.training.sampling import EndlessBatches

EPS = 0.1
STRONG = Disrupting(eps=EPS, steps=40, step_size=EPS / 5, restarts=5)
FACES, BATCH, LEARNING_RATE = 1000, 4, 1e-3


def authors(seed: int, part: float = 1.0) -> PeftModel:
    """The authors' recipe; or, of its one epoch, the first part."""
    torch.manual_seed(seed)
    model = get_peft_model(DemoEditor.pretrained(), GatedLoraConfig(r=8, init_lora_weights="paper"))
    release = Release(model, eps=EPS, steps=10, step_size=EPS / 5)
    optimizer = torch.optim.Adam(release.parameters, LEARNING_RATE, betas=(0.5, 0.999))
    faces, batches = DemoFaces(FACES), iter(EndlessBatches(FACES, BATCH, seed=seed))
    for _ in range(round(part * FACES / BATCH)):
        batch = collate(faces.__getitems__(next(batches)))
        for edit in DemoEditor.conditions(batch["labels"]).values():
            noise = EPS * (2 * torch.rand_like(batch["image"]) - 1)
            release.step(batch["image"], edit["labels"], (batch["image"] + noise).clamp(-1, 1))
            optimizer.step()
    release.copy_to(model)
    return model


def ours(seed: int, config: GatedLoraConfig | None = None, **settings: object) -> PeftModel:
    """`PatchTrainer` with the fast recipe, or other settings."""
    torch.manual_seed(seed)
    model = get_peft_model(DemoEditor.pretrained(), config or GatedLoraConfig(r=8, lora_alpha=8))
    with tempfile.TemporaryDirectory() as folder:
        arguments = PatchTrainingArguments(
            folder, **{"recipe": "fast", "adversary": None, "seed": seed, "cpu": True, **settings}
        )
        PatchTrainer(model, DemoFaces(FACES), arguments).train()
    return model


def measure(name: str, train: Callable[[], PeftModel], faces: int, attack: Disrupting = STRONG) -> dict[str, object]:
    """Train, with the time it takes, and attack."""
    started = time.process_time()
    model = train()
    seconds = time.process_time() - started
    found = run_audit(
        model, DemoFaces(faces, split="test"), defense=attack, patches={"default": None},
        conditions=DemoEditor.conditions, disable_tqdm=True,
    )  # fmt: skip
    rows = {key: found["default", key].estimates for key in ("clean", "no-leak", "leak")}
    return {
        "name": name,
        "seconds": seconds,
        "clean_psnr": rows["clean"]["psnr"].mean,
        **{f"{key}_dsr": (e := rows[key]["dsr"]).mean for key in ("no-leak", "leak")},
        **{f"{key}_dsr_interval": ((e := rows[key]["dsr"]).low, e.high) for key in ("no-leak", "leak")},
        **{f"{key}_mse": rows[key]["mse"].mean for key in ("no-leak", "leak")},
        "untouched_dsr": found["untouched", "no-leak"].estimates["dsr"].mean,
    }
