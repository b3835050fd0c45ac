"""The training step of the authors' release, written down from its description: what benchmarks compare with.

A second copy of the network for the targets, the clean forward twice, adapters as branches (a convolution, then a
matrix by einsum), stock InstanceNorm, and PGD by full backward passes that fill the parameters' gradients as well.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional as F

from loraguard.tuner import GatedLoraLayer


class Branch(nn.Module):
    """The release's adapted layer: the base layer, and beside it A and then B by einsum."""

    def __init__(self, layer: GatedLoraLayer, adapter: str = "default") -> None:
        super().__init__()
        self.base_layer = copy.deepcopy(layer.base_layer).requires_grad_(False)
        self.a = copy.deepcopy(layer.lora_A[adapter])
        self.b = nn.Parameter(layer.lora_B[adapter].weight.detach().flatten(1).clone())
        self.gate = nn.Parameter(layer.lora_gate[adapter].weight.detach().clone())
        self.scale = layer.scaling[adapter]

    def forward(self, x: Tensor) -> Tensor:
        """The base layer's output and the update."""
        update = torch.einsum("or,nrhw->nohw", self.b, self.a(x))
        return self.base_layer(x) + torch.sigmoid(self.gate) * self.scale * update


def with_modules(network: nn.Module, replace: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """The network with some of its modules replaced."""
    for name, child in network.named_children():
        other = replace(child)
        if other is None:
            with_modules(child, replace)
        else:
            setattr(network, name, other)
    return network


def stock_norm(module: nn.Module) -> nn.Module | None:
    """Instance norm as torch has it, and as the official StarGAN does."""
    if not isinstance(module, (nn.InstanceNorm2d, nn.GroupNorm)):
        return None
    channels, tracks = len(module.weight), isinstance(module, nn.InstanceNorm2d)
    norm = nn.InstanceNorm2d(channels, affine=True, track_running_stats=tracks).to(module.weight)
    norm.load_state_dict(module.state_dict())
    norm.requires_grad_(False)
    return nn.Sequential(norm, nn.ReLU(inplace=True)) if getattr(module, "relu", False) else norm


def contiguous(network: nn.Module) -> nn.Module:
    """The network with features in torch's default memory format, whatever it would choose itself."""
    network.main.register_forward_pre_hook(lambda _, args: args[0].contiguous())
    return network


class Release:
    """The authors' step, on copies of our network and adapter.

    Args:
        model: whose generator and whose adapter's present weights it starts from.
        eps: budget of its PGD.
        steps: of it.
        step_size: of one of them.
    """

    def __init__(self, model: PeftModel, *, eps: float = 0.05, steps: int = 10, step_size: float = 0.01) -> None:
        self.eps, self.steps, self.step_size = eps, steps, step_size
        original = with_modules(copy.deepcopy(model).unload(), stock_norm).requires_grad_(False)
        self.original = contiguous(original).train()
        patched = with_modules(
            copy.deepcopy(model).get_base_model(), lambda m: Branch(m) if isinstance(m, GatedLoraLayer) else None
        )
        self.patched = contiguous(with_modules(patched, stock_norm)).train()
        self.parameters = [p for p in self.patched.parameters() if p.requires_grad]

    def step(self, images: Tensor, labels: Tensor, start: Tensor) -> tuple[float, float]:
        """Accumulate gradients; gives the clean and the adversarial loss."""
        with torch.no_grad():
            target = self.original(images, labels)
            clean = self.patched(images, labels)
        adversarial = start.clone()
        for _ in range(self.steps):
            adversarial.requires_grad_(True)
            distance = F.mse_loss(self.patched(adversarial, labels), clean)
            self.patched.zero_grad()
            distance.backward()
            moved = adversarial.detach() + self.step_size * adversarial.grad.sign()
            adversarial = (images + (moved - images).clamp(-self.eps, self.eps)).clamp(-1, 1)
        self.patched.zero_grad()
        losses = [F.mse_loss(self.patched(x, labels), target) for x in (images, adversarial)]
        sum(losses).backward()
        return losses[0].item(), losses[1].item()

    def copy_to(self, model: PeftModel, adapter: str = "default") -> None:
        """Put its adapter's weights into ours."""
        branches = [module for module in self.patched.modules() if isinstance(module, Branch)]
        layers = [module for module in model.modules() if isinstance(module, GatedLoraLayer)]
        with torch.no_grad():
            for branch, layer in zip(branches, layers, strict=True):
                layer.lora_A[adapter].weight.copy_(branch.a.weight)
                layer.lora_B[adapter].weight.copy_(branch.b.reshape(layer.lora_B[adapter].weight.shape))
                layer.lora_gate[adapter].weight.copy_(branch.gate)
