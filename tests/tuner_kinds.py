"""Every kind of base layer, for tests/tuner.

A *group* of kinds stands in one network, side by side, so that PEFT wraps it once. An *option* is what an adapter's
config says beside its gate.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import bitsandbytes
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm
from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
from torchao.quantization.granularity import PerGroup
from transformers.pytorch_utils import Conv1D

IN, OUT = 64, 32  # of quantized layers: their blocks are not smaller


def old_weight_norm(layer: nn.Module) -> nn.Module:
    """By the hook that torch has deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return weight_norm(layer)


def masked(layer: nn.Module) -> nn.Module:
    """Pruned twice: torch puts both masks into one hook."""
    prune.l1_unstructured(layer, "weight", 0.3)
    return prune.random_unstructured(layer, "weight", 0.2)


class Equalized(nn.Module):
    """StyleGAN's equalised learning rate, as a parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        """Scale by the fan-in."""
        return weight * (2 / weight[0].numel()) ** 0.5


def equalized(layer: nn.Module) -> nn.Module:
    """The layer with such a weight."""
    parametrize.register_parametrization(layer, "weight", Equalized())
    return layer


def both(layer: nn.Module) -> nn.Module:
    """One parametrization after another."""
    return parametrizations.spectral_norm(equalized(layer), n_power_iterations=2)


COMPUTED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "spectral_norm": spectral_norm,
    "weight_norm": old_weight_norm,
    "pruned": masked,
    "parametrized spectral norm": parametrizations.spectral_norm,
    "parametrized weight norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
    "equalised": equalized,
    "equalised and spectral norm": both,
}


def by_torchao(settings: Any) -> Callable[[nn.Linear], nn.Module]:
    """What quantizes a layer so."""

    def quantize(layer: nn.Linear) -> nn.Module:
        net = nn.Sequential(layer)
        quantize_(net, settings)
        return net[0]

    return quantize


def eight_bit(layer: nn.Linear) -> nn.Module:
    """By bitsandbytes."""
    quantized = bitsandbytes.nn.Linear8bitLt(IN, OUT, has_fp16_weights=False)
    quantized.load_state_dict(layer.state_dict())
    return quantized.to("cpu")


def four_bit(layer: nn.Linear) -> nn.Module:
    """By bitsandbytes."""
    quantized = bitsandbytes.nn.Linear4bit(IN, OUT, compute_dtype=torch.float32, compress_statistics=False)
    quantized.load_state_dict(layer.state_dict())
    return quantized.to("cpu")


QUANTIZED: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "torchao, int8": by_torchao(Int8WeightOnlyConfig()),
    "torchao, int4": by_torchao(IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))),
    "bitsandbytes, 8 bit": eight_bit,
    "bitsandbytes, 4 bit": four_bit,
}


class Attends(nn.Module):
    """Tokens (N, L, 8) that attend to themselves, in torch's fast path where it may; or to others, under a mask."""

    def __init__(self, bias: bool, others: bool) -> None:
        super().__init__()
        self.attention, self.others = nn.MultiheadAttention(8, 2, bias=bias, batch_first=True), others

    def forward(self, x: Tensor) -> Tensor:
        """Outputs, and where there is a mask the attention's weights, too."""
        if not self.others:
            return self.attention(x, x, x, need_weights=False)[0]
        memory, mask = x[..., 1:, :] * 2, torch.ones(x.shape[-2], x.shape[-2] - 1).triu(1).bool()
        y, weights = self.attention(x, memory, value=memory.flip(-2), attn_mask=mask)
        return torch.cat([y.flatten(-2), weights.flatten(-2)], -1)


class Kind(NamedTuple):
    """A base layer, given whether it is to have a bias whatever is usual for the kind, and the shape of its input."""

    make: Callable[[bool], nn.Module]
    shape: tuple[int, ...]


def encoder() -> nn.Module:
    """Torch's own, of one layer."""
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 1)


