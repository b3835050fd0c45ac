"""Several threads and one network. Threads meet at barriers and wait for events, never for time."""

import copy
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import peft.peft_model
import pytest
import torch
from peft import PeftModel, get_peft_model, inject_adapter_in_model
from torch import Tensor, nn

from loraguard.tuner import GatedLoraConfig, GatedLoraLayer

PATIENCE = 120  # seconds after which a thread is taken to hang


class Client:
    """A thread of its own."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)

    def start(self, deed: Callable[[], Any]) -> "Future[Any]":
        return self._pool.submit(deed)

    def does(self, deed: Callable[[], Any]) -> Any:
        return self.start(deed).result(PATIENCE)

    def end(self) -> None:
        self._pool.shutdown()


class Meeting(nn.Module):
    """In the middle of a network: does what it is told, with the thread's name."""

    deed: Callable[[str], None] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.deed is not None:
            self.deed(threading.current_thread().name.rpartition("_")[0])
        return x


@pytest.fixture
def clients() -> Iterator[list[Client]]:
    made = [Client(f"client{i}") for i in range(8)]
    yield made
    for one in made:
        one.end()


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), Meeting(), nn.Conv2d(4, 3, 3)).double().eval()


@pytest.fixture
def model() -> PeftModel:
    torch.manual_seed(1)
    model = get_peft_model(net(), GatedLoraConfig(r=2, init_lora_weights="paper"), "one")
    model.add_adapter("two", GatedLoraConfig(r=2, init_lora_weights="paper"))
    return model.eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)).double()


@torch.no_grad()
def alone(model: PeftModel, x: Tensor) -> dict[str, Tensor]:
    """What each adapter gives in one thread."""
    model, found = copy.deepcopy(model), {}
    for name in ("two", "one"):
        model.set_adapter(name)
        found[name] = model(x)
    with model.disable_adapter():
        found["__base__"] = model(x)
    return found


