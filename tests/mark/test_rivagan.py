"""RivaGAN in torch against the very ONNX files, by onnxruntime."""

from __future__ import annotations

from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from skimage import data
from torch import Tensor

from loraguard.mark import Mark, MarkReader
from loraguard.mark.rivagan import RivaGAN
from loraguard.pixels import from_bytes


@pytest.fixture(scope="module")
def photo() -> Tensor:
    return from_bytes(torch.from_numpy(data.chelsea()[:64, 60:140].copy()).permute(2, 0, 1)[None])


def session(part: str) -> onnxruntime.InferenceSession:
    folder = Path(str(distribution("invisible-watermark").locate_file("imwatermark")))
    return onnxruntime.InferenceSession(str(folder / f"rivagan_{part}.onnx"))


def test_it_reads_as_the_decoder_does(photo: Tensor) -> None:
    """Two convolutions of 121 x 32 products each, in single precision."""
    (expected,) = session("decoder").run(None, {"frame": photo[:, :, None].numpy()})
    assert np.allclose(RivaGAN()(photo).numpy() + 0.52, expected, atol=1e-5)


def test_it_writes_as_the_encoder_does(photo: Tensor) -> None:
    word = torch.tensor([[0.0, 1.0] * 16])
    (expected,) = session("encoder").run(None, {"frame": photo[:, :, None].numpy(), "data": word.numpy()})
    assert np.allclose(RivaGAN().write(photo, word).numpy(), expected[:, :, 0].clip(-1, 1), atol=1e-5)


def test_gradients_pass_through_it_to_the_image(photo: Tensor) -> None:
    image = photo[:, :, :16, :16].double().requires_grad_()
    network = RivaGAN().double()
    (gradient,) = torch.autograd.grad(network(image)[0, 0], image)
    step = torch.zeros_like(image)
    step[0, 1, 8, 8] = 1e-4
    with torch.no_grad():
        slope = (network(image + step) - network(image - step))[0, 0] / 2e-4
    assert float(gradient[0, 1, 8, 8]) == pytest.approx(float(slope), rel=1e-4, abs=1e-9)


def test_a_mark_of_it_is_read() -> None:
    whole = from_bytes(torch.from_numpy(data.chelsea()[:160, :160].copy()).permute(2, 0, 1)[None])
    reading = MarkReader("rivagan", messages=["c0"])(Mark("c0", "rivagan").compose(whole))[0]
    assert (reading.message, reading.bits, reading.found) == ("c0", 32, True)
