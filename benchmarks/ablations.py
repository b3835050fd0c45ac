"""What each part of the method brings, on the embedded default: a table and a plot.

    python benchmarks/ablations.py --output-dir docs      # 25 minutes; docs/ablations.md and images/ablations.png

Every run trains a standard patch for the demo's generator with the fast recipe, cut to a few steps, one thing changed
at a time, and is attacked by PGD with 20 steps. It goes on where it was interrupted (`ablations.json`).
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from peft import get_peft_model
from torch import nn
from tqdm import tqdm
from transformers import ResNetConfig, ResNetModel

from loraguard import GatedLoraConfig, PatchTrainer, PatchTrainingArguments, run_audit
from loraguard.data import DemoFaces
from loraguard.defenses import Defense, Disrupting, RandomNoise
from loraguard.files import write_json
from loraguard.generators import DemoEditor
from loraguard.losses import FeatureEncoder, MMFALoss

EPS = 0.1
STEPS, BATCH, EDITS, FACES, TEST_FACES = 60, 4, 2, 1000, 50
ATTACK = Disrupting(eps=EPS, steps=20, step_size=EPS / 5)
SETTINGS: dict[str, Any] = {"r": 8, "lora_alpha": 8, "gate_type": "scalar", "learning_rate": 1e-2}
GATES = ("scalar", "channel", "input", "input_channel", "none")
RATES = (1e-3, 1e-2, 1e-1)


def pgd(steps: int, size: float) -> Disrupting:
    """PGD at the budget, with steps of some part of it."""
    return Disrupting(eps=EPS, steps=steps, step_size=EPS * size)


def encoder() -> FeatureEncoder:
    """Features to align, of a small ResNet with random weights: no trained ones ship with the package."""
    torch.manual_seed(0)
    resnet = ResNetModel(ResNetConfig(embedding_size=16, hidden_sizes=[16, 32, 64], depths=[1, 1, 1]))
    return FeatureEncoder(_Pooled(resnet), lambda images: images, distance="mse", weight=0.1, name="resnet")


class _Pooled(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Pooled features (N, C)."""
        return self.network(images).pooler_output.flatten(1)


def runs() -> dict[str, dict[str, dict[str, Any]]]:
    """By ablation and name, what is changed."""
    adversaries: dict[str, Defense] = {
        "random noise": RandomNoise(EPS),
        "PGD 1 x eps": pgd(1, 1.0),
        "PGD 2 x eps": pgd(2, 1.0),
        "PGD 3 x eps/2": pgd(3, 0.5),
        "PGD 10 x eps/5": pgd(10, 0.2),
    }
    return {
        "gate": {
            f"{gate}, lr {rate:g}": {"gate_type": gate, "learning_rate": rate} for gate in GATES for rate in RATES
        },
        "loss": {
            "pixel": {},
            "pixel + features": {"loss": "mmfa"},
            "features alone": {"loss": "mmfa", "pixel_weight": 0.0},
        },
        "rank": {str(rank): {"r": rank} for rank in (1, 2, 4, 8, 16, 32, 64)},
        "images": {str(count): {"faces": count} for count in (4, 20, 100, 1000)},
        "adversary": {name: {"adversary": defense} for name, defense in adversaries.items()},
    }


