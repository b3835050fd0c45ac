"""False alarms and misses of the audit's checks over honest and masked networks: `python benchmarks/masking_checks.py`.

Every network is the embedded default behind a change of its input or output. *Honest* ones have the gradients of what
they do, however much they change; *masked* ones hide part of it. Each is audited as an adversary's network, and the
table says which flags of masking its probes put up. With `--attacks` the checks that need attacks of their own run as
well: `--attacks --photos 12 --size 32` takes about an hour of a core, and four times as long at 64 pixels.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F

from loraguard import GatedLoraConfig
from loraguard.audit import run_audit
from loraguard.channels import JPEG, Quantize
from loraguard.data import DemoFaces
from loraguard.defenses import Disrupting
from loraguard.files import whole_files, writable_folder, write_json
from loraguard.generators import DemoEditor

Edit = Callable[[Tensor], Tensor]

PROBES = ("gradients-do-not-fit", "random-generator", "outputs-not-repeatable")
ATTACKS = ("steps-not-enough", "restarts-help", "single-step-beats-iterative", "gradient-free-beats-gradients",
           "budget-does-not-count", "does-not-saturate", "transfer-beats-white-box",
           "one-draw-is-not-enough")  # fmt: skip


def levels(images: Tensor, count: int) -> Tensor:
    """Rounded to evenly spaced levels; the gradient is 0."""
    return (images * count / 2).round() * 2 / count


def straight(images: Tensor, rounded: Tensor) -> Tensor:
    """The rounded images with the gradient of the plain ones."""
    return images + (rounded - images).detach()


def blurred(images: Tensor) -> Tensor:
    """A mean over 3x3 pixels."""
    return F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)


def half(images: Tensor, axis: int, keep: float = 0.0) -> Tensor:
    """Half of the images along an axis lets this part of the gradient through."""
    first, second = images.chunk(2, axis)
    return torch.cat([keep * first + (1 - keep) * first.detach(), second], axis)


def noise(images: Tensor, size: float) -> Tensor:
    """Images with normal noise on them."""
    return images + size * torch.randn_like(images)


HONEST: dict[str, Callable[[Tensor, Edit], Tensor]] = {
    "as it is": lambda x, edit: edit(x),
    "mirrored and back": lambda x, edit: edit(x.flip(3)).flip(3),
    "blurred 3x3": lambda x, edit: edit(blurred(x)),
    "blurred twice": lambda x, edit: edit(blurred(blurred(x))),
    "half size and back": lambda x, edit: edit(F.interpolate(F.avg_pool2d(x, 2), scale_factor=2.0, mode="bilinear")),
    "less contrast": lambda x, edit: edit(0.7 * x),
    "tanh curve": lambda x, edit: edit(torch.tanh(1.5 * x)),
    "steep tanh curve": lambda x, edit: edit(torch.tanh(4 * x)),
    "gamma": lambda x, edit: edit(2 * ((x + 1) / 2).clamp_min(1e-3) ** 1.5 - 1),
    "grey input": lambda x, edit: edit(0.5 * x + 0.5 * x.mean(1, keepdim=True)),
    "darker output": lambda x, edit: 0.8 * edit(x) - 0.1,
    "blurred output": lambda x, edit: blurred(edit(x)),
    "mean with the photo": lambda x, edit: 0.7 * edit(x) + 0.3 * x,
    "8 bits, straight through": lambda x, edit: edit(straight(x, Quantize()(x))),
    "JPEG 75, differentiable": lambda x, edit: edit(JPEG(75).differentiable()(x)),
    "two passes, mean": lambda x, edit: 0.5 * edit(x) + 0.5 * edit(x.flip(3)).flip(3),
    "gradients doubled and undone": lambda x, edit: edit(2 * (0.5 * x)),
    "clipped": lambda x, edit: edit(x.clamp(-0.9, 0.9)),
    "sharpened": lambda x, edit: edit(1.5 * x - 0.5 * blurred(x)),
    "shifted by a pixel": lambda x, edit: edit(x.roll(1, 3)),
}
MASKED: dict[str, Callable[[Tensor, Edit], Tensor]] = {
    "gradient cut": lambda x, edit: edit(x.detach()) + 0 * x,
    "left half cut": lambda x, edit: edit(half(x, 3)),
    "upper half cut": lambda x, edit: edit(half(x, 2)),
    "red cut": lambda x, edit: edit(torch.cat([x[:, :1].detach(), x[:, 1:]], 1)),
    "half of all": lambda x, edit: edit(0.5 * x + 0.5 * x.detach()),
    "a tenth of all": lambda x, edit: edit(0.1 * x + 0.9 * x.detach()),
    "nine tenths of the left half": lambda x, edit: edit(half(x, 3, 0.1)),
    "reversed": lambda x, edit: edit(2 * x.detach() - x),
    "left half reversed": lambda x, edit: edit(half(x, 3, -1.0)),
    "16 levels, no gradient": lambda x, edit: edit(levels(x, 16) + 0 * x),
    "16 levels, straight through": lambda x, edit: edit(straight(x, levels(x, 16))),
    "gradient of the blurred": lambda x, edit: edit(straight(blurred(blurred(x)), x)),
    "gradient of the mirrored": lambda x, edit: edit(straight(x.flip(3), x)),
    "gradient of the constant": lambda x, edit: edit(straight(x.mean((2, 3), keepdim=True).expand_as(x), x)),
    "squashed, vanishing": lambda x, edit: edit(straight(torch.tanh(20 * x), x)),
    "noise in the gradient": lambda x, edit: edit(x + 0.5 * (x.detach().sin() * 40).sin() * (x - x.detach())),
    "checkerboard cut": lambda x, edit: edit(_checkerboard(x)),
    "output cut": lambda x, edit: 0.2 * edit(x) + 0.8 * edit(x.detach()),
    "random, strong": lambda x, edit: edit(noise(x, 0.3)),
    "random shift": lambda x, edit: edit(x.roll(int(torch.randint(-3, 4, ())), 3)),
}


def _checkerboard(images: Tensor) -> Tensor:
    rows, columns = (torch.arange(size) for size in images.shape[-2:])
    keep = (rows[:, None] + columns[None]) % 2
    return keep * images + (1 - keep) * images.detach()


class Changed(nn.Module):
    """The embedded default behind a change."""

    def __init__(self, change: Callable[[Tensor, Edit], Tensor]) -> None:
        super().__init__()
        self.editor, self.change = DemoEditor.pretrained(), change

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Edit images (N, 3, H, W)."""
        return self.change(images, lambda x: self.editor(x, labels)).clamp(-1, 1)


