"""What each part of the method brings, on the embedded default: tables and plots.

    python benchmarks/ablations.py --output-dir docs   # 25 minutes; tables in ablations.md, plots in images/

Every run trains a standard patch for the demo's generator with the fast recipe, cut to a few steps, with a cheaper
adversary and without clipped gradients; one thing is changed at a time. The patched generator is then attacked by PGD
with 20 steps. A run that `ablations.json` has, with the very same settings, is not repeated: an interrupted command
goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from ablations_page import plot_gates, plot_others, tables
from face_reader import accuracy, encoder, trained_reader
from peft import get_peft_model
from torch import nn
from tqdm import tqdm

from loraguard import GatedLoraConfig, PatchTrainer, PatchTrainingArguments, run_audit
from loraguard.audit import AuditResult
from loraguard.data import DemoFaces, collate
from loraguard.defenses import Defense, Disrupting, RandomNoise
from loraguard.files import whole_files, write_json
from loraguard.generators import DemoEditor
from loraguard.losses import MMFALoss

EPS = 0.1


def pgd(steps: int, size: float) -> Disrupting:
    """PGD at the budget, with steps of some part of it."""
    return Disrupting(eps=EPS, steps=steps, step_size=EPS * size)


ATTACK, USUAL_ADVERSARY = pgd(20, 0.2), pgd(2, 1.0)
RATES = (1e-3, 1e-2, 1e-1, 1.0)
GATE_AT_START = torch.tensor(-1.0).sigmoid().item()


@dataclass(frozen=True)
class Setup:
    """Everything that a run depends on; as it is here, the run that the others are compared with.

    Args:
        r: the rank.
        lora_alpha: the update's scale is `lora_alpha / sqrt(r)`.
        init_lora_weights: True for B = 0, "paper" for Kaiming's A and B.
        gate_type: as :class:`GatedLoraConfig` has it.
        learning_rate: at its highest; it falls to zero on a cosine.
        adversary: of the training.
        features: distances between a reader's features that the loss has, "mse" or "cosine".
        pixel_weight: of the pixel term.
        faces: to train on.
        steps: of the training, with `batch` faces and two of the five edits of each.
        batch: faces a step.
        test_faces: of the test split, to attack.
        seed: of the first weights, of the faces' order and the adversary's starts.
    """

    r: int = 8
    lora_alpha: float = 8
    init_lora_weights: bool | str = True
    gate_type: str = "scalar"
    learning_rate: float = 1e-2
    adversary: Defense = USUAL_ADVERSARY
    features: tuple[str, ...] = ()
    pixel_weight: float = 1.0
    faces: int = 1000
    steps: int = 60
    batch: int = 4
    test_faces: int = 50
    seed: int = 0

    def __str__(self) -> str:
        """What the run is known by: what an adversary leaves at its default is left out, as others may be added."""
        return _given(self, {f.name: getattr(self, f.name) for f in fields(self)})


def _given(thing: Any, settings: dict[str, Any]) -> str:
    parts = []
    for name, value in settings.items():
        if is_dataclass(value):
            value = _given(value, {f.name: v for f in fields(value) if (v := getattr(value, f.name)) != f.default})
        parts.append(f"{name}={value}")
    return f"{type(thing).__name__}({', '.join(parts)})"


def gate_setups() -> dict[str, Setup]:
    """Learnt gate, no gate, and no gate with the update scaled by what the gate starts with, from either start."""
    setups = {}
    for start, init, alpha in (("B = 0", True, 8), ("paper's start", "paper", 2)):
        for gate, kind, factor in (("gate", "scalar", 1), ("no gate", "none", 1), ("fixed", "none", GATE_AT_START)):
            for rate in RATES:
                setups[f"{start}, {gate}, {rate:g}"] = Setup(
                    init_lora_weights=init, lora_alpha=alpha * factor, gate_type=kind, learning_rate=rate
                )
    return setups


def setups() -> dict[str, dict[str, Setup]]:
    """The runs of each ablation, by name."""
    adversaries: dict[str, Defense] = {
        "random noise": RandomNoise(EPS),
        "PGD 1 x eps": pgd(1, 1.0),
        "PGD 2 x eps": USUAL_ADVERSARY,
        "PGD 4 x eps/2 (fast recipe)": pgd(4, 0.5),
        "PGD 10 x eps/5 (paper)": pgd(10, 0.2),
    }
    kinds = ("scalar", "channel", "input", "input_channel", "none")
    return {
        "gate": gate_setups(),
        "kind of gate": {
            f"{kind}, lr {rate:g}": Setup(gate_type=kind, learning_rate=rate) for rate in (1e-2, 1e-1) for kind in kinds
        },
        "loss": {
            "pixel": Setup(),
            "pixel + features (MSE)": Setup(features=("mse",)),
            "pixel + features (cosine)": Setup(features=("cosine",)),
            "pixel + both": Setup(features=("mse", "cosine")),
            "features alone (both)": Setup(features=("mse", "cosine"), pixel_weight=0.0),
        },
        "rank": {str(rank): Setup(r=rank) for rank in (1, 2, 4, 8, 16, 32, 64)},
        "images": {f"{count:,}": Setup(faces=count) for count in (4, 20, 100, 1000)},
        "adversary": {name: Setup(adversary=adversary) for name, adversary in adversaries.items()},
        "seed": {str(seed): Setup(seed=seed) for seed in range(3)},
    }


def run(setup: Setup) -> dict[str, Any]:
    """Train and attack; what comes out is described in the page."""
    torch.manual_seed(setup.seed)
    config = GatedLoraConfig(
        r=setup.r, lora_alpha=setup.lora_alpha, gate_type=setup.gate_type, init_lora_weights=setup.init_lora_weights
    )  # type: ignore[arg-type]
    model = get_peft_model(DemoEditor.pretrained(), config)
    loss: Callable[..., Any] = nn.functional.mse_loss
    if setup.features:
        loss = MMFALoss([encoder(distance) for distance in setup.features], pixel_weight=setup.pixel_weight)
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        arguments = PatchTrainingArguments(
            folder, recipe="fast", adversary=setup.adversary, learning_rate=setup.learning_rate, seed=setup.seed,
            max_train_steps=setup.steps, train_batch_size=setup.batch, max_grad_norm=math.inf,
            max_skipped_steps=setup.steps, cpu=True, disable_tqdm=True,
        )  # fmt: skip
        log = PatchTrainer(model, DemoFaces(setup.faces), arguments, loss=loss).train().log
    seconds = time.process_time() - started
    found = run_audit(
        model, DemoFaces(setup.test_faces, split="test"), defenses=ATTACK, patches={"default": None},
        conditions=DemoEditor.conditions, pictures=setup.test_faces, disable_tqdm=True,
    )  # fmt: skip
    norms = [entry["gradient_norm"] for entry in log if entry["gradient_norm"] is not None]
    losses = [entry["loss_clean"] + entry["loss_adversarial"] for entry in log if "skipped" not in entry]
    patched = {key: found["default", key].estimates for key in ("clean", "no-leak", "leak")}
    return {
        "clean_psnr": patched["clean"]["psnr"].mean,
        **{
            f"{key}_{metric}": [getattr(patched[key][metric], part) for part in ("mean", "low", "high")]
            for key in ("no-leak", "leak")
            for metric in ("dsr", "mse")
        },
        "labels_kept": labels_kept(found, "default", "leak"),
        "first_gradient": norms[0],
        "largest_gradient": max(norms),
        "loss_at_start": losses[0],
        "loss_at_end": statistics.mean(losses[-10:]),
        "skipped": sum("skipped" in entry for entry in log),
        "parameters": sum(p.numel() for name, p in model.named_parameters() if "lora_" in name),
        "seconds": seconds,
        "untouched_dsr": found["untouched", "no-leak"].estimates["dsr"].mean,
        "untouched_labels_kept": labels_kept(found, "untouched", "no-leak"),
    }


def labels_kept(found: AuditResult, generator: str, knowledge: str) -> float:
    """The share of labels that the second reader sees as in the untouched generator's output on the clean photo."""
    judge = trained_reader(1)
    keys = (generator, *found.defenses, knowledge, "none"), ("untouched", "none", "clean", "none")
    seen, wanted = (judge.read(found.pictures[key]) for key in keys)
    return (seen == wanted).float().mean().item()