def run(change: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    """Train with one thing changed, and attack."""
    settings = {**SETTINGS, "faces": FACES, "adversary": pgd(2, 1.0), "loss": None, "pixel_weight": 1.0, **change}
    torch.manual_seed(seed)
    config = GatedLoraConfig(r=settings["r"], lora_alpha=settings["lora_alpha"], gate_type=settings["gate_type"])
    model = get_peft_model(DemoEditor.pretrained(), config)
    loss: Callable[..., Any] = nn.functional.mse_loss
    if settings["loss"]:
        loss = MMFALoss([encoder()], pixel_weight=settings["pixel_weight"])
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        arguments = PatchTrainingArguments(
            folder, recipe="fast", adversary=settings["adversary"], learning_rate=settings["learning_rate"],
            max_train_steps=STEPS, train_batch_size=BATCH, edits_per_step=EDITS, max_grad_norm=math.inf, seed=seed,
            max_skipped_steps=STEPS, cpu=True, disable_tqdm=True,
        )  # fmt: skip
        trainer = PatchTrainer(model, DemoFaces(settings["faces"]), arguments, loss=loss)
        log = trainer.train().log
    seconds = time.process_time() - started
    found = run_audit(
        model, DemoFaces(TEST_FACES, split="test"), defenses=ATTACK, patches={"default": None},
        conditions=DemoEditor.conditions, disable_tqdm=True,
    )  # fmt: skip
    norms = [entry["gradient_norm"] for entry in log if entry["gradient_norm"] is not None]
    rows = {key: found["default", key].estimates for key in ("clean", "no-leak", "leak")}
    return {
        "seconds": seconds,
        "clean_psnr": rows["clean"]["psnr"].mean,
        "no_leak": [getattr(rows["no-leak"]["dsr"], part) for part in ("mean", "low", "high")],
        "leak": [getattr(rows["leak"]["dsr"], part) for part in ("mean", "low", "high")],
        "largest_gradient": max(norms),
        "skipped": sum("skipped" in entry for entry in log),
        "trained": sum(p.numel() for n, p in model.named_parameters() if "lora_" in n),
    }


def table(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Markdown."""
    lines = []
    for ablation, rows in results.items():
        lines += [
            f"\n## {ablation.capitalize()}\n",
            f"| {ablation} | clean PSNR, dB | no-leak DSR | leak DSR | largest gradient | skipped | parameters | s |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for name, row in rows.items():
            shares = [f"{100 * m:.0f}% ({100 * a:.0f}-{100 * b:.0f})" for m, a, b in (row["no_leak"], row["leak"])]
            lines.append(
                f"| {name} | {row['clean_psnr']:.1f} | {shares[0]} | {shares[1]} | {row['largest_gradient']:.2g} | "
                f"{row['skipped']} | {row['trained']:,} | {row['seconds']:.0f} |"
            )
    return "\n".join(lines) + "\n"


def plot(results: dict[str, dict[str, dict[str, Any]]], path: Path) -> None:
    """A panel for each ablation: DSR without and with the leak, and clean PSNR."""
    figure, axes = plt.subplots(
        1, len(results), figsize=(19, 4.8), width_ratios=[len(rows) for rows in results.values()]
    )
    for axis, (ablation, rows) in zip(axes, results.items(), strict=True):
        places = range(len(rows))
        for key, colour, shift in (("no_leak", "#4477aa", -0.18), ("leak", "#cc6677", 0.18)):
            means = [100 * row[key][0] for row in rows.values()]
            spread = [[100 * abs(row[key][0] - row[key][i]) for row in rows.values()] for i in (1, 2)]
            label = "DSR, no leak" if key == "no_leak" else "DSR, leak"
            axis.bar([p + shift for p in places], means, 0.36, yerr=spread, color=colour, label=label, capsize=2)
        other = axis.twinx()
        other.plot(places, [row["clean_psnr"] for row in rows.values()], "k.", label="clean PSNR")
        other.set_ylim(10, 45)
        axis.set(title=ablation, ylim=(0, 105))
        axis.set_xticks(list(places), list(rows), rotation=60, ha="right", rotation_mode="anchor")
        if axis is axes[0]:
            axis.set_ylabel("images spoilt, %")
            axis.legend(loc="upper left", frameon=False)
        other.set_yticks([] if axis is not axes[-1] else [20, 30, 40])
    other.set_ylabel("clean PSNR, dB (dots)")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run what is missing, write table and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("docs"))
    parser.add_argument("--only", nargs="+", choices=list(runs()), help="some of the ablations")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    store = flags.output_dir / "ablations.json"
    done: dict[str, Any] = json.loads(store.read_text()) if store.is_file() else {}
    wanted = {name: rows for name, rows in runs().items() if not flags.only or name in flags.only}
    todo = [(a, n, c) for a, rows in wanted.items() for n, c in rows.items() if n not in done.get(a, {})]
    for ablation, name, change in tqdm(todo):
        done.setdefault(ablation, {})[name] = run(change)
        write_json(store, done)
    results = {a: {n: done[a][n] for n in rows} for a, rows in runs().items() if a in done}
    (flags.output_dir / "images").mkdir(exist_ok=True)
    plot(results, flags.output_dir / "images" / "ablations.png")
    page = flags.output_dir / "ablations.md"
    intro = page.read_text().split("\n## ")[0].rstrip() if page.is_file() else "# Ablations"
    page.write_text(intro + "\n" + table(results))
    print(table(results), f"\ntorch {torch.__version__}, {platform.processor() or platform.machine()}, one thread")


if __name__ == "__main__":
    main()
