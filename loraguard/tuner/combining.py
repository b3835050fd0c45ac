"""New adapters as weighted combinations of given ones, with their gates taken into account."""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal, cast

import torch
from peft import LoraModel
from peft.utils import merge_utils
from peft.utils.other import _freeze_adapter
from torch import Tensor

from .config import GatedLoraConfig
from .layer import GatedLoraLayer
from .threads import alone

Combination = Literal[
    "svd",
    "linear",
    "cat",
    "ties",
    "ties_svd",
    "dare_ties",
    "dare_linear",
    "dare_ties_svd",
    "dare_linear_svd",
    "magnitude_prune",
    "magnitude_prune_svd",
]
Sources = list[tuple[str, float]]
# From tensors, and a weight for each, to one tensor.
Rule = Callable[[list[Tensor], Tensor], Tensor]


class WeightedAdapters(LoraModel):
    """`add_weighted_adapter` for adapters whose gates and scales differ.

    PEFT's own takes no notice of gates, nor of the square root in rsLoRA's scale, and would concatenate the ranks of
    grouped layers in the wrong order.
    """

    @alone
    @torch.no_grad()
    def add_weighted_adapter(
        self,
        adapters: list[str],
        weights: list[float],
        adapter_name: str,
        combination_type: Combination = "svd",
        svd_rank: int | None = None,
        svd_clamp: float | None = None,
        svd_full_matrices: bool = True,
        svd_driver: str | None = None,
        density: float | None = None,
        majority_sign_method: Literal["total", "frequency"] = "total",
    ) -> None:
        """Add an adapter whose update is the weighted sum of the given adapters' updates, gates included.

        The sum is exact for `"cat"`, for `"svd"` where the rank suffices, and for a single adapter; see
        `peft.LoraModel.add_weighted_adapter` for the other combinations and for the arguments. The new gates
        start at the `gate_init` of the first adapter, and B makes up for it. Nothing happens where
        `adapter_name` exists.

        Raises:
            ValueError: If an adapter does not exist, the combination is unknown or needs a `density`, or it needs
                equal ranks and finds others.
        """
        if adapter_name in self.peft_config:
            return
        if with_magnitude := [name for name in adapters if getattr(self.peft_config.get(name), "use_dora", False)]:
            raise ValueError(
                f"{with_magnitude} have magnitudes (use_dora=True), and a sum of such updates is no adapter of low "
                "rank. Make them active together instead, which adds their updates, or merge them."
            )
        combination, r, targets = self._check_add_weighted_adapter(adapters, combination_type, svd_rank)
        for _, layer in self._layers(adapters):
            for name in filter(layer.lora_A.__contains__, adapters):
                layer.gain(name)  # raises where there is no weight to combine
        rule = _rule(combination, density, majority_sign_method)
        ranks = {name: _rank(layer, adapters, combination, svd_rank) for name, layer in self._layers(adapters)}
        self.peft_config[adapter_name] = replace(
            cast(GatedLoraConfig, self.peft_config[adapters[0]]),
            r=r,
            lora_alpha=r,
            target_modules=targets,
            alpha_pattern={},
            rank_pattern={f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != r},
            lora_bias=any(cast(GatedLoraConfig, self.peft_config[name]).lora_bias for name in adapters),
            provenance=None,  # the first adapter's is not its own
        )
        self.inject_adapter(self.model, adapter_name)
        _freeze_adapter(self.model, adapter_name)
        for _, layer in self._layers([adapter_name]):
            weighted = zip(adapters, weights, strict=True)
            sources = [(name, weight) for name, weight in weighted if name in layer.lora_A]
            if combination == "cat":
                a, b = _concatenate(layer, sources)
            elif combination.endswith("svd"):
                rank = layer.r[adapter_name] // layer.groups
                matrices = _combine_updates(layer, sources, rule)
                a, b = _factorize(matrices, rank, svd_clamp, svd_full_matrices, svd_driver)
            else:
                a, b = _combine_factors(layer, sources, rule)
            layer.set_factor_groups(adapter_name, a, b / layer.gain(adapter_name))
            if layer.lora_bias[adapter_name]:
                layer.set_delta_bias(adapter_name, _combine_biases(layer, sources, rule))

    def _layers(self, adapters: list[str]) -> list[tuple[str, GatedLoraLayer]]:
        return [
            (name, module)
            for name, module in self.model.named_modules()
            if isinstance(module, GatedLoraLayer) and any(adapter in module.lora_A for adapter in adapters)
        ]


