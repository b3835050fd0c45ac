"""How natural outputs look without anything to compare them with."""

from __future__ import annotations

import warnings
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from loraguard.pixels import to_bytes


class Brisque:
    """BRISQUE of each image (Mittal et al., IEEE TIP 21:4695, 2012); (N,).

    From statistics of neighbouring pixels, by a regression on people's judgements: about 0 for natural photos, 100 and
    more for distorted ones. Computed by the package `brisque` (the extra `brisque`), which ships the published model.
    Implementations differ (`piq` has another model), so name it beside a figure. It was fitted on photos of some
    hundred pixels; of small or drawn pictures it says little by itself, and something in comparison.

    Raises:
        ImportError: where the package is not installed.

    Example:
        >>> from loraguard.data import DemoFaces
        >>> face = DemoFaces(1)[0]["image"][None]
        >>> plain, noisy = Brisque()(torch.cat([face, (face + 0.3 * torch.randn(face.shape)).clamp(-1, 1)]))
        >>> bool(plain < noisy)
        True
    """

    def __init__(self) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of SciPy, for how it is imported
                from brisque import BRISQUE
        except ImportError as error:
            raise ImportError(f"BRISQUE needs a package: pip install 'loraguard[brisque]' ({error}).") from error

        class Model(BRISQUE):  # type: ignore[misc]  # which has no types
            """Takes features that its own code holds in arrays of one number, which NumPy no longer calls numbers."""

            def scale_features(self, features: Any) -> Any:
                return super().scale_features([np.asarray(one).item() for one in features])

        self._model = Model(url=False)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1] to (N,), in float32.

        An image without any texture has no such statistics; its figure is infinite, as that of a metric that cannot
        say anything.
        """
        pictures = to_bytes(images).permute(0, 2, 3, 1).cpu().numpy()
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            scores = torch.tensor([float(self._model.score(one)) for one in pictures], device=images.device)
        return scores.where(scores.isfinite(), scores.new_tensor(float("inf")))

    def settings(self) -> dict[str, Any]:
        """What computes it, as JSON takes it."""
        return {"package": "brisque", "version": version("brisque")}
