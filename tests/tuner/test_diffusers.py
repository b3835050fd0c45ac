"""GATED_LORA on networks of diffusers, by diffusers' own methods and by loraguard.diffusers."""

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_diffusers import NETWORKS, network, run
from torch import Tensor, nn

from loraguard.diffusers import load_patch, save_lora, save_patch
from loraguard.tuner import GatedLoraConfig, GatedLoraLayer

NEAR = {"rtol": 1e-4, "atol": 1e-5}  # float32; kernels round by the order of sums, and by where tensors lie in memory
every = pytest.mark.parametrize("kind", NETWORKS)


def config(**settings: Any) -> GatedLoraConfig:
    return GatedLoraConfig(**{"r": 4, "lora_alpha": 3, "init_lora_weights": "paper", **settings})


def open_gates(net: nn.Module, seed: int = 1) -> None:
    torch.manual_seed(seed)
    for layer in net.modules():
        if isinstance(layer, GatedLoraLayer):
            for gate in layer.lora_gate.values():
                nn.init.normal_(gate.weight)


def patched(kind: str, **settings: Any) -> Any:
    """A copy of a network that is adapted once, where the settings are the usual ones."""
    return adapted(kind, **settings) if settings else copy.deepcopy(usual(kind))


@cache
def usual(kind: str) -> Any:
    return adapted(kind)


def adapted(kind: str, **settings: Any) -> Any:
    net = network(kind)
    torch.manual_seed(2)
    net.add_adapter(config(**settings))
    open_gates(net)
    return net.eval()


def pipeline(unet: Any = None, vae: Any = None) -> Any:
    return StableDiffusionPipeline(
        vae=vae or network("autoencoder"), unet=unet or network("unet"),
        scheduler=DDPMScheduler(steps_offset=1, clip_sample=False),
        text_encoder=None, tokenizer=None, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


@every
class TestEveryNetwork:
    def test_saved_and_loaded(self, kind: str, tmp_path: Path) -> None:
        net = patched(kind)
        y = run(kind, net)
        assert (y - run(kind, network(kind))).abs().max() > 1e-2
        save_patch(net, tmp_path)
        loaded = load_patch(network(kind), tmp_path)
        torch.testing.assert_close(run(kind, loaded), y, **NEAR)
        assert not any(p.requires_grad for p in loaded.parameters())
        as_peft = PeftModel.from_pretrained(network(kind), tmp_path)
        torch.testing.assert_close(run(kind, as_peft), y, **NEAR)

    def test_two_adapters_with_weights(self, kind: str, tmp_path: Path) -> None:
        """Against the sum of updates, written into the weights."""
        net, names = patched(kind), ("default", "other")
        torch.manual_seed(3)
        net.add_adapter(config(r=2), "other")
        open_gates(net, seed=4)
        net.set_adapters(["default"])
        alone = run(kind, net)
        net.set_adapters(list(names), [0.5, 2.0])
        bare: Any = network(kind)
        for name, layer in net.named_modules():
            if isinstance(layer, GatedLoraLayer):
                assert [layer.scaling[one] for one in names] == pytest.approx([0.5 * 3 / 2, 2 * 3 / 2**0.5])
                weight = bare.get_submodule(name).weight
                weight.data += sum(layer.get_delta_weight(one) for one in names).detach()
        torch.testing.assert_close(run(kind, net), run(kind, bare), **NEAR)
        net.set_adapters(["default"])
        torch.testing.assert_close(run(kind, net), alone, **NEAR)

    def test_fused_and_disabled(self, kind: str) -> None:
        net = patched(kind)
        y, bare = run(kind, net), run(kind, network(kind))
        net.disable_adapters()
        torch.testing.assert_close(run(kind, net), bare, **NEAR)
        net.enable_adapters()
        net.fuse_lora(lora_scale=1.0)
        torch.testing.assert_close(run(kind, net), y, **NEAR)
        net.unfuse_lora()
        torch.testing.assert_close(run(kind, net), y, **NEAR)
        net.unload_lora()
        torch.testing.assert_close(run(kind, net), bare, **NEAR)

    def test_plain_lora_loads_exactly(self, kind: str, tmp_path: Path) -> None:
        net = patched(kind, rank_pattern={".*time_emb.*": 2}, alpha_pattern={".*norm.*": 7}, lora_bias=kind != "unet")
        save_lora(net, tmp_path)
        plain = network(kind)
        plain.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)
        assert plain.peft_config["default_0"].peft_type == "LORA"
        torch.testing.assert_close(run(kind, plain), run(kind, net), **NEAR)
        without_metadata = network(kind)
        tensors = load_file(tmp_path / "pytorch_lora_weights.safetensors")
        without_metadata.load_lora_adapter(tensors, prefix=None)
        torch.testing.assert_close(run(kind, without_metadata), run(kind, net), **NEAR)

    def test_gates_are_not_dropped(self, kind: str, tmp_path: Path) -> None:
        net = patched(kind)
        net.save_lora_adapter(tmp_path / "theirs")
        save_patch(net, tmp_path / "ours")
        for folder, prefix in (("theirs", None), ("ours", None), ("ours", "base_model.model")):
            other = network(kind)
            with pytest.raises(TypeError, match="could not be instantiated") as caught:
                other.load_lora_adapter(tmp_path / folder, prefix=prefix, use_safetensors=True)
            if folder == "ours":
                assert "loraguard.diffusers.load_patch" in str(caught.value.__cause__)
            assert not hasattr(other, "peft_config")
        with pytest.raises(ValueError, match=r"lora_gate.* is a gate .* loraguard.diffusers.load_patch"):
            other.load_lora_adapter(get_peft_model_state_dict(net), prefix=None)
        torch.testing.assert_close(run(kind, other), run(kind, network(kind)), **NEAR)