def _rank(layer: GatedLoraLayer, adapters: list[str], combination: str, svd_rank: int | None) -> int:
    # Not layer.r, which leaves out what prepare_model_for_compiled_hotswap adds.
    ranks = [len(layer.factor_groups(adapter)[0].flatten(0, 1)) for adapter in adapters if adapter in layer.r]
    if combination == "cat":
        return sum(ranks)
    if combination.endswith("svd"):
        r = svd_rank or max(ranks)
        return r + -r % layer.groups
    if len(set(ranks)) > 1:
        raise ValueError(f"combination_type={combination!r} needs equal ranks, found {ranks}; try 'svd' or 'cat'.")
    return ranks[0]


def _rule(combination: str, density: float | None, majority: Literal["total", "frequency"]) -> Rule:
    name = combination.removesuffix("_svd")
    if name not in ("ties", "dare_ties", "dare_linear", "magnitude_prune"):
        return merge_utils.task_arithmetic
    if density is None:
        raise ValueError(f"combination_type={combination!r} needs density, the share of values to keep, in [0, 1].")
    rule = getattr(merge_utils, name)
    return (
        partial(rule, density=density, majority_sign_method=majority)
        if "ties" in name
        else partial(rule, density=density)
    )


def _concatenate(layer: GatedLoraLayer, sources: Sources) -> tuple[Tensor, Tensor]:
    a, b = zip(*(layer.factor_groups(name) for name, _ in sources), strict=True)
    gains = [weight * layer.gain(name) for name, weight in sources]
    return torch.cat(a, 1), torch.cat([one * by for one, by in zip(b, gains, strict=True)], 2)


def _combine_factors(layer: GatedLoraLayer, sources: Sources, rule: Rule) -> tuple[Tensor, Tensor]:
    """Combine A with A and B with B, each weighted by the root of the whole weight; the sign goes to A.

    What of a gate is not the same everywhere goes to B.
    """
    a, b = zip(*(layer.factor_groups(name) for name, _ in sources), strict=True)
    gains = [layer.gain(name) for name, _ in sources]
    b = tuple(one * by / by.mean() for one, by in zip(b, gains, strict=True))
    weights = torch.stack([weight * by.mean() for (_, weight), by in zip(sources, gains, strict=True)])
    roots = weights.abs().sqrt()
    return rule(list(a), roots * weights.sign()), rule(list(b), roots)


def _combine_updates(layer: GatedLoraLayer, sources: Sources, rule: Rule) -> Tensor:
    deltas = [layer.get_delta_weight(name) for name, _ in sources]
    return layer.to_groups(rule(deltas, deltas[0].new_tensor([weight for _, weight in sources])))


def _combine_biases(layer: GatedLoraLayer, sources: Sources, rule: Rule) -> Tensor:
    deltas = [layer.get_delta_bias(name) for name, _ in sources]
    like = next(delta for delta in deltas if delta is not None)
    deltas = [torch.zeros_like(like) if delta is None else delta for delta in deltas]
    return rule(cast(list[Tensor], deltas), like.new_tensor([weight for _, weight in sources]))


def _factorize(
    matrices: Tensor, rank: int, clamp: float | None, full_matrices: bool, driver: str | None
) -> tuple[Tensor, Tensor]:
    """A (G, rank, in) and B (G, out, rank) whose product is nearest to (G, out, in), singular values in B."""
    if matrices.dtype in (torch.float16, torch.bfloat16):
        matrices = matrices.float()
    u, s, vh = torch.linalg.svd(matrices, full_matrices=full_matrices, driver=driver)
    groups, rows, columns = matrices.shape
    a, b = matrices.new_zeros(groups, rank, columns), matrices.new_zeros(groups, rows, rank)
    kept = min(rank, s.shape[-1])
    a[:, :kept], b[:, :, :kept] = vh[:, :kept], u[:, :, :kept] * s[:, None, :kept]
    if clamp is not None:
        bound = torch.quantile(torch.cat([a.flatten(), b.flatten()]), clamp)
        a, b = a.clamp(-bound, bound), b.clamp(-bound, bound)
    return a, b
