"""A small generator with every kind of layer, and two adapters on it."""

from collections.abc import Iterator

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from loraguard.tuner import GatedLoraConfig, GatedLoraLayer


class Generator(nn.Module):
    """A picture (N, 3, 8, 8) and a label (N, 2) to a picture (N, 3, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.label = nn.Linear(2, 3)
        self.down = nn.Conv2d(3, 4, 4, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.mix = nn.Conv2d(4, 4, 3, padding="same", padding_mode="reflect", groups=2)
        self.up = nn.ConvTranspose2d(4, 3, 4, stride=2, padding=1)

    def forward(self, images: Tensor, label: Tensor) -> Tensor:
        x = images + self.label(label)[:, :, None, None]
        x = self.norm(self.down(x)).relu()
        return self.up(self.mix(x)).tanh()


@pytest.fixture(autouse=True, scope="session")
def _whole_numbers_are_multiplied_right() -> Iterator[None]:
    """Where torch has AVX-512, bitsandbytes multiplies by `torch._int_mm`: wrong with oneDNN held to AVX2."""
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randint(-128, 128, (32, 32), dtype=torch.int8, generator=generator) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        if not torch.equal(torch._int_mm(one, other), one.int() @ other.int()):
            patch.setattr(torch, "_int_mm", lambda one, other: one.int() @ other.int())
        yield


@pytest.fixture
def generator() -> nn.Module:
    torch.manual_seed(0)
    return Generator().double().eval()


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)


@pytest.fixture
def model(generator: nn.Module) -> PeftModel:
    """Adapters "one" (active) and "two", of different rank and scale, and every gate open by another amount."""
    torch.manual_seed(2)
    model = get_peft_model(generator, GatedLoraConfig(r=4, init_lora_weights="paper"), "one")
    model.add_adapter("two", GatedLoraConfig(r=2, lora_alpha=5, init_lora_weights="paper"))
    for layer in model.modules():
        if isinstance(layer, GatedLoraLayer):
            for gate in layer.lora_gate.values():
                nn.init.normal_(gate.weight)
    return model.eval()
