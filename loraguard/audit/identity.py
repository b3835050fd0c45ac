"""What tells one thing of an audit from another: its code, its settings and its weights.

A figure that was stored belongs to a thing if the thing's identity is the same. The class and the settings are not
enough: two classes may share a name, two functions their module, two networks their weights.
"""

from __future__ import annotations

import copyreg
import dis
import functools
import hashlib
import importlib
import inspect
import re
import sys
import types
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn

from loraguard.fingerprint import digest

from .installed import OWN, installed, package_of, version_of

_PLAIN = (str, int, float, bool, type(None), bytes, complex, type(...), type(NotImplemented))
_CONTAINERS = (Mapping, set, frozenset, tuple, list)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")  # of each layer
_OF_MODULES = frozenset({*vars(nn.Module()), "peft_config"})  # the latter is PEFT's note on the network beneath
_ADAPTER = re.compile(r"(?:^|\.)(?:lora_\w+|modules_to_save)(?:\.|$)")
_RUN = uuid.uuid4().hex

Identity = dict[str, Any]


def identity(thing: Any) -> Identity:
    """The identity of a defense, a channel, a network or a data set, as JSON takes it.

    It holds the SHA-256 of the code, attributes, closures, tensors and weights that the thing's behaviour depends on,
    as far as Python shows them; of an object that is made in C, what it would be pickled as. Code of an installed
    package counts by the package's version, unless it is installed so that it can be edited; of any other module, what
    is used of it. Of something that cannot
    be looked into (a generator, an open file) the identity is one of this process, so that no other run takes it for
    its own; `opaque` names what it was.

    Args:
        thing: anything.

    Returns:
        `class`, `sha256`, and `opaque` where there is something that cannot be described.

    Example:
        >>> def scaled(factor):
        ...     return lambda images: factor * images
        >>> identity(scaled(2)) == identity(scaled(2)), identity(scaled(2)) == identity(scaled(3))
        (True, False)
        >>> identity(one for one in [1])["opaque"]
        ['generator']
    """
    walk = _Walk()
    walk.add(thing)
    name = getattr(thing, "__qualname__", type(thing).__qualname__)
    opaque = {"opaque": sorted(walk.opaque)} if walk.opaque else {}
    return {"class": name, "sha256": walk.sha.hexdigest(), **opaque}


def architecture(model: nn.Module) -> Identity:
    """The identity of a network, or of that beneath a model's adapters, without its weights and adapters.

    Example:
        >>> from peft import get_peft_model
        >>> from loraguard import GatedLoraConfig
        >>> small, tanh = nn.Sequential(nn.Conv2d(3, 3, 1)), nn.Sequential(nn.Conv2d(3, 3, 1), nn.Tanh())
        >>> config = GatedLoraConfig(r=2)
        >>> architecture(get_peft_model(small, config)) == architecture(get_peft_model(tanh, config))
        False
    """
    walk = _Walk()
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    for name, layer in base.named_modules():
        adapter = type(layer).__module__.startswith(("peft.", f"{OWN}.tuner")) or _ADAPTER.search(name)
        if not adapter:
            walk.layer(name.replace(".base_layer", ""), layer)
    saved = base.state_dict()
    unsaved = [(name, value) for name, value in base.named_buffers() if name not in saved and not _ADAPTER.search(name)]
    walk.pairs([*unsaved, *((name, value) for name, value in saved.items() if not isinstance(value, Tensor))])
    opaque = {"opaque": sorted(walk.opaque)} if walk.opaque else {}
    return {"class": type(base).__qualname__, "sha256": walk.sha.hexdigest(), **opaque}


def is_own(thing: Any) -> bool:
    """Whether a thing is one of this package's own settings, which say all about it: equal ones are one.

    Example:
        >>> from loraguard.defenses import Disrupting, as_defense
        >>> def none(generator, images, condition, clean=None):
        ...     return images
        >>> none.eps = 0.1
        >>> is_own(Disrupting()), is_own(as_defense(none))
        (True, False)
    """
    if isinstance(thing, (tuple, list)):
        return all(map(is_own, thing))
    own = is_dataclass(thing) and package_of(type(thing).__module__) == OWN
    return isinstance(thing, _PLAIN) or (own and all(is_own(getattr(thing, one.name)) for one in fields(thing)))


