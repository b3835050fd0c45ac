"""The recipe of the demo's generator: train a DemoEditor from nothing on drawn faces, and measure it.

    python examples/train_demo_editor.py --output-dir out --compile

takes an hour on one core.
Every pair of the loss is a drawn face and the same face drawn with other labels. The first steps minimise their L1
distance, with more weight where glasses and mouths are; then a patch discriminator joins in, which sharpens edges and
makes the network as sensitive to perturbations as published generators are. Writes `model.safetensors` and
`recipe.json` (settings, log, figures on unseen faces), which ship in `loraguard/generators/demo_weights`, and
`samples.png`.
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from torchvision.utils import make_grid

from loraguard.data import DemoFaces
from loraguard.data.demo_faces import render
from loraguard.defenses import Disrupting
from loraguard.files import whole_files, writable_folder, write_json
from loraguard.generators import DemoEditor
from loraguard.metrics import defense_succeeds, psnr
from loraguard.pixels import from_bytes, to_bytes, to_picture

COMBINATIONS = torch.tensor([[h == 0, h == 1, h == 2, g, s] for h in range(3) for g in (0, 1) for s in (0, 1)]).float()


class FacePool:
    """The last `capacity` faces, each drawn with every combination of labels and kept as bytes."""

    def __init__(self, split: str, seed: int, capacity: int, start: int) -> None:
        self.faces, self.capacity, self.drawn = DemoFaces(2**40, seed=seed, split=split), capacity, 0
        self.images = torch.empty(capacity, len(COMBINATIONS), 3, 64, 64, dtype=torch.uint8)
        for _ in range(start):
            self.add()

    def add(self) -> None:
        """Draw the next face, over the oldest one."""
        traits = self.faces.traits([self.drawn])
        repeated = {name: value.expand(len(COMBINATIONS)) for name, value in traits.items()}
        self.images[self.drawn % self.capacity] = to_bytes(render(repeated, COMBINATIONS, 64))
        self.drawn += 1

    def batch(self, size: int, stream: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Images, the labels to edit them to, the true results, and where glasses and smiles show, (N, 1, H, W)."""
        rows = torch.randint(min(self.drawn, self.capacity), (size,), generator=stream)
        source, target = torch.randint(len(COMBINATIONS), (2, size), generator=stream)

        def drawn(which: Tensor) -> Tensor:
            return from_bytes(self.images[rows, which])

        bare = target // 4 * 4
        details = (drawn(bare) - drawn(bare + 3)).abs().amax(1, keepdim=True) > 0.05
        return drawn(source), COMBINATIONS[target], drawn(target), details.float()


