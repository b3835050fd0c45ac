"""What a network with adapters has to compute, written out rank by rank in float64; for tests/tuner.

Against these formulas are outputs compared and, as they can be differentiated, gradients.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D
from tuner_kinds import plain

from loraguard.tuner import GATES, GatedLoraLayer

STATIC = [name for name in GATES if GATES[name].mergeable]


class Truth:
    """What an adapted network has to compute.

    Args:
        group: Of kinds of base layers.
        option: Of the adapters.
        model: The network, of which parameters alone are read.
    """

    def __init__(self, group: str, option: str, model: nn.Module) -> None:
        self.option, self.plain = option, plain(group, option)
        places: dict[str, Any] = {n: m for n, m in model.named_modules() if isinstance(m, GatedLoraLayer)}
        self.layers = {n.removeprefix("base_model.model.").replace(".base_layer", ""): m for n, m in places.items()}
        self.leaves = {
            id(parameter): parameter.detach().double().requires_grad_()
            for name, parameter in model.named_parameters()
            if ".lora_" in name
        }

    def __call__(
        self, x: list[Tensor], adapters: dict[str, float], times: float = 1.0, opening: float | None = None
    ) -> list[Tensor]:
        """The outputs in float64.

        Args:
            x: The inputs.
            adapters: The alpha of each that is active.
            times: What updates are multiplied with, beside gates and scales.
            opening: Of all gates; by their parameters where None.
        """
        x = [one.double() if one.is_floating_point() else one for one in x]
        static = all(layer.lora_gate[name].mergeable for layer in self.layers.values() for name in adapters)
        if static or opening is not None:
            return self._run(x, self._weights(adapters, times, opening, {}))
        y = self.plain(*x)
        for name, alpha in adapters.items():  # gates on the input are the formula that test_gates.py checks
            updates = self._run(x, self._weights({name: alpha}, 1.0, 1.0, dict.fromkeys(("weight", "bias"), 0.0)))
            gates = [layer.lora_gate[name] for layer in self.layers.values()]
            for i, (gate, update) in enumerate(zip(gates, updates, strict=True)):
                parameters = {key: self.leaves[id(p)] for key, p in gate.named_parameters()}
                y[i] = y[i] + times * torch.func.functional_call(gate, parameters, (update, lambda u: u, 1.0))
        return y

    def _run(self, x: list[Tensor], weights: dict[str, Tensor]) -> list[Tensor]:
        return torch.func.functional_call(self.plain, weights, tuple(x))

    @staticmethod
    def wide(x: list[Tensor]) -> list[Tensor]:
        """The inputs in float64, as leaves."""
        return [
            one.detach().double().requires_grad_(one.requires_grad) if one.is_floating_point() else one for one in x
        ]

    def _weights(
        self, adapters: dict[str, float], times: float, opening: float | None, base: dict[str, float]
    ) -> dict[str, Tensor]:
        """By name, weights and biases of the plain network with those updates; `base` multiplies its own."""
        found = {}
        for name, layer in self.layers.items():
            module = self.plain.get_submodule(name)
            prefix = "in_proj_" if isinstance(module, nn.MultiheadAttention) else ""
            weight, bias = (getattr(module, f"{prefix}{part}", None) for part in ("weight", "bias"))
            whole, whole_bias = base.get("weight", 1.0) * weight, bias
            if bias is not None:
                whole_bias = base.get("bias", 1.0) * bias
            for adapter, alpha in adapters.items():
                update, update_of_bias = self._update(layer, adapter, weight, module, opening)
                scale = times * alpha / len(layer.lora_A[adapter].weight) ** 0.5
                if self.option == "dora":
                    magnitude = self.leaves[id(layer.lora_magnitude_vector[adapter].weight)]
                    whole = whole + rescaled(weight + scale * update, magnitude, module) - weight
                else:
                    whole = whole + scale * update
                if update_of_bias is not None:
                    whole_bias = whole_bias + scale * update_of_bias
            found[f"{name}.{prefix}weight"] = whole
            if bias is not None:
                found[f"{name}.{prefix}bias"] = whole_bias
        return found

    def _update(
        self, layer: Any, adapter: str, weight: Tensor, module: Any, opening: float | None
    ) -> tuple[Tensor, Tensor | None]:
        """`gate * B A` as a weight, and `gate * b`."""
        gate = layer.lora_gate[adapter]
        a, b = (self.leaves[id(factor[adapter].weight)] for factor in (layer.lora_A, layer.lora_B))
        groups, r = getattr(module, "groups", 1), len(a)
        n_out, n_rank = len(b) // groups, r // groups
        opened = self._openings(gate, (groups, n_out, n_rank), opening)
        b = b.reshape(groups, n_out, n_rank) * opened
        parts = [
            sum(torch.outer(b[g, :, j], a[g * n_rank + j].flatten()) for j in range(n_rank)) for g in range(groups)
        ]
        bias = layer.lora_B[adapter].bias
        if bias is not None:  # a gate per rank leaves it alone
            along_ranks = gate.mergeable and gate.shape(2, 2, 2)[2] > 1
            bias = self.leaves[id(bias)] * (1.0 if along_ranks and opening is None else opened[:, :, 0].flatten())
        return from_rows(torch.cat(parts), weight, module), bias

    def _openings(self, gate: Any, sizes: tuple[int, int, int], opening: float | None) -> Tensor:
        """What B's values are multiplied with: by the logits and the shape that the gate declares."""
        ones = torch.ones(sizes, dtype=torch.float64)
        logits = [self.leaves[id(parameter)] for parameter in gate.parameters()]
        if opening is not None:
            return opening * ones if logits else ones
        return ones / (1 + torch.exp(-logits[0].view(gate.shape(*sizes)))) if logits else ones


def to_rows(weight: Tensor, module: Any) -> Tensor:
    """A weight as (out, in / G * prod(k))."""
    if isinstance(module, (Conv1D, nn.Embedding)):
        return weight.T
    if getattr(module, "transposed", False):
        weight = torch.cat([one.transpose(0, 1) for one in weight.chunk(module.groups)])
    return weight.flatten(1)


def from_rows(rows: Tensor, like: Tensor, module: Any) -> Tensor:
    """Undo `to_rows`."""
    if isinstance(module, (Conv1D, nn.Embedding)):
        return rows.T
    if getattr(module, "transposed", False):
        width = len(like) // module.groups
        parts = [one.view(-1, width, *like.shape[2:]).transpose(0, 1) for one in rows.chunk(module.groups)]
        return torch.cat(parts)
    return rows.view(like.shape)


def rescaled(whole: Tensor, magnitude: Tensor, module: Any) -> Tensor:
    """DoRA: each output feature of a weight at its magnitude, by a norm that has no gradient."""
    rows = to_rows(whole, module)
    norms = rows.detach().square().sum(1).sqrt()
    return from_rows((magnitude / norms)[:, None] * rows, whole, module)


def randomize(model: nn.Module) -> None:
    """Open every gate by another amount, and give biases of B and magnitudes values as if they had learnt."""
    for name, parameter in model.named_parameters():
        if ".lora_gate." in name or (".lora_B." in name and name.endswith(".bias")):
            nn.init.normal_(parameter)
        elif "lora_magnitude_vector" in name:
            parameter.data *= torch.linspace(0.5, 1.7, len(parameter))