def readers(faces: int = 16) -> dict[str, Any]:
    """How well the readers read, and how large the loss's terms are where the untouched generator is disrupted."""
    torch.manual_seed(0)  # of the attack's start
    batch = collate(DemoFaces(faces).__getitems__(list(range(faces))))
    editor, edit = DemoEditor.pretrained(), DemoEditor.conditions(batch["labels"])["Eyeglasses"]
    defended = ATTACK(editor, batch["image"], edit)
    loss = MMFALoss([encoder("mse"), encoder("cosine")])
    with torch.no_grad():
        terms = loss.terms(editor(defended, **edit), editor(batch["image"], **edit))
    return {
        "encoder": accuracy(trained_reader(0)),
        "judge": accuracy(trained_reader(1)),
        "terms": {name: value.item() for name, value in terms.items()},
    }


def main() -> None:
    """Run what is missing, write tables and plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("docs"))
    parser.add_argument("--only", nargs="+", choices=list(setups()), default=list(setups()), help="some ablations")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    flags.output_dir.mkdir(parents=True, exist_ok=True)
    store = flags.output_dir / "ablations.json"
    done: dict[str, Any] = json.loads(store.read_text()) if store.is_file() else {}
    wanted = {name: runs for name, runs in setups().items() if name in flags.only}
    if "readers" not in done:
        done["readers"] = readers()
    for setup in tqdm([setup for runs in wanted.values() for setup in runs.values() if str(setup) not in done]):
        if str(setup) not in done:  # the same run is in several ablations
            done[str(setup)] = run(setup)
            with whole_files(flags.output_dir) as draft:
                write_json(draft / store.name, done)

    results = {
        ablation: {name: done[str(setup)] for name, setup in runs.items()}
        for ablation, runs in setups().items()
        if all(str(setup) in done for setup in runs.values())
    }
    page = flags.output_dir / "ablations.md"
    written = page.read_text() if page.is_file() else "# Ablations\n"
    text = tables(results, done["readers"], done[str(Setup())])
    with whole_files(flags.output_dir) as draft:
        (draft / "images").mkdir()
        if "gate" in results:
            plot_gates(results["gate"], draft / "images" / "ablations-gate.png")
        plot_others({name: runs for name, runs in results.items() if name != "gate"}, draft / "images/ablations.png")
        (draft / page.name).write_text(written.partition("\n## Tables\n")[0].rstrip() + "\n\n" + text)
    print(text)


if __name__ == "__main__":
    main()
