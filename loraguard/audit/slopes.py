"""How well gradients say what outputs do: slopes that are measured, beside those that gradients give."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from loraguard.channels import Channel
from loraguard.defenses import Disrupting
from loraguard.defenses.base import undisturbed
from loraguard.generators import Condition
from loraguard.pixels import LEVELS_PER_UNIT

from .craft import seeded

DIRECTIONS = 8
"""Directions in which slopes are compared."""

STEPS = (0.1 / LEVELS_PER_UNIT, 1 / LEVELS_PER_UNIT)
"""How far a photo is moved to measure a slope, in units of images in [-1, 1]: a tenth of a level of 8 bits, where
outputs are nearly straight (between the kinks of a max pooling, too), and a whole level, for networks that round."""

CORRELATION, RATIO = 0.95, 0.9
"""The least correlation between slopes measured and slopes that gradients say, and the least ratio of their sizes."""

INSIDE, EDGE = (0.0, 0.03), (0.04, 0.05)
"""Slopes are compared where attacks are: half of the photos are moved a little, the others to the edge of the usual
budget, every value by something between these. (On photos themselves equal values lie side by side, on which a max
pooling has no slope.)"""

ROOM = 1 - 2 * STEPS[-1]
"""Where slopes are measured, values leave room for the steps: a network that clips its input has no slope at the ends
of the range, and there may be white all over a photo."""

AGREE = 2 / LEVELS_PER_UNIT
"""Gradients in a batch and alone are compared where outputs differ by no more: others draw, or depend on the batch."""

WIDE, STAND_IN = (1 / LEVELS_PER_UNIT, 8 / LEVELS_PER_UNIT), 0.2
"""How far a photo is moved to measure a channel's slopes, wide enough for one that rounds coarsely, and the least
correlation with those of what stands in for it: that of WebP with no gradient but the identity's is 0.4."""

ATTACK = 5
"""Steps of the attack at whose end slopes are compared."""

Fit = tuple[float, float]
"""A correlation and a ratio of sizes."""


def slopes(network: nn.Module, images: Tensor, condition: Condition, count: int | None = None, seed: int = 0) -> Fit:
    """How well a network's gradients say what its outputs do.

    The slope of `sum(R * G(x, c))` for fixed random weights R is measured along directions of random signs by central
    differences, and taken from the gradient; by those of :data:`STEPS` at which the two agree best. Photos are moved
    within the usual budget first, as an attack does (:data:`INSIDE`, :data:`EDGE`). Then the gradient is taken once
    more as an attack takes it: of a sum as small as a mean over all values, of images that come from something else;
    and, where outputs are the same, of all images at once, whatever row each is in.

    Args:
        network: from images to images.
        images: (N, 3, H, W) in [-1, 1].
        condition: the edit of each.
        count: of how many of the first images slopes are measured; None for all.
        seed: of weights and directions.

    Returns:
        The correlation of the two over directions and images, and the size of the gradient's slopes in units of the
        measured ones (root mean squares); of photos that were moved little, of those that were moved far, of the
        gradient as an attack takes it beside the first one, and of that of the whole batch beside those of `count`
        images each, where they fit worst. Both are 1 for exact gradients; where
        outputs do not move at all, 0 and 0, or 1 and 1 where the gradient says so too.

    Example:
        >>> from loraguard.data import DemoFaces
        >>> from loraguard.generators import DemoEditor
        >>> images = torch.stack([face["image"] for face in DemoFaces(2)])
        >>> correlation, ratio = slopes(DemoEditor.pretrained().eval(), images, {"labels": torch.zeros(2, 5)})
        >>> correlation > CORRELATION, RATIO < ratio < 1 / RATIO
        (True, True)
    """
    draws = torch.Generator().manual_seed(seed)
    points = _moved(images, draws)
    count = len(points) if count is None else count
    some, edits = points[:count], {key: value[:count] for key, value in condition.items()}
    with undisturbed(network), seeded(seed):
        leaf = some.clone().requires_grad_()
        with torch.enable_grad():
            given = network(leaf, **edits)
            size = given[0].numel()
            weights = torch.randn((len(points), *given.shape[1:]), generator=draws).to(given) / size**0.5
            gradient = _gradient((weights[:count] * given).sum(), leaf)
    signs = _signs(some, DIRECTIONS, draws)

    def total_of(moved: Tensor) -> Tensor:
        with seeded(seed):
            return (weights[:count] * network(moved, **edits)).double().flatten(1).sum(1)

    def attacked(moved: Tensor, rows: slice) -> Tensor:
        with undisturbed(network):
            return network(moved, **{key: value[rows] for key, value in condition.items()})

    found = _fits(total_of, some, gradient, signs, STEPS, parts=min(2, count))
    alone, in_rows = fits_in_rows(attacked, points, weights, count, seed)
    return min([*found, *in_rows, _fit(alone[:count], gradient.double())], key=_goodness)


