"""GATED_LORA to plain LoRA, and the authors' checkpoints to GATED_LORA."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D
from typer.testing import CliRunner

from loraguard import convert_checkpoint, to_lora
from loraguard.cli import app
from loraguard.tuner import GATES, GatedLoraConfig, GatedLoraLayer

EXACT = {"rtol": 0.0, "atol": 1e-12}

SUPPORTED = {
    "linear": (lambda: nn.Linear(6, 4), (3, 6)),
    "Conv1D": (lambda: Conv1D(4, 6), (3, 6)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2), (2, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, (3, 2), padding=1), (2, 4, 8, 7)),
    "conv2d-same": (lambda: nn.Conv2d(4, 6, 3, padding="same"), (2, 4, 8, 7)),
    "conv2d-grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 8, 7)),
    "conv2d-depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), (2, 4, 8, 7)),
    "conv3d": (lambda: nn.Conv3d(4, 6, (1, 1, 3)), (2, 4, 3, 3, 5)),
}
UNSUPPORTED = {
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3), r"'1' \(ConvTranspose2d: it is transposed\)"),
    "dilated": (lambda: nn.Conv2d(4, 6, 3, dilation=2), r"'1' \(Conv2d: dilation=\(2, 2\)\)"),
    "reflect": (lambda: nn.Conv1d(4, 6, 3, padding=1, padding_mode="reflect"), "'1'.*padding_mode='reflect'"),
}


def net_of(make: Any) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Identity(), make()).double().eval()


def adapted(net: nn.Module, gate: str, **settings: Any) -> PeftModel:
    model = get_peft_model(net, GatedLoraConfig(**{"init_lora_weights": "paper", "gate_type": gate, **settings}))
    for layer in model.modules():
        if isinstance(layer, GatedLoraLayer):
            for parameter in layer.lora_gate["default"].parameters():
                nn.init.normal_(parameter)
    return model.eval()


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups > 1")
@pytest.mark.parametrize("gate", [name for name in GATES if GATES[name].mergeable])
@pytest.mark.parametrize("kind", SUPPORTED)
@pytest.mark.parametrize("rslora", [True, False])
def test_plain_lora_computes_the_same(kind: str, gate: str, rslora: bool, tmp_path: Path) -> None:
    make, shape = SUPPORTED[kind]
    model, x = adapted(net_of(make), gate, r=4, use_rslora=rslora, alpha_pattern={"1": 5}), torch.randn(shape).double()
    model.base_model.model[1].scale_layer(1.5)
    y = model(x)
    assert (y - net_of(make)(x)).abs().max() > 1e-3
    config, tensors = to_lora(model, tmp_path)
    assert type(config) is LoraConfig
    plain = get_peft_model(net_of(make), config).eval()
    assert not set_peft_model_state_dict(plain, tensors).unexpected_keys
    torch.testing.assert_close(plain(x), y, **EXACT)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "LORA"
    torch.testing.assert_close(PeftModel.from_pretrained(net_of(make), tmp_path)(x), y, **EXACT)
    torch.testing.assert_close(model(x), y, **EXACT)


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_other_layers_are_refused(kind: str, tmp_path: Path) -> None:
    make, message = UNSUPPORTED[kind]
    with pytest.raises(ValueError, match=message):
        to_lora(adapted(net_of(make), "scalar"), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("gate", [name for name in GATES if not GATES[name].mergeable])
def test_gates_on_the_input_are_refused(gate: str) -> None:
    with pytest.raises(ValueError, match=r"gate of adapter 'default' depends on the input.*converted"):
        to_lora(adapted(net_of(lambda: nn.Linear(4, 4)), gate))


def test_no_such_adapter() -> None:
    with pytest.raises(ValueError, match=r"no GATED_LORA adapter 'other'; there are \['default'\]"):
        to_lora(adapted(net_of(lambda: nn.Linear(4, 4)), "scalar"), adapter_name="other")


def test_biases_norms_and_other_adapters(generator: nn.Module, batch: Any) -> None:
    generator.mix.padding_mode = "zeros"
    bare = copy.deepcopy(generator)
    config = {"target_modules": ["label", "down", "mix"], "modules_to_save": ["norm"], "bias": "lora_only"}
    model = adapted(generator, "scalar", r=4, rank_pattern={"label": 2}, **config)
    model.add_adapter("other", GatedLoraConfig(r=2, target_modules=["up"]))
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    lora, tensors = to_lora(model)
    with pytest.warns(UserWarning, match="groups > 1"):
        plain = get_peft_model(bare, lora).eval()
    set_peft_model_state_dict(plain, tensors)
    torch.testing.assert_close(plain(*batch), model(*batch), **EXACT)


class AuthorsLayer(nn.Module):
    """METHOD.md's description of the release, written out: `h = W*x + sigmoid(g) * s * B(A*x)`."""

    def __init__(self, base: Any, r: int, alpha: float) -> None:
        super().__init__()
        self.linear = isinstance(base, nn.Linear)
        self.add_module("orig_linear" if self.linear else "orig_conv", base)
        weight, out = base.weight, getattr(base, "out_channels", None) or base.out_features
        transposed = isinstance(base, nn.ConvTranspose2d)
        a_shape = (len(weight), r, *weight.shape[2:]) if transposed else (r, *weight.shape[1:])
        self.lora_A, self.lora_B = nn.Parameter(weight.new_empty(a_shape)), nn.Parameter(weight.new_empty(out, r))
        self.gate = nn.Parameter(weight.new_zeros(()))
        self.scale = alpha if self.linear else alpha / math.sqrt(r)

    def forward(self, x: Tensor) -> Tensor:
        base: Any = self.orig_linear if self.linear else self.orig_conv
        if self.linear:
            update = x @ self.lora_A.T @ self.lora_B.T
        else:
            convolve = F.conv_transpose2d if isinstance(base, nn.ConvTranspose2d) else F.conv2d
            hidden = convolve(x, self.lora_A, None, base.stride, base.padding)
            update = torch.einsum("or,nrhw->nohw", self.lora_B, hidden)
        return base(x) + torch.sigmoid(self.gate) * self.scale * update


