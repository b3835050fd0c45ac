"""The recipe of the small denoiser, a purification baseline: take Gaussian noise off drawn faces, or off your photos.

    python examples/train_denoiser.py --output-dir out
    python examples/train_denoiser.py --output-dir out --data /data/photos --steps 50000

takes four minutes on an idle core (30 ms a step). The noise's strength is drawn for each image (blind denoising, Zhang
et al., arXiv 1608.03981). Writes `model.safetensors`, for `Denoiser(path)` and `denoiser:PATH`, and `recipe.json`
(settings, log, figures on photos it was not trained on), which ship in `loraguard/channels/denoiser_weights`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from loraguard.channels.denoiser import DnCNN
from loraguard.data import Part, open_data, split_photos
from loraguard.files import whole_files, writable_folder, write_json
from loraguard.metrics import psnr
from loraguard.pixels import from_bytes, to_bytes


def as_bytes(photos: Part) -> Tensor:
    """All photos, (N, 3, H, W) in 8 bits."""
    return torch.stack([to_bytes(photos[i]["image"]) for i in range(len(photos))])


def crops(photos: Tensor, size: int, number: int) -> Tensor:
    """Random squares (number, 3, size, size) in [-1, 1], half of them mirrored."""
    height, width = photos.shape[-2:]
    rows = torch.randint(len(photos), (number,))[:, None, None]
    y = torch.randint(height - size + 1, (number, 1, 1)) + torch.arange(size)[None, :, None]
    x = torch.randint(width - size + 1, (number, 1, 1)) + torch.arange(size)[None, None, :]
    x = torch.where(torch.rand(number, 1, 1) < 0.5, x, x.flip(-1))
    return from_bytes(photos[rows, :, y, x].permute(0, 3, 1, 2))


@torch.no_grad()
def measure(
    network: DnCNN, photos: Tensor, sigmas: tuple[float, ...] = (0.0, 0.05, 0.1)
) -> dict[str, dict[str, float]]:
    """By the noise's standard deviation: PSNR of noisy and of denoised photos, in dB."""
    clean, figures = from_bytes(photos), {}
    for sigma in sigmas:
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
        noisy = (clean + sigma * noise).clamp(-1, 1)
        denoised = (noisy - network(noisy)).clamp(-1, 1)
        figures[f"{sigma}"] = {"denoised_db": psnr(denoised, clean).mean().item()}
        if sigma:
            figures[f"{sigma}"]["noisy_db"] = psnr(noisy, clean).mean().item()
    return figures


def main() -> None:
    """Read the settings, train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--data", default="demo", help="NAME, NAME:PATH, PATH or HUB_ID, as loraguard train takes it")
    parser.add_argument("--train-size", type=int, default=800, help="photos to train on, kept in memory as bytes")
    parser.add_argument("--test-size", type=int, default=100, help="other photos, to measure on")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--crop", type=int, default=32, help="pixels a side")
    parser.add_argument("--sigma", type=float, default=0.15, help="strongest noise, in units of images in [-1, 1]")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--log-every", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    out = writable_folder(args.output_dir)
    torch.manual_seed(args.seed)
    parts = split_photos(open_data(args.data), train_size=args.train_size, test_size=args.test_size)
    photos, unseen = (as_bytes(part) for part in parts)
    network = DnCNN(args.width, args.depth)
    optimizer = torch.optim.Adam(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, args.steps, pct_start=0.05)
    log, started = [], time.time()
    for step in range(1, args.steps + 1):
        clean = crops(photos, args.crop, args.batch_size)
        noise = torch.randn_like(clean) * torch.rand(len(clean), 1, 1, 1) * args.sigma
        noisy = (clean + noise).clamp(-1, 1)
        loss = F.mse_loss(noisy - network(noisy), clean)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % args.log_every == 0:
            log.append({"step": step, "seconds": round(time.time() - started), **measure(network, unseen)})
            print(log[-1], flush=True)
    settings = {key: value for key, value in vars(args).items() if key != "output_dir"}
    with whole_files(out) as draft:
        save_file(network.state_dict(), draft / "model.safetensors")
        write_json(draft / "recipe.json", {"settings": settings, "figures": measure(network, unseen), "log": log})


if __name__ == "__main__":
    main()
