"""A patch none of whose layers the network has: the error names what each of them has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from loraguard import GatedLoraConfig


def network(name: str) -> nn.Sequential:
    made = nn.Sequential()
    made.add_module(name, nn.Conv2d(3, 3, 3, padding=1))
    return made


@pytest.mark.parametrize(
    ("patched", "found", "hint"),
    [
        (network("0"), "target_modules={'0'}", "another generator"),
        (nn.DataParallel(network("body")), "target_modules={'module.body'}", "'module.'.*wrapped"),
        (torch.compile(network("body")), "target_modules={'_orig_mod.body'}", "'_orig_mod.'.*wrapped"),
    ],
    ids=["other", "DataParallel", "compile"],
)
def test_a_patch_without_a_layer_of_the_network(patched: nn.Module, found: str, hint: str, tmp_path: Path) -> None:
    get_peft_model(patched, GatedLoraConfig(r=2)).save_pretrained(tmp_path)
    other = network("body")
    before = list(other.state_dict())
    with pytest.raises(ValueError, match=rf"{found}.*'body'.*{hint}") as refused:
        PeftModel.from_pretrained(other, tmp_path)
    assert len(str(refused.value)) <= 600
    assert list(other.state_dict()) == before
