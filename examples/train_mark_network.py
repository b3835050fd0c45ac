"""The recipe of the network that reads marks: patterns and reader learn together, on pictures that nobody took.

    python examples/train_mark_network.py --output-dir out --minutes 14     # again and again, until it is done

Pictures are drawn faces, dead leaves (overlapping discs, whose statistics are those of photos; Lee, Mumford and Huang,
IJCV 41, 2001), clouds, noise and plain colours, some with a plate as stamps have one. Each is marked with a random
word, damaged by what is drawn from JPEG, resizing, small shifts and crops, blur, noise and brightness, and read; the
loss is the bits' cross-entropy. Of JPEG a third is kornia's, differentiable, and the rest the codec itself, with the
gradient of doing nothing. The mark's strength falls from 28 dB to `--psnr` over the first third.

Writes `model.safetensors` (in half precision) and `recipe.json` (settings, log, figures on other pictures), which ship
in `loraguard/mark/network_weights`. A run goes on from `state.pt` in the folder, and stops after `--minutes`.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from loraguard.channels import JPEG, Channel, CropResize, GaussianBlur, GaussianNoise, Identity, Resize, WebP
from loraguard.data import DemoFaces
from loraguard.files import whole_files, writable_folder, write_json
from loraguard.mark.network import SIZE, MarkNetwork, stretched
from loraguard.pixels import from_bytes, to_bytes

SEEN: dict[str, Channel] = {
    "as it is": Identity(),
    "JPEG 50": JPEG(50),
    "half the size": Resize(0.5),
    "blur, sigma 1.5": GaussianBlur(1.5),
    "noise, 0.1": GaussianNoise(0.1),
}
"""What figures are of; the JPEG is the real codec."""
UNSEEN: dict[str, Channel] = {"WebP 50": WebP(50), "crop of 3%": CropResize(0.97)}


def faces(count: int, split: str) -> Tensor:
    """Drawn faces (count, 3, 64, 64) in [-1, 1]."""
    data = DemoFaces(count, size=SIZE, split=split)
    return torch.stack([item["image"] for item in data.__getitems__(list(range(count)))])


def leaves(count: int, draws: torch.Generator, discs: int = 120) -> Tensor:
    """Dead leaves: discs over one another whose radii follow a power law, each of a colour of its own, some striped."""
    y, x = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")
    pictures = _rand(draws, count, 3, 1, 1).expand(count, 3, SIZE, SIZE) * 2 - 1
    tone = _rand(draws, count, 3, 1, 1) * 1.2 - 0.6
    for _ in range(discs):
        radius = 2.5 / (_rand(draws, count, 1, 1).clamp_min(0.004)).sqrt()
        centre_x, centre_y = (_rand(draws, count, 1, 1) * (SIZE + 20) - 10 for _ in range(2))
        inside = (radius - torch.hypot(x - centre_x, y - centre_y) + 0.5).clamp(0, 1)[:, None]
        colour = (tone + 0.45 * torch.randn(count, 3, 1, 1, generator=draws)).clamp(-1, 1)
        angle, pace = _rand(draws, count, 1, 1) * 6.3, _rand(draws, count, 1, 1) * 1.5
        stripes = torch.sin(pace * (x * torch.cos(angle) + y * torch.sin(angle)))[:, None]
        colour = colour + stripes * 0.4 * (_rand(draws, count, 1, 1, 1) < 0.3) * _rand(draws, count, 1, 1, 1)
        pictures = pictures + inside * (colour - pictures)
    return pictures.clamp(-1, 1)


def clouds(count: int, draws: torch.Generator) -> Tensor:
    """Noise whose amplitude falls with a power of the frequency, from white (0) to smooth (2.2), around a colour."""
    radius = torch.hypot(torch.fft.fftfreq(SIZE)[:, None], torch.fft.rfftfreq(SIZE)[None]).clamp_min(1 / SIZE)
    power = _rand(draws, count, 1, 1, 1) * 2.2
    noise = torch.fft.rfft2(torch.randn(count, 3, SIZE, SIZE, generator=draws)) * radius**-power
    grey = (_rand(draws, count, 1, 1, 1) < 0.5).float() * 0.8
    noise = noise * (1 - grey) + noise.mean(1, keepdim=True) * grey
    field = torch.fft.irfft2(noise, s=(SIZE, SIZE))
    field = field / field.std((1, 2, 3), keepdim=True) * _rand(draws, count, 1, 1, 1) * 0.4
    return (field + _rand(draws, count, 3, 1, 1) * 1.6 - 0.8).clamp(-1, 1)


def pictures(count: int, split: str) -> Tensor:
    """Half faces, three tenths dead leaves, the rest clouds: (count, 3, 64, 64) in 8 bits."""
    draws = torch.Generator().manual_seed(sum(map(ord, split)))
    shares = (count // 2, 3 * count // 10)
    parts = [faces(shares[0], split), leaves(shares[1], draws), clouds(count - sum(shares), draws)]
    return torch.cat([to_bytes(part) for part in parts])


def plated(images: Tensor, share: float = 0.2) -> Tensor:
    """Some of the images with a plate of one colour on them, as stamps have one."""
    count = len(images)
    rows, columns = torch.arange(SIZE)[:, None], torch.arange(SIZE)[None]
    centre_y, centre_x = (torch.rand(count, 1, 1) * SIZE for _ in range(2))
    height, width = 4 + 10 * torch.rand(count, 1, 1), 6 + 20 * torch.rand(count, 1, 1)
    inside = ((rows - centre_y).abs() < height / 2) & ((columns - centre_x).abs() < width / 2)
    there = inside[:, None] & (torch.rand(count, 1, 1, 1) < share)
    return torch.where(there, torch.rand(count, 3, 1, 1) * 2 - 1, images)


def through_codec(images: Tensor) -> Tensor:
    """Images after the JPEG codec itself, whose gradient is taken to be that of doing nothing."""
    return images + (JPEG(40, 75)(images.detach().clamp(-1, 1)) - images).detach()


def _rand(draws: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=draws)


def damaged(images: Tensor) -> Tensor:
    """Images (N, 3, 64, 64) after one or two things that happen to pictures, differentiable."""
    choices: list[Callable[[Tensor], Tensor]] = [
        JPEG(35, 95).differentiable(),
        through_codec,
        through_codec,
        lambda x: Resize(random.uniform(0.45, 1))(x),
        lambda x: GaussianBlur(random.uniform(0.3, 1.8))(x),
        lambda x: GaussianNoise(random.uniform(0, 0.13))(x),
        lambda x: x * (0.8 + 0.4 * torch.rand(len(x), 1, 1, 1)) + 0.3 * (torch.rand(len(x), 1, 1, 1) - 0.5),
    ]
    if random.random() < 0.7:
        images = shifted(images)
    for change in random.sample(choices, random.choice((0, 1, 1, 1, 2))):
        images = change(images)
    return images.clamp(-1, 1)


def shifted(images: Tensor) -> Tensor:
    """A little off its place, by 1.5 pixels or 3% at most; some with up to a tenth of each side gone."""
    count = len(images)
    scale = 1 + (torch.rand(count, 2) - 0.5) * 0.06
    shift = (torch.rand(count, 2) - 0.5) * 6 / SIZE
    matrix = torch.cat([torch.diag_embed(scale), shift[:, :, None]], 2)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    if random.random() < 0.4:
        gone = [random.choice((0, 0, random.randint(0, 7))) for _ in range(4)]
        top, left = gone[0], gone[1]
        kept = moved[:, :, top : SIZE - gone[2], left : SIZE - gone[3]]
        moved = F.pad(kept, (left, gone[3], top, gone[2]), mode="replicate")
    return moved


def marked(network: MarkNetwork, images: Tensor, words: Tensor, psnr: float) -> Tensor:
    """Images with words of +1 and -1 in them, at this PSNR before clipping."""
    return (images + 2 * 10 ** (-psnr / 20) * stretched(network.pattern(words), *images.shape[-2:])).clamp(-1, 1)


@torch.no_grad()
def measure(network: MarkNetwork, photos: Tensor, psnr: float) -> dict[str, float]:
    """Share of bits that are read, after each channel, for random words."""
    network.eval()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        words = torch.randint(2, (len(photos), network.bits)) * 2.0 - 1
        images = from_bytes(to_bytes(marked(network, from_bytes(photos), words, psnr)))
        found = {name: channel(images) for name, channel in (SEEN | UNSEEN).items()}
    network.train()
    return {name: float(((network(x) > 0) == (words > 0)).float().mean()) for name, x in found.items()}


def train(args: argparse.Namespace, out: Path) -> dict[str, Any] | None:
    """Go on from where the folder's state is; the finished recipe, or None where time is up before."""
    photos, unseen = pictures(args.pictures, "train"), pictures(args.test_pictures, "test")
    torch.manual_seed(args.seed)
    network = MarkNetwork(args.bits, seed=args.seed)
    optimizer = torch.optim.Adam(network.parameters())
    step, log, seconds = 0, [], 0.0
    if (out / "state.pt").is_file():
        state = torch.load(out / "state.pt", weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        step, log, seconds = state["step"], state["log"], state["seconds"]
    started = time.time() - seconds
    until = time.time() + 60 * args.minutes
    while step < args.steps and time.time() < until:
        step += 1
        torch.manual_seed(args.seed + step)
        random.seed(args.seed + step)
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * min(step / 200, 0.5 + 0.5 * math.cos(math.pi * step / args.steps))
        psnr = args.psnr - max(0.0, 1 - 3 * step / args.steps) * (args.psnr - 28)
        images = from_bytes(photos[torch.randint(len(photos), (args.batch_size,))])
        images = plated(torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images, images.flip(-1)))
        words = torch.randint(2, (len(images), args.bits)) * 2.0 - 1
        logits = network(damaged(marked(network, images, words, psnr)))
        loss = F.softplus(-logits * words).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if step % args.log_every == 0 or step == args.steps:
            row = {
                "step": step,
                "of": args.steps,
                "seconds": round(time.time() - started),
                "psnr": psnr,
                "loss": loss.item(),
            }
            log.append({**row, **measure(network, unseen, args.psnr)})
            print({key: round(value, 3) for key, value in log[-1].items()}, flush=True)
    with whole_files(out) as draft:
        state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "log": log}
        torch.save({**state, "seconds": time.time() - started}, draft / "state.pt")
        save_file({name: value.half() for name, value in network.state_dict().items()}, draft / "model.safetensors")
    if step < args.steps:
        return None
    settings = {key: value for key, value in vars(args).items() if key not in ("output_dir", "minutes")}
    return {"settings": settings, "figures": measure(network, unseen, args.psnr), "log": log}


def main() -> None:
    """Read the settings, train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--bits", type=int, default=48, help="of a word")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--pictures", type=int, default=6000, help="to train on, kept in memory as bytes")
    parser.add_argument("--test-pictures", type=int, default=200, help="others, to measure on")
    parser.add_argument("--psnr", type=float, default=37.0, help="of marked pictures in the end, in dB")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--log-every", type=int, default=150)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after them; the next run goes on")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    out = writable_folder(args.output_dir)
    recipe = train(args, out)
    if recipe is None:
        print(f"Time is up; the same command goes on from {out / 'state.pt'}.")
        return
    with whole_files(out) as draft:
        write_json(draft / "recipe.json", recipe)


if __name__ == "__main__":
    main()