def editor_parts() -> nn.Module:
    return nn.ModuleDict(
        {
            "label": nn.Linear(2, 3),
            "trunk": nn.Sequential(
                nn.Conv2d(3, 4, 3, padding=1, bias=False),
                nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
                nn.ConvTranspose2d(4, 3, 4, stride=2, padding=1),
            ),
        }
    ).double()


class Editor(nn.Module):
    def __init__(self, parts: nn.Module) -> None:
        super().__init__()
        self.label, self.trunk = parts["label"], parts["trunk"]

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        x = x + self.label(label)[:, :, None, None]
        return self.trunk[2](self.trunk[0](x).relu().round())


@pytest.fixture
def released(tmp_path: Path) -> tuple[Editor, Path]:
    """The authors' patched network, weights being whole numbers, so that no order of summing rounds; and its file."""
    parts = editor_parts()
    for name, r in (("label", 4), ("trunk.0", 4), ("trunk.2", 16)):
        parts.set_submodule(name, AuthorsLayer(parts.get_submodule(name), r, alpha=2.0))
    for name, parameter in parts.named_parameters():
        if not name.endswith("gate"):  # a logit of 0 opens by 1 / 2
            parameter.data = torch.randint_like(parameter, -8, 9)
    network = Editor(parts).eval()
    path = tmp_path / "patched-G.ckpt"
    torch.save(network.state_dict(), path)
    return network, path


def whole_numbers() -> tuple[Tensor, Tensor]:
    return torch.randint(-8, 9, (2, 3, 8, 8)).double(), torch.randint(-8, 9, (2, 2)).double()


def test_converted_patch_computes_the_same_to_the_bit(released: Any, tmp_path: Path) -> None:
    network, path = released
    convert_checkpoint(path).save(tmp_path / "patch")
    generator = Editor(editor_parts()).eval()
    generator.load_state_dict(load_file(tmp_path / "patch" / "generator.safetensors"))
    model, inputs = PeftModel.from_pretrained(generator, tmp_path / "patch"), whole_numbers()
    assert torch.equal(model(*inputs), network(*inputs))
    with model.disable_adapter():
        assert not torch.equal(model(*inputs), network(*inputs))
    layer = generator.trunk[2]
    assert torch.equal(layer.lora_A["default"].weight, network.trunk[2].lora_A.transpose(0, 1))
    assert torch.equal(layer.lora_B["default"].weight.flatten(1), network.trunk[2].lora_B)
    assert generator.label.scaling == {"default": 2.0}
    assert layer.scaling == {"default": 0.5}
    assert torch.equal(model.merge_and_unload(safe_merge=True)(*inputs), network(*inputs))


@pytest.mark.parametrize("r", [1, 2, 3, 5, 7, 8, 16, 24, 64])
@pytest.mark.parametrize("alpha", [2.0, 1.0, 0.7])
def test_scales_of_linear_layers(tmp_path: Path, r: int, alpha: float) -> None:
    net = nn.ModuleDict({"out": AuthorsLayer(nn.Linear(3, 2).double(), r, alpha)})
    torch.save(net.state_dict(), tmp_path / "file")
    config = convert_checkpoint(tmp_path / "file", alpha).config
    assert config.alpha_pattern["^out"] / math.sqrt(r) == pytest.approx(alpha, rel=2e-16, abs=0)


def test_the_command(released: Any, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["convert", str(released[1]), str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "3 adapted layers, rank 4" in done.output
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "generator.safetensors"}
    failed = CliRunner().invoke(app, ["convert", str(tmp_path / "nothing"), str(tmp_path / "out")])
    assert failed.exit_code == 2


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_what_is_no_such_checkpoint(released: Any, tmp_path: Path) -> None:
    state = torch.load(released[1])
    path = tmp_path / "bad"

    def refused(contents: Any, message: str) -> None:
        torch.save(contents, path)
        with pytest.raises(ValueError, match=message):
            convert_checkpoint(path)

    refused({"model": Bomb(tmp_path / "executed")}, "bad is no whole file of tensors")
    assert not (tmp_path / "executed").exists()
    refused({"state_dict": state}, "holds a dict; expected a state dict")
    refused([1, 2], "holds a list; expected a state dict")
    refused({"a.weight": torch.zeros(2)}, "no patched checkpoint of the authors. It holds 'a.weight'")
    refused({k: v for k, v in state.items() if k != "trunk.0.gate"}, "layer 'trunk.0' has no 'trunk.0.gate'")
    refused({**state, "trunk.0.lora_B": torch.zeros(4, 5)}, r"layer 'trunk.0', they do not fit together: weight \(4, 3")
    refused({**state, "label.lora_B": torch.zeros(3)}, "parts of layer 'label' do not fit together")
    square = {"x.orig_conv.weight": torch.zeros(2, 2, 3, 3), "x.gate": torch.zeros(())}
    refused({**square, "x.lora_A": torch.zeros(2, 2, 3, 3), "x.lora_B": torch.zeros(2, 2)}, "both a convolution and")
    path.write_bytes(released[1].read_bytes()[:-100])
    with pytest.raises(ValueError, match="bad is no whole file"):
        convert_checkpoint(path)
