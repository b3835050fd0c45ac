"""The recipe of the demo's trained protections: fit TAFIM or ID-Guard to the demo's generator, and measure it.

    python examples/train_protection.py --defense tafim --output-dir out

takes some minutes on one core. Writes `model.safetensors` (half precision), which `TAFIM.load` or `IDGuard.load` reads,
and `recipe.json`: settings, the loss on the way, and what an audit finds on unseen faces. Both ship in
`loraguard/defenses/demo_weights`. For a generator of your own, call `fit` with it in place of `DemoEditor`.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path

import torch

from loraguard.audit.photos import pick_edits
from loraguard.channels import published
from loraguard.data import DemoFaces, collate
from loraguard.defenses import TAFIM, IDGuard, RandomNoise
from loraguard.defenses.protector import TrainedDefense
from loraguard.describing import describe
from loraguard.files import whole_files, writable_folder, write_json
from loraguard.generators import DemoEditor
from loraguard.metrics import DSR_THRESHOLD, defense_succeeds, estimate, mean_squared_error


def measure(defense: TrainedDefense, n: int) -> dict[str, object]:
    """As an audit does: unseen faces, an edit drawn for each, photos rounded to 8 bits; beside it random noise."""
    editor, faces = DemoEditor.pretrained(), DemoFaces(n, split="test")
    batch = collate(faces.__getitems__(list(range(n))))
    draws = torch.rand(n, generator=torch.Generator().manual_seed(0))
    _, condition = pick_edits(editor.conditions(batch["labels"]), draws)
    figures: dict[str, object] = {"n": n, "eps": defense.eps, "dsr_threshold": DSR_THRESHOLD}
    with torch.no_grad():
        clean = editor(batch["image"], **condition)
        torch.manual_seed(0)
        for name, one in (("defense", defense), ("noise", RandomNoise(defense.eps))):
            photos = published(one(editor, batch["image"], condition), batch["image"])
            outputs = editor(photos, **condition)
            figures[f"dsr_{name}"] = asdict(estimate(defense_succeeds(outputs, clean), share=True))
            figures[f"mse_{name}"] = asdict(estimate(mean_squared_error(outputs, clean)))
    return figures


def main() -> None:
    """Read the settings, train, write, measure what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--defense", choices=["tafim", "id-guard"], required=True)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--eps", type=float, default=0.1, help="budget, L-infinity on [-1, 1]")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--width", type=int, default=12, help="channels of the first layer, a multiple of 4")
    parser.add_argument("--faces", type=int, default=20000, help="that it is trained on")
    parser.add_argument("--test-faces", type=int, default=250)
    parser.add_argument("--log-every", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    out = writable_folder(args.output_dir)
    settings = {"batch_size": args.batch_size, "learning_rate": args.learning_rate, "width": args.width}
    defense: TrainedDefense = (
        TAFIM(args.eps, args.steps, depth=4, **settings)
        if args.defense == "tafim"
        else IDGuard(args.eps, args.steps, blocks=2, **settings)
    )

    torch.manual_seed(args.seed)
    started = time.process_time()
    fitted = defense.fit(DemoEditor.pretrained(), DemoFaces(args.faces, seed=args.seed))
    seconds = time.process_time() - started
    losses = fitted.fitted.history
    log = [
        {"step": end, "loss": sum(part) / len(part)}
        for end in range(args.log_every, len(losses) + 1, args.log_every)
        for part in [losses[end - args.log_every : end]]
    ]

    with whole_files(out) as draft:
        written = type(defense).load(fitted.save(draft / "model.safetensors", torch.float16))
        figures = measure(written, args.test_faces)
        print({key: figures[key]["mean"] for key in ("dsr_defense", "mse_defense", "dsr_noise", "mse_noise")})
        recipe = {
            "settings": {key: value for key, value in vars(args).items() if key != "output_dir"},
            "defense": describe(written),
            "cpu_seconds": round(seconds),
            "figures": figures,
            "log": log,
        }
        write_json(draft / "recipe.json", recipe)


if __name__ == "__main__":
    main()
