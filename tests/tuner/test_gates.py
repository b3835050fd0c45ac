"""Each gate's own formula, and what a gate declares."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from loraguard.tuner import GATES, GatedLoraConfig
from loraguard.tuner.gates.base import Gate, Layout, StaticGate
from loraguard.tuner.gates.registry import GATES as REGISTRY

EXACT = {"rtol": 0.0, "atol": 1e-12}
DOCS = Path(__file__).parents[2] / "docs" / "tuner.md"


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def case(name: str, biased: bool = False) -> tuple[Any, Tensor, Any]:
    """A gate of random logits on a grouped convolution, what A gives there, and B."""
    torch.manual_seed(0)
    layout = Layout(groups=2, out=3, rank=2, dims=2)
    gate = GATES[name](0.3, layout).double()
    for parameter in gate.parameters():
        nn.init.normal_(parameter)
    return gate, torch.randn(2, 4, 5, 3).double(), nn.Conv2d(4, 6, 1, groups=2, bias=biased).double()


@pytest.mark.parametrize("biased", [False, True])
class TestFormulas:
    def test_scalar(self, biased: bool) -> None:
        gate, hidden, b = case("scalar", biased)
        torch.testing.assert_close(gate(hidden, b, 1.7), sigmoid(gate.weight.item()) * 1.7 * b(hidden), **EXACT)

    def test_channel(self, biased: bool) -> None:
        gate, hidden, b = case("channel", biased)
        y, u = gate(hidden, b, 1.7), 1.7 * b(hidden)
        for feature in range(6):
            want = sigmoid(gate.weight[feature].item()) * u[:, feature]
            torch.testing.assert_close(y[:, feature], want, **EXACT)

    def test_rank(self, biased: bool) -> None:
        """Ranks of the second group come after those of the first; a bias of B has no rank."""
        gate, hidden, b = case("rank", biased)
        gated = torch.stack([sigmoid(gate.weight[rank].item()) * hidden[:, rank] for rank in range(4)], dim=1)
        torch.testing.assert_close(gate(hidden, b, 1.7), 1.7 * b(gated), **EXACT)

    def test_input(self, biased: bool) -> None:
        gate, hidden, b = case("input", biased)
        u = 1.7 * b(hidden)
        openings = [sigmoid(gate.weight.item() * sample.mean().item() + gate.bias.item()) for sample in u]
        want = torch.stack([sample * opening for sample, opening in zip(u, openings, strict=True)])
        torch.testing.assert_close(gate(hidden, b, 1.7), want, **EXACT)

    def test_input_channel(self, biased: bool) -> None:
        gate, hidden, b = case("input_channel", biased)
        u = 1.7 * b(hidden)
        at = u.movedim(1, -1)
        want = at / (1 + torch.exp(-(at @ gate.weight.flatten(1).T + gate.bias)))
        torch.testing.assert_close(gate(hidden, b, 1.7), want.movedim(-1, 1), **EXACT)

    def test_none(self, biased: bool) -> None:
        gate, hidden, b = case("none", biased)
        torch.testing.assert_close(gate(hidden, b, 1.7), 1.7 * b(hidden), **EXACT)


class GroupGate(StaticGate):
    @staticmethod
    def shape(groups: int, out: int, rank: int) -> tuple[int, int, int]:
        return groups, 1, 1


def test_a_gate_per_group() -> None:
    gate = GroupGate(0.3, Layout(groups=2, out=3, rank=2, dims=2)).double()
    nn.init.normal_(gate.weight)
    _, hidden, b = case("none")
    y, u = gate(hidden, b, 1.7), 1.7 * b(hidden)
    for feature in range(6):
        want = sigmoid(gate.weight[feature // 3].item()) * u[:, feature]
        torch.testing.assert_close(y[:, feature], want, **EXACT)


@pytest.mark.parametrize("declared", [(2, 3, 2), (2, 3, 4), (3, 1, 1), (1, 3, 2)])
def test_what_cannot_be_declared(declared: tuple[int, int, int]) -> None:
    class Odd(StaticGate):
        @staticmethod
        def shape(groups: int, out: int, rank: int) -> tuple[int, int, int]:
            return declared

    with pytest.raises(TypeError, match=r"Odd.shape is \(.*on a layer of \(groups, out, rank\) = \(2, 3, 2\)"):
        Odd(0.0, Layout(2, 3, 2))


@pytest.mark.parametrize("name", GATES)
class TestEveryGate:
    def test_resetting_puts_it_back(self, name: str) -> None:
        gate, *_ = case(name)
        gate.reset_parameters()
        for one, two in zip(gate.parameters(), GATES[name](0.3, gate.layout).parameters(), strict=True):
            assert torch.equal(one.float(), two)

    def test_it_has_a_row_in_the_docs_and_a_config_takes_it(self, name: str) -> None:
        rows = [line for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith(f'| `"{name}"`')]
        assert len(rows) == 1
        assert rows[0].endswith(f"| {'yes' if GATES[name].mergeable else 'no'} |")
        assert GatedLoraConfig(gate_type=name).gate_type == name

    def test_one_file_each(self, name: str) -> None:
        assert issubclass(GATES[name], Gate)
        assert GATES[name].__module__ == f"loraguard.tuner.gates.{name}"
        assert REGISTRY is GATES
