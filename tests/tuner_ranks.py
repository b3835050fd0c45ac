"""One step of an adapter in two processes, for tests/tuner/test_deployment.py."""

from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn

from loraguard.tuner import GatedLoraConfig


def model_and_batch() -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.ReLU(), nn.ConvTranspose2d(4, 3, 2))
    model = get_peft_model(net.double(), GatedLoraConfig(r=2, init_lora_weights="paper"))
    return model.train(), torch.randn(4, 3, 6, 6).double()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def step_in_a_rank(folder: Path) -> None:
    """With half of the batch."""
    model, batch = model_and_batch()
    rank = torch.distributed.get_rank()
    parallel = nn.parallel.DistributedDataParallel(model)
    parallel(batch[2 * rank : 2 * rank + 2]).square().mean().backward()
    save_file(gradients(model), folder / f"{rank}.safetensors")