class TestPipelines:
    def test_all_components(self, tmp_path: Path) -> None:
        pipe = pipeline(patched("unet"), patched("autoencoder"))
        save_patch(pipe, tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {"unet", "vae"}
        loaded = load_patch(pipeline(), tmp_path)
        torch.testing.assert_close(run("unet", loaded.unet), run("unet", pipe.unet), **NEAR)
        torch.testing.assert_close(run("autoencoder", loaded.vae), run("autoencoder", pipe.vae), **NEAR)
        with pytest.raises(OSError, match="pytorch_lora_weights"):
            pipeline().load_lora_weights(tmp_path)

    def test_plain_lora(self, tmp_path: Path) -> None:
        pipe = pipeline(patched("unet"))
        save_lora(pipe, tmp_path)
        loaded = pipeline()
        loaded.load_lora_weights(tmp_path, adapter_name="patch")
        torch.testing.assert_close(run("unet", loaded.unet), run("unet", pipe.unet), **NEAR)
        loaded.set_adapters(["patch"], [0.0])
        torch.testing.assert_close(run("unet", loaded.unet), run("unet", network("unet")), **NEAR)
        with pytest.raises(ValueError, match=r"'vae' .* reads \['unet', 'text_encoder'\] alone"):
            save_lora(pipeline(vae=patched("autoencoder")), tmp_path)

    def test_gates_are_not_dropped(self, tmp_path: Path) -> None:
        """As diffusers' training scripts save."""
        layers = get_peft_model_state_dict(patched("unet"))
        StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers)
        pipe = pipeline()
        with pytest.raises(ValueError, match=r"lora_gate.* is a gate"):
            pipe.load_lora_weights(tmp_path)
        torch.testing.assert_close(run("unet", pipe.unet), run("unet", network("unet")), **NEAR)
        of_file = patched("unet").peft_config["default"].to_dict()
        StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers, unet_lora_adapter_metadata=of_file)
        with pytest.raises(TypeError, match="could not be instantiated"):
            pipe.load_lora_weights(tmp_path)

    def test_offloading_to_the_cpu(self, tmp_path: Path) -> None:
        """With the processor in the accelerator's place: each component's hook moves it there and back."""
        save_patch(pipeline(patched("unet")), tmp_path)
        want = run("unet", patched("unet"))
        for first in (True, False):
            pipe = pipeline()
            if first:
                pipe.enable_model_cpu_offload(device="cpu")
            load_patch(pipe, tmp_path)
            if not first:
                pipe.enable_model_cpu_offload(device="cpu")
            torch.testing.assert_close(run("unet", pipe.unet), want, **NEAR)
            pipe.maybe_free_model_hooks()
            torch.testing.assert_close(run("unet", pipe.unet), want, **NEAR)

    def test_all_or_nothing(self, tmp_path: Path) -> None:
        save_patch(pipeline(patched("unet"), patched("autoencoder")), tmp_path)
        file = tmp_path / "vae" / "adapter_model.safetensors"
        tensors = load_file(file)
        del tensors[min(tensors)]
        save_file(tensors, file)
        config = file.with_name("adapter_config.json")  # it has the hash of the file that was
        config.write_text(json.dumps(json.loads(config.read_text()) | {"provenance": None}))
        pipe = pipeline()
        with pytest.raises(ValueError, match=r"vae.* no tensor"):
            load_patch(pipe, tmp_path)
        for net, kind in ((pipe.unet, "unet"), (pipe.vae, "autoencoder")):
            assert not hasattr(net, "peft_config")
            assert net._hf_peft_config_loaded is False
            assert [type(one) for one in net.modules()] == [type(one) for one in network(kind).modules()]
            assert all(p.requires_grad for p in net.parameters())


