"""What the two generators of pix2pix's official code share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping

from PIL import Image
from torch import Tensor, nn

from .preprocessing import preprocessing
from .published import PublishedGenerator

NORMS: dict[str, type[nn.Module]] = {"instance": nn.InstanceNorm2d, "batch": nn.BatchNorm2d}
DROPOUT = 0.5


class Pix2PixGenerator(PublishedGenerator):
    """A generator of https://github.com/junyanz/pytorch-CycleGAN-and-pix2pix, with batch or instance norms.

    Attributes:
        size: sides of the square that photos are resized to.
        input_nc: channels of the images.
    """

    size: int
    input_nc: int

    def transform(self) -> Callable[[Image.Image], Tensor]:
        """The official preprocessing for tests: the whole photo, resized to a square by bicubic interpolation."""
        return preprocessing((self.size, self.size), interpolation="bicubic", channels=self.input_nc)

    @classmethod
    @abstractmethod
    def has_batch_norm(cls, state: Mapping[str, Tensor]) -> bool:
        """Whether a checkpoint is of a network with batch norms."""

    @classmethod
    def without_relics(cls, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Instance norms of torch < 0.4 had running statistics; the official code drops them, too."""
        if cls.has_batch_norm(state):
            return state
        return {name: value for name, value in state.items() if not name.endswith((".running_mean", ".running_var"))}