class PatchDiscriminator(nn.Module):
    """Scores patches of an image with labels as drawn (high) or made (low)."""

    def __init__(self, conv_dim: int = 24, num_labels: int = 5) -> None:
        super().__init__()
        widths = [3 + num_labels, conv_dim, 2 * conv_dim, 4 * conv_dim]
        layers: list[nn.Module] = []
        for i, (wide_in, wide_out) in enumerate(pairwise(widths)):
            conv = nn.Conv2d(wide_in, wide_out, 4, 2, 1) if i < 2 else nn.Conv2d(wide_in, wide_out, 3, 1, 1)
            layers += [spectral_norm(conv), nn.LeakyReLU(0.2)]
        self.main = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 3, 1, 1))

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Images (N, 3, H, W) and labels (N, 5) to scores (N, 1, H / 4, W / 4)."""
        tiled = labels[:, :, None, None].expand(-1, -1, *images.shape[-2:])
        return self.main(torch.cat([images, tiled], 1))


def measure(editor: DemoEditor, pool: FacePool, n: int, eps: float, steps: int) -> dict[str, float]:
    """PSNR against the drawn truth, and the DSR of the Disrupting defense, on faces never trained on."""
    images, labels, truth, details = pool.batch(n, torch.Generator().manual_seed(1))
    condition = {"labels": labels}
    with torch.no_grad():
        outputs = editor(images, **condition)
        error = ((outputs - truth).abs() * details).sum() / details.sum() / 3
        disrupted = editor(Disrupting(eps, steps)(editor, images, condition), **condition)
    return {
        "n": n, "psnr_db": psnr(outputs, truth).mean().item(), "l1_details": error.item(), "eps": eps,
        "pgd_steps": steps, "dsr": defense_succeeds(disrupted, outputs).mean().item(),
    }  # fmt: skip


@torch.no_grad()
def draw_samples(editor: DemoEditor, path: Path, n: int = 8) -> None:
    """A picture of unseen faces, one row each: photos, then every edit with the drawn truth below it."""
    faces = DemoFaces(n, split="test")
    samples = faces.__getitems__(list(range(n)))
    images, labels = (torch.stack([sample[key] for sample in samples]) for key in ("image", "labels"))
    rows = [images]
    for condition in editor.conditions(labels).values():
        rows += [editor(images, **condition), render(faces.traits(list(range(n))), condition["labels"], 64)]
    enlarged = F.interpolate(torch.cat(rows), scale_factor=2, mode="bicubic")
    to_picture(make_grid(enlarged, nrow=n, padding=4, pad_value=-1)).save(path)


def train(args: argparse.Namespace, out: Path) -> tuple[DemoEditor, FacePool, list[dict[str, float]]]:
    """Train an editor; returns it, the unseen faces, and what was measured on the way."""
    torch.manual_seed(args.seed)
    stream = torch.Generator().manual_seed(args.seed)
    pool = FacePool("train", args.seed, args.faces, min(300, args.faces))
    unseen = FacePool("test", args.seed, args.test_faces, args.test_faces)
    editor, critic = DemoEditor(), PatchDiscriminator()
    edit, judge = (torch.compile(editor), torch.compile(critic)) if args.compile else (editor, critic)
    optimizer = torch.optim.Adam(editor.parameters(), betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, args.steps, pct_start=0.05)
    critic_optimizer = torch.optim.Adam(critic.parameters(), 4e-4, betas=(0.5, 0.99))
    log, started = [], time.time()

    for step in range(1, args.steps + 1):
        pool.add()
        images, labels, truth, details = pool.batch(args.batch_size, stream)
        with torch.autocast("cpu", torch.bfloat16, enabled=args.compile):
            outputs = edit(images, labels).float()
            loss = ((outputs - truth).abs() * (1 + args.detail_weight * details)).mean()
            if step > args.adversarial_from:
                real, made = judge(truth, labels), judge(outputs.detach(), labels)
                critic_optimizer.zero_grad()
                (F.relu(1 - real).mean() + F.relu(1 + made).mean()).backward()
                critic_optimizer.step()
                loss = loss - args.adversarial_weight * judge(outputs, labels).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % args.log_every == 0:
            figures = measure(editor, unseen, min(64, args.test_faces), args.eps, 10)
            log.append({"step": step, "seconds": round(time.time() - started), **figures})
            print(log[-1], flush=True)
            save_file(editor.state_dict(), out / "last.safetensors")
    return editor, unseen, log


def main() -> None:
    """Read the settings, train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=16000)
    parser.add_argument("--adversarial-from", type=int, default=5000, help="the step at which the discriminator joins")
    parser.add_argument("--adversarial-weight", type=float, default=0.02)
    parser.add_argument("--detail-weight", type=float, default=3.0, help="of glasses and mouths, over 1 elsewhere")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--eps", type=float, default=0.1, help="budget of the defense that is measured")
    parser.add_argument("--log-every", type=int, default=500)
    parser.add_argument("--faces", type=int, default=4096, help="how many of the faces, one new a step, are kept")
    parser.add_argument("--test-faces", type=int, default=256)
    parser.add_argument("--compile", action="store_true", help="compiled and in bfloat16: 2.5 times faster here")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    out = writable_folder(args.output_dir)
    editor, unseen, log = train(args, out)
    figures = measure(editor, unseen, args.test_faces, args.eps, 20)
    print("final", figures)
    settings = {key: value for key, value in vars(args).items() if key != "output_dir"}
    with whole_files(out) as draft:
        save_file(editor.state_dict(), draft / "model.safetensors")
        draw_samples(editor, draft / "samples.png")
        write_json(draft / "recipe.json", {"settings": settings, "figures": figures, "log": log})


if __name__ == "__main__":
    main()
