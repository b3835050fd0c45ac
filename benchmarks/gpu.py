"""How fast a patch is trained on a GPU, against the authors' release: one step on a few photos and every edit of them.

    python benchmarks/gpu.py                  # on one H100: four minutes

The baseline, in `release.py`, takes one edit after the other, as the authors' code does, in float32 with torch's own
settings (convolutions in TF32). Agreement is measured in float64, for bfloat16 as what its rounding does to the losses.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import statistics
import sys
from collections.abc import Callable

import torch
from release import Release
from torch.nn import functional as F
from training import EPS, START, STEPS, Attack, setup

from loraguard.generators.base import Condition, expand
from loraguard.training import patch_step

Step = Callable[[], tuple[float, float]]
"""Accumulates gradients; gives the clean and the adversarial loss, averaged over edits."""


class Work:
    """A network with an adapter, photos, every edit of them, and where PGD starts."""

    def __init__(self, conv_dim: int, size: int, batch: int, dtype: torch.dtype = torch.float32) -> None:
        model, images, labels, start = setup(conv_dim, size, batch, dtype)
        self.model, self.images, self.start = model.to("cuda"), images.to("cuda"), start.to("cuda")
        self.edits: dict[str, Condition] = model.get_base_model().conditions(labels.to("cuda"))


def autocast(precision: str) -> contextlib.AbstractContextManager:
    """What Accelerate's `mixed_precision` puts around a forward."""
    return torch.autocast("cuda", torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


def release(work: Work, precision: str = "no") -> Step:
    """The authors' step, once for each edit."""
    theirs = Release(work.model)

    def step() -> tuple[float, float]:
        with autocast(precision):
            losses = [theirs.step(work.images, edit["labels"], work.start) for edit in work.edits.values()]
        clean, adversarial = (statistics.mean(column) for column in zip(*losses, strict=True))
        return clean, adversarial

    return step


def ours(work: Work, precision: str = "no", *, channels_last: bool = False, compiled: bool = False) -> Step:
    """`patch_step` on all edits together."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = copy.deepcopy(work.model).train().to(memory_format=layout)
    if compiled:
        model.get_base_model().compile()
    photos, condition = expand(work.images, work.edits)
    start = work.start.repeat(len(work.edits), 1, 1, 1)
    photos, start = photos.contiguous(memory_format=layout), start.contiguous(memory_format=layout)

    def step() -> tuple[float, float]:
        START["start"] = start
        for parameter in model.parameters():
            parameter.grad = None
        with autocast(precision):
            losses = patch_step(model, photos, condition, adversary=Attack(eps=EPS), stamp=None, loss=F.mse_loss)
        return losses["loss_clean"].item(), losses["loss_adversarial"].item()

    return step


VARIANTS: dict[str, Callable[[Work], Step]] = {
    "authors' release": release,
    "authors' release, bf16": lambda work: release(work, "bf16"),
    "loraguard": ours,
    "loraguard, bf16": lambda work: ours(work, "bf16"),
    "loraguard, bf16, channels_last": lambda work: ours(work, "bf16", channels_last=True),
    "loraguard, bf16, torch.compile": lambda work: ours(work, "bf16", compiled=True),
    "loraguard, bf16, channels_last, torch.compile": lambda work: ours(work, "bf16", channels_last=True, compiled=True),
}


def difference(mine: tuple[float, float], theirs: tuple[float, float]) -> float:
    """The larger relative one of the two losses."""
    return max(abs(a - b) / b for a, b in zip(mine, theirs, strict=True))


def timed(step: Step) -> float:
    """Seconds of one step; its losses are read, so that the device is done."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    step()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000


def profile(work: Work, name: str) -> None:
    """Print which kernels a step's time goes to."""
    step = VARIANTS[name](work)
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        step()
    print(found.key_averages().table(sort_by="self_device_time_total", row_limit=25, max_name_column_width=70))


def table(work: Work, rounds: int) -> str:
    """Markdown: every variant's speed and memory over the baseline's, in rounds in turn."""
    steps, peaks, losses = {}, {}, {}
    for name, make in VARIANTS.items():
        steps[name] = make(work)
        for _ in range(3):  # warm up, compile
            losses[name] = steps[name]()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        steps[name]()
        peaks[name] = (torch.cuda.max_memory_allocated() - before) / 2**20
        print(name, losses[name], file=sys.stderr, flush=True)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(timed(step))
    base, *_ = times
    rows = [
        "| step | speed over the authors' | range | ms | memory of a step, MiB | losses differ by |",
        "|---|---|---|---|---|---|",
    ]
    for name, seconds in times.items():
        ratios = [b / s for b, s in zip(times[base], seconds, strict=True)]
        rows.append(
            f"| {name} | {statistics.median(ratios):.2f} | {min(ratios):.2f}-{max(ratios):.2f} | "
            f"{1000 * statistics.median(seconds):.0f} | {peaks[name]:.0f} | "
            f"{difference(losses[name], losses[base]):.0e} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--conv-dim", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--profile", choices=VARIANTS, help="print this variant's kernels instead")
    flags = parser.parse_args()
    torch.set_float32_matmul_precision("high")  # the release's einsum in TF32, as its convolutions are
    work = Work(flags.conv_dim, flags.size, flags.batch)
    if flags.profile:
        profile(work, flags.profile)
        return
    small = Work(16, 64, 2, torch.float64)
    exact = difference(ours(small)(), release(small)())
    print(
        f"StarGAN-shaped network (conv_dim {flags.conv_dim}), {flags.size} px, {flags.batch} photos with each of "
        f"{len(work.edits)} edits, rank 8, {STEPS} PGD steps,\n{torch.cuda.get_device_name()}, torch "
        f"{torch.__version__}, {flags.rounds} rounds in turn; median of ratios within a round.\nLosses in float64 "
        f"differ by {exact:.0e}.\n"
    )
    print(table(work, flags.rounds))


if __name__ == "__main__":
    main()
