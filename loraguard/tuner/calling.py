"""Calls and switches of an adapted network, where several threads have it; the rules stand in `threads`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraModel
from peft.utils.other import AuxiliaryTrainingWrapper

from .layer import GatedLoraLayer
from .threads import Calls, alone


class WatchedCalls(LoraModel):
    """A tuner whose switches are refused while another thread is inside a call, and whose calls name adapters apart."""

    @property
    def calls(self) -> Calls:
        """Which threads are inside a call of the network; adapted layers share it."""
        if "_calls" not in vars(self):
            layers = (one for one in self.model.modules() if isinstance(one, GatedLoraLayer))
            vars(self)["_calls"] = next((layer.calls for layer in layers), None) or Calls()
        found: Calls = vars(self)["_calls"]
        return found

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Around each call of a PeftModel. PEFT names adapters by hooks, which other threads would run into."""
        if torch.compiler.is_compiling():
            with LoraModel._enable_peft_forward_hooks(self, *args, **kwargs):
                yield
            return
        names = kwargs.get("adapter_names")
        by_hooks = names is not None and self._names_by_hooks(kwargs)
        with self.calls.changing() if by_hooks else self.calls.running():
            if names is None or by_hooks:
                with LoraModel._enable_peft_forward_hooks(self, *args, **kwargs):
                    yield
            else:
                self._check_names(names)
                with self.calls.named(names):
                    yield

    def _names_by_hooks(self, kwargs: dict[str, Any]) -> bool:
        """Whether more than adapted layers is told the names: encoders that stand apart, copies of modules, beams."""
        return (
            hasattr(self.model, "get_encoder")
            or (kwargs.get("num_beams") or 1) > 1
            or any(isinstance(module, AuxiliaryTrainingWrapper) for module in self.model.modules())
        )

    def _check_names(self, names: list[str]) -> None:
        if self.training:
            raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
        known = {name for one in self.model.modules() if isinstance(one, GatedLoraLayer) for name in one.lora_A}
        if unknown := set(names) - known - {"__base__"}:
            raise ValueError(f"Trying to infer with non-existing adapter(s): {', '.join(sorted(unknown))}")

    set_adapter = alone(LoraModel.set_adapter)
    enable_adapter_layers = alone(LoraModel.enable_adapter_layers)
    disable_adapter_layers = alone(LoraModel.disable_adapter_layers)
    delete_adapter = alone(LoraModel.delete_adapter)
    unmerge_adapter = alone(LoraModel.unmerge_adapter)
