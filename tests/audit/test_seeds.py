"""A defense that draws nothing is crafted once for all seeds; one that draws anything, for each of them."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from peft import PeftModel
from setups import Flip
from torch import Tensor

from loraguard.audit import AuditResult, run_audit
from loraguard.data import DemoFaces

DRAWS: dict[str, Callable[[], float]] = {
    "nothing": lambda: 0.0,
    "torch": lambda: float(torch.rand(())),
    "numpy": lambda: float(np.random.rand()),  # noqa: NPY002 - as defenses do
    "python": random.random,
}


def audited(model: PeftModel, faces: DemoFaces, source: str, seeds: list[int]) -> tuple[AuditResult, int]:
    calls = []

    class Drawing(Flip):
        def __call__(self, generator: object, images: Tensor, *inputs: object, **more: object) -> Tensor:
            calls.append(len(images))
            moved = super().__call__(generator, images, *inputs, **more)
            return images + (moved - images) * (1 - 0.5 * DRAWS[source]())

    result = run_audit(
        model, faces, defenses={"d": Drawing()}, patches={"standard": None}, seeds=seeds, batch_size=5,
        disable_tqdm=True,
    )  # fmt: skip
    return result, len(calls)


@pytest.mark.parametrize("source", DRAWS)
def test_crafted_as_often_as_it_is_drawn_for(model: PeftModel, faces: DemoFaces, source: str) -> None:
    once, calls = audited(model, faces, source, [0])
    twice, more = audited(model, faces, source, [0, 1])
    jobs = 2 * 3  # without a leak and with it, on three batches
    assert more - calls == (0 if source == "nothing" else jobs)
    for knowledge in ("no-leak", "leak"):
        first, second = twice["standard", knowledge].values["mse"]
        assert torch.equal(first, once["standard", knowledge].values["mse"][0])
        assert torch.equal(first, second) == (source == "nothing")