class _Walk:
    """One pass through a thing and all that it refers to; each object once."""

    def __init__(self) -> None:
        self.sha = hashlib.sha256()
        self.opaque: set[str] = set()
        self.seen: dict[int, tuple[int, Any]] = {}  # their order, and the objects, so that no id is given twice

    def say(self, *words: Any) -> None:
        self.sha.update(repr(words).encode())

    def add(self, thing: Any) -> None:
        """Put a thing's identity into the hash."""
        if type(thing) in _PLAIN:
            return self.say(type(thing).__name__, thing)
        if id(thing) in self.seen:
            return self.say("again", self.seen[id(thing)][0])
        self.seen[id(thing)] = len(self.seen), thing
        if isinstance(thing, (Tensor, np.ndarray)):
            self._values(thing)
        elif isinstance(thing, Enum):
            self.say(type(thing).__qualname__, thing.name)
            self.add(thing.value)
            self.add(type(thing))
        elif isinstance(thing, _PLAIN):  # of a class made from one
            base: Any = next(base for base in _PLAIN if isinstance(thing, base))
            self.say(base.__repr__(thing))
            self._object(thing)
        elif isinstance(thing, (PurePath, torch.dtype, torch.device, torch.Size, np.generic, np.dtype)):
            self.say(type(thing).__name__, str(thing))
        elif isinstance(thing, _CONTAINERS):
            self._container(thing)
        elif isinstance(thing, types.ModuleType):
            self.say("module", thing.__name__, version_of(thing.__name__))
        elif isinstance(thing, type):
            self._class(thing)
        elif isinstance(thing, functools.partial):
            self.say("partial")
            for one in (thing.func, thing.args, thing.keywords, type(thing), vars(thing)):
                self.add(one)
        elif isinstance(thing, types.MethodType):
            self.say("method")
            self.add(thing.__func__)
            self.add(thing.__self__)
        elif isinstance(thing, types.FunctionType):
            self._function(thing)
        elif isinstance(thing, types.CodeType):
            self._code(thing)
        elif isinstance(thing, nn.Module):
            self._network(thing)
        else:
            self._object(thing)
        return None

    def pairs(self, pairs: Iterable[tuple[Any, Any]]) -> None:
        for name, value in sorted(pairs, key=lambda pair: str(pair[0])):
            self.say("at", str(name))
            self.add(value)

    def _container(self, thing: Any) -> None:
        """What is in it; of a class made from a container, also what else it holds."""
        self.say(type(thing).__qualname__, len(thing))
        if isinstance(thing, Mapping):
            self.pairs(thing.items())
        elif isinstance(thing, (set, frozenset)):
            self.say(sorted(identity(one)["sha256"] for one in thing))
        else:
            for one in thing:
                self.add(one)
        if type(thing) not in (dict, set, frozenset, tuple, list, types.MappingProxyType):
            self._object(thing)

    def _values(self, values: Any) -> None:
        if isinstance(values, np.ndarray) and values.dtype.hasobject:
            self.say("array", values.shape)
            for one in values.flat:
                self.add(one)
        else:
            tensor = values if isinstance(values, Tensor) else torch.from_numpy(np.ascontiguousarray(values).view("u1"))
            tensor = tensor.detach().dequantize() if tensor.is_quantized else tensor.detach().to_dense()
            self.say(type(values).__name__, str(values.dtype), tuple(values.shape), digest({"": tensor}))
        if type(values) not in (Tensor, nn.Parameter, np.ndarray):
            self._object(values)
        elif held := getattr(values, "__dict__", None):
            self.pairs(held.items())

    def _class(self, one: type) -> None:
        """Installed classes by their version; others by the code of each method, and of what they inherit."""
        self.say("class", one.__module__, one.__qualname__, version_of(one.__module__))
        if installed(one.__module__):
            return
        for base in (*one.__bases__, type(one)):
            self.add(base)
        skipped = ("__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__static_attributes__",
                   "__firstlineno__", "__abstractmethods__", "_abc_impl", "__parameters__", "__orig_bases__",
                   "__dataclass_fields__", "__dataclass_params__", "__match_args__")  # fmt: skip
        for name, value in sorted(vars(one).items()):
            if name not in skipped:
                self.say("has", name)
                self.add(_unwrapped(value))

    def _function(self, one: types.FunctionType) -> None:
        self.say("function", one.__module__, one.__qualname__, version_of(one.__module__))
        if not installed(one.__module__):
            self._code(one.__code__)
            names = {name for code in _codes(one.__code__) for name in code.co_names}
            self._used({**one.__globals__, **_imported(one)}, names)
        for value in (one.__defaults__, one.__kwdefaults__, vars(one)):
            self.add(value)
        self.pairs(zip(one.__code__.co_freevars, map(_contents, one.__closure__ or ()), strict=True))

    def _used(self, space: Mapping[str, Any], names: set[str], within: tuple[Any, ...] = ()) -> None:
        """What code finds under its names; in modules that are not installed, which no version describes, as well."""
        self.pairs((name, space[name]) for name in names & space.keys())
        for name in sorted(names & space.keys()):
            one = space[name]
            if isinstance(one, types.ModuleType) and one not in within and not installed(one.__name__):
                self.say("in", name)
                self._used(vars(one), names, (*within, one))

    def _code(self, code: types.CodeType) -> None:
        self.say("code", code.co_code, code.co_names, code.co_varnames, code.co_freevars)
        for one in code.co_consts:
            self.add(one)

    def _network(self, network: nn.Module) -> None:
        """Weights and buffers, and each layer's class, attributes, hooks and what was put over its methods."""
        self.say("network")
        self.pairs([*network.state_dict().items(), *network.named_buffers()])
        for name, layer in network.named_modules():
            self.layer(name, layer)

    def layer(self, name: str, layer: nn.Module) -> None:
        """A layer without its weights and without the layers in it."""
        self.say("layer", name)
        self.add(type(layer))
        for hooks in HOOKS:
            for hook in getattr(layer, hooks).values():
                self.add(hook)
        own = {key: value for key, value in vars(layer).items() if key not in _OF_MODULES}
        if isinstance(layer, (torch.jit.ScriptModule, torch.fx.GraphModule)):  # their code is none of their class
            code = getattr(layer, "code", "")  # a part of a script may have none
            self.say(code)
            used = {name: getattr(layer, name, None) for name in re.findall(r"\.(\w+)", code)}
            own = {name: one for name, one in used.items() if isinstance(one, (*_PLAIN, *_CONTAINERS, Tensor))}
        elif installed(type(layer).__module__):  # what such a layer remembers of its last call does not count
            own = {key: value for key, value in own.items() if callable(value) or not key.startswith("_")}
        self.pairs(own.items())

    def _object(self, thing: Any) -> None:
        """Anything else: its class, what it holds, and what it would be pickled as."""
        self.add(type(thing))
        slots = [name for one in type(thing).__mro__ for name in _slots(one) if hasattr(thing, name)]
        held = {name: getattr(thing, name) for name in slots}
        held |= {name: value for name, value in getattr(thing, "__dict__", {}).items() if not _is_cached(thing, name)}
        self.pairs(held.items())
        if isinstance(thing, Tensor):  # its values were said
            return
        if isinstance(thing, types.BuiltinFunctionType):
            self.say(thing.__module__, thing.__qualname__)
            if not isinstance(thing.__self__, types.ModuleType):
                self.add(thing.__self__)
        elif (parts := _pickled(thing)) is not None:
            for one in parts:
                self.add(one)
        elif hasattr(thing, "__dict__") or held or not installed(type(thing).__module__):
            return
        elif isinstance(thing, (range, slice, bytearray)):
            self.say(repr(thing))
        elif type(thing) is not object and not isinstance(thing, (*_PLAIN, *_CONTAINERS)):
            self.opaque.add(type(thing).__qualname__)
            self.say("opaque", _RUN, id(thing))


