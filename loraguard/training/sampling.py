"""The order of the data: the same on every machine, and known at any position without walking there."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


def mixed(seed: int, number: int) -> int:
    """A seed for each number: torch's Mersenne twister takes 32 bits, within which both have to meet.

    Example:
        >>> len({mixed(seed, number) for seed in range(30) for number in range(30)})
        900
    """
    return (seed * 0x9E3779B1 + number * 0x85EBCA77) % 2**32


class EndlessBatches(Sampler[list[int]]):
    """Shuffled indices without end, batch after batch; each pass through the data is another permutation.

    What comes at a position depends on `(seed, position)` alone, so that a run goes on where it was interrupted and
    several processes share the data: of each `processes * batch_size` indices in a row, each process takes its part,
    which together are the batch of one process with that batch size.

    Args:
        length: of the data set.
        batch_size: indices a batch and process.
        seed: of the permutations.
        start: batches that each process has had already.
        process: which process this is.
        processes: how many there are.

    Example:
        >>> from itertools import islice
        >>> whole = list(islice(EndlessBatches(5, 2, seed=0), 5))
        >>> sorted(whole[0] + whole[1] + whole[2][:1])
        [0, 1, 2, 3, 4]
        >>> list(islice(EndlessBatches(5, 2, seed=0, start=3), 2)) == whole[3:]
        True
    """

    def __init__(
        self, length: int, batch_size: int, *, seed: int = 0, start: int = 0, process: int = 0, processes: int = 1
    ) -> None:
        self.length, self.batch_size, self.seed, self.start = length, batch_size, seed, start
        self.process, self.processes = process, processes

    def _permutation(self, epoch: int) -> list[int]:
        return torch.randperm(self.length, generator=torch.Generator().manual_seed(mixed(self.seed, epoch))).tolist()

    def __iter__(self) -> Iterator[list[int]]:
        position = (self.start * self.processes + self.process) * self.batch_size
        epoch, permutation = -1, []
        while True:
            batch = []
            for at in range(position, position + self.batch_size):
                if at // self.length != epoch:
                    epoch = at // self.length
                    permutation = self._permutation(epoch)
                batch.append(permutation[at % self.length])
            yield batch
            position += self.processes * self.batch_size