def close(found: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(found, want, rtol=0, atol=1e-12)


def meeting(model: Any) -> Meeting:
    return next(module for module in model.modules() if isinstance(module, Meeting))


def calling(model: Any, x: Tensor, **given: Any) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with torch.no_grad():
            return model(x, **given)

    return call


class Held:
    """A call that waits in the middle of the network until it is let go."""

    def __init__(self, model: Any, client: Client, call: Callable[[], Tensor]) -> None:
        self._inside, self._go = threading.Event(), threading.Event()
        meeting(model).deed = self._wait
        self._future = client.start(call)
        assert self._inside.wait(PATIENCE)
        meeting(model).deed = None

    def _wait(self, name: str) -> None:
        self._inside.set()
        assert self._go.wait(PATIENCE)

    def let_go(self) -> Tensor:
        self._go.set()
        return self._future.result(PATIENCE)


class TestSafe:
    def test_adapter_names(self, model: PeftModel, x: Tensor, clients: list[Client]) -> None:
        """Eight calls, all in the middle of the network at once; each names other adapters, and some none."""
        want, barrier = alone(model, x), threading.Barrier(len(clients))
        meeting(model).deed = lambda name: barrier.wait(PATIENCE)
        names = [["one", "two"], ["two", "__base__"], ["__base__"] * 2, None] * 2
        calls = [calling(model, x, **({} if one is None else {"adapter_names": one})) for one in names]
        futures = [client.start(call) for client, call in zip(clients, calls, strict=True)]
        for given, future in zip(names, futures, strict=True):
            for row, name in enumerate(given or ["one", "one"]):
                close(future.result(PATIENCE)[row], want[name][row])

    def test_merged(self, model: PeftModel, x: Tensor, clients: list[Client]) -> None:
        want, barrier = alone(model, x)["one"], threading.Barrier(len(clients))
        merged = model.merge_and_unload()
        meeting(merged).deed = lambda name: barrier.wait(PATIENCE)
        for future in [client.start(calling(merged, x)) for client in clients]:
            close(future.result(PATIENCE), want)

    def test_one_after_the_other(self, model: PeftModel, x: Tensor, clients: list[Client]) -> None:
        """A switch is for all threads that have not chosen themselves."""
        want = alone(model, x)
        clients[0].does(lambda: model.set_adapter("two"))
        close(clients[1].does(calling(model, x)), want["two"])
        with model.disable_adapter():
            close(calling(model, x)(), want["__base__"])
        close(clients[1].does(calling(model, x)), want["two"])

    def test_a_thread_that_has_ended_is_in_nobodys_way(self, model: PeftModel, x: Tensor) -> None:
        want = alone(model, x)
        thread = threading.Thread(target=model.base_model.disable_adapter_layers)
        thread.start()
        thread.join()
        close(calling(model, x)(), want["__base__"])
        model.base_model.enable_adapter_layers()
        close(calling(model, x)(), want["one"])


def switches(model: PeftModel, folder: Path) -> dict[str, Callable[[], Any]]:
    tuner = model.base_model
    model.save_pretrained(folder)
    return {
        "set_adapter": lambda: model.set_adapter("two"),
        "disable_adapter": lambda: model.disable_adapter().__enter__(),
        "disable_adapter_layers": tuner.disable_adapter_layers,
        "merge_adapter": tuner.merge_adapter,
        "merge_and_unload": tuner.merge_and_unload,
        "unload": tuner.unload,
        "unmerge_adapter": tuner.unmerge_adapter,
        "delete_adapter": lambda: model.delete_adapter("two"),
        "add_adapter": lambda: model.add_adapter("new", GatedLoraConfig(r=2)),
        "load_adapter": lambda: model.load_adapter(folder / "one", "new"),
        "add_weighted_adapter": lambda: tuner.add_weighted_adapter(["one"], [1.0], "new"),
    }


class TestContradictions:
    def test_no_switch_while_another_thread_calls(
        self, model: PeftModel, x: Tensor, clients: list[Client], tmp_path: Path
    ) -> None:
        want, state = alone(model, x), {name: value.clone() for name, value in model.state_dict().items()}
        held = Held(model, clients[0], calling(model, x))
        for name, switch in switches(model, tmp_path).items():
            with pytest.raises(RuntimeError, match=r"'client0_0' is running this network.*cannot change it"):
                clients[1].does(switch)
            assert model.state_dict().keys() == state.keys(), name
            assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items()), name
            assert list(model.peft_config) == ["one", "two"], name
        close(calling(model, x)(), want["one"])
        close(held.let_go(), want["one"])
        clients[1].does(lambda: model.set_adapter("two"))
        close(clients[0].does(calling(model, x)), want["two"])

    def test_no_call_while_another_thread_has_disabled(
        self, model: PeftModel, x: Tensor, clients: list[Client]
    ) -> None:
        want = alone(model, x)
        with model.disable_adapter():
            for given in ({}, {"adapter_names": ["one", "two"]}):
                with pytest.raises(RuntimeError, match=r"'MainThread' has disabled.*'client0_0' would run without"):
                    clients[0].does(calling(model, x, **given))
            with pytest.raises(RuntimeError, match=r"'MainThread' has disabled .* cannot (disable|enable) them"):
                clients[0].does(lambda: model.disable_adapter().__enter__())
            with pytest.raises(RuntimeError, match="cannot enable them meanwhile"):
                clients[0].does(model.base_model.enable_adapter_layers)
            close(calling(model, x)(), want["__base__"])
        close(clients[0].does(calling(model, x)), want["one"])

    def test_two_choices(self, model: PeftModel, x: Tensor, clients: list[Client]) -> None:
        want, (first, second, *_) = alone(model, x), clients
        first.does(lambda: model.set_adapter("one"))
        second.does(lambda: model.set_adapter("two"))
        with pytest.raises(RuntimeError, match=r"'client0_0' chose the adapters \['one'\], and another .* \['two'\]"):
            first.does(calling(model, x))
        close(second.does(calling(model, x)), want["two"])
        first.does(lambda: model.set_adapter("one"))
        close(first.does(calling(model, x)), want["one"])
        with pytest.raises(RuntimeError, match=r"'client1_0' chose the adapters \['two'\]"):
            second.does(calling(model, x))

    def test_enabling_is_no_choice(self, model: PeftModel, x: Tensor, clients: list[Client]) -> None:
        first, second, *_ = clients
        first.does(lambda: model.set_adapter("one"))
        second.does(lambda: model.set_adapter("two"))

        def briefly_without() -> None:
            with model.disable_adapter():
                pass

        first.does(briefly_without)
        with pytest.raises(RuntimeError, match="chose the adapters"):
            first.does(calling(model, x))

    def test_injected_adapters(self, x: Tensor, clients: list[Client]) -> None:
        """Without a PeftModel, as diffusers and transformers do it."""
        adapted = inject_adapter_in_model(GatedLoraConfig(r=2, init_lora_weights="paper"), net(), "one")
        layers = [module for module in adapted.modules() if isinstance(module, GatedLoraLayer)]
        y = calling(adapted, x)()
        for layer in layers:
            layer.enable_adapters(False)
        with pytest.raises(RuntimeError, match="would run without them"):
            clients[0].does(calling(adapted, x))
        for layer in layers:
            layer.enable_adapters(True)
        assert torch.equal(clients[0].does(calling(adapted, x)), y)

    def test_loading_at_once(
        self, model: PeftModel, x: Tensor, clients: list[Client], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model.save_pretrained(tmp_path)
        want, (first, second, *_) = alone(model, x), clients
        inside, go, load = threading.Event(), threading.Event(), peft.peft_model.load_peft_weights

        def slowly(*args: Any, **kwargs: Any) -> Any:
            inside.set()
            assert go.wait(PATIENCE)
            return load(*args, **kwargs)

        monkeypatch.setattr(peft.peft_model, "load_peft_weights", slowly)
        loading = first.start(lambda: model.load_adapter(tmp_path / "two", "third", torch_device="cpu"))
        assert inside.wait(PATIENCE)
        with pytest.raises(RuntimeError, match=r"'client0_0' is changing this network, .* 'client1_0' cannot change"):
            second.does(lambda: model.load_adapter(tmp_path / "one", "fourth", torch_device="cpu"))
        go.set()
        loading.result(PATIENCE)
        second.does(lambda: model.load_adapter(tmp_path / "one", "fourth", torch_device="cpu"))
        for name, same in (("third", "two"), ("fourth", "one")):
            close(calling(model, x, adapter_names=[name] * 2)(), want[same])

    def test_copies_of_modules(self, x: Tensor, clients: list[Client]) -> None:
        """PEFT tells modules_to_save the names by hooks, which other threads would run into."""
        config = GatedLoraConfig(r=2, init_lora_weights="paper", target_modules=["0"], modules_to_save=["2"])
        model = get_peft_model(net(), config, "one").eval()
        want = calling(model, x, adapter_names=["one", "one"])()
        held = Held(model, clients[0], calling(model, x, adapter_names=["one", "one"]))
        with pytest.raises(RuntimeError, match="'client0_0' is changing this network, so that 'client1_0' cannot run"):
            clients[1].does(calling(model, x))
        close(held.let_go(), want)


def test_names_are_checked(model: PeftModel, x: Tensor) -> None:
    with pytest.raises(ValueError, match=r"non-existing adapter\(s\): three"):
        model(x, adapter_names=["one", "three"])
    with pytest.raises(ValueError, match="Length of `adapter_names` should be the same"):
        model(x, adapter_names=["one"])
    with pytest.raises(ValueError, match="in training mode"):
        model.train()(x, adapter_names=["one", "two"])


def test_copies_are_independent(model: PeftModel, x: Tensor, clients: list[Client]) -> None:
    other = copy.deepcopy(model)
    held = Held(model, clients[0], calling(model, x))
    clients[1].does(lambda: other.set_adapter("two"))
    held.let_go()
    layers = [module for module in other.modules() if isinstance(module, GatedLoraLayer)]
    assert {id(layer.calls) for layer in layers} == {id(other.base_model.calls)} != {id(model.base_model.calls)}
