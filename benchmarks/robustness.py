"""How long a patch takes to become robust: the authors' recipe against ours; `training.py` prints its table.

Both train a standard patch of rank 8 for the demo's generator, from the same 1,000 drawn faces, at the demo's
budget. The authors' recipe is `release.py`'s step at the paper's settings: for each batch of 4 and each of the five
edits PGD with ten steps and one Adam step, for one epoch. What comes out is attacked as no training attacks: PGD with
40 steps and 5 restarts, the worst for each image, on faces of the test split, crafted on the untouched generator (no
leak) and on the patched one (leak). Time is the process' CPU time on one thread, for training alone.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from release import Release
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from loraguard import GatedLoraConfig, PatchTrainer, PatchTrainingArguments, run_audit
from loraguard.data import DemoFaces, collate
from loraguard.defenses import Disrupting
from loraguard.files import write_json
from loraguard.generators import DemoEditor
from loraguard.training import RECIPES
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
    adversary = RECIPES["fast"]("standard")["adversary"]
    with tempfile.TemporaryDirectory() as folder:
        arguments = PatchTrainingArguments(
            folder, recipe="fast", seed=seed, cpu=True, disable_tqdm=True,
            adversary=replace(adversary, eps=EPS, step_size=adversary.step_size * EPS / adversary.eps), **settings,
        )  # fmt: skip
        PatchTrainer(model, DemoFaces(FACES), arguments).train()
    return model


def trained(train: Callable[[], PeftModel], kept: Path) -> tuple[PeftModel, float]:
    """A patched model and the CPU seconds it took; from `kept` if an earlier run left it there."""
    if not kept.is_file():
        started = time.process_time()
        model = train()
        seconds = time.process_time() - started
        config = model.peft_config["default"]
        settings = {"seconds": str(seconds), "r": str(config.r), "lora_alpha": str(config.lora_alpha)}
        save_file(get_peft_model_state_dict(model), kept, metadata=settings)
        return model, seconds
    with safe_open(kept, "pt") as file:
        settings = file.metadata()
    config = GatedLoraConfig(r=int(settings["r"]), lora_alpha=float(settings["lora_alpha"]))
    model = get_peft_model(DemoEditor.pretrained(), config)
    set_peft_model_state_dict(model, load_file(kept))
    return model, float(settings["seconds"])


def measure(model: PeftModel, faces: int, attack: Disrupting = STRONG) -> dict[str, Any]:
    """Attack as no training did."""
    found = run_audit(
        model, DemoFaces(faces, split="test"), defenses=attack, patches={"default": None},
        conditions=DemoEditor.conditions, disable_tqdm=True,
    )  # fmt: skip
    rows = {key: found["default", key].estimates for key in ("clean", "no-leak", "leak")}
    figures: dict[str, Any] = {"clean_psnr": rows["clean"]["psnr"].mean}
    for key in ("no-leak", "leak"):
        share = rows[key]["dsr"]
        figures[key] = f"{100 * share.mean:.0f}% ({100 * share.low:.0f}-{100 * share.high:.0f})"
        figures[f"{key} MSE"] = rows[key]["mse"].mean
    return figures


COMPARED: dict[str, Callable[[int], PeftModel]] = {
    "authors": authors,
    "authors-quarter": lambda seed: authors(seed, 0.25),
    "fast": ours,
}
TITLES = {
    "authors": "authors' release, one epoch",
    "authors-quarter": "authors' release, a quarter of it",
    "fast": 'loraguard, recipe="fast"',
}


def row(name: str, seed: int, faces: int, folder: Path) -> dict[str, Any]:
    """Train by a recipe and attack; both are kept, so that a run goes on where it was interrupted."""
    kept = folder / f"{name}-{seed}.safetensors"
    model, seconds = trained(lambda: COMPARED[name](seed), kept)
    result = kept.with_suffix(f".{faces}.json")
    if not result.is_file():
        write_json(result, {"seconds": seconds, **measure(model, faces)})
    return json.loads(result.read_text())


def table(seeds: int, faces: int, folder: Path) -> str:
    """Every recipe with every seed, as Markdown."""
    lines = [
        f"Demo's generator, 64 px, rank 8, {FACES} drawn faces, budget {EPS}; attacked by PGD, {STRONG.steps} steps",
        f"and {STRONG.restarts} restarts, on {faces} other faces (95% intervals).\n",
        "| recipe | seed | CPU s | speed | clean PSNR, dB | no-leak DSR | leak DSR | leak MSE |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for seed in range(seeds):
        rows = {name: row(name, seed, faces, folder) for name in COMPARED}
        for name, one in rows.items():
            speed = rows["authors"]["seconds"] / one["seconds"]
            lines.append(
                f"| {TITLES[name]} | {seed} | {one['seconds']:.0f} | {speed:.1f} | "
                f"{one['clean_psnr']:.1f} | {one['no-leak']} | {one['leak']} | {one['leak MSE']:.4f} |"
            )
    return "\n".join(lines)
