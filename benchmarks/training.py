"""How fast patches are trained, against the authors' release: a step at identical losses, and time to robustness.

    python benchmarks/training.py                     # both tables, on one CPU thread; two hours
    python benchmarks/training.py --only step         # ten minutes

The baseline is in `release.py`.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import robustness
import torch
from peft import PeftModel, get_peft_model
from release import Branch, Release
from torch import Tensor
from torch.nn import functional as F

from loraguard import GatedLoraConfig
from loraguard.data import DemoFaces, collate
from loraguard.defenses import Disrupting
from loraguard.generators import StarGAN
from loraguard.training import patch_step
from loraguard.tuner import GatedLoraLayer
from loraguard.tuner.folding import FoldingLayer

EPS, STEPS, STEP_SIZE = 0.05, 10, 0.01


class Attack(Disrupting):
    """PGD from a start that is given, so that both steps attack from the same one."""

    def start(self, images):
        """The one that is given."""
        return START["start"]


START: dict[str, Tensor] = {}


class Ours:
    """`patch_step`, as the trainer calls it."""

    def __init__(self, model: PeftModel, *, fast: bool = True, compiled: bool = False) -> None:
        self.model = copy.deepcopy(model).train()
        self.format = torch.channels_last if compiled else torch.contiguous_format
        self.model.to(memory_format=self.format)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        for module in self.model.modules():
            if isinstance(module, FoldingLayer):
                module.fast_inside_folded = fast
        if compiled:
            self.model.get_base_model().compile()

    def step(self, images: Tensor, labels: Tensor, start: Tensor) -> tuple[float, float]:
        """Accumulate gradients; gives the clean and the adversarial loss."""
        for parameter in self.parameters:
            parameter.grad = None
        START["start"] = start.contiguous(memory_format=self.format)
        losses = patch_step(
            self.model, images.contiguous(memory_format=self.format), {"labels": labels}, adversary=Attack(eps=EPS),
            stamp=None, loss=F.mse_loss,
        )  # fmt: skip
        return losses["loss_clean"].item(), losses["loss_adversarial"].item()


VARIANTS: dict[str, Callable[[PeftModel], Release | Ours]] = {
    "authors' release": Release,
    "loraguard": Ours,
    "loraguard, stock convolutions": lambda model: Ours(model, fast=False),
    "loraguard, torch.compile": lambda model: Ours(model, compiled=True),
}


def setup(conv_dim: int, size: int, batch: int, dtype: torch.dtype) -> tuple[PeftModel, Tensor, Tensor, Tensor]:
    """A StarGAN with random weights and an adapter that is not the identity, photos, labels, and PGD's start."""
    torch.manual_seed(0)
    generator = StarGAN(conv_dim=conv_dim, size=size)
    model = get_peft_model(generator, GatedLoraConfig(r=8, init_lora_weights="paper")).to(dtype)
    faces = collate([DemoFaces(batch, size=size)[i] for i in range(batch)])
    images, labels = faces["image"].to(dtype), faces["labels"].to(dtype)
    return model, images, labels, (images + EPS * (2 * torch.rand_like(images) - 1)).clamp(-1, 1)


def gradients(step: Release | Ours) -> Tensor:
    """All that a step gave to A, B and the gates, layer by layer."""
    parameters = []
    for module in (step.patched if isinstance(step, Release) else step.model).modules():
        if isinstance(module, Branch):
            parameters += [module.a.weight, module.b, module.gate]
        elif isinstance(module, GatedLoraLayer):
            parameters += [one["default"].weight for one in (module.lora_A, module.lora_B, module.lora_gate)]
    return torch.cat([parameter.grad.flatten() for parameter in parameters])


