"""PEFT's LoRA and GATED_LORA on the layers of image networks: does a merged adapter compute what it did unmerged?

Prints the table of docs/tuner-comparison.md. Run: python benchmarks/compare_with_lora.py
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from datetime import date
from typing import Any

import bitsandbytes
import peft
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
from torchao.quantization.granularity import PerGroup

from loraguard import GatedLoraConfig, __version__

X = (2, 4, 8, 7)


class Net(nn.Module):
    """One layer in a network, as PEFT wants it."""

    def __init__(self, layer: nn.Module, **call: Any) -> None:
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, x: Tensor) -> Tensor:
        """Run the layer."""
        return self.layer(x, **self.call)


class Attention(nn.Module):
    """Self-attention."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Attend to itself."""
        return self.attention(x, x, x)[0]


def encoder() -> nn.Module:
    """A layer that reads its parts' weights where they need no gradient, in eval mode."""
    return Net(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))


class Tied(nn.Module):
    """Two layers with one weight, of which one is adapted."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
        self.other.weight = self.layer.weight

    def forward(self, x: Tensor) -> Tensor:
        """One after the other."""
        return self.other(self.layer(x))


def conv() -> nn.Module:
    """A plain convolution."""
    return nn.Conv2d(4, 6, 3)


def by_torchao(settings: Any) -> nn.Module:
    """A linear layer that torchao has quantized."""
    net = Net(nn.Linear(64, 32))
    quantize_(net, settings)
    return net


def by_bitsandbytes(bits: int) -> nn.Module:
    """One that bitsandbytes has, in a network that says so as transformers' do."""
    quantized: Any = (
        bitsandbytes.nn.Linear8bitLt(64, 32, has_fp16_weights=False)
        if bits == 8
        else bitsandbytes.nn.Linear4bit(64, 32, compute_dtype=torch.float32)
    )
    quantized.load_state_dict(nn.Linear(64, 32).state_dict())
    net: Any = Net(quantized.to("cpu"))
    net.is_loaded_in_8bit, net.is_loaded_in_4bit = bits == 8, bits == 4
    return net


def zeros() -> nn.Module:
    """A convolution as ControlNets have at first."""
    layer = nn.Conv2d(4, 6, 1)
    nn.init.zeros_(layer.weight)
    return Net(layer)


INT4 = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))
BIAS, DORA = {"lora_bias": True}, {"use_dora": True}