def fits_in_rows(
    call: Callable[[Tensor, slice], Tensor], images: Tensor, weights: Tensor, count: int, seed: int = 0
) -> tuple[Tensor, list[Fit]]:
    """Gradients as an attack takes them, of images that come from something else: of few at once, and of all.

    Args:
        call: from some of the images, and which rows they are, to outputs.
        images: (N, C, H, W) in [-1, 1].
        weights: of the sum of outputs whose gradient it is, in their shape. It is taken of a sum as small as a mean.
        count: so many are few.
        seed: of what is drawn.

    Returns:
        The gradients of `count` images after another, (N, C, H, W); and how well that of all at once fits it, for each
        `count` images whose outputs are the same in both.
    """
    scale = 1 / weights.numel()

    def taken(rows: slice) -> tuple[Tensor, Tensor]:
        with seeded(seed), torch.enable_grad():
            leaf = images[rows].clone().requires_grad_()
            given = call(leaf * 1, rows)
            return given.detach(), _gradient(scale * (weights[rows] * given).sum(), leaf).double() / scale

    outputs, together = taken(slice(None))
    alone, found = [], []
    for start in range(0, len(images), count):
        rows = slice(start, start + count)
        given, gradient = taken(rows)
        alone.append(gradient)
        if float((given - outputs[rows]).abs().max()) <= AGREE:
            found.append(_fit(together[rows], gradient))
    return torch.cat(alone), found