class TestBadInput:
    def test_a_name_that_is_taken(self, tmp_path: Path) -> None:
        net = patched("autoencoder")
        save_patch(net, tmp_path)
        with pytest.raises(ValueError, match="already has an adapter 'default'; give another adapter_name"):
            load_patch(net, tmp_path)
        torch.testing.assert_close(
            run("autoencoder", load_patch(net, tmp_path, "second")), run("autoencoder", net), **NEAR
        )

    def test_a_second_patch_that_is_broken(self, tmp_path: Path) -> None:
        net = patched("autoencoder")
        save_patch(net, tmp_path)
        file = tmp_path / "adapter_model.safetensors"
        tensors = load_file(file)
        tensors[max(tensors)].fill_(torch.nan)
        save_file(tensors, file)
        before = {name: value.clone() for name, value in net.state_dict().items()}
        with pytest.raises(ValueError, match="every value must be finite"):
            load_patch(net, tmp_path, "second")
        assert list(net.peft_config) == ["default"]
        assert net.state_dict().keys() == before.keys()
        torch.testing.assert_close(run("autoencoder", net), run("autoencoder", patched("autoencoder")), **NEAR)

    def test_no_adapter(self, tmp_path: Path) -> None:
        for function in (save_patch, save_lora):
            with pytest.raises(ValueError, match="no GATED_LORA adapter 'default'"):
                function(network("autoencoder"), tmp_path)
            with pytest.raises(ValueError, match="no GATED_LORA adapter 'other'"):
                function(pipeline(patched("unet")), tmp_path, "other")
        assert not list(tmp_path.iterdir())

    def test_no_patch(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"no patch in .*adapter_config.json"):
            load_patch(network("unet"), tmp_path)
        with pytest.raises(FileNotFoundError, match=r"no patch in .* for one of \['vae'.*'unet'"):
            load_patch(pipeline(), tmp_path)
        save_patch(patched("unet"), tmp_path)
        with pytest.raises(FileNotFoundError, match=r"for one network; pass it .* pipe.unet"):
            load_patch(pipeline(), tmp_path)

    def test_what_plain_lora_cannot_say(self, tmp_path: Path) -> None:
        net = patched("autoencoder", modules_to_save=["conv_norm_out"])
        with pytest.raises(ValueError, match=r"modules_to_save=.* does not go into"):
            save_lora(net, tmp_path)
        with pytest.raises(ValueError, match="depends on the input"):
            save_lora(patched("autoencoder", gate_type="input"), tmp_path)
        assert not list(tmp_path.iterdir())


def test_a_relabelled_checkpoint_is_refused(tmp_path: Path) -> None:
    """By PEFT itself, where loraguard is imported."""
    bare = nn.Sequential(nn.Linear(3, 3))
    get_peft_model(nn.Sequential(nn.Linear(3, 3)), config()).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    fields = json.loads(file.read_text())
    for name in ("gate_type", "gate_init", "freeze_norm_stats", "provenance"):
        del fields[name]
    file.write_text(json.dumps({**fields, "peft_type": "LORA", "init_lora_weights": True}))
    with pytest.raises(ValueError, match=r"lora_gate.* is a gate"):
        PeftModel.from_pretrained(bare, tmp_path)


def test_the_file_says_what_to_do(tmp_path: Path) -> None:
    save_patch(patched("autoencoder"), tmp_path)
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        assert "load_patch" in file.metadata()["lora_adapter_metadata"]


def test_a_network_without_diffusers_mixin(tmp_path: Path) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.vae(x).sample

    torch.manual_seed(0)
    net = Plain()
    get_peft_model(net, config()).save_pretrained(tmp_path)
    torch.manual_seed(0)
    x = torch.ones(1, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(load_patch(Plain(), tmp_path)(x), net(x))