def _unwrapped(value: Any) -> Any:
    """The functions behind what a class holds."""
    if isinstance(value, (staticmethod, classmethod)):
        return value.__func__
    if isinstance(value, property):
        return [value.fget, value.fset]
    if isinstance(value, functools.cached_property):
        return value.func
    if isinstance(value, types.GetSetDescriptorType | types.MemberDescriptorType):
        return value.__name__
    return value


def _is_cached(thing: Any, name: str) -> bool:
    """Whether an attribute is what a cached property has found."""
    return isinstance(inspect.getattr_static(type(thing), name, None), functools.cached_property)


def _slots(one: type) -> Iterator[str]:
    """A class's slots by the names that its objects have them under: private ones begin with the class's."""
    slots = vars(one).get("__slots__", ())
    for name in (slots,) if isinstance(slots, str) else slots:
        private = name.startswith("__") and not name.endswith("__")
        yield f"_{one.__name__.lstrip('_')}{name}" if private else name


def _contents(cell: types.CellType) -> Any:
    """What a closure's cell holds; `...` where nothing has been put into it yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return ...


def _pickled(thing: Any) -> list[Any] | None:
    """What an object would be made of again; None where its class does not say."""
    own: Any = type(thing)
    says = own.__reduce__ is not object.__reduce__ or own.__reduce_ex__ is not object.__reduce_ex__
    if own not in copyreg.dispatch_table and not says:
        return None
    try:
        parts = copyreg.dispatch_table[own](thing) if own in copyreg.dispatch_table else thing.__reduce_ex__(2)
    except Exception:  # of whatever kind: the code is somebody else's
        return None
    if isinstance(parts, str):
        return [parts]
    return [list(one) if isinstance(one, Iterator) else one for one in parts]


def _codes(code: types.CodeType) -> Iterable[types.CodeType]:
    """A function's code and that of the functions within it."""
    yield code
    for one in code.co_consts:
        if isinstance(one, types.CodeType):
            yield from _codes(one)


def _imported(function: types.FunctionType) -> dict[str, types.ModuleType]:
    """The modules that a function imports when it is called, but for installed ones, by the names that it says."""
    names = {
        step.argval
        for code in _codes(function.__code__)
        for step in dis.get_instructions(code)
        if step.opname == "IMPORT_NAME" and not installed(step.argval)
    }
    found = {}
    for name in names:
        beside = f"{function.__globals__.get('__package__')}.{name}"
        with suppress(Exception):  # of whatever kind: the code is somebody else's
            found[name] = sys.modules[beside] if beside in sys.modules else importlib.import_module(name)
    return found
