"""How the gradients of a step come together, and what is done with them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn


class Gradients:
    """Those of one process, or of several over DDP.

    Args:
        accelerator: whose `prepare` made network and optimizer.
        network: what is called for outputs that are learnt from.
        optimizer: of `parameters`.
        parameters: what learns.
    """

    def __init__(
        self, accelerator: Accelerator, network: Any, optimizer: Any, parameters: Sequence[nn.Parameter]
    ) -> None:
        self.accelerator, self.network, self.optimizer = accelerator, network, optimizer
        self.parameters = parameters

    def collecting(self) -> AbstractContextManager[Any]:
        """Around all backward passes of a step."""
        return nullcontext()

    def no_sync(self) -> AbstractContextManager[Any]:
        """Around those of them in which processes exchange nothing yet."""
        return self.accelerator.no_sync(self.network)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss."""
        self.accelerator.backward(loss)

    def clip(self, max_norm: float) -> float:
        """Clip the gradients of all parameters together; gives their norm before."""
        return float(self.accelerator.clip_grad_norm_(self.parameters, max_norm))

    def step(self) -> None:
        """Move the parameters, and clear the gradients."""
        self.optimizer.step()
        self.optimizer.zero_grad()

    def drop(self) -> None:
        """Clear the gradients; the parameters stay."""
        self.optimizer.zero_grad()
        self.optimizer.step()  # passes over parameters without a gradient; schedule and scaler move on in its wake

    def close(self) -> None:
        """Leave the model as it was, for another training."""


class ZeroGradients(Gradients):
    """Those of DeepSpeed's ZeRO-1 and ZeRO-2, which shard gradients and optimizer, and leave the weights whole.

    `Accelerator.backward` would take DeepSpeed's step after each loss, the bad ones too. So the engine is called here.
    """

    def collecting(self) -> AbstractContextManager[Any]:
        """One reduction at the end of it."""
        return self.network.coalesce_grad_reduction()

    def no_sync(self) -> AbstractContextManager[Any]:
        """Nothing more: all of `collecting` is one."""
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss, and take no step."""
        self.network.backward(loss)

    def clip(self, max_norm: float) -> float:
        """The norm; the engine clips in its step."""
        norm = float(self.network.optimizer.scaled_global_norm())
        return norm if norm >= 0 else float("nan")  # -1 says infinity or NaN

    def step(self) -> None:
        """Move the parameters, and clear the gradients."""
        self.network.step()

    def drop(self) -> None:
        """Clear the gradients; the parameters stay."""
        self.network.optimizer.zero_grad()
        self.network.optimizer.averaged_gradients = {}  # what ZeRO's own step does after an overflow

    def close(self) -> None:
        """Take the engine's hooks off the model, or they would get in the way of the next one's."""
        self.network.destroy()


def gradients_of(accelerator: Accelerator, network: Any, optimizer: Any, model: nn.Module) -> Gradients:
    """Those of everything that learns in a model.

    Args:
        accelerator: whose `prepare` made network and optimizer.
        network: what is called for outputs that are learnt from.
        optimizer: of all parameters that learn.
        model: whose parameters they are.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kind = ZeroGradients if accelerator.distributed_type == "DEEPSPEED" else Gradients
    return kind(accelerator, network, optimizer, parameters)


def asked_for(kind: str) -> bool:
    """Whether `accelerate launch` was told to use "DEEPSPEED" or "FSDP"."""
    return os.environ.get(f"ACCELERATE_USE_{kind}", "false").lower() == "true"


def set_up_zero(accelerator: Accelerator, batch_size: int, max_norm: float) -> None:
    """Give DeepSpeed the settings that are the training's.

    Raises:
        ValueError: for a stage, offloading or precision under which a step could not run as it should.
    """
    plugin: Any = accelerator.state.deepspeed_plugin
    if plugin.zero_stage not in (1, 2):
        raise ValueError(
            f"ZeRO stage {plugin.zero_stage} is not supported, 1 and 2 are: 3 shards the weights, which a step folds "
            "the patch into, and 0 shards nothing (use DDP, examples/configs/multi_gpu.yaml)."
        )
    devices = {str(plugin.offload_optimizer_device), str(plugin.offload_param_device)}
    if devices != {"none"}:
        raise ValueError(f"DeepSpeed's offloading to {max(devices - {'none'})} is not supported; set it to none.")
    if accelerator.mixed_precision != "no":
        raise ValueError(
            f"mixed_precision={accelerator.mixed_precision!r} with DeepSpeed would turn the generator's own weights "
            "into it; use 'no', or DDP (examples/configs/multi_gpu.yaml)."
        )
    plugin.deepspeed_config.update(
        train_micro_batch_size_per_gpu=batch_size,
        gradient_accumulation_steps=1,  # batches are added up in `collecting`
        gradient_clipping=0.0 if max_norm == float("inf") else max_norm,
    )
