"""A hash of what is on a photo, whatever its colours and brightness are, and the search for versions by such hashes.

The hash is a SimHash (Charikar, STOC 2002) of a photo's gradients: of the mean of its colours at 16 x 16 pixels, the
signs of 512 random projections of all differences between neighbours. Two photos differ in as many bits as the angle
between their gradients has of half a turn. Every photo has two: of the whole, and of its middle, so that a photo is
also found in a larger one that it was cropped from, or behind borders that a shift or a turn has left.

Versions are made of the photo that is looked for, when it is looked for: mirrored, turned, cropped, shifted. From the
nearest ones of a coarse grid the search goes on by smaller and smaller random steps.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import product

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

BITS = 512
"""Of each hash."""

NEAR = (38, 47)
"""Photos whose hashes of the whole, or of the middle, differ in so many bits or less are versions of one photo."""

MIDDLE = 0.7
"""The part of height and width that the middle has."""

SIDE = 16
"""Of what is hashed, in pixels."""

_THUMBNAIL = 64
_SOURCES = (2 * SIDE, round(2 * SIDE / MIDDLE))  # so that a pixel of what is hashed is about two wide, whole or middle
_FAR, _NEARER = 140, 0.84
_CANDIDATES = 6
_STEPS, _DRAWS = 6, 24
_STEP, _SMALLER = 0.09, 0.7
_AT_ONCE, _KNOWN_AT_ONCE = 8, 16_384


def thumbnails(images: Tensor) -> Tensor:
    """Images (N, 3, H, W), or of any channels, as the means of their colours, small: (N, 1, 64, 64)."""
    return F.interpolate(images.detach().cpu().float().mean(1, keepdim=True), (_THUMBNAIL, _THUMBNAIL), mode="area")


def shape_hashes(images: Tensor) -> Tensor:
    """Both hashes of images (N, 3, H, W) in [-1, 1], packed: (N, 2, 64), uint8.

    Example:
        >>> ramp = torch.linspace(-1, 1, 24).expand(1, 3, 24, 24)
        >>> darker = shape_hashes(0.5 * ramp - 0.2)
        >>> bool((shape_hashes(ramp) == darker).all()), bool((shape_hashes(ramp.mT) == darker).all())
        (True, False)
    """
    sources = _sources(thumbnails(images))
    poses = torch.tensor([[0.0, 0, 0, 0], [math.log(MIDDLE), 0, 0, 0]]).expand(len(images), -1, -1)
    both = torch.stack([_signs(_sampled(sources[kind], poses[:, kind, None])) for kind in (0, 1)], 1)
    return torch.from_numpy(np.packbits(both.numpy() > 0, axis=-1))


@torch.no_grad()
def distances(small: Tensor, known: Tensor, candidates: int = _CANDIDATES) -> Tensor:
    """How far photos are from known ones, in parts of what a version may be, by the nearer of both hashes.

    Only the nearest candidates of each photo are approached, until they are versions; the rest are upper bounds.

    Args:
        small: thumbnails of photos, (N, 1, 64, 64).
        known: hashes of others, (M, 2, 64), uint8.
        candidates: for each photo and hash.

    Returns:
        (N, M); versions are those up to 1.
    """
    found = torch.full((len(small), len(known)), math.inf)
    for first in range(0, len(known), _KNOWN_AT_ONCE):
        part = slice(first, first + _KNOWN_AT_ONCE)
        signs = torch.from_numpy(np.unpackbits(known[part].numpy(), axis=-1).astype(np.float32) * 2 - 1)
        for start in range(0, len(small), _AT_ONCE):
            rows = slice(start, start + _AT_ONCE)
            found[rows, part] = _nearest(small[rows], signs, candidates)
    return found


def _nearest(small: Tensor, signs: Tensor, candidates: int) -> Tensor:
    """The same of a few photos, and of known hashes as signs (M, 2, 512)."""
    found = torch.full((len(small), len(signs)), math.inf)
    for kind, source in enumerate(_sources(small)):
        turned = torch.stack([one.rot90(turns, (2, 3)) for one in (source, source.flip(3)) for turns in range(4)], 1)
        coarse = _Coarse(turned, signs, kind)
        near, which = coarse.bits.topk(min(candidates, len(signs)), 1, largest=False)
        photo, at = (near <= _FAR).nonzero(as_tuple=True)
        bits, other = coarse.bits.clone(), which[photo, at]
        if len(photo):
            bits[photo, other] = _approached(turned, coarse, photo, other, signs[other, kind], NEAR[kind])
        found = torch.minimum(found, bits / NEAR[kind])
    return found


class _Coarse:
    """For each photo and each known hash the nearest version of the grid.

    Attributes:
        bits: that differ, (N, M).
        turn: how the photo is mirrored and turned, (N, M), of 8.
        pose: how the version is cropped, (N, M, 4); see :func:`_sampled`.
        colours: -1 where the hash is nearer with all colours inverted, or else 1, (N, M).
    """

    def __init__(self, turned: Tensor, signs: Tensor, kind: int) -> None:
        turns, poses = _grid(kind)
        versions = _sampled(turned[:, turns].flatten(0, 1), poses.repeat(len(turned), 1)[:, None])
        likeness = _signs(versions).unflatten(0, (len(turned), -1)) @ signs[:, kind].T
        most, at = likeness.abs().max(1)
        self.bits = (BITS - most) / 2
        self.turn, self.pose = turns[at], poses[at]
        self.colours = likeness.gather(1, at[:, None])[:, 0].sign()


def _approached(turned: Tensor, coarse: _Coarse, photo: Tensor, other: Tensor, target: Tensor, near: int) -> Tensor:
    """How many bits differ at the nearest version that is found by random steps, smaller and smaller ones.

    What has not come near enough after some of them is given up, and what is a version already needs no more.
    """
    source = turned[photo, coarse.turn[photo, other]]
    pose, bits = coarse.pose[photo, other], coarse.bits[photo, other]
    target = target * coarse.colours[photo, other][:, None]
    for step, draws in enumerate(_draws()):
        on = ((bits > near) & (bits <= _FAR * _NEARER**step)).nonzero()[:, 0]
        if not len(on):
            break
        tried = pose[on, None] + _STEP * _SMALLER**step * draws
        signs = _signs(_sampled(source[on], tried)).unflatten(0, tried.shape[:2])
        least, at = ((BITS - (signs * target[on, None]).sum(2)) / 2).min(1)
        better = least < bits[on]
        pose[on] = torch.where(better[:, None], tried[torch.arange(len(on)), at], pose[on])
        bits[on] = torch.where(better, least, bits[on])
    return bits


def _sources(small: Tensor) -> list[Tensor]:
    """What is sampled for a hash of the whole, and of the middle."""
    return [F.interpolate(small, (side, side), mode="bilinear", antialias=True) for side in _SOURCES]


def _sampled(sources: Tensor, poses: Tensor) -> Tensor:
    """Versions (N * V, 1, 16, 16) of photos (N, 1, h, w).

    Args:
        sources: the photos.
        poses: (N, V, 4), of the part that is kept: logarithm of its size, angle in radians, and where its centre is,
            down and to the right, in [-1, 1]. What is beyond the border repeats it.
    """
    count, versions = poses.shape[:2]
    size, angle, down, right = poses.flatten(0, 1).unbind(1)
    cos, sin = size.exp() * angle.cos(), size.exp() * angle.sin()
    maps = torch.stack([torch.stack([cos, -sin, right], 1), torch.stack([sin, cos, down], 1)], 1)
    grid = F.affine_grid(maps, [len(maps), 1, SIDE, SIDE], align_corners=False)
    tall = grid.unflatten(0, (count, versions)).flatten(1, 2)
    found = F.grid_sample(sources, tall, padding_mode="border", align_corners=False)
    return found.unflatten(2, (versions, SIDE)).transpose(1, 2).flatten(0, 1)


def _signs(versions: Tensor) -> Tensor:
    """Their hashes as signs, (N, 512)."""
    pixels = versions[:, 0]
    gradients = torch.cat([pixels.diff(dim=1).flatten(1), pixels.diff(dim=2).flatten(1)], 1)
    return (gradients @ torch.from_numpy(directions(BITS, gradients.shape[1])).T).sign_()


@cache
def _grid(kind: int) -> tuple[Tensor, Tensor]:
    """Where the search begins: turns (V,) and poses (V, 4).

    Of the whole these are versions that a known photo may be; of the middle, what its middle may be of a photo that is
    a part of the known one, or has another border.
    """
    ways = (
        ((1.0, 0.1), (1.0, 0.2), (0.93, 0.07), (0.86, 0.13), (0.8, 0.18)),
        ((MIDDLE, 0.1), (MIDDLE, 0.2), (MIDDLE / 0.93, 0.08), (MIDDLE / 0.86, 0.15), (MIDDLE / 0.8, 0.24)),
    )
    sizes = dict(ways[kind])
    middles = [(math.log(size), 0.0, 0, 0) for size in sizes]
    middles += [(math.log(size), math.radians(angle), 0, 0) for size in [*sizes][:2] for angle in (-8, 8)]
    poses = middles + [
        (math.log(size), 0.0, down * most, right * most)
        for size, most in ways[kind]
        for down, right in product((-1, 0, 1), repeat=2)
        if down or right
    ]
    rows = [(turn, one) for turn in range(8) for one in (poses if turn in (0, 4) else middles)]
    return torch.tensor([turn for turn, _ in rows]), torch.tensor([one for _, one in rows])


@cache
def _draws() -> Tensor:
    """Steps of the search, (steps, draws, 4): uniform, and half as long in size and angle as in place."""
    raw = np.random.PCG64(1).random_raw(_STEPS * _DRAWS * 4).astype(np.float64) / 2**63 - 1
    drawn = torch.from_numpy(raw).float().view(_STEPS, _DRAWS, 4)
    return drawn * torch.tensor([1.0, 1.0, 1.7, 1.7])


@cache
def directions(bits: int, length: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Random signs (bits, length), the same with every version of NumPy: its raw bits are promised to stay."""
    raw = np.random.PCG64(0).random_raw(bits * length // 64)
    drawn = np.unpackbits(raw.astype("<u8").view(np.uint8))
    return drawn.reshape(bits, length).astype(np.float32) * 2 - 1
