"""One step of patch training: the method of arXiv 2510.03747 on one page."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from peft import PeftModel
from torch import Tensor, nn

from loraguard.defenses import AnyDefense
from loraguard.generators import Condition
from loraguard.tuner import folded
from loraguard.tuner.switching import without_adapters


class Overlay(Protocol):
    """What a defensive patch puts on every output: a stamp, or several layers."""

    def compose(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1] with it."""
        ...


Loss = Callable[[Tensor, Tensor], Tensor]
"""From outputs and targets, both (N, 3, H, W) in [-1, 1], to a scalar."""


def settings_of(loss: Loss) -> Any:
    """What a loss says of itself for a log, or its name."""
    return loss.settings() if hasattr(loss, "settings") else getattr(loss, "__name__", "own")


def target_of(model: PeftModel, images: Tensor, condition: Condition, stamp: Overlay | None) -> Tensor:
    """What the patched network should give: y0 = G0(x, c), with the stamp on it if there is one.

    The untouched generator G0 is the same network with its adapter disabled.
    """
    with torch.no_grad(), without_adapters(model):
        untouched = model(images, **condition)
    return untouched if stamp is None else stamp.compose(untouched)


def patch_step(
    model: PeftModel,
    images: Tensor,
    condition: Condition,
    *,
    adversary: AnyDefense,
    stamp: Overlay | None,
    loss: Loss,
    backward: Callable[[Tensor], None] = Tensor.backward,
    network: nn.Module | None = None,
    no_sync: Callable[[], AbstractContextManager[Any]] = nullcontext,
    last: bool = True,
    keys: Sequence[Hashable] | None = None,
) -> dict[str, Tensor]:
    """Accumulate the gradient of `D(Gp(x, c), t) + D(Gp(x_adv, c), t)` in the adapter's parameters.

    The target t is `y0 = G0(x, c)`, with the stamp (a visible watermark) for a defensive patch. x_adv is crafted on Gp,
    the network as it is patched now. The clean loss is backpropagated first: one graph lives at a time.

    Args:
        model: a generator with a GATED_LORA adapter.
        images: (N, 3, H, W) in [-1, 1].
        condition: the edit of each image, batch-first.
        adversary: crafts x_adv.
        stamp: what a defensive patch puts on every output, or None.
        loss: D. One with a method `prepare` is given what that makes of the target, once for both terms.
        backward: called with each of the two losses, in place of `Tensor.backward`.
        network: what to call for outputs that are learnt from, where it is not `model` itself (a DDP wrapper).
        no_sync: a context in which gradients stay in their process.
        last: whether processes exchange gradients in the end.
        keys: what each image with its edit is known by, for a loss that keeps targets' features between epochs.

    Returns:
        `loss_clean` and `loss_adversarial`, detached scalars.

    Example:
        >>> from peft import get_peft_model
        >>> from loraguard import GatedLoraConfig
        >>> from loraguard.defenses import Disrupting
        >>> model = get_peft_model(nn.Sequential(nn.Conv2d(3, 3, 1)), GatedLoraConfig(r=2))
        >>> given = {"adversary": Disrupting(), "stamp": None, "loss": nn.functional.mse_loss}
        >>> patch_step(model, torch.zeros(2, 3, 8, 8), {}, **given)["loss_clean"]
        tensor(0.)
    """
    network = network or model
    with without_adapters(model), folded(model):  # in this order, or `folded` would fold for nothing
        target = target_of(model, images, condition, stamp)
    target = loss.prepare(target, keys) if hasattr(loss, "prepare") else target
    with folded(model, learning=True):
        with no_sync():
            clean = network(images, **condition)
            loss_clean = loss(clean, target)
            backward(loss_clean)
        with folded(model):  # each layer is one convolution, and only images get gradients
            adversarial = adversary(model, images, condition, clean=clean.detach())
        del clean
        with nullcontext() if last else no_sync():
            loss_adversarial = loss(network(adversarial, **condition), target)
            backward(loss_adversarial)
    return {"loss_clean": loss_clean.detach(), "loss_adversarial": loss_adversarial.detach()}