def slopes_under_attack(
    network: nn.Module, images: Tensor, condition: Condition, target: Tensor, eps: float, seed: int = 0
) -> Fit:
    """The same of an attack's own loss, where the attack ends: PGD with :data:`ATTACK` steps on this very network.

    A gradient that is hidden where photos are perturbed, or at the size that an attack's loss has, stops it there.

    Args:
        network: from images to images.
        images: (N, 3, H, W) in [-1, 1].
        condition: the edit of each.
        target: what outputs are driven away from.
        eps: the attack's budget, L-infinity.
        seed: of what is drawn.
    """
    draws = torch.Generator().manual_seed(seed)
    with seeded(seed):
        ends = Disrupting(eps, ATTACK)(network, images.clone(), condition, clean=target)
    ends = ends.clamp(-ROOM, ROOM)

    def losses(moved: Tensor) -> Tensor:
        with seeded(seed):
            return (network(moved, **condition) - target).square().flatten(1).double().mean(1)

    leaf = ends.clone().requires_grad_()
    with undisturbed(network), torch.enable_grad():
        with seeded(seed):
            loss = (network(leaf * 1, **condition) - target).square().mean()
        gradient = _gradient(loss, leaf) * len(images)
    return _fits(losses, ends, gradient, _signs(ends, DIRECTIONS // 2, draws), STEPS)[0]


def _moved(images: Tensor, draws: torch.Generator) -> Tensor:
    """Images within the usual budget of these, every second one at its edge."""
    points = images.detach().clamp(EDGE[1] - ROOM, ROOM - EDGE[1])
    for part, (least, most) in enumerate((INSIDE, EDGE)):
        drawn = 2 * torch.rand(points[part::2].shape, generator=draws) - 1
        points[part::2] += (drawn.sign() * (least + (most - least) * drawn.abs())).to(points)
    return points


def _signs(images: Tensor, count: int, draws: torch.Generator) -> list[Tensor]:
    """Directions in which every value goes up or down."""
    return [torch.randint(0, 2, images.shape, generator=draws).to(images) * 2 - 1 for _ in range(count)]


@torch.no_grad()
def _fits(
    total_of: Callable[[Tensor], Tensor],
    images: Tensor,
    gradient: Tensor,
    signs: Sequence[Tensor],
    steps: Sequence[float],
    parts: int = 1,
) -> list[Fit]:
    """For each part of the images (every second one, say), the fit at the step at which it is best.

    Args:
        total_of: from images to a number for each, (N,).
        images: where slopes are measured.
        gradient: of these numbers.
        signs: directions.
        steps: how far images are moved; a longer one only where the shorter does not fit.
        parts: how many.
    """
    said = torch.stack([(gradient.double() * one).flatten(1).sum(1) for one in signs])
    best = [(0.0, 0.0)] * parts
    for step in steps:
        seen = torch.stack([(total_of(images + step * one) - total_of(images - step * one)) / (2 * step)
                            for one in signs])  # fmt: skip
        found = [_fit(said[:, part::parts], seen[:, part::parts]) for part in range(parts)]
        best = [max(pair, key=_goodness) for pair in zip(best, found, strict=True)]
        if all(map(fits, best)):
            break
    return best


def fits(fit: Fit) -> bool:
    """Whether gradients say what outputs do."""
    return fit[0] >= CORRELATION and RATIO <= fit[1] <= 1 / RATIO


def _gradient(total: Tensor, leaf: Tensor) -> Tensor:
    """Zeros where nothing depends on the leaf."""
    found = torch.autograd.grad(total, leaf, allow_unused=True)[0] if total.requires_grad else None
    return torch.zeros_like(leaf) if found is None else found


def _goodness(fit: Fit) -> float:
    return min(fit[0], fit[1], 1 / max(fit[1], 1e-9))


def _fit(said: Tensor, seen: Tensor) -> Fit:
    sizes = said.square().mean().sqrt(), seen.square().mean().sqrt()
    if float(sizes[1]) <= 1e-9:
        silent = float(sizes[0]) <= 1e-9
        return float(silent), float(silent)
    correlation = (said * seen).mean() / (sizes[0] * sizes[1]).clamp_min(1e-30)
    return float(correlation), float(sizes[0] / sizes[1])


def stand_in_fit(channel: Channel, images: Tensor, count: int | None = None) -> float:
    """How well the gradient of what stands in for a channel in attacks says what the channel itself does.

    Args:
        channel: itself.
        images: (N, C, H, W) in [-1, 1].
        count: of how many of the first images slopes are measured; None for all.

    Returns:
        The correlation of their slopes along directions of random signs, for steps of :data:`WIDE`, the best of these;
        0 where the stand-in's gradient is another one in a larger batch.
        About 1 where gradients pass through the channel, 0.4 for WebP and 0.7 for JPEG by their stand-ins.

    Example:
        >>> from loraguard.channels import GaussianBlur
        >>> images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
        >>> round(stand_in_fit(GaussianBlur(1.0), images), 2)
        1.0
    """
    draws, every = torch.Generator().manual_seed(0), images
    images = images[:count]
    leaf = images.clone().requires_grad_()
    with seeded(0), torch.enable_grad():
        given = channel.differentiable()(leaf)
        weights = torch.randn(given.shape, generator=draws).to(given)
        gradient = _gradient((weights * given).sum(), leaf)
    signs = _signs(images, DIRECTIONS // 2, draws)

    def total_of(moved: Tensor) -> Tensor:
        with seeded(0):
            return (weights * channel(moved)).double().flatten(1).sum(1)

    stand_in = channel.differentiable()
    on_every = torch.randn((len(every), *weights.shape[1:]), generator=draws).to(weights)
    _, in_rows = fits_in_rows(lambda moved, rows: stand_in(moved), every, on_every, len(images))
    return _fits(total_of, images, gradient, signs, WIDE)[0][0] if all(map(fits, in_rows)) else 0.0