def flags_of(change: Callable[[Tensor, Edit], Tensor], photos: int, size: int, attacks: bool) -> list[str]:
    """The flags of masking that an audit of a network puts up."""
    model = get_peft_model(DemoEditor.pretrained(), GatedLoraConfig(r=1), adapter_name="nothing")
    result = run_audit(
        model, DemoFaces(photos, size=size), defenses=Disrupting(0.1, 20 if attacks else 1), patches={},
        checks=photos if attacks else 0, generators={"network": Changed(change)}, disable_tqdm=True,
    )  # fmt: skip
    raised = {one.name for one in result.checks if not one.passed and one.generator == "network"}
    return [flag for flag in (ATTACKS + PROBES if attacks else PROBES) if flag in raised]


def kept_flags(work: Path | None, key: str, find: Callable[[], list[str]]) -> list[str]:
    """What an audit found, from the file that an earlier run left, or anew."""
    if work is None:
        return find()
    if not (work / key).is_file():
        found = find()
        with whole_files(work) as draft:
            write_json(draft / key, found)
    flags: list[str] = json.loads((work / key).read_text(encoding="utf-8"))
    return flags


def main() -> None:
    """Print a row for each network and the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=4, help="of each audit")
    parser.add_argument("--size", type=int, default=64, help="of photos, in pixels")
    parser.add_argument("--attacks", action="store_true", help="the checks that need attacks of their own, as well")
    parser.add_argument("--work-dir", type=Path, help="keeps what has been found")
    options = parser.parse_args()
    work = None if options.work_dir is None else writable_folder(options.work_dir)
    flags = ATTACKS + PROBES if options.attacks else PROBES
    counts: dict[str, dict[str, int]] = {flag: {"honest": 0, "masked": 0} for flag in flags}
    print("| network | kind | flags |\n|---|---|---|")
    for kind, networks in (("honest", HONEST), ("masked", MASKED)):
        for name, change in networks.items():
            given = options.photos, options.size, options.attacks
            key = f"{name}, {options.photos} of {options.size}{', attacks' if options.attacks else ''}.json"
            found = kept_flags(work, key, lambda change=change, given=given: flags_of(change, *given))
            for flag in found:
                counts[flag][kind] += 1
            print(f"| {name} | {kind} | {', '.join(found) or 'none'} |", flush=True)
    print(f"\n| check | false alarms, of {len(HONEST)} honest | found, of {len(MASKED)} masked |\n|---|---|---|")
    for flag, count in counts.items():
        print(f"| {flag} | {count['honest']} | {count['masked']} |")


if __name__ == "__main__":
    main()
