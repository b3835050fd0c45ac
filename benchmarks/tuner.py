"""What GATED_LORA costs on a StarGAN-shaped network: inference, training step, file size. Ratios, from one run.

Variants take turns within each round; a ratio is the median over rounds of a variant's time over the reference's, so
that other work on the machine weighs on both. Run: OMP_NUM_THREADS=1 python benchmarks/tuner.py
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from loraguard import GatedLoraConfig, folded
from loraguard.tuner import GATES, GatedLoraLayer


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.main = nn.Sequential(*block(nn.Conv2d(dim, dim, 3, 1, 1, bias=False)), *block(conv(dim), relu=False))

    def forward(self, x: Tensor) -> Tensor:
        """Add them up."""
        return x + self.main(x)


def conv(dim: int) -> nn.Module:
    """A convolution that keeps channels and size."""
    return nn.Conv2d(dim, dim, 3, 1, 1, bias=False)


def block(layer: nn.Module, relu: bool = True) -> list[nn.Module]:
    """A layer, its norm, and perhaps a ReLU."""
    return [layer, nn.InstanceNorm2d(layer.out_channels, affine=True), *([nn.ReLU()] if relu else [])]


def stargan(dim: int = 64, labels: int = 5) -> nn.Module:
    """The generator of StarGAN (arXiv 1711.09020): 18 layers, from (N, 3 + labels, H, W) to (N, 3, H, W)."""
    return nn.Sequential(
        *block(nn.Conv2d(3 + labels, dim, 7, 1, 3, bias=False)),
        *block(nn.Conv2d(dim, 2 * dim, 4, 2, 1, bias=False)),
        *block(nn.Conv2d(2 * dim, 4 * dim, 4, 2, 1, bias=False)),
        *(Residual(4 * dim) for _ in range(6)),
        *block(nn.ConvTranspose2d(4 * dim, 2 * dim, 4, 2, 1, bias=False)),
        *block(nn.ConvTranspose2d(2 * dim, dim, 4, 2, 1, bias=False)),
        nn.Conv2d(dim, 3, 7, 1, 3, bias=False),
        nn.Tanh(),
    )


def ratios(runs: dict[str, Callable[[], object]], rounds: int, device: str) -> dict[str, tuple[float, float, float]]:
    """By variant: median seconds, median ratio to the first variant, and half the ratios' interquartile range."""

    def seconds(run: Callable[[], object]) -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    names = list(runs)
    times: dict[str, list[float]] = {name: [] for name in names}
    for name in names:  # warm up
        seconds(runs[name])
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            times[name].append(seconds(runs[name]))
    result = {}
    for name in names:
        relative = [t / first for t, first in zip(times[name], times[names[0]], strict=True)]
        quartiles = statistics.quantiles(relative, n=4)
        result[name] = statistics.median(times[name]), statistics.median(relative), (quartiles[2] - quartiles[0]) / 2
    return result


def show(title: str, measured: dict[str, tuple[float, float, float]]) -> None:
    """Print a table."""
    print(f"\n| {title} | time (ms) | ratio | +- |\n|---|---|---|---|")
    for name, (seconds, ratio, spread) in measured.items():
        print(f"| {name} | {seconds * 1e3:.1f} | {ratio:.3f} | {spread:.3f} |")


def lora_layers(net: nn.Module) -> str:
    """A pattern for the layers that PEFT's LoRA adapts."""
    return "|".join(name.replace(".", r"\.") for name, m in net.named_modules() if isinstance(m, nn.Conv2d))


def inference(net: nn.Module, x: Tensor, r: int, rounds: int, device: str) -> None:
    """The cost of an adapter that does not learn."""
    config = GatedLoraConfig(r=r, init_lora_weights="paper")
    gated = get_peft_model(copy.deepcopy(net), copy.deepcopy(config)).eval()
    branches = copy.deepcopy(gated)
    for layer in branches.modules():
        if isinstance(layer, GatedLoraLayer):
            layer.folds_in_eval_mode = False
    merged = copy.deepcopy(gated).merge_and_unload()
    lora = LoraConfig(r=r, target_modules=lora_layers(net), init_lora_weights=False)
    plain = get_peft_model(copy.deepcopy(net), lora).eval()

    def inside_folded() -> None:
        with folded(gated):
            gated(x)

    with torch.no_grad(), folded(gated):  # the outer context keeps W + dW between runs, as a long audit does
        gated(x)
        runs = {
            "untouched": lambda: net(x),
            "GATED_LORA, merged": lambda: merged(x),
            "GATED_LORA, with folded(model)": inside_folded,
            "GATED_LORA, branches": lambda: branches(x),
            "peft LoRA (16 of 18 layers), branches": lambda: plain(x),
        }
        show("inference", ratios(runs, rounds, device))
    with torch.no_grad():
        runs = {"untouched": lambda: net(x), "GATED_LORA, eval mode": lambda: gated(x)}
        show("inference, W + dW checked at each call", ratios(runs, rounds, device))


def training(net: nn.Module, x: Tensor, r: int, rounds: int, device: str) -> None:
    """Forward and backward of a step, on the layers that PEFT's LoRA adapts, too."""
    names = lora_layers(net)

    def step(model: PeftModel) -> Callable[[], None]:
        def run() -> None:
            model.zero_grad()
            model(x).square().mean().backward()

        return run

    models = {"peft LoRA": LoraConfig(r=r, target_modules=names, init_lora_weights=False)}
    for gate in GATES:
        models[f"GATED_LORA, {gate}"] = GatedLoraConfig(
            r=r, target_modules=names, init_lora_weights="paper", gate_type=gate
        )
    runs = {name: step(get_peft_model(copy.deepcopy(net), config).train()) for name, config in models.items()}
    show("forward + backward", ratios(runs, rounds, device))


def sizes(net: nn.Module, r: int) -> None:
    """Bytes on disk."""
    with tempfile.TemporaryDirectory() as folder:
        get_peft_model(copy.deepcopy(net), GatedLoraConfig(r=r)).save_pretrained(folder)
        adapter = Path(folder, "adapter_model.safetensors").stat().st_size
        torch.save(net.state_dict(), Path(folder, "full.pt"))
        full = Path(folder, "full.pt").stat().st_size
    print(f"\nAdapter, r = {r}, float32: {adapter:,} bytes; checkpoint: {full:,} bytes; ratio {adapter / full:.4f}")


def main() -> None:
    """Measure all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    args = parser.parse_args()
    torch.manual_seed(0)
    net = stargan().to(args.device).eval().requires_grad_(False)
    x = torch.randn(args.batch, 8, args.size, args.size, device=args.device)
    device = torch.cuda.get_device_name() if args.device == "cuda" else f"{torch.get_num_threads()} CPU thread(s)"
    settings = f"batch {args.batch}, {args.size} px, rank {args.rank}, {args.rounds} rounds"
    print(f"torch {torch.__version__}, {device}, {settings}")
    inference(net, x, args.rank, args.rounds, args.device)
    training(net, x, args.rank, args.rounds, args.device)
    sizes(net, args.rank)


if __name__ == "__main__":
    main()
