"""Reading the patched checkpoints of the paper's authors (arXiv 2510.03747).

They are `torch.save`d state dicts of whole generators. An adapted layer `X` is in them as `X.orig_conv.*` or
`X.orig_linear.*`, `X.lora_A`, `X.lora_B` and `X.gate`. A is `[r, in, *k]`, or `[in, r, *k]` under a transposed
convolution; B is `[out, r]`. The scale is `alpha / sqrt(r)`, but `alpha` for linear layers. alpha itself is not saved.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft  # noqa: F401  # whole, before a part of it: another thread may be importing it
import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor

from .config import GatedLoraConfig

_ADAPTED = re.compile(r"(.+)\.(orig_conv|orig_linear)\.(weight|bias)")
_PARTS = ("lora_A", "lora_B", "gate")


@dataclass
class AuthorsPatch:
    """A checkpoint of the authors, taken apart.

    Attributes:
        config: Settings of the adapter.
        tensors: The adapter, by the names that `peft.set_peft_model_state_dict` takes.
        generator: The state dict of the untouched generator.
    """

    config: GatedLoraConfig
    tensors: dict[str, Tensor] = field(repr=False)
    generator: dict[str, Tensor] = field(repr=False)

    def save(self, folder: str | Path) -> None:
        """Write the adapter for `PeftModel.from_pretrained`, and the generator's weights as `generator.safetensors`."""
        self.config.save_pretrained(str(folder))
        for name, tensors in ((SAFETENSORS_WEIGHTS_NAME, self.tensors), ("generator.safetensors", self.generator)):
            save_file({key: tensor.clone().contiguous() for key, tensor in tensors.items()}, Path(folder, name))


def convert_checkpoint(path: str | Path, alpha: float = 2.0) -> AuthorsPatch:
    """Read a patched checkpoint of the paper's authors. Nothing in it is executed.

    Args:
        path: The file, from `torch.save`.
        alpha: The lora_alpha it was trained with; the paper's is 2.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not whole, holds anything but tensors, has no adapted layer, or has one whose parts
            are missing or do not fit together.

    Example:
        >>> import tempfile
        >>> state = {"up.orig_conv.weight": torch.zeros(8, 4, 3, 3), "up.gate": torch.tensor(-1.0)}
        >>> state |= {"up.lora_A": torch.zeros(8, 2, 3, 3), "up.lora_B": torch.zeros(4, 2)}
        >>> path = Path(tempfile.mkdtemp(), "patched.ckpt")
        >>> torch.save(state, path)
        >>> patch = convert_checkpoint(path)
        >>> patch.config.r, patch.tensors["base_model.model.up.lora_A.weight"].shape, list(patch.generator)
        (2, torch.Size([2, 8, 3, 3]), ['up.weight'])
    """
    state = _read(Path(path))
    kinds = {match[1]: match[2] for match in map(_ADAPTED.fullmatch, state) if match and match[3] == "weight"}
    if not kinds:
        raise ValueError(
            f"{path}: no layer 'X' with 'X.orig_conv.weight' or 'X.orig_linear.weight'; this is no patched checkpoint "
            f"of the authors. It holds {next(iter(state), 'nothing')!r}."
        )
    tensors: dict[str, Tensor] = {}
    ranks, alphas = {}, {}
    for name, kind in kinds.items():
        a, b, gate = _factors(str(path), name, state)
        ranks[name] = len(a)
        if kind == "orig_linear":
            alphas[name] = _alpha_for(alpha, len(a))
        for part, tensor in (("lora_A", a), ("lora_B", b), ("lora_gate", gate)):
            tensors[f"base_model.model.{name}.{part}.weight"] = tensor
    r = max(ranks.values(), key=list(ranks.values()).count)
    config = GatedLoraConfig(
        r=r,
        lora_alpha=alpha,
        init_lora_weights="paper",
        target_modules="|".join(re.escape(name) for name in kinds),
        rank_pattern={f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != r},
        alpha_pattern={f"^{re.escape(name)}": value for name, value in alphas.items()},
        inference_mode=True,
    )
    return AuthorsPatch(config, tensors, _generator(state, kinds))


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint file {path}.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what torch.load raises is not laid down, and its words advise to read it unsafely
        raise ValueError(
            f"{path} is no whole file of tensors: it is damaged, was not written by torch.save, or holds objects that "
            "would run code; loraguard does not run any."
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds a {type(state).__name__}; expected a state dict, names with tensors.")
    return {str(name): value for name, value in state.items()}


def _factors(path: str, name: str, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """A, B and the gate in the layout of GATED_LORA."""
    for part in _PARTS:
        if f"{name}.{part}" not in state:
            raise ValueError(f"{path}: layer {name!r} has no {name + '.' + part!r}; only scalar gates can be read.")
    weight = next(state[key] for kind in ("orig_conv", "orig_linear") if (key := f"{name}.{kind}.weight") in state)
    a, b, gate = (state[f"{name}.{part}"].detach() for part in _PARTS)
    shapes = f"weight {tuple(weight.shape)}, A {tuple(a.shape)}, B {tuple(b.shape)}, gate {tuple(gate.shape)}"
    if b.dim() != 2 or a.dim() != weight.dim() or gate.numel() != 1:
        raise ValueError(f"{path}: the parts of layer {name!r} do not fit together: {shapes}.")
    (out, r), kernel = b.shape, weight.shape[2:]
    plain = weight.shape[0] == out and a.shape == (r, weight.shape[1], *kernel)
    transposed = weight.dim() > 2 and weight.shape[1] == out and a.shape == (weight.shape[0], r, *kernel)
    if plain == transposed:
        reason = "both a convolution and a transposed one could be meant" if plain else "they do not fit together"
        raise ValueError(f"{path}: of the parts of layer {name!r}, {reason}: {shapes}.")
    if transposed:
        a = a.transpose(0, 1).contiguous()
    return a, b.reshape(out, r, *[1] * len(kernel)), gate.reshape(1)


def _alpha_for(scale: float, r: int) -> float:
    """The lora_alpha whose `lora_alpha / sqrt(r)` is `scale` to the last bit."""
    near = scale * math.sqrt(r)
    candidates = (near, math.nextafter(near, math.inf), math.nextafter(near, 0))
    return min(candidates, key=lambda alpha: abs(alpha / math.sqrt(r) - scale))


def _generator(state: Mapping[str, Tensor], kinds: Mapping[str, Any]) -> dict[str, Tensor]:
    parts = {f"{name}.{part}" for name in kinds for part in _PARTS}
    return {_ADAPTED.sub(r"\1.\3", name): value for name, value in state.items() if name not in parts}