GROUPS: dict[str, dict[str, Kind]] = {
    "linear": {
        "linear": Kind(lambda _: nn.Linear(6, 4), (3, 6)),
        "a sequence": Kind(lambda bias: nn.Linear(6, 4, bias=bias), (3, 7, 6)),
        "Conv1D": Kind(lambda _: Conv1D(4, 6), (3, 6)),
    },
    "convolution": {
        "1d": Kind(lambda _: nn.Conv1d(4, 6, 3, stride=2), (3, 4, 9)),
        "2d": Kind(lambda _: nn.Conv2d(4, 6, (3, 2), padding=1, dilation=2), (3, 4, 8, 7)),
        "reflect": Kind(lambda _: nn.Conv2d(4, 6, 3, padding="same", padding_mode="reflect"), (3, 4, 6, 5)),
        "grouped": Kind(lambda bias: nn.Conv2d(4, 6, 3, groups=2, bias=bias), (3, 4, 6, 5)),
        "3d": Kind(lambda _: nn.Conv3d(4, 6, (1, 1, 3), padding_mode="replicate", padding=1), (3, 4, 3, 3, 5)),
    },
    "transposed": {
        "1d": Kind(lambda _: nn.ConvTranspose1d(4, 6, 3, stride=2), (3, 4, 5)),
        "grouped": Kind(lambda _: nn.ConvTranspose2d(4, 6, 3, 2, output_padding=1, groups=2), (3, 4, 5, 4)),
        "3d": Kind(lambda bias: nn.ConvTranspose3d(4, 6, (2, 3, 1), dilation=2, bias=bias), (3, 4, 3, 3, 3)),
    },
    "embedding": {
        "sentences": Kind(lambda _: nn.Embedding(9, 4), (3, 5)),
        "a row": Kind(lambda _: nn.Embedding(9, 4), (3,)),
    },
    "computed": {
        "spectral_norm": Kind(lambda _: spectral_norm(nn.Linear(6, 4)), (3, 6)),
        "weight_norm": Kind(lambda _: old_weight_norm(nn.Conv2d(4, 6, 3)), (3, 4, 6, 5)),
        "pruned": Kind(lambda _: masked(nn.Conv2d(4, 6, 3)), (3, 4, 6, 5)),
        "transposed": Kind(lambda _: parametrizations.spectral_norm(nn.ConvTranspose2d(4, 6, 3)), (3, 4, 5, 4)),
        "parametrized weight norm": Kind(lambda _: parametrizations.weight_norm(nn.Conv1d(4, 6, 3)), (3, 4, 9)),
        "orthogonal": Kind(lambda _: parametrizations.orthogonal(nn.Linear(6, 4)), (3, 6)),
        "two in a row": Kind(lambda _: both(nn.Conv2d(4, 6, 3, groups=2)), (3, 4, 6, 5)),
    },
    "attention": {
        "itself": Kind(lambda bias: Attends(bias, others=False), (3, 4, 8)),
        "others": Kind(lambda _: Attends(True, others=True), (3, 4, 8)),
    },
    "encoder": {"one": Kind(lambda _: encoder(), (3, 4, 8))},
    "quantized": {
        name: Kind(lambda _, quantize=quantize: quantize(nn.Linear(IN, OUT)), (3, IN))
        for name, quantize in QUANTIZED.items()
    },
}
OPTIONS: dict[str, dict[str, Any]] = {"plain": {}, "lora_bias": {"lora_bias": True}, "dora": {"use_dora": True}}
TARGETS = {"attention": ["attention"], "encoder": ["self_attn", "linear1", "linear2"]}


class SideBySide(nn.Module):
    """An input to each layer, and the output of each."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        for i, layer in enumerate(layers):
            self.add_module(f"layer{i}", layer)

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        """One after another."""
        return [layer(x) for layer, x in zip(self.children(), inputs, strict=True)]


def bare(group: str, option: str) -> Any:
    """The network of a group, in eval mode; in float64 where its weights may be."""
    torch.manual_seed(0)
    net = SideBySide([kind.make(option == "lora_bias") for kind in GROUPS[group].values()]).eval()
    return net if group == "quantized" else net.double()


def targets(group: str) -> list[str]:
    """Names of the layers to adapt."""
    return TARGETS.get(group, [f"layer{i}" for i in range(len(GROUPS[group]))])


def inputs(group: str) -> list[Tensor]:
    """One for each kind, of three samples."""
    generator = torch.Generator().manual_seed(3)
    shapes = [kind.shape for kind in GROUPS[group].values()]
    if group == "embedding":
        return [torch.randint(9, shape, generator=generator) for shape in shapes]
    drawn = [torch.randn(shape, generator=generator).double() for shape in shapes]
    return [x.float() for x in drawn] if group == "quantized" else drawn


def stands_for(layer: Any) -> Tensor:
    """A quantized weight by the libraries' formulas: q * scale (- zero point), or a table of 16 numbers."""
    weight = layer.weight
    if hasattr(weight, "quant_state"):
        state, packed = weight.quant_state, weight.data.flatten().int()
        indices = torch.stack([packed >> 4, packed & 15], 1).flatten()[: IN * OUT]
        return (state.code.double()[indices].view(-1, state.blocksize) * state.absmax.double()[:, None]).view(OUT, IN)
    if isinstance(layer, bitsandbytes.nn.Linear8bitLt):
        maxima = weight.SCB if weight.SCB is not None else layer.state.SCB
        return weight.data.double() * maxima.double()[:, None] / 127
    scale = weight.scale.double().view(OUT, -1).repeat_interleave(IN // weight.scale.view(OUT, -1).shape[1], 1)
    zero = 0.0 if weight.zero_point is None else weight.zero_point.double().view(scale[:, ::IN].shape[0], -1)
    if isinstance(zero, Tensor):
        zero = zero.repeat_interleave(IN // zero.shape[1], 1)
    return (weight.qdata.double() - zero) * scale


def plain(group: str, option: str) -> Any:
    """The same network with plain parameters for weights, in float64."""
    net = bare(group, option)
    for name, layer in list(net.named_children()):
        if group == "quantized":
            linear = nn.Linear(IN, OUT)
            linear.weight, linear.bias = nn.Parameter(stands_for(layer)), nn.Parameter(layer.bias.detach().double())
            setattr(net, name, linear)
        elif group == "computed":
            _make_plain(layer)
    return net.requires_grad_(False)


def _make_plain(layer: Any) -> None:
    if parametrize.is_parametrized(layer):
        parametrize.remove_parametrizations(layer, "weight")
        return
    (hook,) = layer._forward_pre_hooks.values()
    hook(layer, None)
    layer._forward_pre_hooks.clear()
    weight = layer.weight.detach()
    for name in ("weight", "weight_orig", "weight_g", "weight_v", "weight_mask", "weight_u"):
        layer._parameters.pop(name, None), layer._buffers.pop(name, None), vars(layer).pop(name, None)
    layer.register_parameter("weight", nn.Parameter(weight))