# A layer, what makes a network of it, the shape of its input, what to adapt, and settings of the adapter.
ROWS: list[tuple[str, Callable[[], nn.Module], tuple[int, ...], str, dict[str, bool]]] = [
    ("Linear", lambda: Net(nn.Linear(4, 6)), (5, 4), "layer", {}),
    ("Conv2d", lambda: Net(nn.Conv2d(4, 6, 3, padding=1)), X, "layer", {}),
    *(
        (f"Conv2d, padding_mode={m!r}", lambda m=m: Net(nn.Conv2d(4, 6, 3, padding=2, padding_mode=m)), X, "layer", {})
        for m in ("reflect", "replicate", "circular")
    ),
    ("Conv2d, dilation=2", lambda: Net(nn.Conv2d(4, 6, 3, dilation=2)), X, "layer", {}),
    ("Conv2d, dilation=2, padding='same'", lambda: Net(nn.Conv2d(4, 6, 3, dilation=2, padding="same")), X, "layer", {}),
    ("Conv2d, groups=2", lambda: Net(nn.Conv2d(4, 6, 3, groups=2)), X, "layer", {}),
    ("Conv2d, depthwise, r below its groups", lambda: Net(nn.Conv2d(16, 16, 3, groups=16)), (2, 16, 8, 7), "layer", {}),
    ("Conv2d, unbatched input", lambda: Net(nn.Conv2d(4, 6, 3)), X[1:], "layer", {}),
    ("Conv3d, kernel (1, 1, 3)", lambda: Net(nn.Conv3d(4, 6, (1, 1, 3))), (2, 4, 3, 3, 5), "layer", {}),
    ("ConvTranspose1d", lambda: Net(nn.ConvTranspose1d(4, 6, 3, stride=2)), (2, 4, 9), "layer", {}),
    ("ConvTranspose2d", lambda: Net(nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1)), X, "layer", {}),
    (
        "ConvTranspose2d, output_size=",
        lambda: Net(nn.ConvTranspose2d(4, 6, 3, 2), output_size=(18, 16)),
        X,
        "layer",
        {},
    ),
    ("ConvTranspose3d, groups=2", lambda: Net(nn.ConvTranspose3d(4, 6, 3, groups=2)), (2, 4, 3, 3, 5), "layer", {}),
    ("Conv2d, weight_norm", lambda: Net(weight_norm(conv())), X, "layer", {}),
    ("Conv2d, parametrizations.weight_norm", lambda: Net(parametrizations.weight_norm(conv())), X, "layer", {}),
    ("Conv2d, spectral_norm", lambda: Net(spectral_norm(conv())), X, "layer", {}),
    ("Conv2d, parametrizations.spectral_norm", lambda: Net(parametrizations.spectral_norm(conv())), X, "layer", {}),
    (
        "Linear, parametrizations.orthogonal",
        lambda: Net(parametrizations.orthogonal(nn.Linear(4, 6))),
        (5, 4),
        "layer",
        {},
    ),
    ("Conv2d, pruned", lambda: Net(prune.l1_unstructured(conv(), "weight", 0.5)), X, "layer", {}),
    ("Embedding", lambda: Net(nn.Embedding(9, 4)), (5,), "layer", {}),
    ("MultiheadAttention: q, k, v and out", Attention, (2, 5, 8), "attention", {}),
    ("MultiheadAttention.out_proj alone", Attention, (2, 5, 8), "out_proj", {}),
    ("TransformerEncoderLayer: its self_attn", encoder, (2, 5, 8), "self_attn", {}),
    ("TransformerEncoderLayer: its linear1", encoder, (2, 5, 8), "linear1", {}),
    ("lora_bias: Linear", lambda: Net(nn.Linear(4, 6)), (5, 4), "layer", BIAS),
    ("lora_bias: Linear without a bias", lambda: Net(nn.Linear(4, 6, bias=False)), (5, 4), "layer", BIAS),
    ("lora_bias: Conv2d, reflect", lambda: Net(nn.Conv2d(4, 6, 3, 1, 1, padding_mode="reflect")), X, "layer", BIAS),
    ("lora_bias: ConvTranspose2d", lambda: Net(nn.ConvTranspose2d(4, 6, 3)), X, "layer", BIAS),
    ("lora_bias: MultiheadAttention", Attention, (2, 5, 8), "attention", BIAS),
    ("DoRA: Linear", lambda: Net(nn.Linear(4, 6)), (5, 4), "layer", DORA),
    ("DoRA: Conv2d", lambda: Net(conv()), X, "layer", DORA),
    ("DoRA: Conv2d, weights of 0", zeros, X, "layer", DORA),
    ("DoRA: Conv2d, groups=2", lambda: Net(nn.Conv2d(4, 6, 3, groups=2)), X, "layer", DORA),
    ("DoRA: ConvTranspose2d", lambda: Net(nn.ConvTranspose2d(4, 6, 3)), X, "layer", DORA),
    ("DoRA: Embedding", lambda: Net(nn.Embedding(9, 4)), (5,), "layer", DORA),
    ("DoRA: MultiheadAttention", Attention, (2, 5, 8), "attention", DORA),
    ("DoRA: Conv2d, spectral_norm", lambda: Net(spectral_norm(conv())), X, "layer", DORA),
    *(
        (f"{option}Linear, {name}", make, (5, 64), "layer", settings)
        for option, settings in (("", {}), ("DoRA: ", DORA))
        for name, make in (
            ("int8 of torchao", lambda: by_torchao(Int8WeightOnlyConfig())),
            ("int4 of torchao", lambda: by_torchao(INT4)),
            ("8 bits of bitsandbytes", lambda: by_bitsandbytes(8)),
            ("4 bits of bitsandbytes", lambda: by_bitsandbytes(4)),
        )
    ),
    ("Linear, weight tied to another's", Tied, (5, 4), "layer", {}),
]


def verdict(
    make: Callable[[], nn.Module],
    shape: tuple[int, ...],
    target: str,
    settings: dict[str, bool],
    config: type[LoraConfig],
) -> str:
    """What becomes of a random adapter when it is merged."""
    torch.manual_seed(0)
    net = make().eval()
    x = torch.randint(9, shape) if any(isinstance(one, nn.Embedding) for one in net.modules()) else torch.randn(shape)
    with torch.no_grad():
        bare = net(x)
    step = "refused"
    try:
        model = get_peft_model(net, config(r=4, target_modules=[target], init_lora_weights=False, **settings)).eval()
        step = "forward raises"
        for name, parameter in model.named_parameters():
            if "lora_magnitude_vector" in name or ("lora_B" in name and name.endswith("bias")):
                nn.init.uniform_(parameter, 0.5, 1.5)
        with torch.no_grad():
            y = model(x)
        if torch.equal(y, bare):
            return "WRONG: adapter ignored, silently"
        if not y.isfinite().all():
            return "WRONG, silently: NaN"
        step = "right; merging raises"
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            plain = model.merge_and_unload()
        with torch.no_grad():
            merged = plain(x)
    except Exception as error:
        return f"{step}: {type(error).__name__}"
    off = (merged - y).abs().max().item()
    update = (y - bare).abs().max().item()
    if off < 1e-5 * max(1.0, update, y.abs().max().item()):
        return "right"
    warned = any("round" in str(one.message) for one in caught)
    return f"{'right; merging warns' if warned else 'WRONG, silently'}: off by {off:.2g}, update {update:.2g}"


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    versions = f"peft {peft.__version__}, torch {torch.__version__}, loraguard {__version__}"
    print(f"{versions}, r = 4, float32, {date.today():%d %B %Y}\n")
    print("| layer | peft.LoraConfig | GatedLoraConfig |\n|---|---|---|")
    for name, make, shape, target, settings in ROWS:
        cells = [verdict(make, shape, target, settings, config) for config in (LoraConfig, GatedLoraConfig)]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
