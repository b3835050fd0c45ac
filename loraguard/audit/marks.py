"""What a mark (an invisible watermark) in a generator's weights withstands, and what removes or forges it.

Every row is a number of images on which the mark is read at the reader's false-positive rate, with its exact
(Clopper-Pearson) 95% interval, the mean share of bits that are right, and the PSNR to the untouched network's outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loraguard.channels import Channel, Denoiser
from loraguard.generators import Condition, DemoDiffusion
from loraguard.mark import Mark, MarkReader
from loraguard.metrics import psnr
from loraguard.stamp.reader import most_likely_share
from loraguard.tuner import GatedLoraConfig


@dataclass(frozen=True)
class MarkRow:
    """One situation and how often the mark was read in it.

    Attributes:
        group: what kind of situation: "layers", "sizes", "channels", "defenses", "removal", "forging".
        name: of the situation.
        found: images on which it was read.
        n: images.
        low: of the share that is read, with 95% confidence.
        high: likewise.
        bits: mean share of bits that are right: in the whole picture, or where the search for crops has found the mark.
        psnr: mean, in dB, to what the untouched network gives; None where that says nothing.
    """

    group: str
    name: str
    found: int
    n: int
    low: float
    high: float
    bits: float
    psnr: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)


@dataclass
class MarkAudit:
    """Measures a mark on some photos, each with an edit.

    Args:
        network: the generator with the mark in its weights.
        untouched: the same without.
        mark: that outputs are to carry.
        images: photos that nothing was trained on, (N, 3, H, W) in [-1, 1].
        condition: an edit of each.
        false_positive_rate: of the reader.

    Example:
        >>> audit = MarkAudit(nn.Identity(), nn.Identity(), Mark("c0de"), torch.zeros(3, 3, 64, 64), {})
        >>> [(row.name, row.found) for row in audit.layers()]
        [('outputs', 0), ('outputs of the untouched network', 0), ('photos', 0)]
    """

    network: nn.Module
    untouched: nn.Module
    mark: Mark
    images: Tensor
    condition: Condition
    false_positive_rate: float = 1e-6

    def __post_init__(self) -> None:
        self.reader = MarkReader(self.mark.extractor, [self.mark], self.false_positive_rate)
        self.whole = replace(self.reader, crops=False)
        with torch.no_grad():
            self.reference = self.untouched(self.images, **self.condition)

    def row(
        self, group: str, name: str, images: Tensor, reference: Tensor | None = None, crops: bool = False
    ) -> MarkRow:
        """Read the mark on images (N, 3, H, W), with `crops` also where they may have stood in larger pictures."""
        readings = self.whole(images)
        if crops:
            readings = [found if found.found else one for found, one in zip(self.reader(images), readings, strict=True)]
        right = sum(one.agreeing / one.bits for one in readings) / len(readings)
        count, n = sum(one.found for one in readings), len(images)
        low, high = 1 - most_likely_share(n - count, n, 0.975), most_likely_share(count, n, 0.975)
        decibels = None if reference is None else float(psnr(images.clamp(-1, 1), reference).mean())
        return MarkRow(group, name, count, n, low, high, right, decibels)

    @torch.no_grad()
    def outputs(self, network: nn.Module | None = None) -> Tensor:
        """What a network, by default the marked one, makes of the photos."""
        return (network or self.network)(self.images, **self.condition).clamp(-1, 1)

    def layers(self) -> list[MarkRow]:
        """Is it there, and only there?"""
        return [
            self.row("layers", "outputs", self.outputs(), self.reference),
            self.row("layers", "outputs of the untouched network", self.reference, crops=True),
            self.row("layers", "photos", self.images, crops=True),
        ]

    @torch.no_grad()
    def sizes(self, factors: Sequence[float] = (0.5, 2.0)) -> Iterator[MarkRow]:
        """On outputs of other sizes than the photos': these, resampled, are edited; with no size that is refused."""
        height, width = self.images.shape[-2:]
        for factor in factors:
            size = round(factor * height), round(factor * width)
            photos = F.interpolate(self.images, size, mode="bicubic", antialias=True).clamp(-1, 1)
            try:
                reference = self.untouched(photos, **self.condition)
                outputs = self.network(photos, **self.condition).clamp(-1, 1)
            except (RuntimeError, ValueError):  # as networks of one size say so
                continue
            yield self.row("sizes", f"{size[1]} x {size[0]} pixels", outputs, reference)

    def channels(self, channels: Mapping[str, Channel], seed: int = 0, crops: bool = True) -> list[MarkRow]:
        """After what happens to pictures; `crops` as for :meth:`row`, which takes time and is for those that crop."""
        torch.manual_seed(seed)
        outputs = self.outputs()
        return [self.row("channels", name, channel(outputs), crops=crops) for name, channel in channels.items()]

    def defenses(self, defenses: Mapping[str, Any], seed: int = 0) -> Iterator[MarkRow]:
        """On photos that were perturbed, crafted on the marked network."""
        for name, defense in defenses.items():
            torch.manual_seed(seed)
            perturbed = defense(self.network, self.images, self.condition)
            with torch.no_grad():
                outputs = self.network(perturbed, **self.condition)
            yield self.row("defenses", name, outputs)

    def changed_weights(self, pruned: Sequence[float] = (0.1, 0.3, 0.5)) -> Iterator[MarkRow]:
        """Weights in 8 bits, or with the smallest set to zero."""
        made = {"weights in 8 bits": _changed(self.network, _eight_bits)}
        for share in pruned:
            change = partial(_pruned, share=share)
            made[f"the smallest {share:.0%} of weights at zero"] = _changed(self.network, change)
        for name, network in made.items():
            yield self.row("removal", name, self.outputs(network), self.reference)

    def regenerated(self, networks: Mapping[str, Callable[[Tensor], Tensor]] | None = None) -> Iterator[MarkRow]:
        """Outputs that went through another network; by default the denoiser and the autoencoder that ship."""
        outputs = self.outputs()
        every = networks or {"the denoiser that ships": Denoiser(), "the demo's autoencoder": autoencoded}
        for name, network in every.items():
            with torch.no_grad():
                yield self.row("removal", name, network(outputs).clamp(-1, 1), self.reference)

    def fine_tuned(
        self,
        batches: Iterator[tuple[Tensor, Condition, Tensor]],
        steps: Sequence[int],
        learning_rate: float = 1e-3,
        name: str = "fine-tuning of all weights",
        network: nn.Module | None = None,
    ) -> Iterator[MarkRow]:
        """All weights, or those that learn, trained on true pairs by somebody without the untouched network (Adam).

        Args:
            batches: photos, edits and what the edits should give.
            steps: after which the mark is read, until it is read on no image.
            learning_rate: of Adam.
            name: in the rows.
            network: in place of the marked one.
        """
        network = copy.deepcopy(network or self.network)
        if not any(weight.requires_grad for weight in network.parameters()):
            network.requires_grad_(True)
        optimizer = torch.optim.Adam([w for w in network.parameters() if w.requires_grad], learning_rate)
        for step in range(1, max(steps) + 1):
            images, condition, truth = next(batches)
            loss = F.mse_loss(network(images, **condition), truth)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step in steps:
                done = f"{name}, {step} step{'s' * (step > 1)}"
                yield (row := self.row("removal", done, self.outputs(network), self.reference))
                if not row.found:
                    break

    def another_adapter(
        self,
        batches: Iterator[tuple[Tensor, Condition, Tensor]],
        steps: Sequence[int],
        learning_rate: float = 1e-3,
        name: str = "another adapter",
        r: int = 16,
    ) -> Iterator[MarkRow]:
        """An adapter of rank `r` for all layers, trained on the marked network as :meth:`fine_tuned` trains weights."""
        from peft import get_peft_model

        adapted = get_peft_model(copy.deepcopy(self.network), GatedLoraConfig(r=r, lora_alpha=r // 2))
        return self.fine_tuned(batches, steps, learning_rate, name, adapted)

    def forged(self, photos: Tensor) -> list[MarkRow]:
        """Can the mark be copied onto photos that the network never made?

        By whoever has the extractor's own pattern; and by whoever has outputs alone, from the mean of what a denoiser
        takes off them (Voloshynovskiy et al., Proc. SPIE 3971, 2000), put on at twice its strength.
        """
        rows = []
        if self.mark.composes:
            rows.append(self.row("forging", "composed with the public pattern", self.mark.compose(photos), photos))
        outputs = self.outputs()
        residual = (outputs - Denoiser()(outputs)).mean(0, keepdim=True)
        residual = F.interpolate(residual, photos.shape[-2:], mode="bicubic")
        copied = (photos + 2 * residual).clamp(-1, 1)
        return [*rows, self.row("forging", f"copied from {len(outputs)} outputs", copied, photos)]


@torch.no_grad()
def autoencoded(images: Tensor) -> Tensor:
    """Images (N, 3, H, W) in [-1, 1] regenerated by the autoencoder of `DemoDiffusion`, made for drawn faces.

    Example:
        >>> autoencoded(torch.zeros(1, 3, 50, 64)).shape
        torch.Size([1, 3, 50, 64])
    """
    editor, (height, width) = DemoDiffusion.pretrained().to(images.device), images.shape[-2:]
    whole = F.pad(images, (0, -width % 4, 0, -height % 4), mode="replicate")
    return editor.decode(editor.encode(whole))[..., :height, :width]


def _changed(network: nn.Module, change: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of a network whose weight matrices and kernels are changed; biases and norms stay."""
    copied = copy.deepcopy(network)
    with torch.no_grad():
        for weight in copied.parameters():
            if weight.ndim >= 2:
                weight.copy_(change(weight))
    return copied


def _eight_bits(weight: Tensor) -> Tensor:
    """Rounded to 255 levels for each output feature map, symmetric."""
    scale = weight.abs().flatten(1).amax(1).clamp_min(1e-12).view(-1, *[1] * (weight.ndim - 1)) / 127
    return (weight / scale).round() * scale


def _pruned(weight: Tensor, share: float) -> Tensor:
    """The smallest values of a tensor at zero."""
    count = int(share * weight.numel())
    if not count:
        return weight
    return torch.where(weight.abs() > weight.abs().flatten().kthvalue(count).values, weight, torch.zeros_like(weight))


def as_table(rows: Sequence[MarkRow]) -> str:
    """Rows as a table in Markdown."""
    lines = ["| | read | 95% interval | bits right | PSNR, dB |", "|---|---|---|---|---|"]
    for row in rows:
        decibels = "" if row.psnr is None else f"{row.psnr:.1f}"
        share = f"{100 * row.low:.0f}-{100 * row.high:.0f}%"
        lines.append(f"| {row.name} | {row.found}/{row.n} | {share} | {row.bits:.3f} | {decibels} |")
    return "\n".join(lines)
