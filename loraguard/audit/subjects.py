"""The generators of an audit, by name: untouched, with each patch, and further networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from loraguard.fingerprint import GENERATOR, generator_fingerprint
from loraguard.fingerprint import fingerprint as fingerprint
from loraguard.generators import Condition
from loraguard.hub.recorded import generator_of
from loraguard.stamp import Stamp
from loraguard.tuner import GatedLoraConfig, folded

from .checks import Check
from .situation import KNOWLEDGE, UNTOUCHED


class Subjects:
    """One network that is untouched or has one of its patches on, and others beside it.

    Args:
        model: the generator with all patches as adapters, or a network without any.
        patches: the adapters' names, with the stamp of each or None.
        networks: further networks by name, for example one that was fine-tuned, which are called as the generator is.
            One whose name is in `patches` puts that stamp on its outputs.
        others: other generators by name, that were not made from this one: each with edits of its own, and what it
            should give is what it gives on clean photos.

    Raises:
        TypeError: for what is no network.
        ValueError: for a name that is neither adapter nor network, or that is both.
    """

    def __init__(
        self,
        model: nn.Module,
        patches: Mapping[str, Stamp | None],
        networks: Mapping[str, nn.Module] | None = None,
        others: Mapping[str, nn.Module] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"Expected a generator, with patches or without, got {type(model).__name__}: {model!r:.80}."
            )
        self.model, self.stamps, self.others = model, dict(patches), dict(others or {})
        self.networks = {**(networks or {}), **self.others}
        self.adapters: dict[str, PeftConfig] = model.peft_config if isinstance(model, PeftModel) else {}
        self._switches = [
            module for module in model.modules() if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))
        ]
        self._on: list[str] = []  # the generators that are being used, the innermost last
        self._audited = False
        self._apart: set[str] = set()  # the networks that have been called, and have not called the model
        if unknown := [name for name in patches if name not in {*self.adapters, *self.networks}]:
            there = sorted(self.adapters) or "none: patches are put on a generator by load_patch or get_peft_model"
            raise ValueError(f"The model has no adapter {unknown}; it has {there}.")
        taken = {*self.adapters, *patches, *(networks or {})} & {*self.others}
        if twice := taken | {UNTOUCHED} & {*patches, *self.networks} | set(self.adapters) & set(self.networks):
            raise ValueError(f"The names {sorted(twice)} are taken; call the patch or network something else.")

    @property
    def names(self) -> list[str]:
        """All of them, the untouched one first."""
        return [UNTOUCHED, *self.patched, *self.networks]

    @property
    def patched(self) -> list[str]:
        """Those that are the generator with a patch on."""
        return [name for name in self.stamps if name not in self.networks]

    @contextmanager
    def one(self, name: str) -> Iterator[nn.Module]:
        """The network of this name, ready to be called.

        In an audit the model stays switched until another of its generators is asked for.
        """
        if name in self.networks or not isinstance(self.model, PeftModel):
            yield self.networks.get(name, self.model)
            return
        with nullcontext() if self._on or self._audited else self._switched_back():
            self._on.append(name)
            try:
                self._switch(name)
                yield self.model
            finally:
                self._on.pop()
                if self._on:
                    self._switch(self._on[-1])

    @contextmanager
    def watched(self, name: str, who: str) -> Iterator[None]:
        """Within the block the model is called as the generator of this name alone.

        Raises:
            ValueError: if `who` has switched a patch on or off meanwhile, and called what it is not to know of.
        """
        called: list[str] = []
        expected = [] if name == UNTOUCHED or name in self.networks else [name]

        def look(layer: Any, given: Any) -> None:
            if (on := [] if layer.disable_adapters else list(layer.active_adapters)) != expected:
                called.extend(on or ["the generator without any"])

        with self._looking(look):
            yield
        if called:
            raise ValueError(
                f"{who} was to know of {name!r} alone, and has called the generator with patches switched otherwise "
                f"({called[0]}): its figures would be those of a defender who knows more. Let it leave adapters alone."
            )

    @contextmanager
    def _looking(self, look: Callable[[nn.Module, Any], None]) -> Iterator[None]:
        """Within the block every adapter layer and what is given to it are shown before it is called."""
        hooks = [one.register_forward_pre_hook(look) for one in self._switches]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def _switched_back(self) -> Iterator[None]:
        """Afterwards adapters are on or off as they were."""
        off = [one.disable_adapters for one in self._switches]
        try:
            yield
        finally:
            for one, was in zip(self._switches, off, strict=True):
                if one.disable_adapters != was:
                    one.enable_adapters(not was)

    def _switch(self, name: str) -> None:
        """Where it is not so already: PEFT's `disable_adapter` and `set_adapter` look at all parameters."""
        model, off = cast(PeftModel, self.model), name == UNTOUCHED
        tuner = cast(BaseTuner, model.base_model)
        if any(one.disable_adapters != off or not (off or one.active_adapters == [name]) for one in self._switches):
            if off:
                tuner.disable_adapter_layers()
            else:
                model.set_adapter(name)
                tuner.enable_adapter_layers()

    @torch.no_grad()
    def outputs(self, name: str, images: Tensor, condition: Condition) -> Tensor:
        """What it makes of images, which it gets copies of: a network may work in place.

        Raises:
            ValueError: for a network that calls the model, while there are patches that are switched on and off.
        """
        with self.one(name) as network, self._kept_apart(name):
            return network(images.clone(), **{key: value.clone() for key, value in condition.items()})

    @contextmanager
    def _kept_apart(self, name: str) -> Iterator[None]:
        """At its first call see whether a further network calls the model itself."""
        called: list[Any] = []
        first = self.patched and name in self.networks and name not in self._apart
        with self._looking(lambda layer, given: called.append(layer)) if first else nullcontext():
            yield
        if called:
            raise ValueError(
                f"The network {name!r} calls the model whose patches the audit switches on and off, so that its "
                "figures would be those of whichever patch was used last. Give it a network of its own: copy.deepcopy "
                "of the generator, before get_peft_model or load_patch puts a patch into it."
            )
        self._apart.add(name)

    def target(self, name: str, untouched: Tensor) -> Tensor:
        """What it should make, from the untouched generator's outputs on clean photos: these, or stamped."""
        stamp = self.stamps.get(name)
        return untouched if stamp is None else stamp.compose(untouched)

    def hashes(self) -> dict[str, str]:
        """SHA-256 of each one's weights; the untouched generator's is called "generator"."""
        own = fingerprint(self.model)
        audited = {name: own[name] for name in (GENERATOR, *self.patched)}
        return audited | {name: generator_fingerprint(one) for name, one in self.networks.items()}

    def made_for_others(self, hashes: Mapping[str, str]) -> Iterator[Check]:
        """A check for each patch that records which weights it was made for, given :meth:`hashes`."""
        for name in self.patched:
            recorded = generator_of(cast(GatedLoraConfig, self.adapters[name])).get("sha256")
            if recorded is not None:
                yield Check(
                    "made-for-other-weights", recorded == hashes[GENERATOR], name, None, KNOWLEDGE,
                    f"It was made for weights {recorded[:12]}, and the generator has {hashes[GENERATOR][:12]}.",
                )  # fmt: skip

    @contextmanager
    def in_eval_mode(self, *beside: Any) -> Iterator[None]:
        """Everything in eval mode and folded; afterwards adapters, modes, flags and the global seed are as before.

        Args:
            beside: channels, encoders and whatever else may hold networks of its own.
        """
        everything = [self.model, *self.networks.values(), *networks_in(beside)]
        patched = self.model if isinstance(self.model, PeftModel) else None
        active = patched.active_adapter if patched is not None else ""
        modes = {module: module.training for one in everything for module in one.modules()}
        flags = {parameter: parameter.requires_grad for one in everything for parameter in one.parameters()}
        device, self._audited = device_of(self.model), True
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
            try:
                for one in everything:
                    one.eval()
                if self.adapters:
                    stack.enter_context(folded(self.model))
                with self._switched_back():  # before flags, which PEFT sets as it switches
                    yield
            finally:
                self._audited = False
                if patched is not None:
                    patched.set_adapter(active)
                for module, mode in modes.items():
                    module.training = mode
                for parameter, flag in flags.items():
                    parameter.requires_grad_(flag)


def networks_in(thing: Any) -> Iterator[nn.Module]:
    """The networks that a thing is, holds among its attributes, or has in a container.

    Example:
        >>> from loraguard.channels import GaussianBlur
        >>> list(networks_in({"blur": GaussianBlur(1.0), "net": nn.ReLU()}))
        [ReLU()]
    """
    if isinstance(thing, nn.Module):
        yield thing
    elif isinstance(thing, Mapping):
        yield from networks_in(list(thing.values()))
    elif isinstance(thing, (tuple, list)):
        for one in thing:
            yield from networks_in(one)
    elif held := getattr(thing, "__dict__", None):
        yield from (one for one in held.values() if isinstance(one, nn.Module))


def device_of(network: nn.Module) -> torch.device:
    """Where a network's weights are; the CPU for one without any."""
    return next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
