"""What networks of one's own do with their layers: read them, share them, let no gradient through."""

import warnings
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from loraguard import GatedLoraConfig, PatchTrainer, PatchTrainingArguments
from loraguard.data import DemoFaces
from loraguard.defenses import Disrupting

FACES = DemoFaces(8, size=16)


def arguments(folder: Path) -> PatchTrainingArguments:
    return PatchTrainingArguments(folder, adversary=Disrupting(steps=1), max_train_steps=2, cpu=True, disable_tqdm=True)


@pytest.mark.parametrize("how", ["reentrant", "no_grad"])
def test_a_network_that_lets_no_gradient_through(how: str, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Tanh())
    inner = network.forward
    if how == "reentrant":
        network.forward = lambda images: checkpoint(inner, images, use_reentrant=True)
    else:
        network.forward = torch.no_grad()(inner)
    model = get_peft_model(network, GatedLoraConfig(r=2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of inputs that need no gradient
        with pytest.raises(ValueError, match=r"No gradient reaches the adapter: .*no_grad.*use_reentrant=True"):
            PatchTrainer(model, FACES, arguments(tmp_path))


class Attending(nn.Module):
    """Torch's own attention over pixels; the last layer has the first one's weight if it is to."""

    def __init__(self, shared: bool = False) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.middle, self.last = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.out = nn.Conv2d(4, 3, 1)
        if shared:
            self.last.weight = self.middle.weight

    def forward(self, images: Tensor) -> Tensor:
        features = self.first(images)
        tokens = features.flatten(2).movedim(1, 2)
        attended = self.attention(tokens, tokens, tokens, need_weights=False)[0].movedim(2, 1).view_as(features)
        return self.out(self.last(F.gelu(self.middle(attended))))


def test_torch_s_attention_is_left_out_and_the_rest_is_trained(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"No adapters on \['attention\.out_proj'\]"):
        model = get_peft_model(Attending(), GatedLoraConfig(r=2))
    result = PatchTrainer(model, FACES, arguments(tmp_path)).train()
    assert {name.rpartition(".")[2] for name in result.gates} == {"first", "middle", "last", "out"}


def test_shared_weights_are_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'middle' and 'last' share one weight; .*exclude_modules="):
        get_peft_model(Attending(shared=True), GatedLoraConfig(r=2, exclude_modules=["attention.out_proj"]))
    out = ["attention.out_proj", "middle", "last"]
    model = get_peft_model(Attending(shared=True), GatedLoraConfig(r=2, exclude_modules=out))
    assert len(PatchTrainer(model, FACES, arguments(tmp_path)).train().gates) == 2
