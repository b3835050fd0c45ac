"""Bring your own network: a super-resolution network of transformers, patched, audited, reported.

    python examples/own_network.py --output-dir own --steps 30
    python examples/own_network.py --output-dir own --pretrained caidas/swin2SR-classical-sr-x2-64

loraguard knows nothing of Swin2SR: the network needs a forward from images to images, and that is all. Without
`--pretrained` it is built from a small config, its weights as they are drawn, so that everything runs offline in
seconds; the figures mean little then. Faces are drawn, too. `--stamp TEXT` trains a defensive patch, which writes a
warning on every output; without it, a standard one. Writes the patch into `OUTPUT_DIR/patch`, the audit beside it, and
shows in the end that plain transformers and PEFT load the patch.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import Swin2SRConfig, Swin2SRForImageSuperResolution

from loraguard import GatedLoraConfig, PatchTrainer, PatchTrainingArguments, Stamp, StampDetector, run_audit
from loraguard.audit import table, verdict, write_report
from loraguard.data import DemoFaces
from loraguard.defenses import Disrupting


class Upscaler(Swin2SRForImageSuperResolution):
    """Swin2SR as loraguard calls it; a subclass adds no weights, so that patches fit the class beneath, too."""

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1] to larger ones; Swin2SR's own range is [0, 1]."""
        return 2 * super().forward(pixel_values=(images + 1) / 2).reconstruction - 1


def small_upscaler(size: int) -> Upscaler:
    """A network of 20,000 weights that doubles height and width, as it is drawn."""
    config = Swin2SRConfig(
        image_size=size, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4, upscale=2,
        upsampler="pixelshuffledirect",
    )  # fmt: skip
    return Upscaler(config).eval()


def load_upscaler(source: str | None, size: int) -> Upscaler:
    """The network of a folder or of the Hub, or a small one."""
    return small_upscaler(size) if source is None else Upscaler.from_pretrained(source).eval()


@torch.no_grad()
def calibrated(stamp: Stamp, generator: Upscaler, faces: DemoFaces) -> StampDetector:
    """A detector whose threshold comes from unstamped outputs on faces that nothing else looks at."""
    photos = torch.stack([faces[index]["image"] for index in range(len(faces))])
    return StampDetector(stamp).calibrate(torch.cat([generator(photo) for photo in photos.split(4)]))


@torch.no_grad()
def check_plain_loading(patched: PeftModel, generator: Upscaler, folder: Path, photo: Tensor) -> None:
    """Load the patch onto transformers' own class, merge it, and compare the outputs."""
    bare = Swin2SRForImageSuperResolution(generator.config).eval()
    bare.load_state_dict(generator.state_dict())
    merged = PeftModel.from_pretrained(bare, folder).merge_and_unload()
    outputs = 2 * merged(pixel_values=(photo + 1) / 2).reconstruction - 1
    print(f"Merged into {type(merged).__name__}: at most {(outputs - patched(photo)).abs().max():.1e} off.")


def main() -> None:
    """Attach, train, audit, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--pretrained", metavar="ID|FOLDER", help="a Swin2SR of the Hub or of a folder")
    parser.add_argument("--stamp", metavar="TEXT", help="train a defensive patch that writes this")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--faces", type=int, default=24, help="audited, none of which was trained on")
    parser.add_argument("--size", type=int, default=32, help="of the photos, in pixels")
    parser.add_argument("--eps", type=float, default=0.05, help="the defense's budget, L-infinity on [-1, 1]")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    generator = load_upscaler(args.pretrained, args.size)
    untouched = load_upscaler(args.pretrained, args.size)
    untouched.load_state_dict(generator.state_dict())
    stamp = Stamp(args.stamp, place="bottom-left", size=0.5, background="#b00020", outline=None) if args.stamp else None
    detector = stamp and calibrated(stamp, untouched, DemoFaces(40, size=args.size, split="calibration"))

    model = get_peft_model(generator, GatedLoraConfig(r=8, lora_alpha=8))  # every conv and linear layer
    model.print_trainable_parameters()
    arguments = PatchTrainingArguments(
        args.output_dir / "patch",
        stamp=stamp,
        adversary=Disrupting(args.eps, steps=1, step_size=args.eps),
        max_train_steps=args.steps,
        learning_rate=5e-3,
        max_grad_norm=1.0,
        seed=args.seed,
    )
    result = PatchTrainer(model, DemoFaces(500, size=args.size, seed=args.seed), arguments).train()

    audit = run_audit(
        model,
        DemoFaces(args.faces, size=args.size, split="test"),
        defenses=Disrupting(args.eps, steps=5),
        patches={"default": stamp},
        detectors={"default": detector},
        batch_size=8,
        seeds=[args.seed],
    )
    headings, rows = table(audit)
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    for row in [headings, *rows]:
        print("  ".join(map(str.ljust, row, widths)).rstrip())
    print(*verdict(audit), sep="\n")
    check_plain_loading(model, untouched, result.output_dir, DemoFaces(1, size=args.size)[0]["image"][None])
    print("Report:", write_report(audit, args.output_dir, training={"default": result}))


if __name__ == "__main__":
    main()