def agreement() -> float:
    """The largest difference of losses and gradients between the two steps in float64, relative.

    The network has the channels and the photos the pixels that all fast algorithms want.
    """
    model, images, labels, start = setup(32, 128, 4, torch.float64)
    release, ours = Release(model), Ours(model)
    theirs, mine = release.step(images, labels, start), ours.step(images, labels, start)
    differences = [abs(a - b) / b for a, b in zip(mine, theirs, strict=True)]
    expected = gradients(release)
    differences.append(((gradients(ours) - expected).norm() / expected.norm()).item())
    if max(differences) > 1e-12:
        raise SystemExit(f"The steps differ: relative differences of losses and gradients {differences}.")
    return max(differences)


def peak_memory(name: str, batch: int, size: int, conv_dim: int) -> float:
    """MiB above the start while one step runs: the median of three processes, as holes in the heap come by chance."""
    code = f"import training; training.print_peak({name!r}, {batch}, {size}, {conv_dim})"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True, env=environment) for _ in range(3)]
    return statistics.median(float(run.stdout.splitlines()[-1]) for run in runs)


def print_peak(name: str, batch: int, size: int, conv_dim: int) -> None:
    """What :func:`peak_memory` runs: the second step's, after one small step has loaded what is loaded once."""
    torch.set_num_threads(1)
    model, images, labels, start = setup(conv_dim, size, batch, torch.float32)
    step = VARIANTS[name](model)
    if "compile" in name:
        step.step(images, labels, start)
    else:
        step.step(images[:1, :, :32, :32].contiguous(), labels[:1], start[:1, :, :32, :32].contiguous())
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    step.step(images, labels, start)
    print(memory("VmHWM") - before)


def memory(what: str) -> float:
    """A figure of this process in MiB."""
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith(what))
    return int(line.split()[1]) / 1024


def one_step(batch: int, size: int, conv_dim: int, rounds: int) -> None:
    """Print the table of one training step."""
    torch.set_num_threads(1)
    model, images, labels, start = setup(conv_dim, size, batch, torch.float32)
    steps = {name: make(model) for name, make in VARIANTS.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():  # warm up, compile
        step.step(images, labels, start)
    for number in range(rounds):
        for name, step in steps.items():
            started = time.process_time()  # on one thread, what a clock would show on a machine of its own
            step.step(images, labels, start)
            times[name].append(time.process_time() - started)
            print(f"round {number + 1}: {name} {times[name][-1]:.1f} s", file=sys.stderr)
    base = times["authors' release"]
    base_memory = peak_memory("authors' release", batch, size, conv_dim)
    print(f"StarGAN-shaped network (conv_dim {conv_dim}), {size} px, batch {batch}, rank 8, {STEPS} PGD steps, one")
    print(f"thread, torch {torch.__version__}, float32, {rounds} rounds in turn; median of ratios within a round.")
    print(f"Same losses and gradients in float64: largest relative difference {agreement():.1e}.\n")
    print("| step | speed over the authors' | range | CPU s | peak memory, MiB | of the authors' |")
    print("|---|---|---|---|---|---|")
    for name, seconds in times.items():
        ratios = [b / s for b, s in zip(base, seconds, strict=True)]
        peak = base_memory if name == "authors' release" else peak_memory(name, batch, size, conv_dim)
        print(
            f"| {name} | {statistics.median(ratios):.2f} | {min(ratios):.2f}-{max(ratios):.2f} | "
            f"{statistics.median(seconds):.1f} | {peak:.0f} | {peak / base_memory:.2f} |"
        )


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("step", "robustness"))
    parser.add_argument("--seeds", type=int, default=1, help="of the runs to robustness")
    parser.add_argument("--faces", type=int, default=100, help="that the trained patches are attacked on")
    parser.add_argument("--keep", type=Path, default=Path("robustness"), help="where trained patches are kept")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--conv-dim", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    torch.set_num_threads(1)
    if flags.only != "robustness":
        one_step(flags.batch, flags.size, flags.conv_dim, flags.rounds)
    if flags.only != "step":
        flags.keep.mkdir(parents=True, exist_ok=True)
        print("\n" + robustness.table(flags.seeds, flags.faces, flags.keep))


if __name__ == "__main__":
    main()
